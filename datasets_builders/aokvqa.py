"""A-OKVQA: questions about COCO photographs that take common sense and knowledge. The official layout:

data_dir/aokvqa_v1p0_train.json aokvqa_v1p0_val.json aokvqa_v1p0_test.json
data_dir/train2017/000000299207.jpg val2017/... test2017/...                       or the folders in `image_dirs`

[{"split": "train", "image_id": 299207, "question_id": "22MexNkBPpdZGX6sxbxVBH",
  "question": "What is the man by the bags awaiting?", "choices": ["skateboarder", "train", "delivery", "cab"],
  "correct_choice_idx": 3, "direct_answers": ["ride", "ride", "bus", "taxi", "travelling", ...],
  "difficult_direct_answer": false, "rationales": [...]}]
"""

from collections.abc import Iterator
from typing import Any, ClassVar

from .official_files import BadRowError, choices_field, field, image_path, index_field, read_json_list
from .schema import BuilderConfig, InstructionBuilder, Record, make_sample
from .vqa_files import ten_answers

NUM_CHOICES = 4
FOLDERS = {"train": "train2017", "validation": "val2017", "test": "test2017"}


class AOKVQA(InstructionBuilder):
    """Either four choices, whose right one is the answer, or ten direct answers and no choices; test has no answers.

    Tag: difficult_direct_answer, true where the official evaluation of direct answers leaves the question out.
    """

    BUILDER_CONFIGS: ClassVar = [BuilderConfig(name="multiple_choice"), BuilderConfig(name="direct_answer")]
    DEFAULT_CONFIG_NAME = "multiple_choice"

    def image_folders(self, split: str) -> list[str]:
        return self.config.folders(FOLDERS[split])

    def read(self, split: str, file: str) -> Iterator[Record | BadRowError]:
        folders = self.image_folders(split)
        for row, record in enumerate(read_json_list(file), start=1):
            try:
                number = f"{field(record, 'image_id', int):012d}"
                path = image_path(folders, f"{number}.jpg")
                yield Record(file, row, f"coco/{number}", path, self._sample(record, published=split != "test"))
            except ValueError as error:
                yield BadRowError(file, row, str(error))

    def _sample(self, record: Any, published: bool) -> dict[str, Any]:
        """One sample; its answers and label are read where they are published."""
        sample = make_sample(
            f"aokvqa/{field(record, 'question_id', str)}", field(record, "question", str).strip(), answers=[]
        )
        if published or "difficult_direct_answer" in record:
            difficult = field(record, "difficult_direct_answer", bool)
            sample["tags"] = [f"difficult_direct_answer={str(difficult).lower()}"]
        if self.config.name == "multiple_choice":
            choices = sample["choices"] = choices_field(record, "choices")
            if len(choices) != NUM_CHOICES:
                raise ValueError(f"'choices' has {len(choices)} items: expected {NUM_CHOICES}")
            if published:
                sample["label"] = index_field(record, "correct_choice_idx", NUM_CHOICES)
                sample["answers"] = [choices[sample["label"]]]
        elif published:
            sample["answers"] = ten_answers(record, "direct_answers")
        return sample
