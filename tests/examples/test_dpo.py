import importlib.util
import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPImageProcessorPil

import instructblip


def test_the_script_aligns_the_bridge_and_saves_it(
    tiny_model, tiny_images, llama_tokenizer, qformer_tokenizer, tmp_path, monkeypatch
):
    spec = importlib.util.spec_from_file_location("dpo", Path(__file__).parents[2] / "examples" / "dpo.py")
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "dpo", script)  # TRL's trainer writes its arguments down by their class
    spec.loader.exec_module(script)
    processor = instructblip.InstructBLIPProcessor(
        CLIPImageProcessorPil(size={"height": 28, "width": 28}, do_center_crop=False), llama_tokenizer,
        qformer_tokenizer, num_query_tokens=4, qformer_max_length=32, is_encoder_decoder=False,
    )  # fmt: skip
    tiny_model("llama", image_token_index=processor.image_token_id).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    (tmp_path / "photos").mkdir()
    tiny_images[0].save(tmp_path / "photos" / "0.png")
    row = {"image": "photos/0.png", "prompt": "is there a dog ?", "chosen": "no", "rejected": "yes"}
    (tmp_path / "preferences.jsonl").write_text(json.dumps(row) + "\n")

    script.main(
        [
            *("--model", str(tmp_path / "model"), "--data", str(tmp_path / "preferences.jsonl")),
            *("--output_dir", str(tmp_path / "out"), "--max_steps", "2", "--learning_rate", "1e-2"),
            *("--report_to", "none", "--use_cpu", "true", "--disable_tqdm", "true"),
        ]
    )

    before = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    after = AutoModelForImageTextToText.from_pretrained(tmp_path / "out" / "release")
    inputs = AutoProcessor.from_pretrained(tmp_path / "out" / "release")(images=tiny_images[0], text=row["prompt"])
    candidates = [processor.encode_answers([answer])[0] + [2] for answer in ("no", "yes")]
    with torch.no_grad():
        margins = [
            scores[0] - scores[1] for scores in (m.score_candidates(candidates, **inputs)[0] for m in (before, after))
        ]
    assert margins[1] > margins[0] + 0.1
    bridge = set(before.bridge_state_dict())
    tensors = before.state_dict()
    moved = {name for name, tensor in after.state_dict().items() if not torch.equal(tensor, tensors[name])}
    assert "query_tokens" in moved
    assert moved <= bridge
    checkpoint = tmp_path / "out" / "checkpoint-2" / "adapter_model.safetensors"
    assert checkpoint.stat().st_size < (tmp_path / "model" / "model.safetensors").stat().st_size
