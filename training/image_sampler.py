"""Several questions about one image in one batch, so that it is opened, sent and encoded once."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import datasets
import numpy as np
from torch.utils.data import Sampler

from instructblip.processing.image_loading import image_key

WAITING = 64  # groups that may wait for a batch with room for all of them


class ImageSampler(Sampler[int]):
    """All items of a dataset in random order, with up to `images_together` items of one image in the same batch.

    Each epoch, the items of an image are shuffled and cut into groups of `images_together`; the groups are shuffled. A
    group that does not fit into what is left of a batch waits for the next one; few are cut in two. So each item comes
    once an epoch, as without. What differs is that the items of a batch are not drawn independently: with as many items
    of an image as `images_together` or more, a batch has `batch_size / images_together` images. Gradients are noisier
    then, as with a smaller batch, the more so the more the answers about one image have in common.

    The order is decided by seed and epoch alone, so a run resumes by skipping batches, and processes that take whole
    batches in turn, as accelerate has them, need nothing else.

    Args:
        dataset: says which image each item shows, without opening any: an `InstructionDataset` or `InstructionMixture`,
            a `datasets.Dataset` with a column `image_id`, or a list of samples with `image_id` or `image`.
        batch_size: of one process.
        images_together: most items of an image in a group.
        seed: with the epoch, decides the order. The epoch is the dataset's, if it has one.

    Raises:
        TypeError: the dataset does not say which image an item shows, or has no length.
        ValueError: `images_together` is not from 1 to the batch size.
    """

    def __init__(self, dataset: Any, batch_size: int, images_together: int, seed: int = 0):
        if not 1 <= images_together <= batch_size:
            raise ValueError(
                f"images_together={images_together} in batches of {batch_size}: expected 1 to {batch_size}"
            )
        if not hasattr(dataset, "__len__"):
            raise TypeError(
                "images_together reorders a dataset that has a length, and this is a stream: make it with "
                "stream_mixture(..., keep_images_together=True) instead"
            )
        self.dataset, self.batch_size, self.images_together, self.seed = dataset, batch_size, images_together, seed
        self._epoch = 0
        self._numbers = None if hasattr(dataset, "image_numbers") else _image_numbers(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Draw another order, unless the dataset has an epoch of its own."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        epoch = int(getattr(self.dataset, "epoch", self._epoch))
        numbers = self.dataset.image_numbers() if self._numbers is None else self._numbers
        yield from self._batches(self._groups(numbers, np.random.default_rng([self.seed, epoch])))

    def _groups(self, numbers: np.ndarray, generator: np.random.Generator) -> Iterator[list[int]]:
        items = generator.permutation(len(numbers))
        items = items[np.argsort(numbers[items], kind="stable")]  # image after image
        numbers = numbers[items]
        firsts = np.flatnonzero(np.diff(numbers, prepend=numbers[:1] - 1))
        in_image = np.arange(len(items)) - np.repeat(firsts, np.diff(firsts, append=len(items)))
        starts = np.flatnonzero(in_image % self.images_together == 0)
        ends = np.append(starts[1:], len(items))
        for group in generator.permutation(len(starts)):
            yield items[starts[group] : ends[group]].tolist()

    def _batches(self, groups: Iterator[list[int]]) -> Iterator[int]:
        """Items one after another, so that few groups lie across the border between two batches."""
        waiting: deque[list[int]] = deque()
        room = self.batch_size
        for group in groups:
            waiting.append(group)
            placed = True
            while placed:
                placed = False
                for number, candidate in enumerate(waiting):
                    if len(candidate) <= room:
                        del waiting[number]
                        yield from candidate
                        room = room - len(candidate) or self.batch_size
                        placed = True
                        break
            if len(waiting) > WAITING:  # none fits
                yield from waiting[0][:room]
                waiting[0] = waiting[0][room:]
                room = self.batch_size
        for group in waiting:
            yield from group


def _image_numbers(dataset: Any) -> np.ndarray:
    """(items,) numbers that are equal where the image is."""
    if isinstance(dataset, datasets.Dataset) and "image_id" in dataset.column_names:
        return np.unique(np.asarray(dataset["image_id"][:]), return_inverse=True)[1]
    if not isinstance(dataset, (list, tuple)) or not all(isinstance(sample, Mapping) for sample in dataset):
        columns = f" with columns {', '.join(dataset.column_names)}" if isinstance(dataset, datasets.Dataset) else ""
        raise TypeError(
            f"images_together with a {type(dataset).__name__}{columns}: it must say which image each item shows, by a "
            "column `image_id` or a method `image_numbers` that returns one number an item"
        )
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(_image_of(sample, row), len(known)) for row, sample in enumerate(dataset)])


def _image_of(sample: Mapping[str, Any], row: int) -> Hashable:
    if sample.get("image_id") is not None:
        return "id", sample["image_id"]
    if sample.get("image") is not None:
        return "image", image_key(sample["image"])
    return "none", row
