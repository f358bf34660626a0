import json
import pickle
import shutil
from pathlib import Path

import datasets
import pytest
from PIL import Image

from instructblip.datasets_builders import load
from instructblip.datasets_builders.official_files import BadRowError
from instructblip.datasets_builders.schema import SAMPLE_FEATURES, make_sample, row_features, tag
from instructblip.datasets_builders.vqa_rad import VQARad


def rewrite(path, change):
    records = json.loads(path.read_text())
    path.write_text(json.dumps(change(records)))


def undecoded(rows):
    return list(rows.cast_column("image", datasets.Image(decode=False)))


def test_the_questions_of_an_image_share_its_row(vqa_rad_folder, cache):
    rows = load("vqa_rad", vqa_rad_folder, split="train", cache_dir=cache)
    assert rows.features == row_features()
    assert [len(samples) for samples in rows["samples"]] == [2] * 40
    assert [sample["id"] for sample in rows[3]["samples"]] == ["vqa_rad/3", "vqa_rad/43"]
    assert rows[3]["image_id"] == "vqa_rad/synpic3"
    assert rows[3]["image"].size == (12, 8)


def test_a_sample_has_every_field_and_no_other():
    assert make_sample("a", "b", []).keys() == SAMPLE_FEATURES.keys()
    with pytest.raises(TypeError, match="no such field in a sample: anwser"):
        make_sample("a", "b", [], anwser="c")


def test_a_tag_is_found_by_its_whole_name():
    sample = make_sample("a", "b", [], tags=["organ_side=left", "organ=head=neck"])
    assert tag(sample, "organ") == "head=neck"
    assert tag(sample, "plane") is None


def test_two_processes_give_the_rows_of_one(vqa_rad_folder, cache, tmp_path):
    alone = load("vqa_rad", vqa_rad_folder, split="train", cache_dir=cache)
    together = load("vqa_rad", vqa_rad_folder, split="train", cache_dir=str(tmp_path / "other"), num_proc=2)
    assert together.cache_files != alone.cache_files
    assert undecoded(together) == undecoded(alone)


def test_a_stream_gives_the_rows_of_a_build(vqa_rad_folder, cache):
    built = load("vqa_rad", vqa_rad_folder, split="train", cache_dir=cache)
    streamed = load("vqa_rad", vqa_rad_folder, split="train", cache_dir=cache, streaming=True)
    assert streamed.num_shards == 16
    assert list(streamed.decode(False)) == undecoded(built)


def test_a_stream_resumes_at_its_row(vqa_rad_folder, cache):
    streamed = load("vqa_rad", vqa_rad_folder, split="train", cache_dir=cache, streaming=True).decode(False)
    rows = iter(streamed)
    for _ in range(7):
        next(rows)
    state = json.loads(json.dumps(streamed.state_dict()))
    rest = [row["image_id"] for row in rows]
    streamed.load_state_dict(state)
    assert [row["image_id"] for row in streamed] == rest
    assert len(rest) == 33


def test_an_edited_annotation_file_is_built_again(vqa_rad_folder, cache):
    def rename(records):
        return [{**record, "question": record["question"].replace("Question", "Questiom")} for record in records]

    load("vqa_rad", vqa_rad_folder, split="test", cache_dir=cache)
    rewrite(vqa_rad_folder / "testset.json", rename)  # same size, same folder
    rows = load("vqa_rad", vqa_rad_folder, split="test", cache_dir=cache)
    assert rows[0]["samples"][0]["question"] == "Questiom 100?"


def test_unchanged_files_are_built_once_under_any_spelling_of_the_folder(vqa_rad_folder, cache, monkeypatch):
    first = load("vqa_rad", vqa_rad_folder, split="test", cache_dir=cache)
    monkeypatch.chdir(vqa_rad_folder.parent)
    (vqa_rad_folder.parent / "link").symlink_to(vqa_rad_folder)
    for spelling in ("vqa_rad", "link", vqa_rad_folder / ".." / "vqa_rad"):
        assert load("vqa_rad", spelling, split="test", cache_dir=cache).cache_files == first.cache_files


def test_changed_builder_code_gives_another_cache_entry(vqa_rad_folder, cache, tmp_path, monkeypatch):
    builder = VQARad(data_dir=vqa_rad_folder, cache_dir=cache)
    assert {Path(source).name for source in builder._sources()} == {
        "vqa_rad.py",
        "schema.py",
        "sharded_building.py",
        "official_files.py",
    }
    first = builder.cache_dir
    assert VQARad(data_dir=vqa_rad_folder, cache_dir=cache).cache_dir == first
    source = tmp_path / "source.py"
    source.write_text("changed")
    real = VQARad._sources
    monkeypatch.setattr(VQARad, "_sources", lambda self: [*real(self)[:-1], str(source)])
    assert VQARad(data_dir=vqa_rad_folder, cache_dir=cache).cache_dir != first


