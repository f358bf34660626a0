import pytest

from instructblip.datasets_builders.schema import make_sample
from instructblip.eval_tasks.held_in import held_in_scores

TEN = ["red"] * 2 + ["blue"] * 8


def sample(answers, task="vqa", **rest):
    return {**make_sample("x", "what ?", answers, **rest), "task": task, "response": answers[0] if answers else ""}


def test_ten_answers_are_scored_as_vqa_and_others_by_match():
    assert held_in_scores(["blue", "green"], [sample(TEN), sample(TEN)]) == {"vqa_accuracy": 0.5}
    choices = sample(["a dog"], "multiple_choice", choices=["a cat", "a dog"], label=1)
    assert held_in_scores(["Dog.", "cat"], [choices, choices]) == {"accuracy": 0.5}


def test_form_does_not_count_in_vqa_accuracy():
    assert held_in_scores(["Yes."], [sample(["yes"] * 10)]) == {"vqa_accuracy": 1.0}  # the official script gives 0


def test_captions_are_scored_by_cider():
    captions = [sample(["a red bus"], "caption"), sample(["two dogs run"], "caption")]
    # Each n-gram length of the first has cosine 1 but that of four words: 10 x 3/4, and the second has nothing.
    assert held_in_scores(["A red bus.", "grass"], captions) == {"cider": pytest.approx(3.75)}
    assert held_in_scores(["A red bus."], [sample([], "caption")]) == {}  # a test set


def test_captions_among_questions_are_left_out():
    pairs = [sample(["a red bus"], "caption"), sample(["yes"], "vqa")]
    assert held_in_scores(["no", "yes"], pairs) == {"accuracy": 1.0}


def test_what_has_no_true_answer_is_left_out():
    assert held_in_scores(["x"], [sample(["a talk"], "chat")]) == {}
    assert held_in_scores(["x"], [sample(["is it a cat ?"], "vqg")]) == {}
    own = sample(["yes"], "vqa", tags=["task=chat"])
    assert held_in_scores(["yes", "no"], [own, sample(["yes"], "vqa", tags=["task=vqa"])]) == {"accuracy": 0.0}


def test_too_difficult_questions_are_left_out_of_direct_answers_alone():
    tags = ["difficult_direct_answer=true"]
    assert held_in_scores(["blue"], [sample(TEN, tags=tags)]) == {}
    assert held_in_scores(["a"], [sample(["a"], "multiple_choice", choices=["a", "b"], tags=tags)]) == {"accuracy": 1.0}
