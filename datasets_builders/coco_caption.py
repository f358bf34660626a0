"""COCO captions in the official layout, of 2017 or 2014:

data_dir/annotations/captions_train2017.json captions_val2017.json
data_dir/train2017/000000159269.jpg val2017/...           (2014: train2014/COCO_train2014_000000159269.jpg)

{"images": [{"id": 159269, "file_name": "000000159269.jpg", ...}],
 "annotations": [{"image_id": 159269, "id": 88366, "caption": "An airport filled with large passenger jets ..."}]}
"""

import os
from collections.abc import Iterator
from typing import ClassVar

from .official_files import BadRowError, field, image_path, read_json_list
from .schema import BuilderConfig, InstructionBuilder, Record, make_sample


class COCOCaption(InstructionBuilder):
    """One sample an image, whose answers are its captions in the order of the file."""

    BUILDER_CONFIGS: ClassVar = [BuilderConfig(name="2017"), BuilderConfig(name="2014")]
    DEFAULT_CONFIG_NAME = "2017"

    def image_folders(self, split: str) -> list[str]:
        part = {"train": "train", "validation": "val"}[split]
        return [os.path.join(self.config.data_dir, f"{part}{self.config.name}")]

    def read(self, split: str, file: str) -> Iterator[Record | BadRowError]:
        folders = self.image_folders(split)
        images = read_json_list(file, "images")
        captions: dict[int, list[str]] = {}
        known = {image["id"] for image in images if isinstance(image, dict) and type(image.get("id")) is int}
        for row, annotation in enumerate(read_json_list(file, "annotations"), start=1):
            try:
                image_id = field(annotation, "image_id", int)
                if image_id not in known:
                    raise ValueError(f"image {image_id} is not among the file's images")
                captions.setdefault(image_id, []).append(field(annotation, "caption", str).strip())
            except ValueError as error:
                yield BadRowError(file, row, f"in 'annotations': {error}")
        for row, image in enumerate(images, start=1):
            try:
                image_id = field(image, "id", int)
                if image_id not in captions:
                    raise ValueError(f"image {image_id} has no usable caption")
                path = image_path(folders, field(image, "file_name", str))
                sample = make_sample(id=f"coco_caption/{image_id}", question="", answers=captions[image_id])
                yield Record(file, row, f"coco/{image_id:012d}", path, sample)
            except ValueError as error:
                yield BadRowError(file, row, f"in 'images': {error}")
