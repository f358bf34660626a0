"""ScienceQA-IMG: the school science questions of ScienceQA that come with a picture. The official layout:

data_dir/problems.json pid_splits.json
data_dir/images/train/1/image.png          (or train/1/image.png)

problems.json: {"1": {"question": "Which of these states is farthest north?", "choices": ["West Virginia", ...],
  "answer": 0, "hint": "", "image": "image.png", "grade": "grade2", "subject": "social science",
  "topic": "geography", "split": "train", ...}}
pid_splits.json: {"train": ["1", ...], "val": [...], "test": [...]}
"""

import logging
import os
from collections.abc import Iterator

from .official_files import BadRowError, choices_field, field, image_path, index_field, text_field
from .problem_files import SPLITS, read_problems, splits_file
from .schema import InstructionBuilder, Record, make_sample

logger = logging.getLogger(__name__)

TAGS = ("subject", "topic", "grade")


class ScienceQA(InstructionBuilder):
    """The hint is the context. Tags: subject, topic and grade.

    A row of the schema shows an image, so questions without one (`"image": null`, about half) are left out; they are no
    bad rows, and a message of level INFO says how many they were.
    """

    def extra_files(self, split: str) -> list[str]:
        lists = [splits_file(file) for file in self.split_files()[split]]
        return [path for path in lists if os.path.isfile(path)]

    def image_folders(self, split: str) -> list[str]:
        return [os.path.join(folder, SPLITS[split]) for folder in self.config.folders("images", "")]

    def read(self, split: str, file: str) -> Iterator[Record | BadRowError]:
        folders = self.image_folders(split)
        without_image = 0
        for item in read_problems(file, SPLITS[split]):
            if isinstance(item, BadRowError):
                yield item
                continue
            row, problem_id, problem = item
            try:
                name = field(problem, "image", str, type(None))
                if name is None:
                    without_image += 1
                    continue
                choices = choices_field(problem, "choices")
                label = index_field(problem, "answer", len(choices))
                sample = make_sample(
                    id=f"scienceqa/{problem_id}",
                    question=field(problem, "question", str).strip(),
                    answers=[choices[label]],
                    choices=choices,
                    label=label,
                    context=text_field(problem, "hint"),
                    tags=[f"{key}={field(problem, key, str)}" for key in TAGS],
                )
                path = image_path(folders, f"{problem_id}/{name}")
                yield Record(file, row, f"scienceqa/{problem_id}", path, sample)
            except ValueError as error:
                yield BadRowError(file, row, str(error))
        logger.info("scienceqa/%s: %d questions without an image are left out", split, without_image)
