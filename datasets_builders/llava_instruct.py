"""LLaVA-Instruct-150K: talks about COCO photographs that GPT-4 wrote from their captions and boxes. The layout:

data_dir/llava_instruct_150k.json          or one of its parts: conversation_58k.json, detail_23k.json,
data_dir/train2017/000000033471.jpg        complex_reasoning_77k.json, as the config is named; or `image_dirs`

[{"id": "000000033471", "image": "000000033471.jpg", "conversations": [
    {"from": "human", "value": "<image>\nWhat are the colors of the bus in the image?"},
    {"from": "gpt", "value": "The bus in the image is white and red."}, ...]}]
"""

from collections.abc import Iterator
from typing import Any, ClassVar

from .coco_images import coco_image_id
from .official_files import BadRowError, field, image_path, read_json_list
from .schema import BuilderConfig, InstructionBuilder, Record, make_sample

IMAGE_TOKEN = "<image>"  # says where LLaVA puts the picture; our rows hold it in a column of its own
PARTS = ("llava_instruct_150k", "conversation_58k", "detail_23k", "complex_reasoning_77k")


class LLaVAInstruct(InstructionBuilder):
    """One sample a turn: what the human says is the question, the turns before it are the history."""

    BUILDER_CONFIGS: ClassVar = [BuilderConfig(name=name) for name in PARTS]
    DEFAULT_CONFIG_NAME = PARTS[0]

    def image_folders(self, split: str) -> list[str]:
        return self.config.folders("train2017", "images")

    def read(self, split: str, file: str) -> Iterator[Record | BadRowError]:
        folders = self.image_folders(split)
        for row, record in enumerate(read_json_list(file), start=1):
            try:
                name = field(record, "image", str)
                image_id = coco_image_id(name)
                path = image_path(folders, name)
                turns = read_turns(field(record, "conversations", list))
            except ValueError as error:
                yield BadRowError(file, row, str(error))
                continue
            for number, turn in enumerate(turns):
                sample = make_sample(
                    id=f"llava_instruct/{self.config.name}/{row}/{number + 1}",  # the files' ids are the images'
                    question=turn["question"],
                    answers=[turn["answer"]],
                    history=turns[:number],
                )
                yield Record(file, row, image_id, path, sample)


def read_turns(messages: list[Any]) -> list[dict[str, str]]:
    """[{"question", "answer"}] of a talk that human and gpt take in turns. The image token goes, the rest stays as is.

    Raises:
        ValueError: nobody speaks, one speaks twice, the last question has no answer, or an answer has an image token.
    """
    texts = []
    for number, message in enumerate(messages, start=1):
        try:
            expected = "human" if number % 2 else "gpt"
            speaker = field(message, "from", str)
            if speaker != expected:
                raise ValueError(f"from {speaker!r}: expected {expected!r}")
            text = field(message, "value", str)
            if IMAGE_TOKEN in text:
                if expected == "gpt":
                    raise ValueError(f"an answer with {IMAGE_TOKEN}")
                text = text.replace(IMAGE_TOKEN, "").strip()
                if not text:
                    raise ValueError(f"nothing but {IMAGE_TOKEN}")
            texts.append(text)
        except ValueError as error:
            raise ValueError(f"message {number} of 'conversations': {error}") from error
    if not texts or len(texts) % 2:
        raise ValueError(f"'conversations' has {len(texts)} messages: expected questions and answers in pairs")
    return [{"question": texts[i], "answer": texts[i + 1]} for i in range(0, len(texts), 2)]
