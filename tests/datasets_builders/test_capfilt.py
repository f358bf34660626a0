import io
import json
import tarfile

import pytest
from datasets import load_dataset
from PIL import Image

from instructblip.datasets_builders import load
from instructblip.datasets_builders.loading import builder
from instructblip.datasets_builders.official_files import BadRowError


def jpeg(shade):
    buffer = io.BytesIO()
    Image.new("RGB", (12, 8), (shade, shade, shade)).save(buffer, "jpeg")
    return buffer.getvalue()


def entry(key, caption="a cat on a sofa", shade=100, **other):
    """The members of a sample as img2dataset writes it."""
    about = {"url": f"https://example.org/{key}.jpg", "caption": caption, "key": key, "status": "success", "width": 12}
    return {
        f"{key}.jpg": jpeg(shade),
        f"{key}.json": json.dumps(about).encode(),
        f"{key}.txt": caption.encode(),
        **other,
    }


def write_tar(path, *entries):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for members in entries:
            for name, content in members.items():
                if content is not None:
                    header = tarfile.TarInfo(name)
                    header.size = len(content)
                    file.addfile(header, io.BytesIO(content))


@pytest.fixture
def capfilt_folder(tmp_path):
    """Two lists as img2dataset downloads them, with the same keys in both; written by hand from its README."""
    folder = tmp_path / "capfilt"
    for number, name in enumerate(["ccs/00000", "ccs/00001", "laion/00000"]):
        write_tar(
            folder / f"{name}.tar", entry("000000012", f"photo {number}\n"), entry("000000007", f"image {number}")
        )
        (folder / f"{name}.parquet").touch()  # img2dataset writes such a list beside each tar
    return folder


def test_a_sample_has_the_picture_of_the_tar_and_its_caption(capfilt_folder, cache):
    rows = load("capfilt", capfilt_folder, split="train", cache_dir=cache)
    assert rows["image_id"] == [
        f"capfilt/{tar}/{key}"
        for tar in ("ccs/00000", "ccs/00001", "laion/00000")
        for key in ("000000012", "000000007")
    ]
    assert [row[0]["answers"] for row in rows["samples"]][:2] == [["photo 0"], ["image 0"]]
    assert rows["samples"][0][0]["id"] == "capfilt/ccs/00000/000000012"
    assert rows["samples"][0][0]["question"] == ""
    assert rows[0]["image"].size == (12, 8)


def test_a_tar_is_a_shard(capfilt_folder, cache):
    expected = load("capfilt", capfilt_folder, split="train", cache_dir=cache)
    stream = load("capfilt", capfilt_folder, split="train", streaming=True)
    assert stream.num_shards == 3
    assert [row["image_id"] for row in stream] == expected["image_id"]
    assert len(builder("capfilt", capfilt_folder).shards_to_build("train")) == 3


def test_the_pictures_outlive_the_tars(capfilt_folder, tmp_path, cache):
    made = builder("capfilt", capfilt_folder, cache_dir=cache)
    made.download_and_prepare(output_dir=str(tmp_path / "out"), file_format="parquet")
    for path in capfilt_folder.rglob("*.tar"):
        path.unlink()
    rows = load_dataset("parquet", data_files=str(tmp_path / "out" / "*.parquet"), cache_dir=cache, split="train")
    assert rows[5]["image"].getpixel((3, 3)) == (100, 100, 100)


def test_a_tar_that_changed_is_read_again(capfilt_folder, cache):
    load("capfilt", capfilt_folder, split="train", cache_dir=cache)
    write_tar(capfilt_folder / "ccs" / "00001.tar", entry("000000099", "new"))
    rows = load("capfilt", capfilt_folder, split="train", cache_dir=cache)
    assert len(rows) == 5


