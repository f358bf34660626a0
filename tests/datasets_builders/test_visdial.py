"""The fixture is written by hand from the documented format; no file of Visual Dialog is at hand."""

import copy
import json

import pytest

from instructblip.datasets_builders import load
from instructblip.datasets_builders.official_files import BadRowError
from instructblip.datasets_builders.table import TABLE
from instructblip.datasets_builders.templates import format_instruction

QUESTIONS = [f"question {number}" for number in range(20)]
ANSWERS = [f"answer {number}" for number in range(150)]


def turn(number):
    """Question `number`, answered by answer 100 + `number`, which is option `number`."""
    options = [100 + number if place == number else place for place in range(100)]
    return {"question": number, "answer": 100 + number, "answer_options": options, "gt_index": number}


def dialog(image_id, **other):
    return {"image_id": image_id, "caption": "a man in a suit ", "dialog": [turn(n) for n in range(10)], **other}


def write(folder, dialogs, part="val", **lists):
    data = {"dialogs": dialogs, "questions": QUESTIONS, "answers": ANSWERS, **lists}
    content = {"version": "1.0", "split": f"{part}2018", "data": data}
    (folder / f"visdial_1.0_{part}.json").write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path, picture):
    place = tmp_path / "visdial"
    for name in (
        "VisualDialog_val2018/VisualDialog_val2018_000000185565.jpg",
        "VisualDialog_val2018/VisualDialog_val2018_000000000007.jpg",
        "VisualDialog_test2018/VisualDialog_test2018_000000000007.jpg",
        "train2014/COCO_train2014_000000000007.jpg",
        "val2014/COCO_val2014_000000000042.jpg",
    ):
        picture(place / name)
    return place


def test_ten_rounds_are_ten_samples_with_the_rounds_before_as_history(folder, cache):
    write(folder, [dialog(185565)])
    (row,) = load("visdial", folder, split="validation", cache_dir=cache)
    assert row["image_id"] == "visdial/validation/000000185565"
    assert [sample["id"] for sample in row["samples"]] == [f"visdial/validation/185565/{n}" for n in range(1, 11)]
    first, third = row["samples"][0], row["samples"][2]
    assert (first["question"], first["history"], first["context"]) == ("question 0", [], "a man in a suit")
    assert (third["question"], third["answers"], third["context"]) == ("question 2", ["answer 102"], "a man in a suit")
    assert third["history"] == [
        {"question": "question 0", "answer": "answer 100"},
        {"question": "question 1", "answer": "answer 101"},
    ]


def test_the_hundred_options_keep_their_order(folder, cache):
    write(folder, [dialog(185565)])
    samples = load("visdial", folder, split="validation", cache_dir=cache)[0]["samples"]
    for number, sample in enumerate(samples):
        expected = [*ANSWERS[:number], f"answer {100 + number}", *ANSWERS[number + 1 : 100]]
        assert (sample["choices"], sample["label"]) == (expected, number)


def test_training_images_are_those_of_coco(folder, tmp_path, cache):
    write(folder, [dialog(7), dialog(42)], "train")
    rows = load("visdial", folder, split="train", cache_dir=cache)
    assert rows["image_id"] == ["coco/000000000007", "coco/000000000042"]
    assert sum(map(len, rows["samples"])) == 20
    write(tmp_path, [dialog(7), dialog(42)], "train")
    dirs = (str(folder / "train2014"), str(folder / "val2014"))
    assert len(load("visdial", tmp_path, split="train", cache_dir=cache, image_dirs=dirs)) == 2


def test_the_test_set_asks_the_last_round_without_an_answer(folder, cache):
    rounds = [{"question": n, "answer": n} for n in range(3)]
    last = {"question": 3, "answer_options": list(range(100))}
    write(folder, [dialog(7, dialog=[*rounds, last])], "test")
    (row,) = load("visdial", folder, split="test", cache_dir=cache)
    (sample,) = row["samples"]
    assert (sample["id"], sample["question"]) == ("visdial/test/7/4", "question 3")
    assert (sample["answers"], sample["label"], len(sample["choices"])) == ([], -1, 100)
    assert len(sample["history"]) == 3


