"""Copies as folders of Parquet and JSON lines, which `datasets` loads as it loads a repository."""

import dataclasses
import io
import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as Picture

from instructblip.datasets_builders.hub_copies import HubCopy
from instructblip.datasets_builders.hub_rows import CopyReader
from instructblip.datasets_builders.official_files import BadRowError
from instructblip.datasets_builders.schema import row_features

COLUMNS = {"image": "image", "image_id": "coco/{image_id:012d}", "id": "x/{number}", "question": "question"}
COLUMNS |= {"answers": "answers.answer"}


def png(shade):
    file = io.BytesIO()
    Picture.new("RGB", (6, 4), (shade, shade, shade)).save(file, "png")
    return {"bytes": file.getvalue(), "path": None}


def question(number, image_id, /, **changes):
    row = {"image": png(image_id), "image_id": image_id, "number": number, "question": f"Question {number} ?"}
    return {**row, "answers": [{"answer": "yes"}, {"answer": "no"}], "unused": "x" * 9, **changes}


@pytest.fixture
def write(tmp_path):
    """write(rows, name): Parquet of a repository; the image column is an `Image` where rows have one."""

    def write(rows, name="train-00000-of-00001", config=""):
        folder = tmp_path / "repo" / config
        folder.mkdir(parents=True, exist_ok=True)
        features = datasets.Dataset.from_list(rows).features
        if "image" in features:
            features["image"] = datasets.Image()
        table = pa.Table.from_pylist(rows, schema=features.arrow_schema)  # as it is: no path is read
        pq.write_table(table, folder / f"{name}.parquet")
        return str(tmp_path / "repo")

    return write


@pytest.fixture
def read(tmp_path):
    """read(repo, copy=..., **options): a reader that keeps its cache in the test's folder."""

    def read(repo, columns=COLUMNS, options=None, **keys):
        entry = {"repo": repo, "splits": {"train": "train"}, "columns": columns, **keys}
        return CopyReader("x", HubCopy.read("here", entry), cache_dir=str(tmp_path / "cache"), **(options or {}))

    return read


@pytest.fixture
def decoded(monkeypatch):
    """Counts the images that `datasets` decodes."""
    count = []
    decode = datasets.Image.decode_example
    monkeypatch.setattr(
        datasets.Image, "decode_example", lambda *args, **kwargs: count.append(1) or decode(*args, **kwargs)
    )
    return count


def summary(rows):
    return [(row["image_id"], [sample["id"] for sample in row["samples"]]) for row in rows]


SHUFFLED = [question(1, 7), question(2, 5), question(3, 7), question(4, 5), question(5, 9)]


def test_questions_of_one_image_become_one_row_wherever_they_stand(write, read, decoded):
    rows = read(write(SHUFFLED)).rows("train")
    assert not decoded
    assert rows.features == row_features()
    assert summary(rows) == [
        ("coco/000000000007", ["x/1", "x/3"]),
        ("coco/000000000005", ["x/2", "x/4"]),
        ("coco/000000000009", ["x/5"]),
    ]
    assert [int(np.asarray(image)[0, 0, 0]) for image in rows["image"]] == [7, 5, 9]
    assert rows[0]["samples"][0]["answers"] == ["yes", "no"]


def test_images_are_not_copied(write, read):
    rows = read(write([question(number, number, image={"bytes": bytes(1 << 20), "path": None}) for number in range(3)]))
    rows = rows.rows("train")
    assert rows._data.column("image").nbytes > 3 << 20
    own = [file["filename"] for file in rows.cache_files if "instructblip_hub_copies" in file["filename"]]
    (text,) = own
    assert len(open(text, "rb").read()) < 1 << 16  # noqa: SIM115


def test_a_stream_groups_neighbours_and_resumes(write, read, decoded):
    repo = write([question(1, 7), question(2, 7), question(3, 5), question(4, 7)])
    stream = read(repo).stream("train")
    assert stream.features == row_features()
    rows = list(stream)
    assert len(decoded) == len(rows) == 3
    assert summary(rows) == [
        ("coco/000000000007", ["x/1", "x/2"]),
        ("coco/000000000005", ["x/3"]),
        ("coco/000000000007", ["x/4"]),
    ]
    iterator = iter(stream)
    next(iterator)
    stream.load_state_dict(stream.state_dict())
    assert summary(stream) == summary(rows[1:])


