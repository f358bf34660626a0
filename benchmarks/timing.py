"""Time several ways to do one piece of work, so that a busy or drifting machine hits all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass
class Contestant:
    """One way to do the work.

    Attributes:
        name: "peer", "peer again", "peer tuned" or "ours".
        parts: what runs, each with the number of times that the whole work runs it. A number other than 1 means that a
            part was timed on a sample and scaled.
    """

    name: str
    parts: Sequence[tuple[Callable[[], Any], float]]


def alternate(
    contestants: Sequence[Contestant], repetitions: int, clock: str, synchronize: Callable[[], None]
) -> dict[str, list[float]]:
    """Seconds of each contestant in each repetition, after one unmeasured run; the order rotates by one each time."""
    now = CLOCKS[clock]
    seconds: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for repetition in range(-1, repetitions):
        first = repetition % len(contestants)
        for contestant in [*contestants[first:], *contestants[:first]]:
            total = 0.0
            for run, times in contestant.parts:
                synchronize()
                start = now()
                run()
                synchronize()
                total += (now() - start) * times
            if repetition >= 0:
                seconds[contestant.name].append(total)
    return seconds


@dataclass
class Ratio:
    """How many times faster one contestant was than another, over the repetitions."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, slower: Sequence[float], faster: Sequence[float]) -> Ratio:
        """Ratios within each repetition, where both met the same machine."""
        ratios = [a / b for a, b in zip(slower, faster, strict=True)]
        return cls(statistics.median(ratios), min(ratios), max(ratios))

    def __str__(self) -> str:
        return f"{self.median:.2f}x [{self.lowest:.2f}..{self.highest:.2f}]"


# Contestants that are also compared with another peer than the one as documented.
BEST_PEERS = {"ours": "peer tuned", "ours cached": "peer tuned", "ours compiled": "peer compiled"}


def ratios_of(seconds: dict[str, list[float]]) -> dict[str, Ratio]:
    """Of all contestants over the peer, and of ours over the best peer, as "ours over tuned"."""
    ratios = {name: Ratio.of(seconds["peer"], taken) for name, taken in seconds.items() if name != "peer"}
    for name, best in BEST_PEERS.items():
        if name in seconds and best in seconds:
            ratios[f"{name} over {best.removeprefix('peer ')}"] = Ratio.of(seconds[best], seconds[name])
    return ratios
