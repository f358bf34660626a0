"""The report as one HTML page: tables, a plot of each benchmark, and samples with their pictures.

The page stands alone: no script and nothing to fetch, pictures are small JPEGs inside it. All texts are escaped.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape

from instructblip.datasets_builders.preview import html_page, shortened, thumbnail
from instructblip.eval_tasks.report_samples import Answer, Shown
from instructblip.eval_tasks.report_tables import DASH, Cell, Column, Table

LABEL_WIDTH, PLOT_WIDTH, VALUE_WIDTH, LINE_HEIGHT = 176, 200, 42, 17  # of a plot, in pixels
MOST_LABEL = 26  # characters
OWN_STYLE = """
body { max-width: 100rem; }
h2 { margin: 2.6rem 0 0.8rem; font-size: 1.25rem; letter-spacing: -0.01em; }
h3 { margin: 0; font-size: 0.92rem; font-weight: 600; }
.sheet { background: var(--card); border: 1px solid var(--line); border-radius: 12px; overflow-x: auto; }
.sheet table { margin: 0; font-size: 0.84rem; }
.sheet th, .sheet td { padding: 0.42rem 0.7rem; white-space: nowrap; vertical-align: top; }
.sheet.narrow { width: fit-content; max-width: 100%; }
.narrow .interval { display: inline-block; min-width: 6.2rem; margin-left: 0.5rem; }
.narrow td:not(:has(.interval))::after { content: ""; display: inline-block; width: 6.7rem; }
.sheet thead th { border-bottom: 1px solid var(--line); }
.sheet th:first-child { position: sticky; left: 0; background: var(--card); max-width: 24rem; white-space: normal;
  overflow-wrap: anywhere; min-width: 11rem; }
.sheet tr.measured > * { background: hsl(150 45% 45% / 0.09); font-weight: 600; color: var(--ink); }
.sheet tr.measured th:first-child { background: color-mix(in srgb, hsl(150 45% 45%) 9%, var(--card)); }
.sheet tr.first > * { border-top: 2px solid var(--line); }
.interval { display: block; font-weight: 400; font-size: 0.72rem; color: var(--soft); }
sup { font-weight: 400; color: var(--soft); }
.notes { margin: 0.8rem 0 0; padding-left: 1.4rem; list-style: decimal; color: var(--soft); font-size: 0.84rem;
  max-width: 62rem; }
.notes li { display: list-item; padding: 0.1rem 0; overflow-wrap: anywhere; }
ul { margin: 0; padding-left: 1.1rem; font-size: 0.88rem; max-width: 62rem; }
ul li { display: list-item; padding: 0.15rem 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.3rem 1rem; margin: 0; font-size: 0.84rem;
  max-width: 62rem; }
