"""The small fixture is written by hand from the documented format; the real file holds the first 620 problems, without
their images."""

import json
import logging

import pytest

from instructblip.datasets_builders import load
from instructblip.datasets_builders.official_files import BadRowError
from instructblip.datasets_builders.schema import make_sample, tag
from instructblip.datasets_builders.table import TABLE
from instructblip.datasets_builders.templates import format_instruction


def problem(**other):
    about = {"task": "closed choice", "grade": "grade2", "subject": "social science", "topic": "geography"}
    more = {"category": "Geography", "skill": "Read a map", "lecture": "Maps ...", "solution": "To find ..."}
    asked = {"question": "Which state is farthest north?", "choices": ["West Virginia", "Louisiana"], "answer": 0}
    return {**asked, "hint": "", "image": "image.png", **about, **more, "split": "train", **other}


def write(folder, problems, **lists):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "problems.json").write_text(json.dumps(problems))
    (folder / "pid_splits.json").write_text(json.dumps({"train": list(problems), "val": [], "test": [], **lists}))


@pytest.fixture
def folder(tmp_path, picture):
    for problem_id in ("1", "2"):
        picture(tmp_path / "scienceqa" / "images" / "train" / problem_id / "image.png")
    return tmp_path / "scienceqa"


def test_the_hint_is_the_context(folder, cache):
    write(folder, {"1": problem(), "2": problem(hint="Look at the map.\n", answer=1)})
    rows = load("scienceqa", folder, split="train", cache_dir=cache)
    (first,), (second,) = rows["samples"]
    assert (first["id"], first["context"], first["answers"]) == ("scienceqa/1", "", ["West Virginia"])
    assert (second["context"], second["label"], second["answers"]) == ("Look at the map.", 1, ["Louisiana"])
    assert second["choices"] == ["West Virginia", "Louisiana"]
    assert [tag(second, name) for name in ("subject", "topic", "grade")] == ["social science", "geography", "grade2"]


def test_questions_without_an_image_are_left_out_and_counted(folder, cache, caplog):
    write(folder, {"1": problem(), "5": problem(image=None), "6": problem(image=None)})
    with caplog.at_level(logging.INFO, "instructblip"):
        assert len(load("scienceqa", folder, split="train", cache_dir=cache)) == 1
    assert "scienceqa/train: 2 questions without an image are left out" in caplog.text


def test_images_may_lie_in_a_folder_named_like_the_split(folder, tmp_path, picture, cache):
    write(tmp_path / "flat", {"9": problem()}, train=[], val=["9"])
    picture(tmp_path / "flat" / "val" / "9" / "image.png")
    assert load("scienceqa", tmp_path / "flat", split="validation", cache_dir=cache)["image_id"] == ["scienceqa/9"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 2}, "'answer' is 2: expected 0 to 1"),
        ({"answer": None}, "'answer' should be int, is NoneType None"),
        ({"choices": "ab"}, "'choices' should be list, is str 'ab'"),
        ({"hint": None}, "'hint' should be str, is NoneType None"),
        ({"image": 3}, "'image' should be str or NoneType, is int 3"),
        ({"image": "map.png"}, "image '2/map.png' is not in .*images/train"),
        ({"image": "../1/image.png"}, "image .* is not a name inside the image folder"),
        ({"subject": ""}, "'subject' is blank"),
    ],
)
def test_a_bad_problem_is_named(folder, cache, change, message):
    write(folder, {"1": problem(), "2": problem(**change)})
    with pytest.raises(BadRowError, match=rf"problems\.json, row 2: {message}"):
        load("scienceqa", folder, split="train", cache_dir=cache)
    assert len(load("scienceqa", folder, split="train", cache_dir=cache, on_bad="skip")) == 1


@pytest.mark.parametrize("key", ["image", "hint", "choices", "question"])
def test_a_missing_key_is_named(folder, cache, key):
    write(folder, {"1": {name: value for name, value in problem().items() if name != key}})
    with pytest.raises(BadRowError, match=rf"problems\.json, row 1: '{key}' is missing"):
        load("scienceqa", folder, split="train", cache_dir=cache)


def test_the_real_problems_give_297_questions_with_an_image(real_data, tmp_path, cache):
    official = real_data / "nc" / "scienceqa"
    for path in official.iterdir():
        (tmp_path / path.name).symlink_to(path)
    problems = json.loads((official / "problems.json").read_text())
    assert len(problems) == 620
    for problem_id, entry in problems.items():
        if entry["image"]:  # the pictures are not at hand; their names are
            place = tmp_path / "images" / entry["split"] / problem_id
            place.mkdir(parents=True)
            (place / entry["image"]).touch()
    rows = load("scienceqa", tmp_path, cache_dir=cache, verify_images=False)
    assert {split: len(part) for split, part in rows.items()} == {"train": 174, "validation": 61, "test": 62}
    samples = [sample for part in rows.values() for row in part["samples"] for sample in row]
    assert len(samples) == 297
    for sample in samples:
        source = problems[sample["id"].removeprefix("scienceqa/")]
        assert sample["answers"] == [source["choices"][source["answer"]].strip()]


def test_the_hub_copy_has_the_same_sample_but_for_the_id(folder, cache):
    write(folder, {"1": problem()})
    ((sample,),) = load("scienceqa", folder, split="train", cache_dir=cache)["samples"]
    copy = TABLE["scienceqa"].hub[0]
    (record,) = copy.records(problem(), 4, "validation")
    assert make_sample(**copy.sample(record)) == {**sample, "id": "scienceqa/validation/4"}


def test_the_prompt_is_the_papers(folder, cache):
    write(folder, {"1": problem(hint="Look at the map.")})
    ((sample,),) = load("scienceqa", folder, split="train", cache_dir=cache)["samples"]
    assert format_instruction(TABLE["scienceqa"].prompt, sample) == (
        "Context: Look at the map. Question: Which state is farthest north? "
        "Options: (a) West Virginia (b) Louisiana. Answer:"
    )
