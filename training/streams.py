"""Batches of a stream that go on exactly where a checkpoint left them, by state and not by reading everything again.

A DataLoader is ahead of the training, and with workers nobody can ask it where it is. So every batch brings along the
state of the stream after its last sample.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import datasets
import torch
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers.utils import logging

from .homogeneous import HomogeneousPart
from .interruptions import ShieldedWorker

logger = logging.get_logger(__name__)


def has_position(stream: Any, parts: int) -> bool:
    """Whether `StreamBatches` can read `stream` in `parts` parts and say exactly where each of them is."""
    if isinstance(stream, datasets.IterableDataset):
        return not _has_shuffle_buffer(stream._ex_iterable)  # `datasets` loses what is in it
    states = hasattr(stream, "state_dict") and hasattr(stream, "load_state_dict")
    return isinstance(stream, IterableDataset) and states and parts == 1


def _has_shuffle_buffer(iterable: Any) -> bool:
    if type(iterable).__name__ == "BufferShuffledExamplesIterable":
        return True
    inner = getattr(iterable, "ex_iterables", None) or [getattr(iterable, "ex_iterable", None)]
    inner = [*inner, *(source.rows._ex_iterable for source in getattr(iterable, "sources", ()))]  # of `stream_mixture`
    return any(_has_shuffle_buffer(one) for one in inner if one is not None)


class StreamBatches(IterableDataset):
    """What one process reads of a stream, in batches, without end: an exhausted stream starts its next epoch.

    Each worker reads its own part, and the parts take turns.

    Args:
        stream: a `datasets.IterableDataset` without shuffle buffer, or any stream with `state_dict` and
            `load_state_dict` where there is one process and at most one worker.
        collate: makes a batch of a list of samples.
        batch_size: samples of a batch.
        workers: 0 reads in this process.
        rank, world_size: this process and their number; each reads other samples.
        seed: for workers that draw from torch's global generator, which does not go on where it was.
        homogeneous: each batch is of one dataset.
        loader_options: of the `DataLoader` of each part.
    """

    def __init__(
        self,
        stream: Any,
        collate: Callable[[list[Any]], Any],
        batch_size: int,
        workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        homogeneous: bool = False,
        **loader_options: Any,
    ):
        self.stream, self.collate, self.batch_size, self.workers = stream, collate, batch_size, workers
        self.rank, self.world_size, self.seed, self.loader_options = rank, world_size, seed, loader_options
        self.homogeneous = homogeneous
        self._given = 0
        self._skipped = 0  # batches that the trainer will ask for although they were trained on before
        self._states: list[str | None] = [None] * max(1, workers)

    def position(self) -> dict[str, Any]:
        """Where the stream is after the batches given so far, as JSON."""
        made_of = {"processes": self.world_size, "workers": self.workers, "batch_size": self.batch_size}
        if self.homogeneous:
            made_of["homogeneous"] = True
        parts = [None if state is None else json.loads(state) for state in self._states]
        return {"made_of": made_of, "batches": self._given, "parts": parts}

    def go_on(self, position: dict[str, Any] | None, skipped: int) -> None:
        """Continue from `position`; the trainer will first read `skipped` batches, which are None.

        Where the position belongs to another number of processes or workers, or to batches of another size or kind, the
        stream begins its next epoch.
        """
        self._skipped = skipped
        made_of = self.position()["made_of"]
        if position is not None and position["made_of"] == made_of:
            self._given = position["batches"]
            self._states = [None if part is None else json.dumps(part) for part in position["parts"]]
            return
        there = "has no position of the data" if position is None else f"was written with {position['made_of']}"
        logger.warning(
            f"the checkpoint {there}, and now there are {made_of}: the data goes on with another epoch of the stream, "
            "so samples may come again"
        )
        parts = [] if position is None else [part for part in position["parts"] if part is not None]
        epoch = 1 + max((part["epoch"] for part in parts), default=0)
        self._states = [json.dumps({"epoch": epoch, "stream": None})] * len(self._states)

    def __iter__(self) -> Iterator[Any]:
        yield from itertools.repeat(None, self._skipped)
        self._skipped = 0
        loaders = [iter(self._loader(number)) for number in range(len(self._states))]
        while True:
            turn = self._given % len(loaders)
            batch, self._states[turn] = next(loaders[turn])
            self._given += 1
            yield batch

    def _loader(self, number: int) -> DataLoader:
        parts = len(self._states)
        stream = self.stream
        if isinstance(stream, datasets.IterableDataset):  # even into one part, as this makes a copy without old state
            stream = split_dataset_by_node(stream, self.rank * parts + number, self.world_size * parts)
        state = self._states[number]
        start = None if state is None else json.loads(state)
        part: _Part | HomogeneousPart = _Part(stream, start)
        if self.homogeneous:
            part = HomogeneousPart(part, self.batch_size, start)
        generator = torch.Generator()  # else the loader draws from the global one
        generator.manual_seed(hash((self.seed, self.rank * parts + number, self._given)) % 2**63)
        workers = {"num_workers": 1, "worker_init_fn": ShieldedWorker(), **self.loader_options} if self.workers else {}
        return DataLoader(
            part,
            batch_size=self.batch_size,
            drop_last=True,
            collate_fn=_WithState(self.collate, part),
            generator=generator,
            **workers,
        )


class _Part(IterableDataset):
    """Samples of one part, epoch after epoch."""

    def __init__(self, stream: Any, start: dict[str, Any] | None):
        self.stream, self.start = stream, start
        self.epoch = 0

    def state(self) -> str:
        return json.dumps({"epoch": self.epoch, "stream": self.stream.state_dict()})

    def __iter__(self) -> Iterator[Any]:
        self.epoch = self.start["epoch"] if self.start else 0
        self._set_epoch()
        if self.start and self.start["stream"] is not None:
            self.stream.load_state_dict(self.start["stream"])
        resumed = self.start is not None
        while True:
            empty = True
            for sample in self.stream:
                empty = False
                yield sample
            if empty and not resumed:
                raise ValueError("the stream has no sample for one of the processes or workers: use fewer of them")
            resumed = False
            self.epoch += 1
            self._set_epoch()

    def _set_epoch(self) -> None:
        if hasattr(self.stream, "set_epoch"):
            self.stream.set_epoch(self.epoch)


class _WithState:
    """Collates a batch, and adds the state of the stream after it."""

    def __init__(self, collate: Callable[[list[Any]], Any], part: _Part | HomogeneousPart):
        self.collate, self.part = collate, part

    def __call__(self, samples: list[Any]) -> tuple[Any, str]:
        worker = get_worker_info()
        part = self.part if worker is None else worker.dataset
        return self.collate(samples), part.state()
