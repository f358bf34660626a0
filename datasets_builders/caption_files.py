"""The layouts in which captions are published: COCO's own, Karpathy's, and LAVIS' copies of Karpathy's."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from .official_files import BadRowError, choices_field, describe, field, read_json

KARPATHY_SPLITS = {"train": "train", "restval": "train", "val": "validation", "test": "test"}


@dataclasses.dataclass
class Captioned:
    """An image with its captions, in the order of the file."""

    row: int  # of the image; in a list of captions, of its first
    name: str
    captions: list[str]
    entry: dict[str, Any]  # what the file says of the image


def read_coco(file: str, captioned: bool = True) -> Iterator[Captioned | BadRowError]:
    """The images of a file in COCO's layout, {"images": [...], "annotations": [{"image_id", "caption", ...}]}.

    Args:
        captioned: an image without a usable caption is a bad row; False for test sets, which may lack "annotations".
    """
    content = read_json(file)
    images = _list_in(file, content, "images")
    annotations = _list_in(file, content, "annotations") if captioned or "annotations" in content else []
    known = {image["id"] for image in images if isinstance(image, dict) and type(image.get("id")) is int}
    captions: dict[int, list[str]] = {}
    for row, annotation in enumerate(annotations, start=1):
        try:
            image_id = field(annotation, "image_id", int)
            if image_id not in known:
                raise ValueError(f"image {image_id} is not among the file's images")
            captions.setdefault(image_id, []).append(field(annotation, "caption", str).strip())
        except ValueError as error:
            yield BadRowError(file, row, f"in 'annotations': {error}")
    for row, image in enumerate(images, start=1):
        try:
            image_id = field(image, "id", int)
            if captioned and image_id not in captions:
                raise ValueError(f"image {image_id} has no usable caption")
            yield Captioned(row, field(image, "file_name", str), captions.get(image_id, []), image)
        except ValueError as error:
            yield BadRowError(file, row, f"in 'images': {error}")


def _list_in(file: str, content: Any, key: str) -> list[Any]:
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise ValueError(f"{file}: expected an object with a list '{key}', found {describe(content)}")
    return content[key]


def read_karpathy(file: str, split: str) -> Iterator[Captioned | BadRowError]:
    """The images of `split` ("train", "validation", "test") in a file of Karpathy's or one of LAVIS.

    Karpathy's `dataset_coco.json` and `dataset_flickr30k.json` hold all splits; train takes "restval" too, the part of
    COCO's validation set that is not in his:

        {"images": [{"filepath": "val2014", "filename": "COCO_val2014_000000522418.jpg", "split": "restval",
                     "sentences": [{"raw": "A woman cutting a large white sheet cake."}, ...]}, ...]}

    LAVIS' `coco_karpathy_{train,val,test}.json` and `flickr30k_{train,val,test}.json` hold one split each, as a list
    of captions, or of images where "caption" is a list:

        [{"image": "val2014/COCO_val2014_000000522418.jpg", "caption": "A woman cutting ...", "image_id": ...}, ...]
    """
    content = read_json(file)
    if isinstance(content, dict) and isinstance(content.get("images"), list):
        yield from _karpathy_images(file, content["images"], split)
    elif isinstance(content, list):
        yield from _lavis_captions(file, content)
    else:
        raise ValueError(f"{file}: expected a list, or an object with a list 'images', found {describe(content)}")


def _karpathy_images(file: str, images: list[Any], split: str) -> Iterator[Captioned | BadRowError]:
    for row, image in enumerate(images, start=1):
        try:
            part = field(image, "split", str)
            if part not in KARPATHY_SPLITS:
                raise ValueError(f"split {part!r} is none of {', '.join(KARPATHY_SPLITS)}")
            if KARPATHY_SPLITS[part] != split:
                continue
            name = field(image, "filename", str)
            if "filepath" in image:
                name = f"{field(image, 'filepath', str)}/{name}"
            captions = []
            for number, sentence in enumerate(field(image, "sentences", list), start=1):
                try:
                    captions.append(field(sentence, "raw", str).strip())
                except ValueError as error:
                    yield BadRowError(file, row, f"sentence {number}: {error}")
            if not captions:
                raise ValueError(f"image {name} has no usable caption")
            yield Captioned(row, name, captions, image)
        except ValueError as error:
            yield BadRowError(file, row, str(error))


def _lavis_captions(file: str, records: list[Any]) -> Iterator[Captioned | BadRowError]:
    found: dict[str, Captioned] = {}
    for row, record in enumerate(records, start=1):
        try:
            name = field(record, "image", str)
            caption = field(record, "caption", str, list)
            if isinstance(caption, str):
                found.setdefault(name, Captioned(row, name, [], record)).captions.append(caption.strip())
                continue
            if name in found:
                raise ValueError(f"image {name} again, first in row {found[name].row}")
            found[name] = Captioned(row, name, choices_field(record, "caption"), record)
        except ValueError as error:
            yield BadRowError(file, row, str(error))
    yield from found.values()
