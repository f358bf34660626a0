"""Datasets in the official layouts, a few rows each."""

import json

import pytest
from PIL import Image


@pytest.fixture
def cache(tmp_path):
    return str(tmp_path / "cache")


def draw_picture(path, shade=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 8), (shade, shade, shade)).save(path)
    return path


@pytest.fixture
def picture():
    """picture(path, shade): writes a small grey image."""
    return draw_picture


def vqa_rad_record(qid, image, question="Is there a fracture?", answer="No", **other):
    return {
        "qid": qid,
        "image_name": f"{image}.jpg",
        "image_organ": "HEAD",
        "answer": answer,
        "answer_type": "CLOSED",
        "question_type": "PRES",
        "question": question,
        "phrase_type": "freeform",
        **other,
    }


@pytest.fixture
def record():
    """record(qid, image, question, answer, **other): a question as VQA-RAD writes it."""
    return vqa_rad_record


@pytest.fixture
def vqa_rad_folder(tmp_path):
    """40 images with 2 training questions each; the first 2 images also have a test question."""
    folder = tmp_path / "vqa_rad"
    for number in range(40):
        draw_picture(folder / "images" / f"synpic{number}.jpg", 5 * number)
    train = [vqa_rad_record(qid, f"synpic{qid % 40}", f"Question {qid}?") for qid in range(80)]
    test = [vqa_rad_record(qid, f"synpic{qid - 100}", f"Question {qid}?", "yes") for qid in (100, 101)]
    (folder / "trainset.json").write_text(json.dumps(train))
    (folder / "testset.json").write_text(json.dumps(test))
    return folder
