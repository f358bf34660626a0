"""Scores for validation while training: what `InstructBLIPTrainer` takes as `scorer` for the datasets of this package.

InstructBLIPTrainer(..., eval_dataset=validation_data(sources), scorer=held_in_scores)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instructblip.eval_tasks.answers import exact_match, vqa_accuracy
from instructblip.eval_tasks.cider import cider

QUESTIONS = ("vqa", "multiple_choice", "true_false", "dialog")  # tasks with a true answer
SEVERAL = 10  # people who answered a question of VQAv2, OK-VQA, A-OKVQA, TextVQA or VizWiz


def held_in_scores(answers: list[str], samples: list[Mapping[str, Any]]) -> dict[str, float]:
    """VQA accuracy of questions that ten people answered, the share of right answers to others, CIDEr of captions.

    VQA accuracy is in EvalAI's form, which normalises both sides. Choices are compared as texts: this is generation,
    where the paper's numbers for multiple choice rank. CIDEr is computed over the captions at hand, 1.0 being the
    paper's 100; it depends on which they are, so compare it within a run.

    Talks and generated questions are left out, and so are A-OKVQA's questions that are too difficult for direct
    answers; {} where nothing else is there. Captions among questions are left out too.

    Args:
        answers: what was generated.
        samples: of each, `task` and what the row schema has.
    """
    pairs = [(answer, sample) for answer, sample in zip(answers, samples, strict=True) if not _is_difficult(sample)]
    questions = [pair for pair in pairs if _task(pair[1]) in QUESTIONS]
    if not questions:
        return _caption_scores([pair for pair in pairs if _task(pair[1]) == "caption" and pair[1]["answers"]])
    if all(len(sample["answers"]) == SEVERAL for _, sample in questions):
        scores = [vqa_accuracy(answer, sample["answers"]) for answer, sample in questions]
        return {"vqa_accuracy": sum(scores) / len(scores)}
    scores = [exact_match(answer, [sample["response"], *sample["answers"]]) for answer, sample in questions]
    return {"accuracy": sum(scores) / len(scores)}


def _caption_scores(pairs: list[tuple[str, Mapping[str, Any]]]) -> dict[str, float]:
    records = [
        {"id": place, "caption": answer, "references": sample["answers"]}
        for place, (answer, sample) in enumerate(pairs)
    ]
    return {"cider": cider(records)} if records else {}


def _tag(sample: Mapping[str, Any], name: str) -> str | None:
    return dict(tag.split("=", 1) for tag in sample["tags"]).get(name)


def _task(sample: Mapping[str, Any]) -> str:
    return _tag(sample, "task") or sample["task"]


def _is_difficult(sample: Mapping[str, Any]) -> bool:
    return not sample["choices"] and _tag(sample, "difficult_direct_answer") == "true"
