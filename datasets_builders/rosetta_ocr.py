"""The words that Rosetta read in the pictures of TextVQA, which are TextCaps' too:

{"data": [{"image_id": "011e7e629fb9ae7b", "ocr_tokens": ["LISTERINE", "ZERO", ...], "ocr_info": [...]}]}
"""

import os

from .official_files import BadRowError, field, read_json_list

PARTS = {"train": "train", "validation": "val", "test": "test"}


def rosetta_file(data_dir: str, split: str) -> list[str]:
    """The path of the split's file if it is there."""
    path = os.path.join(data_dir, f"TextVQA_Rosetta_OCR_v0.2_{PARTS[split]}.json")
    return [path] if os.path.isfile(path) else []


def read_rosetta(file: str) -> tuple[dict[str, list[str]], list[BadRowError]]:
    """Image id -> its words in the order of the file, blank ones left out; and the rows that cannot be used."""
    tokens: dict[str, list[str]] = {}
    bad = []
    for row, record in enumerate(read_json_list(file, "data"), start=1):
        try:
            image_id = field(record, "image_id", str)
            words = field(record, "ocr_tokens", list)
            if image_id in tokens:
                raise ValueError(f"image {image_id} again")
            named = {f"ocr_tokens[{number}]": word for number, word in enumerate(words)}
            items = {item: word for item, word in named.items() if word != "" and not str(word).isspace()}
            tokens[image_id] = [field(items, item, str) for item in items]
        except ValueError as error:
            bad.append(BadRowError(file, row, str(error)))
    return tokens, bad
