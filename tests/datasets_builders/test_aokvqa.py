import json

import pytest

from instructblip.datasets_builders import load
from instructblip.datasets_builders.official_files import BadRowError
from instructblip.datasets_builders.schema import tag

DIRECT = ["ride", "ride", "bus", "taxi", "travelling", "traffic", "taxi", "cab", "cab", "his ride"]


def record(image_id, question_id, **other):
    """A question with the fields that the owners' README and loader name."""
    return {
        "split": "train",
        "image_id": image_id,
        "question_id": question_id,
        "question": "What is the man by the bags awaiting?",
        "choices": ["skateboarder", "train", "delivery", "cab"],
        "correct_choice_idx": 3,
        "direct_answers": DIRECT,
        "difficult_direct_answer": False,
        "rationales": ["He has bags as if he is going someone."],
        **other,
    }


def write(folder, records, split="train"):
    (folder / f"aokvqa_v1p0_{split}.json").write_text(json.dumps(records))


@pytest.fixture
def aokvqa_folder(tmp_path, picture):
    """Two photographs with three questions, one of them in test; the official layout, by hand from the README's row."""
    picture(tmp_path / "train2017" / "000000299207.jpg")
    picture(tmp_path / "test2017" / "000000000001.jpg")
    write(tmp_path, [record(299207, "22MexNkBPpdZGX6sxbxVBH"), record(299207, "b", difficult_direct_answer=True)])
    test = record(1, "c")
    for name in ("correct_choice_idx", "direct_answers", "rationales"):
        del test[name]
    write(tmp_path, [test], "test")
    return tmp_path


def test_by_default_the_right_choice_is_the_answer(aokvqa_folder, cache):
    rows = load("aokvqa", aokvqa_folder, split="train", cache_dir=cache)
    assert rows["image_id"] == ["coco/000000299207"]
    first, second = rows[0]["samples"]
    assert first["id"] == "aokvqa/22MexNkBPpdZGX6sxbxVBH"
    assert first["choices"] == ["skateboarder", "train", "delivery", "cab"]
    assert (first["label"], first["answers"]) == (3, ["cab"])
    assert [tag(sample, "difficult_direct_answer") for sample in (first, second)] == ["false", "true"]


def test_direct_answers_come_without_choices(aokvqa_folder, cache):
    rows = load("aokvqa", aokvqa_folder, config="direct_answer", split="train", cache_dir=cache)
    sample = rows[0]["samples"][0]
    assert (sample["answers"], sample["choices"], sample["label"]) == (DIRECT, [], -1)
    generation = load("vqg_aokvqa", aokvqa_folder, split="train", cache_dir=cache)
    assert generation[0]["samples"] == rows[0]["samples"]


@pytest.mark.parametrize(("config", "choices"), [("multiple_choice", 4), ("direct_answer", 0)])
def test_test_questions_have_no_answers(aokvqa_folder, cache, config, choices):
    [sample] = load("aokvqa", aokvqa_folder, config=config, split="test", cache_dir=cache)[0]["samples"]
    assert (len(sample["choices"]), sample["label"], sample["answers"]) == (choices, -1, [])


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        ({"image_id": 5}, None, r"row 2: image '000000000005.jpg' is not in .*train2017"),
        ({"image_id": "5"}, None, "row 2: 'image_id' should be int, is str '5'"),
        ({"question_id": 5}, None, "row 2: 'question_id' should be str, is int 5"),
        ({"question_id": "a"}, None, "row 2: id 'aokvqa/a' again, first in row 1"),
        ({"question": ""}, None, "row 2: 'question' is blank"),
        ({"choices": ["a", "b", "c"]}, None, "row 2: 'choices' has 3 items: expected 4"),
        ({"choices": ["a", "b", "c", 4]}, None, r"row 2: 'choices\[3\]' should be str, is int 4"),
        ({"correct_choice_idx": 4}, None, "row 2: 'correct_choice_idx' is 4: expected 0 to 3"),
        ({"correct_choice_idx": None}, None, "row 2: 'correct_choice_idx' should be int, is NoneType None"),
        ({"difficult_direct_answer": 0}, None, "row 2: 'difficult_direct_answer' should be bool, is int 0"),
        ({"direct_answers": DIRECT[1:]}, "direct_answer", "row 2: 'direct_answers' has 9 items: expected 10"),
        ({"direct_answers": str(DIRECT)}, "direct_answer", "row 2: 'direct_answers' should be list, is str"),
    ],
)
def test_a_bad_row_is_named(aokvqa_folder, cache, change, config, message):
    write(aokvqa_folder, [record(299207, "a"), record(299207, "b") | change])
    with pytest.raises(BadRowError, match=rf"aokvqa_v1p0_train\.json, {message}"):
        load("aokvqa", aokvqa_folder, config=config, split="train", cache_dir=cache)


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (None, "question"),
        (None, "choices"),
        (None, "correct_choice_idx"),
        (None, "difficult_direct_answer"),
        ("direct_answer", "direct_answers"),
    ],
)
def test_a_missing_key_is_named(aokvqa_folder, cache, config, key):
    row = record(299207, "a")
    del row[key]
    write(aokvqa_folder, [row, [], record(299207, "b")])
    with pytest.raises(BadRowError, match=rf"row 1: '{key}' is missing"):
        load("aokvqa", aokvqa_folder, config=config, split="train", cache_dir=cache)
    rows = load("aokvqa", aokvqa_folder, config=config, split="train", cache_dir=cache, on_bad="skip")
    assert [sample["id"] for sample in rows[0]["samples"]] == ["aokvqa/b"]
