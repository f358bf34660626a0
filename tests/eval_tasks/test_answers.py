import pytest

from instructblip.eval_tasks.answers import vqa_accuracy

TEN = ["red"] * 2 + ["blue"] * 8


def test_a_person_is_compared_with_the_other_nine():
    assert vqa_accuracy("blue", TEN) == 1.0
    # Each of the two who said red has one other beside, each of the eight two.
    assert vqa_accuracy("Red.", TEN) == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    assert vqa_accuracy("green", TEN) == 0.0
