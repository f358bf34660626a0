"""`instructblip-eval report`: results of one or many models as a table like the paper's, a page and JSON.

    instructblip-eval report results/ --output report --data_root /data

writes report.md, report.json and report.html, each whole or not at all, from what lm-eval wrote with `--output_path`
and `--log_samples`.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from instructblip.eval_tasks import report_tables as tables
from instructblip.eval_tasks.report_metadata import eval_results
from instructblip.eval_tasks.report_page import PlotRow, plot_kind, render_page
from instructblip.eval_tasks.report_results import Model, TaskRun, read_models
from instructblip.eval_tasks.report_samples import shown_documents
from instructblip.eval_tasks.report_tables import Measured, Published
from instructblip.eval_tasks.whole_files import write_whole

Models = list[tuple[Model, dict[str, Measured]]]

TITLE = "Evaluation report"
GENERAL = (
    "Scores are x 100, but for mean ranks and tasks that are not ours. Intervals hold 95 %, by bootstrap over "
    "documents: they say how far another draw of questions might have come out, and nothing about prompts or training. "
    "Published scores come without.",
    "Prompts are those of the paper's appendix E. Its beams, lengths and penalties for each benchmark are not known; "
    "ours are in the task files.",
    "CIDEr is our own, with our own tokenizer; the paper's is pycocoevalcap's with Stanford's tokenizer in Java, which "
    "scores marked (PTB) use. The two gave the same tokens for all captions of COCO's val2017.",
    "VQA accuracy is EvalAI's. The paper's was probably computed by LAVIS, whose form is among the other scores.",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: arguments after `report`. Default: those of the process.

    Raises:
        ValueError, OSError: results cannot be read, or `--ptb` needs software that is not there.
    """
    options = _parser().parse_args(argv)
    try:
        written = write_report(
            options.results,
            options.output,
            data={"data_root": options.data_root, "image_dirs": options.image_dirs} if options.data_root else None,
            samples=options.samples,
            seed=options.seed,
            ptb=options.ptb,
            model_index=options.model_index,
        )
    except (ImportError, RuntimeError) as error:
        raise ValueError(str(error)) from error
    for path in written:
        print(f"wrote {path}")
    if options.model_index and not any(path.name.startswith("model-index") for path in written):
        print("no model-index: no task of ours was run on all of its documents")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="instructblip-eval report", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "results", nargs="+", metavar="RESULTS", help="folders that lm-eval wrote to, or results_*.json files"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for report.md, report.json, report.html")
    parser.add_argument("--data_root", metavar="FOLDER", help="as in --metadata; shows the pictures of the samples")
    parser.add_argument("--image_dirs", metavar="DIR", help="as in --metadata")
    parser.add_argument(
        "--samples", type=_count, default=6, metavar="N", help="documents shown of each task (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draw of samples (default %(default)s)")
    parser.add_argument("--ptb", action="store_true", help="CIDEr also with pycocoevalcap's tokenizer; needs Java")
    parser.add_argument(
        "--model_index", action="store_true", help="also write model-index.yaml, metadata for a model card"
    )
    return parser


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected 0 or more")
    return int(text)


