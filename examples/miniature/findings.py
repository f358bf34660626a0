"""What the experiments found: statistics over seeds, tables and plots, and which of the paper's findings show up."""

import json
import math
import os
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import steps

from instructblip.eval_tasks.report_page import OWN_STYLE, PlotRow, dot_plot, html_page
from instructblip.eval_tasks.report_page import definitions as html_definitions
from instructblip.eval_tasks.report_page import section as html_section
from instructblip.eval_tasks.report_tables import Cell, Row, Table, as_markdown, escape_markdown, read_published
from instructblip.eval_tasks.whole_files import write_whole

if TYPE_CHECKING:
    from experiments import Experiment

SCORES = "scores.json"  # of a cell; it is there once the cell has finished
NOT_RUN = "not run"
VERDICTS = ("shows up", "does not show up", "cannot be told", NOT_RUN)
TITLE = "The paper's experiments in small"
# Which datasets make the paper's average over held-in ones is recalled, not read.
HELD_IN = tuple(column for column in steps.HELD_IN if column.name in ("COCO", "TextCaps", "OKVQA", "A-OKVQA"))
HELD_OUT_NAMES = tuple(column.name for column in steps.HELD_OUT)
IN, OUT, ANSWERS, OUT_OF_FIGURE_4 = "held-in", "held-out", "held-out without captions", "held-out of Fig. 4"
MEANS = {  # what is averaged
    OUT: HELD_OUT_NAMES,
    ANSWERS: steps.ANSWERED,
    OUT_OF_FIGURE_4: ("GQA", "TextVQA", "VSR", "HM", "IconQA", "SciQA", "iVQA", "VizWiz"),  # as the paper says
    IN: tuple(column.name for column in HELD_IN),
}
LIKE = {"decoder_only": "Vicuna-7B", "encoder_decoder": "FlanT5-XL"}  # the paper's model of that kind

# Score of the ablation less that of InstructBLIP, in points: arXiv 2305.06500, Table 2, read in a copy of the table.
FULL, NO_INSTRUCTION, NO_BALANCING = "full", "no_instruction", ("no_balancing_uniform", "no_balancing_proportional")
PAPER_COLUMNS = (IN, "GQA", "SciQA", "IconQA", "VizWiz", "iVQA")
PAPER_TABLE_2 = {
    ("encoder_decoder", NO_INSTRUCTION): (-4.3, -2.5, -7.0, -4.2, -7.6, -5.6),
    ("decoder_only", NO_INSTRUCTION): (-1.9, -1.0, -5.3, -1.9, -2.1, -15.4),
    **{("encoder_decoder", name): (-1.5, -1.6, -4.4, -0.1, -0.9, -2.0) for name in NO_BALANCING},
    **{("decoder_only", name): (-2.0, -1.4, -1.1, 0.4, -2.2, -1.9) for name in NO_BALANCING},
}

STYLE = (
    OWN_STYLE
    + """
svg line.interval { stroke: var(--soft); stroke-width: 2; }
.sheet.narrow .interval { display: block; min-width: 0; margin-left: 0; }
.sheet.narrow td:not(:has(.interval))::after { content: none; }
"""
)
Run = dict[str, Any]  # a cell's scores.json


@dataclass(frozen=True)
class Finding:
    """A claim of the paper: `experiment` scores higher than `than`, or (`expected` 0) about the same."""

    words: str
    source: str
    experiment: str
    than: str
    score: str
    expected: int = 1


FINDINGS = (
    Finding("A model that sees the pictures beats one that does not", "a check, not in the paper", FULL, "blind", OUT),
    *(
        Finding(words, source, FULL, than, score)
        for words, source, than in (
            ("Instruction tuning raises held-out scores", "Table 1", "blip2"),
            ("Showing the instruction to the Q-Former raises held-out scores", "Table 2", NO_INSTRUCTION),
            ("Balancing beats sampling all datasets alike", "Table 2", NO_BALANCING[0]),
            ("Balancing beats sampling by size", "Table 2", NO_BALANCING[1]),
        )
        for score in (OUT, ANSWERS)
    ),
    Finding("Held out, instructions beat inputs and outputs alone", "Figure 4", FULL, "plain", OUT_OF_FIGURE_4),
    Finding("Held out, instructions beat dataset names", "Figure 4", FULL, "tagged", OUT_OF_FIGURE_4),
    Finding("Held in, inputs and outputs alone do as well", "Figure 4", FULL, "plain", IN, 0),
    Finding("Held in, dataset names do as well", "Figure 4", FULL, "tagged", IN, 0),
    Finding(
        "InstructBLIP is the better start for fine-tuning than BLIP-2",
        "Table 3",
        "finetune_instructblip",
        "finetune_blip2",
        "SciQA",
    ),
)

