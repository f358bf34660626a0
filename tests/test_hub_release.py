"""Releases pushed to and pulled from a loopback Hub by processes of their own, through xet and through LFS."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from minihub import MiniHub
from transformers import BlipImageProcessorPil

from instructblip import InstructBLIPProcessor, push_release, write_model_card

CLIENT = Path(__file__).with_name("hub_client.py")
RELEASES = ("org/full", "org/bridge", "org/plain", "saved_again")
LOADED = [f"{name} {auto}" for name in RELEASES for auto in ("AutoModel", "AutoModelForImageTextToText")]
CASES = {  # upload mode: backbones of the release
    "xet": ("llama", "siglip_vision_model"),
    "lfs": ("t5", "instructblip_vision_model"),
}


def run_client(hub, home, *arguments):
    command = [sys.executable, str(CLIENT), *map(str, arguments)]
    done = subprocess.run(
        command, env=hub.client_env(home), cwd=home.parent, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module", params=list(CASES))
def case(request):
    return request.param


@pytest.fixture(scope="module")
def hub(case):
    with MiniHub(xet=case == "xet") as server:
        server.faults.append(("POST", "org/broken/commit/main", 403))
        yield server


@pytest.fixture(scope="module")
def published(case, hub, tmp_path_factory):
    """What the publishing process reports; every other test reads what it pushed."""
    folder = tmp_path_factory.mktemp(case)
    run_client(hub, folder / "home", "publish", folder, *CASES[case])
    return {"folder": folder, **torch.load(folder / "published.pt")}


@pytest.fixture(scope="module")
def read_with(hub, published):
    folder = published["folder"]
    run_client(hub, folder / "home_with", "read", folder)
    return json.loads((folder / "read.json").read_text())


@pytest.fixture(scope="module")
def read_without(hub, published):
    folder = published["folder"]
    run_client(hub, folder / "home_without", "read_without", folder)
    return json.loads((folder / "read_without.json").read_text())


@pytest.mark.parametrize("name", LOADED)
def test_a_release_answers_as_before_with_the_package(name, read_with):
    loaded = read_with[name]
    assert loaded["difference"] < 1e-5  # of the largest logit
    assert loaded["same_text"]
    assert loaded["model"].startswith("instructblip.modeling.")
    assert loaded["processor"].startswith("instructblip.processing.")


@pytest.mark.parametrize("name", LOADED)
def test_a_release_answers_as_before_without_the_package(name, read_without):
    loaded = read_without[name]
    assert loaded["difference"] < 1e-5  # of the largest logit
    assert loaded["same_text"]
    assert loaded["model"].startswith("transformers_modules.")
    assert loaded["processor"].startswith("transformers_modules.")
    assert read_without["imported"] == []


def test_code_from_the_hub_is_refused_unless_it_is_trusted(read_without, published):
    messages = json.loads((published["folder"] / "untrusted.json").read_text())
    assert len(messages) == 9
    for call, message in messages.items():
        assert "trust_remote_code=True" in message, (call, message)


def test_a_bridge_release_names_its_backbones_by_commit(hub, read_with):
    heads = {name: hub.store.get("model", name)["head"] for name in ("org/tower", "org/llm")}
    backbones = read_with["config"]["backbones"]
    assert backbones["vision"] == {"repo": "org/tower", "revision": heads["org/tower"]}
    assert backbones["language"] == {"repo": "org/llm", "revision": heads["org/llm"]}


def test_a_release_is_one_commit_with_model_processor_code_and_card(hub, published):
    assert len(hub.store.get("model", "org/full")["commits"]) == 2  # the first one makes the repository
    assert hub.store.get("model", "org/full")["head"] == published["commit"]
    files = hub.files("org/full")
    expected = {"README.md", "config.json", "generation_config.json", "model.safetensors", "processor_config.json"}
    expected |= {"tokenizer.json", "qformer_tokenizer/tokenizer.json"}
    expected |= {"modeling_instruct_blip.py", "configuration_instruct_blip.py", "processing_instruct_blip.py"}
    assert expected <= set(files)


def test_a_bridge_release_is_private_and_small(hub, published):
    assert hub.store.get("model", "org/bridge")["private"]
    bridge, full = (hub.entry(name, "model.safetensors")["size"] for name in ("org/bridge", "org/full"))
    assert bridge < full / 2


def test_weights_of_an_earlier_release_are_replaced(hub, published):
    assert "model.safetensors.index.json" in hub.files("org/plain")  # what org/reused held before
    weights = [name for name in hub.files("org/reused") if "safetensors" in name]
    assert weights == ["model.safetensors"]


def test_a_failed_commit_leaves_nothing_behind(hub, published):
    assert "a fault that the test asked for" in published["broken"]
    assert hub.files("org/broken") == [".gitattributes"]


def test_large_files_took_the_way_of_the_mode(case, hub, read_with):
    went_through_lfs = any("/_lfs/" in line for line in hub.log)
    assert went_through_lfs == (case == "lfs")
    assert bool(hub.store.xet and hub.store.xet.files) == (case == "xet")


def test_the_card_says_what_the_release_is(hub, published):
    full, bridge = (ModelCard(hub.read(f"org/{name}", "README.md").decode()) for name in ("full", "bridge"))
    assert full.data.base_model == ["org/llm", "org/tower"]
    assert full.data.pipeline_tag == "image-text-to-text"
    assert full.data.license == "apache-2.0"
    assert full.data.eval_results[0].metric_value == 0.75
    assert "| Toy VQA | test | accuracy | 0.75 |" in full.text
    assert "Ten pictures." in full.text
    assert hub.store.get("model", "org/tower")["head"] in bridge.text
    assert "Only what was trained" in bridge.text
    assert "All weights" in full.text
    assert "## Results" not in bridge.text


@pytest.fixture
def unsent(monkeypatch):
    """Fails the test if anything is about to be pushed."""
    for name in ("create_repo", "upload_folder"):
        monkeypatch.setattr(HfApi, name, lambda *args, **kwargs: pytest.fail("something was sent to the Hub"))


@pytest.fixture
def make_processor(llama_tokenizer, qformer_tokenizer):
    def make(**kwargs):
        kwargs = {"num_query_tokens": 4, "qformer_max_length": 64, **kwargs}
        return InstructBLIPProcessor(BlipImageProcessorPil(), llama_tokenizer, qformer_tokenizer, **kwargs)

    return make


@pytest.mark.usefixtures("unsent")
def test_a_processor_of_another_model_is_not_pushed(tiny_model, make_processor):
    processor = make_processor(num_query_tokens=8)
    model = tiny_model("llama", image_token_index=processor.image_token_id + 1)
    differences = f"image_token_id is {processor.image_token_id} here .* num_query_tokens is 8 here and 4 in the model"
    with pytest.raises(ValueError, match=f"do not belong together: {differences}"):
        push_release(model, processor, "org/name")


@pytest.mark.usefixtures("unsent")
def test_a_tokenizer_that_the_model_has_no_embeddings_for_is_not_pushed(tiny_model, make_processor):
    processor = make_processor()
    model = tiny_model("llama", image_token_index=processor.image_token_id)
    processor.tokenizer.add_tokens([f"<new{number}>" for number in range(80)])  # the model has 80
    with pytest.raises(ValueError, match=r"the language model's tokenizer has \d+ tokens but the model only 80"):
        push_release(model, processor, "org/name")


@pytest.mark.usefixtures("unsent")
def test_a_bridge_release_that_only_this_machine_could_load_is_not_pushed(tmp_path, tiny_model, make_processor):
    processor = make_processor()
    model = tiny_model("llama", image_token_index=processor.image_token_id)
    with pytest.raises(ValueError, match="where the frozen backbones are"):
        push_release(model, processor, "org/name", bridge_only=True)
    pinned = {"repo": "org/tower", "revision": "0" * 40}
    model.config.backbones = {"vision": pinned, "language": {"repo": str(tmp_path), "revision": None}}
    with pytest.raises(ValueError, match=f"the language backbone is the local folder {tmp_path}"):
        push_release(model, processor, "org/name", bridge_only=True)
    model.config.backbones["language"] = {"repo": "org/llm", "revision": None}
    with pytest.raises(ValueError, match="the language backbone org/llm has no commit"):
        push_release(model, processor, "org/name", bridge_only=True)


def test_a_card_without_details_claims_none(tmp_path):
    card = write_model_card(tmp_path, "org/name")
    assert ModelCard.load(tmp_path / "README.md").content == card.content
    assert card.data.license is None
    assert card.data.base_model is None
    for heading in ("## Training data", "## Results", "frozen part | from"):
        assert heading not in card.text
