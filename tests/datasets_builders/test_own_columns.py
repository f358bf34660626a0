import io
import json
import pickle

import datasets
import pytest
from PIL import Image

from instructblip.datasets_builders import load_own
from instructblip.datasets_builders.official_files import BadRowError
from instructblip.datasets_builders.own_columns import convert
from instructblip.datasets_builders.own_records import Reading


def shade(value):
    return Image.new("RGB", (6, 4), (value, value, value))


def encoded(value):
    file = io.BytesIO()
    shade(value).save(file, "PNG")
    return file.getvalue()


def cauldron(*shades):
    """Rows as the_cauldron has them: one image and two questions each."""
    texts = [
        {"user": "What is this?", "assistant": "grey", "source": "made"},
        {"user": "Is it red?", "assistant": "no", "source": "made"},
    ]
    return [{"images": [shade(value)], "texts": texts} for value in shades]


def dataset(rows, **kinds):
    return (
        datasets.Dataset.from_list(rows).cast(datasets.Features(**kinds)) if kinds else datasets.Dataset.from_list(rows)
    )


def questions(*rows):
    kinds = {"image": datasets.Image(), "question": datasets.Value("string"), "answer": datasets.Value("string")}
    values = [dict(zip(kinds, row, strict=True)) for row in rows]
    return datasets.Dataset.from_list(values, features=datasets.Features(kinds))


def asked(rows):
    return [[sample["question"] for sample in row["samples"]] for row in rows]


# ---- the_cauldron and FineVision


def test_every_round_of_a_cauldron_row_is_a_sample():
    rows = load_own(dataset(cauldron(10, 20)))
    assert asked(rows) == [["What is this?", "Is it red?"]] * 2
    assert [row["images"][0].getpixel((0, 0)) for row in rows] == [(10, 10, 10), (20, 20, 20)]
    assert rows[0]["samples"][1]["answers"] == ["no"]


def test_the_same_rows_come_from_memory_disk_parquet_and_a_stream(tmp_path):
    made = dataset(cauldron(10, 20))
    made.save_to_disk(tmp_path / "saved")
    (tmp_path / "parquet").mkdir()
    made.to_parquet(tmp_path / "parquet" / "train-00000-of-00001.parquet")
    cache = str(tmp_path / "cache")
    found = [
        load_own(made),
        load_own(tmp_path / "saved"),
        load_own(tmp_path / "parquet", cache_dir=cache),
        load_own(tmp_path / "parquet" / "train-00000-of-00001.parquet", cache_dir=cache),
        load_own(made, streaming=True),
        load_own(tmp_path / "saved", streaming=True),
        load_own(tmp_path / "parquet", streaming=True, split="train"),
    ]
    rows = [[(row["image_id"], row["images"][0].tobytes(), asked([row])) for row in part] for part in found]
    assert rows == rows[:1] * len(rows)
    assert all(part.features == found[0].features for part in found)


def test_a_folder_with_splits_gives_a_dict_unless_one_is_asked_for(tmp_path):
    datasets.DatasetDict(train=dataset(cauldron(1)), test=dataset(cauldron(2, 3))).save_to_disk(tmp_path)
    assert {split: len(part) for split, part in load_own(tmp_path).items()} == {"train": 1, "test": 2}
    assert len(load_own(tmp_path, split="test")) == 2
    with pytest.raises(ValueError, match="no split 'dev': there are train, test"):
        load_own(tmp_path, split="dev")


def test_a_row_of_text_alone_shows_no_image():
    texts = [{"user": "Say yes.", "assistant": "yes"}]
    (row,) = load_own(dataset([*cauldron(1), {"images": [], "texts": texts}])).select([1])
    assert row["images"] == []
    assert row["image_id"].startswith("own/")
    (row,) = load_own(dataset([{"texts": texts}]))
    assert row["image"] is None


