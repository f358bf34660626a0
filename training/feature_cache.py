"""[`FeatureCache`]: what the frozen vision tower makes of each image, kept on disk and encoded once."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import nn
from transformers import TrainerCallback
from transformers.feature_extraction_utils import BatchFeature
from transformers.utils import logging

from instructblip.modeling import InstructBLIPForConditionalGeneration
from instructblip.processing import InstructBLIPCollator, InstructBLIPProcessor
from instructblip.processing.image_loading import image_key, is_image_source, open_image

from .feature_store import FeatureStore
from .random_crops import EpochCollator, digest_of, random_crop
from .sharding import whole

logger = logging.get_logger(__name__)

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
ABOUT = "about.json"
PLACES, NAMES = "feature_places", "feature_names"  # what a batch says of its images until it is completed


class FeatureCache:
    """Features of one tower under one image transform, from before the trained LayerNorm (`model.encode_images`).

    They are in a folder of their own below `folder`, named by a hash of tower, transform and dtype; its `about.json`
    says what went in. An image is known by its content: a file's bytes, or the pixels of what comes decoded.

    A DataLoader's workers look images up and transform those that are not there (`CachingCollator`); the process with
    the model encodes these, and adds them (`complete`). Features are rounded to `dtype` whether they were found or
    not, so that losses do not depend on what had been cached before.

    All processes of a run make theirs at the same time.

    Args:
        folder: of all caches; runs may share it.
        model: its tower must be frozen.
        processor: its image processor is the transform.
        dtype: "bfloat16" or "float32".
        max_gb: size, in 10^9 bytes, that `folder` may have; None: no limit.
        views: features kept of each image: of the image as it is, and of `views` - 1 random crops; epochs take turns.

    Raises:
        ValueError: the tower trains or is not loaded, or an argument is none of those above.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        model: InstructBLIPForConditionalGeneration,
        processor: InstructBLIPProcessor,
        dtype: str = "bfloat16",
        max_gb: float | None = None,
        views: int = 1,
    ):
        if dtype not in DTYPES:
            raise ValueError(f"feature_cache_dtype {dtype!r}: expected {' or '.join(DTYPES)}")
        if views < 1:
            raise ValueError(f"feature_cache_views={views}: expected 1 or more")
        self.dtype, self.views = DTYPES[dtype], views
        about = {"tower": _described_by_first_process(model), "image_processor": _transform(processor), "dtype": dtype}
        text = json.dumps(about, indent=2, sort_keys=True)
        self.folder = Path(folder) / hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        _point_out_others(self.folder, about)
        max_bytes = None if max_gb is None else int(max_gb * 1e9)
        self.store = FeatureStore(self.folder, max_bytes, limited=folder)
        if not (self.folder / ABOUT).exists():
            unfinished = self.folder / f"{ABOUT}.{uuid.uuid4().hex}"
            unfinished.write_text(text + "\n", encoding="utf-8")
            os.replace(unfinished, self.folder / ABOUT)

    def collator(self, collator: Any) -> CachingCollator:
        """A collator that looks images up; `complete` needs its batches.

        Raises:
            TypeError: `collator` is no `InstructBLIPCollator`.
        """
        if not isinstance(collator, InstructBLIPCollator):
            raise TypeError(
                f"feature_cache with a {type(collator).__name__}: it needs an InstructBLIPCollator, which takes "
                "features in place of images"
            )
        return CachingCollator(collator, self.store, self.views)

    def complete(self, batch: Any, encode: Callable[[torch.Tensor], torch.Tensor] | None) -> Any:
        """Encode the images of a batch that were not found, add them, and put all features together.

        Args:
            batch: of a `CachingCollator`; others are returned as they are.
            encode: (images, 3, height, width) to (images, patches, hidden). None: nothing can be encoded here.

        Returns:
            The batch with `image_embeds` (images, patches, hidden) for all its images.

        Raises:
            RuntimeError: an image is missing, and there is no `encode`.
        """
        if PLACES not in batch:
            return batch
        batch = dict(batch)
        places, names, pixels = batch.pop(PLACES), batch.pop(NAMES), batch.pop("pixel_values", None)
        parts = [batch["image_embeds"]] if "image_embeds" in batch else []
        if pixels is not None:
            # Another process, or an earlier batch, may have added some since the worker looked.
            found = [self.store.get(name) for name in names]
            missing = [number for number, features in enumerate(found) if features is None]
            if missing:
                if encode is None:
                    raise RuntimeError(
                        f"{len(missing)} images of a batch are not in the feature cache {self.folder}, and the vision "
                        "tower is spread over several processes, which cannot encode them here: do it before, with "
                        "encode_images (docs/feature_cache.md)"
                    )
                encoded = encode(pixels[missing]).detach().to(self.dtype)
                for number, features in zip(missing, encoded, strict=True):
                    self.store.put(names[number], features)
                    found[number] = features
            parts.append(torch.stack([features.to(places.device) for features in found]))
        batch["image_embeds"] = torch.cat(parts)[places]
        return batch


