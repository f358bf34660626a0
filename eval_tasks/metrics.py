"""Scores of single documents and of whole tasks: pure functions, without randomness and without lm-eval.

lm-eval calls a `process_results(doc, results)` once per document and aggregates what it returns. Every document returns
every key (None where a score does not apply): over several processes lm-eval takes the keys from the first one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

# The rules of the VQA evaluation: https://visualqa.org/evaluation.html
PUNCTUATION = tuple(';/[]"{}()=+\\_-><@`,?!')
ARTICLES = frozenset({"a", "an", "the"})
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(NUMBER_WORDS)}
CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't
    not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
    what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's
    won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32  # the official script passes re.UNICODE, which is 32, where re.sub takes the count


def _missing_one_apostrophe(word: str) -> list[str]:
    """The ways to leave one apostrophe of `word` out: "couldn't've" gives "couldnt've" and "couldn'tve"."""
    return [word[:place] + word[place + 1 :] for place, letter in enumerate(word) if letter == "'"]


_CONTRACTION_OF = {typed: word for word in CONTRACTIONS for typed in _missing_one_apostrophe(word)}
_CONTRACTION_OF["somebody'd"] = "somebodyd"  # the official table has this pair the wrong way round


def _strip_punctuation(text: str) -> str:
    """Drop marks that touch a blank, or all if the text holds a number such as 1,000; the others become blanks."""
    drop_all = _COMMA_IN_NUMBER.search(text) is not None
    stripped = text
    for mark in PUNCTUATION:
        touches_blank = f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if drop_all or touches_blank else " ")
    return _PERIOD.sub("", stripped, count=_MOST_PERIODS)


@lru_cache(maxsize=65536)
def normalise_answer(text: str) -> str:
    """Bring an answer into the form in which the VQA evaluation compares answers.

    Punctuation is stripped, letters become lower case, number words up to ten become digits, articles go, and
    contractions get their apostrophe: "The Two dogs." gives "2 dogs".
    """
    text = _strip_punctuation(text.replace("\n", " ").replace("\t", " ").strip())
    words = [DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTION_OF.get(word, word) for word in words if word not in ARTICLES)


def exact_match(prediction: str, answers: Iterable[str]) -> float:
    """1.0 if the prediction equals one of the answers, both normalised, else 0.0.

    Raises:
        TypeError: `answers` is one string, whose letters would pass for answers.
    """
    if isinstance(answers, str):
        raise TypeError(f"answers is the string {answers!r}: pass a list of answers")
    return float(normalise_answer(prediction) in {normalise_answer(answer) for answer in answers})


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The VQA score of a question: min(1, n / 3), n the number of others who gave this answer, averaged over people.

    As in the official script, the prediction is normalised; of the answers only the punctuation is, and only where they
    are not all the same.

    Args:
        answers: one of each person, repeats kept; ten in VQAv2.

    Raises:
        TypeError: `answers` is one string, whose letters would pass for answers.
        ValueError: there is none.
    """
    if isinstance(answers, str):
        raise TypeError(f"answers is the string {answers!r}: pass a list of answers")
    if not answers:
        raise ValueError("answers is empty: a question that nobody answered has no score")
    truths = [_strip_punctuation(answer) for answer in answers] if len(set(answers)) > 1 else list(answers)
    given = normalise_answer(prediction)
    same = sum(truth == given for truth in truths)
    scores = [min(1.0, (same - (truth == given)) / 3) for truth in truths]
    return sum(scores) / len(scores)


def mean_of_scored(scores: Iterable[float | None]) -> float:
    """Mean of the documents that have this score; NaN if none has."""
    scored = [score for score in scores if score is not None]
    return sum(scored) / len(scored) if scored else float("nan")


def closed_and_open_accuracy(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float | None]:
    """VQA-RAD: exact match, over all questions and by answer type.

    Args:
        doc: a question with `answers` and the tag "answer_type=CLOSED" or "answer_type=OPEN".
        results: the predicted answer.
    """
    score = exact_match(results[0], doc["answers"])
    closed = "answer_type=CLOSED" in doc["tags"]
    return {
        "accuracy": score,
        "accuracy_closed": score if closed else None,
        "accuracy_open": None if closed else score,
    }


TRUE_FALSE = ["yes", "true", "no", "false"]  # the verbalisers of the paper's binary tasks, in the order ranked


def true_false_accuracy(doc: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """Whether the most likely of `yes, true, no, false` says what the label says.

    A tie goes to the one named first, as argmax has it.

    Args:
        doc: a statement with `label`: 1 (true) or 0.
        results: (log-probability, is greedy) of each of `TRUE_FALSE`.
    """
    scores = [score for score, _ in results]
    said_true = scores.index(max(scores)) < 2
    return {"accuracy": float(said_true == bool(doc["label"]))}
