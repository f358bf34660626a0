"""When two answers are the same, and what a question's annotators make an answer worth.

Two normal forms and four scores are in use in the literature, and they differ by up to twenty points on one set of
predictions; each is named here after the script it follows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

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


def _trim(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


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
    """Bring an answer into the form in which the official VQA evaluation compares answers.

    Punctuation is stripped, letters become lower case, number words up to ten become digits, articles go, and
    contractions get their apostrophe: "The Two dogs." gives "2 dogs". What is only articles and marks gives "".
    """
    words = [DIGITS.get(word, word) for word in _strip_punctuation(_trim(text)).lower().split()]
    return " ".join(_CONTRACTION_OF.get(word, word) for word in words if word not in ARTICLES)


@lru_cache(maxsize=65536)
def normalise_answer_evalai(text: str) -> str:
    """Bring an answer into the form of the EvalAI server of VQA, which TextVQA's evaluator (M4C, in MMF) follows.

    As `normalise_answer`, but commas and question marks go first ("red,blue" gives "redblue", where the official form
    has "red blue"), and a possessive becomes a word of its own ("dog's" gives "dog 's").
    """
    return normalise_answer(text.lower().replace(",", "").replace("?", "").replace("'s", " 's"))


def exact_match(prediction: str, answers: Iterable[str]) -> float:
    """1.0 if the prediction equals one of the answers, both normalised by `normalise_answer`, else 0.0.

    Raises:
        TypeError: `answers` is one string, whose letters would pass for answers.
    """
    _check_is_list(answers)
    return float(normalise_answer(prediction) in {normalise_answer(answer) for answer in answers})


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The VQA score of a question in EvalAI's form: min(1, n / 3), averaged over the people.

    n is the number of the others who gave this answer, so with ten people one match scores 0.3, two 0.6, three 0.9 and
    four 1. Prediction and answers are normalised by `normalise_answer_evalai`. This is `TextVQAAccuracyEvaluator` of
    M4C, which insists on ten answers; here any number will do.

    Args:
        answers: one of each person, repeats kept; ten in VQAv2, OK-VQA, TextVQA and VizWiz.

    Raises:
        TypeError: `answers` is one string, whose letters would pass for answers.
        ValueError: there is none.
    """
    _check_is_list(answers)
    given = normalise_answer_evalai(prediction)
    return _mean_over_people(sum(normalise_answer_evalai(answer) == given for answer in answers), len(answers))


def vqa_accuracy_official(prediction: str, answers: Sequence[str]) -> float:
    """The same score as the official script has it (`vqaEval.py` of the VQA challenge, in its last version).

    Where all people agree, the script compares the texts as they are, but for blanks at the ends: then "Yes" or "yes."
    is wrong where everybody wrote "yes". Else both sides are normalised by `normalise_answer`.

    People are told apart by their place, which VQAv2's files give as `answer_id`. In VizWiz's files, which have no such
    field, the script takes all who gave one answer with one confidence for one person.

    Args:
        answers: as `vqa_accuracy` has it.

    Raises:
        TypeError: `answers` is one string, whose letters would pass for answers.
        ValueError: there is none.
    """
    _check_is_list(answers)
    given, truths = _trim(prediction), [_trim(answer) for answer in answers]
    if len(set(truths)) > 1:
        given, truths = normalise_answer(given), [normalise_answer(truth) for truth in truths]
    return _mean_over_people(truths.count(given), len(truths))


def vqa_accuracy_lavis(prediction: str, answers: Sequence[str]) -> float:
    """The same score as LAVIS has it, the paper's own library, in its copy of an earlier official script.

    The prediction is always normalised by `normalise_answer`. Of the answers only the punctuation is, and only where
    people disagree, so that no prediction equals an answer with a capital letter, an article or a number word.

    Args:
        answers: as `vqa_accuracy` has it.

    Raises:
        TypeError: `answers` is one string, whose letters would pass for answers.
        ValueError: there is none.
    """
    _check_is_list(answers)
    truths = [_strip_punctuation(answer) for answer in answers] if len(set(answers)) > 1 else list(answers)
    return _mean_over_people(truths.count(normalise_answer(prediction)), len(truths))


def _mean_over_people(same: int, people: int) -> float:
    """Mean of min(1, n / 3), where n is `same` less the one person's own answer."""
    if not people:
        raise ValueError("answers is empty: a question that nobody answered has no score")
    return (same * min(1.0, (same - 1) / 3) + (people - same) * min(1.0, same / 3)) / people


def three_people_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """A-OKVQA's score of a direct answer: min(1, n / 3), n the number of people who gave it.

    As in the official `eval_predictions.py` (and LAVIS) the texts are compared as they are, so "Dog" is not "dog"; only
    blanks at the ends are left out, which generated text has by accident.

    Raises:
        TypeError: `answers` is one string, whose letters would pass for answers.
    """
    _check_is_list(answers)
    return min(1.0, sum(answer.strip() == prediction.strip() for answer in answers) / 3)


def two_people_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """iVQA's score: min(1, n / 2), n the number of the five people who gave this answer.

    The official script ("Just Ask", `train_videoqa.py`) picks from a closed vocabulary; text that was generated is
    compared after `normalise_answer` of both sides.

    Raises:
        TypeError: `answers` is one string, whose letters would pass for answers.
    """
    _check_is_list(answers)
    given = normalise_answer(prediction)
    return min(1.0, sum(normalise_answer(answer) == given for answer in answers) / 2)


def _check_is_list(answers: Iterable[str]) -> None:
    if isinstance(answers, str):
        raise TypeError(f"answers is the string {answers!r}: pass a list of answers")
