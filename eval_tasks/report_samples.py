"""The documents that a report shows: which, what each model said about them, and their pictures."""

from __future__ import annotations

import collections
import dataclasses
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from instructblip.datasets_builders.table import TABLE
from instructblip.eval_tasks.cider import cider_per_caption
from instructblip.eval_tasks.images import read_image
from instructblip.eval_tasks.report_results import Model, TaskRun
from instructblip.eval_tasks.report_tables import Measured, dataset_name, split_name
from instructblip.eval_tasks.task_data import load_rows, one_document_per_question

MOST_PICTURES = 8  # shown of a document
MOST_CANDIDATES = 3  # shown of a ranking
MOST_TRUTHS = 6


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model said about a document."""

    model: str
    text: str
    shares: tuple[tuple[str, float], ...]  # of a ranking: the likeliest candidates and their probabilities
    score: float | None


@dataclasses.dataclass(frozen=True)
class Shown:
    """A document on the page."""

    name: str
    kind: str  # "best" or "worst" of those of the first model, or "any" where documents have no score of their own
    prompt: str
    truth: str
    answers: list[Answer]
    pictures: list[Image.Image]
    trouble: str  # why there is no picture


def shown_documents(
    models: Sequence[tuple[Model, dict[str, Measured]]],
    task: str,
    metric: str,
    count: int,
    seed: int = 0,
    data: Mapping[str, Any] | None = None,
) -> list[Shown]:
    """Draw documents of a task: half of them from the best of the first model that logged any, half from the worst.

    Documents of one score are drawn from at random. Every model's answer to a document is shown with it.

    Args:
        metric: decides what is best, if it says something of single documents; else the task's accuracy does.
        data: what `task_data.load_rows` needs to find the pictures: `{"data_root": ...}`. Default: no pictures.
    """
    logged = [(model, measured[task]) for model, measured in models if task in measured and measured[task].samples]
    if not logged or not count:
        return []
    scores = [document_scores(measured, metric) for _, measured in logged]
    chosen = _draw(scores[0], count, random.Random(f"{seed} {task}"))
    first = logged[0][1]
    names = [first.samples.names[index] for index, _ in chosen]
    pictures, trouble = _pictures(first.run, names, data) if data else ({}, "")
    shown = []
    for (index, kind), name in zip(chosen, names, strict=True):
        line = first.samples.line(index)
        answers = []
        for (model, measured), of_model in zip(logged, scores, strict=True):
            place = index if measured is first else _place(measured, name)
            if place is not None:
                text, shares = answer_of(measured.run, measured.samples.line(place))
                answers.append(Answer(model.label, text, shares, of_model[place]))
        missing = trouble or ("" if name in pictures or not data else f"{name} is not in this data")
        shown.append(Shown(name, kind, _prompt(line), truth_of(line), answers, pictures.get(name, []), missing))
    return shown


def document_scores(measured: Measured, metric: str) -> list[float | None]:
    """The score of each document: by `metric`, or by accuracy where that one is made of all documents together."""
    values = measured.samples.values
    for name in (metric, "accuracy"):
        own = values.get(name, [])
        if any(isinstance(value, dict) for value in own):
            return _caption_scores(own)
        if any(_is_number(value) for value in own):
            return [float(value) if _is_number(value) else None for value in own]
    return [None] * len(measured.samples.names)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _caption_scores(records: Sequence[dict[str, Any] | None]) -> list[float | None]:
    known = [number for number, record in enumerate(records) if record is not None and record["references"]]
    scores: list[float | None] = [None] * len(records)
    each = cider_per_caption([records[i]["caption"] for i in known], [records[i]["references"] for i in known])
    for number, score in zip(known, each, strict=True):
        scores[number] = float(score)
    return scores


def _draw(scores: Sequence[float | None], count: int, generator: random.Random) -> list[tuple[int, str]]:
    """(index, kind), the best first."""
    places = list(range(len(scores)))
    generator.shuffle(places)
    scored = [(place, score) for place in places if (score := scores[place]) is not None]
    if len({score for _, score in scored}) < 2:  # none is better than another
        return [(place, "any") for place in places[:count]]
    ordered = [place for place, _ in sorted(scored, key=lambda pair: -pair[1])]  # stable: ties stay shuffled
    count = min(count, len(ordered))
    best = (count + 1) // 2
    worst = ordered[len(ordered) - (count - best) :]
    return [(place, "best") for place in ordered[:best]] + [(place, "worst") for place in worst]


def _place(measured: Measured, name: str) -> int | None:
    names = measured.samples.names
    return names.index(name) if name in names else None


def _prompt(logged: dict[str, Any]) -> str:
    return str((logged.get("arguments") or {}).get("gen_args_0", {}).get("arg_0", ""))


def answer_of(run: TaskRun, logged: dict[str, Any]) -> tuple[str, tuple[tuple[str, float], ...]]:
    """What was answered: generated text, or the likeliest candidate and the probabilities of the first few."""
    answers = logged["filtered_resps"]
    if answers and isinstance(answers[0], str):
        return answers[0], ()
    requests = list((logged.get("arguments") or {}).values())
    if len(answers) == 1:  # all candidates in one request
        scores, candidates = answers[0], _candidates(run, logged)
    else:  # lm-eval's own: a request for each candidate
        scores, candidates = [one[0] for one in answers], [request.get("arg_1") for request in requests]
    values = [float(score) for score in scores]
    if not values or any(math.isnan(value) for value in values) or max(values) == -math.inf:
        return "(no usable score)", ()
    if len(candidates) != len(values):
        candidates = [f"candidate {number}" for number in range(len(values))]
    total = sum(math.exp(value - max(values)) for value in values)
    order = sorted(range(len(values)), key=lambda place: -values[place])
    shares = [(str(candidates[i]), math.exp(values[i] - max(values)) / total) for i in order[:MOST_CANDIDATES]]
    return shares[0][0], tuple(shares)


def _candidates(run: TaskRun, logged: dict[str, Any]) -> Sequence[Any]:
    choices = run.config.get("doc_to_choice")
    found = logged["doc"].get(choices) if isinstance(choices, str) else choices
    return found if isinstance(found, list) else []


def truth_of(logged: dict[str, Any]) -> str:
    """The right choice, or the answers with how many people gave them."""
    document = logged["doc"] if isinstance(logged["doc"], dict) else {}
    choices, label, answers = document.get("choices"), document.get("label", -1), document.get("answers")
    if isinstance(choices, list) and isinstance(label, int) and 0 <= label < len(choices):
        return str(choices[label])
    if isinstance(answers, list) and answers:
        counted = collections.Counter(map(str, answers)).most_common()
        words = [f"{text} ({number})" if number > 1 else text for text, number in counted[:MOST_TRUTHS]]
        return " · ".join(words) + (f" and {len(counted) - MOST_TRUTHS} more" if len(counted) > MOST_TRUTHS else "")
    return str(logged.get("target", ""))


def _pictures(run: TaskRun, names: Sequence[str], data: Mapping[str, Any]) -> tuple[dict[str, list[Image.Image]], str]:
    """Document -> pictures, and what went wrong. References in the samples are of another process and not followed."""
    dataset, split = dataset_name(run), split_name(run)
    if dataset not in TABLE:
        return {}, f"no pictures: {run.task} is on none of the datasets that we know"
    config = (run.config.get("dataset_kwargs") or {}).get("config")
    try:
        rows = load_rows(dataset, splits=[split], config=config, **data)
        documents = one_document_per_question(rows[split])
        place_of = {name: place for place, name in enumerate(documents["id"])}
        found = {}
        for name in names:
            if name in place_of:
                references = documents[place_of[name]]["images"][:MOST_PICTURES]
                found[name] = [read_image(reference) for reference in references]
    except (OSError, ValueError, KeyError) as error:  # the numbers need no pictures; the page says what is wrong
        return {}, f"no pictures of {dataset}: {' '.join(str(error).split())}"
    return found, ""
