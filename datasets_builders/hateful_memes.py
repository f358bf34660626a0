"""The Hateful Memes Challenge: is a meme hateful? The official layout:

data_dir/train.jsonl dev_seen.jsonl dev_unseen.jsonl test_seen.jsonl test_unseen.jsonl img/42953.png

{"id": 42953, "img": "img/42953.png", "label": 0, "text": "its their character not their color that matters"}
"""

import os
from collections.abc import Iterator

from .official_files import BadRowError, field, image_path, read_json_lines
from .schema import InstructionBuilder, Record, make_sample

QUESTION = "Is it hateful?"
CHOICES = ["no", "yes"]  # so that `label` is the files' own 0 or 1


class HatefulMemes(InstructionBuilder):
    """The text on the meme is the context. Test files were first published without labels: they give no answers."""

    def image_folders(self, split: str) -> list[str]:
        return self.config.folders("img")

    def read(self, split: str, file: str) -> Iterator[Record | BadRowError]:
        folders = self.image_folders(split)
        for row, record in read_json_lines(file):
            try:
                name = field(record, "img", str)
                sample = make_sample(
                    id=f"hateful_memes/{split}/{field(record, 'id', int, str)}",  # dev_unseen repeats memes of dev_seen
                    question=QUESTION,
                    answers=[],
                    choices=CHOICES,
                    context=field(record, "text", str).strip(),
                )
                if "label" in record or not split.startswith("test"):
                    sample["label"] = field(record, "label", int)
                    if sample["label"] not in (0, 1):
                        raise ValueError(f"'label' should be 0 or 1, is {sample['label']}")
                    sample["answers"] = [CHOICES[sample["label"]]]
                stem = os.path.splitext(os.path.basename(name))[0]
                path = image_path(folders, name.removeprefix("img/"))
                yield Record(file, row, f"hateful_memes/{stem}", path, sample)
            except ValueError as error:
                yield BadRowError(file, row, str(error))
