import pytest

from instructblip.datasets_builders.schema import make_sample
from instructblip.eval_tasks.held_in import held_in_scores
from instructblip.eval_tasks.metrics import vqa_accuracy

TEN = ["red"] * 2 + ["blue"] * 8


def sample(answers, task="vqa", **rest):
    return {**make_sample("x", "what ?", answers, **rest), "task": task, "response": answers[0] if answers else ""}


def test_a_person_is_compared_with_the_other_nine():
    assert vqa_accuracy("blue", TEN) == 1.0
    # Each of the two who said red has one other beside, each of the eight two.
    assert vqa_accuracy("Red.", TEN) == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    assert vqa_accuracy("green", TEN) == 0.0


def test_answers_lose_their_punctuation_only_where_people_disagree():
    assert vqa_accuracy("dont", ["don't"] * 10) == 1.0  # the prediction gets an apostrophe
    assert vqa_accuracy("no way", ["no, way"] * 9 + ["maybe"]) == 1.0
    assert vqa_accuracy("no way", ["no, way"] * 10) == 0.0


def test_a_question_without_answers_has_no_score():
    with pytest.raises(ValueError, match="answers is empty"):
        vqa_accuracy("no", [])
    with pytest.raises(TypeError, match="pass a list"):
        vqa_accuracy("no", "no")


def test_ten_answers_are_scored_as_vqa_and_others_by_match():
    assert held_in_scores(["blue", "green"], [sample(TEN), sample(TEN)]) == {"vqa_accuracy": 0.5}
    choices = sample(["a dog"], "multiple_choice", choices=["a cat", "a dog"], label=1)
    assert held_in_scores(["Dog.", "cat"], [choices, choices]) == {"accuracy": 0.5}


def test_what_has_no_true_answer_is_left_out():
    assert held_in_scores(["x"], [sample(["a cat"], "caption")]) == {}
    own = sample(["yes"], "vqa", tags=["task=chat"])
    assert held_in_scores(["yes", "no"], [own, sample(["yes"], "vqa", tags=["task=vqa"])]) == {"accuracy": 0.0}


def test_too_difficult_questions_are_left_out_of_direct_answers_alone():
    tags = ["difficult_direct_answer=true"]
    assert held_in_scores(["blue"], [sample(TEN, tags=tags)]) == {}
    assert held_in_scores(["a"], [sample(["a"], "multiple_choice", choices=["a", "b"], tags=tags)]) == {"accuracy": 1.0}
