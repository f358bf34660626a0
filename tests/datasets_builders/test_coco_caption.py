import json

import pytest

from instructblip.datasets_builders import load
from instructblip.datasets_builders.loading import builder
from instructblip.datasets_builders.official_files import BadRowError
from instructblip.datasets_builders.schema import make_sample
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
    rows = load("coco_caption", coco_folder, "2017", split="validation", cache_dir=cache)
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
        load("coco_caption", tmp_path, "2017", cache_dir=cache)


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
        load("coco_caption", coco_folder, "2017", cache_dir=cache)


def test_a_file_without_captions_is_refused(coco_folder, cache):
    (coco_folder / "annotations" / "captions_val2017.json").write_text('{"images": []}')
    with pytest.raises(ValueError, match="expected an object with a list 'annotations', found an object with 'images'"):
        load("coco_caption", coco_folder, "2017", cache_dir=cache)


NAMES = {
    "train": "train2014/COCO_train2014_000000000009.jpg",
    "restval": "val2014/COCO_val2014_000000522418.jpg",
    "val": "val2014/COCO_val2014_000000184613.jpg",
    "test": "val2014/COCO_val2014_000000391895.jpg",
}


@pytest.fixture
def karpathy_folder(tmp_path, picture):
    """One image of each split in the layout of Karpathy's dataset_coco.json, written by hand from documented rows."""
    for name in NAMES.values():
        picture(tmp_path / name)
    images = [
        {
            "filepath": name.split("/")[0],
            "filename": name.split("/")[1],
            "cocoid": int(name[-16:-4]),
            "imgid": number,
            "sentids": [2 * number, 2 * number + 1],
            "split": split,
            "sentences": [
                {"raw": f"A {split} photo. ", "tokens": ["a"], "imgid": number, "sentid": 2 * number},
                {"raw": "A photo.", "tokens": ["a", "photo"], "imgid": number, "sentid": 2 * number + 1},
            ],
        }
        for number, (split, name) in enumerate(NAMES.items())
    ]
    write_karpathy(tmp_path, images)
    return tmp_path


def write_karpathy(folder, images):
    (folder / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))


def read_images(folder):
    return json.loads((folder / "dataset_coco.json").read_text())["images"]


def test_karpathys_train_split_takes_restval(karpathy_folder, cache):
    rows = load("coco_caption", karpathy_folder, cache_dir=cache)
    assert {split: part["image_id"] for split, part in rows.items()} == {
        "train": ["coco/000000000009", "coco/000000522418"],
        "validation": ["coco/000000184613"],
        "test": ["coco/000000391895"],
    }
    assert rows["train"]["samples"][1][0]["answers"] == ["A restval photo.", "A photo."]
    assert rows["train"]["samples"][1][0]["id"] == "coco_caption/522418"


def test_lavis_files_give_the_rows_of_karpathys(karpathy_folder, cache):
    """LAVIS lists captions in train and images in val and test; written by hand from its documentation."""
    expected = load("coco_caption", karpathy_folder, cache_dir=cache)
    images = read_images(karpathy_folder)
    (karpathy_folder / "dataset_coco.json").unlink()
    captions = {"train": [], "val": [], "test": []}
    for image in images:
        name, texts = NAMES[image["split"]], [sentence["raw"] for sentence in image["sentences"]]
        if image["split"] in ("train", "restval"):
            captions["train"] += [
                {"caption": text, "image": name, "image_id": f"coco_{name[-10:-4]}"} for text in texts
            ]
        else:
            captions[image["split"]].append({"image": name, "caption": texts})
    captions["train"].sort(key=lambda record: record["caption"])  # the captions of an image need not be neighbours
    for split, records in captions.items():
        (karpathy_folder / f"coco_karpathy_{split}.json").write_text(json.dumps(records))
    rows = load("coco_caption", karpathy_folder, cache_dir=cache)
    for split in expected:
        mine = {row["image_id"]: sorted(row["samples"][0]["answers"]) for row in rows[split].remove_columns("image")}
        theirs = {
            row["image_id"]: sorted(row["samples"][0]["answers"]) for row in expected[split].remove_columns("image")
        }
        assert mine == theirs


def test_the_images_of_karpathys_split_may_be_elsewhere(karpathy_folder, tmp_path_factory, cache):
    elsewhere = tmp_path_factory.mktemp("coco")
    for name in ("train2014", "val2014"):
        (karpathy_folder / name).rename(elsewhere / name)
    rows = load("coco_caption", karpathy_folder, split="train", cache_dir=cache, image_dirs=(str(elsewhere),))
    assert len(rows) == 2


