"""Scores for validation while training: what `InstructBLIPTrainer` takes as `scorer` for the datasets of this package.

InstructBLIPTrainer(..., eval_dataset=validation_data(sources), scorer=held_in_scores)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instructblip.eval_tasks.answers import exact_match, vqa_accuracy

QUESTIONS = ("vqa", "multiple_choice", "true_false", "dialog")  # tasks with a true answer
SEVERAL = 10  # people who answered a question of VQAv2, OK-VQA, A-OKVQA, TextVQA or VizWiz


def held_in_scores(answers: list[str], samples: list[Mapping[str, Any]]) -> dict[str, float]:
    """VQA accuracy of the questions that ten people answered, else the share of answers that are a true one.

    Captions, talks and generated questions are left out, and so are A-OKVQA's questions that are too difficult for
    direct answers; {} where nothing else is there. Choices are compared as texts: this is generation, where the
    paper's numbers for multiple choice rank.

    Args:
        answers: what was generated.
        samples: of each, `task` and what the row schema has.
    """
    pairs = [pair for pair in zip(answers, samples, strict=True) if _is_scored(pair[1])]
    if not pairs:
        return {}
    if all(len(sample["answers"]) == SEVERAL for _, sample in pairs):
        scores = [vqa_accuracy(answer, sample["answers"]) for answer, sample in pairs]
        return {"vqa_accuracy": sum(scores) / len(scores)}
    scores = [exact_match(answer, [sample["response"], *sample["answers"]]) for answer, sample in pairs]
    return {"accuracy": sum(scores) / len(scores)}


def _is_scored(sample: Mapping[str, Any]) -> bool:
    tags = dict(tag.split("=", 1) for tag in sample["tags"])
    difficult = not sample["choices"] and tags.get("difficult_direct_answer") == "true"
    return tags.get("task", sample["task"]) in QUESTIONS and not difficult