class CachingCollator(EpochCollator):
    """Collates like the collator that it wraps, but with the features of images that are in the cache.

    A batch has `image_embeds` (found, patches, hidden), `pixel_values` (not found, 3, height, width), and for
    `FeatureCache.complete` the names of the latter and the place of each image in both together: (images,)

    Args:
        collator: whose `processor` transforms images.
        store: where features are.
        views: how many there are of each image.
    """

    def __init__(self, collator: InstructBLIPCollator, store: FeatureStore, views: int = 1):
        super().__init__(collator)
        self.store, self.views = store, views

    def for_evaluation(self) -> CachingCollator:
        """The same for evaluations, which see images as they are."""
        return CachingCollator(self.collator, self.store)

    def __call__(self, features: Sequence[dict[str, Any]]) -> BatchFeature:
        """Collate samples, as `InstructBLIPCollator` does.

        Raises:
            ValueError: as there; messages name the sample.
        """
        if any(feature.get("image_embeds") is not None for feature in features):
            return self.collator(features)  # the user's own features
        images = BatchImages(self.store, self.collator.processor, self.views)
        replaced = [self._with_stand_ins(row, feature, images) for row, feature in enumerate(features)]
        batch = self.collator(replaced)
        if not images.names:
            return batch
        order = batch.pop("image_embeds").flatten().long()  # stand-ins, in the order that the model gets images in
        is_missing = torch.tensor([one is None for one in images.found])
        places = torch.argsort(torch.argsort(is_missing.int(), stable=True))  # those found come first
        found = [one for one in images.found if one is not None]
        if found:
            batch["image_embeds"] = torch.stack(found)
        if images.pixels:
            batch["pixel_values"] = torch.cat(images.pixels)
        batch[PLACES], batch[NAMES] = places[order], images.missing
        return batch

    def _with_stand_ins(self, row: int, feature: dict[str, Any], images: BatchImages) -> dict[str, Any]:
        """A sample with stand-ins for its images; one with something else is left to the collator's messages."""
        for key in ("images", "image"):
            value = feature.get(key)
            if value is None:
                continue
            several = isinstance(value, (list, tuple))
            sources = list(value) if several else [value]
            if (key == "images" and not several) or not all(map(is_image_source, sources)):
                break
            identity = f" (id {feature['id']!r})" if feature.get("id") is not None else ""
            stand_ins = [
                images.add(source, f"image {number} of sample {row}{identity}", self.epoch_of(feature))
                for number, source in enumerate(sources)
            ]
            rest = {name: kept for name, kept in feature.items() if name not in ("image", "images")}
            if rest.get("image_id") is None and rest.get("image_ids") is None:  # stand-ins say nothing of the images
                names = [images.names[int(stand_in)] for stand_in in stand_ins]
                rest["image_ids" if several else "image_id"] = names if several else names[0]
            return {**rest, "image_embeds": stand_ins}
        return feature


class BatchImages:
    """The different images of a batch: their names, and the features or the pixels of each.

    Args:
        store: where features are looked up.
        processor: transforms images that were not found.
        views: how many views there are of each image.
    """

    def __init__(self, store: FeatureStore, processor: InstructBLIPProcessor, views: int):
        self.store, self.processor, self.views = store, processor, views
        self.names: list[str] = []
        self.found: list[torch.Tensor | None] = []
        self.pixels: list[torch.Tensor] = []  # of those that were not found
        self._sources: list[Any] = []  # keeps them alive, so that an id() is not given twice
        self._by_source: dict[tuple[Hashable, int], torch.Tensor] = {}
        self._by_name: dict[str, torch.Tensor] = {}

    @property
    def missing(self) -> list[str]:
        """The names of the images in `pixels`."""
        return [name for name, features in zip(self.names, self.found, strict=True) if features is None]

    def add(self, source: Any, described: str, epoch: int) -> torch.Tensor:
        """The stand-in of an image: a (1, 1) tensor with its number, the same object for the same view of an image.

        Views take turns from epoch to epoch, and each image has its own first one.

        Raises:
            ValueError: it cannot be read; says why, and calls it what `described` says.
        """
        key = image_key(source), epoch
        if key not in self._by_source:
            self._sources.append(source)
            digest = digest_of(source, described)
            view = (epoch + int(digest[:8], 16)) % self.views
            name = f"{digest}-{view}"
            if name not in self._by_name:
                self._by_name[name] = torch.tensor([[float(len(self.names))]])
                self.names.append(name)
                self.found.append(self.store.get(name))
                if self.found[-1] is None:
                    image = view_of(open_image(source, described), digest, view, described)
                    self.pixels.append(self.processor(images=[image], return_tensors="pt")["pixel_values"])
            self._by_source[key] = self._by_name[name]
        return self._by_source[key]


