"""MSVD-QA, MSRVTT-QA and iVQA. The fixtures are written by hand in the layouts that the owners' code reads; the rows of
MSVD-QA's real files are counted where they are at hand."""

import json
import shutil

import datasets
import pytest
from PIL import Image

from instructblip.datasets_builders import load
from instructblip.datasets_builders.official_files import BadRowError
from instructblip.datasets_builders.table import TABLE, Counts


def write_video(path, shades):
    """A clip of 32 x 32 pixels with one grey frame for each shade."""
    av = pytest.importorskip("av", reason="PyAV is an optional extra")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        for shade in shades:
            frame = av.VideoFrame.from_image(Image.new("RGB", (32, 32), (shade,) * 3))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_frames(folder, shades):
    folder.mkdir(parents=True)
    for number, shade in enumerate(shades):
        Image.new("RGB", (8, 8), (shade,) * 3).save(folder / f"{number:03d}.png")


def grey(image):
    return round(image.convert("L").getpixel((4, 4)), -1)


@pytest.fixture
def msvd(tmp_path):
    folder = tmp_path / "msvd"
    write_video(folder / "video" / "vid1451.avi", range(0, 160, 20))
    write_video(folder / "YouTubeClips" / "-4wsuPCjDBc_5_15.avi", [50])
    records = [
        {"answer": "someone", "id": 37348, "question": "who opened the box?", "video_id": 1451},
        {"answer": "squirrel", "id": 37349, "question": "what is eating?", "video_id": 1},
        {"answer": "box", "id": 37350, "question": "what is opened?", "video_id": 1451},
    ]
    (folder / "test_qa.json").write_text(json.dumps(records))
    (folder / "youtube_mapping.txt").write_text("-4wsuPCjDBc_5_15 vid1\n-7KMZQEsJW4_205_208 vid2\n")
    return folder


def test_a_clip_gives_four_frames_in_order(msvd, cache):
    rows = load("msvd_qa", str(msvd), split="test", cache_dir=cache)
    assert rows["image_id"] == ["msvd/vid1451", "msvd/vid1"]
    assert [grey(image) for image in rows[0]["images"]] == [0, 40, 80, 120]
    assert [(sample["id"], sample["answers"]) for sample in rows[0]["samples"]] == [
        ("msvd_qa/37348", ["someone"]),
        ("msvd_qa/37350", ["box"]),
    ]


def test_a_clip_is_found_under_its_name_on_youtube_and_may_be_short(msvd, cache):
    rows = load("msvd_qa", str(msvd), split="test", cache_dir=cache)
    assert [grey(image) for image in rows[1]["images"]] == [50]


def test_the_rows_outlive_the_clips(msvd, cache):
    rows = load("msvd_qa", str(msvd), split="test", cache_dir=cache)
    shutil.rmtree(msvd)
    assert rows[0]["images"][3].size == (32, 32)


def test_the_number_of_frames_is_a_choice_and_a_stream_gives_the_same(msvd, cache):
    options = {"split": "test", "cache_dir": cache, "num_frames": 8}
    rows = load("msvd_qa", str(msvd), **options)
    assert [grey(image) for image in rows[0]["images"]] == list(range(0, 160, 20))
    streamed = load("msvd_qa", str(msvd), streaming=True, **options)
    undecoded = rows.cast_column("images", datasets.List(datasets.Image(decode=False)))
    assert list(streamed.decode(False)) == list(undecoded)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video_id": 7}, r"row 2: video 'vid7' \(\.mp4, .* or a folder of frames\) is not in "),
        ({"video_id": "../1"}, "row 2: 'video_id' should be int"),
        ({"answer": ""}, "row 2: 'answer' is blank"),
        ({"id": 37348}, "row 2: id 'msvd_qa/37348' again, first in row 1"),
    ],
)
def test_a_bad_row_is_named(msvd, cache, change, message):
    path = msvd / "test_qa.json"
    records = json.loads(path.read_text())
    records[1].update(change)
    path.write_text(json.dumps(records))
    with pytest.raises(BadRowError, match=message):
        load("msvd_qa", str(msvd), split="test", cache_dir=cache)


def test_a_broken_clip_is_named_and_can_be_skipped(msvd, cache):
    (msvd / "YouTubeClips" / "-4wsuPCjDBc_5_15.avi").write_bytes(b"no video")
    with pytest.raises(BadRowError, match=r"test_qa\.json, row 2: the video .*5_15\.avi\) cannot be read"):
        load("msvd_qa", str(msvd), split="test", cache_dir=cache)
    assert len(load("msvd_qa", str(msvd), split="test", cache_dir=cache, on_bad="skip")) == 1


def test_a_mapping_that_is_no_text_is_named(msvd, cache):
    (msvd / "youtube_mapping.txt").write_bytes(b"\xff vid1\n")
    with pytest.raises(ValueError, match=r"youtube_mapping\.txt: not a text file"):
        load("msvd_qa", str(msvd), split="test", cache_dir=cache)


