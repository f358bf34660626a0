import gzip
import json
import os
import random

import pyarrow as pa
import pytest
from datasets import Features

from instructblip.datasets_builders.official_files import BadRowError
from instructblip.datasets_builders.own_files import (
    annotation_files,
    image_place,
    mentions_several_images,
    read_records,
)
from instructblip.datasets_builders.own_records import Reading, read_record
from instructblip.datasets_builders.schema import SAMPLE_FEATURES

KIND = Features(SAMPLE_FEATURES).type
RECORDS = [{"image": "a.jpg", "question": "Wer?", "answer": "ü"}, {"image": "b.jpg", "question": "Was?", "answer": "2"}]


def read(path, **columns):
    return list(read_records(str(path), Reading(tuple(columns.items()))))


def lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.mark.parametrize(
    ("name", "text", "rows"),
    [
        ("a.jsonl", lines(RECORDS), [1, 2]),
        ("a.jsonl", "\ufeff" + lines(RECORDS).replace("\n", "\r\n\r\n"), [1, 3]),
        ("a.json", lines(RECORDS), [1, 2]),
        ("a.json", json.dumps(RECORDS, indent=2), [1, 2]),
        ("a.jsonl", json.dumps(RECORDS), [1, 2]),
        ("a.csv", "image,question,answer\na.jpg,Wer?,ü\nb.jpg,Was?,2\n", [2, 3]),
        ("a.csv", '\ufeffimage,question,answer\r\n"a.jpg",Wer?,ü\r\n\r\nb.jpg,"Was?",2\r\n', [2, 4]),
        ("a.tsv", "image\tquestion\tanswer\na.jpg\tWer?\tü\nb.jpg\tWas?\t2\n", [2, 3]),
    ],
)
@pytest.mark.parametrize("pack", [False, True])
def test_the_kind_of_file_is_seen_from_its_content(tmp_path, name, text, rows, pack):
    path = tmp_path / (name + ".gz" * pack)
    path.write_bytes(gzip.compress(text.encode()) if pack else text.encode())
    assert read(path) == list(zip(rows, RECORDS, strict=True))


def test_a_cell_may_hold_line_breaks_and_lists(tmp_path):
    text = 'image,question,pick,answer\na.jpg,"Two\nlines","[""x"", ""y""]",x\nb.jpg,One,,\n'
    (tmp_path / "a.csv").write_text(text)
    first, second = read(tmp_path / "a.csv", choices="pick")
    assert first == (2, {"image": "a.jpg", "question": "Two\nlines", "pick": ["x", "y"], "answer": "x"})
    assert second == (4, {"image": "b.jpg", "question": "One"})  # an empty cell is nothing


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("a.jsonl", "", "a.jsonl: the file is empty"),
        ("a.json", '{"data":\n[1]}', "expected a list of records.*found an object with 'data': write what is"),
        ("a.json", '{"data": [1]}', "expected a list of records.*found an object with 'data': write what is"),
        ("a.json", '{\n "a": 1\n}', "expected a list of records, or a record on each line, found an object with 'a'"),
        ("a.json", '{\n "a": \n}', "line 3, column 1: not JSON"),
        ("a.json", "[{}, {]", "a.json, row 2: not JSON"),
        ("a.csv", "a,a\n1,2\n", "line 1: expected the names of the columns, each once"),
        ("a.csv", "a,b\n1,2\n3,\"4\n", "line 3: not a CSV file"),
        ("a.csv", "a;b\n1;2\n", "line 1: its columns have ';' between them, where ',' was expected"),
        ("a.jsonl.gz", "{}", "a.jsonl.gz: not a JSON file .Not a gzipped file"),
        ("a.csv.gz", "a,b", "a.csv.gz: not a CSV file .Not a gzipped file"),
        ("a.csv", "a,b\n1,\udce9\n", "not a CSV file"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_says_where(tmp_path, name, text, complaint):
    (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=complaint):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("a.jsonl", "{}\n{\n{}\n", "row 2: not JSON"),
        ("a.csv", "a,b\n1,2,3\n1,2\n", "row 2: 3 cells for the 2 columns"),
        ("a.csv", 'a,choices\n1,"[""x"""\n1,\n', "row 2: 'choices' begins a list, but is not JSON"),
    ],
)
def test_a_row_that_cannot_be_read_leaves_the_others(tmp_path, name, text, complaint):
    (tmp_path / name).write_text(text)
    found = [value for _, value in read(tmp_path / name)]
    assert any(isinstance(value, dict) for value in found)
    (bad,) = [value for value in found if isinstance(value, BadRowError)]
    assert complaint in str(bad)


@pytest.mark.parametrize(
    ("text", "several"),
    [
        ('{"image": "a.jpg", "answers": ["images"]}', False),
        ('{"image": "a.jpg", "answer": "\\"images\\": ["}', False),
        ('{"images" : ["a.jpg"]}', True),
        ('{"image": ["a.jpg"]}', True),
        ('{"pics": ["a.jpg"]}', True),
        (" " * ((1 << 20) - 7) + '{"image": ["a.jpg"]}', True),  # over the end of a block
    ],
)
def test_lists_of_images_are_found_without_parsing(tmp_path, text, several):
    (tmp_path / "a.jsonl").write_text(text)
    assert mentions_several_images(str(tmp_path / "a.jsonl"), Reading((("file_names", "pics"),))) == several


