"""VQA-RAD: questions by clinicians about radiology images. The official layout:

data_dir/trainset.json testset.json images/synpic54610.jpg                        or the folders in `image_dirs`

{"qid": 1, "image_name": "synpic54610.jpg", "image_organ": "HEAD", "answer": "Yes", "answer_type": "CLOSED",
 "question_type": "PRES", "question": "Are regions of the brain infarcted?", "phrase_type": "freeform"}
"""

from collections.abc import Iterator

from .official_files import BadRowError, field, image_path, read_json_list, stem
from .schema import InstructionBuilder, Record, make_sample

TAGS = {"answer_type": "answer_type", "question_type": "question_type", "image_organ": "organ", "phrase_type": "phrase"}


class VQARad(InstructionBuilder):
    """Tags: answer_type (CLOSED or OPEN), question_type, organ and phrase, as spelled in the files."""

    def image_folders(self, split: str) -> list[str]:
        return self.config.folders("images")

    def read(self, split: str, file: str) -> Iterator[Record | BadRowError]:
        folders = self.image_folders(split)
        for row, record in enumerate(read_json_list(file), start=1):
            try:
                name = field(record, "image_name", str)
                sample = make_sample(
                    id=f"vqa_rad/{field(record, 'qid', int)}",
                    question=field(record, "question", str),
                    answers=[str(field(record, "answer", str, int))],  # the official file holds counts as numbers
                    tags=[f"{tag}={field(record, key, str).strip()}" for key, tag in TAGS.items()],
                )
                yield Record(file, row, f"vqa_rad/{stem(name)}", image_path(folders, name), sample)
            except ValueError as error:
                yield BadRowError(file, row, str(error))
