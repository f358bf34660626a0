import json
import os

import datasets
import pytest

from instructblip.datasets_builders import InstructionDataset, load_own, own_format
from instructblip.datasets_builders.official_files import BadRowError
from instructblip.datasets_builders.templates import Template


@pytest.fixture
def folder(tmp_path, picture):
    """photos/0.jpg to photos/3.jpg, and nothing that says what they show."""
    for number in range(4):
        picture(tmp_path / "mine" / "photos" / f"{number}.jpg", 40 * number)
    return tmp_path / "mine"


@pytest.fixture
def own(cache):
    """own(source, ...): `load_own` with a cache of the test's."""
    return lambda source, **options: load_own(source, cache_dir=cache, **options)


def write(path, records):
    path.write_text("".join((record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records))
    return path


def question(number, text="What is it?", answer="grey", **other):
    return {"image": f"photos/{number}.jpg", "question": text, "answer": answer, **other}


def asked(rows):
    return [[sample["question"] for sample in row["samples"]] for row in rows]


def test_questions_about_one_image_share_its_row(folder, own):
    rows = own(write(folder / "train.jsonl", [question(0, "a?"), question(1, "b?"), question(0, "c?")]))
    assert asked(rows) == [["a?", "c?"], ["b?"]]
    assert rows[1]["image"].size == (12, 8)
    assert rows[0]["image_id"].endswith("/photos/0.jpg")
    assert [sample["id"] for row in rows["samples"] for sample in row] == [f"mine/train/{line}" for line in (1, 3, 2)]


def test_rows_become_instructions(folder, own):
    rows = own(write(folder / "train.jsonl", [question(0, "What {is} it?"), question(1)]))
    items = InstructionDataset(rows, "mine", templates=[Template("Q: {question} A:")])
    assert items.text(0)["instruction"] == "Q: What {is} it? A:"
    assert items[1]["response"] == "grey"


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_a_folder_of_images_is_read_with_its_metadata(folder, own, name):
    if name.endswith("csv"):
        (folder / name).write_text("file_name,text\nphotos/0.jpg,a dog\nphotos/1.jpg,a cat\n")
    else:
        write(
            folder / name, [{"file_name": f"photos/{i}.jpg", "text": text} for i, text in enumerate(("a dog", "a cat"))]
        )
    rows = own(folder)
    assert [row["samples"][0]["answers"] for row in rows] == [["a dog"], ["a cat"]]


def test_split_folders_are_splits(folder, own, picture):
    for name in ("train", "val"):
        picture(folder / name / "a.jpg")
        write(folder / name / "metadata.jsonl", [{"file_name": "a.jpg", "caption": name}])
    rows = own(folder)
    assert {split: part[0]["samples"][0]["answers"] for split, part in rows.items()} == {
        "train": ["train"],
        "validation": ["val"],
    }
    ids = {sample["id"] for part in rows.values() for row in part for sample in row["samples"]}
    assert len(ids) == 2
    assert len(own(folder, split="train[:100%]")) == 1


def test_llava_talks_are_read_with_images_elsewhere(folder, own, tmp_path):
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}]
    record = {"id": "0", "image": "0.jpg", "conversations": turns * 2}
    text = {"id": "0", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
    record["conversations"] = [*turns, {"from": "human", "value": "Where?"}, {"from": "gpt", "value": "Here."}]
    (tmp_path / "llava.json").write_text(json.dumps([record, text]))
    rows = own(tmp_path / "llava.json", image_dir=folder / "photos")
    assert asked(rows) == [["What?", "Where?"], ["Hi"]]
    assert rows[0]["samples"][1]["history"] == [{"question": "What?", "answer": "A dog."}]
    assert rows[1]["image"] is None
    assert InstructionDataset(rows, "llava", templates=[Template("{question}")])[2]["image"] is None


def test_several_images_make_the_column_images(folder, own):
    records = [question(0), {"images": ["photos/0.jpg", "photos/1.jpg"], "question": "Which?", "answer": "none"}]
    rows = own(write(folder / "train.jsonl", records))
    assert [len(row["images"]) for row in rows] == [1, 2]
    assert rows[1]["image_id"].count("+") == 1
    assert datasets.List(datasets.Image()) == rows.features["images"]


def test_a_stream_has_the_same_rows(folder, own):
    file = write(folder / "train.jsonl", [question(0, "a?"), question(1, "b?"), question(0, "c?")])
    rows, stream = own(file), own(file, streaming=True)
    assert [row["samples"] for row in stream] == list(rows["samples"])


def test_columns_are_mapped(folder, own):
    record = {"img": "photos/0.jpg", "q": "What?", "a": "grey"}
    rows = own(write(folder / "a.jsonl", [record]), columns={"image": "img", "question": "q", "answer": "a"})
    assert asked(rows) == [["What?"]]


def test_a_changed_file_is_read_again(folder, own):
    file = write(folder / "train.jsonl", [question(0, "a?")])
    assert asked(own(file)) == [["a?"]]
    write(file, [question(0, "b?")])
    assert asked(own(file)) == [["b?"]]
    assert asked(own(file, columns={"question": "answer", "answer": "question"})) == [["grey"]]


def test_a_file_may_hold_questions_and_instructions(folder, own):
    told = {"image": "photos/1.jpg", "instruction": "Say grey.", "response": "grey"}
    rows = own(write(folder / "a.jsonl", [question(0, "What?"), told]))
    items = InstructionDataset(rows, "mine", format=own_format("mine", [Template("Q: {question}")]))
    assert items.column("instruction") == ["Q: What?", "Say grey."]


# ---- What cannot be used


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (question("gone"), "image 'photos/gone.jpg' is not in .*mine$"),
        (question("../../cache"), ".*cache.jpg' is not a name inside the image folder"),
        (
            {"image": "photos/0.jpg", "question": "What?"},
            "'answer' is missing: found an object with 'image', 'question'",
        ),
        (question(0, anwser="b"), None),
        (
            {"image": "photos/0.jpg", "question": "a?", "anwser": "b"},
            "'anwser' is not read: if it is 'answer', rename it",
        ),
        ("{", "not JSON"),
        (question(3), "image .*photos/3.jpg: "),
        (question(0, text="a\ud800"), "'question' is not valid text"),
    ],
)
def test_a_bad_row_is_named_or_left_out(folder, own, caplog, line, complaint):
    (folder / "photos" / "3.jpg").write_bytes((folder / "photos" / "0.jpg").read_bytes()[:-40])
    file = write(folder / "train.jsonl", [question(1, "a?"), line, question(2, "b?")])
    if complaint is None:
        assert len(own(file)) == 3
        return
    with pytest.raises(BadRowError, match=f"train.jsonl, row 2: {complaint}"):
        own(file)
    assert asked(own(file, on_bad="skip")) == [["a?"], ["b?"]]
    assert "2 rows kept, 1 bad rows or images left out; first: " in caplog.text


