"""TextVQA: questions that are answered by reading the picture. The official layout:

data_dir/TextVQA_0.5.1_train.json TextVQA_0.5.1_val.json TextVQA_0.5.1_test.json
data_dir/TextVQA_Rosetta_OCR_v0.2_train.json ..._val.json ..._test.json             the words read in the pictures
data_dir/train_images/003a8ae2ef43b901.jpg (train and val)  test_images/...         or images/, or `image_dirs`

{"data": [{"question_id": 34602, "image_id": "003a8ae2ef43b901", "question": "what is the brand of this camera?",
           "answers": ["nous les gosses", "dakota", ...], "image_classes": [...], "set_name": "val", ...}]}

OpenFlamingo's form is read too: {train,val}_questions_vqa_format.json with {train,val}_annotations_vqa_format.json
beside, as `vqa_files` says; without the latter, the questions have no answers.
"""

import logging
from collections.abc import Iterator

from .official_files import BadRowError, field, image_path, read_json_list
from .rosetta_ocr import read_rosetta, rosetta_file
from .schema import InstructionBuilder, Record, make_sample
from .vqa_files import Question, answers_beside, answers_file, is_vqa_format, read_vqa, ten_answers

logger = logging.getLogger(__name__)

FOLDERS = {"train": "train_images", "validation": "train_images", "test": "test_images"}


class TextVQA(InstructionBuilder):
    """Ten answers a question (none in test), with OCR tokens where their file is there.

    The paper's prompt holds the OCR tokens, so their absence is logged.
    """

    def image_folders(self, split: str) -> list[str]:
        return self.config.folders(FOLDERS[split], "images")

    def extra_files(self, split: str) -> list[str]:
        [file] = self.split_files()[split]
        ocr = rosetta_file(self.config.data_dir, split)
        return ocr + answers_beside(file, required=False) if is_vqa_format(file) else ocr

    def read(self, split: str, file: str) -> Iterator[Record | BadRowError]:
        tokens: dict[str, list[str]] = {}
        for ocr_file in rosetta_file(self.config.data_dir, split):
            tokens, bad = read_rosetta(ocr_file)
            yield from bad
        if not tokens:
            logger.warning("%s: no OCR tokens: TextVQA's Rosetta file is not in %s", file, self.config.data_dir)
        if is_vqa_format(file) and answers_file(file) is None:
            logger.warning("%s: no answers: the file with them is not beside it", file)
        folders = self.image_folders(split)
        for question in read_vqa(file, {}) if is_vqa_format(file) else read_official(file, split != "test"):
            if isinstance(question, BadRowError):
                yield question
                continue
            try:
                sample = make_sample(
                    f"textvqa/{question.question_id}",
                    question.text,
                    question.answers,
                    ocr_tokens=tokens.get(str(question.image_id), []),
                )
                path = image_path(folders, f"{question.image_id}.jpg")
                yield Record(file, question.row, f"openimages/{question.image_id}", path, sample)
            except ValueError as error:
                yield BadRowError(file, question.row, str(error))


def read_official(file: str, published: bool) -> Iterator[Question | BadRowError]:
    """The questions of a file in TextVQA's own form; `published`: it holds their answers."""
    for row, record in enumerate(read_json_list(file, "data"), start=1):
        try:
            yield Question(
                row,
                field(record, "question_id", int),
                field(record, "image_id", str),
                field(record, "question", str).strip(),
                ten_answers(record, "answers") if published else [],
                [],
            )
        except ValueError as error:
            yield BadRowError(file, row, str(error))
