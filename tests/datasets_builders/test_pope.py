"""The small fixture is written by hand from the real files, which are used where they are at hand."""

import json

import pytest

from instructblip.datasets_builders import load
from instructblip.datasets_builders.official_files import BadRowError
from instructblip.datasets_builders.schema import make_sample
from instructblip.datasets_builders.table import TABLE, Counts

IMAGE = "COCO_val2014_000000310196.jpg"


def question(number, label="yes", **other):
    return {
        "question_id": number,
        "image": IMAGE,
        "text": f"Is there a {number} in the image?",
        "label": label,
        **other,
    }


def write(folder, lines, config="random"):
    content = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / f"coco_pope_{config}.json").write_text("\n".join(content) + "\n")


@pytest.fixture
def folder(tmp_path, picture):
    picture(tmp_path / "pope" / "val2014" / IMAGE)
    return tmp_path / "pope"


def test_questions_about_one_image_share_its_row(folder, cache):
    write(folder, [question(1), question(2, "no")])
    (row,) = load("pope", folder, split="test", cache_dir=cache)
    assert row["image_id"] == "coco/000000310196"
    first, second = row["samples"]
    assert (first["id"], first["question"]) == ("pope/random/1", "Is there a 1 in the image?")
    assert (first["answers"], first["label"], first["choices"]) == (["yes"], 1, ["no", "yes"])
    assert (second["answers"], second["label"]) == (["no"], 0)


def test_a_config_reads_its_own_file(folder, cache):
    write(folder, [question(1)])
    write(folder, [question(1), question(2)], "popular")
    samples = load("pope", folder, config="popular", split="test", cache_dir=cache)[0]["samples"]
    assert [sample["id"] for sample in samples] == ["pope/popular/1", "pope/popular/2"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'a': 1}", "not JSON"),
        ({"question_id": 2}, "'image' is missing"),
        (question(2, "Yes"), "'label' should be 'yes' or 'no', is 'Yes'"),
        (question("2"), "'question_id' should be int, is str '2'"),
        (question(2, image="dog.jpg"), "image 'dog.jpg' is not named by a COCO id"),
        (
            question(2, image="COCO_val2014_000000000001.jpg"),
            "image 'COCO_val2014_000000000001.jpg' is not in .*val2014",
        ),
        (question(1), "id 'pope/random/1' again, first in row 1"),
    ],
)
def test_a_bad_line_is_named(folder, cache, line, message):
    write(folder, [question(1), line])
    with pytest.raises(BadRowError, match=rf"coco_pope_random\.json, row 2: {message}"):
        load("pope", folder, split="test", cache_dir=cache)
    assert len(load("pope", folder, split="test", cache_dir=cache, on_bad="skip")) == 1


@pytest.mark.parametrize("config", ["random", "adversarial"])
def test_the_real_files_have_the_counts_of_the_table(real_data, tmp_path, cache, config):
    official = real_data / "pope" / f"coco_pope_{config}.json"
    for line in official.read_text().splitlines():
        (tmp_path / json.loads(line)["image"]).touch()  # the pictures are not at hand; their names are
    rows = load(
        "pope", official.parent, config=config, cache_dir=cache, verify_images=False, image_dirs=(str(tmp_path),)
    )
    samples = [sample for row in rows["test"]["samples"] for sample in row]
    assert Counts(len(rows["test"]), len(samples), len(samples)) == TABLE["pope"].counts[f"{config}/test"]
    assert sum(sample["label"] for sample in samples) == 1500


@pytest.mark.parametrize("config", ["random", "popular", "adversarial"])
def test_the_hub_copy_has_the_same_sample(folder, cache, config):
    write(folder, [question(1)], config)
    (row,) = load("pope", folder, config=config, split="test", cache_dir=cache)
    (copy,) = (copy for copy in TABLE["pope"].hub if copy.variant == config)
    theirs = {"question_id": "1", "question": question(1)["text"], "answer": "yes", "image_source": IMAGE[:-4]}
    (record,) = copy.records(theirs, 1, "test")
    assert (copy.image_id(record), [make_sample(**copy.sample(record))]) == (row["image_id"], row["samples"])
