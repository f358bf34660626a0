"""What a row of the table is: ways to do one piece of work, and a check that they give the same result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from model_pairs import ModelPair
from timing import Contestant


class ResultsDifferError(RuntimeError):
    """The two models gave different results, so their times are not worth comparing."""


@dataclass
class Row:
    """One row of the table.

    Attributes:
        name: what `--rows` selects.
        title: what is measured.
        apart: whether ours is given less to do (shared images, cached features), so the row stands in its own table.
        training: whether it needs models that train.
        prepare: makes the contestants and the check for a pair of models.
    """

    name: str
    title: str
    apart: bool
    training: bool
    prepare: Callable[[ModelPair], Comparison]


@dataclass
class Comparison:
    """The contestants; `check` says in a few words how equal their results are, or raises ResultsDifferError."""

    contestants: Sequence[Contestant]
    check: Callable[[], str]
    note: str = ""
    rows: int = 0  # of the batch, where samples a second are told


def tolerance(pair: ModelPair) -> float:
    """Relative difference that rounding may cause in this dtype."""
    return 1e-4 if pair.setting.dtype == torch.float32 else 5e-2


def contestants(
    peer: Callable,
    tuned: Callable | None,
    ours: Callable,
    compiled_peer: Callable | None = None,
    compiled_ours: Callable | None = None,
) -> list[Contestant]:
    """Peer, peer again as the control, the tuned peer where it differs, and ours; both compiled where asked for."""
    named = [
        ("peer", peer),
        ("peer again", peer),
        ("peer tuned", tuned),
        ("ours", ours),
        ("peer compiled", compiled_peer),
        ("ours compiled", compiled_ours),
    ]
    return [Contestant(name, [(run, 1.0)]) for name, run in named if run is not None]