def test_without_a_text_member_the_caption_is_in_the_json(tmp_path, cache):
    write_tar(tmp_path / "00000.tar", entry("1", "a dog", **{"1.txt": None}))
    rows = load("capfilt", tmp_path, split="train", cache_dir=cache)
    assert rows["samples"][0][0]["answers"] == ["a dog"]
    assert rows["image_id"] == ["capfilt/00000/1"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"2.jpg": None}, "sample '2': 0 pictures among json, txt: expected one"),
        ({"2.png": b"x"}, "sample '2': 2 pictures among jpg, json, txt, png"),
        ({"2.jpg": b"no picture"}, "image of 10 bytes: no image that Pillow can read"),
        ({"2.jpg": jpeg(0)[:-300]}, "image of .* bytes: "),
        ({"2.txt": b" \n"}, "sample '2': 'txt' is blank"),
        ({"2.txt": b"\xff\xfe"}, "sample '2': 'utf-8' codec can't decode byte 0xff in position 0"),
        ({"2.txt": b"x" * 70_000}, "member '2.txt' has 70000 bytes: at most 65536 are read"),
        ({"2.txt": None, "2.json": None}, r"sample '2': no \.txt and no \.json: the caption is missing"),
        ({"2.txt": None, "2.json": b"{"}, "sample '2': Expecting property name"),
        ({"2.txt": None, "2.json": b"[]"}, "sample '2': expected an object with 'caption'"),
        ({"2.txt": None, "2.json": b'{"caption": null}'}, "sample '2': 'caption' should be str"),
        ({"2.txt": None, "2.json": b"[" * 100_000}, r"sample '2': \.json is not JSON"),
    ],
)
def test_a_bad_sample_is_named_with_tar_and_place(tmp_path, cache, change, message):
    write_tar(tmp_path / "00000.tar", entry("1"), entry("2", **change), entry("3"))
    with pytest.raises(BadRowError, match=rf"00000\.tar, row 2: {message}"):
        load("capfilt", tmp_path, cache_dir=cache)
    kept = load("capfilt", tmp_path, split="train", cache_dir=cache, on_bad="skip")
    assert kept["image_id"] == ["capfilt/00000/1", "capfilt/00000/3"]


def test_a_tar_that_is_cut_off_is_named_and_its_whole_samples_are_kept(tmp_path, cache):
    write_tar(tmp_path / "00000.tar", entry("1"), entry("2"))
    write_tar(tmp_path / "00001.tar", entry("1"))
    content = (tmp_path / "00000.tar").read_bytes()
    (tmp_path / "00000.tar").write_bytes(content[: content.index(b"2.jpg") + 600])
    with pytest.raises(BadRowError, match=r"00000\.tar, row 2: the tar is cut off in '2\.jpg', after 88 of \d+ bytes"):
        load("capfilt", tmp_path, cache_dir=cache)
    made = builder("capfilt", tmp_path, cache_dir=cache, on_bad="skip")
    made.download_and_prepare()
    assert made.as_dataset(split="train")["image_id"] == ["capfilt/00000/1", "capfilt/00001/1"]
    assert [(entry["file"], entry["row"]) for entry in made.skipped("train")] == [(str(tmp_path / "00000.tar"), 2)]


@pytest.fixture
def annotation_folder(tmp_path, picture):
    """Three captions of two pictures in X-InstructBLIP's layout; written by hand from how LAVIS reads it."""
    for name in ("00000/000000012.jpg", "00000/000000007.jpg"):
        picture(tmp_path / "images" / name)
    names = ["00000/000000012.jpg", "00000/000000012.jpg", "00000/000000007.jpg"]
    records = [{"image": name, "caption": f"caption {number} "} for number, name in enumerate(names)]
    (tmp_path / "annotation.json").write_text(json.dumps(records))
    return tmp_path


def test_an_annotation_file_gives_a_sample_a_line(annotation_folder, cache):
    rows = load("capfilt", annotation_folder, split="train", cache_dir=cache)
    assert rows["image_id"] == ["capfilt/00000/000000012", "capfilt/00000/000000007"]
    assert [[sample["id"] for sample in row] for row in rows["samples"]] == [
        ["capfilt/annotation/1", "capfilt/annotation/2"],
        ["capfilt/annotation/3"],
    ]
    assert rows["samples"][0][1]["answers"] == ["caption 1"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"image": "/export/share/1.jpg", "caption": "a"}, "row 1: .*'/export/share/1.jpg' is not a name inside"),
        ({"image": "00000/1.jpg", "caption": "a"}, "row 1: image '00000/1.jpg' is not in .*images"),
        ({"image": "00000/000000012.jpg", "caption": ""}, "row 1: 'caption' is blank"),
        ({"caption": "a"}, "row 1: 'image' is missing"),
        ("a", "row 1: expected an object with 'image', found str 'a'"),
    ],
)
def test_a_bad_annotation_is_named(annotation_folder, cache, record, message):
    (annotation_folder / "annotation.json").write_text(json.dumps([record]))
    with pytest.raises(BadRowError, match=rf"annotation\.json, {message}"):
        load("capfilt", annotation_folder, cache_dir=cache)


def test_a_broken_annotation_file_is_named_with_the_row(annotation_folder, cache):
    content = (annotation_folder / "annotation.json").read_text()
    (annotation_folder / "annotation.json").write_text(content[:-20])
    with pytest.raises(ValueError, match=r"annotation\.json, row 3: not JSON"):
        load("capfilt", annotation_folder, cache_dir=cache, on_bad="skip")
