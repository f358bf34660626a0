"""[`encode_images`]: fill a feature cache before training, on as many processes as there are.

    accelerate launch examples/train.py --config examples/finetune.yaml --feature_cache features --encode_only true

Only the vision tower is loaded. What is in the cache already is not encoded again, so an interrupted run goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import datasets
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import AutoModel

from instructblip.modeling import InstructBLIPConfig, InstructBLIPForConditionalGeneration
from instructblip.modeling.backbones import commit_of, load_backbone
from instructblip.processing import InstructBLIPProcessor

from .arguments import InstructBLIPTrainingArguments
from .feature_cache import BatchImages, FeatureCache, encoder, leave_images_encoded


def encode_images(
    model: str, training_data: Sequence[Any], args: InstructBLIPTrainingArguments, dtype: str = "auto"
) -> FeatureCache:
    """Put the features of all images into `args.feature_cache`; several processes share them out.

    Args:
        model: Hub id or folder of the model that will train, with its processor.
        training_data: datasets that it will train on or be evaluated with: an `InstructionDataset` or
            `InstructionMixture`, a `datasets.Dataset` with `image` or `images`, or a list of samples.
        args: those of the training; `per_device_eval_batch_size` images are encoded at a time.
        dtype: what the model will be loaded in.

    Returns:
        The cache.

    Raises:
        TypeError: a dataset that cannot be read row by row, such as a stream.
        ValueError: `args` name no cache, or an image cannot be read; the message says which.
    """
    if args.feature_cache is None:
        raise ValueError("feature_cache is not set: it is the folder that the features go into")
    processor = InstructBLIPProcessor.from_pretrained(model)
    with_tower = load_tower(model, dtype)
    with_tower.vision_model.to(device=args.device, dtype=torch.bfloat16 if args.bf16 else None)
    settings = args.feature_cache_dtype, args.feature_cache_gb, args.feature_cache_views
    cache = FeatureCache(args.feature_cache, with_tower, processor, *settings)
    tables = [table for dataset in training_data for table in _tables(dataset)]
    loader = DataLoader(
        RowsOfProcess(tables, args.process_index, args.world_size),
        batch_size=args.per_device_eval_batch_size,
        num_workers=args.dataloader_num_workers,
        collate_fn=LookUp(cache, processor),
    )
    encode = encoder(
        with_tower, lambda: torch.autocast(args.device.type, torch.bfloat16) if args.bf16 else nullcontext()
    )
    seen = added = 0
    for images, names, pixels in tqdm(loader, disable=args.disable_tqdm or args.process_index > 0, unit="batch"):
        seen += images
        missing = [number for number, name in enumerate(names) if cache.store.get(name) is None]  # still
        while missing and not cache.store.stopped:  # rows may have several images
            part, missing = missing[: args.per_device_eval_batch_size], missing[args.per_device_eval_batch_size :]
            encoded = encode(pixels[part].to(args.device)).to(cache.dtype)
            for number, features in zip(part, encoded, strict=True):
                cache.store.put(names[number], features)
            added += len(part)
    cache.store.flush()
    process = f"process {args.process_index}: " if args.world_size > 1 else ""
    size = cache.store.size() / 1e9
    print(f"{process}{seen} images, {added} of them new, in {cache.folder}; all caches there have {size:.3g} GB")
    return cache


def load_tower(name: str, dtype: str = "auto") -> InstructBLIPForConditionalGeneration:
    """A model of which only the vision tower is loaded; the rest has no storage."""
    config = InstructBLIPConfig.from_pretrained(name)
    where = {"repo": name, "revision": commit_of(name, None), "prefix": "vision_model."}
    if config.bridge_only:
        where = config.backbones["vision"]
        config.bridge_only = False
    with torch.device("meta"):
        model = InstructBLIPForConditionalGeneration(config)
    eva = config.vision_config.model_type == "instructblip_vision_model"
    auto_class = type(model.vision_model) if eva else AutoModel
    model.vision_model = load_backbone(where, config.vision_config, auto_class, dtype=dtype)
    model.vision_model.requires_grad_(False)
    return model.eval()


class RowsOfProcess(Dataset):
    """What one of several processes is to encode: (what a row is called, its images)."""

    def __init__(self, tables: Sequence[Any], rank: int, world_size: int):
        self.tables = tables
        self.rows = [(table, row) for table, rows in enumerate(tables) for row in range(len(rows))][rank::world_size]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: int) -> tuple[str, list[Any]]:
        table, row = self.rows[item]
        values = self.tables[table][row]
        images = values.get("images")
        images = [values.get("image")] if images is None else images
        return values.get("image_id") or f"row {row}", [image for image in images if image is not None]


def _tables(dataset: Any) -> Iterator[Any]:
    """What has the images of a dataset, each row once."""
    if hasattr(dataset, "datasets"):
        for part in dataset.datasets.values():
            yield from _tables(part)
    elif hasattr(dataset, "rows"):
        yield from _tables(dataset.rows)
    elif isinstance(dataset, datasets.Dataset):
        columns = [name for name in ("image", "images", "image_id") if name in dataset.column_names]
        yield leave_images_encoded(dataset.select_columns(columns))
    elif isinstance(dataset, (list, tuple)):
        yield dataset
    else:
        raise TypeError(
            f"the images of a {type(dataset).__name__} cannot be encoded before training: an InstructionDataset, an "
            "InstructionMixture, a datasets.Dataset or a list was expected. Training caches those of any other dataset "
            "as they come"
        )


class LookUp:
    """Collates rows into how many images they show, and names and pixels of those that are not in the cache."""

    def __init__(self, cache: FeatureCache, processor: InstructBLIPProcessor):
        self.store, self.views, self.processor = cache.store, cache.views, processor

    def __call__(self, rows: Sequence[tuple[str, list[Any]]]) -> tuple[int, list[str], torch.Tensor | None]:
        images = BatchImages(self.store, self.processor, self.views)
        for called, sources in rows:
            for number, source in enumerate(sources):
                for epoch in range(self.views):  # each takes another view
                    images.add(source, f"image {number} of {called}", epoch)
        return len(images.names), images.missing, torch.cat(images.pixels) if images.pixels else None
