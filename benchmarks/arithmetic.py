"""How fast a device multiplies matrices, and how much of that a piece of work is."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from timing import CLOCKS
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

SIDE = {"cuda": 8192, "cpu": 2048}  # of the matrices: large enough for the highest rate


@cache
def matrix_rate(device: str, dtype: torch.dtype, clock: str) -> float:
    """Floating-point operations a second, by this clock, in a product of two large square matrices; measured once."""
    side = SIDE[torch.device(device).type]
    left, right = torch.randn(2, side, side, device=device).to(dtype)
    times = {"timer": CLOCKS[clock]} if device == "cpu" else {}  # torch's own waits for a GPU
    timer = Timer("left @ right", globals={"left": left, "right": right}, num_threads=torch.get_num_threads(), **times)
    return 2 * side**3 / timer.blocked_autorange(min_run_time=1.0).median


def count_operations(work: Callable[[], Any]) -> int:
    """Floating-point operations of `work`, run once: in matrix products, convolutions and, on a GPU, attention."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()
