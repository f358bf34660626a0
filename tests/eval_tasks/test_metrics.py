import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructblip.eval_tasks.metrics import (
    answer_accuracy,
    auroc,
    caption_score,
    choice_accuracy,
    cider,
    closed_and_open_accuracy,
    dialog_ranks,
    direct_answer_accuracy,
    f1,
    hateful_memes_scores,
    ivqa_accuracy,
    mean_of_scored,
    nocaps_scores,
    precision,
    recall,
    soft_accuracy,
    true_false_accuracy,
    yes_no_counts,
)

NAN, INF = math.nan, math.inf
RANKS_NOTHING = [[NAN, -1.0], [-1.0, NAN], [NAN, NAN], [-INF, -INF], [INF, -1.0]]


def doc(**fields):
    return {"id": "x/1", "answers": [], "choices": [], "label": -1, "tags": [], **fields}


def ll(*scores):
    """Log-likelihoods as `results` holds them."""
    return [list(scores)]


# ---- answers


def test_an_answer_is_right_if_it_equals_a_true_one_but_for_form():
    assert answer_accuracy(doc(answers=["two dogs", "cat"]), ["The 2 dogs."]) == {"accuracy": 1.0}
    assert answer_accuracy(doc(answers=["two dogs"]), ["dogs"]) == {"accuracy": 0.0}


def test_ten_people_give_three_forms_of_the_vqa_score():
    agreed = soft_accuracy(doc(answers=["red"] * 10), ["Red"])
    assert agreed == {"vqa_accuracy": 1.0, "vqa_accuracy_official": 0.0, "vqa_accuracy_lavis": 1.0}
    split = soft_accuracy(doc(answers=["Red"] * 2 + ["blue"] * 8), ["Red"])
    six = pytest.approx(0.6)
    assert split == {"vqa_accuracy": six, "vqa_accuracy_official": six, "vqa_accuracy_lavis": 0.0}


def test_direct_answers_of_difficult_questions_are_not_scored():
    answers = ["dog"] * 2 + ["cat"] * 8
    assert direct_answer_accuracy(doc(answers=answers), ["dog"]) == {
        "accuracy": pytest.approx(2 / 3),
        "vqa_accuracy": pytest.approx(0.6),
    }
    easy = doc(answers=answers, tags=["difficult_direct_answer=false"])
    assert direct_answer_accuracy(easy, ["Cat."]) == {"accuracy": 0.0, "vqa_accuracy": 1.0}
    hard = doc(answers=answers, tags=["difficult_direct_answer=true"])
    assert direct_answer_accuracy(hard, ["cat"]) == {"accuracy": None, "vqa_accuracy": None}


def test_two_of_five_people_make_an_answer_right():
    answers = ["spoon", "a spoon", "ladle", "bowl", "pan"]
    assert ivqa_accuracy(doc(answers=answers), ["Spoon"]) == {"accuracy": 1.0}
    assert ivqa_accuracy(doc(answers=answers), ["ladle"]) == {"accuracy": 0.5}


@pytest.mark.parametrize("score", [answer_accuracy, soft_accuracy, direct_answer_accuracy, ivqa_accuracy])
def test_a_test_set_without_answers_has_the_keys_and_no_scores(score):
    values = score(doc(), ["yes"])
    assert values.keys() == score(doc(answers=["yes"] * 10), ["yes"]).keys()
    assert set(values.values()) == {None}


def test_a_question_counts_for_its_own_answer_type_only():
    closed = doc(answers=["Yes"], tags=["answer_type=CLOSED", "organ=HEAD"])
    opened = doc(answers=["CT"], tags=["answer_type=OPEN"])
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


# ---- captions


def test_captions_are_scored_together():
    docs = [doc(id="c/1", answers=["a red bus"]), doc(id="c/2", answers=["two dogs run"])]
    values = [caption_score(docs[0], ["a red bus"]), caption_score(docs[1], ["nothing"])]
    assert values[0] == {"cider": {"id": "c/1", "caption": "a red bus", "references": ["a red bus"]}}
    # The first has all of its n-grams of 1 to 3 words, but none of 4: 10 x 3/4, and the mean of the two is half.
    assert cider([value["cider"] for value in values]) == pytest.approx(3.75)


def test_each_domain_of_nocaps_is_a_corpus_of_its_own():
    near = nocaps_scores(doc(answers=["a dog"], tags=["domain=near-domain"]), ["a cat"])
    assert list(near) == ["cider", "cider_in_domain", "cider_near_domain", "cider_out_domain"]
    assert near["cider"] == near["cider_near_domain"] == {"id": "x/1", "caption": "a cat", "references": ["a dog"]}
    assert near["cider_in_domain"] is near["cider_out_domain"] is None
    records = [{"id": n, "caption": text, "references": [text]} for n, text in enumerate(["a b c d", "e f g h", "a b"])]
    assert cider([records[0], None, records[1]]) == cider(records[:2]) != cider(records)
    assert math.isnan(cider([None, None]))


# ---- ranked candidates


