"""Visual Spatial Reasoning: is a statement about two things in a COCO photograph true? The official layout:

data_dir/splits/zeroshot/train.jsonl dev.jsonl test.jsonl
data_dir/images/000000372029.jpg          or train2017/ and val2017/, or the folders in `image_dirs`

{"image": "000000372029.jpg", "image_link": ..., "caption": "The dog is on the surfboard.", "label": 1,
 "relation": "on", "subj": "dog", "obj": "surfboard", ...}
"""

from collections.abc import Iterator
from typing import ClassVar

from .coco_images import coco_image_id
from .official_files import BadRowError, field, image_path, read_json_lines
from .schema import BuilderConfig, InstructionBuilder, Record, make_sample

CHOICES = ["false", "true"]  # so that `label` is the files' own 0 or 1


class VSR(InstructionBuilder):
    """The statement is the question, "true" or "false" the answer. Tag: relation."""

    BUILDER_CONFIGS: ClassVar = [BuilderConfig(name="zeroshot"), BuilderConfig(name="random")]
    DEFAULT_CONFIG_NAME = "zeroshot"

    def image_folders(self, split: str) -> list[str]:
        return self.config.folders("images", "train2017", "val2017")

    def read(self, split: str, file: str) -> Iterator[Record | BadRowError]:
        folders = self.image_folders(split)
        for row, record in read_json_lines(file):
            try:
                name = field(record, "image", str)
                label = field(record, "label", int)
                if label not in (0, 1):
                    raise ValueError(f"'label' should be 0 or 1, is {label}")
                sample = make_sample(
                    id=f"vsr/{self.config.name}/{split}/{row}",  # the files number nothing
                    question=field(record, "caption", str).strip(),
                    answers=[CHOICES[label]],
                    choices=CHOICES,
                    label=label,
                    tags=[f"relation={field(record, 'relation', str)}"],
                )
                yield Record(file, row, coco_image_id(name), image_path(folders, name), sample)
            except ValueError as error:
                yield BadRowError(file, row, str(error))
