"""The fixture is written by hand from the format that the owners' README gives; the set must not be passed on."""

import json

import pytest

from instructblip.datasets_builders import load
from instructblip.datasets_builders.official_files import BadRowError
from instructblip.datasets_builders.schema import make_sample
from instructblip.datasets_builders.table import TABLE
from instructblip.datasets_builders.templates import format_instruction


def meme(number, label=0, **other):
    text = "when the cake is done"
    return {"id": number, "img": f"img/{number:05d}.png", "label": label, "text": text, **other}


def write(folder, lines, name="dev_seen"):
    content = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / f"{name}.jsonl").write_text("\n".join(content) + "\n")


@pytest.fixture
def folder(tmp_path, picture):
    for number in (8291, 42953):
        picture(tmp_path / "memes" / "img" / f"{number:05d}.png")
    return tmp_path / "memes"


def test_the_text_on_the_meme_is_the_context(folder, cache):
    write(folder, [meme(8291, 1), meme(42953, text="good dog ")])
    rows = load("hateful_memes", folder, split="dev_seen", cache_dir=cache)
    assert rows["image_id"] == ["hateful_memes/08291", "hateful_memes/42953"]
    (first,), (second,) = rows["samples"]
    assert (first["question"], first["choices"]) == ("Is it hateful?", ["no", "yes"])
    assert (first["label"], first["answers"]) == (1, ["yes"])
    assert (second["context"], second["label"], second["answers"]) == ("good dog", 0, ["no"])


def test_a_meme_may_come_in_two_splits_under_two_ids(folder, cache):
    write(folder, [meme(8291)], "dev_seen")
    write(folder, [meme(8291)], "dev_unseen")
    rows = load("hateful_memes", folder, cache_dir=cache)
    assert {split: part[0]["samples"][0]["id"] for split, part in rows.items()} == {
        "dev_seen": "hateful_memes/dev_seen/8291",
        "dev_unseen": "hateful_memes/dev_unseen/8291",
    }


def test_only_a_test_file_may_lack_labels(folder, cache):
    unlabelled = meme(8291)
    del unlabelled["label"]
    write(folder, [unlabelled], "test_unseen")
    (sample,) = load("hateful_memes", folder, split="test_unseen", cache_dir=cache)[0]["samples"]
    assert (sample["label"], sample["answers"]) == (-1, [])
    write(folder, [unlabelled], "train")
    with pytest.raises(BadRowError, match=r"train\.jsonl, row 1: 'label' is missing"):
        load("hateful_memes", folder, split="train", cache_dir=cache)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        (meme(8291, 2), "'label' should be 0 or 1, is 2"),
        (meme(8291, True), "'label' should be int, is bool True"),
        (meme(8291, text=""), "'text' is blank"),
        (meme(8291, id=None), "'id' should be int or str, is NoneType None"),
        (meme(9), "image '00009.png' is not in .*img"),
        (meme(8291, img="/etc/passwd"), "image '/etc/passwd' is not a name inside the image folder"),
    ],
)
def test_a_bad_line_is_named(folder, cache, line, message):
    write(folder, [meme(42953), line])
    with pytest.raises(BadRowError, match=rf"dev_seen\.jsonl, row 2: {message}"):
        load("hateful_memes", folder, split="dev_seen", cache_dir=cache)
    assert len(load("hateful_memes", folder, split="dev_seen", cache_dir=cache, on_bad="skip")) == 1


def test_the_hub_copy_has_the_same_sample(folder, cache):
    write(folder, [meme(8291, 1)], "train")
    (row,) = load("hateful_memes", folder, split="train", cache_dir=cache)
    copy = TABLE["hateful_memes"].hub[0]
    (record,) = copy.records(meme(8291, 1), 1, "train")
    assert copy.image_file(record) == "img/08291.png"
    assert (copy.image_id(record), [make_sample(**copy.sample(record))]) == (row["image_id"], row["samples"])


def test_images_may_lie_elsewhere(folder, tmp_path, cache):
    write(tmp_path, [meme(8291)])
    elsewhere = (str(folder / "img"),)
    assert len(load("hateful_memes", tmp_path, split="dev_seen", cache_dir=cache, image_dirs=elsewhere)) == 1


def test_the_prompt_is_the_papers(folder, cache):
    write(folder, [meme(8291)])
    (sample,) = load("hateful_memes", folder, split="dev_seen", cache_dir=cache)[0]["samples"]
    expected = 'This is an image with: "when the cake is done" written on it. Is it hateful? Answer:'
    assert format_instruction(TABLE["hateful_memes"].prompt, sample) == expected