ABOUT = (
    "Scores are x 100: mean ± standard deviation over seeds. All are measured here; of the paper only directions are "
    "named. CIDEr is several times as large as for photographs, since captions have few words, and decides the mean of "
    "all 13; so there is a mean without it.",
    "A seed decides the order of the data, the wording of their instructions and the dropout of the training, if there "
    "is any. The pictures, the backbones and the stage-2 releases that all start from are the same for all seeds, so "
    "the spread says nothing about others. BLIP-2 is the stage-2 release itself: nothing in it is random, and it is "
    "evaluated once.",
    "Differences are paired by seed. One counts where its mean is more than two standard errors of the paired "
    "differences; with three seeds chance alone gives that in 18 % of the cases (t distribution, two degrees of "
    "freedom), so one such row is a hint and no proof. That two do equally well cannot be shown so, only refuted.",
    "Figure 4's two baselines are evaluated with the instructions of the tasks. The paper evaluates the second once "
    "more with names of tasks in their place, and captions of the first with the picture alone; neither is done here.",
    "Held-in is the mean of COCO captions and TextCaps (CIDEr), OKVQA and A-OKVQA with choices. That these four "
    "datasets make the paper's average is recalled, not read.",
    "The paper does not say which sampling its model without balancing had: both rows stand beside the same numbers.",
    "Fine-tuning shows the instruction to the Q-Former in both cases; the paper does not say what it did for BLIP-2.",
    "The same seed gives the same scores, whatever runs beside it: remove a cell's folder and give the command again. "
    "Other processors, versions or numbers of threads may round differently.",
)


# ---- Statistics


@dataclass(frozen=True)
class Spread:
    """Values over seeds: their mean, their standard deviation and the standard error of the mean."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    @property
    def deviation(self) -> float | None:
        """Of the sample; None for a single value."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def error(self) -> float | None:
        return None if self.deviation is None else self.deviation / math.sqrt(len(self.values))

    @property
    def direction(self) -> int:
        """1 or -1 where the mean is more than two standard errors from 0, else 0."""
        if self.error is None or abs(self.mean) <= 2 * self.error:
            return 0
        return 1 if self.mean > 0 else -1


def by_seed(runs: Sequence[Run], kind: str, experiment: str, score: str) -> dict[int, float]:
    """Seed -> a benchmark's score, or one of `MEANS`; without the runs that lack a part of it."""
    names = MEANS.get(score, (score,))
    return {
        run["seed"]: statistics.mean(run["scores"][name] for name in names)
        for run in runs
        if (run["kind"], run["experiment"]) == (kind, experiment) and all(name in run["scores"] for name in names)
    }


def spread(runs: Sequence[Run], kind: str, experiment: str, score: str) -> Spread | None:
    """None: not run."""
    values = by_seed(runs, kind, experiment, score)
    return Spread(tuple(values.values())) if values else None


def difference(runs: Sequence[Run], kind: str, experiment: str, than: str, score: str) -> Spread | None:
    """Of two experiments, paired by seed; what has nothing random is paired with every seed. None: no pair was run."""
    random = {run["experiment"]: run["random"] for run in runs if run["kind"] == kind}
    one, other = (by_seed(runs, kind, name, score) for name in (experiment, than))
    if not random.get(experiment, True):
        one = {seed: value for value in one.values() for seed in other}
    elif not random.get(than, True):
        other = {seed: value for value in other.values() for seed in one}
    values = tuple(one[seed] - other[seed] for seed in one if seed in other)
    return Spread(values) if values else None


