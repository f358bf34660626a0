"""Batches of one dataset each, as LAVIS trains; the default mixes datasets within a batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler


class HomogeneousSampler(Sampler[int]):
    """The places of a mixture's epoch, reordered so that every `batch_size` of them are of one dataset.

    Datasets keep their shares. Which dataset each batch is of is drawn, so processes, which take whole batches in turn,
    mostly train on different ones at a time. A dataset's last batch of an epoch is filled up with its first items, or
    left out, so that every epoch has as many batches.

    Args:
        mixture: an `InstructionMixture`, or anything with `__len__`, `epoch` and `sources()`.
        batch_size: of one process.
        seed: with the epoch, decides the order.

    Raises:
        TypeError: `mixture` does not say which dataset an item is of.
        ValueError: an epoch is less than a batch.
    """

    def __init__(self, mixture: Any, batch_size: int, seed: int):
        if not hasattr(mixture, "sources"):
            raise TypeError(
                f"homogeneous_batches with a {type(mixture).__name__}: an InstructionMixture was expected. A single "
                "dataset has such batches anyway, and streams are mixed sample by sample"
            )
        if len(mixture) < batch_size:
            raise ValueError(f"an epoch of {len(mixture)} items is less than a batch of {batch_size}")
        self.mixture, self.batch_size, self.seed = mixture, batch_size, seed

    def __len__(self) -> int:
        return len(self.mixture) // self.batch_size * self.batch_size

    def __iter__(self) -> Iterator[int]:
        sources = self.mixture.sources()
        whole, rest = [], []
        for source in np.unique(sources):
            places = np.flatnonzero(sources == source)
            full = len(places) // self.batch_size * self.batch_size
            whole.append(places[:full].reshape(-1, self.batch_size))
            if full < len(places):
                filled = np.concatenate([places[full:], np.resize(places, self.batch_size)])[: self.batch_size]
                rest.append((len(places) - full, filled))
        batches = np.concatenate(whole)
        missing = len(self) // self.batch_size - len(batches)
        rest.sort(key=lambda counted: -counted[0])  # stable: the fullest first
        batches = np.concatenate([batches, *(filled[None] for _, filled in rest[:missing])])
        np.random.default_rng([self.seed, self.mixture.epoch]).shuffle(batches)
        for batch in batches:  # a list of all would take gigabytes for the paper's mixture
            yield from batch.tolist()
