import json

import pytest

from instructblip.datasets_builders import load
from instructblip.datasets_builders.official_files import BadRowError, read_json
from instructblip.datasets_builders.table import TABLE, Counts
from instructblip.datasets_builders.templates import format_instruction

IDS = ["003a8ae2ef43b901", "b9dc400eb20bad64"]
OFFICIAL = "TextVQA_0.5.1_val.json"
OCR = "TextVQA_Rosetta_OCR_v0.2_val.json"
ANSWERS = ["nous les gosses", "dakota", "clos culombu", "dakota digital", "dakota"] + ["dakota digital"] * 5


def record(number, image, text, **other):
    return {
        "question_id": number,
        "question": text,
        "question_tokens": text.split(),
        "image_id": IDS[image],
        "image_classes": ["Camera"],
        "flickr_original_url": "https://example.org/1.jpg",
        "image_width": 1024,
        "image_height": 664,
        "answers": ANSWERS,
        "set_name": "val",
        **other,
    }


def write(folder, name, rows, key="data"):
    (folder / name).write_text(json.dumps({"dataset_name": "textvqa", "dataset_version": "0.5.1", key: rows}))


@pytest.fixture
def textvqa_folder(tmp_path, picture):
    """Questions on two pictures, a test question, OCR tokens; the official layout, by hand from documented rows."""
    for name in IDS:
        picture(tmp_path / "train_images" / f"{name}.jpg")
    picture(tmp_path / "test_images" / f"{IDS[0]}.jpg")
    rows = [record(34602, 0, "what is the brand of this camera?"), record(34603, 1, "what does the text spell?")]
    write(tmp_path, OFFICIAL, [*rows, record(34604, 0, "which year? ")])
    test = record(39602, 0, "what is it?", set_name="test")
    del test["answers"]
    write(tmp_path, "TextVQA_0.5.1_test.json", [test])
    words = [{"image_id": IDS[0], "ocr_tokens": ["DAKOTA", "DIGITAL"], "ocr_info": []}]
    write(tmp_path, OCR, [*words, {"image_id": IDS[1], "ocr_tokens": [], "ocr_info": []}])
    return tmp_path


def test_questions_are_joined_with_the_words_in_the_picture(textvqa_folder, cache):
    rows = load("textvqa", textvqa_folder, split="validation", cache_dir=cache)
    assert rows["image_id"] == [f"openimages/{name}" for name in IDS]
    first, third = rows[0]["samples"]
    assert (first["id"], third["id"], third["question"]) == ("textvqa/34602", "textvqa/34604", "which year?")
    assert first["answers"] == ANSWERS
    assert first["ocr_tokens"] == ["DAKOTA", "DIGITAL"]
    prompt = "OCR tokens: DAKOTA, DIGITAL. Question: what is the brand of this camera? Short answer:"
    assert format_instruction(TABLE["textvqa"].prompt, first) == prompt


def test_test_questions_have_no_answers(textvqa_folder, cache):
    [sample] = load("textvqa", textvqa_folder, split="test", cache_dir=cache)[0]["samples"]
    assert (sample["id"], sample["answers"]) == ("textvqa/39602", [])


def test_absent_words_are_said(textvqa_folder, cache, caplog):
    (textvqa_folder / OCR).unlink()
    rows = load("textvqa", textvqa_folder, split="validation", cache_dir=cache)
    assert rows[0]["samples"][0]["ocr_tokens"] == []
    assert "no OCR tokens: TextVQA's Rosetta file is not in" in caplog.text


def test_the_converted_form_gives_the_same_rows(textvqa_folder, cache):
    official = load("textvqa", textvqa_folder, split="validation", cache_dir=cache)
    rows = read_json(str(textvqa_folder / OFFICIAL))["data"]
    questions = [{key: row[key] for key in ("question", "image_id", "question_id")} for row in rows]
    annotations = [
        {
            "question_id": row["question_id"],
            "image_id": row["image_id"],
            "answers": [{"answer": text, "answer_confidence": "yes"} for text in row["answers"]],
        }
        for row in rows
    ]
    (textvqa_folder / OFFICIAL).unlink()
    write(textvqa_folder, "val_questions_vqa_format.json", questions, "questions")
    write(textvqa_folder, "val_annotations_vqa_format.json", annotations, "annotations")
    converted = load("textvqa", textvqa_folder, split="validation", cache_dir=cache)
    assert converted.remove_columns("image")[:] == official.remove_columns("image")[:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": "0"}, r"row 2: image '0.jpg' is not in .*train_images, .*images"),
        ({"image_id": "../../etc/passwd"}, r"row 2: image '../../etc/passwd.jpg' is not a name inside"),
        ({"image_id": 7}, "row 2: 'image_id' should be str, is int 7"),
        ({"question_id": "7"}, "row 2: 'question_id' should be int, is str '7'"),
        ({"question_id": 34602}, "row 2: id 'textvqa/34602' again, first in row 1"),
        ({"question": None}, "row 2: 'question' should be str, is NoneType None"),
        ({"answers": []}, "row 2: 'answers' has 0 items: expected 10"),
        ({"answers": [1] * 10}, r"row 2: 'answers\[0\]' should be str, is int 1"),
    ],
)
def test_a_bad_row_is_named(textvqa_folder, cache, change, message):
    write(textvqa_folder, OFFICIAL, [record(34602, 0, "a"), record(34603, 1, "b", **change)])
    with pytest.raises(BadRowError, match=rf"TextVQA_0\.5\.1_val\.json, {message}"):
        load("textvqa", textvqa_folder, split="validation", cache_dir=cache)


@pytest.mark.parametrize("key", ["question_id", "image_id", "question", "answers"])
def test_a_missing_key_is_named(textvqa_folder, cache, key):
    row = record(34602, 0, "a")
    del row[key]
    write(textvqa_folder, OFFICIAL, [record(34603, 1, "b"), row])
    with pytest.raises(BadRowError, match=rf"row 2: '{key}' is missing"):
        load("textvqa", textvqa_folder, split="validation", cache_dir=cache)


def test_a_bad_row_among_the_words_is_named(textvqa_folder, cache):
    write(textvqa_folder, OCR, [{"image_id": IDS[0], "ocr_tokens": "DAKOTA"}])
    with pytest.raises(BadRowError, match=r"Rosetta_OCR_v0\.2_val\.json, row 1: 'ocr_tokens' should be list, is str"):
        load("textvqa", textvqa_folder, split="validation", cache_dir=cache)


def test_the_real_validation_questions_have_the_counts_of_the_table(real_data, tmp_path, cache, caplog):
    questions = real_data / "textvqa" / "val_questions_vqa_format.json"
    (tmp_path / questions.name).symlink_to(questions)
    (tmp_path / "images").mkdir()
    for row in read_json(str(questions))["questions"]:
        (tmp_path / "images" / f"{row['image_id']}.jpg").touch()  # the pictures are not at hand; their names are
    rows = load("textvqa", tmp_path, split="validation", cache_dir=cache, verify_images=False)
    samples = [sample for row in rows["samples"] for sample in row]
    assert Counts(len(rows), len(samples), 50000) == TABLE["textvqa"].counts["default/validation"]
    assert not any(sample["answers"] for sample in samples)
    assert "no answers: the file with them is not beside it" in caplog.text
