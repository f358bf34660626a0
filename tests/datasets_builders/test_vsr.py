import json

import pytest

from instructblip.datasets_builders import load
from instructblip.datasets_builders.official_files import BadRowError
from instructblip.datasets_builders.schema import tag
from instructblip.datasets_builders.table import TABLE, Counts


def statement(image, caption, label, **other):
    link = f"http://images.cocodataset.org/train2017/{image}"
    rest = {"relation": "on", "subj": "dog", "obj": "bed", "annotator_id": 4, "vote_true_validator_id": "[2, 51]"}
    return {"image": image, "image_link": link, "caption": caption, "label": label, **rest, **other}


DOG, CAT = "000000372029.jpg", "000000391895.jpg"


def write(folder, lines, name="splits/zeroshot/dev.jsonl"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")


@pytest.fixture
def vsr_folder(tmp_path, picture):
    picture(tmp_path / "vsr" / "images" / DOG)
    picture(tmp_path / "vsr" / "images" / CAT)
    return tmp_path / "vsr"


def test_statements_about_one_image_share_its_row(vsr_folder, cache):
    lines = [statement(DOG, "The dog is on the bed.", 1), statement(CAT, "It is blue.", 0)]
    write(vsr_folder, [*lines, statement(DOG, "The dog is under the bed. ", 0, relation="under")])
    rows = load("vsr", vsr_folder, split="validation", cache_dir=cache)
    assert rows["image_id"] == ["coco/000000372029", "coco/000000391895"]
    first, second = rows[0]["samples"]
    assert (first["question"], first["answers"], first["label"]) == ("The dog is on the bed.", ["true"], 1)
    assert (second["question"], second["answers"], second["label"]) == ("The dog is under the bed.", ["false"], 0)
    assert first["choices"] == ["false", "true"]
    assert [first["id"], second["id"]] == ["vsr/zeroshot/validation/1", "vsr/zeroshot/validation/3"]
    assert tag(second, "relation") == "under"


def test_images_may_lie_in_other_folders(tmp_path, picture, cache):
    picture(tmp_path / "train2017" / DOG)
    picture(tmp_path / "val2017" / CAT)
    write(tmp_path / "vsr", [statement(DOG, "a", 1), statement(CAT, "b", 1)], "test.jsonl")
    folders = [str(tmp_path / "train2017"), str(tmp_path / "val2017")]
    assert len(load("vsr", tmp_path / "vsr", split="test", cache_dir=cache, image_dirs=folders)) == 2


def test_an_absent_image_is_an_error_or_a_counted_skip(vsr_folder, cache, caplog):
    write(vsr_folder, [statement(DOG, "a", 1), statement("000000000001.jpg", "b", 1)])
    with pytest.raises(
        BadRowError, match=r"dev\.jsonl, row 2: image '000000000001.jpg' is not in .*images, .*train2017"
    ):
        load("vsr", vsr_folder, split="validation", cache_dir=cache)
    assert len(load("vsr", vsr_folder, split="validation", cache_dir=cache, on_bad="skip")) == 1
    assert "1 rows kept, 1 bad rows or images left out" in caplog.text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": ', "row 2: not JSON"),
        ("[1]", "row 2: expected an object with 'image', found a list of 1"),
        (statement(DOG, "a", 2), "row 2: 'label' should be 0 or 1, is 2"),
        (statement(DOG, "a", "true"), "row 2: 'label' should be int, is str 'true'"),
        (statement("dog.jpg", "a", 1), "row 2: image 'dog.jpg' is not named by a COCO id"),
    ],
)
def test_a_bad_line_is_named(vsr_folder, cache, line, message):
    write(vsr_folder, [statement(DOG, "a", 1), line])
    with pytest.raises(BadRowError, match=rf"dev\.jsonl, {message}"):
        load("vsr", vsr_folder, split="validation", cache_dir=cache)


def test_a_line_that_is_not_utf8_is_named(vsr_folder, cache):
    write(vsr_folder, [statement(DOG, "a", 1)])
    path = vsr_folder / "splits" / "zeroshot" / "dev.jsonl"
    path.write_bytes(path.read_bytes() + b'{"image": "\xff"}\n')
    with pytest.raises(BadRowError, match=r"dev\.jsonl, row 2: not JSON"):
        load("vsr", vsr_folder, split="validation", cache_dir=cache)


def test_the_real_zero_shot_split_has_the_counts_of_the_table(real_data, tmp_path, cache):
    official = real_data / "vsr" / "splits" / "zeroshot"
    (tmp_path / "images").mkdir()
    for path in official.iterdir():
        (tmp_path / path.name).symlink_to(path)
        for line in path.read_text().splitlines():
            (tmp_path / "images" / json.loads(line)["image"]).touch()  # the pictures are not at hand; their names are
    rows = load("vsr", tmp_path, cache_dir=cache, verify_images=False)
    for split, part in rows.items():
        samples = sum(map(len, part["samples"]))
        assert Counts(len(part), samples, samples) == TABLE["vsr"].counts[f"zeroshot/{split}"]
    truths = [sample["label"] for row in rows["test"]["samples"] for sample in row]
    assert (sum(truths), len(truths)) == (629, 1222)


def test_real_statements_on_real_images(real_data, tmp_path, cache):
    mini = real_data / "coco_mini"
    (tmp_path / "train.jsonl").symlink_to(mini / "vsr_on_these_images.jsonl")
    folders = (str(mini / "train2017"), str(mini / "val2017"))
    rows = load("vsr", tmp_path, split="train", cache_dir=cache, image_dirs=folders)
    assert sum(map(len, rows["samples"])) == 5
    assert all(row["image"].size[0] > 100 for row in rows)