def broken(change):
    """A dialogue after `change`, which gets it to spoil."""
    spoilt = copy.deepcopy(dialog(7))
    change(spoilt)
    return spoilt


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("caption"), "'caption' is missing"),
        (lambda d: d.update(image_id="7"), "'image_id' should be int, is str '7'"),
        (lambda d: d.update(image_id=8), r"image 'VisualDialog_val2018_000000000008\.jpg' is not in .*val2018"),
        (lambda d: d["dialog"].pop(), "'dialog' should have 10 rounds, has 9"),
        (lambda d: d["dialog"][1].pop("answer"), "round 2: 'answer' is missing"),
        (lambda d: d["dialog"][1].pop("answer_options"), "round 2: 'answer_options' is missing"),
        (lambda d: d["dialog"][1].pop("gt_index"), "round 2: 'gt_index' is missing"),
        (lambda d: d["dialog"][1].update(gt_index=100), "round 2: 'gt_index' is 100: expected 0 to 99"),
        (lambda d: d["dialog"][1].update(gt_index=3), "round 2: option 'gt_index' is 'answer 3', not 'answer 101'"),
        (lambda d: d["dialog"][1].update(question=20), "round 2: 'question' is 20: expected 0 to 19"),
        (lambda d: d["dialog"][1].update(question=1.0), "round 2: 'question' should be int, is float 1.0"),
        (lambda d: d["dialog"][1]["answer_options"].pop(), "round 2: 'answer_options' should be 100, are 99"),
        (
            lambda d: d["dialog"][1]["answer_options"].__setitem__(5, 150),
            r"round 2: 'answer_options\[5\]' stands for no text: int 150",
        ),
        (lambda d: d["dialog"].__setitem__(1, 3), "round 2: expected an object with 'question', found int 3"),
    ],
)
def test_a_bad_dialogue_is_named(folder, cache, change, message):
    write(folder, [dialog(185565), broken(change)])
    with pytest.raises(BadRowError, match=rf"visdial_1\.0_val\.json, row 2: in 'dialogs': {message}"):
        load("visdial", folder, split="validation", cache_dir=cache)
    assert len(load("visdial", folder, split="validation", cache_dir=cache, on_bad="skip")) == 1


def test_a_text_that_is_none_is_named_where_it_is_used(folder, cache):
    write(folder, [dialog(7)], questions=[*QUESTIONS[:4], None, *QUESTIONS[5:]])
    with pytest.raises(BadRowError, match="row 1: in 'dialogs': round 5: 'question' is 4, which stands for no text"):
        load("visdial", folder, split="validation", cache_dir=cache)


def test_a_file_without_its_lists_is_named(folder, cache):
    (folder / "visdial_1.0_val.json").write_text(json.dumps({"data": {"questions": [], "dialogs": []}}))
    with pytest.raises(ValueError, match=r"visdial_1\.0_val\.json: 'answers' is missing"):
        load("visdial", folder, split="validation", cache_dir=cache, on_bad="skip")


def test_the_prompt_is_the_papers_with_the_caption_as_the_start_of_the_history(folder, cache):
    write(folder, [dialog(7)])
    samples = load("visdial", folder, split="validation", cache_dir=cache)[0]["samples"]
    assert format_instruction(TABLE["visdial"].prompt, samples[2]) == (
        "Dialog history: a man in a suit question 0 answer 100 question 1 answer 101 \n "
        "Question: question 2 Short answer:"
    )


def dense(folder, *rounds):
    entries = [{"image_id": image, "round_id": number, "gt_relevance": values} for image, number, values in rounds]
    (folder / "visdial_1.0_val_dense_annotations.json").write_text(json.dumps(entries))


def test_dense_annotations_become_a_tag_of_their_round(folder, cache):
    write(folder, [dialog(185565), dialog(7)])
    values = [0.0] * 100
    values[17], values[42] = 0.6, 1
    dense(folder, (185565, 3, values), (7, 10, [0] * 100))
    rows = load("visdial", folder, split="validation", cache_dir=cache)
    tags = {sample["id"]: sample["tags"] for row in rows for sample in row["samples"] if sample["tags"]}
    assert tags == {
        "visdial/validation/185565/3": ["relevance=17:0.6 42:1"],
        "visdial/validation/7/10": ["relevance="],
    }


def test_a_bad_dense_annotation_is_named(folder, cache):
    write(folder, [dialog(185565)])
    dense(folder, (185565, 3, [0.0] * 99))
    with pytest.raises(BadRowError, match=r"dense_annotations\.json, row 1: 'gt_relevance' should be 100 numbers"):
        load("visdial", folder, split="validation", cache_dir=cache)


def test_rows_built_before_the_dense_annotations_came_are_not_used_again(folder, cache):
    write(folder, [dialog(185565)])
    load("visdial", folder, split="validation", cache_dir=cache)
    dense(folder, (185565, 1, [1.0] + [0.0] * 99))
    rows = load("visdial", folder, split="validation", cache_dir=cache)
    assert rows[0]["samples"][0]["tags"] == ["relevance=0:1"]
