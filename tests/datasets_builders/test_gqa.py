"""The fixture is written by hand from the documented format; no file of GQA is at hand."""

import json

import pytest

from instructblip.datasets_builders import load
from instructblip.datasets_builders.official_files import BadRowError
from instructblip.datasets_builders.schema import make_sample, tag
from instructblip.datasets_builders.table import TABLE
from instructblip.datasets_builders.templates import format_instruction

TYPES = {"detailed": "weatherVerify", "semantic": "global", "structural": "verify"}


def entry(image="n161313", question="Is it overcast?", answer="no", **other):
    rest = {"isBalanced": True, "groups": {"global": None, "local": "10c-clear"}, "entailed": [], "equivalent": []}
    full = {"fullAnswer": "No, it is clear.", "types": TYPES, "semantic": [], "semanticStr": "select: scene->verify"}
    return {"imageId": image, "question": question, "answer": answer, **full, **rest, **other}


@pytest.fixture
def folder(tmp_path, picture):
    for image in ("n161313", "2354786"):
        picture(tmp_path / "gqa" / "images" / f"{image}.jpg")
    return tmp_path / "gqa"


def write(folder, entries, name="testdev_balanced_questions.json"):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(entries if isinstance(entries, str) else json.dumps(entries))


def test_questions_about_one_image_share_its_row(folder, cache):
    second = entry("2354786", "What is blue?", "bag", types={**TYPES, "structural": "query"})
    write(folder, {"07": entry(), "201640614": second, "9": entry(question="Is it clear? ", answer="yes")})
    rows = load("gqa", folder, split="testdev", cache_dir=cache)
    assert rows["image_id"] == ["gqa/n161313", "vg/2354786"]
    first, third = rows[0]["samples"]
    assert (first["id"], first["question"], first["answers"]) == ("gqa/07", "Is it overcast?", ["no"])
    assert (third["id"], third["question"], third["answers"]) == ("gqa/9", "Is it clear?", ["yes"])
    (other,) = rows[1]["samples"]
    assert [tag(other, name) for name in ("structural", "semantic", "detailed")] == ["query", "global", "weatherVerify"]


def test_each_split_is_found_as_the_archive_names_it(folder, cache):
    for split in ("train", "val"):
        write(folder, {split: entry()}, f"questions1.2/{split}_balanced_questions.json")
    rows = load("gqa", folder, cache_dir=cache)
    assert {split: part[0]["samples"][0]["id"] for split, part in rows.items()} == {
        "train": "gqa/train",
        "validation": "gqa/val",
    }


def test_the_test_set_has_no_answers(folder, cache):
    write(folder, {"1": {"imageId": "n161313", "question": "Is it clear?"}}, "test_balanced_questions.json")
    (sample,) = load("gqa", folder, split="test", cache_dir=cache)[0]["samples"]
    assert (sample["question"], sample["answers"], sample["tags"]) == ("Is it clear?", [], [])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({key: value for key, value in entry().items() if key != "answer"}, "'answer' is missing"),
        (entry(answer=3), "'answer' should be str, is int 3"),
        (entry(question=" "), "'question' is blank"),
        (entry(types=None), "'types' should be dict, is NoneType None"),
        (entry(types={**TYPES, "semantic": 4}), "'semantic' should be str or NoneType, is int 4"),
        (entry(types={"semantic": "rel"}), "'structural' is missing"),
        (entry("n0"), "image 'n0.jpg' is not in .*images"),
        (entry("../n161313"), "image '../n161313.jpg' is not a name inside the image folder"),
        ([entry()], "expected an object with 'imageId', found a list of 1"),
    ],
)
def test_a_bad_question_is_named(folder, cache, bad, message):
    write(folder, {"1": entry(), "2": bad})
    with pytest.raises(BadRowError, match=rf"testdev_balanced_questions\.json, row 2: {message}"):
        load("gqa", folder, split="testdev", cache_dir=cache)
    assert len(load("gqa", folder, split="testdev", cache_dir=cache, on_bad="skip")[0]["samples"]) == 1


def test_a_question_id_that_comes_twice_is_named(folder, cache):
    write(folder, f'{{"1": {json.dumps(entry())}, "1": {json.dumps(entry())}}}')
    with pytest.raises(BadRowError, match="row 2: id 'gqa/1' again, first in row 1"):
        load("gqa", folder, split="testdev", cache_dir=cache)


@pytest.mark.parametrize(("key", "message"), [("", "is blank"), ("\\ud800", "is not valid text")])
def test_a_question_id_that_is_no_text_is_named(folder, cache, key, message):
    write(folder, f'{{"{key}": {json.dumps(entry())}}}')
    with pytest.raises(BadRowError, match=f"row 1: 'question id' {message}"):
        load("gqa", folder, split="testdev", cache_dir=cache)


def test_a_file_that_is_cut_off_is_named(folder, cache):
    write(folder, json.dumps({"1": entry(), "2": entry()})[:-9])
    with pytest.raises(ValueError, match=r"testdev_balanced_questions\.json, row 2: not JSON"):
        load("gqa", folder, split="testdev", cache_dir=cache, on_bad="skip")


def test_the_hub_copy_has_the_same_sample(folder, cache):
    write(folder, {"07": entry()})
    (row,) = load("gqa", folder, split="testdev", cache_dir=cache)
    copy = next(copy for copy in TABLE["gqa"].hub if "testdev" in copy.splits)
    (record,) = copy.records({"id": "07", **entry()}, 1, "testdev")
    assert (copy.image_id(record), [make_sample(**copy.sample(record))]) == (row["image_id"], row["samples"])


def test_images_may_lie_elsewhere(folder, tmp_path, cache):
    write(tmp_path, {"1": entry()})
    assert len(load("gqa", tmp_path, split="testdev", cache_dir=cache, image_dirs=(str(folder / "images"),))) == 1


def test_the_prompt_is_the_papers(folder, cache):
    write(folder, {"1": entry()})
    (sample,) = load("gqa", folder, split="testdev", cache_dir=cache)[0]["samples"]
    assert format_instruction(TABLE["gqa"].prompt, sample) == "Question: Is it overcast? Short answer:"