def test_lists_of_images_are_found_in_a_header(tmp_path):
    (tmp_path / "a.csv").write_text('"images",question\n')
    (tmp_path / "b.csv").write_text("image,images_of_others\n")
    assert mentions_several_images(str(tmp_path / "a.csv"), Reading())
    assert not mentions_several_images(str(tmp_path / "b.csv"), Reading())


FORMS = [
    {"image": "a.jpg", "question": "How many?", "answer": "two", "ocr_tokens": ["a"], "history": [["q", "a"]], "id": 3},
    {"images": ["a.jpg", "b.jpg"], "question": "<image> or <image>?", "choices": ["x", "y"], "label": 1},
    {
        "image": "a.jpg",
        "conversations": [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "that"}],
    },
    {"images": ["a.jpg"], "texts": [{"user": "a?", "assistant": "b", "source": "s"}]},
    {"images": [], "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    {"image": "a.jpg", "caption": "c", "context": ""},
]
ODD = [None, True, 1e400, -1, "", [], {}, [[]], [None], "\ud800", "<image>", "\0", {"a": 1}, 10**30]


def corrupted(records, chance):
    """Records with odd values, missing and wrong keys, as bytes of which some are changed."""
    records = json.loads(json.dumps(records))
    record = chance.choice(records)
    while True:
        key = chance.choice(list(record) if isinstance(record, dict) else range(len(record)))
        if isinstance(record[key], (dict, list)) and record[key] and chance.random() < 0.7:
            record = record[key]
        else:
            break
    if chance.random() < 0.3 and isinstance(record, dict):
        record[chance.choice(["anser", "image", "images", "label", "history"])] = record.pop(key)
    else:
        record[key] = chance.choice(ODD)
    data = bytearray((lines(records) if chance.random() < 0.5 else json.dumps(records)).encode())
    if chance.random() < 0.4:
        place = chance.randrange(len(data))
        data[place : place + chance.randrange(9)] = chance.randbytes(chance.randrange(4))
    return bytes(data)


def test_a_corrupted_file_is_read_or_says_what_is_wrong(tmp_path):
    chance, path, samples, messages, bad_rows = random.Random(0), tmp_path / "a.json", [], [], 0
    for _ in range(200):
        path.write_bytes(corrupted(FORMS, chance))
        try:
            records = read(path)
        except ValueError as error:
            messages.append(str(error))
            continue
        for row, record in records:
            try:
                if isinstance(record, BadRowError):
                    raise record
                samples += [example.sample for example in read_record(record, Reading(), str(row), "mine")]
            except ValueError:
                bad_rows += 1
    assert all(str(path) in message for message in messages)
    pa.array(samples, KIND)  # Arrow would refuse a wrong value without naming its row
    assert min(len(samples), len(messages), bad_rows) > 20


# ---- Folders


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["metadata.jsonl", "a.jpg"], {"train": "metadata.jsonl"}),
        (["metadata.csv", "train.jsonl"], {"train": "metadata.csv"}),
        (
            ["train/metadata.jsonl", "val/metadata.csv"],
            {"train": "train/metadata.jsonl", "validation": "val/metadata.csv"},
        ),
        (["train.jsonl.gz", "test.json", "notes.txt"], {"train": "train.jsonl.gz", "test": "test.json"}),
        (["mine.JSON", "a.jpg"], {"train": "mine.JSON"}),
        (["a.jpg", "dataset_infos.json"], {}),
    ],
)
def test_what_a_folder_holds_is_seen_from_names(tmp_path, names, found):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert annotation_files(str(tmp_path)) == found


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (["a.jsonl", "b.jsonl"], r"holds 2 annotation files \(a.jsonl, b.jsonl\): pass the one to read"),
        (["val.json", "dev.json"], "holds dev.json and val.json, both for validation"),
    ],
)
def test_a_folder_with_too_much_is_refused(tmp_path, names, complaint):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=complaint):
        annotation_files(str(tmp_path))


# ---- Images


def test_an_image_is_found_by_a_path_inside_its_folder(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    path, image_id = image_place([str(tmp_path)], "photos/a.jpg")
    assert path == str(tmp_path / "photos" / "a.jpg")
    assert image_id.partition("/")[2] == "photos/a.jpg"
    for same in ("./photos//a.jpg", str(tmp_path / "photos" / "a.jpg")):
        assert image_place([str(tmp_path)], same)[1] == image_id


def test_images_of_one_name_in_two_folders_have_two_ids(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").touch()
    assert len({image_place([str(tmp_path / name)], "1.jpg")[1] for name in ("one", "two")}) == 2


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("b.jpg", "image 'b.jpg' is not in"),
        ("../secret.jpg", "not a name inside the image folder"),
        ("/etc/passwd", "is not in .*: pass image_dir="),
        ("HERE/../secret.jpg", "not a name inside the image folder"),
        ("https://example.org/a.jpg", "is an address: download the images"),
        ("a.jpg\0", "is not in"),
        ("\udcff.jpg", "surrogates not allowed"),
        (7, "an image is named by its path, found a int"),
    ],
)
def test_paths_out_of_the_folder_are_refused(tmp_path, name, complaint):
    (tmp_path / "secret.jpg").touch()
    folder = tmp_path / "images"
    folder.mkdir()
    if name == "\udcff.jpg":
        (folder / os.fsdecode(b"\xff.jpg")).touch()
    with pytest.raises(ValueError, match=complaint):
        image_place([str(folder)], name.replace("HERE", str(folder)) if isinstance(name, str) else name)
