"""Peak memory of one training step of one model, in a process of its own; `compare.py` starts it."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
from pathlib import Path
from typing import Any

import torch
from batches import EQUAL, new_batch
from model_pairs import Setting, new_peer, ours_like, prepare
from torch import nn
from training_rows import optimizer_of, train_step, tuned_inputs

from instructblip.modeling.onednn_linear import use_onednn

ROWS = 16
MIB = 2**20


def measure(contestant: str, setting: Setting) -> dict[str, float]:
    """Peak MiB over weights and optimizer, in all, and saved for backward, of one step of `contestant`."""
    batch = new_batch(setting, [EQUAL[0]] * ROWS)
    peer = new_peer(setting)
    ours = ours_like(peer, setting)
    model: nn.Module = peer
    bridge = {name for name, _ in ours.named_bridge_parameters()}
    inputs: dict[str, Any] = tuned_inputs(setting, batch) if contestant == "peer tuned" else batch.for_peer()
    if contestant == "peer tuned":
        use_onednn(peer)
    if contestant == "ours":
        ours.freeze_backbones()
        model, inputs = ours, batch.for_ours()
    del peer, ours
    prepare(model, setting, bridge)
    optimizer = optimizer_of(model)
    train_step(model, inputs, optimizer, setting)  # makes the optimizer's moments, and whatever is made only once

    before = _start(setting)
    train_step(model, inputs, optimizer, setting)
    total = _peak(setting)
    return {"over_weights": (total - before) / MIB, "total": total / MIB, "saved": _saved(model, inputs, setting) / MIB}


def _start(setting: Setting) -> int:
    """Bytes in use now, from where the peak is counted."""
    gc.collect()
    if setting.device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from what is in use
    return _status("VmRSS")


def _peak(setting: Setting) -> int:
    if setting.device.startswith("cuda"):
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    return _status("VmHWM")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def _saved(model: nn.Module, inputs: dict[str, Any], setting: Setting) -> int:
    """Bytes that autograd keeps for the backward pass, without the model's own parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, int] = {}

    def remember(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor), setting.autocast():
        output = model(**inputs)
    del output
    return sum(storages.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contestant", choices=["peer", "peer tuned", "ours"])
    for name in ("language", "size", "device", "dtype"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    setting = Setting(arguments.language, arguments.size, arguments.device, getattr(torch, arguments.dtype))
    print(json.dumps(measure(arguments.contestant, setting)))


if __name__ == "__main__":
    main()