def verdict(found: Spread | None, expected: int) -> str:
    """Whether a finding with this direction shows up."""
    if found is None:
        return NOT_RUN
    if found.direction == 0:
        return "cannot be told"
    return "shows up" if found.direction == expected else "does not show up"


# ---- Tables


def table_2(runs: Sequence[Run], experiments: Mapping[str, "Experiment"], kinds: Sequence[str]) -> Table:
    columns = [OUT, ANSWERS, *HELD_OUT_NAMES, IN]
    rows = []
    for kind, name in pairs("table_2", experiments, kinds):
        cells = [shown(spread(runs, kind, name, score)) for score in columns]
        seeds = len(by_seed(runs, kind, name, OUT))
        rows.append(row(f"{experiments[name].label}, {kind}", [Cell(str(seeds)), *cells], name))
    return Table("Held-out scores (Tables 1 and 2)", "experiment", ["seeds", *headings(columns)], rows, [])


def differences(runs: Sequence[Run], experiments: Mapping[str, "Experiment"], kinds: Sequence[str]) -> Table:
    columns = [OUT, ANSWERS, *HELD_OUT_NAMES, IN]
    rows = []
    for kind, name in pairs("table_2", experiments, kinds):
        if name != FULL:
            cells = [shown(difference(runs, kind, name, FULL, score), signed=True) for score in columns]
            rows.append(row(f"{experiments[name].label}, {kind}", cells, name))
    title = "Difference from InstructBLIP: mean ± standard deviation of the differences, paired by seed"
    return Table(title, "experiment", headings(columns), rows, [])


def directions(runs: Sequence[Run], experiments: Mapping[str, "Experiment"], kinds: Sequence[str]) -> Table:
    """The paper's differences beside ours, as up and down."""
    columns = [IN, *HELD_OUT_NAMES]
    paper = {place: dict(zip(PAPER_COLUMNS, points, strict=True)) for place, points in PAPER_TABLE_2.items()}
    paper |= {(kind, "blip2"): paper_blip2(LIKE[kind]) for kind in kinds}
    rows = []
    for kind, name in pairs("table_2", experiments, kinds):
        cells = []
        for score in columns if (kind, name) in paper else ():
            found = difference(runs, kind, name, FULL, score)
            ours = NOT_RUN if found is None else arrow(found.direction)
            known = paper[kind, name].get(score)
            cells.append(None if known is None else Cell(f"{arrow(known)} / {ours}"))
        if cells:
            rows.append(row(f"{experiments[name].label}, {kind}", cells, name))
    title = "Direction of the difference from InstructBLIP: the paper's / here"
    notes = [
        "↑ higher, ↓ lower than InstructBLIP; ? within two standard errors of 0, or of one seed only.",
        "The paper's are of arXiv 2305.06500, Tables 1 and 2, as read in copies of them: FlanT5-XL beside "
        "encoder_decoder, Vicuna-7B beside decoder_only.",
    ]
    return Table(title, "experiment", headings(columns), rows, notes)


def paper_blip2(language_model: str) -> dict[str, float]:
    """Benchmark -> BLIP-2's score less InstructBLIP's in the paper's Table 1."""
    scores = {each.model: each.scores for each in read_published().rows}
    blip2, instructblip = (scores[f"{name} ({language_model})"] for name in ("BLIP-2", "InstructBLIP"))
    both = zip(HELD_OUT_NAMES, blip2, instructblip, strict=True)
    return {name: one - other for name, one, other in both if one is not None and other is not None}


def figure_4(runs: Sequence[Run], experiments: Mapping[str, "Experiment"], kinds: Sequence[str]) -> Table:
    columns = [IN, OUT_OF_FIGURE_4]
    rows = [
        row(f"{experiments[name].label}, {kind}", [shown(spread(runs, kind, name, score)) for score in columns], name)
        for kind, name in pairs("figure_4", experiments, kinds)
    ]
    return Table("Instructions against multitask training (Figure 4)", "experiment", headings(columns), rows, [])


