"""Random crops of images while training, as LAVIS has them, the same ones in a run that is resumed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from instructblip.processing.collator import sample_name
from instructblip.processing.image_loading import bytes_or_path, is_image_source, open_image


class EpochCollator:
    """A collator around another, told each epoch's number in all workers."""

    def __init__(self, collator: Any):
        self.collator = collator
        # Shared memory: persistent workers hold a copy of this object and must still see a new epoch.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._epoch.share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Draw anew, or take the next view of each image, from here on."""
        self._epoch[0] = epoch

    def epoch_of(self, feature: dict[str, Any]) -> int:
        """The pass over its dataset that a sample belongs to, as items of our datasets say; else the epoch."""
        epoch = feature.get("epoch")
        return epoch if isinstance(epoch, int) else int(self._epoch[0])

    def for_evaluation(self) -> Any:
        """A collator of images as they are."""
        return self.collator


class RandomCropCollator(EpochCollator):
    """Collates like the collator that it wraps, with a random crop in place of each image.

    Seed, epoch and the image's content decide the crop, so that the samples of an image share it and its features.
    Images of one `image_id`, the frames of a clip, are cut alike, as the first of them decides.

    Args:
        collator: of samples with `image` or `images`; `image_embeds` stay as they are.
        seed: of what is drawn.
    """

    def __init__(self, collator: Callable[[Sequence[dict[str, Any]]], Any], seed: int = 0):
        super().__init__(collator)
        self.seed = seed

    def __call__(self, features: Sequence[dict[str, Any]]) -> Any:
        """Collate samples, as the collator does.

        Raises:
            ValueError: an image cannot be read or is an array; and as the collator. Messages name the sample.
        """
        cropped: dict[tuple[str, str, int], Image.Image] = {}
        replaced = []
        for row, feature in enumerate(features):
            name, epoch = sample_name(row, feature), self.epoch_of(feature)
            crops: dict[str, Any] = {}
            for key in ("image", "images"):
                value = feature.get(key)
                several = isinstance(value, (list, tuple))
                sources = list(value) if several else [value]
                if not sources or not all(map(is_image_source, sources)):
                    continue  # nothing to crop, or for the collator to refuse
                made = self._crops(sources, name, epoch, feature.get("image_id") is not None, cropped)
                crops[key] = made if several else made[0]
            replaced.append({**feature, **crops})
        return self.collator(replaced)

    def _crops(
        self, sources: list[Any], name: str, epoch: int, alike: bool, cropped: dict[tuple[str, str, int], Image.Image]
    ) -> list[Image.Image]:
        """The crops of a sample's images; one that is in `cropped` is the same object."""
        described = [f"image {number} of {name}" for number in range(len(sources))]
        digests = [digest_of(*pair) for pair in zip(sources, described, strict=True)]
        made = []
        for source, digest, called in zip(sources, digests, described, strict=True):
            deciding = digests[0] if alike else digest
            if (digest, deciding, epoch) not in cropped:
                generator = np.random.default_rng([int(deciding, 16), self.seed, epoch])
                cropped[digest, deciding, epoch] = random_crop(open_image(source, called), generator, called)
            made.append(cropped[digest, deciding, epoch])
        return made


def digest_of(source: Any, described: str) -> str:
    """`image_digest`.

    Raises:
        ValueError: the image cannot be read; says why, and calls it what `described` says.
    """
    digest = image_digest(source)
    if digest is None:
        open_image(source, described)  # which says what is wrong with it
        raise ValueError(f"{described} cannot be read")
    return digest


def random_crop(image: Image.Image, generator: np.random.Generator, described: str) -> Image.Image:
    """50 to 100 % of an image's area, between 3:4 and 4:3 wide, mirrored or not (LAVIS, `blip2_image_train`).

    The image processor resizes it. Mirroring turns left into right, and text with it.

    Raises:
        ValueError: it is no PIL image; the message calls it what `described` says.
    """
    if not isinstance(image, Image.Image):
        raise ValueError(f"{described} is a {type(image).__name__}, and random crops are cut of PIL images")
    width, height = image.size
    for _ in range(10):
        area = width * height * generator.uniform(0.5, 1.0)
        ratio = np.exp(generator.uniform(np.log(3 / 4), np.log(4 / 3)))
        wide, high = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if wide <= width and high <= height:
            break
    else:  # none fits, as in very long images, of which LAVIS would take the middle
        wide, high = width, height
    left, top = int(generator.integers(width - wide + 1)), int(generator.integers(height - high + 1))
    cut = image.crop((left, top, left + wide, top + high))
    return ImageOps.mirror(cut) if generator.random() < 0.5 else cut


def image_digest(source: Any) -> str | None:
    """A hash of an image's content, without decoding it: of a file's bytes, or the pixels of an image or array.

    None if there is nothing to be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    source = bytes_or_path(source)
    if source is None:
        return None
    if isinstance(source, (str, os.PathLike)) and os.path.isfile(source):
        with open(source, "rb") as file:
            source = file.read()
    if isinstance(source, bytes):
        digest.update(source)
        return digest.hexdigest()
    if isinstance(source, (str, os.PathLike)):  # a URL or base64
        try:
            source = open_image(source, "image")
        except ValueError:
            return None
    if isinstance(source, Image.Image):
        digest.update(f"pixels {source.mode} {source.size}".encode())
        source = np.asarray(source.convert("RGBA") if source.mode == "P" else source)
    array = np.ascontiguousarray(source.numpy(force=True) if isinstance(source, torch.Tensor) else source)
    digest.update(f"array {array.dtype} {array.shape}".encode())
    digest.update(array.data)
    return digest.hexdigest()
