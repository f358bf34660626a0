import json

import pytest

from instructblip.datasets_builders import load
from instructblip.datasets_builders.official_files import BadRowError


def book(split=1, **other):
    return {
        "imageURL": "http://ecx.images-amazon.com/images/I/61Y5cOdHJbL.jpg",
        "questions": ["Who wrote this book?", "What is the title of this book?", "Is this a games related book?"],
        "answers": ["Sandra Boynton ", "Mom's Family Wall Calendar 2016", "No"],
        "title": "Mom's Family Wall Calendar 2016",
        "authorName": "Sandra Boynton",
        "genre": "Calendars",
        "split": split,
        **other,
    }


def write(folder, books):
    (folder / "dataset.json").write_text(json.dumps(books))


@pytest.fixture
def ocr_vqa_folder(tmp_path, picture):
    """Four books, two of them in train; the official layout, written by hand from the fields that loaders read."""
    for name in ("761183272.jpg", "1449407986.gif", "545790352.jpg", "1421550814.jpg"):
        picture(tmp_path / "images" / name)
    gif = book(imageURL="http://ecx.images-amazon.com/images/I/519Sx3g.gif")
    write(tmp_path, {"761183272": book(), "545790352": book(2), "1449407986": gif, "1421550814": book(3)})
    return tmp_path


def test_a_cover_has_all_questions_of_its_book(ocr_vqa_folder, cache):
    rows = load("ocr_vqa", ocr_vqa_folder, cache_dir=cache)
    assert {split: part["image_id"] for split, part in rows.items()} == {
        "train": ["ocr_vqa/761183272", "ocr_vqa/1449407986"],
        "validation": ["ocr_vqa/545790352"],
        "test": ["ocr_vqa/1421550814"],
    }
    first, *_, third = rows["train"][0]["samples"]
    assert (first["id"], first["question"]) == ("ocr_vqa/761183272/0", "Who wrote this book?")
    assert (first["answers"], third["answers"]) == (["Sandra Boynton"], ["No"])
    assert (third["id"], third["ocr_tokens"], third["tags"]) == ("ocr_vqa/761183272/2", [], [])


def test_every_cover_may_be_called_jpg(ocr_vqa_folder, cache):
    (ocr_vqa_folder / "images" / "1449407986.gif").rename(ocr_vqa_folder / "images" / "1449407986.jpg")
    assert len(load("ocr_vqa", ocr_vqa_folder, split="train", cache_dir=cache)) == 2


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("9", {}, r"row 2: book '9': image '9.jpg' is not in .*images"),
        ("../1", {}, r"row 2: book '../1': image '../1.jpg' is not a name inside the image folder"),
        ("761183272", {}, r"row 2: id 'ocr_vqa/761183272/0' again, first in row 1"),
        ("545790352", {"split": 4}, "row 2: book '545790352': 'split' should be 1, 2 or 3, is 4"),
        ("545790352", {"split": "1"}, "row 2: book '545790352': 'split' should be int, is str '1'"),
        ("545790352", {"answers": ["No"]}, "row 2: book '545790352': 3 'questions' and 1 'answers'"),
        ("545790352", {"questions": [], "answers": []}, "row 2: book '545790352': 0 'questions' and 0 'answers'"),
        ("545790352", {"questions": "Who?"}, "row 2: book '545790352': 'questions' should be list, is str 'Who\\?'"),
        ("545790352", {"answers": ["a", 5, "b"]}, r"row 2: book '545790352': 'answers\[1\]' should be str, is int 5"),
        ("545790352", {"questions": ["a", "b", ""]}, r"row 2: book '545790352': 'questions\[2\]' is blank"),
        ("545790352", {"imageURL": None}, "row 2: book '545790352': 'imageURL' should be str, is NoneType None"),
    ],
)
def test_a_bad_book_is_named(ocr_vqa_folder, cache, key, change, message):
    text = json.dumps(book(**change))
    (ocr_vqa_folder / "dataset.json").write_text(f'{{"761183272": {json.dumps(book())}, "{key}": {text}}}')
    with pytest.raises(BadRowError, match=rf"dataset\.json, {message}"):
        load("ocr_vqa", ocr_vqa_folder, split="train", cache_dir=cache)


@pytest.mark.parametrize("name", ["split", "imageURL", "questions", "answers"])
def test_a_missing_key_is_named(ocr_vqa_folder, cache, name):
    record = book()
    del record[name]
    write(ocr_vqa_folder, {"761183272": record, "545790352": 3})
    with pytest.raises(BadRowError, match=rf"row 1: book '761183272': '{name}' is missing"):
        load("ocr_vqa", ocr_vqa_folder, split="train", cache_dir=cache)


def test_one_bad_question_does_not_cost_its_book(ocr_vqa_folder, cache):
    write(ocr_vqa_folder, {"761183272": book(answers=["a", "", "c"])})
    rows = load("ocr_vqa", ocr_vqa_folder, split="train", cache_dir=cache, on_bad="skip")
    assert [sample["answers"] for sample in rows[0]["samples"]] == [["a"], ["c"]]
