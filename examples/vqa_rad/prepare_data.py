"""Make `examples/vqa_rad/data` from VQA-RAD (https://osf.io/89kps/): trainset.json, testset.json and images/.

    python examples/vqa_rad/prepare_data.py OFFICIAL_FOLDER [DESTINATION]

Images keep their aspect ratio and shrink to 224 pixels on the longest side, the size a model sees; names, questions and
answers stay as they are. The same Pillow makes the same bytes.
"""

import argparse
import json
from pathlib import Path

from PIL import Image

LONGEST_SIDE = 224
QUALITY = 85
QUESTION_FILES = ("trainset.json", "testset.json")
SOURCE = """\
# VQA-RAD, small

{images} radiology images and {questions} questions of VQA-RAD (https://osf.io/89kps/), released under CC0 1.0
(https://creativecommons.org/publicdomain/zero/1.0/); the images come from MedPix, an open database of the United States
National Library of Medicine. `trainset.json` and `testset.json` are the split that the literature uses, as published
with MEVF; both ask about the same images. Every field is unchanged. `prepare_data.py` shrank the images to 224 pixels
on the longest side, as JPEG of quality {quality}.

Not for diagnosis. Please cite: Jason J. Lau, Soumya Gayen, Asma Ben Abacha, Dina Demner-Fushman. "A dataset of
clinically generated visual questions and answers about radiology images". Scientific Data 5, 180251 (2018).
"""


def shrink(source: Path, destination: Path) -> None:
    """Write an image as RGB JPEG with its longest side at most `LONGEST_SIDE`, without metadata."""
    with Image.open(source) as image:
        small = image.convert("RGB")
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BICUBIC)
    small.info.clear()
    small.save(destination, "JPEG", quality=QUALITY, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("official", type=Path, help="folder with trainset.json, testset.json and images/")
    parser.add_argument("destination", type=Path, nargs="?", default=Path(__file__).parent / "data")
    args = parser.parse_args()

    images = sorted((args.official / "images").glob("*.jpg"))
    if not images:
        parser.error(f"no images/*.jpg in {args.official}")
    (args.destination / "images").mkdir(parents=True, exist_ok=True)
    for image in images:
        shrink(image, args.destination / "images" / image.name)
    questions = 0
    for name in QUESTION_FILES:
        records = json.loads((args.official / name).read_text(encoding="utf-8"))
        lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
        (args.destination / name).write_text(f"[\n{lines}\n]\n", encoding="utf-8")
        questions += len(records)
    note = SOURCE.format(images=len(images), questions=questions, quality=QUALITY)
    (args.destination / "README.md").write_text(note, encoding="utf-8")


if __name__ == "__main__":
    main()
