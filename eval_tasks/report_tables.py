"""The report's numbers: scores with intervals beside the published ones, in tables that Markdown and HTML show."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.resources
import math
import re
from collections.abc import Sequence
from typing import Any, Literal

import yaml

from instructblip.datasets_builders.table import TABLE
from instructblip.eval_tasks.cider import cider_per_caption, tokenize_ptb
from instructblip.eval_tasks.intervals import metric_interval
from instructblip.eval_tasks.report_results import Model, Samples, TaskRun, read_samples

CONFIDENCE = 0.95
OUR_TASKS = "instructblip_"
DASH = "\u2013"  # an en dash: no score; and between the ends of an interval
PTB = " (PTB)"  # ends the name of a score made with pycocoevalcap's own tokenizer
AVERAGED = "accuracy"  # a metric whose interval is that of a mean
NOT_PERCENT = frozenset({"mean_rank"})
SECTIONS = {
    "held_out": "Held out: other scores and variants",
    "held_in": "Held in",
    "extra": "Beyond the paper",
    "other": "Other tasks, in their own units",
}


@dataclasses.dataclass(frozen=True)
class Column:
    """A benchmark of the paper's main table."""

    name: str
    task: str
    metric: str
    note: str  # what a comparison with the paper should know


@dataclasses.dataclass(frozen=True)
class PublishedRow:
    model: str
    source: str
    scores: tuple[float | None, ...]  # x 100, one of each column


@dataclasses.dataclass(frozen=True)
class Published:
    """The file published.yaml."""

    columns: tuple[Column, ...]
    rows: tuple[PublishedRow, ...]
    sources: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Score:
    """A score in lm-eval's unit, and its confidence interval where the documents were logged."""

    value: float | None
    interval: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Measured:
    """All that is known of one model on one task."""

    run: TaskRun
    samples: Samples | None
    scores: dict[str, Score]
    remarks: tuple[str, ...]  # what a reader of any of its scores must know


@dataclasses.dataclass(frozen=True)
class Cell:
    text: str
    interval: str = ""
    notes: tuple[int, ...] = ()  # numbers of the table's notes


@dataclasses.dataclass(frozen=True)
class Row:
    label: str
    cells: list[Cell | None]
    kind: Literal["measured", "published", "score"]  # a model of ours, one of a paper, or a score of several models
    source: str = ""  # of a published row


@dataclasses.dataclass(frozen=True)
class Table:
    title: str
    corner: str  # heading of the labels
    columns: list[str]
    rows: list[Row]
    notes: list[str]  # what the cells' numbers refer to, from 1


def read_published(text: str | None = None) -> Published:
    """Read published.yaml, or `text` in its place.

    Raises:
        ValueError: a key is missing or unknown, a row has not one number (or null) for each column, or names a source
            that is not listed.
    """
    if text is None:
        text = importlib.resources.files(__package__).joinpath("published.yaml").read_text("utf-8")
    entries = yaml.safe_load(text)
    _check_keys("published.yaml", entries, {"sources", "columns", "rows"})
    columns = []
    for entry in entries["columns"]:
        _check_keys("published.yaml: a column", entry, {"name", "task", "metric", "note"})
        columns.append(Column(**entry))
    rows = []
    for entry in entries["rows"]:
        _check_keys("published.yaml: a row", entry, {"model", "source", "scores"})
        where = f"published.yaml: {entry['model']}"
        if entry["source"] not in entries["sources"]:
            raise ValueError(f"{where}: source {entry['source']!r} is none of {', '.join(entries['sources'])}")
        scores = entry["scores"]
        if len(scores) != len(columns):
            raise ValueError(f"{where}: {len(scores)} scores for {len(columns)} columns")
        if wrong := [score for score in scores if score is not None and type(score) is not float]:
            raise ValueError(f"{where}: {wrong[0]!r} is neither a number with its decimal nor null")
        rows.append(PublishedRow(entry["model"], entry["source"], tuple(scores)))
    return Published(tuple(columns), tuple(rows), dict(entries["sources"]))


def _check_keys(where: str, entry: Any, keys: set[str]) -> None:
    found = set(entry) if isinstance(entry, dict) else set()
    if found != keys:
        raise ValueError(f"{where} has the keys {sorted(found)}, expected {sorted(keys)}")


