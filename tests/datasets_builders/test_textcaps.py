import json
import logging

import pytest

from instructblip.datasets_builders import load
from instructblip.datasets_builders.official_files import BadRowError
from instructblip.datasets_builders.schema import make_sample
from instructblip.datasets_builders.table import TABLE

IDS = ["011e7e629fb9ae7b", "0054c91397f2fe05"]


def record(image, number, text, **other):
    return {
        "image_id": IDS[image],
        "image_path": f"train/{IDS[image]}.jpg",
        "image_classes": ["Perfume"],
        "set_name": "train",
        "caption_id": number,
        "caption_str": text,
        "caption_tokens": text.split(),
        "reference_strs": ["of all captions of the image"],
        **other,
    }


def words(image, tokens):
    return {"image_id": IDS[image], "ocr_tokens": tokens, "ocr_info": []}


def write(folder, name, data):
    (folder / name).write_text(json.dumps({"dataset_name": "textcaps", "dataset_version": 0.1, "data": data}))


OCR = "TextVQA_Rosetta_OCR_v0.2_train.json"


@pytest.fixture
def textcaps_folder(tmp_path, picture):
    """Three captions of two images, and a test image; the official layout, written by hand from documented rows."""
    for name in IDS:
        picture(tmp_path / "train_images" / f"{name}.jpg")
    picture(tmp_path / "test_images" / f"{IDS[0]}.jpg")
    rows = [record(0, 0, "Five Listerine bottles"), record(1, 1, "A plane."), record(0, 2, "Mouthwash on a shelf. ")]
    write(tmp_path, "TextCaps_0.1_train.json", rows)
    test = record(0, 0, "")
    for name in ("caption_id", "caption_str", "caption_tokens", "reference_strs"):
        del test[name]
    write(tmp_path, "TextCaps_0.1_test.json", [test])
    write(tmp_path, OCR, [words(0, ["LISTERINE", "", "ZERO"])])
    return tmp_path


def test_captions_are_joined_with_the_words_in_the_picture(textcaps_folder, cache):
    rows = load("textcaps", textcaps_folder, split="train", cache_dir=cache)
    assert rows["image_id"] == [f"openimages/{name}" for name in IDS]
    first, second = (row[0] for row in rows["samples"])
    assert (first["id"], first["question"]) == (f"textcaps/{IDS[0]}", "")
    assert first["answers"] == ["Five Listerine bottles", "Mouthwash on a shelf."]
    assert first["ocr_tokens"] == ["LISTERINE", "ZERO"]
    assert second["ocr_tokens"] == []  # Rosetta read nothing there


def test_without_the_words_the_captions_stay_and_the_log_says_so(textcaps_folder, cache, caplog):
    (textcaps_folder / OCR).unlink()
    with caplog.at_level(logging.WARNING):
        rows = load("textcaps", textcaps_folder, split="train", cache_dir=cache)
    assert [row[0]["ocr_tokens"] for row in rows["samples"]] == [[], []]
    assert "textcaps/train: no OCR tokens" in caplog.text


def test_other_words_give_other_rows(textcaps_folder, cache):
    load("textcaps", textcaps_folder, split="train", cache_dir=cache)
    write(textcaps_folder, OCR, [words(1, ["KLM"])])
    rows = load("textcaps", textcaps_folder, split="train", cache_dir=cache)
    assert [row[0]["ocr_tokens"] for row in rows["samples"]] == [[], ["KLM"]]


def test_the_test_file_has_no_captions(textcaps_folder, cache):
    rows = load("textcaps", textcaps_folder, split="test", cache_dir=cache)
    assert rows["samples"][0][0]["answers"] == []


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("TextCaps_0.1_train.json", [record(0, 0, "a"), record(0, 1, " ")], "row 2: 'caption_str' is blank"),
        ("TextCaps_0.1_train.json", [record(0, 0, "a", image_id=5)], "row 1: 'image_id' should be str"),
        (
            "TextCaps_0.1_train.json",
            [record(0, 0, "a", image_id="../a")],
            "row 1: .*'../a.jpg' is not a name inside",
        ),
        (
            "TextCaps_0.1_train.json",
            [record(0, 0, "a", image_id="ab")],
            "row 1: image 'ab.jpg' is not in .*train_images",
        ),
        (OCR, [words(0, ["a"]), words(0, ["b"])], "row 2: image 011e7e629fb9ae7b again"),
        (OCR, [words(0, "a b")], "row 1: 'ocr_tokens' should be list"),
        (OCR, [words(0, ["a", 7])], r"row 1: 'ocr_tokens\[1\]' should be str"),
    ],
)
def test_a_bad_row_is_named(textcaps_folder, cache, name, data, message):
    write(textcaps_folder, name, data)
    with pytest.raises(BadRowError, match=f"{name}, {message}"):
        load("textcaps", textcaps_folder, split="train", cache_dir=cache)


def test_the_hub_copy_has_the_same_sample_but_for_the_words(textcaps_folder, cache):
    row = load("textcaps", textcaps_folder, split="train", cache_dir=cache)[0]
    (copy,) = TABLE["textcaps"].hub
    theirs = {
        "question_id": IDS[0],
        "image_id": IDS[0],
        "caption_str": ["Five Listerine bottles", "Mouthwash on a shelf. "],
        "reference_strs": ["of all captions of the image"],
    }
    (record,) = copy.records(theirs, 1, "train")
    (sample,) = row["samples"]
    assert copy.image_id(record) == row["image_id"]
    assert make_sample(**copy.sample(record)) == {**sample, "ocr_tokens": []}
