"""COCO captions, in the split of Karpathy that captioning is trained and scored on, or in COCO's own of 2017 or 2014:

data_dir/dataset_coco.json                 (Karpathy's: all splits), or coco_karpathy_{train,val,test}.json (LAVIS')
data_dir/train2014/COCO_train2014_000000000009.jpg val2014/...            or both in images, or in one of `image_dirs`

data_dir/annotations/captions_train2017.json captions_val2017.json
data_dir/train2017/000000159269.jpg val2017/... or `image_dirs` (2014: train2014/COCO_train2014_000000159269.jpg)

{"images": [{"id": 159269, "file_name": "000000159269.jpg", ...}],
 "annotations": [{"image_id": 159269, "id": 88366, "caption": "An airport filled with large passenger jets ..."}]}
"""

import os
from collections.abc import Iterator
from typing import ClassVar

from .caption_files import read_coco, read_karpathy
from .coco_images import coco_image_id
from .official_files import BadRowError, image_path
from .schema import BuilderConfig, InstructionBuilder, Record, make_sample

KARPATHY = "karpathy"


class COCOCaption(InstructionBuilder):
    """One sample an image, whose answers are its captions in the order of the file."""

    BUILDER_CONFIGS: ClassVar = [BuilderConfig(name=name) for name in (KARPATHY, "2017", "2014")]
    DEFAULT_CONFIG_NAME = KARPATHY

    def annotation_files(self) -> dict[str, list[str]]:
        """Of the places in the table, those of this variant."""
        found = {}
        for split, names in super().annotation_files().items():
            own = [name for name in names if ("captions_" in name) != (self.config.name == KARPATHY)]
            if own:
                found[split] = own
        return found

    def image_folders(self, split: str) -> list[str]:
        if self.config.name == KARPATHY:
            parts = ("train2014", "val2014") if split == "train" else ("val2014",)
            return [os.path.join(root, part) for root in self._image_roots() for part in parts]
        part = {"train": "train", "validation": "val"}[split]
        return self.config.folders(f"{part}{self.config.name}")

    def _image_roots(self) -> list[str]:
        return self.config.folders("", "images")  # names have train2014/ or val2014/ in front

    def read(self, split: str, file: str) -> Iterator[Record | BadRowError]:
        karpathy = self.config.name == KARPATHY
        folders = self._image_roots() if karpathy else self.image_folders(split)
        for image in read_karpathy(file, split) if karpathy else read_coco(file):
            if isinstance(image, BadRowError):
                yield image
                continue
            try:
                image_id = coco_image_id(image.name)
                path = image_path(folders, image.name)
                sample = make_sample(id=f"coco_caption/{int(image_id[5:])}", question="", answers=image.captions)
                yield Record(file, image.row, image_id, path, sample)
            except ValueError as error:
                yield BadRowError(file, image.row, str(error))
