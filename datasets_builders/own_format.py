"""Wordings for one's own data, where each sample says what it is: one file may hold questions, captions and talks."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from .instructions import InstructionFormat, Style
from .schema import tag
from .table import AnswerPolicy
from .templates import Template

TASK = "own"  # what such a format calls its task: each sample has one of its own


@dataclasses.dataclass(frozen=True)
class OwnFormat(InstructionFormat):
    """Gives each sample to the format of its tag "task"; `own_format` makes one."""

    by_task: Mapping[str, InstructionFormat] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        # `dataclasses.replace` of what is common to all, as publishing does it, reaches each of them
        common = {"seed": self.seed, "answer_policy": self.answer_policy, "lowercase_answers": self.lowercase_answers}
        by_task = {task: dataclasses.replace(made, **common) for task, made in self.by_task.items()}
        object.__setattr__(self, "by_task", by_task)

    @property
    def takes_label(self) -> bool:
        return True  # `load_own` gives none but multiple-choice questions a label

    def answers(self, sample: Mapping[str, Any]) -> list[str]:
        return self._format(sample).answers(sample)

    def item(self, sample: Mapping[str, Any], image_id: str, epoch: int = 0, number: int = 0) -> dict[str, str]:
        return self._format(sample).item(sample, image_id, epoch, number)

    def items(self, row: Mapping[str, Any], epoch: int = 0) -> list[dict[str, str]]:
        rows = ({**row, "samples": [sample]} for sample in row["samples"] or ())
        return [item for part in rows for item in self._format(part["samples"][0]).items(part, epoch)]

    def _format(self, sample: Mapping[str, Any]) -> InstructionFormat:
        task = tag(dict(sample), "task")
        if task not in self.by_task:
            raise ValueError(f"{sample['id']}: its tag 'task' is {task!r}; `load_own` writes {', '.join(self.by_task)}")
        return self.by_task[task]


def own_format(
    name: str,
    templates: Sequence[Template] | None = None,
    seed: int = 0,
    style: Style = "natural",
    answer_policy: AnswerPolicy | None = None,
    lowercase_answers: bool | None = None,
) -> OwnFormat:
    """How the rows of `load_own` become items: `InstructionDataset(rows, name, format=own_format(name))`.

    Questions and captions get a wording, drawn anew each epoch; instructions and talks are used as they are.

    Args:
        name: the `dataset` of every item.
        templates: wordings for questions instead of ours; one of them gives a fixed prompt. Where one does not place
            `{options}`, choices are listed behind the question.
        seed, style, answer_policy, lowercase_answers: as for `InstructionFormat.of`.

    Raises:
        ValueError: as `InstructionFormat.of`.
    """

    def of(task: str, wordings: Sequence[Template] | None = None) -> InstructionFormat:
        return InstructionFormat.of(name, seed, style, answer_policy, wordings, lowercase_answers, task)

    by_task = {
        "vqa": of("vqa", templates),
        "multiple_choice": of("multiple_choice", templates and [_with_options(template) for template in templates]),
        "caption": of("caption"),
        "chat": of("chat"),
    }
    own = {field.name: getattr(by_task["vqa"], field.name) for field in dataclasses.fields(InstructionFormat)}
    return OwnFormat(**{**own, "task": TASK}, by_task=by_task)


def _with_options(template: Template) -> Template:
    if "options" in template.fields:
        return template
    text = template.text.replace("{question}", "{question} Options: {options}.")
    return dataclasses.replace(template, text=text)
