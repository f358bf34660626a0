import math
import subprocess
import sys

import pytest

from instructblip.eval_tasks.answers import exact_match, normalise_answer
from instructblip.eval_tasks.metrics import closed_and_open_accuracy, mean_of_scored, true_false_accuracy


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Two dogs.", "2 dogs"),
        ("  a\tred\nball ", "red ball"),
        ("Posterior-Anterior", "posterior anterior"),  # a hyphen inside a word becomes a blank
        ("left - right", "left right"),  # beside a blank it goes
        ("yes!", "yes"),
        ("1,000 dogs!", "1000 dogs"),  # a comma between digits makes every mark go
        ("2.5 cm", "2.5 cm"),
        ("5 cm.", "5 cm"),
        ("none", "0"),
        ("dont", "don't"),
        ("couldntve", "couldntve"),  # two apostrophes missing: not in the table
        ("couldnt've", "couldn't've"),
        ("yall'll", "y'all'll"),
        ("isn't", "isn't"),
        ("somebody'd", "somebodyd"),  # the official table's own slip
        ("an", ""),
        ("", ""),
    ],
)
def test_answers_are_normalised_by_the_rules_of_the_vqa_evaluation(text, normal):
    assert normalise_answer(text) == normal


def test_the_official_scripts_limit_of_32_periods_is_kept():
    assert normalise_answer("." * 40) == "." * 8


def test_exact_match_compares_normalised_forms_of_both_sides():
    assert exact_match("Chest X-ray", ["the chest x-ray."]) == 1.0
    assert exact_match("x ray", ["ct", "X-ray"]) == 1.0
    assert exact_match("x rays", ["ct", "X-ray"]) == 0.0


def test_one_string_of_answers_is_refused():
    with pytest.raises(TypeError, match="'yes'"):
        exact_match("y", "yes")


def test_a_question_counts_for_its_own_answer_type_only():
    closed = {"answers": ["Yes"], "tags": ["answer_type=CLOSED", "organ=HEAD"]}
    opened = {"answers": ["CT"], "tags": ["answer_type=OPEN"]}
    assert closed_and_open_accuracy(closed, ["yes"]) == {
        "accuracy": 1.0,
        "accuracy_closed": 1.0,
        "accuracy_open": None,
    }
    assert closed_and_open_accuracy(opened, ["mri"]) == {
        "accuracy": 0.0,
        "accuracy_closed": None,
        "accuracy_open": 0.0,
    }


def test_the_mean_leaves_out_documents_without_the_score():
    assert mean_of_scored([1.0, None, 0.0, None, 0.5]) == 0.5
    assert math.isnan(mean_of_scored([None, None]))


@pytest.mark.parametrize(
    ("scores", "label", "accuracy"),
    [
        ([-3, -1, -2, -4], 1, 1.0),  # "true" is likeliest
        ([-3, -1, -2, -4], 0, 0.0),
        ([-3, -9, -2, -4], 0, 1.0),  # "no" is, though yes and true are not far
        ([-2, -9, -2, -4], 1, 1.0),  # a tie goes to the first, "yes"
    ],
)
def test_a_statement_is_true_if_yes_or_true_is_the_likeliest_word(scores, label, accuracy):
    assert true_false_accuracy({"label": label}, [scores]) == {"accuracy": accuracy}


def test_metrics_do_not_need_lm_eval():
    code = "import sys, instructblip.eval_tasks.metrics; sys.exit('lm_eval' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
