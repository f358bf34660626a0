"""What a user's process does with the Hub; tests/test_hub_release.py runs it, so that settings are read afresh.

python hub_client.py publish RESULTS LANGUAGE VISION    # with instructblip
python hub_client.py read RESULTS                       # with instructblip
python hub_client.py read_without RESULTS               # where it cannot be imported
"""

import contextlib
import json
import sys
import tempfile
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

PACKAGE = ("instructblip", "modeling", "processing")
REPOS = ("org/full", "org/bridge", "org/plain")
PROMPT = "what is the color of this cat ?"


class Absent(MetaPathFinder):
    """Makes the package unimportable, whatever is installed."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname.split(".")[0] in PACKAGE:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8))


def answer(model: Any, processor: Any) -> tuple[torch.Tensor, str]:
    """First-step logits and generated text for one question about one picture."""
    inputs = processor(images=picture(), text=PROMPT)
    with torch.no_grad():
        output = model.generate(
            **inputs, max_new_tokens=5, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    return output.logits[0], processor.batch_decode(output.sequences, skip_special_tokens=True)[0]


def refused(function: Any, *args: Any, **kwargs: Any) -> str:
    """The message with which a call fails; empty if it does not."""
    try:
        function(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def push_backbones(language: str, vision: str) -> Any:
    """Put a tiny tower and a tiny language model on the Hub; returns the tokenizer."""
    from conftest import LANGUAGE, VISION, _word_tokenizer
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForSeq2SeqLM,
        InstructBlipVisionModel,
        PreTrainedTokenizerFast,
    )

    torch.manual_seed(0)
    vision_config = AutoConfig.for_model(vision, initializer_range=0.1, **VISION[vision])
    is_eva = vision == "instructblip_vision_model"
    tower = InstructBlipVisionModel(vision_config) if is_eva else AutoModel.from_config(vision_config)
    tower.push_to_hub("org/tower")
    text_config = AutoConfig.for_model(language, **LANGUAGE[language])
    auto_class = AutoModelForSeq2SeqLM if text_config.is_encoder_decoder else AutoModelForCausalLM
    auto_class.from_config(text_config).push_to_hub("org/llm")
    if language == "t5":
        words, ends = _word_tokenizer(["<pad>", "</s>", "<unk>"], "$A </s>"), {}
    else:
        words, ends = _word_tokenizer(["<pad>", "<s>", "</s>", "<unk>"], "<s> $A"), {"bos_token": "<s>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", **ends
    )
    tokenizer.push_to_hub("org/llm")
    return tokenizer


def publish(results: Path, language: str, vision: str) -> None:
    from conftest import WORDS
    from huggingface_hub import EvalResult
    from transformers import BertTokenizer, BlipImageProcessorPil

    import instructblip

    tokenizer = push_backbones(language, vision)
    shape = dict(vocab_size=80, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32)
    config = instructblip.InstructBLIPConfig.from_backbones(
        "org/tower", "org/llm", qformer_config=shape, num_query_tokens=4
    )
    model = instructblip.InstructBLIPForConditionalGeneration.from_backbones("org/tower", "org/llm", config=config)
    with torch.no_grad():
        for parameter in model.bridge_state_dict().values():
            parameter.add_(torch.randn(parameter.shape), alpha=0.3)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    processor = instructblip.InstructBLIPProcessor(
        BlipImageProcessorPil(size={"height": 28, "width": 28}),
        tokenizer,
        BertTokenizer(vocab={word: index for index, word in enumerate(vocabulary)}),
        num_query_tokens=4,
        is_encoder_decoder=config.is_encoder_decoder,
    )

    accuracy = EvalResult("visual-question-answering", "org/vqa", "Toy VQA", "accuracy", 0.75, dataset_split="test")
    card = dict(license="apache-2.0", datasets=["org/vqa"], training_data="Ten pictures.", results=[accuracy])
    commit = instructblip.push_release(model, processor, "org/full", **card)
    instructblip.push_release(model, processor, "org/bridge", bridge_only=True, private=True)
    model.push_to_hub("org/plain", max_shard_size="50KB")
    processor.push_to_hub("org/plain")
    model.push_to_hub("org/reused", max_shard_size="50KB")
    instructblip.push_release(model, processor, "org/reused", bridge_only=True)
    broken = refused(instructblip.push_release, model, processor, "org/broken")

    logits, text = answer(model, processor)
    torch.save({"logits": logits, "text": text, "commit": commit.oid, "broken": broken}, results / "published.pt")


def read(results: Path, trust: dict[str, bool]) -> None:
    from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

    published = torch.load(results / "published.pt")
    report: dict[str, Any] = {}

    def load(repo: str, auto_class: Any) -> tuple[Any, Any]:
        processor = AutoProcessor.from_pretrained(repo, **trust)
        model = auto_class.from_pretrained(repo, **trust).eval()
        logits, text = answer(model, processor)
        report[f"{repo} {auto_class.__name__}"] = {
            "difference": ((logits - published["logits"]).abs().max() / published["logits"].abs().max()).item(),
            "same_text": text == published["text"],
            "model": f"{type(model).__module__}.{type(model).__name__}",
            "processor": f"{type(processor).__module__}.{type(processor).__name__}",
        }
        return model, processor

    for repo in REPOS:
        load(repo, AutoModel)
        load(repo, AutoModelForImageTextToText)
    model, processor = load("org/full", AutoModelForImageTextToText)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        model.save_pretrained("saved_again")
        processor.save_pretrained("saved_again")
        load("saved_again", AutoModel)
        load("saved_again", AutoModelForImageTextToText)
    config = AutoConfig.from_pretrained("org/bridge", **trust)
    pinned = AutoConfig.from_pretrained("org/full", revision=published["commit"], **trust)
    report["config"] = {"class": type(pinned).__name__, "backbones": config.backbones}
    report["imported"] = [name for name in sys.modules if name.split(".")[0] in PACKAGE]
    name = "read_without.json" if trust else "read.json"
    (results / name).write_text(json.dumps(report))


def read_without(results: Path) -> None:
    sys.meta_path.insert(0, Absent())
    from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

    untrusted = {}
    for auto_class in (AutoModel, AutoModelForImageTextToText, AutoProcessor):
        for repo in REPOS:
            untrusted[f"{repo} {auto_class.__name__}"] = refused(auto_class.from_pretrained, repo)
    (results / "untrusted.json").write_text(json.dumps(untrusted))
    read(results, trust={"trust_remote_code": True})


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "publish":
        publish(Path(arguments[0]), *arguments[1:])
    elif command == "read":
        import instructblip  # noqa: F401

        read(Path(arguments[0]), trust={})
    else:
        read_without(Path(arguments[0]))
