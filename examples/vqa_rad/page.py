"""The page that the demo leaves behind: numbers, pictures, questions and answers in one file."""

import base64
from dataclasses import dataclass
from html import escape
from pathlib import Path

STYLE = """
:root { --ink: #1d2430; --soft: #667085; --line: #e4e7ec; --right: #12805c; --wrong: #b42318; }
* { box-sizing: border-box; }
body { margin: 0; background: #f7f8fa; color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 8px; }
h2 { font-size: 19px; margin: 40px 0 12px; }
p { margin: 0 0 12px; max-width: 74ch; }
.soft { color: var(--soft); font-size: 14px; }
table { border-collapse: collapse; width: 100%; background: #fff; border: 1px solid var(--line); border-radius: 8px; }
th, td { padding: 9px 14px; text-align: right; border-bottom: 1px solid var(--line);
         font-variant-numeric: tabular-nums; }
th { font-size: 13px; font-weight: 600; color: var(--soft); }
th:first-child, td:first-child { text-align: left; }
tr:last-child td { border-bottom: 0; }
tr.main td { font-weight: 650; background: #eef7f3; }
td.bar { width: 26%; } td.bar div { height: 10px; border-radius: 5px; background: #b9c2d0; }
tr.main td.bar div { background: var(--right); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 16px; }
.card { background: #fff; border: 1px solid var(--line); border-radius: 8px; overflow: hidden; display: flex;
        flex-direction: column; }
.card img { width: 100%; height: 190px; object-fit: contain; background: #000; display: block; }
.card div { padding: 10px 12px 12px; font-size: 14px; line-height: 1.4; }
.card .answer { font-weight: 650; margin-top: 6px; }
.right .answer { color: var(--right); } .wrong .answer { color: var(--wrong); }
"""


@dataclass
class Row:
    """A line of the table; accuracies from 0 to 1 over all, CLOSED and OPEN questions."""

    name: str
    accuracy: float
    closed: float
    open: float
    main: bool = False


@dataclass
class Card:
    """A picture, a question about it, and what the model said."""

    image: Path
    question: str
    truth: str
    answer: str
    right: bool


def write_page(file: Path, rows: list[Row], cards: list[Card], introduction: list[str], notes: list[str]) -> None:
    """Write one HTML file that needs no other.

    Args:
        introduction: paragraphs above the table.
        notes: paragraphs at the end.
    """
    right = sum(card.right for card in cards)
    parts = [
        f"<h1>VQA-RAD: a bridge tuned in minutes</h1>{_paragraphs(introduction)}",
        f"<h2>Accuracy on the test set</h2>{_table(rows)}",
        f"<h2>{len(cards)} test questions, {right} answered right</h2>",
        '<p class="soft">Drawn at random, one to a picture, and asked of the saved release in a new process.</p>',
        f'<div class="cards">{"".join(map(_card, cards))}</div>',
        f"<h2>How it was made</h2>{_paragraphs(notes)}",
    ]
    html = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>VQA-RAD with InstructBLIP</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>'
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )
    file.write_text(html, encoding="utf-8")


def _paragraphs(texts: list[str]) -> str:
    return "".join(f"<p>{escape(text)}</p>" for text in texts)


def _table(rows: list[Row]) -> str:
    head = "<tr><th></th><th>all</th><th>closed (yes/no, choices)</th><th>open</th><th></th></tr>"
    lines = [
        f"<tr{' class=main' if row.main else ''}><td>{escape(row.name)}</td><td>{row.accuracy:.1%}</td>"
        f"<td>{row.closed:.1%}</td><td>{row.open:.1%}</td>"
        f'<td class="bar"><div style="width:{row.accuracy:.1%}"></div></td></tr>'
        for row in rows
    ]
    return f"<table>{head}{''.join(lines)}</table>"


def _card(card: Card) -> str:
    pixels = base64.b64encode(card.image.read_bytes()).decode()
    truth = "" if card.right else f'<div class="soft" style="padding:0">right answer: {escape(card.truth)}</div>'
    return (
        f'<div class="card {"right" if card.right else "wrong"}">'
        f'<img alt="{escape(card.image.stem)}" src="data:image/jpeg;base64,{pixels}">'
        f'<div>{escape(card.question)}<div class="answer" style="padding:0">{"✓" if card.right else "✗"} '
        f"{escape(card.answer) or '(nothing)'}</div>{truth}</div></div>"
    )
