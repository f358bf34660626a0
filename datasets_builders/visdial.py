"""Visual Dialog v1.0: ten rounds of question and answer about a photograph, with 100 options each. The official layout:

data_dir/visdial_1.0_train.json visdial_1.0_val.json visdial_1.0_test.json
data_dir/train2014/COCO_train2014_000000378466.jpg val2014/...           (train; COCO's folders, or `image_dirs`)
data_dir/VisualDialog_val2018/VisualDialog_val2018_000000185565.jpg      VisualDialog_test2018/...
data_dir/visdial_1.0_val_dense_annotations.json     (where it is there: which options people found right, for NDCG)

{"split": "val", "data": {"questions": ["is the photo in color", ...], "answers": ["yes it is", ...],
  "dialogs": [{"image_id": 185565, "caption": "a man in a suit", "dialog":
    [{"question": 4, "answer": 7, "answer_options": [7, 2, ...], "gt_index": 0}, ...]}]}}
dense annotations: [{"image_id": 185565, "round_id": 8, "gt_relevance": [0.6, 0.0, ...]}, ...], one round a dialogue
"""

import os
from collections.abc import Iterator
from typing import Any

from .official_files import BadRowError, describe, field, first_image, index_field, read_json, read_json_list
from .schema import InstructionBuilder, Record, make_sample

PARTS = {"train": ("train2014", "val2014"), "validation": ("VisualDialog_val2018",), "test": ("VisualDialog_test2018",)}
DENSE = "visdial_1.0_val_dense_annotations.json"
ROUNDS = 10
OPTIONS = 100


class VisDial(InstructionBuilder):
    """One sample a round: the earlier rounds are its history, the caption its context, the options its choices.

    The test set asks only the last of a dialogue's one to ten rounds, and gives no answer to it. Where the file of
    dense annotations is there, one round of each validation dialogue has the tag relevance: "17:0.6 42:1" gives the
    share of people who found option 17 right, and option 42, counted from 0; all others have 0.
    """

    def extra_files(self, split: str) -> list[str]:
        path = os.path.join(os.path.dirname(self.split_files()[split][0]), DENSE)
        return [path] if split == "validation" and os.path.isfile(path) else []

    def image_folders(self, split: str) -> list[str]:
        return self.config.folders(*PARTS[split])

    def read(self, split: str, file: str) -> Iterator[Record | BadRowError]:
        folders = self.image_folders(split)
        relevance: dict[tuple[int, int], str] = {}
        for dense in self.extra_files(split):
            relevance, bad = read_relevance(dense)
            yield from bad
        content = read_json(file)
        try:
            data = field(content, "data", dict)
            questions, answers = (read_texts(field(data, name, list)) for name in ("questions", "answers"))
            dialogs = field(data, "dialogs", list)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        for row, dialog in enumerate(dialogs, start=1):
            dialogs[row - 1] = None  # the training set's take gigabytes, and so do the samples made of them
            try:
                number = field(dialog, "image_id", int)
                # Train has images of both COCO folders, and says of none in which it is.
                names = [f"{'COCO_' if split == 'train' else ''}{part}_{number:012d}.jpg" for part in PARTS[split]]
                path = first_image(folders, *names)
                image_id = f"coco/{number:012d}" if split == "train" else f"visdial/{split}/{number:012d}"
                samples = read_rounds(dialog, questions, answers, split == "test")
                for sample in samples:
                    if (number, int(sample["id"])) in relevance:
                        sample["tags"] = [f"relevance={relevance[number, int(sample['id'])]}"]
                    sample["id"] = f"visdial/{split}/{number}/{sample['id']}"
            except ValueError as error:
                yield BadRowError(file, row, f"in 'dialogs': {error}")
                continue
            for sample in samples:
                yield Record(file, row, image_id, path, sample)


def read_rounds(
    dialog: Any, questions: list[str | None], answers: list[str | None], only_last: bool
) -> list[dict[str, Any]]:
    """The samples of a dialogue, each with the number of its round, from 1, as id.

    Args:
        questions, answers: the texts that the dialogue's numbers stand for.
        only_last: only the last round is asked, and its answer is not known.

    Raises:
        ValueError: something is missing, of another type, or an index points nowhere; names the round.
    """
    caption, rounds = field(dialog, "caption", str).strip(), field(dialog, "dialog", list)
    if not 1 <= len(rounds) <= ROUNDS or (len(rounds) < ROUNDS and not only_last):
        raise ValueError(f"'dialog' should have {'1 to ' if only_last else ''}{ROUNDS} rounds, has {len(rounds)}")
    history: list[dict[str, str]] = []
    samples = []
    for number, turn in enumerate(rounds, start=1):
        try:
            question, answer = look_up(turn, "question", questions), ""
            last = number == len(rounds)
            if not (only_last and last):
                answer = look_up(turn, "answer", answers)
            if last or not only_last:
                sample = make_sample(id=str(number), question=question, answers=[], context=caption, history=[*history])
                sample["choices"] = read_options(turn, answers)
                if answer:
                    sample["label"] = index_field(turn, "gt_index", OPTIONS)
                    sample["answers"] = [answer]
                    if sample["choices"][sample["label"]] != answer:
                        raise ValueError(f"option 'gt_index' is {sample['choices'][sample['label']]!r}, not {answer!r}")
                samples.append(sample)
            history.append({"question": question, "answer": answer})
        except ValueError as error:
            raise ValueError(f"round {number}: {error}") from error
    return samples


def read_relevance(file: str) -> tuple[dict[tuple[int, int], str], list[BadRowError]]:
    """(image, round from 1) -> "<option>:<value>" of the options that someone found right; and rows that are wrong."""
    found: dict[tuple[int, int], str] = {}
    bad = []
    for row, record in enumerate(read_json_list(file), start=1):
        try:
            place = (field(record, "image_id", int), field(record, "round_id", int))
            values = field(record, "gt_relevance", list)
            if len(values) != OPTIONS:
                raise ValueError(f"'gt_relevance' should be {OPTIONS} numbers, are {len(values)}")
            named = {f"gt_relevance[{option}]": value for option, value in enumerate(values)}
            numbers = [float(field(named, name, int, float)) for name in named]
            if place in found:
                raise ValueError(f"round {place[1]} of image {place[0]} again")
            found[place] = " ".join([f"{option}:{value:g}" for option, value in enumerate(numbers) if value])
        except ValueError as error:
            bad.append(BadRowError(file, row, str(error)))
    return found, bad


def read_texts(texts: list[Any]) -> list[str | None]:
    """The texts of the file's list, each looked at once; None for what is none."""
    read: list[str | None] = []
    for text in texts:
        try:
            read.append(field({"text": text}, "text", str).strip())
        except ValueError:
            read.append(None)
    return read


def look_up(turn: Any, name: str, texts: list[str | None]) -> str:
    """The text that the number in `turn[name]` stands for."""
    number = index_field(turn, name, len(texts))
    text = texts[number]
    if text is None:
        raise ValueError(f"'{name}' is {number}, which stands for no text")
    return text


def read_options(turn: Any, answers: list[str | None]) -> list[str]:
    """The texts of the answer options."""
    options = field(turn, "answer_options", list)
    if len(options) != OPTIONS:
        raise ValueError(f"'answer_options' should be {OPTIONS}, are {len(options)}")
    texts = []
    for place, number in enumerate(options):  # a hundred million in the training set
        text = answers[number] if type(number) is int and 0 <= number < len(answers) else None
        if text is None:
            raise ValueError(f"'answer_options[{place}]' stands for no text: {describe(number)}")
        texts.append(text)
    return texts
