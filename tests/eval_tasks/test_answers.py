"""The official scripts are restated here step by step, so that two readings of them have to agree."""

import gzip
import json
import re
from collections import Counter
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructblip.eval_tasks.answers import (
    exact_match,
    normalise_answer,
    normalise_answer_evalai,
    three_people_accuracy,
    two_people_accuracy,
    vqa_accuracy,
    vqa_accuracy_lavis,
    vqa_accuracy_official,
)

ALPHABET = st.text("aAnN tThe12,.!?-'s/\"\n\t", max_size=14)
WORDS = st.sampled_from(
    ["a", "The", "none", "Two", "dont", "couldnt've", "red,", "1,000", "dog's", "x-ray", "yes.", "?"]
)
ANSWER = st.one_of(ALPHABET, st.lists(WORDS, max_size=4).map(" ".join))

# ---- the scripts again


@cache
def process_punctuation(text):
    result = text
    for mark in [
        ";",
        "/",
        "[",
        "]",
        '"',
        "{",
        "}",
        "(",
        ")",
        "=",
        "+",
        "\\",
        "_",
        "-",
        ">",
        "<",
        "@",
        "`",
        ",",
        "?",
        "!",
    ]:
        beside_a_blank = mark + " " in text or " " + mark in text
        if beside_a_blank or re.search(r"(\d)(\,)(\d)", text) is not None:
            result = result.replace(mark, "")
        else:
            result = result.replace(mark, " ")
    return re.sub(r"(?!<=\d)(\.)(?!\d)", "", result, count=32)


def process_digits_and_articles(text, contractions):
    numbers = "none zero one two three four five six seven eight nine ten".split()
    kept = []
    for word in text.lower().split():
        if word in numbers:
            word = str(max(0, numbers.index(word) - 1))
        if word not in ("a", "an", "the"):
            kept.append(word)
    return " ".join(contractions.get(word, word) for word in kept)


def official_accuracy(prediction, answers, contractions):
    def trim(text):
        return text.replace("\n", " ").replace("\t", " ").strip()

    people = [{"answer": trim(answer), "answer_id": number} for number, answer in enumerate(answers)]
    prediction = trim(prediction)
    if len({person["answer"] for person in people}) > 1:
        for person in people:
            person["answer"] = process_digits_and_articles(process_punctuation(person["answer"]), contractions)
        prediction = process_digits_and_articles(process_punctuation(prediction), contractions)
    scores = []
    for person in people:
        others = [other for other in people if other != person]
        agreeing = [other for other in others if other["answer"] == prediction]
        scores.append(min(1, len(agreeing) / 3))
    return sum(scores) / len(scores)


def evalai_accuracy(prediction, answers, contractions):
    def process(text):
        text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
        text = text.replace("\n", " ").replace("\t", " ").strip()
        return process_digits_and_articles(process_punctuation(text), contractions)

    numbered = list(enumerate(process(answer) for answer in answers))
    score_of = {}
    for unique in {answer for _, answer in numbered}:
        scores = []
        for one in numbered:
            matching = [other for other in numbered if other != one and other[1] == unique]
            scores.append(min(1, len(matching) / 3))
        score_of[unique] = sum(scores) / len(scores)
    return score_of.get(process(prediction), 0.0)


# Some pairs of the scripts' table, with its slip and a word that needs two apostrophes.
PAIRS = {
    "aint": "ain't",
    "dont": "don't",
    "cant": "can't",
    "isnt": "isn't",
    "whats": "what's",
    "oclock": "o'clock",
    "shes": "shes",
    "couldnt've": "couldn't've",
    "couldn'tve": "couldn't've",
    "'ows'at": "'ow's'at",
    "yall'd've": "y'all'd've",
    "somebody'd": "somebodyd",
    "twas": "'twas",
    "ive": "ive",
    "hes": "he's",
    "theyre": "they're",
    "youre": "you're",
    "thats": "that's",
    "its": "its",
    "im": "im",
    "didnt": "didn't",
    "doesnt": "doesn't",
    "wont": "won't",
    "were": "were",
}


@given(ANSWER, st.lists(ANSWER, min_size=1, max_size=10))
def test_both_scores_equal_the_scripts_restated(prediction, answers):
    answers = [*answers, prediction]
    assert vqa_accuracy_official(prediction, answers) == pytest.approx(official_accuracy(prediction, answers, PAIRS))
    assert vqa_accuracy(prediction, answers) == pytest.approx(evalai_accuracy(prediction, answers, PAIRS))


