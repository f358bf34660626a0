"""The one call that gives a dataset of the table."""

import importlib
from typing import Any

from .schema import InstructionBuilder
from .table import TABLE


def builder(name: str, data_dir: str, config: str | None = None, **options: Any) -> InstructionBuilder:
    """The builder of a dataset, ready to build or stream.

    Args:
        name: a dataset of `table.TABLE`.
        data_dir: the folder with the official files.
        config: a variant that the builder names; None takes its default.
        options: fields of the builder's config (`on_bad="skip"`, `image_dirs=...`), and `cache_dir`.

    Raises:
        ValueError: an unknown dataset, config or option.
        FileNotFoundError: `data_dir` lacks the annotation files.
    """
    if name not in TABLE:
        raise ValueError(f"no dataset {name!r}: there are {', '.join(TABLE)}")
    source = TABLE[name].source
    module = importlib.import_module(f".{source.name}", __package__)
    return getattr(module, source.builder)(config_name=config or TABLE[name].config, data_dir=data_dir, **options)


def load(
    name: str,
    data_dir: str,
    config: str | None = None,
    split: str | None = None,
    streaming: bool = False,
    num_proc: int | None = None,
    **options: Any,
):
    """Rows of a dataset from its official files, one per image.

    With a `split` only that split is built, so the images of the others need not be there.

    Args:
        name, data_dir, config, options: as for `builder`.
        split: "train", also "train[:10%]" and "train+test"; None gives all in a dict.
        streaming: an `IterableDataset` that reads the files as it goes, with nothing built or cached.
        num_proc: processes that build; at most `InstructionBuilder.SHARDS`.

    Returns:
        Dataset, DatasetDict, IterableDataset or IterableDatasetDict.

    Raises:
        BadRowError: a row or image that cannot be used; `on_bad="skip"` leaves it out and counts it.
    """
    if split is not None and "splits" not in options:
        options["splits"] = tuple(dict.fromkeys(part.split("[")[0].strip() for part in split.split("+")))
    made = builder(name, data_dir, config, **options)
    if streaming:
        return made.as_streaming_dataset(split)
    made.download_and_prepare(num_proc=num_proc)
    return made.as_dataset(split=split)
