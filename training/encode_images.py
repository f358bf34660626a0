"""Fill a feature cache before training, from the same recipe: `python -m instructblip.training.encode_images`.

    python -m instructblip.training.encode_images --config examples/finetune.yaml --feature_cache features
    accelerate launch -m instructblip.training.encode_images --config examples/finetune.yaml --feature_cache features

Processes share the images out. What is in the cache already is not encoded again, so an interrupted run goes on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import PartialState
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import AutoModel
from transformers.utils import is_torch_bf16_gpu_available
from trl import TrlParser

from instructblip.datasets_builders import load, load_own
from instructblip.datasets_builders.table import TABLE
from instructblip.modeling import InstructBLIPConfig, InstructBLIPForConditionalGeneration
from instructblip.modeling.backbones import commit_of, load_backbone
from instructblip.processing import InstructBLIPProcessor

from .feature_cache import BatchImages, FeatureCache, encoder, leave_images_encoded


@dataclass
class EncodeImages:
    """Lines of a training recipe that say which images there are and what encodes them; its others are passed over."""

    model: str = field(metadata={"help": "Hub id or folder of the InstructBLIP model that will train."})
    feature_cache: str = field(metadata={"help": "Folder of the cache."})
    data: str = field(metadata={"help": "File, folder or Hub id with the images, or the name of a dataset."})
    split: str | None = field(default="train", metadata={"help": "Of `data`."})
    eval_data: str | None = field(default=None, metadata={"help": "Another such file or folder, or a split of `data`."})
    data_config: str | None = field(default=None, metadata={"help": "Variant of the dataset that `data` names."})
    data_dir: str | None = field(default=None, metadata={"help": "Official files of the dataset that `data` names."})
    image_dir: str | None = field(default=None, metadata={"help": "Images of a file, where they are not beside it."})
    dtype: str = field(default="auto", metadata={"help": "Precision to load in, as in training."})
    bf16: bool | None = field(default=None, metadata={"help": "As in training. Default: where a GPU can do it."})
    use_cpu: bool = field(default=False, metadata={"help": "As in training."})
    feature_cache_dtype: str = field(default="bfloat16", metadata={"help": "bfloat16 or float32."})
    feature_cache_gb: float | None = field(
        default=None, metadata={"help": "Largest size of the folder, in 10^9 bytes."}
    )
    feature_cache_views: int = field(default=1, metadata={"help": "Views of each image; all but one are random crops."})
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "Images encoded at a time."})
    dataloader_num_workers: int = field(default=0, metadata={"help": "Processes that open images, for each device."})


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


def rows_of(options: EncodeImages) -> list[Any]:
    """The rows of `data` and `eval_data`, as examples/train.py loads them, with images that are not decoded."""
    wanted = [(options.data, options.split)]
    if options.eval_data is not None:
        own = options.data not in TABLE and os.path.exists(options.eval_data)
        wanted.append((options.eval_data, None) if own else (options.data, options.eval_data))
    loaded = [
        load(source, options.data_dir, options.data_config, split=split)
        if source in TABLE
        else load_own(source, options.image_dir, split, options.data_config)
        for source, split in wanted
    ]
    return [leave_images_encoded(rows) for rows in loaded]


class ImagesOnly(torch.utils.data.Dataset):
    """What one of several processes is to encode: (image id, images of a row)."""

    def __init__(self, tables: Sequence[Any], rank: int, world_size: int):
        self.tables = [_image_columns(rows) for rows in tables]
        self.rows = [(table, row) for table, rows in enumerate(tables) for row in range(len(rows))][rank::world_size]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: int) -> tuple[str, list[Any]]:
        table, row = self.rows[item]
        values = self.tables[table][row]
        images = values["images"] if "images" in values else [values["image"]]
        return values.get("image_id", f"row {row}"), [image for image in images if image is not None]


def _image_columns(rows: Any) -> Any:
    return rows.select_columns([name for name in ("image", "images", "image_id") if name in rows.column_names])


class LookUp:
    """Collates rows into the images that are not in the cache: their names, and (images, 3, height, width) or None."""

    def __init__(self, cache: FeatureCache, processor: InstructBLIPProcessor):
        self.store, self.views, self.processor = cache.store, cache.views, processor

    def __call__(self, rows: Sequence[tuple[str, list[Any]]]) -> tuple[int, list[str], torch.Tensor | None]:
        names: list[str] = []
        pixels: list[torch.Tensor] = []
        seen: set[str] = set()
        for epoch in range(self.views):  # each takes another view
            images = BatchImages(self.store, self.processor, self.views, epoch)
            for image_id, sources in rows:
                for number, source in enumerate(sources):
                    images.add(source, f"image {number} of {image_id}")
            names += images.missing
            pixels += images.pixels
            seen.update(images.names)
        return len(seen), names, torch.cat(pixels) if pixels else None


def main(arguments: list[str] | None = None) -> None:
    (options,) = TrlParser(EncodeImages).parse_args_and_config(arguments, fail_with_unknown_args=False)
    state = PartialState(cpu=options.use_cpu)
    bf16 = options.bf16
    if bf16 is None:
        bf16 = state.device.type != "cpu" and is_torch_bf16_gpu_available()
    processor = InstructBLIPProcessor.from_pretrained(options.model)
    model = load_tower(options.model, options.dtype)
    model.vision_model.to(device=state.device, dtype=torch.bfloat16 if bf16 else None)
    settings = options.feature_cache_dtype, options.feature_cache_gb, options.feature_cache_views
    cache = FeatureCache(options.feature_cache, model, processor, *settings)
    rows = ImagesOnly(rows_of(options), state.process_index, state.num_processes)
    loader = DataLoader(
        rows,
        batch_size=options.per_device_eval_batch_size,
        num_workers=options.dataloader_num_workers,
        collate_fn=LookUp(cache, processor),
    )
    encode = encoder(model, lambda: torch.autocast(state.device.type, torch.bfloat16) if bf16 else nullcontext())
    seen = added = 0
    for found, names, pixels in tqdm(loader, disable=not state.is_main_process, unit="batch"):
        seen += found
        if pixels is not None and not cache.store.stopped:
            for some, some_names in _parts(pixels, names, options.per_device_eval_batch_size):
                for name, features in zip(some_names, encode(some.to(state.device)), strict=True):
                    cache.store.put(name, features.to(cache.dtype))
            added += len(names)
    cache.store.flush()
    process = f"process {state.process_index}: " if state.num_processes > 1 else ""
    size = cache.store.size() / 1e9
    print(f"{process}{seen} images, {added} of them new, in {cache.folder}; all caches there have {size:.3g} GB")
    state.destroy_process_group()


def _parts(pixels: torch.Tensor, names: list[str], size: int):
    """Rows of several images, and views, make batches of more than `size`."""
    for start in range(0, len(names), size):
        yield pixels[start : start + size], names[start : start + size]


if __name__ == "__main__":
    main()