@pytest.mark.parametrize(
    ("file", "spoken", "expected"),
    [
        # Means of 100 x (official, EvalAI), where the most frequent answer of each question is predicted, spoken so.
        ("vqav2_subset/vqa_annotatons_valid.json.gz", str, (96.6, 96.6)),
        ("vqav2_subset/vqa_annotatons_valid.json.gz", str.title, (72.9, 96.6)),
        ("vizwiz/val_annotations_vqa_format.json", str, (94.11, 94.11)),
        ("vizwiz/val_annotations_vqa_format.json", "{}.".format, (86.75, 94.11)),
    ],
)
def test_real_answers_score_as_with_the_scripts(real_data, file, spoken, expected):
    with (gzip.open if file.endswith("gz") else open)(real_data / file) as lines:
        questions = [[person["answer"] for person in record["answers"]] for record in json.load(lines)["annotations"]]
    official, evalai = [], []
    for answers in questions:
        prediction = spoken(Counter(answers).most_common(1)[0][0])
        official.append(vqa_accuracy_official(prediction, answers))
        evalai.append(vqa_accuracy(prediction, answers))
        assert official[-1] == pytest.approx(official_accuracy(prediction, answers, PAIRS)), (prediction, answers)
        assert evalai[-1] == pytest.approx(evalai_accuracy(prediction, answers, PAIRS)), (prediction, answers)
    assert tuple(round(100 * sum(scores) / len(scores), 2) for scores in (official, evalai)) == expected


# ---- the normal forms


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


@pytest.mark.parametrize(
    ("text", "official", "evalai"),
    [
        ("red,blue", "red blue", "redblue"),
        ("what?no", "what no", "whatno"),
        ("The dog's", "dog's", "dog 's"),
        ("that's", "that's", "that 's"),  # so "thats" is not "that's" there
        ("thats", "that's", "that's"),
        ("1,000-2", "10002", "1000 2"),  # no comma is left to make the hyphen go
        ("The Two dogs.", "2 dogs", "2 dogs"),
    ],
)
def test_the_two_normal_forms_differ_in_commas_and_possessives(text, official, evalai):
    assert (normalise_answer(text), normalise_answer_evalai(text)) == (official, evalai)


def test_the_official_scripts_limit_of_32_periods_is_kept():
    assert normalise_answer("." * 40) == "." * 8


# ---- the scores


def test_exact_match_compares_normalised_forms_of_both_sides():
    assert exact_match("Chest X-ray", ["the chest x-ray."]) == 1.0
    assert exact_match("x ray", ["ct", "X-ray"]) == 1.0
    assert exact_match("x rays", ["ct", "X-ray"]) == 0.0


@pytest.mark.parametrize(("said_so", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_a_person_is_compared_with_the_other_nine(said_so, score):
    # n people with n - 1 others beside, 10 - n with n: for two (2 x 1/3 + 8 x 2/3) / 10.
    answers = ["red"] * said_so + [f"blue {number}" for number in range(10 - said_so)]
    assert vqa_accuracy("Red.", answers) == pytest.approx(score)
    assert vqa_accuracy_official("red", answers) == pytest.approx(score)


def test_the_official_script_compares_texts_as_they_are_where_all_agree():
    assert vqa_accuracy_official("Yes", ["yes"] * 10) == 0.0
    assert vqa_accuracy_official(" yes\n", ["yes"] * 9 + ["yes "]) == 1.0  # blanks at the ends do not count
    assert vqa_accuracy_official("Yes", ["yes"] * 9 + ["no"]) == 1.0
    assert vqa_accuracy("Yes", ["yes"] * 10) == 1.0


def test_lavis_normalises_the_prediction_always_and_the_answers_hardly():
    assert vqa_accuracy_lavis("Yes.", ["yes"] * 10) == 1.0
    assert vqa_accuracy_lavis("Yes", ["Yes"] * 10) == vqa_accuracy_lavis("Yes", ["Yes"] * 9 + ["no"]) == 0.0
    assert vqa_accuracy_lavis("two", ["two"] * 10) == 0.0  # "2" is no "two"
    assert vqa_accuracy_lavis("red blue", ["red/blue"] * 9 + ["red"]) == 1.0  # marks go where people disagree
    assert vqa_accuracy_lavis("red blue", ["red/blue"] * 10) == 0.0


def test_three_people_make_a_direct_answer_right_and_two_one_of_ivqa():
    answers = ["dog", "dog ", "Dog", "a dog", "cat"]
    assert three_people_accuracy(" dog", answers) == pytest.approx(2 / 3)  # as they are, but for outer blanks
    assert three_people_accuracy("dog", ["dog"] * 4) == 1.0
    assert two_people_accuracy("cat.", answers) == 0.5  # normalised
    assert two_people_accuracy("dog", answers) == 1.0
    assert two_people_accuracy("bird", answers) == three_people_accuracy("bird", answers) == 0.0


@pytest.mark.parametrize(
    "score",
    [exact_match, vqa_accuracy, vqa_accuracy_official, vqa_accuracy_lavis, three_people_accuracy, two_people_accuracy],
)
def test_one_string_of_answers_is_refused(score):
    with pytest.raises(TypeError, match="'yes': pass a list of answers"):
        score("y", "yes")


@pytest.mark.parametrize("score", [vqa_accuracy, vqa_accuracy_official, vqa_accuracy_lavis])
def test_a_question_without_answers_has_no_vqa_score(score):
    with pytest.raises(ValueError, match="answers is empty"):
        score("no", [])
