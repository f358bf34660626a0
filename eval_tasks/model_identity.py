"""Which model it is: what the result cache tells models apart by."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import PreTrainedConfig

import instructblip
from instructblip.modeling.adapters import adapter_of
from instructblip.modeling.backbones import commit_of

if TYPE_CHECKING:
    from instructblip.eval_tasks.lm_eval_model import InstructBLIPEvalModel

# What loading reads. Not the model card, optimizer states, or results that someone keeps beside the checkpoint.
LOADED = (".safetensors", ".bin", ".json", ".txt", ".model", ".jinja", ".py")
LARGE = 2**30  # bytes; a bridge is smaller, the shards of a language model are larger


def model_identity(
    lm: InstructBLIPEvalModel, pretrained: Any, processor: Any, trust_remote_code: bool, max_length: int | None
) -> dict[str, Any]:
    """All that an answer depends on beside its document: weights, precision, prompt form, scoring and software.

    Not the device and the batch size, whose numbers differ by rounding.

    Args:
        lm: the model class, loaded.
        pretrained, processor, trust_remote_code, max_length: what it was loaded with.

    Raises:
        ValueError: the model or its processor is an object in memory, or its commit on the Hub cannot be found out.
    """
    if not isinstance(pretrained, str) or not isinstance(processor, (str, type(None))):
        raise ValueError(
            "result_cache: a model or processor in memory may change unnoticed, so that its answers cannot be kept: "
            "save it and pass its folder as `pretrained`, or leave result_cache out"
        )
    info = lm.get_model_info()
    return {
        "checkpoint": checkpoint_identity(pretrained, lm.revision),
        "processor": checkpoint_identity(processor) if processor else "of the checkpoint",
        "dtype": sorted({str(parameter.dtype) for parameter in lm.model.parameters()}),
        "trust_remote_code": trust_remote_code,
        "max_length": max_length,
        "prompt_form": info["prompt_form"],
        "add_end_token": info["add_end_token"],
        "length_normalize": info["length_normalize"],
        "software": software_identity(),
    }


def checkpoint_identity(name: str, revision: str | None = None) -> dict[str, Any]:
    """What a checkpoint is made of.

    Args:
        name: a folder, whose files count with their contents, those above 1 GiB with size and time of change; or a Hub
            id, which counts with its commit. The model of an adapter and the backbones of a bridge release count too.
        revision: branch, tag or commit on the Hub.

    Raises:
        ValueError: the commit cannot be found out.
    """
    identity: dict[str, Any] = {}
    if os.path.isdir(name):
        identity["files"] = _files_digest(Path(name))
    else:
        commit = commit_of(name, revision)
        if not re.fullmatch("[0-9a-f]{40}", commit or ""):
            raise ValueError(f"result_cache: the commit of {name} cannot be found out: pass revision=COMMIT")
        identity.update(repo=name, commit=commit)
    options = {} if revision is None else {"revision": revision}
    adapter, model = adapter_of(name, options)
    if adapter is not None:
        return {**identity, "adapter_of": checkpoint_identity(model)}
    config, _ = PreTrainedConfig.get_config_dict(name, **options)
    if config.get("bridge_only"):
        identity["backbones"] = {
            part: checkpoint_identity(where["repo"], where.get("revision"))
            for part, where in config["backbones"].items()
        }
    return identity


def software_identity() -> dict[str, str]:
    """The versions that an answer may depend on; of our own code, which changes between versions, a digest too."""
    here = Path(__file__).parent
    modules = [*Path(instructblip.modeling.__file__).parent.glob("*.py")]
    modules += Path(instructblip.processing.__file__).parent.glob("*.py")
    modules += [*here.glob("*driver.py"), *here.glob("*_scoring.py"), here / "lm_eval_model.py"]
    code = hashlib.sha256()
    for module in sorted(modules):
        code.update(module.name.encode() + b"\0" + module.read_bytes() + b"\0")
    return {
        "instructblip": f"{instructblip.__version__}, code {code.hexdigest()[:16]}",
        "transformers": transformers.__version__,
        "torch": str(torch.__version__),
    }


def _files_digest(folder: Path) -> str:
    state = hashlib.sha256()
    for file in sorted(_loaded_files(folder)):
        stat = file.stat()
        content = f"changed {stat.st_mtime_ns}"
        if stat.st_size <= LARGE:
            with open(file, "rb") as opened:
                content = hashlib.file_digest(opened, "sha256").hexdigest()
        state.update(f"{file.relative_to(folder)}\0{stat.st_size}\0{content}\0".encode("utf-8", "surrogateescape"))
    return state.hexdigest()


def _loaded_files(folder: Path) -> Iterator[Path]:
    """Files of a checkpoint, and of a tokenizer or processor in a folder of its own."""
    places = [folder, *(file.parent for file in folder.glob("*/*_config.json"))]
    for place in set(places):
        yield from (file for file in place.iterdir() if file.suffix in LOADED and file.is_file())
