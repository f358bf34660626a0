"""OCR-VQA: questions about book covers, made from what a shop knows of the books. The official layout:

data_dir/dataset.json                 all splits in one file
data_dir/images/761183272.jpg         as the official script saves them: the book's id and its link's ending; or
                                      the folders in `image_dirs`

{"761183272": {"imageURL": "http://ecx.images-amazon.com/images/I/61Y5cOdHJbL.jpg", "title": ..., "authorName": ...,
               "questions": ["Who wrote this book?", ...], "answers": ["Sandra Boynton", ...], "genre": ...,
               "split": 1}}
"""

from collections.abc import Iterator
from typing import Any

from .official_files import BadRowError, field, first_image, read_json_members
from .schema import InstructionBuilder, Record, make_sample

SPLITS = {1: "train", 2: "validation", 3: "test"}


class OCRVQA(InstructionBuilder):
    """One answer a question. The official file holds no words read in the pictures, so `ocr_tokens` is empty."""

    def image_folders(self, split: str) -> list[str]:
        return self.config.folders("images")

    def read(self, split: str, file: str) -> Iterator[Record | BadRowError]:
        folders = self.image_folders(split)
        for row, book, record in read_json_members(file):
            try:
                number = field(record, "split", int)
                if number not in SPLITS:
                    raise ValueError(f"'split' should be 1, 2 or 3, is {number}")
                if SPLITS[number] != split:
                    continue
                pairs = question_answer_pairs(record)
                ending = field(record, "imageURL", str).rpartition(".")[2]
                image = first_image(folders, f"{book}.{ending}", f"{book}.jpg")  # some copies call all of them .jpg
            except ValueError as error:
                yield BadRowError(file, row, f"book {book!r}: {error}")
                continue
            for place, (question, answer) in enumerate(pairs):
                try:
                    items = {f"questions[{place}]": question, f"answers[{place}]": answer}
                    text, response = (field(items, name, str).strip() for name in items)
                    sample = make_sample(f"ocr_vqa/{book}/{place}", text, [response])
                    yield Record(file, row, f"ocr_vqa/{book}", image, sample)
                except ValueError as error:
                    yield BadRowError(file, row, f"book {book!r}: {error}")


def question_answer_pairs(record: Any) -> list[tuple[Any, Any]]:
    """The book's questions with their answers.

    Raises:
        ValueError: a list is missing or empty, or they are of different lengths.
    """
    questions, answers = field(record, "questions", list), field(record, "answers", list)
    if not questions or len(questions) != len(answers):
        raise ValueError(f"{len(questions)} 'questions' and {len(answers)} 'answers': expected as many, and some")
    return list(zip(questions, answers, strict=True))