def test_what_stays_the_same_is_read_from_the_cache(write, read, monkeypatch):
    repo = write(SHUFFLED)
    first = summary(read(repo).rows("train"))
    monkeypatch.setattr(HubCopy, "sample", lambda *args: pytest.fail("mapped again"))
    assert summary(read(repo).rows("train")) == first
    with pytest.raises(BaseException, match="mapped again"):
        read(repo, {**COLUMNS, "context": "unused"}).rows("train")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"question": " "}, "'question' is blank"),
        ({"question": None}, "'question' should be text, is NoneType"),
        ({"image_id": None}, "column 'image_id' should be text or a whole number, is NoneType None"),
        ({"number": 1}, "id 'x/1' again, first in row 1"),
        ({"image": None}, "the image has no bytes"),
        ({"image": {"bytes": None, "path": "/etc/hostname"}}, "the image has no bytes"),
        ({"answers": [{"answer": ""}]}, r"'answers\[0\]' is blank"),
    ],
)
def test_a_bad_row_is_named_or_left_out_and_counted(write, read, caplog, change, reason):
    repo = write([question(1, 7), question(2, 5, **change), question(3, 9)])
    with pytest.raises(BadRowError, match=rf"{repo}/train, row 2: {reason}"):
        read(repo).rows("train")
    rows = read(repo, options={"on_bad": "skip"}).rows("train")
    assert [ids for _, ids in summary(rows)] == [["x/1"], ["x/3"]]
    assert f"left out 1 bad rows; first: {repo}/train, row 2" in caplog.text
    caplog.clear()
    assert len(read(repo, options={"on_bad": "skip"}).rows("train")) == 2
    assert "left out 1 bad rows" in caplog.text  # from the cache too


def test_a_bad_row_of_a_stream_is_named_or_left_out(write, read, caplog):
    repo = write(
        [question(1, 7), question(2, 5, question=" "), question(3, 9, image={"bytes": None, "path": "/etc/x"})]
    )
    with pytest.raises(BadRowError, match=r"row 2: 'question' is blank"):
        list(read(repo).stream("train"))
    assert summary(read(repo, options={"on_bad": "skip"}).stream("train")) == [("coco/000000000007", ["x/1"])]
    assert "row 3: the image has no bytes" in caplog.text


def test_broken_images_are_found_where_asked_for(write, read):
    repo = write([question(1, 7), question(2, 5, image={"bytes": b"no image", "path": None})])
    assert len(read(repo).rows("train")) == 2
    for reader in (read(repo, options={"verify_images": True}), read(repo, options={"verify_images": True})):
        with pytest.raises(BadRowError, match="row 2: image of 8 bytes: no image that Pillow can read"):
            reader.rows("train")
        with pytest.raises(BadRowError, match="row 2: image of 8 bytes"):
            list(reader.stream("train"))


def test_images_without_ids_are_told_apart_by_their_bytes(write, read):
    columns = {**COLUMNS, "image_id": "rad/{_image}", "id": "rad/{_split}/{_row}"}
    reader = read(write(SHUFFLED), columns)
    rows = reader.rows("train")
    assert [ids for _, ids in summary(rows)] == [
        ["rad/train/1", "rad/train/3"],
        ["rad/train/2", "rad/train/4"],
        ["rad/train/5"],
    ]
    assert {row["image_id"] for row in reader.stream("train")} == set(rows["image_id"])


def test_a_stream_of_several_files_cannot_number_its_rows(write, read):
    write([question(1, 7)], "train-00000-of-00002")
    repo = write([question(2, 5)], "train-00001-of-00002")
    reader = read(repo, {**COLUMNS, "id": "rad/{_row}"})
    assert [ids for _, ids in summary(reader.rows("train"))] == [["rad/1"], ["rad/2"]]
    with pytest.raises(ValueError, match="comes in 2 files, and its ids are made of row numbers.*streaming=False"):
        reader.stream("train")


def test_rows_that_do_not_belong_are_no_bad_rows(write, read, caplog):
    repo = write([question(1, 7, kind="a"), question(2, 5, kind="b"), question(3, 7, kind="a")])
    reader = read(repo, where={"kind": "a"})
    assert summary(reader.rows("train")) == [("coco/000000000007", ["x/1", "x/3"])]
    assert summary(reader.stream("train")) == summary(reader.rows("train"))
    assert "bad" not in caplog.text


def test_lists_of_images_and_texts_as_in_the_cauldron(write, read, decoded):
    texts = [{"user": "Why ?", "assistant": "so"}, {"user": "Who ?", "assistant": "me"}]
    rows = [{"images": [png(number)], "texts": texts, "n": number} for number in (3, 4)]
    table = datasets.Dataset.from_list(rows)
    features = datasets.Features({**table.features, "images": datasets.List(datasets.Image())})
    repo = write([{"n": 0}], "other")
    datasets.Dataset.from_list(rows, features=features).to_parquet(f"{repo}/train.parquet")
    columns = {"image": "images.0", "image_id": "x/{n}", "id": "x/{n}/{_item}", "question": "texts.user"}
    columns |= {"answers": "texts.assistant"}
    reader = read(repo, columns, each="texts")
    for found in (reader.rows("train"), reader.stream("train")):
        assert found.features == row_features()
        assert summary(found) == [("x/3", ["x/3/0", "x/3/1"]), ("x/4", ["x/4/0", "x/4/1"])]
    del columns["image"]
    reader = read(repo, {**columns, "images": "images"}, each="texts")
    assert reader.rows("train").features == reader.stream("train").features == row_features(several_images=True)
    assert [len(images) for images in reader.rows("train")["images"]] == [1, 1]


