"""The layout of the VQA datasets, which others took over: questions in one file, their answers in another beside it.

..._questions.json      {"questions": [{"image_id": 458752, "question": "What position is this man playing?",
                                        "question_id": 458752000}]}
..._annotations.json    {"annotations": [{"question_id": 458752000, "image_id": 458752, "question_type": "what",
                                          "answer_type": "other", "multiple_choice_answer": "pitcher",
                                          "answers": [{"answer": "pitcher", "answer_confidence": "yes", ...}, 9 more]}]}
"""

import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from .official_files import BadRowError, field, first_image, read_json_items, text_field
from .schema import InstructionBuilder, Record, make_sample

NUM_ANSWERS = 10  # annotators a question


@dataclasses.dataclass
class Question:
    """A question with its answers, and its row in the file of the questions."""

    row: int
    question_id: int
    image_id: int | str
    text: str
    answers: list[str]  # empty where they are not published
    tags: list[str]


def ten_answers(record: Any, name: str, key: str = "") -> list[str]:
    """The annotators' answers in the order of the file, without the blank ones.

    Args:
        name: field of `record` with the list.
        key: field of the list's items with the text; "": the items are the text.

    Raises:
        ValueError: not a list of ten, an item that holds no text, or only blank ones.
    """
    items = field(record, name, list)
    if len(items) != NUM_ANSWERS:
        raise ValueError(f"'{name}' has {len(items)} items: expected {NUM_ANSWERS}")
    answers = []
    for number, item in enumerate(items):
        place = f"{name}[{number}]"
        try:
            answers.append(text_field(item, key) if key else text_field({place: item}, place))
        except ValueError as error:
            raise ValueError(f"in '{place}': {error}" if key else str(error)) from error
    answers = [sys.intern(answer) for answer in answers if answer]  # one copy of each "yes": VQA v2 has four million
    if not answers:
        raise ValueError(f"'{name}' holds only blank answers")
    return answers


def answers_file(questions: str) -> str | None:
    """The file that answers a file of questions: named like it, beside it or in `Annotations` beside `Questions`."""
    folder, _, name = questions.rpartition("/")
    name = name.replace("OpenEnded_", "").replace("questions", "annotations").removesuffix(".gz")
    parent, _, last = folder.rpartition("/")
    other = {"Questions": f"{parent}/Annotations", "questions": f"{parent}/annotations"}.get(last, folder)
    places = [f"{place}/{name}{ending}" for place in (folder, other) for ending in ("", ".gz")]
    return next((place for place in places if os.path.isfile(place)), None)


def is_vqa_format(file: str) -> bool:
    """Whether a file holds questions in this layout, by its name; for datasets that have a layout of their own too."""
    return "questions" in file.rpartition("/")[2]


def answers_beside(questions: str, required: bool) -> list[str]:
    """`answers_file` in a list, for `InstructionBuilder.extra_files`; empty where there is none.

    Raises:
        FileNotFoundError: it is required and not there.
    """
    answers = answers_file(questions)
    if answers is None and required:
        raise FileNotFoundError(
            f"{questions}: the file with its answers is not beside it; download the annotations too, or leave the "
            "split out with splits="
        )
    return [] if answers is None else [answers]


def read_vqa(questions: str, tags: Mapping[str, str]) -> Iterator[Question | BadRowError]:
    """The questions of a file in order, with the answers of the file beside it; none where there is no such file.

    A question that no annotation answers, and an annotation that answers no question, each become a `BadRowError` of
    their file.

    Args:
        tags: field of an annotation -> name of the tag that holds it.
    """
    path = answers_file(questions)
    annotations: dict[int, _Annotation | BadRowError] = {}
    if path is not None:
        yield from _read_annotations(path, tags, annotations)
    asked = set()
    for row, record in read_json_items(questions, key="questions"):
        try:
            question_id = field(record, "question_id", int)
            asked.add(question_id)
            question = Question(
                row, question_id, field(record, "image_id", int, str), field(record, "question", str).strip(), [], []
            )
            if path is not None:
                if question_id not in annotations:
                    raise ValueError(f"question {question_id} has no annotation in {path}")
                annotation = annotations[question_id]
                if isinstance(annotation, BadRowError):
                    yield annotation
                    continue
                if annotation.image_id != question.image_id:
                    raise ValueError(
                        f"question {question_id} is about image {question.image_id}, but about {annotation.image_id} "
                        f"in {path}, row {annotation.row}"
                    )
                question.answers, question.tags = annotation.answers, annotation.tags
            yield question
        except ValueError as error:
            yield BadRowError(questions, row, str(error))
    for question_id, annotation in annotations.items():
        if question_id not in asked:
            yield BadRowError(str(path), annotation.row, f"question {question_id} is not in {questions}")


@dataclasses.dataclass
class _Annotation:
    row: int
    image_id: int | str
    answers: list[str]
    tags: list[str]


def _read_annotations(
    path: str, tags: Mapping[str, str], found: dict[int, "_Annotation | BadRowError"]
) -> Iterator[BadRowError]:
    """Fill `found`, by question id; a row that cannot even be put there is given back."""
    for row, record in read_json_items(path, key="annotations"):
        try:
            question_id = field(record, "question_id", int)
            if question_id in found:
                raise ValueError(f"question {question_id} again, first in row {found[question_id].row}")
        except ValueError as error:
            yield BadRowError(path, row, str(error))
            continue
        try:
            found[question_id] = _Annotation(
                row,
                field(record, "image_id", int, str),
                ten_answers(record, "answers", "answer"),
                [sys.intern(f"{tag}={field(record, name, str).strip()}") for name, tag in tags.items()],
            )
        except ValueError as error:
            found[question_id] = BadRowError(path, row, str(error))


class COCOQuestions(InstructionBuilder):
    """Questions in the VQA layout about the COCO photographs of 2014. Tags: question_type, answer_type."""

    # Split -> the part of COCO that its photographs are in. The photographs of 2017 are the same ones, parted anew.
    PARTS: ClassVar = {"train": "train2014", "validation": "val2014", "test": "test2015", "test_dev": "test2015"}

    def image_folders(self, split: str) -> list[str]:
        part = self.PARTS[split]
        return self.config.folders(part, *(["train2017", "val2017"] if part.endswith("2014") else []))

    def extra_files(self, split: str) -> list[str]:
        return answers_beside(self.split_files()[split][0], required=not split.startswith("test"))

    def read(self, split: str, file: str) -> Iterator[Record | BadRowError]:
        folders, part = self.image_folders(split), self.PARTS[split]
        prefix = f"{self.name}/test_dev" if split == "test_dev" else self.name  # its questions are in test as well
        for question in read_vqa(file, {"question_type": "question_type", "answer_type": "answer_type"}):
            if isinstance(question, BadRowError):
                yield question
                continue
            try:
                if not isinstance(question.image_id, int):
                    raise ValueError(f"'image_id' should be a COCO id, is {question.image_id!r}")
                number = f"{question.image_id:012d}"
                path = first_image(folders, f"COCO_{part}_{number}.jpg", f"{number}.jpg")
                sample = make_sample(
                    f"{prefix}/{question.question_id}", question.text, question.answers, tags=question.tags
                )
                yield Record(file, question.row, f"coco/{number}", path, sample)
            except ValueError as error:
                yield BadRowError(file, question.row, str(error))
