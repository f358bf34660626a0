"""POPE: is a thing in a COCO photograph, or does the model only think so? The official layout:

data_dir/coco_pope_random.json coco_pope_popular.json coco_pope_adversarial.json       (or in output/coco/)
data_dir/val2014/COCO_val2014_000000310196.jpg                                         (or in images/, or `image_dirs`)

{"question_id": 1, "image": "COCO_val2014_000000310196.jpg", "text": "Is there a snowboard in the image?",
 "label": "yes"}
"""

from collections.abc import Iterator
from typing import ClassVar

from .coco_images import coco_image_id
from .official_files import BadRowError, field, image_path, read_json_lines
from .schema import BuilderConfig, InstructionBuilder, Record, make_sample

CHOICES = ["no", "yes"]


class POPE(InstructionBuilder):
    """Configs say how the things that are not there were chosen: random, popular, or adversarial."""

    BUILDER_CONFIGS: ClassVar = [BuilderConfig(name=name) for name in ("random", "popular", "adversarial")]
    DEFAULT_CONFIG_NAME = "random"

    def image_folders(self, split: str) -> list[str]:
        return self.config.folders("val2014", "images")

    def read(self, split: str, file: str) -> Iterator[Record | BadRowError]:
        folders = self.image_folders(split)
        for row, record in read_json_lines(file):
            try:
                name = field(record, "image", str)
                answer = field(record, "label", str)
                if answer not in CHOICES:
                    raise ValueError(f"'label' should be 'yes' or 'no', is {answer!r}")
                sample = make_sample(
                    id=f"pope/{self.config.name}/{field(record, 'question_id', int)}",
                    question=field(record, "text", str).strip(),
                    answers=[answer],
                    choices=CHOICES,
                    label=CHOICES.index(answer),
                )
                yield Record(file, row, coco_image_id(name), image_path(folders, name), sample)
            except ValueError as error:
                yield BadRowError(file, row, str(error))
