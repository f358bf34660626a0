"""How fast a device multiplies matrices, and how much of that a piece of work is."""

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
