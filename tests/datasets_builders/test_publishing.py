"""Data pushed to and loaded from a loopback Hub by processes of their own, through xet and through LFS; what needs no
Hub is tested against a stand-in for its client."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import yaml
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from minihub import MiniHub
from PIL import Image

from instructblip.datasets_builders import load, publishing
from instructblip.datasets_builders.instructions import InstructionFormat
from instructblip.datasets_builders.publishing import push
from instructblip.datasets_builders.schema import make_sample, row_features

CLIENT = Path(__file__).parents[1] / "hub_data_client.py"


def write_picture(path, shade):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (shade, shade, shade)).save(path)


def write_vqa_rad(folder, images=20):
    for number in range(images):
        write_picture(folder / "images" / f"synpic{number}.jpg", number)
    rest = {"image_organ": "HEAD", "answer_type": "CLOSED", "question_type": "PRES", "phrase_type": "freeform"}
    rows = [
        {"qid": qid, "image_name": f"synpic{qid % images}.jpg", "question": f"Is it {qid} ?", "answer": "no", **rest}
        for qid in range(2 * images)
    ]
    (folder / "trainset.json").write_text(json.dumps(rows))
    (folder / "testset.json").write_text(json.dumps([{**row, "qid": 1000 + row["qid"]} for row in rows[:3]]))


def write_hateful_memes(folder):
    write_picture(folder / "img" / "08291.png", 3)
    row = {"id": 8291, "img": "img/08291.png", "label": 1, "text": "a text"}
    (folder / "dev_seen.jsonl").write_text(json.dumps(row) + "\n")


def run_client(hub, folder, command, *arguments, killed=False):
    words = [sys.executable, str(CLIENT), command, str(folder), *map(str, arguments), *(["--killed"] if killed else [])]
    home = folder / f"home_{command}"
    done = subprocess.run(
        words, env=hub.client_env(home), cwd=folder, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == (9 if killed else 0), done.stderr[-4000:]
    written = folder / f"{command}.json"
    return None if killed else json.loads(written.read_text())


@pytest.fixture(scope="module", params=["xet", "lfs"])
def hub(request):
    with MiniHub(xet=request.param == "xet") as server:
        yield server


@pytest.fixture(scope="module")
def pushed(hub, tmp_path_factory):
    """VQA-RAD, by a push that is killed and one that goes on, and Hateful Memes; then both again."""
    folder = tmp_path_factory.mktemp("pushed")
    write_vqa_rad(folder / "vqa_rad")
    write_hateful_memes(folder / "hateful_memes")
    run_client(hub, folder, "push", folder, "vqa_rad", killed=True)
    killed = {"files": hub.files("org/mix", "dataset"), "log": list(hub.log)}
    done = run_client(hub, folder, "push", folder, "vqa_rad", "hateful_memes")
    return {"folder": folder, "killed": killed, **done}


@pytest.fixture(scope="module")
def loaded_without(hub, pushed):
    streaming = ["--streaming"] if hub.store.xet is None else []  # the look-alike keeps xet's files as xet cuts them
    return run_client(hub, pushed["folder"], "load_without", "org/mix", *streaming)


def test_a_push_that_is_killed_shows_nothing_and_goes_on(hub, pushed):
    assert pushed["killed"]["files"] == [".gitattributes"]
    puts = [line for line in hub.log if line.startswith("PUT /_lfs/")]
    before = [line for line in pushed["killed"]["log"] if line.startswith("PUT /_lfs/")]
    if hub.store.xet is None:
        assert len(before) == 2
        assert len(set(puts)) == len(puts) > 4  # each shard once
    else:
        assert not puts


def test_a_config_is_one_commit(hub, pushed):
    commits = hub.store.get("dataset", "org/mix")["commits"].values()
    assert [commit["title"] for commit in commits] == ["initial commit", "Publish vqa_rad", "Publish hateful_memes"]
    assert pushed["commits"]["hateful_memes"] == hub.store.get("dataset", "org/mix")["head"]
    first = hub.store.get("dataset", "org/mix")["commits"][pushed["commits"]["vqa_rad"]]["tree"]
    card = hub.store.blob(first["README.md"]["sha256"]).read_text()
    assert "hateful_memes" not in card
    assert {path.split("/")[0] for path in first} == {".gitattributes", "README.md", "configs.json", "vqa_rad"}


def test_datasets_alone_loads_and_streams_what_was_pushed(hub, loaded_without):
    assert loaded_without["imported"] == []
    assert loaded_without["configs"] == ["hateful_memes", "vqa_rad"]
    for split, shards in (("train", 5), ("test", 1)):
        found = loaded_without["vqa_rad"][split]
        assert found["columns"] == ["image", "image_id", "samples", "instruction", "response"]
        if hub.store.xet is None:
            assert found["streamed"] == found["images"]
            assert found["resumed"] == found["images"][1:]
            assert found["shards"] == shards


def test_instructions_stand_beside_their_samples(loaded_without):
    made = InstructionFormat.of("vqa_rad", seed=7)
    for row in loaded_without["vqa_rad"]["train"]["texts"]:
        items = made.items({"image_id": "", "samples": row["samples"]})
        assert row["instruction"] == [item["instruction"] for item in items]
        assert row["response"] == ["no"] * len(row["samples"])


def test_load_gives_the_rows_of_the_official_files_again(hub, pushed, cache):
    if hub.store.xet is not None:
        pytest.skip("the same through LFS")
    found = run_client(hub, pushed["folder"], "load", "org/mix")
    official = load("vqa_rad", pushed["folder"] / "vqa_rad", cache_dir=cache)
    for split in ("train", "test"):
        assert [row["image_id"] for row in found[split]] == official[split]["image_id"]
        assert [row["samples"] for row in found[split]] == official[split]["samples"]
    assert found["streamed"] == official["test"]["image_id"]


def test_the_card_says_what_there_is_and_warns(hub, pushed):
    card = hub.read("org/mix", "README.md", "dataset").decode()
    data = yaml.safe_load(card.split("---")[1])
    assert data["license"] == "other"
    assert data["license_link"] == "https://huggingface.co/datasets/org/mix#licences"
    assert data["size_categories"] == ["n<1K"]
    assert data["task_categories"] == ["image-text-to-text", "visual-question-answering"]
    assert [config["config_name"] for config in data["configs"]] == ["hateful_memes", "vqa_rad"]
    assert data["configs"][1]["data_files"][0] == {"split": "train", "path": "vqa_rad/train-*.parquet"}
    splits = data["dataset_info"][1]["splits"]
    assert [(split["name"], split["num_examples"]) for split in splits] == [("train", 20), ("test", 3)]
    assert "> `hateful_memes` is not for commercial use" in card
    assert "| `vqa_rad` | VQA-RAD | image question answering | extra | train | 20 | 40 | 0 |" in card
    assert re.search(
        r"\| `vqa_rad` \| vqa, instructblip [\d.]+ \| natural \| the answer given most often \| 7 \|", card
    )
    assert "lau2018dataset" in card
    assert 'datasets.load_dataset("org/mix", "hateful_memes", split="dev_seen", streaming=True)' in card


def test_row_groups_and_files_are_small_and_hold_the_images(hub, pushed, tmp_path):
    import pyarrow.parquet as pq

    if hub.store.xet is not None:
        pytest.skip("the same through LFS")
    files = [path for path in hub.files("org/mix", "dataset") if path.startswith("vqa_rad/train")]
    assert all(re.fullmatch(r"vqa_rad/train-0000\d-[0-9a-f]{16}\.parquet", path) for path in files)
    table = pq.ParquetFile(io.BytesIO(hub.read("org/mix", files[0], "dataset")))
    assert table.metadata.num_rows == 4
    image = table.read()["image"][0].as_py()
    assert (image["path"], image["bytes"][:2]) == ("synpic0.jpg", b"\xff\xd8")


def refusal(code):
    return SimpleNamespace(status_code=code, headers={}, request=None)


class Client:
    """A stand-in for `HfApi`: one repository in memory, `commits` of path -> size or bytes."""

    endpoint = "http://localhost"

    def __init__(self, private=None):
        self.private, self.commits, self.uploads, self.fail = private, [{}], [], []

    def __call__(self, token=None):
        return self

    def repo_info(self, repo_id, repo_type):
        if self.private is None:
            raise RepositoryNotFoundError("none", response=refusal(404))
        return SimpleNamespace(private=self.private, sha=f"{len(self.commits):040d}")

    def create_repo(self, repo_id, repo_type, private):
        self.private = private

    def list_repo_files(self, repo_id, repo_type, revision):
        return list(self.commits[int(revision) - 1])

    def hf_hub_download(self, repo_id, path, repo_type, revision):
        self.folder.mkdir(exist_ok=True)
        (self.folder / path).write_bytes(self.commits[int(revision) - 1][path])
        return str(self.folder / path)

    def preupload_lfs_files(self, repo_id, additions, repo_type):
        for addition in additions:
            if len(self.uploads) in self.fail:
                raise KeyboardInterrupt
            self.uploads.append(addition.path_in_repo)
            addition._is_uploaded = True

    def create_commit(self, repo_id, operations, commit_message, repo_type, parent_commit):
        if self.fail and isinstance(self.fail[0], str):
            code = int(self.fail.pop(0))
            raise HfHubHTTPError("refused", response=refusal(code))
        assert int(parent_commit) == len(self.commits)
        files = dict(self.commits[-1])
        for operation in operations:
            if hasattr(operation, "path_or_fileobj"):
                files[operation.path_in_repo] = operation.path_or_fileobj or operation.upload_info.size
            else:
                del files[operation.path_in_repo]
        self.commits.append(files)
        return SimpleNamespace(oid=f"{len(self.commits):040d}")

    @property
    def files(self):
        return self.commits[-1]


@pytest.fixture
def client(monkeypatch, tmp_path):
    client = Client()
    client.folder = tmp_path / "downloads"
    monkeypatch.setattr(publishing, "HfApi", client)
    monkeypatch.setitem(publishing.READ_ROWS, "image", 2)
    monkeypatch.setattr(publishing.time, "sleep", lambda seconds: None)
    return client


@pytest.fixture
def make_rows(tmp_path):
    """make_rows(count, **changes of each sample): rows with images that are files."""

    def make_rows(count=6, text="yes", split="train"):
        rows = []
        for number in range(count):
            path = tmp_path / "pictures" / f"{number}.png"
            write_picture(path, number)
            sample = make_sample(f"x/{split}/{number}", "Why ?", [text] if text else [])
            rows.append({"image": str(path), "image_id": f"x/{number}", "samples": [sample]})
        return datasets.Dataset.from_list(rows, features=row_features(), split=split)

    return make_rows


@pytest.fixture
def options(tmp_path):
    return {"work_dir": tmp_path / "work", "formats": {"mine": InstructionFormat.of("mine", task="vqa")}}


def test_an_interrupted_push_uploads_only_what_is_missing(client, make_rows, options):
    client.fail = [2]
    with pytest.raises(KeyboardInterrupt):
        push({"mine": make_rows()}, "me/mine", shard_bytes=100, **options)
    assert (client.files, len(client.uploads)) == ({}, 2)
    client.fail = []
    commit = push({"mine": make_rows()}, "me/mine", shard_bytes=100, **options)
    assert len(client.uploads) == len(set(client.uploads)) == 3
    assert set(client.uploads) <= client.files.keys()
    assert push({"mine": make_rows()}, "me/mine", shard_bytes=100, **options) == commit
    assert (len(client.uploads), len(client.commits)) == (3, 2)  # nothing to do, so no commit
    assert not list(options["work_dir"].rglob("*.parquet"))


def test_the_same_rows_are_the_same_files_from_any_folder(client, make_rows, options, tmp_path):
    commit = push({"mine": make_rows()}, "me/mine", **options)
    assert push({"mine": make_rows()}, "me/mine", **{**options, "work_dir": tmp_path / "other"}) == commit
    assert len(client.uploads) == 2
    assert len(set(client.uploads)) == 1


def test_a_config_pushed_again_is_replaced_and_others_stay(client, make_rows, options):
    formats = {name: InstructionFormat.of(name, task="vqa") for name in ("mine", "other")}
    options = {**options, "formats": formats}
    push({"mine": {"train": make_rows(), "test": make_rows(split="test")}, "other": make_rows()}, "me/mine", **options)
    before = set(client.files)
    push({"mine": make_rows(text="no")}, "me/mine", **options)
    kept = {path for path in before if not path.startswith("mine/")}
    assert {path for path in client.files if not path.startswith("mine/")} == kept
    assert len([path for path in client.files if path.startswith("mine/")]) == 1
    assert list(json.loads(client.files["configs.json"])["mine"]["splits"]) == ["train"]


def test_the_card_keeps_what_people_wrote_and_other_configs(client, make_rows, options):
    push({"mine": make_rows()}, "me/mine", **options)
    card = client.files["README.md"].decode()
    ours = "- config_name: mine\n"
    assert ours in card
    theirs = "- config_name: theirs\n  data_files:\n  - split: train\n    path: theirs/*.csv\n" + ours
    edited = card.replace(ours, theirs, 1) if card.index("configs:") < card.index(ours) else card
    edited = edited.replace("---\n\n", "pretty_name: My data\n---\n\nHand-written.\n\n", 1).replace(
        "pretty_name: mine\n", ""
    )
    client.files["README.md"] = (edited + "\nMore by hand.\n").encode()
    push({"mine": make_rows(text="no")}, "me/mine", **options)
    again = client.files["README.md"].decode()
    for kept in ("Hand-written.", "More by hand.", "pretty_name: My data"):
        assert again.count(kept) == 1
    assert again.count("## Licences") == 1
    names = [config["config_name"] for config in yaml.safe_load(again.split("---")[1])["configs"]]
    assert names == ["mine", "theirs"]


def test_a_config_whose_files_are_gone_leaves_the_card(client, make_rows, options):
    formats = {name: InstructionFormat.of(name, task="vqa") for name in ("mine", "other")}
    push({"mine": make_rows(), "other": make_rows()}, "me/mine", **{**options, "formats": formats})
    for path in [path for path in client.files if path.startswith("other/")]:
        del client.files[path]
    push({"mine": make_rows(text="no")}, "me/mine", **{**options, "formats": formats})
    data = yaml.safe_load(client.files["README.md"].decode().split("---")[1])
    assert [config["config_name"] for config in data["configs"]] == ["mine"]
    assert list(json.loads(client.files["configs.json"])) == ["mine"]


def test_a_commit_that_was_overtaken_is_tried_again(client, make_rows, options):
    client.fail = ["412", "409"]
    push({"mine": make_rows()}, "me/mine", **options)
    assert len(client.commits) == 2


def test_uploads_that_are_gone_are_forgotten(client, make_rows, options):
    client.fail = ["400"]
    with pytest.raises(HfHubHTTPError, match="it is forgotten now: push again"):
        push({"mine": make_rows()}, "me/mine", **options)
    push({"mine": make_rows()}, "me/mine", **options)
    assert len(client.uploads) == 2


def test_samples_without_an_answer_have_no_instruction(client, make_rows, options, monkeypatch):
    written = []
    write = publishing.ParquetWriter.write_table
    monkeypatch.setattr(
        publishing.ParquetWriter,
        "write_table",
        lambda self, table, size: written.append(table) or write(self, table, size),
    )
    push({"mine": make_rows(2, text="")}, "me/mine", **options)
    assert written[0]["instruction"].to_pylist() == written[0]["response"].to_pylist() == [[""], [""]]
    assert json.loads(client.files["configs.json"])["mine"]["splits"]["train"]["unanswered"] == 2


def test_rows_of_text_alone_are_published_without_an_image(client, make_rows, options):
    text = {"image": None, "image_id": "x/text", "samples": [make_sample("x/text", "Why ?", ["so"])]}
    text = datasets.Dataset.from_list([text], features=row_features())
    rows = datasets.concatenate_datasets([make_rows(3), text])
    push({"mine": rows}, "me/mine", **options)
    assert json.loads(client.files["configs.json"])["mine"]["splits"]["train"]["rows"] == 4


def test_terms_are_asked_for_before_anything_is_sent(client, make_rows, options):
    rows = make_rows()
    options = {"work_dir": options["work_dir"]}
    with pytest.raises(
        ValueError,
        match=r"hateful_memes is not for commercial use .*handed out to those who accepted .*"
        r"Push it to a private repository, or, if you may publish it, say so: accept_terms=",
    ):
        push({"vsr": rows, "hateful_memes": rows}, "me/mine", private=False, **options)
    assert client.private is None
    with pytest.raises(ValueError, match="ocr_vqa is without a licence that allows to pass it on"):
        push({"ocr_vqa": rows}, "me/mine", private=False, **options)
    client.private = False
    with pytest.raises(ValueError, match="me/mine is there and public: pass private=False if that is meant"):
        push({"hateful_memes": rows}, "me/mine", **options)
    push({"hateful_memes": rows}, "me/mine", private=False, accept_terms=["hateful_memes"], **options)
    assert len(client.commits) == 2


def test_vqg_and_parts_have_the_terms_of_their_source():
    assert publishing.terms("llava_detail") == publishing.terms("llava_instruct") != []
    assert publishing.terms("vqa_rad") == publishing.terms("mine") == []


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (lambda rows: {"data": rows}, "'data' cannot be the name of a config"),
        (lambda rows: {"a/b": rows}, "'a/b' cannot be the name of a config"),
        (lambda rows: {"mine": {}}, "mine has no split"),
        (lambda rows: {"mine": {"tr-ain": rows}}, "'tr-ain' cannot be the name of a split"),
        (lambda rows: {"mine": rows.select([])}, "mine/train has no rows: leave it out"),
        (
            lambda rows: {"mine": rows.remove_columns("image")},
            "mine/train has columns image_id, samples: expected image",
        ),
        (lambda rows: {"mine": {"train": rows.to_iterable_dataset()}}, "expected a datasets.Dataset, not streamed"),
    ],
)
def test_what_cannot_be_published_is_refused(client, make_rows, options, sources, message):
    with pytest.raises(ValueError, match=message):
        push(sources(make_rows()), "me/mine", **options)
    assert client.private is None


def test_images_that_are_gone_are_named(client, make_rows, options, tmp_path):
    rows = make_rows()
    (tmp_path / "pictures" / "2.png").unlink()
    with pytest.raises(
        ValueError, match=r"mine/train, rows 3 to 4: an image cannot be read .*2.png.*moved after the build"
    ):
        push({"mine": rows}, "me/mine", **options)
    elsewhere = {"image": {"bytes": None, "path": "https://example.org/0.png"}, "image_id": "x/0", "samples": []}
    elsewhere = datasets.Dataset.from_list([elsewhere], features=row_features())
    with pytest.raises(ValueError, match=r"mine/train, row 1 \(x/0\): the image has no bytes"):
        push({"mine": elsewhere}, "me/mine", **options)


def test_a_broken_list_of_configs_is_told(client, make_rows, options):
    client.private = True
    client.commits[0]["configs.json"] = b'{"mine": 3}'
    with pytest.raises(ValueError, match="me/mine: configs.json is not what a push writes"):
        push({"mine": make_rows()}, "me/mine", **options)