def test_an_id_that_comes_twice_is_named(folder, own):
    with pytest.raises(BadRowError, match="row 2: id 'mine/train/7' again, first in row 1"):
        own(write(folder / "train.jsonl", [question(0, id=7), question(1, id=7)]))


def test_links_out_of_the_folder_are_followed_only_by_their_owner(folder, own):
    os.symlink(folder / "photos", folder / "linked")
    assert len(own(write(folder / "train.jsonl", [{**question(0), "image": "linked/0.jpg"}]))) == 1


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("gone.jsonl", "there is no .*gone.jsonl, seen from .*\nExpected one of\n  a JSON, JSON-lines or CSV file"),
        ("photos", "holds 0.jpg, 1.jpg, 2.jpg, 3.jpg: no annotation file and no Parquet file.\nExpected one of"),
        ("photos/0.jpg", "is no file that can be read, by its name.\nExpected one of"),
        (".", "holds photos: no annotation file"),
    ],
)
def test_a_source_that_cannot_be_read_says_what_can(folder, source, complaint):
    with pytest.raises((ValueError, FileNotFoundError), match=complaint):
        load_own(folder / source)


def test_a_dataset_of_the_table_is_pointed_to_its_loader():
    with pytest.raises(FileNotFoundError, match=r"There is a builder for vqa_rad: load\('vqa_rad', ...\)"):
        load_own("vqa_rad")


def test_arguments_that_do_not_fit_are_refused(folder):
    file = write(folder / "train.jsonl", [question(0)])
    with pytest.raises(TypeError, match="source is a list.\nExpected one of"):
        load_own([question(0)])
    with pytest.raises(ValueError, match="on_bad='ignore': expected 'raise' or 'skip'"):
        load_own(file, on_bad="ignore")
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere to find images in"):
        load_own(file, image_dir=folder / "nowhere")
    with pytest.raises(ValueError, match="has no split 'test': it has train"):
        load_own(file, split="test")
    with pytest.raises(TypeError, match="image_dir= is for annotation files"):
        load_own(datasets.Dataset.from_list([{"caption": "a"}]), image_dir=folder)


def test_messages_about_a_whole_file_name_it(folder):
    with pytest.raises(ValueError, match=r"mine/empty\.json: no usable row for train"):
        load_own(write(folder / "empty.json", ["[]"]))
    with pytest.raises(ValueError, match=r"mine/train\.jsonl has no split 'test': it has train"):
        load_own(write(folder / "train.jsonl", [question(0)]), split="test")
