"""How often each dataset of a mixture comes, and the mixture as a map-style dataset; `streaming.py` has the stream."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import torch

from .instructions import InstructionDataset, number_images
from .table import TABLE

Rule = Literal["sqrt", "uniform", "proportional", "temperature"]
BLOCK = 2048  # places between two counts of what came before
ROUNDS = 6  # of the cipher behind a pass; four would make a permutation that looks random, two more cost little
MULTIPLIERS = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9)  # of splitmix64
COUNTS, PLACES, PASSES = range(3)  # what a random draw is for, so that no two are alike


def sampling_probabilities(
    sizes: Mapping[str, int],
    rule: Rule = "sqrt",
    temperature: float = 2.0,
    factors: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """How often each dataset is drawn: its size under a rule, times its factor, over the sum of all.

    - "sqrt": the square root of its size, as the paper does.
    - "uniform": all alike.
    - "proportional": its size, as if all were one dataset.
    - "temperature": its size to the power of 1 / `temperature`; 1 is proportional, 2 is sqrt, and more is more even.

    Args:
        sizes: name -> number of training examples.
        factors: name -> what its share is multiplied by; 1 for those left out. The paper lowers A-OKVQA and raises
            OKVQA, and does not say by how much.

    Returns:
        name -> probability, in the order of `sizes`; they add up to 1.

    Raises:
        ValueError: no dataset, a size or factor that is not positive, a factor for no dataset, or an unknown rule.
    """
    exponents = {"sqrt": 0.5, "uniform": 0.0, "proportional": 1.0, "temperature": 1 / temperature if temperature else 0}
    if rule not in exponents:
        raise ValueError(f"rule {rule!r}: expected {', '.join(exponents)}")
    if temperature <= 0:
        raise ValueError(f"temperature {temperature}: expected more than 0")
    if not sizes:
        raise ValueError("no datasets: expected a dict of name -> size")
    factors = factors or {}
    unknown = [name for name in factors if name not in sizes]
    if unknown:
        raise ValueError(f"a factor for {unknown[0]!r}, which is no dataset here: there are {', '.join(sizes)}")
    for what, values in (("size", sizes), ("factor", factors)):
        for name, value in values.items():
            if not value > 0:
                raise ValueError(
                    f"{name!r} has {what} {value}: expected more than 0; leave out what is not to be drawn"
                )
    weights = {name: size ** exponents[rule] * factors.get(name, 1.0) for name, size in sizes.items()}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def paper_probabilities(names: Iterable[str] | None = None) -> dict[str, float]:
    """Square-root sampling of the paper's 13 held-in datasets, by the sizes and factors in their entries of `TABLE`.

    Args:
        names: those of them to mix; None mixes all.

    Raises:
        ValueError: a name without a `sampling_size` in its entry.
    """
    sized = {name: spec for name, spec in TABLE.items() if spec.sampling_size is not None}
    names = list(sized if names is None else names)
    unknown = [name for name in names if name not in sized]
    if unknown:
        raise ValueError(
            f"the paper trains on no dataset called {unknown[0]!r}: pass probabilities, such as "
            "sampling_probabilities({name: size}). It trains on " + ", ".join(sized)
        )
    sizes = {name: sized[name].sampling_size for name in names}
    return sampling_probabilities(sizes, factors={name: sized[name].sampling_factor for name in names})


def check_probabilities(probabilities: Mapping[str, float], names: Iterable[str]) -> np.ndarray:
    """The probabilities in the order of `names`.

    Raises:
        ValueError: they are not for just these names, one is not positive, or they do not add up to 1.
    """
    names = list(names)
    if set(probabilities) != set(names):
        odd = next(name for name in [*names, *probabilities] if (name in probabilities) != (name in names))
        raise ValueError(f"{odd!r} is {'no dataset here' if odd in probabilities else 'without a probability'}")
    values = np.array([probabilities[name] for name in names], dtype=np.float64)
    if not (values > 0).all() or abs(values.sum() - 1) > 1e-6:
        raise ValueError(f"probabilities {dict(probabilities)}: expected positive numbers that add up to 1")
    return values / values.sum()


class MixtureOrder:
    """Which item of which source stands at each place of an epoch.

    Sources are drawn independently with their probabilities. Each goes through its items in passes: all of them once in
    a random order, then all once more in another, and so on, from one epoch to the next without a break. So a small
    source comes several times in an epoch, always evenly, and a large one goes on in the next epoch where it stopped.

    Any epoch and place is computed without those before it. Memory is one byte a place; no order of items is stored, as
    a pass is a permutation that is computed place by place (a Feistel cipher on the item's number).

    Args:
        sizes: items of each source.
        probabilities: of each source.
        length: places in an epoch.
        seed: with the epoch, decides everything.
    """

    def __init__(self, sizes: list[int], probabilities: np.ndarray, length: int, seed: int):
        self.sizes, self.probabilities, self.length, self.seed = sizes, probabilities, length, seed
        self.epoch = -1
        self._keys = functools.lru_cache(maxsize=4096)(self._draw_keys)

    def __reduce__(self):
        return type(self), (self.sizes, self.probabilities, self.length, self.seed)  # workers compute it again

    def _counts(self, epoch: int) -> np.ndarray:
        """How often each source comes in an epoch: (source,)"""
        generator = np.random.default_rng([COUNTS, self.seed, epoch])
        return generator.multinomial(self.length, self.probabilities)

    def start_epoch(self, epoch: int) -> None:
        """Compute `sources` of an epoch: (places,) which source stands at each."""
        if epoch == self.epoch:
            return
        counts = self._counts(epoch)
        self._before = sum((self._counts(earlier) for earlier in range(epoch)), np.zeros_like(counts))
        # A shuffled list with drawn counts is what independent draws give, and the counts need no list.
        numbers = np.arange(len(counts), dtype=np.uint8 if len(counts) <= 256 else np.uint16)
        self.sources = np.repeat(numbers, counts)
        np.random.default_rng([PLACES, self.seed, epoch]).shuffle(self.sources)
        blocks = (self.sources[start : start + BLOCK] for start in range(0, self.length, BLOCK))
        in_block = np.stack([np.bincount(block, minlength=len(counts)) for block in blocks])
        self._before_block = np.cumsum(in_block, axis=0) - in_block  # (block, source)
        self.epoch = epoch

    def locate(self, place: int) -> tuple[int, int, int]:
        """(source, item, pass) at a place of the epoch that was started last."""
        source = int(self.sources[place])
        block = place // BLOCK
        in_block = int(np.count_nonzero(self.sources[block * BLOCK : place] == source))
        drawn = int(self._before[source]) + int(self._before_block[block, source]) + in_block
        number, position = divmod(drawn, self.sizes[source])
        return source, self.item(source, number, position), number

    def item(self, source: int, number: int, position: int) -> int:
        """The item at a position of a source's pass.

        The cipher permutes the numbers below a power of four that is not less than the size; where it leads out of the
        items, it is applied again until it leads back.
        """
        size = self.sizes[source]
        half = max(3, ((size - 1).bit_length() + 1) // 2)
        mask = (1 << half) - 1
        keys = self._keys(source, number)
        while True:
            left, right = position >> half, position & mask
            for key in keys:
                mixed = (right ^ key) * MULTIPLIERS[0] & 0xFFFFFFFFFFFFFFFF
                mixed = (mixed ^ mixed >> 32) * MULTIPLIERS[1] & 0xFFFFFFFFFFFFFFFF
                left, right = right, left ^ mixed >> 64 - half
            position = left << half | right
            if position < size:
                return position

    def items(self) -> np.ndarray:
        """(places,) the item of its source at every place of the epoch that was started last, as `locate` has it."""
        items = np.empty(self.length, np.int64)
        for source, size in enumerate(self.sizes):
            places = np.flatnonzero(self.sources == source)
            passes, positions = np.divmod(int(self._before[source]) + np.arange(len(places)), size)
            for number in np.unique(passes).tolist():
                chosen = passes == number
                items[places[chosen]] = self._items(source, number, positions[chosen].astype(np.uint64))
        return items

    def _items(self, source: int, number: int, positions: np.ndarray) -> np.ndarray:
        """`item` for many positions at once."""
        size = self.sizes[source]
        half = np.uint64(max(3, ((size - 1).bit_length() + 1) // 2))
        mask, multipliers = np.uint64((1 << int(half)) - 1), np.array(MULTIPLIERS, np.uint64)
        keys = np.array(self._keys(source, number), np.uint64)
        outside = np.arange(len(positions))
        while len(outside):
            left, right = positions[outside] >> half, positions[outside] & mask
            for key in keys:
                mixed = (right ^ key) * multipliers[0]
                mixed = (mixed ^ mixed >> np.uint64(32)) * multipliers[1]
                left, right = right, left ^ mixed >> np.uint64(64) - half
            positions[outside] = left << half | right
            outside = outside[positions[outside] >= size]
        return positions

    def _draw_keys(self, source: int, number: int) -> list[int]:
        generator = np.random.default_rng([PASSES, self.seed, source, number])
        return generator.integers(2**63, size=ROUNDS).tolist()


class InstructionMixture(torch.utils.data.Dataset):
    """A map-style dataset that mixes several, each with its probability.

    An epoch is `length` places; `MixtureOrder` says what stands where. A run goes on by index: after `set_epoch`, skip
    the places that it has seen, as transformers' Trainer does. Samplers may shuffle an epoch again, or split it among
    ranks.

    Each pass over a source has templates and sampled answers of its own: the number of the pass is the epoch of its
    draws, so they differ within an epoch of the mixture where a source comes several times.

    Args:
        datasets: name -> dataset; the name is the "dataset" of its items.
        probabilities: name -> how often it is drawn; they add up to 1. None: square-root sampling by their lengths.
        seed: decides the order; what the datasets draw is decided by their own.
        length: items in an epoch. None: as many as all datasets have.

    Raises:
        TypeError: a dataset that is no `InstructionDataset`.
        ValueError: no dataset, an empty one, or probabilities that do not fit.
    """

    def __init__(
        self,
        datasets: Mapping[str, InstructionDataset],
        probabilities: Mapping[str, float] | None = None,
        seed: int = 0,
        length: int | None = None,
    ):
        if not datasets:
            raise ValueError("no datasets: expected a dict of name -> InstructionDataset")
        for name, dataset in datasets.items():
            if not isinstance(dataset, InstructionDataset):
                raise TypeError(f"dataset {name!r} is a {type(dataset).__name__}: expected an InstructionDataset")
            if not len(dataset):
                raise ValueError(f"dataset {name!r} has no item: leave it out")
        if seed < 0:
            raise ValueError(f"seed={seed}: expected 0 or more")
        sizes = {name: len(dataset) for name, dataset in datasets.items()}
        if length is None:
            length = sum(sizes.values())
        if length < 1:
            raise ValueError(f"length={length}: expected 1 or more")
        if probabilities is None:
            probabilities = sampling_probabilities(sizes)
        self.datasets = dict(datasets)
        self.names = tuple(datasets)
        self.probabilities = {name: probabilities[name] for name in self.names if name in probabilities}
        chances = check_probabilities(probabilities, self.names)
        self.order = MixtureOrder(list(sizes.values()), chances, length, seed)
        self._image_numbers: list[np.ndarray] | None = None  # of each source's items, made when they are asked for
        # Shared memory: persistent workers hold a copy of this object and must still see a new epoch.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._epoch.share_memory_()

    def __len__(self) -> int:
        return self.order.length

    @property
    def epoch(self) -> int:
        return int(self._epoch[0])

    def set_epoch(self, epoch: int) -> None:
        """Draw another order, in all workers; sources go on where the epoch before stopped."""
        self._epoch[0] = epoch

    def sources(self) -> np.ndarray:
        """Which of `names`, by number, stands at each place of the epoch: (places,)"""
        self.order.start_epoch(self.epoch)
        return self.order.sources

    def image_numbers(self) -> np.ndarray:
        """(places,) numbers that are equal where the image ids are, for the epoch; opens no image."""
        if self._image_numbers is None:
            self._image_numbers = number_images(list(self.datasets.values()))
        sources, items = self.sources(), self.order.items()
        numbers = np.empty(len(self), np.int64)
        for source, of_items in enumerate(self._image_numbers):
            at = sources == source
            numbers[at] = of_items[items[at]]
        return numbers

    def leave_images_encoded(self) -> None:
        """Give images as `{"bytes", "path"}` from now on, see `InstructionDataset`."""
        for dataset in self.datasets.values():
            dataset.leave_images_encoded()

    def locate(self, index: int) -> tuple[str, int, int]:
        """(name, item, pass) at a place of the epoch.

        Raises:
            IndexError: no such place.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        self.order.start_epoch(self.epoch)
        source, item, number = self.order.locate(int(index) % len(self))
        return self.names[source], item, number

    def text(self, index: int) -> dict[str, Any]:
        """An item without its image; opens none."""
        name, item, number = self.locate(index)
        return {**self.datasets[name].text(item, epoch=number), "dataset": name}

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The item of a dataset: `text(index)`, and "image" or "images".

        Raises:
            OSError: the image is gone or broken; names the sample.
        """
        name, item, number = self.locate(index)
        return {**self.datasets[name].item(item, epoch=number), "dataset": name}