def test_turns_that_show_different_images_are_refused_in_columns():
    texts = [{"user": "<image>?", "assistant": "a"}, {"user": "And <image>?", "assistant": "b"}]
    with pytest.raises(BadRowError, match="own, row 1: a later turn marks an image"):
        load_own(dataset([{"images": [shade(1), shade(2)], "texts": texts}]), history=True)


# ---- Columns of one's own


def test_rows_of_one_image_are_put_together_where_it_first_comes():
    rows = load_own(questions((shade(1), "a?", "1"), (shade(2), "b?", "2"), (shade(1), "c?", "3")))
    assert asked(rows) == [["a?", "c?"], ["b?"]]
    assert [row["image"].getpixel((0, 0))[0] for row in rows] == [1, 2]
    again = load_own(questions((shade(2), "b?", "2"), (shade(1), "c?", "3"), (shade(1), "a?", "1")))
    ids = {sample["question"]: sample["id"] for row in rows for sample in row["samples"]}
    assert {sample["question"]: sample["id"] for row in again for sample in row["samples"]} == ids


def test_a_stream_puts_neighbours_together():
    stream = load_own(questions((shade(1), "a?", "1"), (shade(1), "b?", "2"), (shade(2), "c?", "3")), streaming=True)
    assert asked(stream) == [["a?", "b?"], ["c?"]]


def test_a_stream_goes_on_where_it_was():
    made = questions(*((shade(value), f"{value}?", "1") for value in range(40)))
    stream = load_own(made, streaming=True)
    whole, begun = asked(stream), iter(stream)
    for _ in range(21):
        next(begun)
    state = stream.state_dict()
    stream = load_own(made, streaming=True)
    stream.load_state_dict(state)
    assert asked(stream) == whole[21:]


def test_columns_and_class_labels_are_mapped():
    made = datasets.Dataset.from_dict(
        {"pic": [shade(1), shade(2)], "kind": [1, 0], "ask": ["Which?", "Which?"]},
        features=datasets.Features(
            pic=datasets.Image(), kind=datasets.ClassLabel(names=["cat", "dog"]), ask=datasets.Value("string")
        ),
    )
    rows = load_own(made, columns={"image": "pic", "question": "ask", "answer": "kind"})
    assert [row["samples"][0]["answers"] for row in rows] == [["dog"], ["cat"]]


def test_the_same_row_twice_gets_two_ids():
    (row,) = load_own(questions((shade(1), "a?", "1"), (shade(1), "a?", "1")))
    first, second = (sample["id"] for sample in row["samples"])
    assert second == f"{first}#2"


def test_an_id_of_two_images_is_refused():
    made = questions((shade(1), "a?", "1"), (shade(2), "b?", "2")).add_column("id", [7, 7])
    with pytest.raises(ValueError, match=r"id 'own/7' comes more than once: pass columns=\{'id': None\}"):
        load_own(made)
    assert len(load_own(made, columns={"id": None})) == 2


def test_slices_and_formats_are_read_as_they_are_seen():
    made = questions(*((shade(value), f"{value}?", "1") for value in range(4))).with_format("numpy")
    assert asked(load_own(made.select([3, 1]))) == [["3?"], ["1?"]]


def test_images_are_not_copied(tmp_path):
    questions((shade(1), "a?", "1"), (shade(2), "b?", "2")).save_to_disk(tmp_path)
    rows = load_own(tmp_path)
    assert str(tmp_path / "data-00000-of-00001.arrow") in {file["filename"] for file in rows.cache_files}
    assert asked(pickle.loads(pickle.dumps(rows))) == [["a?"], ["b?"]]


def test_rows_of_our_schema_are_sent_to_their_loader():
    with pytest.raises(ValueError, match="own has image_id and samples already"):
        load_own(load_own(questions((shade(1), "a?", "1"))))


# ---- What cannot be used


