"""How fast a device multiplies matrices, and how much of that a piece of work is."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

SIDE = {"cuda": 8192, "cpu": 2048}  # of the matrices: large enough for the highest rate


@cache
def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """Floating-point operations a second in a product of two large square matrices, measured now."""
    side = SIDE[torch.device(device).type]
    left, right = torch.randn(2, side, side, device=device).to(dtype)
    timer = Timer("left @ right", globals={"left": left, "right": right}, num_threads=torch.get_num_threads())
    return 2 * side**3 / timer.blocked_autorange(min_run_time=1.0).median


def count_operations(work: Callable[[], Any]) -> int:
    """Floating-point operations in the matrix products, convolutions and attention of `work`, which runs once."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()