@pytest.mark.parametrize("num_proc", [None, 2])
def test_a_corrupt_image_stops_the_build_with_file_and_row(vqa_rad_folder, cache, num_proc):
    (vqa_rad_folder / "images" / "synpic5.jpg").write_bytes(b"no picture")
    with pytest.raises(BadRowError, match=r"trainset\.json, row 6: .*synpic5\.jpg.*2 samples need it"):
        load("vqa_rad", vqa_rad_folder, split="train", cache_dir=cache, num_proc=num_proc)


def test_a_cut_off_image_is_found_while_building(vqa_rad_folder, cache):
    path = vqa_rad_folder / "images" / "synpic0.jpg"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(BadRowError, match=r"row 1: .*truncated"):
        load("vqa_rad", vqa_rad_folder, split="train", cache_dir=cache)


def test_a_decompression_bomb_is_refused(vqa_rad_folder, cache, monkeypatch):
    Image.new("L", (60, 60)).save(vqa_rad_folder / "images" / "synpic1.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # 3,600 is more than this and less than Pillow's own limit
    with pytest.raises(BadRowError, match=r"row 2: .*decompression bomb"):
        load("vqa_rad", vqa_rad_folder, split="train", cache_dir=cache)


def test_images_can_be_trusted_unseen(vqa_rad_folder, cache):
    (vqa_rad_folder / "images" / "synpic0.jpg").write_bytes(b"no picture")
    assert len(load("vqa_rad", vqa_rad_folder, split="train", cache_dir=cache, verify_images=False)) == 40


@pytest.mark.parametrize("num_proc", [None, 2])
def test_what_is_skipped_is_counted_and_listed(vqa_rad_folder, cache, caplog, record, num_proc):
    (vqa_rad_folder / "images" / "synpic39.jpg").write_bytes(b"no picture")
    rewrite(vqa_rad_folder / "trainset.json", lambda records: [{"qid": 7}, *records])
    options = {"on_bad": "skip", "splits": ("train",), "cache_dir": cache}
    rows = load("vqa_rad", vqa_rad_folder, split="train", num_proc=num_proc, **options)
    assert [row["image_id"] for row in undecoded(rows)] == [f"vqa_rad/synpic{number}" for number in range(39)]
    assert "39 rows kept, 2 bad rows or images left out" in caplog.text
    assert "'image_name' is missing" in caplog.text

    caplog.clear()
    builder = VQARad(data_dir=vqa_rad_folder, **options)
    builder.download_and_prepare()  # from the cache
    assert [entry["row"] for entry in builder.skipped("train")] == [1, 41]
    assert "2 bad rows or images left out" in caplog.text


def test_a_stream_says_what_it_skips(vqa_rad_folder, cache, caplog):
    (vqa_rad_folder / "images" / "synpic39.jpg").unlink()
    streamed = load("vqa_rad", vqa_rad_folder, split="train", cache_dir=cache, streaming=True, on_bad="skip")
    assert sum(1 for _ in streamed) == 39
    assert "skipped 2 bad rows or images; first: " in caplog.text


def test_a_repaired_image_comes_back(vqa_rad_folder, cache, picture):
    path = vqa_rad_folder / "images" / "synpic39.jpg"
    path.unlink()
    assert len(load("vqa_rad", vqa_rad_folder, split="train", cache_dir=cache, on_bad="skip")) == 39
    picture(path)
    assert len(load("vqa_rad", vqa_rad_folder, split="train", cache_dir=cache, on_bad="skip")) == 40


def test_a_split_without_a_usable_row_is_an_error(vqa_rad_folder, cache):
    shutil.rmtree(vqa_rad_folder / "images")
    with pytest.raises(ValueError, match=r"no usable row for test: 2 skipped; first: .*testset\.json, row 1: image"):
        load("vqa_rad", vqa_rad_folder, split="test", cache_dir=cache, on_bad="skip")


def test_a_question_that_comes_twice_names_both_rows(vqa_rad_folder, cache):
    rewrite(vqa_rad_folder / "testset.json", lambda records: [*records, records[0]])
    with pytest.raises(BadRowError, match="row 3: id 'vqa_rad/100' again, first in row 1"):
        load("vqa_rad", vqa_rad_folder, split="test", cache_dir=cache)


def test_one_split_does_not_need_the_images_of_another(vqa_rad_folder, cache):
    (vqa_rad_folder / "images" / "synpic30.jpg").unlink()  # in train only
    assert len(load("vqa_rad", vqa_rad_folder, split="test[:1]", cache_dir=cache)) == 1
    with pytest.raises(BadRowError, match="row 31"):
        load("vqa_rad", vqa_rad_folder, split="test+train", cache_dir=cache)


def test_embedded_images_survive_a_move(vqa_rad_folder, cache, tmp_path):
    rows = load("vqa_rad", vqa_rad_folder, split="test", cache_dir=cache, embed_images=True)
    shutil.move(vqa_rad_folder, tmp_path / "elsewhere")
    assert rows[0]["image"].size == (12, 8)


def test_what_is_not_there_is_named(vqa_rad_folder, cache):
    with pytest.raises(ValueError, match="no dataset 'vqarad': there are "):
        load("vqarad", vqa_rad_folder)
    with pytest.raises(ValueError, match="vqa_rad has no split 'dev': it has train, test"):
        load("vqa_rad", vqa_rad_folder, split="dev", cache_dir=cache)
    with pytest.raises(ValueError, match="on_bad='ignore': expected 'raise' or 'skip'"):
        load("vqa_rad", vqa_rad_folder, cache_dir=cache, on_bad="ignore")
    (vqa_rad_folder / "testset.json").unlink()
    assert list(load("vqa_rad", vqa_rad_folder, cache_dir=cache)) == ["train"]
    with pytest.raises(FileNotFoundError, match=r"no annotation file for test: looked for .*testset\.json"):
        load("vqa_rad", vqa_rad_folder, split="test", cache_dir=cache)
    with pytest.raises(FileNotFoundError, match=r"no annotation file in .*: expected one or more of trainset\.json"):
        load("vqa_rad", vqa_rad_folder / "images", cache_dir=cache)
    with pytest.raises(ValueError, match="needs data_dir="):
        VQARad()


def test_a_failed_build_leaves_no_rows_behind(vqa_rad_folder, cache, picture):
    path = vqa_rad_folder / "images" / "synpic0.jpg"
    path.write_bytes(b"")
    with pytest.raises(BadRowError):
        load("vqa_rad", vqa_rad_folder, split="test", cache_dir=cache)
    picture(path)
    assert len(load("vqa_rad", vqa_rad_folder, split="test", cache_dir=cache)) == 2


def test_a_builder_travels_to_another_process(vqa_rad_folder, cache):
    builder = VQARad(data_dir=vqa_rad_folder, cache_dir=cache)
    list(builder.as_streaming_dataset("test"))
    copy = pickle.loads(pickle.dumps(builder))
    assert copy.hash == builder.hash
    assert sum(1 for _ in copy.as_streaming_dataset("train")) == 40


def test_a_bad_row_keeps_its_parts_between_processes():
    error = pickle.loads(pickle.dumps(BadRowError("a.json", 3, "blank")))
    assert (error.file, error.row, error.reason) == ("a.json", 3, "blank")
    assert str(error) == "a.json, row 3: blank"


def test_images_may_lie_in_one_folder_named_as_text(vqa_rad_folder, cache, tmp_path, monkeypatch, picture):
    for place, shade in (("one", 10), ("two", 200)):
        shutil.copytree(vqa_rad_folder / "images", tmp_path / place / "pictures")
        for path in (tmp_path / place / "pictures").iterdir():
            picture(path, shade)
    shutil.rmtree(vqa_rad_folder / "images")
    for place, shade in (("one", 10), ("two", 200)):  # relative to another place is another folder
        monkeypatch.chdir(tmp_path / place)
        rows = load("vqa_rad", vqa_rad_folder, split="test", cache_dir=cache, image_dirs="pictures")
        assert abs(rows[0]["image"].getpixel((0, 0))[0] - shade) < 5
    with pytest.raises(FileNotFoundError, match="there is no folder .*two/photos to find images in"):
        load("vqa_rad", vqa_rad_folder, split="test", cache_dir=cache, image_dirs=["photos"])


def test_two_files_are_never_one_image(vqa_rad_folder, cache, picture):
    picture(vqa_rad_folder / "images" / "synpic0.png", 250)

    def change(records):
        records[1]["image_name"] = "synpic0.png"
        return records

    rewrite(vqa_rad_folder / "testset.json", change)
    with pytest.raises(BadRowError, match="row 2: image 'vqa_rad/synpic0' is another file in row 1"):
        load("vqa_rad", vqa_rad_folder, split="test", cache_dir=cache)
