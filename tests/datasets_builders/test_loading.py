"""Copies and published data as folders, which `datasets` loads as it loads a repository."""

import dataclasses
import json

import datasets
import pytest
from PIL import Image

from instructblip.datasets_builders import load
from instructblip.datasets_builders.hub_copies import HubCopy
from instructblip.datasets_builders.loading import builder
from instructblip.datasets_builders.schema import make_sample
from instructblip.datasets_builders.table import TABLE


@pytest.fixture
def copy(tmp_path, picture, vqa_rad_folder, monkeypatch):
    """VQA-RAD as a copy with one row a question, from the official files, and in the table as the one known copy."""
    repo = tmp_path / "org" / "rad"
    repo.mkdir(parents=True)
    for split, name in (("train", "trainset"), ("test", "testset")):
        records = json.loads((vqa_rad_folder / f"{name}.json").read_text())
        names = [row["image_name"] for row in records]
        images = [{"bytes": (vqa_rad_folder / "images" / name).read_bytes(), "path": None} for name in names]
        rows = [{"image": image, **row} for image, row in zip(images, records, strict=True)]
        table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
        table.to_parquet(repo / f"{split}-00000-of-00001.parquet")
    tags = {
        "answer_type": "answer_type",
        "question_type": "question_type",
        "organ": "image_organ",
        "phrase": "phrase_type",
    }
    columns = {"image": "image", "id": "vqa_rad/{qid}", "question": "question", "answers": "answer", "tags": tags}
    columns["image_id"] = {"from": "image_name", "pattern": "(.*)[.]", "format": "vqa_rad/{}"}
    entry = {"repo": str(repo), "splits": {"train": "train", "test": "test"}, "columns": columns}
    known = HubCopy.read("here", entry)
    monkeypatch.setitem(TABLE, "vqa_rad", dataclasses.replace(TABLE["vqa_rad"], hub=(known,)))
    return known


def content(rows):
    return {row["image_id"]: (row["samples"], row["image"].tobytes()) for row in rows}


def test_a_copy_on_the_hub_gives_the_rows_of_the_official_files(copy, vqa_rad_folder, cache):
    for split in ("train", "test"):
        official = load("vqa_rad", vqa_rad_folder, split=split, cache_dir=cache)
        found = load("vqa_rad", split=split, cache_dir=cache)
        assert found.features == official.features
        assert content(found) == content(official)
        assert found["image_id"] == official["image_id"]
        named = load("vqa_rad", repo_id=copy.repo, split=split, cache_dir=cache, streaming=True)
        assert {sample["id"] for row in named for sample in row["samples"]} == {
            sample["id"] for samples in official["samples"] for sample in samples
        }


def test_without_a_split_all_come_in_a_dict(copy, cache):
    assert {split: len(rows) for split, rows in load("vqa_rad", cache_dir=cache).items()} == {"train": 40, "test": 2}
    assert list(load("vqa_rad", cache_dir=cache, splits=["test"])) == ["test"]
    assert list(load("vqa_rad", cache_dir=cache, streaming=True)) == ["train", "test"]


def test_slices_are_of_images(copy, cache):
    rows = load("vqa_rad", split="train[:10%]+test[1:]", cache_dir=cache)
    assert rows["image_id"] == [f"vqa_rad/synpic{number}" for number in (0, 1, 2, 3, 1)]


def test_a_stream_of_a_copy_goes_into_a_mixture(copy, cache):
    from instructblip.datasets_builders.streaming import stream_mixture

    rows = load("vqa_rad", split="test", cache_dir=cache, streaming=True)
    item = next(iter(stream_mixture({"vqa_rad": rows}, {"vqa_rad": 1.0})))
    assert item["response"] == "yes"
    assert isinstance(item["image"], Image.Image)


def test_the_error_without_a_source_says_how_to_get_the_files(copy):
    with pytest.raises(
        ValueError,
        match="no copy of split 'validation' of vqa_rad on the Hub is known; on the Hub are its "
        "splits train, test. Get the official files and pass data_dir=. OSF project 89kps",
    ):
        load("vqa_rad", split="validation")
    with pytest.raises(ValueError, match="no copy of capfilt on the Hub is known. Get the official files"):
        load("capfilt")
    with pytest.raises(ValueError, match="no dataset 'vqarad': there are"):
        load("vqarad")
    with pytest.raises(ValueError, match="expected one source"):
        load("vqa_rad", "folder", repo_id="org/name")


