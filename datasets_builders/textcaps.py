"""TextCaps: captions that say what is written in the picture. The official layout:

data_dir/TextCaps_0.1_train.json TextCaps_0.1_val.json TextCaps_0.1_test.json
data_dir/train_images/011e7e629fb9ae7b.jpg (train and val)   test_images/...      or images, or `image_dirs`
data_dir/TextVQA_Rosetta_OCR_v0.2_train.json ..._val.json ..._test.json           the words read in the same pictures

{"data": [{"image_id": "011e7e629fb9ae7b", "caption_id": 100000000, "caption_str": "Five Listerine Zero mouthwash ...",
           "reference_strs": [...], "image_path": "train/011e7e629fb9ae7b.jpg", "image_classes": [...], ...}]}
{"data": [{"image_id": "011e7e629fb9ae7b", "ocr_tokens": ["LISTERINE", "ZERO", ...], "ocr_info": [...]}]}
"""

import logging
from collections.abc import Iterator

from .official_files import BadRowError, field, image_path, read_json_list
from .rosetta_ocr import read_rosetta, rosetta_file
from .schema import InstructionBuilder, Record, make_sample

logger = logging.getLogger(__name__)


class TextCaps(InstructionBuilder):
    """One sample an image, whose answers are its captions (none in test), with OCR tokens where their file is there.

    The paper's model is told the OCR tokens, so their absence is logged.
    """

    def image_folders(self, split: str) -> list[str]:
        own = "test_images" if split == "test" else "train_images"
        return self.config.folders(own, "images")

    def extra_files(self, split: str) -> list[str]:
        return rosetta_file(self.config.data_dir, split)

    def read(self, split: str, file: str) -> Iterator[Record | BadRowError]:
        tokens: dict[str, list[str]] = {}
        for ocr_file in self.extra_files(split):
            tokens, bad = read_rosetta(ocr_file)
            yield from bad
        if not tokens:
            logger.warning(
                "textcaps/%s: no OCR tokens: TextVQA's Rosetta file is not in %s", split, self.config.data_dir
            )
        captions: dict[str, list[str]] = {}
        rows: dict[str, int] = {}
        for row, record in enumerate(read_json_list(file, "data"), start=1):
            try:
                image_id = field(record, "image_id", str)
                if split != "test":
                    captions.setdefault(image_id, []).append(field(record, "caption_str", str).strip())
                rows.setdefault(image_id, row)
            except ValueError as error:
                yield BadRowError(file, row, str(error))
        folders = self.image_folders(split)
        for image_id, row in rows.items():
            try:
                path = image_path(folders, f"{image_id}.jpg")
                answers = captions.get(image_id, [])
                ocr_tokens = tokens.get(image_id, [])
                sample = make_sample(id=f"textcaps/{image_id}", question="", answers=answers, ocr_tokens=ocr_tokens)
                yield Record(file, row, f"openimages/{image_id}", path, sample)
            except ValueError as error:
                yield BadRowError(file, row, str(error))
