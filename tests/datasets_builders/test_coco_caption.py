import json

import pytest

from instructblip.datasets_builders import load
from instructblip.datasets_builders.official_files import BadRowError
from instructblip.datasets_builders.table import TABLE, Counts

FILES = {9: "000000000009.jpg", 391895: "000000391895.jpg"}


def write(folder, images, annotations, name="captions_val2017.json"):
    path = folder / "annotations" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"info": {}, "licenses": [], "images": images, "annotations": annotations}))


def image(number):
    return {"id": number, "file_name": FILES[number], "height": 8, "width": 12, "license": 4}


def caption(number, image_id, text):
    return {"id": number, "image_id": image_id, "caption": text}


@pytest.fixture
def coco_folder(tmp_path, picture):
    folder = tmp_path / "coco"
    for name in FILES.values():
        picture(folder / "val2017" / name)
    write(
        folder,
        [image(391895), image(9)],
        [caption(1, 9, "A tray of food."), caption(2, 391895, "A man on a moped. "), caption(3, 9, "Lunch.")],
    )
    return folder


def test_the_captions_of_an_image_are_the_answers_of_one_sample(coco_folder, cache):
    rows = load("coco_caption", coco_folder, split="validation", cache_dir=cache)
    assert rows["image_id"] == ["coco/000000391895", "coco/000000000009"]
    assert [sample["answers"] for row in rows["samples"] for sample in row] == [
        ["A man on a moped."],
        ["A tray of food.", "Lunch."],
    ]
    assert rows[1]["samples"][0]["id"] == "coco_caption/9"
    assert rows[1]["samples"][0]["question"] == ""


def test_an_image_has_one_id_in_2014_and_2017(tmp_path, picture, cache):
    picture(tmp_path / "train2014" / "COCO_train2014_000000000009.jpg")
    annotated = [{"id": 9, "file_name": "COCO_train2014_000000000009.jpg"}]
    write(tmp_path, annotated, [caption(1, 9, "Lunch.")], "captions_train2014.json")
    rows = load("coco_caption", tmp_path, "2014", cache_dir=cache)
    assert rows["train"]["image_id"] == ["coco/000000000009"]
    with pytest.raises(FileNotFoundError, match=r"expected one or more of annotations/captions_train2017\.json"):
        load("coco_caption", tmp_path, cache_dir=cache)


@pytest.mark.parametrize(
    ("images", "annotations", "message"),
    [
        ([9], [(1, 9, "a"), (2, 7, "b")], "row 2: in 'annotations': image 7 is not among the file's images"),
        ([9], [(1, 9, "a"), (2, 9, "")], "row 2: in 'annotations': 'caption' is blank"),
        ([391895, 9], [(1, 391895, "a")], "row 2: in 'images': image 9 has no usable caption"),
        ([9, 9], [(1, 9, "a")], "row 2: id 'coco_caption/9' again, first in row 1"),
    ],
)
def test_a_bad_row_is_named(coco_folder, cache, images, annotations, message):
    write(coco_folder, [image(number) for number in images], [caption(*each) for each in annotations])
    with pytest.raises(BadRowError, match=message):
        load("coco_caption", coco_folder, cache_dir=cache)


def test_a_file_without_captions_is_refused(coco_folder, cache):
    (coco_folder / "annotations" / "captions_val2017.json").write_text('{"images": []}')
    with pytest.raises(ValueError, match="expected an object with 'annotations', found an object with 'images'"):
        load("coco_caption", coco_folder, cache_dir=cache)


def test_real_images_and_captions(real_data, cache):
    rows = load("coco_caption", real_data / "coco_mini", cache_dir=cache)
    assert {split: len(part) for split, part in rows.items()} == {"train": 26, "validation": 25}
    samples = [sample for part in rows.values() for row in part["samples"] for sample in row]
    assert sum(len(sample["answers"]) for sample in samples) == 255


def test_the_real_validation_file_has_the_counts_of_the_table(real_data, tmp_path, cache):
    official = real_data / "coco_caption_eval" / "captions_val2017.json"
    (tmp_path / "val2017").mkdir()
    (tmp_path / "captions_val2017.json").symlink_to(official)
    for entry in json.loads(official.read_text())["images"]:
        (tmp_path / "val2017" / entry["file_name"]).touch()  # the pictures are not at hand; their names are
    rows = load("coco_caption", tmp_path, split="validation", cache_dir=cache, verify_images=False)
    answers = sum(len(sample["answers"]) for row in rows["samples"] for sample in row)
    assert Counts(len(rows), len(rows), answers) == TABLE["coco_caption"].counts["2017/validation"]