@pytest.mark.parametrize(
    ("scores", "label", "accuracy"),
    [
        ([-3, -1, -2], 1, 1.0),
        ([-3, -1, -2], 2, 0.0),
        ([-1, -1, -2], 0, 1.0),  # a tie goes to the first
        ([-1, -1, -2], 1, 0.0),
        ([-INF, -9, -INF], 1, 1.0),  # impossible candidates are just unlikely
        ([-1, -2, -3], -1, None),
    ],
)
def test_the_likeliest_choice_counts(scores, label, accuracy):
    assert choice_accuracy(doc(label=label), ll(*scores)) == {"accuracy": accuracy}


@pytest.mark.filterwarnings("ignore:log-likelihoods that are NaN")
@pytest.mark.parametrize("scores", RANKS_NOTHING)
@pytest.mark.parametrize("label", [0, 1])
def test_scores_that_rank_nothing_are_never_right(scores, label):
    assert choice_accuracy(doc(label=label), ll(*scores)) == {"accuracy": 0.0}
    assert true_false_accuracy(doc(label=label), ll(*scores, *scores)) == {"accuracy": 0.0}
    assert yes_no_counts(doc(label=label), ll(*scores))["accuracy"] == 0.0
    values = hateful_memes_scores(doc(label=label), ll(*scores, *scores))
    assert (values["accuracy"], values["auroc"][0]) == (0.0, label)
    assert math.isnan(values["auroc"][1])
    values = dialog_ranks(doc(label=label, tags=["relevance=0:1 1:1"]), ll(*scores))
    assert (values["mean_rank"], values["recall_at_1"], values["ndcg"]) == (2.0, 0.0, 0.0)


def test_scores_that_rank_nothing_are_told():
    with pytest.warns(UserWarning, match="NaN or infinite count as a wrong answer"):
        choice_accuracy(doc(label=0), ll(NAN, -1.0))


@pytest.mark.parametrize(
    ("scores", "label", "accuracy"),
    [
        ([-3, -1, -2, -4], 1, 1.0),  # "true" is likeliest
        ([-3, -1, -2, -4], 0, 0.0),
        ([-3, -9, -2, -4], 0, 1.0),  # "no" is, though yes and true are not far
        ([-2, -9, -2, -4], 1, 1.0),  # a tie goes to the first, "yes"
        ([-2, -9, -2, -4], 0, 0.0),
        ([-2, -9, -2, -4], -1, None),
    ],
)
def test_a_statement_is_true_if_yes_or_true_is_the_likeliest_word(scores, label, accuracy):
    assert true_false_accuracy(doc(label=label), ll(*scores)) == {"accuracy": accuracy}


def test_a_meme_is_hateful_if_yes_and_true_together_are_likelier():
    scores = [math.log(value) for value in (0.2, 0.2, 0.3, 0.05)]  # "no" is the likeliest word
    values = hateful_memes_scores(doc(label=1), ll(*scores))
    assert values == {"accuracy": 1.0, "auroc": (1, pytest.approx(math.log(0.4 / 0.35)))}
    even = hateful_memes_scores(doc(label=0), ll(-1, -2, -1, -2))
    assert even == {"accuracy": 0.0, "auroc": (0, 0.0)}  # a tie is "hateful", as the words that come first say
    assert hateful_memes_scores(doc(), ll(-1, -2, -1, -2)) == {"accuracy": None, "auroc": None}


def test_pope_counts_what_was_said_and_what_is():
    values = yes_no_counts(doc(label=0, choices=["no", "yes"]), ll(-1, -2))
    pair = (1, 0)  # said yes, is no
    assert values == {"accuracy": 0.0, "precision": pair, "recall": pair, "f1": pair, "yes_share": 1.0}
    assert yes_no_counts(doc(label=0), ll(-2, -1))["accuracy"] == 1.0
    assert yes_no_counts(doc(label=1), ll(-1, -1))["accuracy"] == 1.0  # a tie goes to the first, "yes"
    with pytest.raises(ValueError, match="x/1 has no label: POPE's metrics need 1"):
        yes_no_counts(doc(), ll(-1, -2))


def test_a_task_with_other_candidates_is_refused():
    with pytest.raises(ValueError, match=r"2 log-likelihoods: this metric needs doc_to_choice to be \['yes', 'true'"):
        true_false_accuracy(doc(label=1), ll(-1, -2))
    with pytest.raises(ValueError, match="4 log-likelihoods"):
        yes_no_counts(doc(label=1), ll(-1, -2, -3, -4))


# ---- Visual Dialog


def ranks(scores, label, tags=()):
    return dialog_ranks(doc(label=label, tags=list(tags)), ll(*scores))


def test_the_place_of_the_right_option_makes_the_ranks():
    scores = [-float(place) for place in range(100)]
    assert ranks(scores, 6) == {
        "mrr": 1 / 7,
        "recall_at_1": 0.0,
        "recall_at_5": 0.0,
        "recall_at_10": 1.0,
        "mean_rank": 7.0,
        "ndcg": None,
    }
    assert ranks(scores, 0)["mrr"] == ranks(scores, 0)["recall_at_1"] == 1.0


