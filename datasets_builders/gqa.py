"""GQA: compositional questions about Visual Genome images, the balanced sets. The official layout:

data_dir/train_balanced_questions.json val_... testdev_... test_...     (or in questions1.2/ or questions/)
data_dir/images/2354786.jpg n161313.jpg

{"201307251": {"imageId": "n161313", "question": "Is it overcast?", "answer": "no", "fullAnswer": "No, it is clear.",
  "isBalanced": true, "types": {"detailed": "weatherVerify", "semantic": "global", "structural": "verify"}, ...}}
"""

from collections.abc import Iterator

from .official_files import BadRowError, field, image_path, read_json_members
from .schema import InstructionBuilder, Record, make_sample

TYPES = ("structural", "semantic", "detailed")


class GQA(InstructionBuilder):
    """One short answer each; none in `test`. Tags: structural, semantic and detailed, the types of the question."""

    def image_folders(self, split: str) -> list[str]:
        return self.config.folders("images")

    def read(self, split: str, file: str) -> Iterator[Record | BadRowError]:
        folders = self.image_folders(split)
        for row, question_id, record in read_json_members(file):
            try:
                name = field(record, "imageId", str)
                hidden = split == "test"
                types = {} if hidden else field(record, "types", dict)
                kinds = {kind: field(types, kind, str, type(None)) for kind in TYPES if not hidden}
                sample = make_sample(
                    id=f"gqa/{field({'question id': question_id}, 'question id', str)}",
                    question=field(record, "question", str).strip(),
                    answers=[] if hidden else [field(record, "answer", str).strip()],
                    tags=[f"{kind}={value}" for kind, value in kinds.items() if value is not None],
                )
                source = "vg" if name.isdecimal() else "gqa"  # ids of Visual Genome, and of the newer test images
                yield Record(file, row, f"{source}/{name}", image_path(folders, f"{name}.jpg"), sample)
            except ValueError as error:
                yield BadRowError(file, row, str(error))