def table_3(runs: Sequence[Run], experiments: Mapping[str, "Experiment"], kinds: Sequence[str]) -> Table:
    rows = []
    for kind, name in pairs("table_3", experiments, kinds):
        before = experiments[name].start or "blip2"
        cells = [shown(spread(runs, kind, each, "SciQA")) for each in (before, name)]
        rows.append(row(f"{experiments[name].label}, {kind}", cells, name))
    return Table("Fine-tuned on ScienceQA (Table 3)", "start", ["before", "fine-tuned"], rows, [])


def pairs(table: str, experiments: Mapping[str, "Experiment"], kinds: Sequence[str]) -> list[tuple[str, str]]:
    """(kind, experiment) of the rows of a table."""
    return [(kind, name) for kind in kinds for name, each in experiments.items() if table in each.tables]


def row(label: str, cells: list[Cell | None], name: str) -> Row:
    return Row(label, cells, "measured" if name in (FULL, "finetune_instructblip") else "score")


def headings(columns: Sequence[str]) -> list[str]:
    return [f"mean {name}" if name in MEANS else name for name in columns]


def shown(found: Spread | None, signed: bool = False) -> Cell:
    if found is None:
        return Cell(NOT_RUN)
    interval = "" if found.deviation is None else f"± {found.deviation:.1f}"
    return Cell(f"{found.mean:+.1f}" if signed else f"{found.mean:.1f}", interval)


def arrow(value: float) -> str:
    return "?" if value == 0 else "↑" if value > 0 else "↓"


# ---- The report


def read_runs(output: Path) -> list[Run]:
    """The finished cells, by name."""
    return [json.loads(file.read_text("utf-8")) for file in sorted(output.glob(f"*/*/*/{SCORES}"))]


def findings(runs: Sequence[Run], kinds: Sequence[str]) -> list[dict[str, Any]]:
    """Each of the paper's findings for each kind of language model, with the numbers that decide; those shown first."""
    found = []
    for finding in FINDINGS:
        for kind in kinds:
            paired = difference(runs, kind, finding.experiment, finding.than, finding.score)
            numbers = {} if paired is None else as_numbers(paired)
            about = {"finding": finding.words, "source": finding.source, "kind": kind, "score": finding.score}
            compared = {"experiment": finding.experiment, "than": finding.than}
            found.append({**about, **compared, **numbers, "verdict": verdict(paired, finding.expected)})
    return sorted(found, key=lambda each: VERDICTS.index(each["verdict"]))


def as_numbers(found: Spread) -> dict[str, Any]:
    return {
        "mean": found.mean,
        "standard_deviation": found.deviation,
        "standard_error": found.error,
        "values": list(found.values),
    }


def sentence(found: Mapping[str, Any]) -> str:
    """A finding in plain words, from its numbers."""
    start = f"{found['verdict'].capitalize()}: {found['finding']} ({found['source']}; {found['kind']})"
    count = len(found["values"])
    over = f"over {count} seeds" if count > 1 else "with one seed"
    error = "" if found["standard_error"] is None else f", standard error {found['standard_error']:.1f}"
    score = f"Mean {found['score']}" if found["score"] in MEANS else found["score"]
    compared = f"{found['experiment']} less {found['than']} is {found['mean']:+.1f} {over}{error}"
    return f"{start}. {score}: {compared}."


