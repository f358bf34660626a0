"""NLVR: is a sentence about a drawing of three boxes true? The official layout:

data_dir/train/train.json dev/dev.json test/test.json
data_dir/dev/images/2/dev-1572-0-0.png ... dev-1572-0-5.png      one example's boxes in six orders

{"sentence": "Each grey box contains atleast one yellow object touching the edge", "label": "true",
 "identifier": "1572-0", "directory": "2", "evals": {...}, "structured_rep": [...]}
"""

import dataclasses
import os
from collections.abc import Iterator
from typing import ClassVar

from .official_files import BadRowError, field, image_path, read_json_lines
from .schema import BuilderConfig, InstructionBuilder, Record, make_sample

CHOICES = ["false", "true"]


@dataclasses.dataclass
class NLVRConfig(BuilderConfig):
    """`BuilderConfig`, and which pictures of an example are shown."""

    permutations: tuple[int, ...] = (0,)  # 0 to 5; the truth is the same for all


class NLVR(InstructionBuilder):
    """The sentence is the question, "true" or "false" the answer; an example is a row for each permutation."""

    BUILDER_CONFIG_CLASS = NLVRConfig
    BUILDER_CONFIGS: ClassVar = [NLVRConfig(name="first"), NLVRConfig(name="all", permutations=(0, 1, 2, 3, 4, 5))]
    DEFAULT_CONFIG_NAME = "first"

    def image_folders(self, split: str) -> list[str]:
        part = "dev" if split == "validation" else split
        return [os.path.join(folder, part, "images") for folder in self.config.folders("")]

    def read(self, split: str, file: str) -> Iterator[Record | BadRowError]:
        folders = self.image_folders(split)
        part = os.path.basename(os.path.dirname(folders[0]))
        for row, record in read_json_lines(file):
            try:
                truth = field(record, "label", str)
                if truth not in CHOICES:
                    raise ValueError(f"'label' should be 'true' or 'false', is {truth!r}")
                sentence = field(record, "sentence", str).strip()
                stem = f"{part}-{field(record, 'identifier', str)}"
                directory = field(record, "directory", str)
                paths = [image_path(folders, f"{directory}/{stem}-{order}.png") for order in self.config.permutations]
            except ValueError as error:
                yield BadRowError(file, row, str(error))
                continue
            for order, path in zip(self.config.permutations, paths, strict=True):
                sample = make_sample(
                    id=f"nlvr/{stem}-{order}",
                    question=sentence,
                    answers=[truth],
                    choices=CHOICES,
                    label=CHOICES.index(truth),
                )
                yield Record(file, row, f"nlvr/{stem}-{order}", path, sample)
