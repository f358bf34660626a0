"""Instruction and response pairs from grouped rows, worded anew each epoch."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from .table import TABLE, AnswerPolicy
from .templates import (
    PLAIN_TEMPLATES,
    TASK_NAMES,
    TEMPLATES,
    Template,
    choose_template,
    draw,
    format_instruction,
    most_frequent,
)

Style = Literal["natural", "plain", "tagged"]


@dataclasses.dataclass(frozen=True)
class InstructionFormat:
    """How the rows of one dataset become items; `InstructionFormat.of` makes one.

    Which answer is the response, where annotators gave several:
    - "most_frequent": the one given most often; of equals, the one that comes first.
    - "sampled": drawn anew each epoch, each annotator's answer alike, so that frequent ones come often.
    - "all": every answer in turn is an item of its own, repeats included. Ids get "#0", "#1", ...

    Blank answers count as none. For "multiple_choice", the answer is the text of the labelled choice, as it stands. For
    "vqg" the answer goes into the instruction, and the response is the question.

    Styles:
    - "natural": a template of the task, drawn anew each epoch.
    - "plain": what the sample brings along (question, choices, OCR tokens ...) and no instruction; for captions mostly
      an empty text. The first multitask baseline of the paper's Fig. 4, which evaluates it with instructions (the
      prompts in the table), but captions with the image alone.
    - "tagged": the same with "[Visual question answering:VQAv2]" in front, and of held-out datasets only the task's
      name. The paper's second baseline; it evaluates it both with instructions and with these tags.
    """

    name: str  # the `dataset` of every item
    task: str
    templates: tuple[Template, ...]
    style: Style = "natural"
    tag: str = ""  # in front of every instruction
    answer_policy: AnswerPolicy = "most_frequent"
    lowercase_answers: bool = False
    seed: int = 0

    @classmethod
    def of(
        cls,
        name: str,
        seed: int = 0,
        style: Style = "natural",
        answer_policy: AnswerPolicy | None = None,
        templates: Sequence[Template] | None = None,
        lowercase_answers: bool | None = None,
        task: str | None = None,
    ) -> "InstructionFormat":
        """The format of a dataset; what is None is as `table.TABLE` has it for `name`, if it does.

        Args:
            name: a name in the table, or of your own.
            seed: with the epoch and a sample's id, decides every draw.
            style, answer_policy: see above.
            templates: wordings to draw from instead of the task's; one of them gives a fixed prompt.
            lowercase_answers: answers in lower case, for data that spell one answer in several ways.
            task: family of templates in `templates.TEMPLATES`.

        Raises:
            ValueError: an unknown task, style or policy, a name that the table lacks with neither task nor templates,
                or templates that would give the response away.
        """
        spec = TABLE.get(name)
        task = task or (spec.task if spec else "vqa" if templates else "")
        if task not in TEMPLATES:
            raise ValueError(f"{name!r}, task {task!r}: pass templates=, or a task out of {', '.join(TEMPLATES)}")
        answer_policy = answer_policy or (spec.answer_policy if spec else "most_frequent")
        for what, value, allowed in (("answer_policy", answer_policy, AnswerPolicy), ("style", style, Style)):
            if value not in get_args(allowed):
                raise ValueError(f"{what} {value!r}: expected {', '.join(get_args(allowed))}")
        tag = ""
        if style == "natural":
            templates = TEMPLATES[task] if templates is None else templates
        elif templates is not None:
            raise ValueError(f"templates with style={style!r}: they belong to the natural style, leave one out")
        else:
            templates = (PLAIN_TEMPLATES[task],)
            if style == "tagged":
                seen = "" if spec and spec.role == "held_out" else f":{spec.title if spec else name}"
                tag = f"[{TASK_NAMES[task]}{seen}]"
        if not templates:
            raise ValueError("templates is empty: pass one or more, or None for those of the task")
        response = "question" if task == "vqg" else "answer"
        for template in templates:
            if response in template.fields:
                raise ValueError(f"template {template.text!r} has {{{response}}}, the response of task {task!r}")
        if lowercase_answers is None:
            lowercase_answers = spec is not None and spec.lowercase_answers
        return cls(name, task, tuple(templates), style, tag, answer_policy, lowercase_answers, seed)

    @property
    def takes_label(self) -> bool:
        """Whether the answer of a sample with a label is the labelled choice."""
        return self.task == "multiple_choice"

    def answers(self, sample: Mapping[str, Any]) -> list[str]:
        """The answers to choose from, stripped; none for a sample that is not to be learned.

        Raises:
            ValueError: a label that points past the choices.
        """
        if self.takes_label and sample.get("label", -1) >= 0:
            if sample["label"] >= len(sample["choices"]):
                raise ValueError(f"{sample['id']}: label {sample['label']} of {len(sample['choices'])} choices")
            return [sample["choices"][sample["label"]]]
        answers = [stripped for answer in sample["answers"] or () if answer and (stripped := answer.strip())]
        return [answer.lower() for answer in answers] if self.lowercase_answers else answers

    def item(self, sample: Mapping[str, Any], image_id: str, epoch: int = 0, number: int = 0) -> dict[str, str]:
        """The item of one sample, or with the policy "all" that of its answer `number`.

        Raises:
            ValueError: the sample has no answer, a blank one, or nothing for what a template needs; names it.
        """
        return self._item(sample, image_id, epoch, self.answers(sample), number)

    def items(self, row: Mapping[str, Any], epoch: int = 0) -> list[dict[str, Any]]:
        """The items of a row of the schema, in order; samples without an answer give none.

        Each is `{"id", "image_id", "dataset", "epoch", "template", "instruction", "response"}`, with no image. The
        template is the wording before anything was filled in; whoever draws more for an item does so by its epoch.

        Raises:
            ValueError: the response of a sample is blank, or it has nothing for what a template needs; names it.
        """
        image_id, every = row["image_id"], self.answer_policy == "all"
        return [
            self._item(sample, image_id, epoch, answers, number)
            for sample in row["samples"] or ()
            if (answers := self.answers(sample))
            for number in range(len(answers) if every else 1)
        ]

    def _item(
        self, sample: Mapping[str, Any], image_id: str, epoch: int, answers: list[str], number: int
    ) -> dict[str, Any]:
        sample_id = sample["id"]
        if not answers:
            raise ValueError(f"{sample_id}: no answer")
        if self.answer_policy == "all":
            sample_id, answer = f"{sample_id}#{number}", answers[number]
        elif self.answer_policy == "sampled":
            answer = answers[draw(len(answers), "answer", self.seed, epoch, sample_id)]
        else:
            answer = most_frequent(answers)
        response = (sample["question"] or "").strip() if self.task == "vqg" else answer
        if not response:
            blank = "question" if self.task == "vqg" else "labelled choice"
            raise ValueError(f"{sample_id}: the {blank} is blank, and it is the response")
        template = choose_template(self.templates, sample, response, self.seed, epoch, sample_id)
        instruction, text = format_instruction(template, sample, answer), template.text
        if self.tag:
            instruction, text = f"{self.tag} {instruction}".rstrip(), f"{self.tag} {text}".rstrip()
        return {
            "id": sample_id,
            "image_id": image_id,
            "dataset": self.name,
            "epoch": epoch,
            "template": text,
            "instruction": instruction,
            "response": response,
        }


class InstructionDataset(torch.utils.data.Dataset):
    """A map-style dataset with one item a sample, or an answer, of grouped rows.

    Samples without an answer are left out of the index and counted in `unanswered`.

    Args:
        rows: a `datasets.Dataset` in the schema of `schema.py`; slices and shuffles are fine.
        name: the `dataset` of every item; a name in `table.TABLE` brings its task, policy and spelling.
        format: how rows become items. None: made of the following, see `InstructionFormat.of`.
        task, answer_policy, templates, lowercase_answers, style, seed: as there.
        with_images: False leaves images out of the items and opens no file.

    Raises:
        TypeError: rows that are no map-style split.
        ValueError: arguments that `InstructionFormat.of` refuses, a format that is not of `name` or comes together with
            them, or rows of another schema.
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
        style: Style = "natural",
        format: InstructionFormat | None = None,
    ):
        if not isinstance(rows, datasets.Dataset):
            raise TypeError(f"rows is a {type(rows).__name__}: expected one split as a datasets.Dataset, not streamed")
        options = (seed, style, answer_policy, templates, lowercase_answers, task)
        if format is None:
            format = InstructionFormat.of(name, *options)
        elif options != (0, "natural", None, None, None, None) or format.name != name:
            raise ValueError(
                f"format is of {format.name!r}, for {name!r}: make it of that name, with all options in it"
            )
        self.format, self.name, self.seed = format, format.name, format.seed
        columns = rows.column_names
        if not {"image_id", "samples"} <= set(columns) or (with_images and not {"image", "images"} & set(columns)):
            raise ValueError(f"rows with columns {', '.join(columns)}: expected image or images, image_id and samples")
        self.image_column = "image" if "image" in columns else "images"
        self.rows, self.with_images = rows, with_images
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
        """item -> (row, sample, number of the answer)."""
        row_of_sample = np.repeat(np.arange(len(self._samples_per_row)), self._samples_per_row)
        counts = self._count_answers()
        self.unanswered = int((counts == 0).sum())
        if self.format.answer_policy != "all":
            counts = np.minimum(counts, 1)
        self._sample_of_item = np.repeat(np.arange(len(counts)), counts)
        starts = np.cumsum(counts) - counts  # item at which each sample's answers begin
        self._answer_of_item = np.arange(len(self._sample_of_item)) - np.repeat(starts, counts)
        self._row_of_item = row_of_sample[self._sample_of_item]

    def _count_answers(self) -> np.ndarray:
        """How many answers `format.answers` finds in each sample."""
        answers = pc.struct_field(self._samples, "answers")
        ends = np.cumsum(pc.fill_null(pc.list_value_length(answers), 0).to_numpy())
        texts = pc.utf8_trim_whitespace(pc.fill_null(pc.list_flatten(answers), ""))
        filled = np.concatenate([[0], np.cumsum(pc.not_equal(texts, "").to_numpy())])  # up to each answer
        counts = np.diff(filled[ends], prepend=0)
        if self.format.takes_label:
            counts[pc.fill_null(pc.struct_field(self._samples, "label"), -1).to_numpy() >= 0] = 1
        return counts

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

    def image_numbers(self) -> np.ndarray:
        """(items,) numbers that are equal where the image ids are; opens no image."""
        return number_images([self])[0]

    def text(self, item: int, epoch: int | None = None) -> dict[str, Any]:
        """An item without its image, as in `InstructionFormat.items`; opens no image.

        Args:
            epoch: whose draws to take; None: the dataset's.

        Raises:
            IndexError: no such item.
        """
        if not -len(self) <= item < len(self):
            raise IndexError(f"item {item} of {len(self)}")
        image_id = self._image_ids[int(self._row_of_item[item])].as_py()
        epoch = self.epoch if epoch is None else epoch
        return self.format.item(self.sample(item), image_id, epoch, int(self._answer_of_item[item]))

    def column(self, name: str) -> list[str]:
        """All values of "id", "image_id", "dataset", "template", "instruction" or "response"; opens no image."""
        return [self.text(item)[name] for item in range(len(self))]

    def item(self, item: int, epoch: int | None = None) -> dict[str, Any]:
        """`text(item, epoch)`, and "image" (a PIL image) or "images" (a list of them).

        Raises:
            OSError: the image is gone or broken; names the sample.
        """
        example: dict[str, Any] = self.text(item, epoch)
        if self._images is not None:
            try:
                example[self.image_column] = self._images[int(self._row_of_item[item])][self.image_column]
            except Exception as error:  # Pillow's readers raise whatever the broken bytes lead them to
                raise OSError(f"{example['id']}: image {example['image_id']} cannot be read: {error}") from error
        return example

    def leave_images_encoded(self) -> None:
        """Give images as `{"bytes", "path"}` from now on, for who opens them later or knows them by their content."""
        if self.with_images:
            encoded = datasets.Image(decode=False)
            feature = encoded if self.image_column == "image" else datasets.List(encoded)
            self.rows = self.rows.cast_column(self.image_column, feature)
            self._read_columns()

    def __getitem__(self, item: int) -> dict[str, Any]:
        """`item(item)` in the dataset's epoch."""
        return self.item(item)


def number_images(several: Sequence[InstructionDataset]) -> list[np.ndarray]:
    """For each dataset (items,) numbers that are equal where the image ids are, also across datasets."""
    chunks = [chunk.cast(pa.large_string()) for one in several for chunk in one._image_ids.chunks]
    encoded = pa.chunked_array(chunks, pa.large_string()).combine_chunks().dictionary_encode().indices.to_numpy()
    ends = np.cumsum([len(one._image_ids) for one in several])
    of_rows = np.split(encoded, ends[:-1])
    return [numbers[one._row_of_item] for numbers, one in zip(of_rows, several, strict=True)]