def measure(model: Model, task: str, ptb: bool = False) -> Measured:
    """Read a model's documents of a task and bound its scores.

    Args:
        ptb: recompute CIDEr with pycocoevalcap's tokenizer, under a name that says so; needs Java.
    """
    run = model.runs[task]
    samples = read_samples(run)
    scores = {metric: Score(value, _interval(run, samples, metric)) for metric, value in run.scores.items()}
    if ptb and samples is not None:
        scores |= _ptb_scores(samples)
    remarks = [*_partial(run), *_disagreements(run, model.others[task])]
    if samples is None and run.scores:
        remarks.append("No interval: the documents were not logged (--log_samples).")
    return Measured(run, samples, scores, tuple(remarks))


def _interval(run: TaskRun, samples: Samples | None, metric: str) -> tuple[float, float] | None:
    """Bounds of a score; None without documents, or where it is not known how documents make the score."""
    value = run.scores[metric]
    if value is None or samples is None:
        return None
    values = samples.values[metric]
    if run.task.startswith(OUR_TASKS):
        return _bounds(metric, values)
    scored = [one for one in values if isinstance(one, int | float)]
    is_mean = scored == values and scored and math.isclose(math.fsum(scored) / len(scored), value, rel_tol=1e-9)
    return _bounds(AVERAGED, scored) if is_mean else None


def _bounds(metric: str, values: Sequence[Any]) -> tuple[float, float] | None:
    low, high = metric_interval(metric, values, confidence=CONFIDENCE)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def _ptb_scores(samples: Samples) -> dict[str, Score]:
    """CIDEr of the logged captions with pycocoevalcap's own tokenizer."""
    scores = {}
    for metric, values in samples.values.items():
        records = [record for record in values if record is not None]
        if metric.startswith("cider") and records:
            captions, references = (
                [record["caption"] for record in records],
                [record["references"] for record in records],
            )
            of_captions = cider_per_caption(captions, references, tokenize_ptb).tolist()
            value = math.fsum(of_captions) / len(of_captions)
            scores[f"{metric}{PTB}"] = Score(value, _bounds(AVERAGED, of_captions))
    return scores


def percent(run: TaskRun, metric: str) -> bool:
    """Whether a score is shown x 100: ours are, but for those that count."""
    return run.task.startswith(OUR_TASKS) and metric.removesuffix(PTB) not in NOT_PERCENT


def _partial(run: TaskRun) -> list[str]:
    if not run.is_partial:
        return []
    words = f"Only {run.documents:,} of {run.all_documents:,} documents (--limit)"
    if any(metric.startswith("cider") for metric in run.scores):
        return [f"{words}: CIDEr weighs words by how many of the documents have them, so this cannot be compared."]
    return [f"{words}."]


def _disagreements(run: TaskRun, others: Sequence[TaskRun]) -> list[str]:
    """A remark for each other run of the same model and task that found something else."""
    remarks = []
    for other in others:
        when = _day(other.date)
        if other.is_partial and not run.is_partial:
            if other.date > run.date:
                remarks.append(f"A later run ({when}) had only {other.documents:,} documents and does not count.")
            continue
        if other.version != run.version:
            remarks.append(f"Task version {run.version}; a run of {when} was of version {other.version}.")
            continue
        common = [metric for metric in run.scores if metric in other.scores]
        differing = [metric for metric in common if run.scores[metric] != other.scores[metric]]
        if differing or other.documents != run.documents:
            what = ", ".join(f"{metric} {_number(other, metric)}" for metric in differing) or "the same"
            remarks.append(
                f"The latest of several runs, which disagree: that of {when} found {what} on {other.documents:,} "
                "documents."
            )
    return remarks


def _number(run: TaskRun, metric: str) -> str:
    return shown(run.scores[metric], percent(run, metric))


def _day(date: float) -> str:
    return f"{datetime.datetime.fromtimestamp(date, datetime.UTC):%Y-%m-%d %H:%M} UTC"


def shown(value: float | None, is_percent: bool = True) -> str:
    """A score as the tables have it: x 100 with one decimal, or as it is."""
    if value is None:
        return DASH
    return f"{100 * value:.1f}" if is_percent else f"{value:#.4g}"


def main_table(models: Sequence[tuple[Model, dict[str, Measured]]], published: Published) -> Table | None:
    """Ours and peers above the published rows; None where nobody was asked one of the benchmarks."""
    notes: list[str] = []
    rows = [
        Row(
            model.label,
            [_cell(measured.get(column.task), column.metric, notes) for column in published.columns],
            "measured",
        )
        for model, measured in models
    ]
    rows = [row for row in rows if any(row.cells)]
    if not rows:
        return None
    for row in published.rows:
        cells = [None if score is None else Cell(f"{score:.1f}") for score in row.scores]
        rows.append(Row(row.model, cells, "published", published.sources[row.source]))
    title = "Zero-shot scores on the held-out benchmarks"
    return Table(title, "model", [column.name for column in published.columns], rows, notes)


