"""What lm-eval left on disk: `results_*.json` and `samples_*.jsonl`, of one or many models.

A results file holds the scores and settings of one run, and the samples file beside it one line per document. Of
several runs of the same model and task, a complete one counts before one with `--limit`, and then the newest.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

WRITTEN = re.compile(r"_(\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?)\.json$")  # lm-eval ends its files in the time
# Of lm-eval's `config`: where and how fast a run was, not what it measured.
NOT_SETTINGS = frozenset(
    "model model_args model_name model_num_parameters batch_size batch_sizes device use_cache limit bootstrap_iters "
    "random_seed numpy_seed torch_seed fewshot_seed".split()
)

ENVIRONMENT = {"lm-eval": "lm_eval_version", "transformers": "transformers_version", "commit": "git_hash"}


@dataclasses.dataclass(frozen=True)
class TaskRun:
    """What one run found for one task."""

    file: Path  # results_*.json
    model: str
    settings: dict[str, Any]  # that may change the answers: revision, precision, generation settings, ...
    task: str
    scores: dict[str, float | None]  # metric -> aggregated value; None where lm-eval has NaN
    filter_of: dict[str, tuple[str, str]]  # metric -> its name and filter in the samples file
    documents: int  # scored
    all_documents: int  # of the split
    version: str
    date: float  # of the start, seconds since 1970
    config: dict[str, Any]  # of the task, functions as their source text
    environment: dict[str, Any]  # versions, and the commit of the folder in which it ran

    @property
    def is_partial(self) -> bool:
        return self.documents < self.all_documents

    @property
    def first_metric(self) -> str:
        """The score that stands for the task: the first that its file lists, or that there is."""
        listed = [entry.get("metric") for entry in self.config.get("metric_list") or []]
        return next((metric for metric in [*listed, *self.scores] if metric in self.scores), "")

    @property
    def samples_file(self) -> Path:
        written = WRITTEN.search(self.file.name)
        return self.file.with_name(f"samples_{self.task}_{written[1] if written else ''}.jsonl")


@dataclasses.dataclass(frozen=True)
class Model:
    """A row of the table: a checkpoint with the settings that it was asked with."""

    name: str  # as the results have it
    label: str  # short, and different from those of the other models
    settings: dict[str, Any]
    runs: dict[str, TaskRun]  # task -> the run that counts
    others: dict[str, list[TaskRun]]  # task -> runs that do not


def read_models(places: Iterable[str | Path]) -> list[Model]:
    """Read results, and group them by model.

    Args:
        places: folders that lm-eval wrote to (searched with their subfolders) and results files.

    Returns:
        Models in the order in which they are first met.

    Raises:
        FileNotFoundError: a place is not there, or holds no results.
        ValueError: a file is not one of lm-eval's results; the message names it.
    """
    found: dict[tuple[str, str], list[TaskRun]] = {}
    for file in dict.fromkeys(path for place in places for path in _results_files(Path(place))):
        for run in _read_results(file):
            key = (run.model, json.dumps(run.settings, sort_keys=True))
            found.setdefault(key, []).append(run)
    models = []
    for label, runs in zip(_labels(list(found.values())), found.values(), strict=True):
        by_task: dict[str, list[TaskRun]] = {}
        for run in runs:
            by_task.setdefault(run.task, []).append(run)
        ordered = {
            task: sorted(same, key=lambda run: (not run.is_partial, run.date), reverse=True)
            for task, same in by_task.items()
        }
        first = {task: same[0] for task, same in ordered.items()}
        others = {task: same[1:] for task, same in ordered.items()}
        models.append(Model(runs[0].model, label, runs[0].settings, first, others))
    return models


def _results_files(place: Path) -> list[Path]:
    if place.is_file():
        return [place.resolve()]
    if not place.is_dir():
        raise FileNotFoundError(f"{place}: there is no such file or folder")
    files = sorted(path.resolve() for path in place.rglob("*.json") if WRITTEN.search(path.name))
    if not files:
        raise FileNotFoundError(
            f"{place}: no results of lm-eval in it (results_*.json): run instructblip-eval with --output_path {place}"
        )
    return files


def _read_results(file: Path) -> Iterator[TaskRun]:
    try:
        results = json.loads(file.read_text("utf-8"))
        configs, config, counts = results["configs"], results["config"], results["n-samples"]
        settings = {name: value for name, value in config.items() if name not in NOT_SETTINGS and value is not None}
        for name in ("chat_template_sha", "system_instruction_sha"):
            if results.get(name):
                settings[name] = results[name]
        environment = {name: results.get(key) for name, key in ENVIRONMENT.items()}
        for task, values in results["results"].items():
            if task not in configs:  # a group of tasks
                continue
            scores, filters = _scores(values)
            yield TaskRun(
                file=file,
                model=str(config.get("model_name") or results.get("model_name") or config.get("model")),
                settings=settings,
                task=task,
                scores=scores,
                filter_of=filters,
                documents=int(counts[task]["effective"]),
                all_documents=int(counts[task]["original"]),
                version=str(results["versions"].get(task)),
                date=float(results["date"]),
                config=configs[task],
                environment=environment,
            )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{file} is not a results file of lm-eval: {type(error).__name__} {error}") from None


def _scores(values: dict[str, Any]) -> tuple[dict[str, float | None], dict[str, tuple[str, str]]]:
    """Metric -> value, and metric -> (name, filter), from keys such as "accuracy,none"."""
    scores: dict[str, float | None] = {}
    filters: dict[str, tuple[str, str]] = {}
    for key, value in values.items():
        metric, comma, used = key.partition(",")
        if not comma or metric.endswith("_stderr") or metric == "bypass" or not isinstance(value, int | float):
            continue
        name = metric if used == "none" else f"{metric} ({used})"
        scores[name] = float(value) if math.isfinite(value) else None
        filters[name] = (metric, used)
    return scores, filters


def _labels(groups: Sequence[Sequence[TaskRun]]) -> list[str]:
    """A short name for each model; models of one name are told apart by the settings in which they differ."""
    short = [_short(runs[0].model) for runs in groups]
    labels = []
    for name, runs in zip(short, groups, strict=True):
        same = [others[0] for others, other in zip(groups, short, strict=True) if other == name]
        if len({run.model for run in same}) > 1:
            name = runs[0].model
        differing = [
            key
            for key in sorted({key for run in same for key in run.settings})
            if len({json.dumps(run.settings.get(key)) for run in same}) > 1
        ]
        about = ", ".join(f"{key} {_shown(runs[0].settings.get(key))}" for key in differing)
        labels.append(f"{name} ({about})" if about else name)
    return labels


def _short(model: str) -> str:
    """The last part of a local path; a Hub id stays."""
    parts = Path(model).parts
    return parts[-1] if len(parts) > 2 or model.startswith(("/", ".", "~")) else model


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:10] if re.fullmatch(r"[0-9a-f]{40}", text) else text.removeprefix("torch.")


@dataclasses.dataclass
class Samples:
    """The logged documents of a run: scores in memory, everything else read again when asked for."""

    file: Path
    values: dict[str, list[Any]]  # metric -> value of each document, as `process_results` gave it
    names: list[str]  # of each document
    places: list[int]  # of each line in the file, in bytes

    def line(self, index: int) -> dict[str, Any]:
        """All that was logged of a document."""
        with open(self.file, "rb") as file:
            file.seek(self.places[index])
            return json.loads(file.readline())


def read_samples(run: TaskRun) -> Samples | None:
    """The logged documents of a run; None where `--log_samples` was not on.

    Raises:
        ValueError: a line is broken, or there are not as many documents as were scored; names file and line.
    """
    path = run.samples_file
    if not path.is_file():
        return None
    first_filter = next(iter(run.filter_of.values()), ("", "none"))[1]
    samples = Samples(path, {name: [] for name in run.filter_of}, [], [])
    numbers: list[int] = []
    place = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                logged = json.loads(line)
                used = logged["filter"]
                for name, (metric, its_filter) in run.filter_of.items():
                    if used == its_filter:
                        samples.values[name].append(logged[metric])
                if used == first_filter:
                    samples.names.append(document_name(logged))
                    samples.places.append(place)
                    numbers.append(int(logged["doc_id"]))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {number}: not a sample of lm-eval ({error})") from None
            place += len(line)
    if len(samples.names) != run.documents:
        raise ValueError(
            f"{path} holds {len(samples.names)} documents and {run.file.name} counts {run.documents}: they are not of "
            "one run; take the samples away or run again"
        )
    # Several processes write theirs one after the other, and draws of documents go by order.
    for column in (*samples.values.values(), samples.names, samples.places):
        if len(column) == len(numbers):
            column[:] = [value for _, value in sorted(zip(numbers, column, strict=True), key=lambda pair: pair[0])]
    return samples


def document_name(logged: dict[str, Any]) -> str:
    """What tells a document from the others of its task: its own id, or its number."""
    document = logged["doc"]
    own = document.get("id") if isinstance(document, dict) else None
    return str(own if own not in (None, "") else logged["doc_id"])
