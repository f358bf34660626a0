"""What a training step of ours spends its time on: `python benchmarks/profile_step.py --device cuda --dtype bfloat16`.

Device time is summed over kernels (on a CPU: over operators, without what they call) by kind; what is left of the wall
time, the device waits for its host.
"""

from __future__ import annotations

import argparse
import re
import time
from functools import partial
from typing import Any

import torch
import transformers
from batches import EQUAL, MIXED, VQA_LIKE, new_batch
from model_pairs import LANGUAGES, SIZES, Setting, new_pair
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from training_rows import optimizer_of, train_step

BATCHES = {"equal": EQUAL, "vqa": VQA_LIKE, "mixed": MIXED}
KINDS = {  # the first that a name fits
    "optimizer": r"adam|multi_tensor|_foreach",
    "attention": r"flash|fmha|efficient_attention|scaled_dot_product|cudnn_attention|softmax",
    "matrix products": r"gemm|nvjet|cutlass|xmma|\bmm\b|addmm|bmm|matmul|linear|conv",
    "copies and fills": r"copy|memcpy|memset|fill|zero_|index|gather|scatter|\bcat\b|_to_",
    "normalization and activations": r"norm|gelu|silu|dropout|rsqrt|pow|mean",
}


def kind_of(name: str) -> str:
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name.lower())), "other")


def profile_steps(setting: Setting, lengths: list[tuple[int, int]], steps: int, warmup: int) -> dict[str, Any]:
    """Seconds a step by kind, in all and by the clock on the wall, and the kernels that take longest."""
    pair = new_pair(setting)
    batch = new_batch(setting, lengths)
    model = pair.ours if setting.compile is None else pair.compiled_ours
    inputs = batch.for_ours(bucketed=setting.compile is not None)
    step = partial(train_step, model, inputs, optimizer_of(pair.ours), setting)
    for _ in range(warmup):
        step()
    setting.synchronize()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    setting.synchronize()
    wall = (time.perf_counter() - started) / steps

    on_gpu = setting.device != "cpu"
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    with profile(activities=activities) as profiler:
        for _ in range(steps):
            step()
        setting.synchronize()
    kernels: dict[str, float] = {}
    for event in profiler.key_averages():
        if on_gpu and event.is_user_annotation:
            continue  # holds kernels that are counted
        if on_gpu == (event.device_type != DeviceType.CPU):
            taken = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            kernels[event.key] = kernels.get(event.key, 0.0) + taken / 1e6 / steps
    kinds: dict[str, float] = {}
    for name, taken in kernels.items():
        kinds[kind_of(name)] = kinds.get(kind_of(name), 0.0) + taken
    longest = sorted(kernels.items(), key=lambda item: -item[1])[:12]
    return {"wall": wall, "busy": sum(kernels.values()), "kinds": kinds, "longest": longest, "rows": len(lengths)}


def as_markdown(found: dict[str, Any], setting: Setting) -> str:
    wall, busy = found["wall"], found["busy"]
    lines = [f"{found['rows'] / wall:.3g} samples a second; a step takes {1000 * wall:.1f} ms."]
    if setting.device != "cpu":
        lines.append(f"The device works for {1000 * busy:.1f} ms of it and waits for its host for the rest.")
    lines += ["", "| Kind | ms | of the work |", "|---|---|---|"]
    for kind, taken in sorted(found["kinds"].items(), key=lambda item: -item[1]):
        lines.append(f"| {kind} | {1000 * taken:.2f} | {taken / busy:.0%} |")
    lines += ["", "| Longest | ms | of the work |", "|---|---|---|"]
    lines += [f"| `{name[:100]}` | {1000 * taken:.2f} | {taken / busy:.0%} |" for name, taken in found["longest"]]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--language", choices=LANGUAGES, default="t5")
    parser.add_argument("--size", choices=SIZES, default="toy", help="xl: FlanT5-XL, Vicuna-7B; xxl: XXL, Vicuna-13B")
    parser.add_argument("--batch", choices=list(BATCHES), default="mixed")
    parser.add_argument("--copies", type=int, default=1, help="of the batch's 8 rows")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--compile", nargs="?", const="default", metavar="MODE", help="compile the model, in this mode")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    dtype = getattr(torch, options.dtype)
    setting = Setting(options.language, options.size, options.device, dtype, compile=options.compile)
    found = profile_steps(setting, BATCHES[options.batch] * options.copies, options.steps, options.warmup)
    print(as_markdown(found, setting))
    return found


if __name__ == "__main__":
    main()
