"""What all datasets on COCO photographs share: one id for a photograph, in whichever release it was downloaded."""

import re


def coco_image_id(name: str) -> str:
    """`coco/000000000009` for `000000000009.jpg` (2017) and `train2014/COCO_train2014_000000000009.jpg` (2014).

    Raises:
        ValueError: the name does not end in a COCO id of 12 digits.
    """
    number = re.search(r"(?<!\d)(\d{12})\.\w+$", name)
    if number is None:
        raise ValueError(f"image {name!r} is not named by a COCO id of 12 digits")
    return f"coco/{number[1]}"
