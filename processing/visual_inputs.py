"""Which images and videos belong to which prompt, each image loaded once."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch

from .image_loading import image_key, open_image
from .video_frames import read_frames


def split_into_rows(values: Any, rows: int, is_one: Callable[[Any], bool], kind: str) -> list[list[Any]]:
    """Sort images (or videos) by the prompt that they belong to.

    Args:
        values: None; one image, for every prompt; a list with one entry per prompt, each None, an image or a list of
            images; with a single prompt also a plain list of its images. An array with one dimension more is a list.
        rows: number of prompts.
        is_one: whether a value is one image.
        kind: "image" or "video", for messages.

    Returns:
        One list of images per prompt, empty for text only.

    Raises:
        ValueError: the number of entries is not the number of prompts.
        TypeError: an entry is neither an image nor a list of images.
    """
    if values is None:
        return [[] for _ in range(rows)]
    if is_one(values):
        return [[values] for _ in range(rows)]
    if not isinstance(values, (list, tuple, np.ndarray, torch.Tensor)):
        raise TypeError(f"{kind}s is a {type(values).__name__}: pass one {kind} or a list of them")
    values = list(values)
    if rows == 1 and len(values) != 1 and all(is_one(value) for value in values):
        return [values]
    if len(values) != rows:
        raise ValueError(
            f"{len(values)} {kind}s for {rows} prompts: pass one entry per prompt, a list where a prompt has several "
            f"{kind}s and None where it has none"
        )
    return [_row(value, row, is_one, kind) for row, value in enumerate(values)]


def _row(value: Any, row: int, is_one: Callable[[Any], bool], kind: str) -> list[Any]:
    if value is None:
        return []
    if is_one(value):
        return [value]
    if isinstance(value, (list, tuple, np.ndarray, torch.Tensor)):
        found = [entry for entry in value if entry is not None]
        for entry in found:
            if not is_one(entry):
                raise TypeError(f"sample {row} has a {type(entry).__name__} where one {kind} was expected")
        return found
    raise TypeError(f"sample {row} has a {type(value).__name__} where one {kind} or a list of {kind}s was expected")


class UniqueImages:
    """Images in the order they are first used; adding one twice gives the same number.

    Two images are the same if they are the same object, path or bytes.
    """

    def __init__(self) -> None:
        self.images: list[Any] = []
        self._numbers: dict[Hashable, int] = {}
        self._videos: dict[Hashable, list[int]] = {}
        self._sources: list[Any] = []  # keeps them alive, so that an id() is not given twice

    def add(self, source: Any, name: str) -> int:
        key = image_key(source)
        if key not in self._numbers:
            self._numbers[key] = len(self.images)
            self._sources.append(source)
            self.images.append(open_image(source, name))
        return self._numbers[key]

    def add_video(self, video: Any, num_frames: int | None, name: str) -> list[int]:
        key = image_key(video)
        if key not in self._videos:
            self._sources.append(video)
            frames = read_frames(video, num_frames, name)
            self._videos[key] = [self.add(frame, f"frame {i} of {name}") for i, frame in enumerate(frames)]
        return self._videos[key]


class UniqueEmbeddings:
    """The same bookkeeping for images that were encoded before: (patches, hidden) tensors."""

    def __init__(self) -> None:
        self.embeds: list[torch.Tensor] = []
        self._numbers: dict[Hashable, int] = {}

    def add(self, embeds: torch.Tensor, name: str) -> int:
        key = id(embeds)
        if key not in self._numbers:
            if self.embeds and embeds.shape != self.embeds[0].shape:
                raise ValueError(
                    f"{name} has embeddings of shape {tuple(embeds.shape)} but the first image has "
                    f"{tuple(self.embeds[0].shape)}: use one vision tower and image size"
                )
            self._numbers[key] = len(self.embeds)
            self.embeds.append(embeds)
        return self._numbers[key]


def is_embedding(value: Any) -> bool:
    """Whether `value` is one encoded image: a (patches, hidden) tensor."""
    return isinstance(value, torch.Tensor) and value.ndim == 2


def index_rows(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Image numbers per row, padded with -1 to the row with most: (rows, most)."""
    most = max(len(row) for row in rows)
    return [[*row, *[-1] * (most - len(row))] for row in rows]
