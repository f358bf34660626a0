"""Pictures travel through lm-eval as references and are decoded when their batch is due.

A picture inside a request would stay in memory for the whole run, and lm-eval encodes it to PNG to hash it. A reference
is one of

    "/data/coco/000000391895.jpg"                  a file
    {"path": "000000391895.jpg", "bytes": b"..."}  an undecoded cell of a `datasets.Image` column
    "row:1f0c5e:17:0"                              picture 0 of row 17 of a dataset given to `keep_rows`

and a PIL image, from tasks that are not ours, stands for itself. The third form costs nothing per question, however
many questions ask about one picture.
"""

from __future__ import annotations

from typing import Any

import datasets
from PIL import Image

from instructblip.processing.image_loading import open_image

ROW_PREFIX = "row:"
_KEPT: dict[str, datasets.Dataset] = {}  # fingerprint -> rows with their one image column, undecoded


def keep_rows(rows: datasets.Dataset) -> list[list[str]]:
    """Remember `rows` for this process.

    Returns:
        For each row, references to its pictures, in order.

    Raises:
        ValueError: the rows have neither `images` nor `image`.
    """
    column = next((name for name in ("images", "image") if name in rows.column_names), None)
    if column is None:
        raise ValueError(f"the rows have the columns {rows.column_names}: expected `image` or `images` among them")
    undecoded = datasets.Image(decode=False)
    feature = datasets.List(undecoded) if column == "images" else undecoded
    cells = rows.select_columns([column]).cast_column(column, feature)
    _KEPT[rows._fingerprint] = cells
    counts = [1] * len(rows)
    if column == "images":
        counts = cells.with_format("arrow")[:][column].combine_chunks().value_lengths().fill_null(0).to_pylist()
    return [
        [f"{ROW_PREFIX}{rows._fingerprint}:{row}:{slot}" for slot in range(count)] for row, count in enumerate(counts)
    ]


def read_image(reference: Any) -> Image.Image:
    """Decode the picture behind a reference, in RGB and upright.

    Raises:
        ValueError: there is no such picture, or it cannot be decoded; the message names it.
    """
    if isinstance(reference, str) and reference.startswith(ROW_PREFIX):
        return open_image(undecoded_picture(reference), f"picture {reference}")
    return open_image(reference, "picture")


def undecoded_picture(reference: str) -> dict[str, Any]:
    """The undecoded cell that a `row:` reference names."""
    fingerprint, row, slot = reference.removeprefix(ROW_PREFIX).rsplit(":", 2)
    if fingerprint not in _KEPT:
        raise ValueError(f"picture {reference} belongs to a dataset that this process has not loaded")
    cells = _KEPT[fingerprint]
    cell = cells[int(row)][cells.column_names[0]]
    return cell[int(slot)] if isinstance(cell, list) else cell