def test_the_mixture_takes_karpathys_split(karpathy_folder):
    made = builder("coco_caption", karpathy_folder)
    assert made.config.name == "karpathy"
    assert TABLE["coco_caption"].counts["karpathy/train"].answers == TABLE["coco_caption"].sampling_size == 566_747


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "tran"}, "row 2: split 'tran' is none of train, restval, val, test"),
        ({"filename": "../9.jpg"}, "row 2: image 'val2014/../9.jpg' is not named by a COCO id of 12 digits"),
        ({"filename": "x/../COCO_val2014_000000522418.jpg"}, "row 2: .* is not a name inside"),
        ({"filepath": 2014}, "row 2: 'filepath' should be str"),
        ({"filename": "COCO_val2014_000000522419.jpg"}, "row 2: image .*000000522419.jpg' is not in "),
        ({"sentences": []}, "row 2: image val2014/COCO_val2014_000000522418.jpg has no usable caption"),
        ({"sentences": [{"raw": "A photo."}, {"raw": " "}]}, "row 2: sentence 2: 'raw' is blank"),
        ({"sentences": None}, "row 2: 'sentences' should be list"),
    ],
)
def test_a_bad_image_of_karpathys_is_named(karpathy_folder, cache, change, message):
    images = read_images(karpathy_folder)
    images[1].update(change)
    write_karpathy(karpathy_folder, images)
    with pytest.raises(BadRowError, match=message):
        load("coco_caption", karpathy_folder, cache_dir=cache)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (["a photo"], "row 1: expected an object with 'image'"),
        ([{"image": NAMES["train"]}], "row 1: 'caption' is missing"),
        ([{"image": NAMES["train"], "caption": 3}], "row 1: 'caption' should be str or list"),
        ([{"image": NAMES["train"], "caption": ["a", ""]}], r"row 1: 'caption\[1\]' is blank"),
        ([{"image": NAMES["train"], "caption": ["a"]}] * 2, "row 2: image .* again, first in row 1"),
    ],
)
def test_a_bad_row_of_lavis_is_named(karpathy_folder, cache, records, message):
    (karpathy_folder / "dataset_coco.json").unlink()
    (karpathy_folder / "coco_karpathy_train.json").write_text(json.dumps(records))
    with pytest.raises(BadRowError, match=message):
        load("coco_caption", karpathy_folder, cache_dir=cache)


def test_a_bad_caption_is_left_out_and_its_image_stays(karpathy_folder, cache):
    images = read_images(karpathy_folder)
    images[0]["sentences"][0]["raw"] = ""
    write_karpathy(karpathy_folder, images)
    rows = load("coco_caption", karpathy_folder, split="train", cache_dir=cache, on_bad="skip")
    assert rows["samples"][0][0]["answers"] == ["A photo."]


@pytest.mark.parametrize("content", ["3", '{"annotations": []}', '{"images": {}}'])
def test_a_file_of_another_layout_is_refused(karpathy_folder, cache, content):
    (karpathy_folder / "dataset_coco.json").write_text(content)
    with pytest.raises(ValueError, match="dataset_coco.json: expected a list, or an object with a list 'images'"):
        load("coco_caption", karpathy_folder, cache_dir=cache)


def test_a_folder_without_karpathys_files_says_which(coco_folder, cache):
    with pytest.raises(FileNotFoundError, match=r"expected one or more of dataset_coco\.json"):
        load("coco_caption", coco_folder, cache_dir=cache)
    with pytest.raises(ValueError, match="coco_caption has no split 'test': it has train, validation"):
        load("coco_caption", coco_folder, "2017", split="test", cache_dir=cache)


def test_real_images_and_captions(real_data, cache):
    rows = load("coco_caption", real_data / "coco_mini", "2017", cache_dir=cache)
    assert {split: len(part) for split, part in rows.items()} == {"train": 26, "validation": 25}
    samples = [sample for part in rows.values() for row in part["samples"] for sample in row]
    assert sum(len(sample["answers"]) for sample in samples) == 255


def test_the_real_validation_file_has_the_counts_of_the_table(real_data, tmp_path, cache):
    official = real_data / "coco_caption_eval" / "captions_val2017.json"
    (tmp_path / "val2017").mkdir()
    (tmp_path / "captions_val2017.json").symlink_to(official)
    for entry in json.loads(official.read_text())["images"]:
        (tmp_path / "val2017" / entry["file_name"]).touch()  # the pictures are not at hand; their names are
    rows = load("coco_caption", tmp_path, "2017", split="validation", cache_dir=cache, verify_images=False)
    answers = sum(len(sample["answers"]) for row in rows["samples"] for sample in row)
    assert Counts(len(rows), len(rows), answers) == TABLE["coco_caption"].counts["2017/validation"]


def test_the_hub_copy_of_karpathys_split_has_the_same_sample(karpathy_folder, cache):
    row = load("coco_caption", karpathy_folder, split="test", cache_dir=cache)[0]
    copy = next(copy for copy in TABLE["coco_caption"].hub if not copy.variant)
    theirs = {
        "filepath": "val2014",
        "filename": NAMES["test"].split("/")[1],
        "cocoid": 391895,
        "split": "test",
        "sentences": ["A test photo. ", "A photo."],
    }
    (record,) = copy.records(theirs, 1, "test")
    assert copy.image_file(record) == NAMES["test"]
    assert (copy.image_id(record), [make_sample(**copy.sample(record))]) == (row["image_id"], row["samples"])


def test_files_of_another_config_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match="json for config karpathy; other configs are 2017, 2014"):
        load("coco_caption", tmp_path)
