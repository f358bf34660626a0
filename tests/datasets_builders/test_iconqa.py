"""The small fixture is written by hand from the documented format. The real problems come one to a folder, without the
two files that list them; the tests write those from the problems' own `data.json`."""

import json

import pytest

from instructblip.datasets_builders import load
from instructblip.datasets_builders.official_files import BadRowError
from instructblip.datasets_builders.schema import make_sample, tag
from instructblip.datasets_builders.table import TABLE
from instructblip.datasets_builders.templates import format_instruction

COUNTS = {"choose_txt": 25, "choose_img": 25, "fill_in_blank": 25}


def problem(kind="choose_txt", **other):
    parts = {
        "choose_txt": {"choices": ["turtle", "fish", "sub"], "answer": 1},
        "choose_img": {"choices": ["choice_0.png", "choice_1.png"], "answer": 1},
        "fill_in_blank": {"answer": "4"},
    }
    about = {"question": "Which picture is third?", "ques_type": kind, "split": "test", "grade": "grade1"}
    return {**about, "label": "A25", **parts[kind], **other}


def write(folder, problems, split="test"):
    kinds = {}
    for problem_id, entry in problems.items():
        kinds.setdefault(f"{entry['ques_type']}_{split}", []).append(problem_id)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "problems.json").write_text(json.dumps(problems))
    (folder / "pid_splits.json").write_text(json.dumps(kinds))


@pytest.fixture
def folder(tmp_path, picture):
    """Pictures of problems 7 and 31, of every kind."""
    for kind in COUNTS:
        for problem_id in ("7", "31"):
            place = tmp_path / "iconqa_data" / "iconqa" / "test" / kind / problem_id
            for shade, name in enumerate(("image", "choice_0", "choice_1")):
                picture(place / f"{name}.png", 100 * shade)
    return tmp_path / "iconqa_data"


def test_the_right_choice_is_the_answer(folder, cache):
    write(folder, {"7": problem(), "31": problem(answer=2)})
    rows = load("iconqa", folder.parent, split="test", cache_dir=cache)  # the archive unpacks into iconqa_data
    assert rows["image_id"] == ["iconqa/7", "iconqa/31"]
    (first,), (second,) = rows["samples"]
    assert (first["question"], first["choices"]) == ("Which picture is third?", ["turtle", "fish", "sub"])
    assert (first["label"], first["answers"]) == (1, ["fish"])
    assert (second["label"], second["answers"]) == (2, ["sub"])
    assert tag(first, "grade") == "grade1"


def test_other_kinds_in_the_same_file_are_left_to_their_configs(folder, cache):
    write(folder, {"7": problem("fill_in_blank"), "31": problem()})
    (sample,) = load("iconqa", folder, config="fill_in_blank", split="test", cache_dir=cache)[0]["samples"]
    assert (sample["id"], sample["answers"], sample["choices"], sample["label"]) == ("iconqa/7", ["4"], [], -1)


def test_pictures_to_choose_from_follow_that_of_the_question(folder, cache):
    write(folder, {"7": problem("choose_img")})
    (row,) = load("iconqa", folder, config="choose_img", split="test", cache_dir=cache)
    assert [image.getpixel((0, 0))[0] for image in row["images"]] == [0, 100, 200]
    (sample,) = row["samples"]
    assert (sample["choices"], sample["answers"]) == (["picture 1", "picture 2"], ["picture 2"])


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        ("choose_txt", {"answer": 3}, "'answer' is 3: expected 0 to 2"),
        ("choose_txt", {"answer": "1"}, "'answer' should be int, is str '1'"),
        ("choose_txt", {"choices": []}, "'choices' is empty"),
        ("choose_txt", {"choices": ["a", None]}, r"'choices\[1\]' should be str, is NoneType None"),
        ("choose_txt", {"question": ""}, "'question' is blank"),
        ("choose_txt", {"grade": 1}, "'grade' should be str, is int 1"),
        ("choose_img", {"choices": ["choice_0.png", "choice_8.png"]}, "image '31/choice_8.png' is not in .*choose_img"),
        ("choose_img", {"choices": ["../7/image.png"], "answer": 0}, "image .* is not a name inside the image folder"),
        ("fill_in_blank", {"answer": None}, "'answer' should be str or int, is NoneType None"),
    ],
)
def test_a_bad_problem_is_named(folder, cache, config, change, message):
    write(folder, {"7": problem(config), "31": problem(config, **change)})
    with pytest.raises(BadRowError, match=rf"problems\.json, row 2: {message}"):
        load("iconqa", folder, config=config, split="test", cache_dir=cache)
    assert len(load("iconqa", folder, config=config, split="test", cache_dir=cache, on_bad="skip")) == 1