def test_an_equally_likely_option_counts_half_a_place():
    assert ranks([-1, -1, -2], 1)["mean_rank"] == 1.5
    assert ranks([-1, -1, -2], 1)["recall_at_1"] == 0.0
    assert ranks([-1.0] * 100, 0)["mean_rank"] == 50.5  # nothing learned is no right answer
    assert ranks([-1, -2, -INF, -INF], 3)["mean_rank"] == 3.5


@given(st.lists(st.integers(-5, 0), min_size=2, max_size=12), st.randoms(use_true_random=False))
def test_the_order_of_the_options_does_not_matter(scores, random):
    order = list(range(len(scores)))
    random.shuffle(order)
    tag = "relevance=" + " ".join(f"{option}:{1 / (1 + option)}" for option in range(0, len(scores), 2))
    moved = "relevance=" + " ".join(f"{order.index(option)}:{1 / (1 + option)}" for option in range(0, len(scores), 2))
    there = ranks([scores[option] for option in order], order.index(0), [moved])
    assert ranks(scores, 0, [tag]) == pytest.approx(there)


def test_ndcg_sums_relevance_over_as_many_places_as_are_relevant():
    # Likeliest first: options 2, 0, 1, 3; three are relevant, so three places count.
    found = (0.5 + 1.0 / math.log2(3)) / (1.0 + 0.5 / math.log2(3) + 0.2 / math.log2(4))
    values = ranks([-2, -3, -1, -4], 0, ["relevance=0:1.0 2:0.5 3:0.2"])
    assert values["ndcg"] == pytest.approx(found)
    assert ranks([-1, -4, -2, -3], 0, ["relevance=0:1.0 2:0.5 3:0.2"])["ndcg"] == pytest.approx(1.0)


def test_equally_likely_options_share_their_relevance():
    both = ranks([-1, -1, -2], 0, ["relevance=0:1.0"])["ndcg"]
    assert both == pytest.approx(0.5)  # one place counts, and half of the time the right one has it
    assert ranks([-1, -1, -2], 1, ["relevance=1:1.0"])["ndcg"] == pytest.approx(both)


def test_ndcg_needs_an_annotation_in_which_something_is_relevant():
    assert ranks([-1, -2], 0)["ndcg"] is None
    assert ranks([-1, -2], 0, ["relevance="])["ndcg"] is None
    assert ranks([-1, -2], 0, ["relevance=0:0.0"])["ndcg"] is None
    unknown = ranks([-1, -2], -1, ["relevance=0:1.0"])
    assert (unknown["ndcg"], unknown["mrr"]) == (1.0, None)


@pytest.mark.parametrize("tag", ["relevance=7:1.0", "relevance=0", "relevance=a:b"])
def test_a_broken_annotation_is_named(tag):
    with pytest.raises(ValueError, match="^x/1: the tag relevance='.*' is not OPTION:VALUE ... for 2 options"):
        ranks([-1, -2], 0, [tag])


# ---- aggregations


def test_the_mean_leaves_out_documents_without_the_score():
    assert mean_of_scored([1.0, None, 0.0, None, 0.5]) == 0.5
    assert math.isnan(mean_of_scored([None, None]))


@settings(deadline=None)  # the first call imports scikit-learn
@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from([-INF, -1.5, 0.0, 0.1, 2.0, INF])), min_size=1))
def test_auroc_is_how_often_a_one_scores_above_a_zero(pairs):
    ones = [score for label, score in pairs if label]
    zeros = [score for label, score in pairs if not label]
    wins = [1.0 if one > zero else 0.5 if one == zero else 0.0 for one in ones for zero in zeros]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = auroc(pairs)
    assert value == pytest.approx(np.mean(wins)) if wins else math.isnan(value)


def test_auroc_takes_a_missing_score_for_the_worst_one():
    assert auroc([(1, NAN), (0, -5.0), (1, 3.0)]) == 0.5
    assert auroc([[0, NAN], [0, -5.0], [1, 3.0], None]) == 0.5
    assert auroc([(1, NAN), (0, NAN)]) == 0.0


def test_auroc_of_one_label_is_nan_with_a_warning():
    with pytest.warns(UserWarning, match="2 documents with one label"):
        assert math.isnan(auroc([(1, 0.3), (1, 0.5)]))


def test_precision_recall_and_f1_are_of_yes():
    pairs = [(1, 1)] * 3 + [(1, 0)] * 1 + [(0, 1)] * 2 + [(0, 0)] * 4  # said, is
    assert precision(pairs) == 3 / 4
    assert recall(pairs) == 3 / 5
    assert f1(pairs) == pytest.approx(2 * (3 / 4) * (3 / 5) / (3 / 4 + 3 / 5))
    assert precision([(0, 1)]) == recall([(1, 0)]) == f1([(0, 1)]) == f1([(0, 0)]) == 0.0


def test_metrics_import_nothing_but_numpy():
    code = """
import sys, instructblip
before = {*sys.modules}
import instructblip.eval_tasks.metrics, instructblip.eval_tasks.intervals
print({name.split(".")[0] for name in {*sys.modules} - before})
"""
    new = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not [
        name for name in ("lm_eval", "torch", "transformers", "datasets", "sklearn", "scipy") if f"'{name}'" in new
    ]
