"""nocaps: photographs of Open Images with objects that COCO's captions never name. The official layout:

data_dir/nocaps_val_4500_captions.json     nocaps_test_image_info.json, without captions
data_dir/validation/0013ea2087020901.jpg   test/...         or in val, images, or `image_dirs`

{"images": [{"id": 0, "file_name": "0013ea2087020901.jpg", "open_images_id": "0013ea2087020901",
             "domain": "near-domain", "coco_url": ..., "height": 1024, "width": 732}],
 "annotations": [{"image_id": 0, "id": 0, "caption": "A baby is standing in front of a house."}]}
"""

import os
from collections.abc import Iterator

from .caption_files import read_coco
from .official_files import BadRowError, field, image_path
from .schema import InstructionBuilder, Record, make_sample

FOLDERS = {"validation": ("validation", "val", "images"), "test": ("test", "images")}


class NoCaps(InstructionBuilder):
    """One sample an image, whose answers are its captions. Tag: domain. The test file tells neither."""

    def image_folders(self, split: str) -> list[str]:
        return self.config.folders(*FOLDERS[split])

    def read(self, split: str, file: str) -> Iterator[Record | BadRowError]:
        folders = self.image_folders(split)
        for image in read_coco(file, captioned=split == "validation"):
            if isinstance(image, BadRowError):
                yield image
                continue
            try:
                tags = [f"domain={field(image.entry, 'domain', str)}"] if split == "validation" else []
                number = os.path.splitext(image.name)[0]  # Open Images' own; the file counts from 0 in both parts
                path = image_path(folders, image.name)
                sample = make_sample(id=f"nocaps/{number}", question="", answers=image.captions, tags=tags)
                yield Record(file, image.row, f"openimages/{number}", path, sample)
            except ValueError as error:
                yield BadRowError(file, image.row, str(error))
