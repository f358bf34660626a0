import json
import subprocess
import sys
import textwrap

import datasets
import pytest
from minihub import MiniHub
from official_data import WRITERS
from PIL import Image

from instructblip.datasets_builders.official_files import BadRowError
from instructblip.datasets_builders.schema import make_sample, row_features
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


@pytest.fixture
def asked(monkeypatch):
    """What `load` is asked for; nothing is loaded."""
    calls = []
    monkeypatch.setattr(task_data, "load", lambda *args, **kwargs: calls.append((*args, kwargs)))
    return calls


def test_a_hub_id_goes_to_the_hub(asked):
    load_rows("vqa_rad", splits=["test"], data_root="ORG/vqa_rad")
    assert asked == [("vqa_rad", {"repo_id": "ORG/vqa_rad", "config": None, "splits": ("test",)})]


def test_a_variant_has_a_config_of_its_own_in_a_repository_of_ours(asked, monkeypatch):
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda repo_id: ["pope", "pope_popular"])
    load_rows("pope", splits=["test"], config="popular", data_root="ORG/heldout")
    load_rows("pope", splits=["test"], config="random", data_root="ORG/heldout")  # the default
    load_rows("pope", splits=["test"], config="popular", data_root="lmms-lab/POPE")  # a copy in the table
    assert [call[1]["config"] for call in asked] == ["pope_popular", None, "popular"]


def test_a_repository_of_ours_without_the_variant_is_refused(asked, monkeypatch):
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda repo_id: ["gqa", "pope"])
    with pytest.raises(ValueError, match="ORG/heldout has no Hub config pope_popular.* it has gqa, pope"):
        load_rows("pope", splits=["test"], config="popular", data_root="ORG/heldout")
    assert asked == []


PUSH_AND_LOAD = """
    import datasets, json, sys
    from instructblip.datasets_builders import InstructionFormat, load
    from instructblip.datasets_builders.publishing import push
    from instructblip.eval_tasks import task_manager

    folder = sys.argv[1]
    sources = {"pope": load("pope", folder), "pope_popular": load("pope", folder, config="popular")}
    push(sources, "org/extra", formats={"pope_popular": InstructionFormat.of("pope")})
    names = ["instructblip_pope_random", "instructblip_pope_popular"]
    tasks = task_manager(data_root="org/extra").load(names)["tasks"]
    print(json.dumps([[doc["id"] for doc in tasks[name].eval_docs] for name in names]))
"""