def write_report(
    results: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    data: dict[str, Any] | None = None,
    samples: int = 6,
    seed: int = 0,
    ptb: bool = False,
    model_index: bool = False,
) -> list[Path]:
    """Write the report on results of lm-eval.

    Args:
        results: folders or results files, see `report_results.read_models`.
        output: folder, made if it is missing.
        data: where the pictures are, for `task_data.load_rows`: `{"data_root": ...}`. Default: texts only.
        samples: documents that the page shows of each task.
        seed: of their draw.
        ptb: compute CIDEr with pycocoevalcap's tokenizer too.
        model_index: also write metadata for the model card; one file for each model.

    Returns:
        the files.

    Raises:
        FileNotFoundError, ValueError: there are no results, or they cannot be read.
    """
    models = measure_models(results, ptb)
    published = tables.read_published()
    texts = {
        "report.md": render_markdown(models, published),
        "report.json": json.dumps(as_json(models, published), indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        "report.html": _page(models, published, samples, seed, data),
    }
    if model_index:
        texts |= _model_indexes(models)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_whole(folder / name, text)
    return [folder / name for name in texts]


def measure_models(results: Sequence[str | os.PathLike], ptb: bool = False) -> Models:
    """Read results and bound their scores: models, each with what is known of it by task."""
    models = read_models([Path(place) for place in results])
    return [(model, {task: tables.measure(model, task, ptb) for task in model.runs}) for model in models]


def card_results(*results: str | os.PathLike, ptb: bool = False) -> list[EvalResult]:
    """The results of one model, for the card of a release: `push_release(..., results=card_results("results"))`.

    Raises:
        ValueError: the results are of several models.
    """
    models = measure_models(results, ptb)
    if len(models) > 1:
        labels = ", ".join(model.label for model, _ in models)
        raise ValueError(f"results of {len(models)} models ({labels}): pass those of one")
    return eval_results(models[0][1])


def _model_indexes(models: Models) -> dict[str, str]:
    """File name -> metadata of a model card, for models with results to publish."""
    files: dict[str, str] = {}
    for number, (model, measured) in enumerate(models, start=1):
        if results := eval_results(measured):
            name = "model-index.yaml" if len(models) == 1 else f"model-index-{number}-{_slug(model.label)}.yaml"
            data = ModelCardData(model_name=model.name.rstrip("/").rpartition("/")[2], eval_results=results)
            files[name] = f"{data.to_yaml()}\n"
    return files


def _slug(text: str) -> str:
    return re.sub(r"\W+", "-", text)[:80].strip("-")


# ---- Markdown and JSON


def render_markdown(models: Models, published: Published) -> str:
    """report.md."""
    main = tables.main_table(models, published)
    sections = [f"# {TITLE}"]
    for table in [*([main] if main else []), *tables.other_tables(models, published)]:
        sections += [f"## {table.title}", tables.as_markdown(table)]
    if main:
        sources = sorted({row.source for row in main.rows if row.source})
        sections.append("Published scores: " + "; ".join(map(tables.escape_markdown, sources)) + ".")
    sections += ["## How to read this", *GENERAL]
    if about := tables.comparison_notes(models, published):
        sections.append("## What differs from the paper")
        sections.append("\n".join(f"- {name}: {tables.escape_markdown(words)}" for name, words in about))
    made = [f"- {tables.escape_markdown(name)}: {tables.escape_markdown(words)}" for name, words in _versions(models)]
    sections += ["## Made with", "\n".join(made)]
    return "\n\n".join(sections) + "\n"


def as_json(models: Models, published: Published) -> dict[str, Any]:
    """report.json: scores in lm-eval's units, published ones x 100 as they were printed."""
    return {
        "models": [
            {
                "label": model.label,
                "name": model.name,
                "settings": model.settings,
                "tasks": {task: _task_json(of_task) for task, of_task in measured.items()},
            }
            for model, measured in models
        ],
        "columns": [dataclasses.asdict(column) for column in published.columns],
        "published": [dataclasses.asdict(row) for row in published.rows],
        "sources": published.sources,
        "confidence": tables.CONFIDENCE,
        "instructblip_version": version("instructblip"),
    }


def _task_json(measured: Measured) -> dict[str, Any]:
    run = measured.run
    return {
        "dataset": tables.dataset_name(run),
        "split": tables.split_name(run),
        "version": run.version,
        "documents": run.documents,
        "all_documents": run.all_documents,
        "logged": measured.samples is not None,
        "date": run.date,
        "file": str(run.file),
        **run.environment,
        "scores": {
            metric: {"value": score.value, "interval": list(score.interval) if score.interval else None}
            for metric, score in measured.scores.items()
        },
        "remarks": list(measured.remarks),
    }


def _versions(models: Models) -> list[tuple[str, str]]:
    """What each model's results were made with: settings, software, dates."""
    lines = []
    for model, measured in models:
        runs = [of_task.run for of_task in measured.values()]
        settings = [f"{name} {value if isinstance(value, str) else json.dumps(value)}" for name, value in
                    model.settings.items()]  # fmt: skip
        software = sorted({f"{name} {value}" for run in runs for name, value in run.environment.items() if value})
        lines.append((model.label, ", ".join([model.name, *settings, *software, _dates(runs)])))
    return [*lines, ("this report", f"instructblip {version('instructblip')}")]


def _dates(runs: Sequence[TaskRun]) -> str:
    days = sorted({f"{datetime.datetime.fromtimestamp(run.date, datetime.UTC):%Y-%m-%d}" for run in runs})
    return f"run on {days[0]}" if len(days) == 1 else f"run from {days[0]} to {days[-1]}"


# ---- The page


def _page(models: Models, published: Published, samples: int, seed: int, data: dict[str, Any] | None) -> str:
    tasks = list(dict.fromkeys(task for _, measured in models for task in measured))
    metric_of = {column.task: column.metric for column in published.columns}
    shown = {
        task: shown_documents(models, task, metric_of.get(task, _first_metric(models, task)), samples, seed, data)
        for task in tasks
    }
    plots = []
    for place, column in enumerate(published.columns):
        rows = [
            row for model, measured in models if (row := _plot_row(model, measured.get(column.task), column.metric))
        ]
        if rows:
            rows += [
                (row.model, plot_kind(row.model), score, None)
                for row in published.rows
                if (score := row.scores[place]) is not None
            ]
            plots.append((column, rows))
    counted = sum(of_task.run.documents for _, measured in models for of_task in measured.values())
    summary = [
        f"{len(models)} model{'s' * (len(models) > 1)}, {len(tasks)} task{'s' * (len(tasks) > 1)}, {counted:,} answers"
    ]
    return render_page(
        TITLE,
        summary,
        tables.main_table(models, published),
        tables.other_tables(models, published),
        tables.comparison_notes(models, published),
        GENERAL,
        plots,
        shown,
        _versions(models),
    )


def _first_metric(models: Models, task: str) -> str:
    return next(measured[task].run.first_metric for _, measured in models if task in measured)


def _plot_row(model: Model, measured: Measured | None, metric: str) -> PlotRow | None:
    """A model's place beside the published scores, which are of all documents, as its own must be."""
    score = measured.scores.get(metric) if measured and not measured.run.is_partial else None
    if score is None or score.value is None:
        return None
    interval = (100 * score.interval[0], 100 * score.interval[1]) if score.interval else None
    return model.label, "ours", 100 * score.value, interval
