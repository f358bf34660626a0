import json

import pytest

from instructblip.datasets_builders import load
from instructblip.datasets_builders.official_files import BadRowError
from instructblip.datasets_builders.schema import make_sample
from instructblip.datasets_builders.table import TABLE

NUMBERS = {"train": "1000092795", "val": "1018148011", "test": "1007129816"}


def image(split, **other):
    sentences = [{"raw": f"A {split} photo. ", "tokens": []}, {"raw": "A man.", "tokens": []}]
    return {"filename": f"{NUMBERS[split]}.jpg", "split": split, "sentences": sentences, "imgid": 0, **other}


def write(folder, images):
    (folder / "dataset_flickr30k.json").write_text(json.dumps({"images": images, "dataset": "flickr30k"}))


@pytest.fixture
def flickr_folder(tmp_path, picture):
    """One image of each split, in the layout of Karpathy's dataset_flickr30k.json; written by hand from its use."""
    for number in NUMBERS.values():
        picture(tmp_path / "flickr30k-images" / f"{number}.jpg")
    write(tmp_path, [image(split) for split in NUMBERS])
    return tmp_path


def test_one_file_gives_the_three_splits(flickr_folder, cache):
    rows = load("flickr30k", flickr_folder, cache_dir=cache)
    assert {split: part["image_id"] for split, part in rows.items()} == {
        "train": ["flickr30k/1000092795"],
        "validation": ["flickr30k/1018148011"],
        "test": ["flickr30k/1007129816"],
    }
    sample = rows["test"]["samples"][0][0]
    assert (sample["id"], sample["question"]) == ("flickr30k/1007129816", "")
    assert sample["answers"] == ["A test photo.", "A man."]


def test_lavis_test_file_gives_the_same_row(flickr_folder, cache):
    """LAVIS' flickr30k_test.json; written by hand from its documentation."""
    expected = load("flickr30k", flickr_folder, split="test", cache_dir=cache)
    (flickr_folder / "dataset_flickr30k.json").unlink()
    name = f"flickr30k-images/{NUMBERS['test']}.jpg"
    (flickr_folder / "flickr30k_test.json").write_text(
        json.dumps([{"image": name, "caption": ["A test photo. ", "A man."]}])
    )
    rows = load("flickr30k", flickr_folder, cache_dir=cache)
    assert list(rows) == ["test"]
    assert rows["test"].remove_columns("image").to_list() == expected.remove_columns("image").to_list()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "restvall"}, "row 1: split 'restvall' is none of"),
        ({"filename": "/etc/1.jpg"}, "row 1: .*'/etc/1.jpg' is not a name inside"),
        ({"filename": "1.jpg"}, "row 1: image '1.jpg' is not in .*flickr30k-images"),
        ({"sentences": [{"tokens": []}]}, "row 1: sentence 1: 'raw' is missing"),
        ({"filename": 3}, "row 1: 'filename' should be str"),
    ],
)
def test_a_bad_image_is_named(flickr_folder, cache, change, message):
    write(flickr_folder, [{**image("train"), **change}])
    with pytest.raises(BadRowError, match=f"dataset_flickr30k.json, {message}"):
        load("flickr30k", flickr_folder, cache_dir=cache)


def test_an_image_that_comes_twice_is_named(flickr_folder, cache):
    write(flickr_folder, [image("train"), image("train")])
    with pytest.raises(BadRowError, match="row 2: id 'flickr30k/1000092795' again, first in row 1"):
        load("flickr30k", flickr_folder, split="train", cache_dir=cache)


def test_the_hub_copy_has_the_same_sample(flickr_folder, cache):
    row = load("flickr30k", flickr_folder, split="test", cache_dir=cache)[0]
    (copy,) = TABLE["flickr30k"].hub
    theirs = {"filename": f"{NUMBERS['test']}.jpg", "caption": ["A test photo. ", "A man."], "img_id": "67"}
    (record,) = copy.records(theirs, 1, "test")
    assert (copy.image_id(record), [make_sample(**copy.sample(record))]) == (row["image_id"], row["samples"])
