import datasets
import pytest

from instructblip.eval_tasks import task_data
from instructblip.eval_tasks.images import read_image
from instructblip.eval_tasks.task_data import load_rows, one_document_per_question


@pytest.fixture
def decoded(monkeypatch):
    """Counts the pictures that `datasets` decodes."""
    count = []
    decode = datasets.Image.decode_example
    monkeypatch.setattr(
        datasets.Image, "decode_example", lambda *args, **kwargs: count.append(1) or decode(*args, **kwargs)
    )
    return count


def test_official_files_are_found_in_the_folder_and_in_the_one_above(data_root):
    above, folder = (
        load_rows("vqa_rad", data_root=str(data_root)),
        load_rows("vqa_rad", data_root=str(data_root / "vqa_rad")),
    )
    assert above["test"].num_rows == folder["test"].num_rows == 4
    assert set(above) == {"train", "test"}


def test_only_the_splits_asked_for_are_built(data_root):
    (data_root / "vqa_rad/trainset.json").write_text("broken")
    assert set(load_rows("vqa_rad", splits=["test"], data_root=str(data_root))) == {"test"}


@pytest.mark.parametrize("form", ["parquet", "save_to_disk"])
def test_our_rows_in_other_files_give_the_same_documents_and_pictures(data_root, tmp_path, form):
    official = load_rows("vqa_rad", data_root=str(data_root))
    copy = tmp_path / "copy" / "vqa_rad"
    if form == "parquet":
        for split, rows in official.items():
            (copy / "data").mkdir(parents=True, exist_ok=True)
            rows.to_parquet(copy / "data" / f"{split}-00000-of-00001.parquet")
    else:
        official.save_to_disk(copy)
    documents = one_document_per_question(load_rows("vqa_rad", data_root=str(tmp_path / "copy"))["test"])
    expected = one_document_per_question(official["test"])
    assert documents.remove_columns("images")[:] == expected.remove_columns("images")[:]
    for ours, theirs in zip(documents["images"], expected["images"], strict=True):
        assert read_image(ours[0]).tobytes() == read_image(theirs[0]).tobytes()


def test_a_hub_id_goes_to_the_hub(monkeypatch):
    asked = []
    monkeypatch.setattr(task_data, "load", lambda *args, **kwargs: asked.append((args, kwargs)))
    load_rows("vqa_rad", splits=["test"], data_root="ORG/vqa_rad")
    assert asked == [(("vqa_rad",), {"repo_id": "ORG/vqa_rad", "splits": ("test",)})]


def test_without_a_place_the_error_says_how_to_name_one():
    with pytest.raises(ValueError, match="where is vqa_rad.*data_root=FOLDER"):
        load_rows("vqa_rad", version=1.0)
    with pytest.raises(FileNotFoundError, match="/no/such is neither a folder nor a Hub id"):
        load_rows("vqa_rad", data_root="/no/such")


def test_one_document_per_question_and_no_picture_decoded(data_root, decoded):
    rows = load_rows("vqa_rad", data_root=str(data_root))["test"]
    decoded.clear()
    documents = one_document_per_question(rows)
    assert len(documents) == 10
    assert sorted(documents["id"])[0] == "vqa_rad/101"
    assert {tuple(names) for names in documents["images"]} == {
        (f"row:{rows._fingerprint}:{row}:0",) for row in range(4)
    }
    assert len([*documents]) == 10
    assert not decoded


def test_asking_again_costs_nothing(data_root):
    rows = load_rows("vqa_rad", data_root=str(data_root))["test"]
    assert one_document_per_question(rows) is one_document_per_question(rows)


def test_rows_of_another_schema_are_refused():
    with pytest.raises(ValueError, match=r"columns \['question'\]: expected grouped rows"):
        one_document_per_question(datasets.Dataset.from_dict({"question": ["why ?"]}))
