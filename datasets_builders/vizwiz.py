"""VizWiz: questions that blind people asked about their own photographs. The official layout:

data_dir/Annotations/train.json val.json test.json        or in data_dir itself
data_dir/train/VizWiz_train_00000000.jpg val/... test/... or images/, or the folders in `image_dirs`

[{"image": "VizWiz_val_00000001.jpg", "question": "Can you tell me what this medicine is please?",
  "answers": [{"answer": "night time", "answer_confidence": "yes"}, 9 more], "answer_type": "other", "answerable": 1}]

OpenFlamingo's form is read too: {train,val}_questions_vqa_format.json with {train,val}_annotations_vqa_format.json
beside, as `vqa_files` says; "image_id" is the image's name there, and "question_type" VizWiz's answer type.
"""

from collections.abc import Iterator

from .official_files import BadRowError, field, image_path, index_field, read_json_list, stem
from .schema import InstructionBuilder, Record, make_sample
from .vqa_files import answers_beside, is_vqa_format, read_vqa, ten_answers

FOLDERS = {"train": "train", "validation": "val", "test": "test"}


class VizWiz(InstructionBuilder):
    """Ten answers a question (none in test), "unanswerable" among them; a photograph has one question.

    Tags: answer_type (yes/no, number, other, unanswerable), and answerable (0 or 1) from the official files.
    """

    def image_folders(self, split: str) -> list[str]:
        return self.config.folders(FOLDERS[split], "images")

    def extra_files(self, split: str) -> list[str]:
        [file] = self.split_files()[split]
        return answers_beside(file, required=True) if is_vqa_format(file) else []

    def read(self, split: str, file: str) -> Iterator[Record | BadRowError]:
        folders = self.image_folders(split)
        questions = read_converted(file) if is_vqa_format(file) else read_official(file, split != "test")
        for item in questions:
            if isinstance(item, BadRowError):
                yield item
                continue
            row, image, text, answers, tags = item
            try:
                name = f"vizwiz/{stem(image)}"  # the official files number no question: the image's name stands for it
                yield Record(file, row, name, image_path(folders, image), make_sample(name, text, answers, tags=tags))
            except ValueError as error:
                yield BadRowError(file, row, str(error))


Item = tuple[int, str, str, list[str], list[str]]  # row, name of the image, question, answers, tags


def read_official(file: str, published: bool) -> Iterator[Item | BadRowError]:
    """The questions of a file in VizWiz's own form; `published`: it holds their answers."""
    for row, record in enumerate(read_json_list(file), start=1):
        try:
            image, text = field(record, "image", str), field(record, "question", str).strip()
            if not published:
                yield row, image, text, [], []
                continue
            answers = ten_answers(record, "answers", "answer")
            kind, answerable = field(record, "answer_type", str), index_field(record, "answerable", 2)
            yield row, image, text, answers, [f"answer_type={kind}", f"answerable={answerable}"]
        except ValueError as error:
            yield BadRowError(file, row, str(error))


def read_converted(file: str) -> Iterator[Item | BadRowError]:
    """The questions of a file in OpenFlamingo's form."""
    for question in read_vqa(file, {"question_type": "answer_type"}):
        if isinstance(question, BadRowError):
            yield question
        elif isinstance(question.image_id, str):
            yield question.row, question.image_id, question.text, question.answers, question.tags
        else:
            yield BadRowError(file, question.row, f"'image_id' should be an image's name, is {question.image_id}")
