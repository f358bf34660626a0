"""Where the tasks get their documents: one option, `data_root`, for official files, Parquet and the Hub.

    instructblip-eval --tasks instructblip_vqa_rad --metadata data_root=/data       # official files in /data/vqa_rad
    instructblip-eval --tasks instructblip_vqa_rad --metadata data_root=/parquet    # our Parquet in /parquet/vqa_rad
    instructblip-eval --tasks instructblip_vqa_rad --metadata data_root=ORG/vqa_rad # our Parquet, or a copy, on the Hub

Rows are grouped by picture (`instructblip.datasets_builders`); documents are single questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets

from instructblip.datasets_builders import load
from instructblip.eval_tasks.images import keep_rows

_DOCUMENTS: dict[str, datasets.Dataset] = {}  # fingerprint of the rows -> documents: lm-eval asks for them five times


def load_rows(dataset: str, splits: Sequence[str] = (), data_root: str | None = None, **_: Any) -> datasets.DatasetDict:
    """Load a dataset (lm-eval's `custom_dataset`, which also passes all of the task's and the run's metadata).

    Args:
        dataset: a name that `instructblip.datasets_builders.load` knows.
        splits: only these, so that the pictures of others need not be there. Default: all.
        data_root: a folder with the official files, or with Parquet files or a `save_to_disk` folder of our rows; or
            the folder above it, whose subfolder is named like the dataset; or, where no such folder exists, a Hub id of
            our rows or of a copy that the table of datasets describes.

    Raises:
        ValueError: `data_root` is missing.
        FileNotFoundError: it is neither a folder nor shaped like a Hub id.
    """
    if not data_root:
        raise ValueError(
            f"where is {dataset}? Pass `--metadata data_root=FOLDER` (or task_manager(data_root=FOLDER)): its official "
            "files, our Parquet, or a Hub id"
        )
    folder = Path(data_root).expanduser()
    if (folder / dataset).is_dir():
        folder = folder / dataset
    if folder.is_dir():
        return load(dataset, data_dir=str(folder), splits=tuple(splits))
    if folder.is_absolute() or str(data_root).count("/") != 1:
        raise FileNotFoundError(f"data_root {data_root} is neither a folder nor a Hub id such as ORG/{dataset}")
    return load(dataset, repo_id=str(data_root), splits=tuple(splits))


def one_document_per_question(rows: datasets.Dataset) -> datasets.Dataset:
    """Flatten grouped rows (lm-eval's `process_docs`), without reading a picture.

    Returns:
        One document per sample: the sample's fields, `image_id`, and `images`: references for `images.read_image`.

    Raises:
        ValueError: the rows are not grouped samples.
    """
    if rows._fingerprint in _DOCUMENTS:
        return _DOCUMENTS[rows._fingerprint]
    if "samples" not in rows.column_names:
        raise ValueError(f"the rows have the columns {rows.column_names}: expected grouped rows with `samples`")
    references = keep_rows(rows)
    texts = rows.select_columns(["image_id", "samples"])
    documents = [
        {**sample, "image_id": row["image_id"], "images": pictures}
        for row, pictures in zip(texts, references, strict=True)
        for sample in row["samples"]
    ]
    _DOCUMENTS[rows._fingerprint] = datasets.Dataset.from_list(documents)
    return _DOCUMENTS[rows._fingerprint]
