"""Batches of one dataset each, as LAVIS trains; the default mixes datasets within a batch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, Sampler


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
                "dataset has such batches anyway"
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


class HomogeneousPart(IterableDataset):
    """The samples of a part of a stream, reordered so that every `batch_size` of them are of one dataset.

    A sample waits until there are `batch_size` of its dataset, so datasets keep their shares, and each batch is of the
    dataset whose turn it is by them. `batch_size - 1` samples of each dataset wait at most. The state does not hold
    them: it says where the oldest one stood in the stream, so going on reads from there, and drops what was given.

    Args:
        part: of a stream, with `state()`, which is JSON; begins at `start`.
        batch_size: of one process.
        start: a state to go on from, parsed.

    Raises:
        ValueError: while reading: a sample does not name its dataset.
    """

    def __init__(self, part: Any, batch_size: int, start: dict[str, Any] | None):
        self.part, self.batch_size, self.start = part, batch_size, start or {}
        self._read = 0  # samples of the part
        # Name -> where the part was, shortly before the first of the samples, and the samples with their numbers.
        self._waiting: dict[str, tuple[tuple[int, str], list[tuple[int, Any]]]] = {}

    def state(self) -> str:
        number, state = min((mark for mark, _ in self._waiting.values()), default=(self._read, ""))
        waiting = sorted(place - number for _, samples in self._waiting.values() for place, _ in samples)
        position = json.loads(state or self.part.state())
        return json.dumps({**position, "read": self._read - number, "waiting": waiting})

    def __iter__(self) -> Iterator[Any]:
        waited, read_before = set(self.start.get("waiting", ())), self.start.get("read", 0)
        self._waiting = {}
        mark = 0, json.dumps({"epoch": self.start.get("epoch", 0), "stream": self.start.get("stream")})
        for number, sample in enumerate(self.part):
            self._read = number + 1
            if number >= read_before or number in waited:
                yield from self._batch_with(number, sample, mark)
            if self._read % self.batch_size == 0:  # not after each sample, as a state is a copy
                mark = self._read, self.part.state()

    def _batch_with(self, number: int, sample: Any, mark: tuple[int, str]) -> list[Any]:
        """The batch that a sample completes, or nothing."""
        name = sample.get("dataset")
        if name is None:
            raise ValueError(
                f"homogeneous_batches with a stream whose sample {sample.get('id')} has no `dataset`: name the dataset "
                "of each sample, or leave homogeneous_batches out"
            )
        _, samples = self._waiting.setdefault(name, (mark, []))
        samples.append((number, sample))
        if len(samples) < self.batch_size:
            return []
        del self._waiting[name]
        return [sample for _, sample in samples]
