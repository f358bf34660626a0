"""How fast a device multiplies matrices, and how much of that a piece of work is.

`python benchmarks/arithmetic.py` compares torch's linear layers with ours on this CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from timing import CLOCKS
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from instructblip.modeling.onednn_linear import linear

SHAPES = [  # rows, inputs and outputs, as in the toys' steps and beams
    (2056, 384, 1536),
    (534, 512, 1536),
    (136, 512, 32128),
    (40, 512, 2048),
    (5, 512, 32000),
    (5, 512, 2048),
    (1, 512, 2048),
]
SIDE = {"cuda": 8192, "cpu": 2048}  # of the matrices: large enough for the highest rate


def _operations_of_linear(hidden: Sequence[int], weight: Sequence[int], *rest: Any, **out_shape: Any) -> int:
    return 2 * math.prod(hidden) * weight[0]


UNKNOWN_TO_TORCH = {torch.ops.mkldnn._linear_pointwise: _operations_of_linear}


@cache
def matrix_rate(device: str, dtype: torch.dtype, clock: str) -> float:
    """Floating-point operations a second, by this clock, in a product of two large square matrices; measured once."""
    side = SIDE[torch.device(device).type]
    left, right = torch.randn(2, side, side, device=device).to(dtype)
    times = {"timer": CLOCKS[clock]} if device == "cpu" else {}  # torch's own waits for a GPU
    names = {"linear": linear, "left": left, "right": right}
    timer = Timer("linear(left, right)", globals=names, num_threads=torch.get_num_threads(), **times)
    return 2 * side**3 / timer.blocked_autorange(min_run_time=1.0).median


def count_operations(work: Callable[[], Any]) -> int:
    """Floating-point operations of `work`, run once: in matrix products, convolutions and, on a GPU, attention."""
    with FlopCounterMode(display=False, custom_mapping=UNKNOWN_TO_TORCH) as counter:
        work()
    return counter.get_total_flops()


def products_table() -> str:
    """GFLOP/s of `nn.functional.linear` and of ours, and of their gradients, on one thread in float32."""
    torch.set_num_threads(1)
    lines = [
        "| Rows, inputs, outputs | torch | ours | gradient of inputs: torch | ours | of weights: torch | ours |",
        "|---|---|---|---|---|---|---|",
    ]
    for rows, inputs, outputs in SHAPES:
        hidden = torch.randn(rows, inputs, requires_grad=True)
        weight = torch.randn(outputs, inputs, requires_grad=True)
        gradient = torch.randn(rows, outputs)
        rates = []
        for wanted in (None, hidden, weight):
            for multiply in (torch.nn.functional.linear, linear):
                output = multiply(hidden, weight)
                names = {"multiply": multiply, "hidden": hidden.detach(), "weight": weight.detach()}
                names |= {"grad": torch.autograd.grad, "output": output, "wanted": wanted, "gradient": gradient}
                work = "multiply(hidden, weight)"
                if wanted is not None:
                    work = "grad(output, wanted, gradient, retain_graph=True)"
                seconds = Timer(work, globals=names).blocked_autorange(min_run_time=0.3).median
                rates.append(2e-9 * rows * inputs * outputs / seconds)
        lines.append(f"| {rows} x {inputs} x {outputs} | " + " | ".join(f"{rate:.0f}" for rate in rates) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(products_table())