def test_a_problem_without_its_picture_or_in_another_kinds_list_is_named(folder, cache):
    write(folder, {"7": problem(), "8": problem()})
    with pytest.raises(BadRowError, match=r"row 2: image '8/image\.png' is not in .*test/choose_txt"):
        load("iconqa", folder, split="test", cache_dir=cache)
    (folder / "problems.json").write_text(json.dumps({"7": problem(), "8": problem("fill_in_blank")}))
    with pytest.raises(BadRowError, match="row 2: 'ques_type' should be 'choose_txt', is 'fill_in_blank'"):
        load("iconqa", folder, split="test", cache_dir=cache)


def test_a_changed_list_of_ids_gives_other_rows(folder, cache):
    write(folder, {"7": problem(), "31": problem()})
    assert len(load("iconqa", folder, split="test", cache_dir=cache)) == 2
    (folder / "pid_splits.json").write_text(json.dumps({"choose_txt_test": ["31"]}))
    assert load("iconqa", folder, split="test", cache_dir=cache)["image_id"] == ["iconqa/31"]


@pytest.mark.parametrize("kind", COUNTS)
def test_the_real_problems_build(real_data, tmp_path, cache, kind):
    place = real_data / "nc" / "iconqa" / kind
    problems = {path.parent.name: json.loads(path.read_text()) for path in sorted(place.glob("*/data.json"))}
    write(tmp_path / "iconqa_data", problems)
    (tmp_path / "iconqa_data" / "iconqa" / "test").mkdir(parents=True)
    (tmp_path / "iconqa_data" / "iconqa" / "test" / kind).symlink_to(place)
    rows = load("iconqa", tmp_path, config=kind, split="test", cache_dir=cache)
    samples = {sample["id"]: sample for row in rows["samples"] for sample in row}
    assert len(samples) == len(rows) == COUNTS[kind]
    first = samples["iconqa/" + {"choose_txt": "149", "choose_img": "100", "fill_in_blank": "1037"}[kind]]
    assert first["answers"] == {"choose_txt": ["fish"], "choose_img": ["picture 2"], "fill_in_blank": ["3"]}[kind]
    if kind == "choose_img":
        assert sum(map(len, rows["images"])) == 25 + 65


def test_the_hub_copy_has_the_same_sample(folder, cache):
    write(folder, {"7": problem()})
    (row,) = load("iconqa", folder, split="test", cache_dir=cache)
    copy = TABLE["iconqa"].hub[0]
    theirs = {**problem(), "question_id": "7", "choices": "turtle,fish,sub", "answer": "fish", "skills": "spatial"}
    (record,) = copy.records(theirs, 1, "test")
    assert copy.belongs(record)
    assert (copy.image_id(record), [make_sample(**copy.sample(record))]) == (row["image_id"], row["samples"])


def test_images_may_lie_elsewhere(folder, tmp_path, cache):
    write(tmp_path / "text", {"7": problem()})
    elsewhere = (str(folder / "iconqa"),)
    assert len(load("iconqa", tmp_path / "text", split="test", cache_dir=cache, image_dirs=elsewhere)) == 1


def test_the_prompt_is_the_papers(folder, cache):
    write(folder, {"7": problem()})
    (sample,) = load("iconqa", folder, split="test", cache_dir=cache)[0]["samples"]
    expected = "Question: Which picture is third? Options: (a) turtle (b) fish (c) sub. Short answer:"
    assert format_instruction(TABLE["iconqa"].prompt, sample) == expected