dt { font-weight: 600; } dd { margin: 0; color: var(--soft); overflow-wrap: anywhere; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(25rem, 100%), 1fr)); gap: 1rem; }
figure { margin: 0; padding: 0.9rem 1rem; background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
figcaption { font-weight: 600; font-size: 0.9rem; margin-bottom: 0.35rem; }
svg { display: block; width: 100%; height: auto; max-width: 27rem; }
svg text { font: 11px system-ui, -apple-system, "Segoe UI", "Noto Sans", sans-serif; fill: var(--soft);
  font-variant-numeric: tabular-nums; }
svg .ours text { fill: var(--ink); font-weight: 600; }
svg .grid { stroke: var(--line); } svg .band { stroke: var(--line); stroke-dasharray: 1 3; }
svg circle { fill: var(--soft); } svg .instructblip circle { fill: hsl(215 60% 52%); }
svg .blip circle { fill: hsl(215 38% 68%); } svg .ours circle { fill: hsl(150 55% 38%); }
svg .ours line.interval { stroke: hsl(150 55% 38%); stroke-width: 2; }
.legend { display: flex; flex-wrap: wrap; gap: 0.3rem 1.2rem; margin: -0.3rem 0 0.8rem; color: var(--soft);
  font-size: 0.84rem; }
.legend i { display: inline-block; width: 0.62rem; height: 0.62rem; border-radius: 50%; margin-right: 0.4rem; }
details.task { margin: 0 0 1rem; }
details.task > summary { cursor: pointer; }
.cards { columns: 19rem; column-gap: 1.1rem; margin-top: 1rem; }
.cards article { background: var(--ground); }
.kind { font-size: 0.72rem; font-weight: 600; padding: 0.05rem 0.55rem; border-radius: 99px;
  background: var(--mat); color: var(--soft); }
.kind.best { color: hsl(150 60% 28%); background: hsl(150 45% 45% / 0.18); }
.kind.worst { color: hsl(8 65% 42%); background: hsl(8 65% 50% / 0.14); }
@media (prefers-color-scheme: dark) {
  .kind.best { color: hsl(150 50% 70%); } .kind.worst { color: hsl(8 75% 75%); }
}
.answer-of { margin-top: 0.7rem; padding-left: 0.8rem; border-left: 3px solid var(--line); }
.answer-of.right { border-color: hsl(150 45% 45%); } .answer-of.wrong { border-color: hsl(8 65% 55%); }
.text .who { display: flex; justify-content: space-between; gap: 0.8rem; color: var(--soft); font-size: 0.75rem; }
.text .who span + span { white-space: nowrap; }
.text .said { font-weight: 600; }
.text .truth { margin-top: 0.8rem; color: var(--soft); font-size: 0.85rem; }
.text .truth b { font-weight: 600; color: var(--ink); }
.shares { color: var(--soft); font-size: 0.75rem; }
"""


def render_page(
    title: str,
    summary: Sequence[str],
    main: Table | None,
    others: Sequence[Table],
    about: Sequence[tuple[str, str]],
    general: Sequence[str],
    plots: Sequence[tuple[Column, list[PlotRow]]],
    samples: Mapping[str, Sequence[Shown]],
    versions: Sequence[tuple[str, str]],
) -> str:
    """The page as text.

    Args:
        summary: lines under the title.
        main: the table like the paper's, if there is one.
        about: (benchmark, words) on what differs from the paper.
        general: what holds for all scores.
        plots: a benchmark and the rows that its plot has.
        samples: task -> documents to show.
        versions: what the results were made with.
    """
    parts = [
        f"<header><h1>{escape(title)}</h1>{''.join(f'<p>{escape(line)}</p>' for line in summary)}</header>",
    ]
    if main is not None:
        parts.append(section(main))
    if plots:
        figures = "".join(_figure(column, rows) for column, rows in plots)
        parts.append(f'<h2>Beside the published scores</h2>{LEGEND}<div class="plots">{figures}</div>')
    parts += map(section, others)
    parts.append(f"<h2>How to read this</h2><ul>{''.join(f'<li>{escape(text)}</li>' for text in general)}</ul>")
    if about:
        parts.append(f"<h2>What differs from the paper</h2>{definitions(about)}")
    if any(samples.values()):
        parts.append("<h2>Samples</h2>")
        parts += [samples_section(task, shown, at) for at, (task, shown) in enumerate(samples.items()) if shown]
    parts.append(f"<h2>Made with</h2>{definitions(versions)}")
    return html_page(title, "".join(parts), OWN_STYLE)


def section(table: Table) -> str:
    """A table with its title and notes."""
    notes = "".join(f"<li>{escape(shortened(note))}</li>" for note in table.notes)
    listed = f'<ol class="notes">{notes}</ol>' if notes else ""
    return f"<h2>{escape(table.title)}</h2>{_table(table)}{listed}"


def definitions(pairs: Sequence[tuple[str, str]]) -> str:
    """(name, words) as a list."""
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(words)}</dd>' for name, words in pairs)}</dl>"


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in [table.corner, *table.columns])
    body = []
    for number, row in enumerate(table.rows):
        first = number > 0 and table.rows[number - 1].kind != row.kind
        kind = f"{row.kind} first" if first else row.kind
        title = f' title="{escape(row.source)}"' if row.source else ""
        cells = "".join(f"<td>{_cell(cell)}</td>" for cell in row.cells)
        label = escape(shortened(row.label, 200))
        body.append(f'<tr class="{kind}"><th scope="row"{title}>{label}</th>{cells}</tr>')
    width = "" if table.rows and table.rows[0].kind == "measured" else " narrow"
    return (
        f'<div class="sheet{width}"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    )


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return DASH
    marks = f"<sup>{','.join(map(str, cell.notes))}</sup>" if cell.notes else ""
    interval = f'<span class="interval">{escape(cell.interval)}</span>' if cell.interval else ""
    return f"{escape(cell.text)}{marks}{interval}"


# ---- Plots

PlotRow = tuple[str, str, float, tuple[float, float] | None]  # label, kind, score x 100 and its interval
LEGEND = (
    '<p class="legend"><span><i style="background:hsl(150 55% 38%)"></i>measured here, with its interval</span>'
    '<span><i style="background:hsl(215 60% 52%)"></i>InstructBLIP, published</span>'
    '<span><i style="background:hsl(215 38% 68%)"></i>BLIP-2, published</span>'
    '<span><i style="background:#8a8a90"></i>Flamingo, published</span>'
    "<span>runs on a part of the documents are left out</span></p>"
)


def plot_kind(model: str) -> str:
    """The family of a published row."""
    return model.partition(" ")[0].partition("-")[0].lower()


def _figure(column: Column, rows: Sequence[PlotRow]) -> str:
    return f"<figure><figcaption>{escape(column.name)}</figcaption>{dot_plot(rows)}</figure>"


def dot_plot(rows: Sequence[PlotRow]) -> str:
    """An SVG with a line for each row: label, a dot on the common scale with its interval, and the number."""
    ends = [end for _, _, score, interval in rows for end in (score, *(interval or ()))]
    ticks = scale(min(ends), max(ends))
    width, height = LABEL_WIDTH + PLOT_WIDTH + VALUE_WIDTH, LINE_HEIGHT * len(rows) + 20

    def x(value: float) -> float:
        return LABEL_WIDTH + 6 + (PLOT_WIDTH - 12) * (value - ticks[0]) / (ticks[-1] - ticks[0])

    marks = [
        f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="0" y2="{height - 16}"/>'
        f'<text x="{x(tick):.1f}" y="{height - 3}" text-anchor="middle">{tick:g}</text>'
        for tick in ticks
    ]
    for number, (label, kind, score, interval) in enumerate(rows):
        y = LINE_HEIGHT * (number + 0.5)
        bounds = (
            f'<line class="interval" x1="{x(interval[0]):.1f}" x2="{x(interval[1]):.1f}" y1="{y}" y2="{y}"/>'
            if interval
            else ""
        )
        short = label.rpartition("/")[2]
        short = short if len(short) <= MOST_LABEL else f"{short[: MOST_LABEL - 1]}…"
        marks.append(
            f'<g class="{escape(kind)}"><title>{escape(shortened(label, 200))}: {score:.1f}</title>'
            f'<line class="band" x1="{LABEL_WIDTH}" x2="{LABEL_WIDTH + PLOT_WIDTH}" y1="{y}" y2="{y}"/>{bounds}'
            f'<circle cx="{x(score):.1f}" cy="{y}" r="4"/>'
            f'<text x="{LABEL_WIDTH - 8}" y="{y + 4}" text-anchor="end">{escape(short)}</text>'
            f'<text x="{width - 4}" y="{y + 4}" text-anchor="end">{score:.1f}</text></g>'
        )
    return f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(marks)}</svg>'


def scale(low: float, high: float) -> list[float]:
    """Round numbers, three to six of them, the first not above `low` and the last not below `high`."""
    span = max(high - low, 1.0)
    unit = 10.0 ** math.floor(math.log10(span))
    step = next(unit * factor for factor in (0.2, 0.5, 1, 2, 5) if span / (unit * factor) <= 4)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [number * step for number in range(first, max(last, first + 2) + 1)]


# ---- Samples


def samples_section(task: str, shown: Sequence[Shown], number: int) -> str:
    """The cards of a task's documents; `number`: of the task on its page, where the first two are open."""
    cards = "".join(map(_card, shown))
    opened = " open" if number < 2 else ""
    trouble = next((document.trouble for document in shown if document.trouble), "")
    note = f'<p class="note">{escape(shortened(trouble, 600))}</p>' if trouble else ""
    return (
        f'<details class="task"{opened}><summary>{escape(task)} <small>{len(shown)} documents</small></summary>{note}'
        f'<div class="cards">{cards}</div></details>'
    )


def _card(document: Shown) -> str:
    tags = []
    for number, picture in enumerate(document.pictures):
        data = base64.b64encode(thumbnail(picture, f"picture {number} of {document.name}")).decode("ascii")
        tags.append(f'<img alt="" loading="lazy" src="data:image/jpeg;base64,{data}">')
    kind = "pictures several" if len(tags) > 1 else "pictures"
    pictures = f'<div class="{kind}">{"".join(tags)}</div>' if tags else ""
    badge = f'<span class="kind {escape(document.kind)}">{escape(document.kind)}</span>'
    answers = "".join(map(_answer, document.answers))
    return f"""<article>{pictures}<div class="text">
<p class="of">{badge}<span class="id">{escape(shortened(document.name, 200))}</span></p>
<p class="instruction" dir="auto">{escape(shortened(document.prompt))}</p>
{answers}
<p class="truth" dir="auto">truth: <b>{escape(shortened(document.truth)) or "(none)"}</b></p>
</div></article>"""


def _answer(answer: Answer) -> str:
    verdict = "" if answer.score is None else "right" if answer.score >= 0.5 else "wrong"
    score = "" if answer.score is None else f"<span>{answer.score:.2f}</span>"
    said = escape(shortened(answer.text)) or '<span class="note">(nothing)</span>'
    shares = " · ".join(f"{shortened(text, 80)} {share:.0%}" for text, share in answer.shares)
    ranked = f'<p class="shares" dir="auto">{escape(shares)}</p>' if shares else ""
    model = escape(shortened(answer.model, 120))
    return (
        f'<div class="answer-of {verdict}"><p class="who"><span>{model}</span>{score}</p>'
        f'<p class="said" dir="auto">{said}</p>{ranked}</div>'
    )
