import json

import pytest

from instructblip.datasets_builders import load
from instructblip.datasets_builders.official_files import BadRowError, read_json
from instructblip.datasets_builders.schema import tag
from instructblip.datasets_builders.table import TABLE, Counts

ANSWERS = ["no", "unanswerable", "night time", "unanswerable", "night time", "night time cold medicine"]
ANSWERS += ["night time", "night time medicine", "unsuitable", "night time"]


def rated(answers):
    return [{"answer": answer, "answer_confidence": "yes"} for answer in answers]


def record(image, **other):
    return {
        "image": image,
        "question": "Can you tell me what this medicine is please? ",
        "answers": rated(ANSWERS),
        "answer_type": "other",
        "answerable": 1,
        **other,
    }


def write(folder, records, name="Annotations/val.json"):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(records))


@pytest.fixture
def vizwiz_folder(tmp_path, picture):
    """Two validation photographs and a test one; the official layout, by hand from the owners' description."""
    for name in ("val/VizWiz_val_00000001.jpg", "val/VizWiz_val_00000002.jpg", "test/VizWiz_test_00000000.jpg"):
        picture(tmp_path / name)
    unclear = record("VizWiz_val_00000002.jpg", answers=rated(["unanswerable"] * 10), answerable=0)
    write(tmp_path, [record("VizWiz_val_00000001.jpg"), {**unclear, "answer_type": "unanswerable"}])
    write(tmp_path, [{"image": "VizWiz_test_00000000.jpg", "question": "What is this?"}], "Annotations/test.json")
    return tmp_path


def test_a_photograph_has_one_question_with_ten_answers(vizwiz_folder, cache):
    rows = load("vizwiz", vizwiz_folder, split="validation", cache_dir=cache)
    assert rows["image_id"] == ["vizwiz/VizWiz_val_00000001", "vizwiz/VizWiz_val_00000002"]
    [first], [second] = rows["samples"]
    assert (first["id"], first["question"]) == (
        "vizwiz/VizWiz_val_00000001",
        "Can you tell me what this medicine is please?",
    )
    assert first["answers"] == ANSWERS
    assert [tag(sample, "answer_type") for sample in (first, second)] == ["other", "unanswerable"]
    assert [tag(sample, "answerable") for sample in (first, second)] == ["1", "0"]


def test_test_questions_have_no_answers(vizwiz_folder, cache):
    [sample] = load("vizwiz", vizwiz_folder, split="test", cache_dir=cache)[0]["samples"]
    assert (sample["id"], sample["answers"], sample["tags"]) == ("vizwiz/VizWiz_test_00000000", [], [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "VizWiz_val_00000009.jpg"}, r"row 2: image 'VizWiz_val_00000009.jpg' is not in .*val, .*images"),
        ({"image": "/etc/passwd"}, "row 2: image '/etc/passwd' is not a name inside the image folder"),
        ({"image": "VizWiz_val_00000001.jpg"}, "row 2: id 'vizwiz/VizWiz_val_00000001' again, first in row 1"),
        ({"image": 2}, "row 2: 'image' should be str, is int 2"),
        ({"question": "\n"}, "row 2: 'question' is blank"),
        ({"answers": ANSWERS}, r"row 2: in 'answers\[0\]': expected an object with 'answer', found str 'no'"),
        ({"answers": rated(ANSWERS[1:])}, "row 2: 'answers' has 9 items: expected 10"),
        ({"answer_type": 1}, "row 2: 'answer_type' should be str, is int 1"),
        ({"answerable": 2}, "row 2: 'answerable' is 2: expected 0 to 1"),
    ],
)
def test_a_bad_row_is_named(vizwiz_folder, cache, change, message):
    write(vizwiz_folder, [record("VizWiz_val_00000001.jpg"), record("VizWiz_val_00000002.jpg") | change])
    with pytest.raises(BadRowError, match=rf"val\.json, {message}"):
        load("vizwiz", vizwiz_folder, split="validation", cache_dir=cache)


@pytest.mark.parametrize("key", ["image", "question", "answers", "answer_type", "answerable"])
def test_a_missing_key_is_named(vizwiz_folder, cache, key):
    row = record("VizWiz_val_00000001.jpg")
    del row[key]
    write(vizwiz_folder, [row, record("VizWiz_val_00000002.jpg")])
    with pytest.raises(BadRowError, match=rf"val\.json, row 1: '{key}' is missing"):
        load("vizwiz", vizwiz_folder, split="validation", cache_dir=cache)


def test_the_converted_form_gives_the_same_rows(vizwiz_folder, cache):
    official = load("vizwiz", vizwiz_folder, split="validation", cache_dir=cache)
    records = read_json(str(vizwiz_folder / "Annotations" / "val.json"))
    questions = [
        {"question": row["question"], "image_id": row["image"], "question_id": number}
        for number, row in enumerate(records)
    ]
    annotations = [
        {
            "question_id": number,
            "image_id": row["image"],
            "question_type": row["answer_type"],
            "answers": row["answers"],
        }
        for number, row in enumerate(records)
    ]
    (vizwiz_folder / "Annotations" / "val.json").unlink()
    write(vizwiz_folder, {"questions": questions}, "val_questions_vqa_format.json")
    write(vizwiz_folder, {"annotations": annotations}, "val_annotations_vqa_format.json")
    converted = load("vizwiz", vizwiz_folder, split="validation", cache_dir=cache)
    for [ours], [theirs] in zip(converted["samples"], official["samples"], strict=True):
        assert ours == {**theirs, "tags": [f"answer_type={tag(theirs, 'answer_type')}"]}
    write(vizwiz_folder, {"questions": [{**questions[0], "image_id": 3}]}, "val_questions_vqa_format.json")
    write(vizwiz_folder, {"annotations": [{**annotations[0], "image_id": 3}]}, "val_annotations_vqa_format.json")
    with pytest.raises(BadRowError, match="row 1: 'image_id' should be an image's name, is 3"):
        load("vizwiz", vizwiz_folder, split="validation", cache_dir=cache)


def test_the_real_validation_questions_have_the_counts_of_the_table(real_data, tmp_path, cache):
    for path in (real_data / "vizwiz").iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "val").mkdir()
    for row in read_json(str(tmp_path / "val_questions_vqa_format.json"))["questions"]:
        (tmp_path / "val" / row["image_id"]).touch()  # the photographs are not at hand; their names are
    rows = load("vizwiz", tmp_path, split="validation", cache_dir=cache, verify_images=False)
    samples = [sample for row in rows["samples"] for sample in row]
    answers = sum(len(sample["answers"]) for sample in samples)
    assert Counts(len(rows), len(samples), answers) == TABLE["vizwiz"].counts["default/validation"]
    assert sum(tag(sample, "answer_type") == "unanswerable" for sample in samples) == 1385
