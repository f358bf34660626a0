"""IconQA: questions for children about abstract diagrams, in three kinds. The official layout:

data_dir/problems.json pid_splits.json                  (or all in iconqa_data/, as the archive unpacks)
data_dir/iconqa/test/choose_txt/399/image.png           (choose_img: and choice_0.png, choice_1.png, ...)

problems.json: {"399": {"question": "The first picture is a sub. Which picture is third?", "answer": 1,
  "choices": ["turtle", "fish", "sub"], "ques_type": "choose_txt", "split": "test", "grade": "grade1", ...}}
pid_splits.json: {"choose_txt_test": ["399", ...], ...}
"""

import os
from collections.abc import Iterator
from typing import Any, ClassVar

from .official_files import BadRowError, choices_field, field, image_path, index_field
from .problem_files import SPLITS, read_problems, splits_file
from .schema import BuilderConfig, InstructionBuilder, Record, make_sample


class IconQA(InstructionBuilder):
    """Configs: choose_txt (the paper's), choose_img and fill_in_blank. Tag: grade.

    In choose_img the options are pictures: a row has `images`, the question's and then the options', which the choices
    call "picture 1" and so on.
    """

    BUILDER_CONFIGS: ClassVar = [BuilderConfig(name=name) for name in ("choose_txt", "choose_img", "fill_in_blank")]
    DEFAULT_CONFIG_NAME = "choose_txt"

    @property
    def several_images(self) -> bool:
        return self.config.name == "choose_img"

    def extra_files(self, split: str) -> list[str]:
        lists = [splits_file(file) for file in self.split_files()[split]]
        return [path for path in lists if os.path.isfile(path)]

    def image_folders(self, split: str) -> list[str]:
        beside = os.path.join(os.path.dirname(self.split_files()[split][0]), "iconqa")
        return [os.path.join(folder, SPLITS[split], self.config.name) for folder in self.config.folders(beside)]

    def read(self, split: str, file: str) -> Iterator[Record | BadRowError]:
        folders = self.image_folders(split)
        for item in read_problems(file, f"{self.config.name}_{SPLITS[split]}"):
            if isinstance(item, BadRowError):
                yield item
                continue
            row, problem_id, problem = item
            try:
                kind = field(problem, "ques_type", str)
                if kind != self.config.name:
                    raise ValueError(f"'ques_type' should be {self.config.name!r}, is {kind!r}")
                image = image_path(folders, f"{problem_id}/image.png")
                sample = make_sample(
                    id=f"iconqa/{problem_id}",
                    question=field(problem, "question", str).strip(),
                    tags=[f"grade={field(problem, 'grade', str)}"],
                    **self._answer(problem),
                )
                options = field(problem, "choices", list) if self.several_images else []
                images = [image_path(folders, f"{problem_id}/{name}") for name in options]
                yield Record(file, row, f"iconqa/{problem_id}", [image, *images], sample)
            except ValueError as error:
                yield BadRowError(file, row, str(error))

    def _answer(self, problem: Any) -> dict[str, Any]:
        """The fields of a sample that say what is right."""
        if self.config.name == "fill_in_blank":
            return {"answers": [str(field(problem, "answer", str, int)).strip()]}
        choices = choices_field(problem, "choices")
        if self.several_images:
            choices = [f"picture {number}" for number in range(1, len(choices) + 1)]
        label = index_field(problem, "answer", len(choices))
        return {"answers": [choices[label]], "choices": choices, "label": label}
