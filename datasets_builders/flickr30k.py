"""Flickr30K in Karpathy's split, 29,000 / 1,014 / 1,000 photographs with 5 captions each:

data_dir/dataset_flickr30k.json            (Karpathy's: all splits), or flickr30k_{train,val,test}.json (LAVIS')
data_dir/flickr30k-images/1007129816.jpg   or in flickr30k_images, images, or `image_dirs`

{"images": [{"filename": "1007129816.jpg", "split": "test", "sentences": [{"raw": "The man with pierced ears ..."}]}]}
[{"image": "flickr30k-images/1007129816.jpg", "caption": ["The man with pierced ears is wearing glasses ...", ...]}]
"""

import os
from collections.abc import Iterator

from .caption_files import read_karpathy
from .official_files import BadRowError, image_path
from .schema import InstructionBuilder, Record, make_sample

FOLDERS = ("flickr30k-images", "flickr30k_images", "images")


class Flickr30K(InstructionBuilder):
    """One sample an image, whose answers are its captions in the order of the file."""

    def image_folders(self, split: str) -> list[str]:
        return self.config.folders(*FOLDERS)

    def read(self, split: str, file: str) -> Iterator[Record | BadRowError]:
        folders = self.image_folders(split)
        for image in read_karpathy(file, split):
            if isinstance(image, BadRowError):
                yield image
                continue
            try:
                name = image.name.removeprefix(f"{FOLDERS[0]}/")  # LAVIS writes the folder, Karpathy does not
                number = os.path.splitext(name)[0]
                path = image_path(folders, name)
                sample = make_sample(id=f"flickr30k/{number}", question="", answers=image.captions)
                yield Record(file, image.row, f"flickr30k/{number}", path, sample)
            except ValueError as error:
                yield BadRowError(file, image.row, str(error))