def sentences(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """The findings in plain words; of those that nothing is known of, how many there are."""
    known = [sentence(each) for each in found if each["verdict"] != NOT_RUN]
    left = len(found) - len(known)
    return [*known, f"Not run: what {left} of the {len(found)} comparisons need."] if left else known


def made_with(runs: Sequence[Run], output: Path) -> list[tuple[str, str]]:
    """What the cells were run with: all values where they differ."""
    keys = dict.fromkeys(key for run in runs for key in run["made_with"])
    values = {key: sorted({str(run["made_with"].get(key)) for run in runs}) for key in keys}
    lines = [(key, ", ".join(value)) for key, value in values.items()]
    lines.append(("cells", f"{len(runs)}, {sum(run['minutes'] for run in runs):.0f} minutes together"))
    return [("command", command(runs, output)), *lines]


def command(runs: Sequence[Run], output: Path) -> str:
    """What runs these cells."""
    words: list[Any] = ["--output", os.path.relpath(output, steps.REPOSITORY)]
    options = {
        "--seeds": sorted({run["seed"] for run in runs if run["random"]}),
        "--steps": sorted({run["steps"] for run in runs if run["steps"] is not None}),
        "--bridges": sorted({run["bridges"] for run in runs if run.get("bridges") is not None}),
    }
    for name, values in options.items():
        words += [name, *values] if values else []
    return shlex.join(["python", "examples/miniature/experiments.py", *map(str, words)])


def write_report(output: Path, experiments: Mapping[str, "Experiment"], kinds: Sequence[str]) -> None:
    """Write experiments.md, experiments.json and experiments.html on the cells that have finished."""
    runs = read_runs(output)
    found = findings(runs, kinds)
    makers = (table_2, differences, directions, figure_4, table_3)
    tables = [make(runs, experiments, kinds) for make in makers]
    made = made_with(runs, output)
    summary = {
        kind: {
            name: {
                score: as_numbers(values)
                for score in (*MEANS, *HELD_OUT_NAMES, *MEANS[IN])
                if (values := spread(runs, kind, name, score))
            }
            for name in experiments
        }
        for kind in kinds
    }
    content = {"made_with": dict(made), "findings": found, "scores": summary, "runs": runs}
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / "experiments.json", json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_whole(output / "experiments.md", as_text(found, tables, made))
    write_whole(output / "experiments.html", as_page(found, tables, made, plots(runs, experiments, kinds)))


def as_text(found: Sequence[Mapping[str, Any]], tables: Sequence[Table], made: Sequence[tuple[str, str]]) -> str:
    parts = [f"# {TITLE}", "## What shows up", listed(map(escape_markdown, sentences(found)))]
    for table in tables:
        parts += [f"## {table.title}", as_markdown(table)]
    parts += ["## How to read this", listed(ABOUT)]
    parts += ["## Made with", listed(f"{name}: `{words}`" for name, words in made)]
    return "\n\n".join(parts) + "\n"


def listed(lines: Any) -> str:
    return "\n".join(f"- {line}" for line in lines)


def as_page(
    found: Sequence[Mapping[str, Any]],
    tables: Sequence[Table],
    made: Sequence[tuple[str, str]],
    figures: Sequence[tuple[str, list[PlotRow]]],
) -> str:
    def items(lines: Sequence[str]) -> str:
        return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"

    drawn = "".join(
        f"<figure><figcaption>{escape(name)}</figcaption>{dot_plot(rows)}</figure>" for name, rows in figures
    )
    parts = [f"<header><h1>{TITLE}</h1></header><h2>What shows up</h2>{items(sentences(found))}"]
    if drawn:
        parts.append(f'<h2>Means, with their standard deviation over seeds</h2><div class="plots">{drawn}</div>')
    parts += map(html_section, tables)
    parts += [f"<h2>How to read this</h2>{items(ABOUT)}<h2>Made with</h2>{html_definitions(made)}"]
    return html_page(TITLE, "".join(parts), STYLE)


def plots(
    runs: Sequence[Run], experiments: Mapping[str, "Experiment"], kinds: Sequence[str]
) -> list[tuple[str, list[PlotRow]]]:
    """Title and rows of each plot that has any."""
    wanted = {
        "Mean of the 13 held-out benchmarks": ("table_2", OUT),
        "Mean of the 11 without captions": ("table_2", ANSWERS),
        "Figure 4, held-out": ("figure_4", OUT_OF_FIGURE_4),
        "Figure 4, held-in": ("figure_4", IN),
        "Table 3, ScienceQA": ("table_3", "SciQA"),
    }
    figures = []
    for title, (table, score) in wanted.items():
        for kind in kinds:
            rows: list[PlotRow] = []
            for _, name in pairs(table, experiments, [kind]):
                values = spread(runs, kind, name, score)
                if values is not None:
                    ends = values.deviation and (values.mean - values.deviation, values.mean + values.deviation)
                    colour = "ours" if name in (FULL, "finetune_instructblip") else "blip" if "blip2" in name else ""
                    rows.append((name, colour, values.mean, ends or None))
            if rows:
                figures.append((f"{title} ({kind})", rows))
    return figures
