"""The page that the demo leaves behind: scores, questions with answers, attention and a chat, in one file.

Its style, plots and cards are those of `instructblip-eval report`.
"""

import base64
import dataclasses
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
from attention import attention_maps, change, draw_map, draw_sheet
from PIL import Image
from steps import ANSWERED, HELD_IN, HELD_OUT, Scores, mean

from instructblip import InstructBLIPForConditionalGeneration, InstructBLIPProcessor
from instructblip.datasets_builders.preview import html_page
from instructblip.eval_tasks.ask import NOTHING
from instructblip.eval_tasks.report import measure_models
from instructblip.eval_tasks.report_page import OWN_STYLE, PlotRow, dot_plot, samples_section
from instructblip.eval_tasks.report_samples import Shown, shown_documents
from instructblip.eval_tasks.report_tables import DASH, Column
from instructblip.eval_tasks.whole_files import write_whole

NAMES, HELD_IN_NAMES = ([column.name for column in columns] for columns in (HELD_OUT, HELD_IN))
MEANS = {f"mean of the {len(names)}{what}": names for names, what in ((NAMES, ""), (ANSWERED, " without captions"))}
MEASURES = {
    "cider": "CIDEr",
    "vqa_accuracy": "VQA accuracy",
    "mrr": "mean reciprocal rank",
    "auroc": "area under the ROC",
}
MOST_TRUTHS, BETWEEN = 2, " · "  # references shown of a caption, which has up to ten, and what the report sets between
STYLE = """
body { max-width: 84rem; }
header p { max-width: 46rem; margin-top: 0.9rem; color: var(--ink); }
.prose p, .caption { max-width: 46rem; margin: 0 0 0.8rem; }
.caption { color: var(--soft); font-size: 0.9rem; }
.sheet { margin-bottom: 1rem; }
.sheet th:first-child { min-width: 7.5rem; }
.sheet tbody td, .sheet tr.measured td { color: var(--soft); font-weight: 400; }
.sheet tbody b { color: var(--ink); font-weight: 700; }
.sheet tbody th { color: var(--ink); } .sheet .mean { border-left: 1px solid var(--line); }
.sheet th.mean { min-width: 5.5rem; white-space: normal; }
.plots { grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); }
svg .blip line.interval, svg .blind line.interval { stroke: var(--soft); stroke-opacity: 0.45; stroke-width: 2; }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(36rem, 100%), 1fr)); gap: 1.1rem; }
.samples details.task { margin: 0; }
.samples .cards { columns: auto; display: grid; gap: 1.1rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(14rem, 100%), 1fr)); }
.cards article { margin: 0; }
.cards .pictures img { aspect-ratio: 1; max-height: none; }
.cards .pictures.several { grid-template-columns: repeat(4, 1fr); }
.looked { padding: 1.1rem; } .looked img { display: block; width: 100%; border-radius: 6px; }
.asked { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(15rem, 100%), 1fr)); gap: 1.3rem; }
.asked figure { padding: 0; border: 0; background: none; }
.asked figcaption { margin: 0.6rem 0; font-weight: 400; overflow-wrap: anywhere; }
.asked figcaption b { display: block; font-weight: 600; }
.looked > .note { margin-top: 0.9rem; padding: 0; }
.chat { display: grid; grid-template-columns: minmax(0, 15rem) minmax(0, 34rem); gap: 1.1rem; align-items: start; }
.chat > img { width: 100%; border-radius: 12px; border: 1px solid var(--line); }
.chat p { width: fit-content; max-width: 88%; margin-bottom: 0.55rem; padding: 0.5rem 0.85rem; border-radius: 14px;
  overflow-wrap: anywhere; white-space: pre-wrap; }
.chat .question { margin-left: auto; background: hsl(215 60% 52% / 0.16); border-bottom-right-radius: 4px; }
.chat .reply { background: var(--card); border: 1px solid var(--line); border-bottom-left-radius: 4px; }
pre { margin: 0; padding: 1rem 1.2rem; overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 12px; font: 0.8rem/1.6 ui-monospace, "SF Mono", "DejaVu Sans Mono", monospace; }
@media (max-width: 40rem) {
  body { padding: 1.5rem 1rem 3rem; }
  .chat { grid-template-columns: 1fr; } .chat > img { max-width: 15rem; }
  .cards .pictures img { max-height: 12rem; }
  .asked { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 0.8rem; }
}
"""


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table and of the plots.

    Attributes:
        scores: x 100, by the names of `HELD_OUT` and `HELD_IN`; those that are missing are shown as missing.
        intervals: 95 %, likewise.
        kind: colors the dots: "ours" for what the page is about, "blip" for what it came from, "blind", "chance".
    """

    label: str
    scores: Scores
    intervals: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    kind: str = "chance"

    def value(self, name: str) -> float | None:
        """A benchmark's score, or one of the means; None where one is missing."""
        names = MEANS.get(name, (name,))
        return mean({each: self.scores[each] for each in names}) if set(names) <= set(self.scores) else None


