import json

import pytest

from instructblip.datasets_builders import load
from instructblip.datasets_builders.llava_instruct import read_turns
from instructblip.datasets_builders.official_files import BadRowError
from instructblip.datasets_builders.table import TABLE


def talk(*texts):
    return [{"from": "gpt" if number % 2 else "human", "value": text} for number, text in enumerate(texts)]


def record(number, *texts, **other):
    name = f"{number:012d}"
    return {"id": name, "image": f"{name}.jpg", "conversations": talk(*texts), **other}


def write(folder, records, name="conversation_58k"):
    (folder / f"{name}.json").write_text(json.dumps(records))


@pytest.fixture
def llava_folder(tmp_path, picture):
    """Two talks about one image and one about another, in LLaVA's layout; written by hand from its documentation."""
    for number in (33471, 442786):
        picture(tmp_path / "train2017" / f"{number:012d}.jpg")
    write(
        tmp_path,
        [
            record(33471, "<image>\nWhat color is the bus?", "White and red.", "What is on its back?", "An\nad. "),
            record(442786, "Where is the cat?\n<image>", "On a sofa."),
            record(33471, "<image>\nIs it moving?", "No."),
        ],
    )
    return tmp_path


def test_each_turn_is_a_sample_with_the_turns_before_it(llava_folder, cache):
    rows = load("llava_conversation", llava_folder, split="train", cache_dir=cache)
    assert rows["image_id"] == ["coco/000000033471", "coco/000000442786"]
    bus, cat = rows["samples"]
    assert [(sample["question"], sample["answers"]) for sample in bus] == [
        ("What color is the bus?", ["White and red."]),
        ("What is on its back?", ["An\nad. "]),  # as it stands in the file
        ("Is it moving?", ["No."]),
    ]
    assert [sample["history"] for sample in bus] == [
        [],
        [{"question": "What color is the bus?", "answer": "White and red."}],
        [],
    ]
    assert [sample["id"] for sample in bus + cat] == [
        "llava_instruct/conversation_58k/1/1",
        "llava_instruct/conversation_58k/1/2",
        "llava_instruct/conversation_58k/3/1",
        "llava_instruct/conversation_58k/2/1",
    ]
    assert cat[0]["question"] == "Where is the cat?"


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("llava_conversation", "conversation_58k"),
        ("llava_detail", "detail_23k"),
        ("llava_reasoning", "complex_reasoning_77k"),
        ("llava_instruct", "llava_instruct_150k"),
    ],
)
def test_each_part_reads_its_own_file(llava_folder, cache, name, file):
    write(llava_folder, [record(442786, "Why?", f"As {file} says.")], file)
    rows = load(name, llava_folder, split="train", cache_dir=cache)
    assert rows["samples"][0][0]["answers"] == [f"As {file} says."]
    assert TABLE[name].task == "chat"


def test_the_images_may_be_elsewhere(llava_folder, tmp_path, cache):
    (llava_folder / "train2017").rename(tmp_path / "coco")
    rows = load(
        "llava_conversation", llava_folder, split="train", cache_dir=cache, image_dirs=(str(tmp_path / "coco"),)
    )
    assert rows[0]["image"].size == (12, 8)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (
            {"conversations": talk("a", "b", "c")},
            "row 2: 'conversations' has 3 messages: expected questions and answers",
        ),
        ({"conversations": []}, "row 2: 'conversations' has 0 messages"),
        ({"conversations": talk("a", "b")[::-1]}, "row 2: message 1 of 'conversations': from 'gpt': expected 'human'"),
        ({"conversations": talk("a", " ")}, "row 2: message 2 of 'conversations': 'value' is blank"),
        ({"conversations": talk("<image>\n", "b")}, "row 2: message 1 of 'conversations': nothing but <image>"),
        ({"conversations": talk("a", "b <image>")}, "row 2: message 2 of 'conversations': an answer with <image>"),
        ({"conversations": ["a", "b"]}, "row 2: message 1 of 'conversations': expected an object with 'from'"),
        ({"conversations": "a"}, "row 2: 'conversations' should be list"),
        ({"image": "../train2017/000000442786.jpg"}, "row 2: .* is not a name inside"),
        ({"image": "cat.jpg"}, "row 2: image 'cat.jpg' is not named by a COCO id"),
        ({"image": "000000000001.jpg"}, "row 2: image '000000000001.jpg' is not in .*train2017"),
        ({"image": None}, "row 2: 'image' should be str"),
    ],
)
def test_a_bad_talk_is_named(llava_folder, cache, broken, message):
    write(llava_folder, [record(33471, "a", "b"), record(442786, "a", "b", **broken)])
    with pytest.raises(BadRowError, match=f"conversation_58k.json, {message}"):
        load("llava_conversation", llava_folder, cache_dir=cache)
    kept = load("llava_conversation", llava_folder, split="train", cache_dir=cache, on_bad="skip")
    assert kept["image_id"] == ["coco/000000033471"]


def test_only_the_image_token_goes():
    assert read_turns(talk("  Why? ", "No. ", "See <image> here", "b")) == [
        {"question": "  Why? ", "answer": "No. "},
        {"question": "See  here", "answer": "b"},
    ]


def test_real_talks_in_the_files_layout(real_data, tmp_path, picture, cache):
    """90 questions and answers of the LLaVA authors on 30 images, three a talk; in the layout of the training files."""
    lines = (real_data / "nc" / "llava" / "coco2014_val_gpt4_qa_30x3.jsonl").read_text().splitlines()
    talks = {}
    for line in map(json.loads, lines):
        talks.setdefault(int(line["id"]), []).extend([line["instruction"], line["output"]])
    for number in talks:
        picture(tmp_path / "train2017" / f"{number:012d}.jpg")
    write(tmp_path, [record(number, *texts) for number, texts in talks.items()])
    rows = load("llava_conversation", tmp_path, split="train", cache_dir=cache)
    assert len(rows) == 30
    samples = [sample for row in rows["samples"] for sample in row]
    assert [len(sample["history"]) for sample in samples] == [0, 1, 2] * 30