def test_options_that_do_not_apply_are_refused(copy, vqa_rad_folder, cache):
    with pytest.raises(ValueError, match="no option 'shards' for a copy on the Hub: there are on_bad, verify_images"):
        load("vqa_rad", shards=3)
    with pytest.raises(ValueError, match="streams* is of one whole split out of train, test"):
        load("vqa_rad", split="train[:3]", streaming=True)
    with pytest.raises(
        ValueError, match="no option 'nonsense' for the official files of vqa_rad: there are splits, on_bad"
    ):
        load("vqa_rad", vqa_rad_folder, nonsense=1)


def test_a_variant_takes_its_own_copy():
    with pytest.raises(ValueError, match="cambridgeltl/vsr_random only names its images"):
        load("vsr", config="random", split="train")
    with pytest.raises(ValueError, match="cambridgeltl/vsr_zeroshot only names its images"):
        load("vsr", split="train")


def test_a_copy_moved_to_another_owner_is_known_by_its_name(copy, tmp_path, cache):
    moved = tmp_path / "other"
    (tmp_path / "org").rename(moved)
    with pytest.raises(ValueError, match="holds neither rows of ours .* nor a copy .* described are: "):
        load("vqa_rad", repo_id=str(moved), split="test", cache_dir=cache)


@pytest.fixture
def built(tmp_path, vqa_rad_folder, cache):
    made = builder("vqa_rad", vqa_rad_folder, cache_dir=cache)
    made.download_and_prepare(output_dir=str(tmp_path / "built" / "vqa_rad"), file_format="parquet")
    return tmp_path / "built" / "vqa_rad"


def test_built_parquet_gives_the_same_rows(built, vqa_rad_folder, cache):
    official = load("vqa_rad", vqa_rad_folder, cache_dir=cache)
    found = load("vqa_rad", built, cache_dir=cache)
    for split in ("train", "test"):
        assert found[split].features == official[split].features
        assert content(found[split]) == content(official[split])
    assert len(load("vqa_rad", built, split="train[:5]", cache_dir=cache)) == 5
    stream = load("vqa_rad", built, split="test", streaming=True)
    assert content(stream) == content(official["test"])


def test_splits_are_told_by_file_names_whatever_they_are(tmp_path, built, cache):
    folder = tmp_path / "memes"
    folder.mkdir()
    for split in ("test_seen", "test_unseen"):
        (folder / f"memes-{split}-00000-of-00001.parquet").write_bytes((built / "vqa_rad-test.parquet").read_bytes())
    assert set(load("memes", folder, cache_dir=cache)) == {"test_seen", "test_unseen"}
    assert set(load("memes", folder, cache_dir=cache, splits=["test_seen"])) == {"test_seen"}
    (folder / "a b.parquet").touch()
    with pytest.raises(ValueError, match="a b.parquet: expected a name such as train-00000-of-00004.parquet"):
        load("memes", folder)


def test_saved_rows_are_loaded_again(tmp_path, built, cache):
    rows = load("vqa_rad", built, cache_dir=cache)
    rows.save_to_disk(tmp_path / "saved")
    assert content(load("vqa_rad", tmp_path / "saved", split="test")) == content(rows["test"])
    with pytest.raises(ValueError, match="written by save_to_disk: load a whole split, without streaming"):
        load("vqa_rad", tmp_path / "saved", split="test[:1]")


