"""Instruction and response pairs from grouped rows, worded anew each epoch."""

import collections
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
import torch

from .table import TABLE, AnswerPolicy
from .templates import TEMPLATES, Template, choose_template, draw, format_instruction


class InstructionDataset(torch.utils.data.Dataset):
    """A map-style dataset with one item a sample, or an answer, of grouped rows.

    Which answer is the response, where annotators gave several:
    - "most_frequent": the one given most often; of equals, the one that comes first.
    - "sampled": drawn anew each epoch, each annotator's answer alike, so that frequent ones come often.
    - "all": every answer in turn is an item of its own, repeats included. Ids get "#0", "#1", ...

    Samples without an answer are left out of the index and counted in `unanswered`.

    Args:
        rows: a `datasets.Dataset` in the schema of `schema.py`; slices and shuffles are fine.
        name: the `dataset` of every item; a name in `table.TABLE` brings its task, policy and spelling.
        task: family of templates in `templates.TEMPLATES`.
        answer_policy: see above.
        templates: wordings to draw from instead of the task's; one of them gives a fixed prompt.
        lowercase_answers: responses in lower case, for data that spell one answer in several ways.
        seed: with the epoch and a sample's id, decides every draw.
        with_images: False leaves images out of the items and opens no file.

    Raises:
        TypeError: rows that are no map-style split.
        ValueError: an unknown task or policy, a name that the table lacks with no `task`, or rows of another schema.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        name: str,
        task: str | None = None,
        answer_policy: AnswerPolicy | None = None,
        templates: Sequence[Template] | None = None,
        lowercase_answers: bool | None = None,
        seed: int = 0,
        with_images: bool = True,
    ):
        if not isinstance(rows, datasets.Dataset):
            raise TypeError(f"rows is a {type(rows).__name__}: expected one split as a datasets.Dataset, not streamed")
        spec = TABLE.get(name)
        if templates is None:
            task = task or (spec.task if spec else "")
            if task not in TEMPLATES:
                raise ValueError(f"{name!r}, task {task!r}: pass templates=, or a task out of {', '.join(TEMPLATES)}")
            templates = TEMPLATES[task]
        self.templates = tuple(templates)
        self.answer_policy = answer_policy or (spec.answer_policy if spec else "most_frequent")
        if self.answer_policy not in ("most_frequent", "sampled", "all"):
            raise ValueError(f"answer_policy {self.answer_policy!r}: expected most_frequent, sampled or all")
        if lowercase_answers is None:
            lowercase_answers = spec is not None and spec.lowercase_answers
        self.lowercase_answers = lowercase_answers
        columns = rows.column_names
        if not {"image_id", "samples"} <= set(columns) or (with_images and not {"image", "images"} & set(columns)):
            raise ValueError(f"rows with columns {', '.join(columns)}: expected image or images, image_id and samples")
        self.image_column = "image" if "image" in columns else "images"
        self.rows, self.name, self.seed, self.with_images = rows, name, seed, with_images
        # Shared memory: persistent workers hold a copy of this object and must still see a new epoch.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._read_columns()
        self._index()

    def _read_columns(self) -> None:
        """Views into the Arrow table; image columns are kept apart, so that reading text decodes nothing."""
        table = self.rows.select_columns(["image_id", "samples"]).with_format("arrow")[:]
        self._image_ids = table["image_id"]
        self._samples = pc.list_flatten(table["samples"])  # all samples of all rows, in order
        self._samples_per_row = pc.fill_null(pc.list_value_length(table["samples"]), 0).to_numpy()
        self._images = self.rows.select_columns([self.image_column]) if self.with_images else None

    def _index(self) -> None:
        """item -> (row, sample, answer); the answer is -1 where the policy picks it."""
        row_of_sample = np.repeat(np.arange(len(self._samples_per_row)), self._samples_per_row)
        answers = pc.fill_null(pc.list_value_length(pc.struct_field(self._samples, "answers")), 0).to_numpy()
        self.unanswered = int((answers == 0).sum())
        if self.answer_policy == "all":
            self._sample_of_item = np.repeat(np.arange(len(answers)), answers)
            starts = np.cumsum(answers) - answers  # item at which each sample's answers begin
            self._answer_of_item = np.arange(len(self._sample_of_item)) - np.repeat(starts, answers)
        else:
            self._sample_of_item = np.flatnonzero(answers)
            self._answer_of_item = None
        self._row_of_item = row_of_sample[self._sample_of_item]

    def __getstate__(self) -> dict[str, Any]:
        views = ("_image_ids", "_samples", "_images")  # workers map the Arrow file again; its content is not sent
        return {name: value for name, value in self.__dict__.items() if name not in views}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._epoch.share_memory_()
        self._read_columns()

    def __len__(self) -> int:
        return len(self._sample_of_item)

    @property
    def epoch(self) -> int:
        return int(self._epoch[0])

    def set_epoch(self, epoch: int) -> None:
        """Draw templates and sampled answers for another epoch, in all workers."""
        self._epoch[0] = epoch

    def sample(self, item: int) -> dict[str, Any]:
        """The raw sample behind an item, in the fields of the schema."""
        return self._samples[int(self._sample_of_item[item])].as_py()

    def text(self, item: int) -> dict[str, str]:
        """An item without its image: "id", "image_id", "dataset", "instruction", "response"; opens no image.

        Raises:
            IndexError: no such item.
        """
        if not -len(self) <= item < len(self):
            raise IndexError(f"item {item} of {len(self)}")
        sample = self.sample(item)
        number = -1 if self._answer_of_item is None else int(self._answer_of_item[item])
        sample_id = sample["id"] if number < 0 else f"{sample['id']}#{number}"
        epoch = self.epoch
        response = self._response(sample["answers"], number, epoch, sample_id)
        template = choose_template(self.templates, response, self.seed, epoch, sample_id)
        return {
            "id": sample_id,
            "image_id": self._image_ids[int(self._row_of_item[item])].as_py(),
            "dataset": self.name,
            "instruction": format_instruction(template.text, sample),
            "response": response,
        }

    def _response(self, answers: list[str], number: int, epoch: int, sample_id: str) -> str:
        if self.lowercase_answers:
            answers = [answer.lower() for answer in answers]
        answers = [answer.strip() for answer in answers]
        if self.answer_policy == "all":
            return answers[number]
        if self.answer_policy == "sampled":
            return answers[draw(len(answers), "answer", self.seed, epoch, sample_id)]
        return collections.Counter(answers).most_common(1)[0][0]  # of equals, the first

    def column(self, name: str) -> list[str]:
        """All values of "id", "image_id", "dataset", "instruction" or "response"; opens no image."""
        return [self.text(item)[name] for item in range(len(self))]

    def __getitem__(self, item: int) -> dict[str, Any]:
        """`text(item)`, and "image" (a PIL image) or "images" (a list of them).

        Raises:
            OSError: the image is gone or broken; names the sample.
        """
        example: dict[str, Any] = self.text(item)
        if self._images is not None:
            try:
                example[self.image_column] = self._images[int(self._row_of_item[item])][self.image_column]
            except Exception as error:  # Pillow's readers raise whatever the broken bytes lead them to
                raise OSError(f"{example['id']}: image {example['image_id']} cannot be read: {error}") from error
        return example
