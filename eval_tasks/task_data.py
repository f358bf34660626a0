"""Where the tasks get their documents: one option, `data_root`, for official files, Parquet and the Hub.

    instructblip-eval --tasks instructblip_heldout --metadata data_root=/data      # official files in /data/gqa, ...
    instructblip-eval --tasks instructblip_heldout --metadata data_root=/parquet   # our Parquet in /parquet/gqa, ...
    instructblip-eval --tasks instructblip_heldout --metadata data_root=ORG/REPO   # our Parquet on the Hub
    instructblip-eval --tasks instructblip_gqa --metadata data_root=lmms-lab/GQA   # a copy on the Hub that we know
    instructblip-eval --tasks instructblip_gqa --metadata data_root=hub            # the first such copy of each dataset

Rows are grouped by picture (`instructblip.datasets_builders`); documents are single questions.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from datasets.table import InMemoryTable

from instructblip.datasets_builders import builder, load
from instructblip.datasets_builders.loading import default_config, holds_rows, known_copies
from instructblip.datasets_builders.official_files import BadRowError
from instructblip.datasets_builders.table import TABLE
from instructblip.datasets_builders.templates import FIELDS
from instructblip.eval_tasks.images import keep_rows

HUB = "hub"  # as `data_root`: the first known copy of each dataset
MOST_LETTERED = 26  # choices that (a) to (z) can name
RENDERED_AT_ONCE = 1000  # samples
_DOCUMENTS: dict[str, datasets.Dataset] = {}  # fingerprint of the rows -> documents: lm-eval asks for them five times


def load_rows(
    dataset: str,
    splits: Sequence[str] = (),
    config: str | None = None,
    answers_of: str | None = None,
    data_root: str | None = None,
    image_dirs: Any = None,
    **_: Any,
) -> datasets.DatasetDict:
    """Load a dataset (lm-eval's `custom_dataset`, which also passes all of the task's and the run's metadata).

    Args:
        dataset: a name that `instructblip.datasets_builders.load` knows.
        splits: only these, so that the pictures of others need not be there. Default: all.
        config: the dataset's variant. Default: the one that the table of datasets names.
        answers_of: one more split, whose answers are ranked; of official files it has nothing else, and its pictures
            need not be there.
        data_root: a folder with the official files, or with Parquet files or a `save_to_disk` folder of our rows; or
            the folder above it, whose subfolder is named like the dataset (or, of a variant that is not the default,
            `pope_popular`); or, where no such folder exists, a Hub id of our rows or of a copy that the table of
            datasets describes; or "hub".
        image_dirs: folders with the pictures, where official files or a copy on the Hub lack them: one, several with
            ":" between, a list, or a mapping from the dataset to these, which leaves other datasets alone.

    Raises:
        ValueError: `data_root` is missing, or what it names does not have the dataset.
        FileNotFoundError: it is neither a folder nor shaped like a Hub id, or lacks the dataset's files.
    """
    if not data_root:
        raise ValueError(
            f"where is {dataset}? Pass `--metadata data_root=FOLDER` (or task_manager(data_root=FOLDER)): its official "
            "files, our Parquet, or a Hub id; `data_root=hub` takes known copies on the Hub"
        )
    images = {"image_dirs": folders} if (folders := _image_folders(dataset, image_dirs)) else {}
    is_variant = dataset in TABLE and config not in (None, default_config(TABLE[dataset]))
    variant = f"{dataset}_{config}" if is_variant else dataset  # its folder, and its config in a repository of ours
    data_root = str(data_root)
    root = Path(data_root).expanduser()
    folder = next((root / name for name in (variant, dataset) if (root / name).is_dir()), root)
    if folder == root and root.is_dir():
        _check_not_of_others(dataset, root)
    wanted = (*splits, answers_of) if splits and answers_of else tuple(splits)
    if folder.is_dir() and (holds_rows(str(folder / dataset)) or holds_rows(str(folder)) or dataset not in TABLE):
        return load(dataset, data_dir=str(folder), config=config, splits=wanted)
    if folder.is_dir():
        rows = load(dataset, data_dir=str(folder), config=config, splits=tuple(splits), **images)
        if answers_of:
            rows[answers_of] = _answers(dataset, str(folder), config, answers_of)
        return rows
    if data_root == HUB:
        _check_copies(dataset, config, wanted)
        return load(dataset, config=config, splits=wanted, **images)
    if root.is_absolute() or data_root.count("/") != 1:
        raise FileNotFoundError(
            f"{dataset}: data_root {data_root} is neither a folder, nor a Hub id such as ORG/{dataset}, nor {HUB!r}"
        )
    if is_variant and not known_copies(dataset, data_root, config):
        config = _published_variant(data_root, dataset, config, variant)
    return load(dataset, repo_id=data_root, config=config if is_variant else None, splits=wanted, **images)


def _published_variant(repo_id: str, dataset: str, config: str, variant: str) -> str:
    """The Hub config with a variant of a dataset: of our Parquet `pope_popular`; else a copy's, by the variant's name.

    Raises:
        ValueError: our Parquet is there, but not of this variant, or nobody can tell of which.
    """
    there = datasets.get_dataset_config_names(repo_id)
    if variant not in there and dataset in there:
        raise ValueError(
            f"{repo_id} has no Hub config {variant}, as rows of the variant {config} of {dataset} are called there; it "
            f"has {', '.join(there)}. Push them under that name, or pass a folder with the official files"
        )
    return variant if variant in there else config


def _check_not_of_others(dataset: str, root: Path) -> None:
    """Whether a folder may hold this dataset itself.

    Raises:
        FileNotFoundError: it is one with a folder for each dataset, and none for this one.
    """
    others = sorted(place.name for place in root.iterdir() if place.is_dir() and place.name in TABLE)
    if others and not any(root.glob("*.parquet")):
        raise FileNotFoundError(
            f"{dataset}: data_root {root} has folders for {', '.join(others)} and none called {dataset}: put its "
            "official files or our Parquet there, or leave its tasks out"
        )


def _image_folders(dataset: str, image_dirs: Any) -> tuple[str, ...]:
    """The folders that `image_dirs` names for this dataset; none where it names other datasets only.

    Raises:
        ValueError: it is neither a string, a list of them, nor a mapping to these.
    """
    if isinstance(image_dirs, Mapping):
        image_dirs = image_dirs.get(dataset)
    if isinstance(image_dirs, str):
        image_dirs = image_dirs.split(os.pathsep)
    if image_dirs is None:
        return ()
    if not isinstance(image_dirs, (list, tuple)) or not all(isinstance(folder, str) for folder in image_dirs):
        raise ValueError(
            f'image_dirs {image_dirs!r}: expected a folder, a list of them, or {{"{dataset}": [FOLDER]}} in JSON'
        )
    return tuple(image_dirs)


def _answers(dataset: str, folder: str, config: str | None, split: str) -> datasets.Dataset:
    """What people answered in a split of official files, as rows with nothing but that."""
    made = builder(dataset, folder, config, splits=(split,))
    answers = []
    for file in made.split_files()[split]:
        for record in made.read(split, file):
            if isinstance(record, BadRowError):
                raise record
            answers.append([{"answers": record.sample["answers"]}])
    return datasets.Dataset.from_dict({"samples": answers})


def _check_copies(dataset: str, config: str | None, splits: Sequence[str]) -> None:
    """Whether the Hub has known copies of all splits.

    Raises:
        ValueError: it has not; names all the datasets of the paper without one.
    """
    if dataset in TABLE and _splits_on_hub(dataset, config) >= set(splits) and known_copies(dataset, None, config):
        return
    without = [
        name
        for name, spec in TABLE.items()
        if spec.role != "extra" and not spec.rows_from and not known_copies(name, None, None)
    ]
    lacks = ", ".join(sorted(set(splits) - _splits_on_hub(dataset, config))) if dataset in TABLE else ""
    how = f" {TABLE[dataset].access}" if dataset in TABLE else ""
    raise ValueError(
        f"data_root={HUB}: no copy of {dataset}{f' with split {lacks}' if lacks else ''} on the Hub is known, nor of "
        f"{', '.join(without)}. Leave such tasks out, or get the official files and pass their folder.{how}"
    )


def _splits_on_hub(dataset: str, config: str | None) -> set[str]:
    return {split for copy in known_copies(dataset, None, config) for split in copy.splits}


def one_document_per_question(rows: datasets.Dataset) -> datasets.Dataset:
    """Flatten grouped rows (lm-eval's `process_docs`), without reading a picture.

    Returns:
        One document per sample: the sample's fields, `image_id`, `images` (references for `images.read_image`), and
        texts for prompts, all as in `templates.format_instruction`: `options` ("(a) blue (b) yellow"; "" without
        choices, or with more than there are letters), `history_text` and `ocr_text`.

    Raises:
        ValueError: the rows are not grouped samples.
    """
    if rows._fingerprint in _DOCUMENTS:
        return _DOCUMENTS[rows._fingerprint]
    if not {"image_id", "samples"} <= set(rows.column_names):
        raise ValueError(f"the rows have the columns {rows.column_names}: expected grouped rows with `samples`")
    references = pa.array(keep_rows(rows), pa.list_(pa.string()))
    table = rows.select_columns(["image_id", "samples"]).with_format("arrow")[:].combine_chunks()
    grouped = table["samples"].combine_chunks()
    row_of = pc.list_parent_indices(grouped)  # of each sample
    samples = grouped.flatten()
    columns = dict(zip((field.name for field in samples.type), samples.flatten(), strict=True))
    columns["image_id"] = table["image_id"].combine_chunks().take(row_of)
    columns["images"] = references.take(row_of)
    columns |= {name: pa.array(texts, pa.string()) for name, texts in _rendered(samples).items()}
    documents = datasets.Dataset(InMemoryTable(pa.table(columns)), fingerprint=f"{rows._fingerprint}-documents")
    _DOCUMENTS[rows._fingerprint] = documents
    return documents


def _rendered(samples: pa.Array) -> dict[str, list[str]]:
    """The texts that prompts place, for each sample."""
    texts: dict[str, list[str]] = {"options": [], "history_text": [], "ocr_text": []}
    for sample in _one_by_one(samples):
        few = len(sample["choices"]) <= MOST_LETTERED
        texts["options"].append(FIELDS["options"](sample) if few else "")
        texts["history_text"].append(FIELDS["history"](sample))
        texts["ocr_text"].append(FIELDS["ocr_tokens"](sample))
    return texts


def _one_by_one(samples: pa.Array) -> Iterator[dict[str, Any]]:
    """Samples as Python objects, never all of them at once."""
    for start in range(0, len(samples), RENDERED_AT_ONCE):
        yield from samples.slice(start, RENDERED_AT_ONCE).to_pylist()