@dataclasses.dataclass(frozen=True)
class Looked:
    """What the queries look at in a picture under several instructions.

    Attributes:
        maps: (instructions, query, rows, columns), of `attention.attention_maps`.
    """

    picture: Image.Image
    instructions: Sequence[str]
    answers: Sequence[str]
    maps: np.ndarray


@dataclasses.dataclass(frozen=True)
class Chat:
    """A picture and (question, answer) turns about it."""

    picture: Image.Image
    turns: Sequence[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Contents:
    """Everything on the page; all texts are plain.

    Attributes:
        samples: benchmark -> documents, see `draw_samples`.
        attention_words: a paragraph in front of the maps.
        notes: paragraphs on how it was made.
        commands: that were run, in order.
    """

    title: str
    introduction: Sequence[str]
    rows: Sequence[Row]
    samples: Mapping[str, Sequence[Shown]]
    attention_words: str
    attention: Sequence[Looked]
    chat: Chat
    notes: Sequence[str]
    commands: Sequence[str]


# ---- What it is made from


def measured_row(label: str, results: Path, kind: str) -> Row:
    """The scores of a folder of `instructblip-eval`, with their intervals where the documents were logged.

    Raises:
        ValueError: the results are of several models.
    """
    models = measure_models([results])
    if len(models) > 1:
        raise ValueError(f"{results} holds results of {len(models)} models: a row shows one")
    ((_, measured),) = models
    scores, intervals = {}, {}
    for column in (*HELD_OUT, *HELD_IN):
        score = measured[column.task].scores.get(column.metric) if column.task in measured else None
        if score is not None and score.value is not None:
            scores[column.name] = 100 * score.value
            if score.interval is not None:
                intervals[column.name] = (100 * score.interval[0], 100 * score.interval[1])
    return Row(label, scores, intervals, kind)


def draw_samples(results: Mapping[str, Path], data: Path, count: int = 2, seed: int = 0) -> dict[str, list[Shown]]:
    """Documents of each benchmark with what several models answered, and their pictures.

    Args:
        results: label -> folder of `instructblip-eval` with samples logged, of one model. Half of the documents are
            from the best of the first model, half from its worst; see `shown_documents`.
        data: `data_root` of the evaluations.

    Returns:
        benchmark -> documents.
    """
    models = [
        (dataclasses.replace(model, label=label), measured)
        for label, folder in results.items()
        for model, measured in measure_models([folder])
    ]
    place = {"data_root": str(data)}
    drawn = {}
    for column in HELD_OUT:
        documents = shown_documents(models, column.task, column.metric, count, seed, place)
        if documents:
            drawn[column.name] = [dataclasses.replace(each, truth=_first_truths(each.truth)) for each in documents]
    return drawn


def _first_truths(truth: str) -> str:
    truths = truth.split(BETWEEN)
    return BETWEEN.join([*truths[:MOST_TRUTHS], "…"]) if len(truths) > MOST_TRUTHS else truth


def look(
    model: InstructBLIPForConditionalGeneration,
    processor: InstructBLIPProcessor,
    picture: Image.Image,
    instructions: Sequence[str],
) -> Looked:
    """Follow instructions about a picture, and keep what the queries look at meanwhile.

    Args:
        model: of `attention.load_with_attention`.
    """
    pictures = [picture] * len(instructions)
    tokens = model.generate(**processor(images=pictures, text=list(instructions)), max_new_tokens=32, do_sample=False)
    answers = [text.strip() for text in processor.batch_decode(tokens, skip_special_tokens=True)]
    return Looked(picture, instructions, answers, attention_maps(model, processor, pictures, instructions))


# ---- The page


def write_page(file: Path, contents: Contents) -> None:
    """Write one HTML file that needs no other; it is there when it is whole."""
    first = next(iter(contents.samples.values()), [])
    judge = first[0].answers[0].model if first and first[0].answers else ""
    parts = [
        f"<header><h1>{escape(contents.title)}</h1>{_paragraphs(contents.introduction)}</header>",
        "<h2>Zero-shot scores on the 13 held-out datasets</h2>",
        f'<p class="caption">{escape(_units(HELD_OUT))}; the means take them as they are. Bold: the best. Lines '
        "through the dots are 95 % intervals over questions; they say nothing of other runs.</p>",
        _table(contents.rows, NAMES, list(MEANS)),
        f'<div class="plots">{"".join(_figure(name, contents.rows) for name in [*MEANS, *NAMES])}</div>',
        "<h2>Scores on new pictures of held-in datasets</h2>",
        f'<p class="caption">{escape(_units(HELD_IN))}.</p>',
        _table(contents.rows, HELD_IN_NAMES),
        "<h2>Questions and answers</h2>",
        f'<p class="caption">Half of them are among those that {escape(judge)} does best on, half among those that it '
        "does worst on, by lot where more are as good. Where candidates are ranked, the likeliest are shown.</p>",
        '<div class="samples">',
        *(samples_section(name, shown, 0) for name, shown in contents.samples.items()),
        "</div>",
        "<h2>What the queries look at</h2>",
        f'<p class="caption">{escape(contents.attention_words)}</p>',
        *map(_looked, contents.attention),
        "<h2>A chat about a picture</h2>",
        _chat(contents.chat),
        f'<h2>How it was made</h2><div class="prose">{_paragraphs(contents.notes)}</div>',
        f"<h2>What was run</h2><pre>{escape(chr(10).join(contents.commands))}</pre>",
    ]
    write_whole(file, html_page(contents.title, "\n".join(parts), OWN_STYLE + STYLE))


def _paragraphs(texts: Sequence[str]) -> str:
    return "".join(f"<p>{escape(text)}</p>" for text in texts)


def _units(columns: Sequence[Column]) -> str:
    others: dict[str, list[str]] = {}
    for column in columns:
        if column.metric != "accuracy":
            others.setdefault(column.metric, []).append(column.name)
    words = ", ".join(f"{MEASURES.get(metric, metric)} for {' and '.join(names)}" for metric, names in others.items())
    return f"Scores x 100: {words}, accuracy for the others"


def _table(rows: Sequence[Row], names: Sequence[str], means: Sequence[str] = ()) -> str:
    columns = {**dict.fromkeys(names, ""), **dict.fromkeys(means, ' class="mean"')}
    head = "".join(f'<th scope="col"{kind}>{escape(name)}</th>' for name, kind in columns.items())
    best = {name: max((value for row in rows if (value := _shown(row, name)) != DASH), key=float, default="")
            for name in columns}  # fmt: skip
    lines = []
    for row in rows:
        cells = "".join(f"<td{kind}>{_cell(row, name, best[name])}</td>" for name, kind in columns.items())
        measured = ' class="measured"' if row.kind == "ours" else ""
        lines.append(f'<tr{measured}><th scope="row">{escape(row.label)}</th>{cells}</tr>')
    body = "".join(lines)
    return f'<div class="sheet"><table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _shown(row: Row, name: str) -> str:
    value = row.value(name)
    return DASH if value is None else f"{value:.1f}"


def _cell(row: Row, name: str, best: str) -> str:
    text = _shown(row, name)
    return f"<b>{text}</b>" if text == best else text


def _figure(name: str, rows: Sequence[Row]) -> str:
    dots: list[PlotRow] = []
    for row in rows:
        score = row.value(name)
        if score is not None:
            dots.append((row.label, row.kind, score, row.intervals.get(name)))
    return f"<figure><figcaption>{escape(name)}</figcaption>{dot_plot(dots)}</figure>" if dots else ""


def _looked(looked: Looked) -> str:
    figures = [f"<figure>{_png(looked.picture.resize((192, 192)))}<figcaption>The picture.</figcaption></figure>"]
    for instruction, answer, maps in zip(looked.instructions, looked.answers, looked.maps, strict=True):
        figures.append(
            f"<figure>{_png(draw_map(looked.picture, maps.mean(axis=0)))}<figcaption>{escape(instruction)}"
            f"<b>{escape(answer) or NOTHING}</b></figcaption>{_png(draw_sheet(looked.picture, maps))}</figure>"
        )
    note = (
        f"Large: the mean over {looked.maps.shape[1]} queries. Small: each query. Where a map has most, there is full "
        "light."
    )
    if len(looked.maps) > 1:
        note = f"{change(looked.maps):.0%} of the attention goes elsewhere from one instruction to another. {note}"
    return f'<article class="looked"><div class="asked">{"".join(figures)}</div><p class="note">{note}</p></article>'


def _chat(chat: Chat) -> str:
    turns = "".join(
        f'<p class="question" dir="auto">{escape(question)}</p>'
        f'<p class="reply" dir="auto">{escape(answer) or NOTHING}</p>'
        for question, answer in chat.turns
    )
    return f'<div class="chat">{_png(chat.picture)}<div>{turns}</div></div>'


def _png(picture: Image.Image) -> str:
    """Without loss: the pictures are so small that JPEG would show."""
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode("ascii")}">'
