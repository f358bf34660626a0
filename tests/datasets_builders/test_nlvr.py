"""The small fixture is written by hand from the owners' README; the real files are used where they are at hand."""

import collections
import json

import pytest

from instructblip.datasets_builders import load
from instructblip.datasets_builders.official_files import BadRowError
from instructblip.datasets_builders.table import TABLE, Counts


def example(identifier, label="true", **other):
    rest = {"directory": "2", "evals": {"r0": label}, "structured_rep": [[], [], []]}
    return {
        "sentence": "There is a box with a yellow item. ",
        "label": label,
        "identifier": identifier,
        **rest,
        **other,
    }


def write(folder, lines):
    content = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "dev" / "dev.json").write_text("\n".join(content) + "\n")


@pytest.fixture
def folder(tmp_path, picture):
    for identifier in ("72-0", "72-1"):
        for order in range(6):
            picture(tmp_path / "nlvr" / "dev" / "images" / "2" / f"dev-{identifier}-{order}.png", 40 * order)
    return tmp_path / "nlvr"


def test_an_example_is_true_or_false_of_its_first_drawing(folder, cache):
    write(folder, [example("72-0"), example("72-1", "false")])
    rows = load("nlvr", folder, split="validation", cache_dir=cache)
    assert rows["image_id"] == ["nlvr/dev-72-0-0", "nlvr/dev-72-1-0"]
    (first,), (second,) = rows["samples"]
    assert first["question"] == "There is a box with a yellow item."
    assert (first["answers"], first["label"], first["choices"]) == (["true"], 1, ["false", "true"])
    assert (second["answers"], second["label"]) == (["false"], 0)


def test_all_shows_the_six_drawings(folder, cache):
    write(folder, [example("72-0")])
    rows = load("nlvr", folder, config="all", split="validation", cache_dir=cache)
    assert rows["image_id"] == [f"nlvr/dev-72-0-{order}" for order in range(6)]
    assert [image.getpixel((0, 0))[0] for image in rows["image"]] == [0, 40, 80, 120, 160, 200]
    assert len({sample["id"] for row in rows["samples"] for sample in row}) == 6


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[", "not JSON"),
        ("3", "expected an object with 'label', found int 3"),
        (example("72-1", "maybe"), "'label' should be 'true' or 'false', is 'maybe'"),
        (example("72-1", evals={}, label=True), "'label' should be str, is bool True"),
        (example("72-1", sentence=""), "'sentence' is blank"),
        (example("72-3"), "image '2/dev-72-3-0.png' is not in .*dev/images"),
        (example("72-1", directory="../images/2"), "image .* is not a name inside the image folder"),
        (example("72-0"), "id 'nlvr/dev-72-0-0' again, first in row 1"),
    ],
)
def test_a_bad_line_is_named(folder, cache, line, message):
    write(folder, [example("72-0"), line])
    with pytest.raises(BadRowError, match=rf"dev\.json, row 2: {message}"):
        load("nlvr", folder, split="validation", cache_dir=cache)
    assert len(load("nlvr", folder, split="validation", cache_dir=cache, on_bad="skip")) == 1


@pytest.mark.parametrize(("split", "true"), [("validation", 547), ("test", 556)])
def test_the_real_files_have_the_counts_of_the_table(real_data, cache, split, true):
    rows = load("nlvr", real_data / "nlvr", split=split, cache_dir=cache, verify_images=False)
    samples = [sample for row in rows["samples"] for sample in row]
    answers = collections.Counter(sample["answers"][0] for sample in samples)
    assert Counts(len(rows), len(samples), answers.total()) == TABLE["nlvr"].counts[f"first/{split}"]
    assert answers["true"] == true
    assert rows[0]["image"].mode == "RGBA"
