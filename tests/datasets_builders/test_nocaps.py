import json

import pytest

from instructblip.datasets_builders import load
from instructblip.datasets_builders.official_files import BadRowError
from instructblip.datasets_builders.schema import make_sample
from instructblip.datasets_builders.table import TABLE

IDS = ["0013ea2087020901", "00e4b3a8b1e9d9f6"]


def image(number, **other):
    name = IDS[number]
    return {"id": number, "file_name": f"{name}.jpg", "open_images_id": name, "domain": "near-domain", **other}


def caption(number, image_id, text):
    return {"id": number, "image_id": image_id, "caption": text}


def write(folder, images, annotations):
    content = {"licenses": [], "info": {}, "images": images, "annotations": annotations}
    (folder / "nocaps_val_4500_captions.json").write_text(json.dumps(content))


@pytest.fixture
def nocaps_folder(tmp_path, picture):
    """Two images of val and one of test, in the layout that nocaps.org documents; written by hand from there."""
    for name in IDS:
        picture(tmp_path / "validation" / f"{name}.jpg")
    picture(tmp_path / "test" / f"{IDS[0]}.jpg")
    write(
        tmp_path,
        [image(0), image(1, domain="out-domain")],
        [caption(0, 0, "A baby is standing in front of a house."), caption(1, 1, "A lynx."), caption(2, 0, "A baby. ")],
    )
    test = image(0)
    del test["domain"]
    (tmp_path / "nocaps_test_image_info.json").write_text(json.dumps({"images": [test]}))
    return tmp_path


def test_an_image_has_its_captions_and_its_domain(nocaps_folder, cache):
    rows = load("nocaps", nocaps_folder, split="validation", cache_dir=cache)
    assert rows["image_id"] == [f"openimages/{name}" for name in IDS]
    first, second = (row[0] for row in rows["samples"])
    assert first["id"] == f"nocaps/{IDS[0]}"
    assert first["question"] == ""
    assert first["answers"] == ["A baby is standing in front of a house.", "A baby."]
    assert [first["tags"], second["tags"]] == [["domain=near-domain"], ["domain=out-domain"]]


def test_the_test_images_have_no_captions(nocaps_folder, cache):
    rows = load("nocaps", nocaps_folder, split="test", cache_dir=cache)
    assert rows["samples"][0][0]["answers"] == []
    assert rows["samples"][0][0]["tags"] == []


@pytest.mark.parametrize(
    ("images", "annotations", "message"),
    [
        ([image(0)], [], "row 1: in 'images': image 0 has no usable caption"),
        ([image(0, file_name="../0.jpg")], [(1, 0, "a")], "row 1: .*'../0.jpg' is not a name inside"),
        ([image(0, file_name="none.jpg")], [(1, 0, "a")], "row 1: image 'none.jpg' is not in "),
        ([image(0, domain=3)], [(1, 0, "a")], "row 1: 'domain' should be str"),
        ([{k: v for k, v in image(0).items() if k != "domain"}], [(1, 0, "a")], "row 1: 'domain' is missing"),
        ([image(0, id="0")], [], "row 1: in 'images': 'id' should be int"),
        ([image(0), image(0)], [(1, 0, "a")], "row 2: id 'nocaps/0013ea2087020901' again, first in row 1"),
        ([image(0)], [(1, 0, "a"), (2, 5, "b")], "row 2: in 'annotations': image 5 is not among"),
    ],
)
def test_a_bad_row_is_named(nocaps_folder, cache, images, annotations, message):
    write(nocaps_folder, images, [caption(*each) for each in annotations])
    with pytest.raises(BadRowError, match=f"nocaps_val_4500_captions.json, {message}"):
        load("nocaps", nocaps_folder, split="validation", cache_dir=cache)


def test_the_hub_copy_has_the_same_sample_but_for_the_domain(nocaps_folder, cache):
    row = load("nocaps", nocaps_folder, split="validation", cache_dir=cache)[0]
    (copy,) = TABLE["nocaps"].hub
    theirs = {
        "image_id": 0,
        "image_open_images_id": IDS[0],
        "annotations_captions": ["A baby is standing in front of a house.", "A baby. "],
    }
    (record,) = copy.records(theirs, 1, "validation")
    (sample,) = row["samples"]
    assert copy.image_id(record) == row["image_id"]
    assert make_sample(**copy.sample(record)) == {**sample, "tags": []}