def test_a_youtube_name_may_not_lead_out_of_the_folder(msvd, cache):
    (msvd / "youtube_mapping.txt").write_text("../../secret vid1\n")
    with pytest.raises(BadRowError, match="row 2: video '../../secret.mp4' is not a name inside the video folder"):
        load("msvd_qa", str(msvd), split="test", cache_dir=cache)


def test_msrvtt_reads_frames_that_were_taken_before(tmp_path, cache):
    folder = tmp_path / "msrvtt"
    write_frames(folder / "TestVideo" / "video7010", range(0, 200, 20))
    record = {"answer": "couch", "category_id": 14, "id": 158581, "question": "what is there?", "video_id": 7010}
    (folder / "test_qa.json").write_text(json.dumps([record]))
    (row,) = load("msrvtt_qa", str(folder), split="test", cache_dir=cache)
    assert [grey(image) for image in row["images"]] == [0, 40, 100, 140]  # frames 0, 2, 5 and 7 of 10
    assert row["image_id"] == "msrvtt/video7010"
    assert row["samples"][0]["id"] == "msrvtt_qa/158581"
    assert row["samples"][0]["tags"] == ["category=14"]


def test_a_folder_without_frames_is_refused(tmp_path, cache):
    (tmp_path / "video" / "video1").mkdir(parents=True)
    record = {"answer": "a", "category_id": 1, "id": 1, "question": "b", "video_id": 1}
    (tmp_path / "test_qa.json").write_text(json.dumps([record]))
    with pytest.raises(BadRowError, match=r"row 1: folder .*video1 has no frames"):
        load("msrvtt_qa", str(tmp_path), split="test", cache_dir=cache)


IVQA = """video_id,question,answer1,answer2,answer3,answer4,answer5
abc,"What is, at last, cut?",onion,onion,red onion,onion,vegetable
-xy,Who stirs?,woman,woman,woman,a woman,lady
"""


def test_ivqa_keeps_all_five_answers(tmp_path, cache):
    (tmp_path / "test.csv").write_text(IVQA)
    for name in ("abc", "-xy"):
        write_frames(tmp_path / "video" / name, [100] * 4)
    rows = load("ivqa", str(tmp_path), split="test", cache_dir=cache)
    assert rows["image_id"] == ["howto100m/abc", "howto100m/-xy"]
    sample = rows[0]["samples"][0]
    assert sample["question"] == "What is, at last, cut?"
    assert sample["answers"] == ["onion", "onion", "red onion", "onion", "vegetable"]
    assert sample["id"] == "ivqa/test/1"


def test_ivqa_tells_clips_of_one_video_apart_by_their_seconds(tmp_path, cache):
    (tmp_path / "test.csv").write_text(
        "video_id,start,end,question,answer1,answer2,answer3,answer4,answer5\n"
        "abc,10,20,What?,a,a,a,a,a\nabc,30,40,What?,b,b,b,b,b\n"
    )
    for name in ("abc_10_20", "abc_30_40"):
        write_frames(tmp_path / "video" / name, [100] * 4)
    rows = load("ivqa", str(tmp_path), split="test", cache_dir=cache)
    assert rows["image_id"] == ["howto100m/abc_10_20", "howto100m/abc_30_40"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (IVQA.replace("answer5", "answer6"), r"test\.csv, row 1: 'answer5' is missing"),
        (IVQA.replace(",lady", ""), r"test\.csv, row 2: 'answer5' should be str, is NoneType"),
        (IVQA.replace("Who", '"Who'), r"test\.csv, row 2: not CSV"),
    ],
)
def test_a_bad_row_of_ivqa_is_named(tmp_path, cache, text, message):
    (tmp_path / "test.csv").write_text(text)
    for name in ("abc", "-xy"):
        write_frames(tmp_path / "video" / name, [100] * 4)
    with pytest.raises(BadRowError, match=message):
        load("ivqa", str(tmp_path), split="test", cache_dir=cache)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_real_files_of_msvd_qa_hold_what_the_table_says(real_data, split, tmp_path, cache):
    stem = {"validation": "val", "test": "test"}[split]
    records = json.loads((real_data / "msvd_qa" / f"{stem}_qa.json").read_text())
    shutil.copy(real_data / "msvd_qa" / f"{stem}_qa.json", tmp_path)
    frames = tmp_path / "video"
    for number in {record["video_id"] for record in records}:
        write_frames(frames / f"vid{number}", [100])
    rows = load("msvd_qa", str(tmp_path), split=split, cache_dir=cache, verify_images=False)
    samples = sum(len(samples) for samples in rows["samples"])
    assert Counts(len(rows), samples, samples) == TABLE["msvd_qa"].counts[f"default/{split}"]
