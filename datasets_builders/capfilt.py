"""Web CapFilt: captions that BLIP wrote and kept for pictures of the web (CC3M, CC12M, SBU, LAION). Two layouts:

data_dir/00000.tar 00001.tar ...           or one folder deeper, data_dir/ccs/00000.tar data_dir/laion/00000.tar
    000000012.jpg 000000012.json 000000012.txt 000000027.jpg ...

are what img2dataset makes of BLIP's ccs_synthetic_filtered_large.json and laion_synthetic_filtered_large.json, lists
of {"url", "caption"}, with --output_format webdataset --url_col url --caption_col caption. And X-InstructBLIP's:

data_dir/annotation.json                   [{"image": "00000/000000012.jpg", "caption": "a cat on a red sofa"}, ...]
data_dir/images/00000/000000012.jpg        or in `image_dirs`; cut into annotation*.json, each is built by a process
"""

import json
import os
from collections.abc import Iterator

from .official_files import BadRowError, field, image_path, read_json_items
from .schema import InstructionBuilder, Record, make_sample
from .tar_files import TarSample, read_samples

PICTURES = ("jpg", "jpeg", "png", "webp")  # what img2dataset writes
LIMITS = {**dict.fromkeys(PICTURES, 64 << 20), "txt": 1 << 16, "json": 1 << 20}  # bytes of a member


class CapFilt(InstructionBuilder):
    """One sample an image, with its one caption. A tar is a shard, read in one pass; so is an annotation file."""

    one_shard_per_file = True

    def image_folders(self, split: str) -> list[str]:
        return self.config.folders("images")

    def read(self, split: str, file: str) -> Iterator[Record | BadRowError]:
        place = os.path.splitext(os.path.relpath(file, self.config.data_dir))[0]
        if not file.endswith(".tar"):
            yield from self._read_annotation(split, file, place)
            return
        for sample in read_samples(file, LIMITS):
            if isinstance(sample, BadRowError):
                yield sample
                continue
            try:
                name = f"capfilt/{place}/{sample.key}"  # keys are counted anew in each of BLIP's two lists
                picture, caption = _contents(sample)
                yield Record(file, sample.row, name, picture, make_sample(id=name, question="", answers=[caption]))
            except ValueError as error:
                yield BadRowError(file, sample.row, f"sample {sample.key!r}: {error}")

    def _read_annotation(self, split: str, file: str, place: str) -> Iterator[Record | BadRowError]:
        folders = self.image_folders(split)
        for row, record in read_json_items(file):
            try:
                name = field(record, "image", str)
                caption = field(record, "caption", str).strip()
                path = image_path(folders, name)
                sample = make_sample(id=f"capfilt/{place}/{row}", question="", answers=[caption])
                yield Record(file, row, f"capfilt/{os.path.splitext(name)[0]}", path, sample)
            except ValueError as error:
                yield BadRowError(file, row, str(error))


def _contents(sample: TarSample) -> tuple[bytes, str]:
    """(picture, caption) of a sample; the caption is in its .txt, else under "caption" in its .json.

    Raises:
        ValueError: no picture, or several; no caption, or a blank one.
    """
    pictures = [name for name in PICTURES if name in sample.parts]
    if len(pictures) != 1:
        raise ValueError(f"{len(pictures)} pictures among {', '.join(sample.parts) or 'no members'}: expected one")
    if "txt" in sample.parts:
        text = {"txt": sample.parts["txt"].decode("utf-8")}  # UnicodeDecodeError is a ValueError that says where
        return sample.parts[pictures[0]], field(text, "txt", str).strip()
    if "json" not in sample.parts:
        raise ValueError("no .txt and no .json: the caption is missing")
    try:
        about = json.loads(sample.parts["json"])
    except RecursionError as error:
        raise ValueError(f".json is not JSON ({error})") from error
    return sample.parts[pictures[0]], field(about, "caption", str).strip()
