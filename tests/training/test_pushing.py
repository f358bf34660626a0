"""Checkpoints pushed to a loopback Hub by a run in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import killable_run
import pytest
import torch
from huggingface_hub import HfApi
from minihub import MiniHub
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPImageProcessor

from instructblip import InstructBLIPProcessor
from instructblip.training import checkpoints

RUN = Path(__file__).with_name("pushing_run.py")


@pytest.fixture
def model_folder(tiny_model, t5_tokenizer, qformer_tokenizer, tmp_path):
    processor = InstructBLIPProcessor(
        CLIPImageProcessor(size={"height": 28, "width": 28}, do_center_crop=False), t5_tokenizer,
        qformer_tokenizer, num_query_tokens=4, qformer_max_length=32, is_encoder_decoder=True,
    )  # fmt: skip
    tiny_model("t5", image_token_index=processor.image_token_id).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_pushed_checkpoints_load_and_go_on(model_folder, tmp_path):
    folder, pulled = tmp_path / "run", tmp_path / "pulled"
    with MiniHub() as hub:
        done = subprocess.run(
            [sys.executable, str(RUN), str(model_folder), str(folder)],
            env={**hub.client_env(tmp_path / "home"), "PYTHONPATH": str(RUN.parents[1])},
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
        commits = hub.store.get("model", "org/run")["commits"].items()
        found = {commit["title"]: (sha, commit["tree"]) for sha, commit in commits}
        api = HfApi(endpoint=hub.endpoint, token=False)
        for step in (2, 4):
            revision = found[f"Training in progress, step {step}"][0]
            api.snapshot_download("org/run", revision=revision, local_dir=pulled / str(step), cache_dir=pulled)
        api.snapshot_download("org/run", local_dir=pulled / "end", cache_dir=pulled)
        uploads = [line.split()[1] for line in hub.log if line.startswith("PUT ")]

    for step in (2, 4):
        model = AutoModelForImageTextToText.from_pretrained(pulled / str(step))
        trained = load_file(folder / f"checkpoint-{step}" / "model.safetensors")
        assert all(torch.equal(tensor, trained[name]) for name, tensor in model.bridge_state_dict().items())
        inputs = AutoProcessor.from_pretrained(pulled / str(step))(images=killable_run.picture(0), text="a dog ?")
        assert model.generate(**inputs, max_new_tokens=2).shape[0] == 1
        code = {path.name for path in (folder / f"checkpoint-{step}").glob("*.py")}
        assert code <= {path.name for path in (pulled / str(step)).glob("*.py")}  # for those without the package

    assert checkpoints.problem(str(pulled / "end" / "last-checkpoint")) is None
    run = killable_run.make(str(model_folder), str(tmp_path / "again"), f"{tmp_path}/again.log", max_steps=5)
    assert run.train(resume_from_checkpoint=str(pulled / "end" / "last-checkpoint")).global_step == 5

    final = found["Model save"][1]
    assert final["model.safetensors"]["sha256"] == final["release/model.safetensors"]["sha256"]
    assert len(uploads) == len(set(uploads))  # so that nothing travels twice
    assert not [path for path in final if path.startswith(("checkpoint-", "_"))]
    assert not os.path.exists(folder / "last-checkpoint")