@pytest.mark.parametrize("streaming", [False, True])
def test_a_bad_row_is_an_error_or_left_out(streaming, caplog):
    made = questions((shade(1), "a?", "1"), (shade(2), "", "2"), (shade(3), "c?", "3"))
    with pytest.raises(BadRowError, match="own, row 2: 'question' is blank"):
        list(load_own(made, streaming=streaming))
    assert asked(load_own(made, streaming=streaming, on_bad="skip")) == [["a?"], ["c?"]]
    assert "own, row 2: 'question' is blank" in caplog.text
    assert streaming or "2 rows kept, 1 bad rows or images left out" in caplog.text


def test_nothing_that_can_be_used_is_an_error():
    with pytest.raises(ValueError, match="own: no usable row; first: own, row 1: 'answer' is blank"):
        load_own(questions((shade(1), "a?", "")), on_bad="skip")


@pytest.mark.parametrize("several", [False, True])
def test_a_broken_image_is_named_unless_files_are_trusted(several):
    broken = {"bytes": encoded(2)[:-30], "path": None}
    kind = datasets.List(datasets.Image()) if several else datasets.Image()
    name = "images" if several else "image"
    features = datasets.Features({name: kind, "caption": datasets.Value("string")})
    images = [[shade(1)], [broken]] if several else [shade(1), broken]
    made = datasets.Dataset.from_dict({name: images, "caption": ["a", "b"]}, features=features)
    with pytest.raises(BadRowError, match=r"own, row 2: image of \d+ bytes: "):
        load_own(made)
    assert len(load_own(made, verify_images=False)) == 2


@pytest.mark.parametrize("streaming", [False, True])
def test_a_parquet_file_may_not_name_files_of_this_machine(tmp_path, streaming):
    shade(1).save(tmp_path / "private.png")
    made = dataset([{"image": {"bytes": None, "path": str(tmp_path / "private.png")}, "caption": "a"}])
    made.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(BadRowError, match="a/train, row 1: an image without bytes, a path '.*private.png' alone"):
        list(load_own(tmp_path / "a.parquet", cache_dir=str(tmp_path / "cache"), streaming=streaming, split="train"))


def test_a_folder_of_json_may_not_name_files_of_this_machine_either(tmp_path):
    shade(1).save(tmp_path / "private.png")
    folder = tmp_path / "hostile"
    folder.mkdir()
    (folder / "train.json").write_text(json.dumps({"image": str(tmp_path / "private.png"), "caption": "a"}) + "\n")
    columns = "  - {name: image, dtype: image}\n  - {name: caption, dtype: string}\n"
    (folder / "README.md").write_text(f"---\ndataset_info:\n  features:\n{columns}---\n")
    found = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    reading = Reading()
    with pytest.raises(BadRowError, match="hostile, row 1: an image without bytes, a path '.*private.png' alone"):
        convert(found, "hostile", reading, trust_paths=False)
    assert len(convert(found, "mine", reading)) == 1  # who opened it knows it


def test_bytes_that_do_not_say_that_they_are_images_are_read(tmp_path):
    plain = dataset([{"image": encoded(7), "caption": "a"}])
    assert load_own(plain)[0]["image"].getpixel((0, 0)) == (7, 7, 7)
    lists = dataset([{"images": [{"bytes": encoded(7), "path": None}], "caption": "a"}])
    assert load_own(lists)[0]["images"][0].getpixel((0, 0)) == (7, 7, 7)
    assert next(iter(load_own(lists, streaming=True)))["images"][0].getpixel((0, 0)) == (7, 7, 7)


def test_a_column_of_paths_is_refused():
    with pytest.raises(
        ValueError, match=r"column 'image' holds .*, not images.*cast_column\('image', datasets.Image\(\)\)"
    ):
        load_own(dataset([{"image": "a.jpg", "caption": "a"}]))


def test_a_stream_without_columns_is_refused():
    stream = datasets.IterableDataset.from_generator(lambda: iter(cauldron(1)))
    with pytest.raises(ValueError, match="the stream does not say its columns: pass features="):
        load_own(stream)