def test_one_repository_of_ours_holds_a_dataset_and_its_variants(tmp_path):
    WRITERS["pope"](tmp_path)
    with MiniHub() as hub:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(PUSH_AND_LOAD), str(tmp_path)],
            env={**hub.client_env(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    expected = [[f"pope/{config}/{number}" for number in range(1, 7)] for config in ("random", "popular")]
    assert json.loads(done.stdout.splitlines()[-1]) == expected


def test_the_first_known_copies_on_the_hub_can_be_asked_for(asked):
    load_rows("vqa_rad", splits=["test"], answers_of="train", data_root="hub")
    load_rows("vsr", splits=["test"], data_root="hub", image_dirs="/coco/a:/coco/b")
    assert asked == [
        ("vqa_rad", {"config": None, "splits": ("test", "train")}),
        ("vsr", {"config": None, "splits": ("test",), "image_dirs": ("/coco/a", "/coco/b")}),
    ]


def test_datasets_without_a_copy_on_the_hub_are_named(asked):
    message = "no copy of visdial .* nor of .*ivqa, .*msrvtt_qa, msvd_qa, .*visdial.* official files.* visualdialog"
    with pytest.raises(ValueError, match=message):
        load_rows("visdial", splits=["validation"], data_root="hub")
    with pytest.raises(ValueError, match="no copy of hateful_memes with split dev_seen on the Hub"):
        load_rows("hateful_memes", splits=["dev_seen"], data_root="hub")
    with pytest.raises(ValueError, match="no copy of aokvqa with split validation"):
        load_rows("aokvqa", splits=["validation"], config="direct_answer", data_root="hub")
    assert asked == []


def test_image_folders_are_those_of_the_dataset(data_root, tmp_path):
    moved = tmp_path / "moved"
    (data_root / "vqa_rad/images").rename(moved)
    for given in (str(moved), [str(moved)], {"vqa_rad": str(moved), "vsr": ["/elsewhere"]}):
        rows = load_rows("vqa_rad", splits=["test"], data_root=str(data_root), image_dirs=given)
        assert rows["test"].num_rows == 4
    with pytest.raises(BadRowError, match=r"synpic0\.png' is not in"):
        load_rows("vqa_rad", splits=["test"], data_root=str(data_root), image_dirs={"vsr": str(moved)})
    with pytest.raises(ValueError, match="image_dirs 7: expected a folder"):
        load_rows("vqa_rad", data_root=str(data_root), image_dirs=7)


def test_a_variant_is_read_from_official_files_and_from_a_folder_of_its_own(tmp_path):
    root = tmp_path / "official"
    (root / "pope").mkdir(parents=True)
    WRITERS["pope"](root / "pope")
    rows = load_rows("pope", splits=["test"], config="popular", data_root=str(root))["test"]
    assert rows[0]["samples"][0]["id"].startswith("pope/popular/")
    (tmp_path / "parquet/pope_popular").mkdir(parents=True)
    rows.to_parquet(tmp_path / "parquet/pope_popular/test.parquet")
    again = load_rows("pope", splits=["test"], config="popular", data_root=str(tmp_path / "parquet"))["test"]
    assert again["image_id"] == rows["image_id"]


def test_answers_are_read_where_their_clips_are_not(tmp_path):
    (tmp_path / "msvd_qa").mkdir()
    WRITERS["msvd_qa"](tmp_path / "msvd_qa")
    rows = load_rows("msvd_qa", splits=["test"], answers_of="train", data_root=str(tmp_path))
    assert rows["train"].column_names == ["samples"]
    assert rows["train"][0] == {"samples": [{"answers": ["red"]}]}
    with pytest.raises(BadRowError, match="video 'vid0'"):
        load_rows("msvd_qa", splits=["train"], data_root=str(tmp_path))


def test_a_bad_row_among_the_answers_is_named(data_root):
    path = data_root / "vqa_rad/trainset.json"
    path.write_text(path.read_text().replace('"answer": "red"', '"answer": null'))
    with pytest.raises(BadRowError, match=r"trainset\.json, row 2: 'answer'"):
        load_rows("vqa_rad", splits=["test"], answers_of="train", data_root=str(data_root))


def test_rows_of_another_dataset_are_not_taken_for_this_one(data_root, tmp_path):
    rows = load_rows("vqa_rad", data_root=str(data_root))["test"]
    (tmp_path / "parquet/vqa_rad").mkdir(parents=True)
    rows.to_parquet(tmp_path / "parquet/vqa_rad/test.parquet")
    with pytest.raises(FileNotFoundError, match="gqa: data_root .*parquet has folders for vqa_rad and none called gqa"):
        load_rows("gqa", splits=["test"], data_root=str(tmp_path / "parquet"))


def test_without_a_place_the_error_says_how_to_name_one():
    with pytest.raises(ValueError, match="where is vqa_rad.*data_root=FOLDER"):
        load_rows("vqa_rad", version=1.0)
    with pytest.raises(FileNotFoundError, match="vqa_rad: data_root /no/such is neither a folder, nor a Hub id"):
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


def test_documents_have_the_texts_that_prompts_place():
    long = [f"choice {number}" for number in range(27)]
    turn = {"question": "is it red ?", "answer": "no"}
    samples = [
        make_sample("1", "a ?", ["b"], choices=["b", "c"], ocr_tokens=["x", "Y"], history=[turn, turn], context="d"),
        make_sample("2", "e ?", ["f"], choices=long, ocr_tokens=["z"] * 31),
        make_sample("3", "g ?", []),
    ]
    picture = Image.new("RGB", (4, 4))
    rows = [
        {"image": picture, "image_id": "p", "samples": samples[:2]},
        {"image": picture, "image_id": "none", "samples": []},
        {"image": picture, "image_id": "q", "samples": samples[2:]},
    ]
    rows = datasets.Dataset.from_list(rows, features=row_features()).select([2, 1, 0])  # as a shuffled set has them
    documents = one_document_per_question(rows)
    rendered = {"image_id", "images", "options", "history_text", "ocr_text"}
    assert [{key: value for key, value in doc.items() if key not in rendered} for doc in documents] == [
        samples[2],
        *samples[:2],
    ]
    assert documents["image_id"][:] == ["q", "p", "p"]
    assert [references[0][-4:] for references in documents["images"]] == [":0:0", ":2:0", ":2:0"]
    assert documents["options"][:] == ["", "(a) b (b) c", ""]  # 27 choices have no letters
    assert documents["history_text"][:] == ["", "is it red ? no is it red ? no", ""]
    assert documents["ocr_text"][:] == ["", "x, Y", ", ".join(["z"] * 30)]


def test_asking_again_costs_nothing(data_root):
    rows = load_rows("vqa_rad", data_root=str(data_root))["test"]
    assert one_document_per_question(rows) is one_document_per_question(rows)


def test_rows_of_another_schema_are_refused():
    with pytest.raises(ValueError, match=r"columns \['question'\]: expected grouped rows"):
        one_document_per_question(datasets.Dataset.from_dict({"question": ["why ?"]}))