def other_tables(models: Sequence[tuple[Model, dict[str, Measured]]], published: Published) -> list[Table]:
    """All scores that the main table has not, by the role of their dataset; one column for each model."""
    in_main = {(column.task, column.metric) for column in published.columns}
    wanted: dict[str, dict[tuple[str, str], None]] = {role: {} for role in SECTIONS}
    for _, measured in models:
        for task, of_task in measured.items():
            for metric in of_task.scores:
                if (task, metric) not in in_main:
                    wanted[_role(of_task.run)][task, metric] = None
    tables = []
    for role, title in SECTIONS.items():
        rows, notes = [], []
        asked = [(model, measured) for model, measured in models if any(task in measured for task, _ in wanted[role])]
        for task, metric in sorted(wanted[role], key=lambda pair: pair[0]):
            cells = [_cell(measured.get(task), metric, notes) for _, measured in asked]
            rows.append(Row(f"{task.removeprefix(OUR_TASKS)} · {metric}", cells, "score"))
        if rows:
            tables.append(Table(title, "task · score", [model.label for model, _ in asked], rows, notes))
    return tables


def dataset_name(run: TaskRun) -> str:
    """The dataset of a task, as the table of datasets calls it; "" where the task does not say."""
    return str((run.config.get("dataset_kwargs") or {}).get("dataset", ""))


def split_name(run: TaskRun) -> str:
    return str(run.config.get("test_split") or run.config.get("validation_split") or "")


def _role(run: TaskRun) -> str:
    name = dataset_name(run)
    if not run.task.startswith(OUR_TASKS):
        return "other"
    return TABLE[name].role if name in TABLE else "extra"


def _cell(measured: Measured | None, metric: str, notes: list[str]) -> Cell | None:
    if measured is None or metric not in measured.scores:
        return None
    score = measured.scores[metric]
    for remark in measured.remarks:
        if remark not in notes:
            notes.append(remark)
    numbers = tuple(notes.index(remark) + 1 for remark in measured.remarks)
    is_percent = percent(measured.run, metric)
    low_high = DASH.join(shown(end, is_percent) for end in score.interval) if score.interval else ""
    return Cell(shown(score.value, is_percent), low_high, numbers)


def comparison_notes(
    models: Sequence[tuple[Model, dict[str, Measured]]], published: Published
) -> list[tuple[str, str]]:
    """What a comparison with the paper should know: (benchmark, words) of the columns that somebody filled."""
    lines = []
    for column in published.columns:
        runs = [measured[column.task].run for _, measured in models if column.task in measured]
        if runs:
            splits = sorted({f"{split_name(run)}, {run.all_documents:,} questions" for run in runs})
            versions = sorted({run.version for run in runs})
            if len(versions) > 1:
                splits.append(f"task versions {' and '.join(versions)}, which do not compare")
            lines.append((column.name, f"{column.note} ({'; '.join(splits)})"))
    return lines


def as_markdown(table: Table) -> str:
    """A table in GitHub's Markdown and its notes; texts of others are escaped."""
    lines = [
        "| " + " | ".join(escape_markdown(text) for text in [table.corner, *table.columns]) + " |",
        "|---|" + "---:|" * len(table.columns),
    ]
    for row in table.rows:
        label = escape_markdown(row.label)
        label = f"**{label}**" if row.kind == "measured" else label
        lines.append("| " + " | ".join([label, *map(_markdown_cell, row.cells)]) + " |")
    if table.notes:
        lines += ["", *(f"{number}. {escape_markdown(note)}" for number, note in enumerate(table.notes, start=1))]
    return "\n".join(lines)


def _markdown_cell(cell: Cell | None) -> str:
    if cell is None:
        return DASH
    marks = f" [{', '.join(map(str, cell.notes))}]" if cell.notes else ""
    return f"{cell.text}{f' ({cell.interval})' if cell.interval else ''}{marks}"


def escape_markdown(text: str) -> str:
    """One line in which nothing is markup."""
    return re.sub(r"([\\`*_{}\[\]<>|#~!&])", r"\\\1", " ".join(text.split()))