def test_a_list_with_two_images_is_no_single_image(write, read):
    features = datasets.Features({"images": datasets.List(datasets.Image()), "n": datasets.Value("int64")})
    repo = write([{"n": 0}], "other")
    rows = [{"images": [png(1)], "n": 1}, {"images": [png(1), png(2)], "n": 2}]
    datasets.Dataset.from_list(rows, features=features).to_parquet(f"{repo}/train.parquet")
    columns = {"image": "images.0", "image_id": "x/{n}", "id": "x/{n}", "answers": {"value": ["x"]}}
    with pytest.raises(BadRowError, match="row 2: expected one image, found 2"):
        read(repo, columns).rows("train")


def test_images_of_another_config_are_looked_up(write, read, decoded, tmp_path):
    asked = [{"image_id": 9, "number": 1, "question": "a ?", "answers": [{"answer": "x"}]}]
    asked += [{**asked[0], "image_id": 5, "number": 2}, {**asked[0], "number": 3}, {**asked[0], "image_id": 6}]
    repo = write(asked, config="questions")
    write([{"image": png(5), "id": 5}, {"image": png(7), "id": 7}, {"image": png(9), "id": 9}], config="images")
    paths = {config: [{"split": "train", "path": f"{config}/*.parquet"}] for config in ("questions", "images")}
    configs = [{"config_name": config, "data_files": files} for config, files in paths.items()]
    (tmp_path / "repo/README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    keys = {"config": "questions", "image_rows": {"config": "images", "id": "id", "key": "image_id"}}
    rows = read(repo, options={"on_bad": "skip"}, **keys).rows("train")
    assert not decoded
    assert summary(rows) == [("coco/000000000009", ["x/1", "x/3"]), ("coco/000000000005", ["x/2"])]
    assert [int(np.asarray(image)[0, 0, 0]) for image in rows["image"]] == [9, 5]
    with pytest.raises(ValueError, match="keeps images apart from questions.*streaming=False"):
        read(repo, **keys).stream("train")
    with pytest.raises(BadRowError, match="questions/train, row 4: image 6 is not in config images"):
        read(repo, **keys).rows("train")


@pytest.fixture
def named(tmp_path, picture):
    """A copy that names its images, as VSR's does."""
    picture(tmp_path / "coco" / "1.jpg", 1)
    (tmp_path / "repo").mkdir()
    rows = [{"file": "1.jpg", "number": number, "text": "x"} for number in (1, 2)]
    (tmp_path / "repo/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "repo")


NAMED = {"image_file": "file", "image_id": "x/{file}", "id": "x/{number}", "question": "text", "answers": "text"}


def test_images_that_are_only_named_are_found_in_the_folders(named, read, tmp_path):
    reader = read(named, NAMED, options={"image_dirs": (str(tmp_path / "coco"),)})
    for rows in (reader.rows("train"), list(reader.stream("train"))):
        assert summary(rows) == [("x/1.jpg", ["x/1", "x/2"])]
        assert rows[0]["image"].size == (12, 8)
    with pytest.raises(ValueError, match="only names its images: pass image_dirs="):
        read(named, NAMED)


def test_a_name_that_leads_out_of_the_folder_is_refused(named, read, tmp_path):
    (tmp_path / "repo/train.jsonl").write_text('{"file": "../repo/train.jsonl", "number": 1, "text": "x"}\n')
    reader = read(named, NAMED, options={"image_dirs": (str(tmp_path / "coco"),)})
    with pytest.raises(BadRowError, match="row 1: image '../repo/train.jsonl' is not a name inside the image folder"):
        reader.rows("train")
    with pytest.raises(BadRowError, match="row 1: image '../repo/train.jsonl'"):
        list(reader.stream("train"))


def test_a_copy_that_changed_is_named_with_its_columns(write, read):
    repo = write([{"image": png(1), "text": "x"}])
    for load in (read(repo).rows, read(repo).stream):
        with pytest.raises(ValueError, match=f"x: {repo} has no column 'answers', it has image, text"):
            load("train")


def test_options_are_checked(write, read):
    repo = write(SHUFFLED)
    with pytest.raises(ValueError, match="on_bad='ignore': expected 'raise' or 'skip'"):
        read(repo, options={"on_bad": "ignore"})
    assert dataclasses.is_dataclass(read(repo))