class KeepFeatures(TrainerCallback):
    """Writes the features that a training has encoded."""

    def __init__(self, cache: FeatureCache):
        self.cache = cache

    def on_epoch_end(self, args, state, control, **kwargs):
        self.cache.store.flush()

    on_save = on_evaluate = on_train_end = on_epoch_end


def describe_tower(model: InstructBLIPForConditionalGeneration) -> dict[str, str]:
    """What tells a tower from another: its kind, and a digest of its configuration and tensors.

    Where ZeRO-3 has partitioned them, all processes call it.

    Raises:
        ValueError: it trains, so that its features change, or its weights are not loaded.
    """
    tower = model.vision_model
    norm = {id(parameter) for parameter in model.vision_layernorm.parameters()}  # it comes after what is cached
    tensors = [(name, p) for name, p in tower.named_parameters() if id(p) not in norm] + list(tower.named_buffers())
    trained = [name for name, tensor in tensors if tensor.requires_grad]
    if trained:
        raise ValueError(
            f"feature_cache keeps what a frozen vision tower computes, and {len(trained)} tensors of this one train, "
            f"such as {trained[0]}: freeze them, or train without the cache"
        )
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(_plain(model.config.vision_config.to_dict()), sort_keys=True, default=str).encode())
    for name, tensor in sorted(tensors):
        if tensor.is_meta:
            raise ValueError(f"feature_cache needs the vision tower's weights, and {name} is not loaded")
        data = whole(tensor).cpu().contiguous()
        digest.update(f"{name} {data.dtype} {tuple(data.shape)}".encode())
        digest.update(data.flatten().view(torch.uint8).numpy())
    return {"model_type": str(tower.config.model_type), "digest": digest.hexdigest()}


def _described_by_first_process(model: InstructBLIPForConditionalGeneration) -> dict[str, str]:
    """`describe_tower` for all processes, of which under FSDP only the first may have loaded the weights."""
    partitioned = any(hasattr(parameter, "ds_id") for parameter in model.vision_model.parameters())  # by ZeRO-3
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    if alone or partitioned:
        return describe_tower(model)
    found = [describe_tower(model) if torch.distributed.get_rank() == 0 else None]
    torch.distributed.broadcast_object_list(found)
    return found[0]


def view_of(image: Any, digest: str, view: int, described: str) -> Any:
    """View 0 is the image; others are random crops, which its content decides; errors as in `random_crop`."""
    return image if view == 0 else random_crop(image, np.random.default_rng([int(digest, 16), view]), described)


def leave_images_encoded(dataset: Any) -> Any:
    """The dataset, giving `{"bytes", "path"}` instead of decoded images where it can: who finds features needs none."""
    if isinstance(dataset, datasets.Dataset):
        for column, feature in dataset.features.items():
            if isinstance(feature, datasets.Image):
                dataset = dataset.cast_column(column, datasets.Image(decode=False))
            elif isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.Image):
                dataset = dataset.cast_column(column, datasets.List(datasets.Image(decode=False)))
    elif hasattr(dataset, "leave_images_encoded"):
        dataset.leave_images_encoded()
    return dataset


def encoder(model: nn.Module, autocast: Callable[[], Any]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The model's tower as `FeatureCache.complete` wants it; `autocast` makes the context that training runs in."""

    def encode(pixel_values: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), autocast():
            return model.encode_images(pixel_values).last_hidden_state

    return encode


def _transform(processor: InstructBLIPProcessor) -> dict[str, Any]:
    return _plain(processor.image_processor.to_dict())


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Without what says nothing about the result."""
    ignored = ("processor_class", "auto_map", "transformers_version", "_name_or_path", "architectures", "dtype")
    return {name: value for name, value in values.items() if name not in ignored}


def _point_out_others(folder: Path, about: dict[str, Any]) -> None:
    """Say in what an empty cache differs from those beside it, as it may be by mistake."""
    if folder.exists():
        return
    for other in sorted(folder.parent.glob(f"*/{ABOUT}")):
        theirs = json.loads(other.read_text("utf-8"))
        differing = [name for name in about if theirs.get(name) != about[name]]
        logger.warning(
            f"the features in {other.parent} are of another {', '.join(differing)} ({other.name} there says which) and "
            f"cannot be used; all images are encoded again, into {folder}"
        )