def test_parquet_of_another_schema_is_refused(tmp_path, cache):
    datasets.Dataset.from_dict({"question": ["x"]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="has the columns question: expected image_id and samples"):
        load("mine", tmp_path, cache_dir=cache)


def test_published_columns_are_left_out(tmp_path, cache):
    row = {
        "image_id": "x",
        "samples": [make_sample("x/1", "Why ?", ["so"])],
        "instruction": ["Why ?"],
        "response": ["so"],
    }
    folder = tmp_path / "repo"
    folder.mkdir()
    datasets.Dataset.from_list([row]).to_parquet(folder / "train.parquet")
    for rows in (
        load("mine", folder, split="train", cache_dir=cache),
        load("mine", repo_id=str(folder), split="train"),
    ):
        assert rows.column_names == ["image_id", "samples"]


def test_a_folder_with_another_build_is_never_taken_for_this_one(tmp_path, built, vqa_rad_folder, cache):
    again = builder("vqa_rad", vqa_rad_folder, cache_dir=cache)
    again.download_and_prepare(output_dir=str(built), file_format="parquet")  # the same: nothing to do
    (vqa_rad_folder / "testset.json").write_text((vqa_rad_folder / "testset.json").read_text().replace('"yes"', '"no"'))
    changed = builder("vqa_rad", vqa_rad_folder, cache_dir=cache)
    message = "built from other files, with other options or by another version: delete it"
    with pytest.raises(ValueError, match=message):
        changed.download_and_prepare(output_dir=str(built), file_format="parquet")
    with pytest.raises(ValueError, match=message):
        changed.write_shards(output_dir=str(built), file_format="parquet")
    assert load("vqa_rad", built, split="test", cache_dir=cache)[0]["samples"][0]["answers"] == ["yes"]
    with pytest.raises(ValueError, match="rank 2 of 2 workers: expected 0 to 1"):
        changed.write_shards(2, 2)


def test_a_build_knows_whose_rows_it_holds(tmp_path, built, cache):
    with pytest.raises(ValueError, match="vqa_rad holds rows of vqa_rad, not of vsr"):
        load("vsr", built)
    with pytest.raises(ValueError, match="holds rows of the config default, not of other: build them"):
        load("vqa_rad", built, config="other")
    assert len(load("vqa_rad", built.parent, split="test", cache_dir=cache)) == 2  # the folder of its name in it


def test_what_asks_in_another_way_takes_the_build_of_its_rows_if_they_are_the_same(tmp_path, built, cache):
    for name in ("okvqa", "aokvqa"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"{name}-test.parquet").write_bytes((built / "vqa_rad-test.parquet").read_bytes())
        note = {"dataset": name, "config": "default" if name == "okvqa" else "multiple_choice", "made_from": ""}
        (folder / ".build").write_text(json.dumps(note))
    assert len(load("vqg_okvqa", tmp_path / "okvqa", split="test", cache_dir=cache)) == 2
    with pytest.raises(ValueError, match="holds rows of the config multiple_choice, not of direct_answer"):
        load("vqg_aokvqa", tmp_path / "aokvqa", split="test", cache_dir=cache)


def test_folders_of_several_datasets_do_not_flow_together(tmp_path, built, cache):
    for name in ("memes", "charts"):
        folder = tmp_path / "mirror" / name
        folder.mkdir(parents=True)
        (folder / "train-00000-of-00001.parquet").write_bytes((built / "vqa_rad-test.parquet").read_bytes())
    assert len(load("memes", tmp_path / "mirror", split="train", cache_dir=cache)) == 2
    with pytest.raises(ValueError, match="has several folders with Parquet files, and none is called maps: pass one"):
        load("maps", tmp_path / "mirror", split="train", cache_dir=cache)


def test_the_only_config_of_a_repository_is_not_taken_for_another_dataset(tmp_path, built, cache):
    folder = tmp_path / "mix"
    (folder / "vqa_rad").mkdir(parents=True)
    (folder / "vqa_rad" / "test-00000.parquet").write_bytes((built / "vqa_rad-test.parquet").read_bytes())
    front = "configs:\n- config_name: vqa_rad\n  data_files:\n  - {split: test, path: vqa_rad/test-*.parquet}"
    (folder / "README.md").write_text(f"---\n{front}\n---\n")
    assert len(load("vqa_rad", repo_id=str(folder), split="test", cache_dir=cache)) == 2
    with pytest.raises(ValueError, match="vsr: .* holds neither rows of ours"):
        load("vsr", repo_id=str(folder), split="test", cache_dir=cache)


def test_a_folder_that_is_not_there_is_said_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="data_dir: there is no folder .*nowhere, seen from"):
        load("vsr", tmp_path / "nowhere")
