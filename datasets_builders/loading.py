"""The one call that gives a dataset of the table, from its official files, a copy on the Hub, or our own Parquet."""

import dataclasses
import glob
import importlib
import os
import re
from collections.abc import Sequence
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from .hub_copies import HubCopy
from .hub_rows import CopyReader, copies_of_splits
from .official_files import existing_folders
from .schema import InstructionBuilder
from .sharded_building import read_build
from .table import TABLE, DatasetSpec

COLUMNS = ("image", "images", "image_id", "samples")
COPY_OPTIONS = tuple(field.name for field in dataclasses.fields(CopyReader) if field.name not in ("dataset", "copy"))
PARQUET_OPTIONS = ("cache_dir", "revision", "token")


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
    spec = _spec(name)
    cls = builder_class(spec)
    fields = [field.name for field in dataclasses.fields(cls.BUILDER_CONFIG_CLASS)]
    own = [field for field in fields if field not in ("name", "version", "data_dir", "data_files", "description")]
    _check_options(f"the official files of {name}", options, [*own, "cache_dir"])
    return cls(config_name=config or spec.config, data_dir=data_dir, **options)


def load(
    name: str,
    data_dir: str | None = None,
    config: str | None = None,
    split: str | None = None,
    streaming: bool = False,
    num_proc: int | None = None,
    repo_id: str | None = None,
    splits: Sequence[str] = (),
    **options: Any,
):
    """Rows of a dataset, one per image, the same from each of three sources.

    - Official files, in `data_dir`. With a `split` only that split is built, so the images of the others need not be
      there.
    - A copy on the Hub that an entry of `table.TABLE` describes: the one in `repo_id`, or with neither `data_dir` nor
      `repo_id` the first that has the split.
    - Our own Parquet: what `push` put into `repo_id`, or what a build wrote into `data_dir`. Then `name` may be any.

    Args:
        name: a dataset of `table.TABLE`; of our Parquet, the name it was pushed or built under.
        config: a variant that the builder names; of our Parquet on the Hub, the Hub config, where it is not `name`.
        split: "train", also "train[:10%]" and "train+test"; None gives all in a dict.
        streaming: an `IterableDataset` that reads as it goes. Nothing is built or cached. From a copy on the Hub with
            one row a question, only neighbours that show the same image become one row.
        num_proc: processes that build or download.
        splits: with no `split`, only these.
        options: for official files fields of the builder's config (`on_bad="skip"`, `image_dirs=...`) and `cache_dir`;
            for a copy on the Hub `on_bad`, `verify_images`, `image_dirs`, `cache_dir`, `revision` and `token`; for our
            Parquet the last three.

    Returns:
        Dataset, DatasetDict, IterableDataset or IterableDatasetDict.

    Raises:
        BadRowError: a row or image that cannot be used; `on_bad="skip"` leaves it out and counts it.
        ValueError: an unknown dataset, config, split or option, or no source.
        FileNotFoundError: `data_dir` is not there, or holds neither official files nor our Parquet.
    """
    if data_dir is not None and repo_id is not None:
        raise ValueError(f"data_dir={data_dir!r} and repo_id={repo_id!r}: expected one source")
    wanted = (split, tuple(splits), streaming, num_proc)
    if data_dir is not None:
        folder = os.path.expanduser(data_dir)
        if not os.path.isdir(folder):
            raise FileNotFoundError(f"data_dir: there is no folder {folder}, seen from {os.getcwd()}")
        built = next((place for place in (os.path.join(folder, name), folder) if holds_rows(place)), None)
        if built is None and (name in TABLE or not _parquet_files(folder)):
            return _load_official(name, folder, config, *wanted, **options)
        return _load_folder(name, built or folder, config, *wanted, **options)
    copies = known_copies(name, repo_id, config)
    if not copies and repo_id is not None:
        published = _published_config(name, repo_id, config, options)
        if published is not None:
            return _load_published(repo_id, published, *wanted, **options)
        copies = _mirrored_copies(name, repo_id, config)
    return _load_copies(name, copies, repo_id, *wanted, **options)


def _spec(name: str) -> DatasetSpec:
    if name not in TABLE:
        raise ValueError(f"no dataset {name!r}: there are {', '.join(TABLE)}")
    return TABLE[name]


def builder_class(spec: DatasetSpec) -> type[InstructionBuilder]:
    source = spec.source
    return getattr(importlib.import_module(f".{source.name}", __package__), source.builder)


def default_config(spec: DatasetSpec) -> str:
    """The config of the dataset's builder that is built where none is asked for."""
    return spec.config or builder_class(spec).DEFAULT_CONFIG_NAME or "default"


def _split_names(split: str) -> tuple[str, ...]:
    """The splits in "train[:10%]+test"."""
    return tuple(dict.fromkeys(part.split("[")[0].strip() for part in split.split("+")))


def _check_options(source: str, options: dict[str, Any], known: Sequence[str]) -> None:
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ValueError(f"no option {unknown[0]!r} for {source}: there are {', '.join(known)}")


def _load_official(name, data_dir, config, split, splits, streaming, num_proc, **options):
    made = builder(name, data_dir, config, splits=_split_names(split) if split else splits, **options)
    if streaming:
        return made.as_streaming_dataset(split)
    made.download_and_prepare(num_proc=num_proc)
    return made.as_dataset(split=split)


def holds_rows(folder: str) -> bool:
    """Whether a folder holds our rows, as Parquet files in it or just below, or as `save_to_disk` leaves them."""
    if any(os.path.isfile(os.path.join(folder, name)) for name in ("dataset_dict.json", "state.json")):
        return True
    return any(_is_of_rows(path) for path in _parquet_files(folder))


def _is_of_rows(path: str) -> bool:
    """Whether a Parquet file is one of ours: official downloads may have others, as img2dataset writes beside tars."""
    try:
        return {"image_id", "samples"} <= set(pq.read_schema(path).names)
    except (OSError, pa.ArrowInvalid):
        return False


def _load_folder(name, folder, config, split, splits, streaming, num_proc, **options):
    _check_options(f"the rows in {folder}", options, ("cache_dir",))
    _check_build(name, folder, config)
    if not _parquet_files(folder):
        return _our_columns(_saved_rows(folder, split, splits, streaming), folder)
    files: dict[str, list[str]] = {}
    names = [name, TABLE[name].source.name] if name in TABLE else [name]
    for path in _parquet_files(folder):
        stem = os.path.basename(path)
        for each in names:
            stem = stem.removeprefix(f"{each}-")
        found = re.fullmatch(r"(\w+?)(-\d{5}(-of-\d{5}|-[0-9a-f]{16})?)?\.parquet", stem)
        if found is None:
            raise ValueError(f"{path}: expected a name such as train-00000-of-00004.parquet, which tells the split")
        files.setdefault(found[1], []).append(path)
    if len({os.path.dirname(path) for paths in files.values() for path in paths}) > 1:
        raise ValueError(f"{folder} has several folders with Parquet files, and none is called {name}: pass one")
    wanted = _split_names(split) if split else tuple(splits or files)
    missing = [each for each in wanted if each not in files]
    if missing:
        raise ValueError(f"{folder} has no split {missing[0]!r}: it has {', '.join(files)}")
    data_files = {each: files[each] for each in wanted}
    kwargs = {"data_files": data_files, "split": split, "streaming": streaming, **options}
    if not streaming:
        kwargs["num_proc"] = num_proc
    return _our_columns(datasets.load_dataset("parquet", **kwargs), folder)


def _saved_rows(folder: str, split: str | None, splits: Sequence[str], streaming: bool):
    """What `save_to_disk` wrote."""
    rows = datasets.load_from_disk(folder)
    rows = rows if isinstance(rows, datasets.DatasetDict) else datasets.DatasetDict({str(rows.split): rows})
    if streaming or (split is not None and split not in rows):
        raise ValueError(f"{folder} was written by save_to_disk: load a whole split, without streaming")
    return rows[split] if split else _some_splits(rows, splits)


def _check_build(name: str, folder: str, config: str | None) -> None:
    """Whether what a build wrote into `folder` are the rows that are meant.

    Raises:
        ValueError: rows of another dataset, or of another config.
    """
    built = read_build(folder)
    if built is None:  # written by other means, which do not say what it is
        return
    if name in TABLE and built["dataset"] != TABLE[name].source.name:
        raise ValueError(f"{folder} holds rows of {built['dataset']}, not of {name}")
    if name in TABLE and TABLE[name].rows_from:
        config = config or default_config(TABLE[name])
    if config not in (None, built["config"]):
        raise ValueError(f"{folder} holds rows of the config {built['config']}, not of {config}: build them")


def _parquet_files(folder: str) -> list[str]:
    folder = glob.escape(folder)
    return sorted(glob.glob(os.path.join(folder, "*.parquet"))) or sorted(glob.glob(f"{folder}/*/*.parquet"))


def _our_columns(rows, source: str):
    """Without what publishing added.

    Raises:
        ValueError: rows of another schema.
    """
    is_dict = isinstance(rows, (datasets.DatasetDict, datasets.IterableDatasetDict))
    for part in rows.values() if is_dict else [rows]:
        if part.features is not None and not {"image_id", "samples"} <= part.features.keys():
            raise ValueError(f"{source} has the columns {', '.join(part.features)}: expected image_id and samples")
    features = (next(iter(rows.values())) if is_dict else rows).features or {}
    extra = [column for column in features if column not in COLUMNS]
    return rows.remove_columns(extra) if extra else rows


def _some_splits(rows, splits: Sequence[str]):
    missing = [split for split in splits if split not in rows]
    if missing:
        raise ValueError(f"no split {missing[0]!r}: there are {', '.join(rows)}")
    return type(rows)({split: rows[split] for split in splits}) if splits else rows


def _published_config(name: str, repo_id: str, config: str | None, options: dict[str, Any]) -> str | None:
    """The config of `repo_id` with rows of ours that is meant; None where it holds something else."""
    access = {key: options[key] for key in ("revision", "token") if key in options}
    configs = datasets.get_dataset_config_names(repo_id, **access)
    meant = [config] if config else [name]
    if name in TABLE and default_config(TABLE[name]) == default_config(TABLE[name].source):
        meant.append(TABLE[name].source.name)  # the same rows, asked about in another way
    found = next((each for each in meant if each in configs), None)
    if found is None and len(configs) == 1 and config is None and configs[0] not in TABLE:
        found = configs[0]
    if found is None:
        return None
    features = next(iter(datasets.load_dataset(repo_id, found, streaming=True, **access).values())).features or {}
    return found if {"image_id", "samples"} <= features.keys() else None


def _load_published(repo_id, config, split, splits, streaming, num_proc, **options):
    _check_options(f"our Parquet in {repo_id}", options, PARQUET_OPTIONS)
    if not streaming:
        options["num_proc"] = num_proc
    rows = datasets.load_dataset(repo_id, config, split=split, streaming=streaming, **options)
    return _our_columns(rows if split else _some_splits(rows, splits), repo_id)


def known_copies(name: str, repo_id: str | None, config: str | None) -> list[HubCopy]:
    """The copies in the table that are in `repo_id`, if that is given, and are of the variant `config`."""
    if name not in TABLE:
        if repo_id is None:
            _spec(name)
        return []
    spec = TABLE[name]
    default = default_config(spec)
    variant = config or default
    of_variant = [copy for copy in spec.hub or spec.source.hub if (copy.variant or default) == variant]
    return [copy for copy in of_variant if repo_id in (None, copy.repo)]


def _mirrored_copies(name: str, repo_id: str, config: str | None) -> list[HubCopy]:
    """The known copies of that name, of another owner: they move, and are mirrored."""
    copies = known_copies(name, None, config) if name in TABLE else []
    same = [copy for copy in copies if copy.repo.partition("/")[2] == repo_id.partition("/")[2]]
    if not same:
        known = ", ".join(dict.fromkeys(copy.repo for copy in copies)) or "none"
        raise ValueError(
            f"{name}: {repo_id} holds neither rows of ours (columns image_id and samples) nor a copy that is described "
            f"in the table; described are: {known}"
        )
    return [dataclasses.replace(copy, repo=repo_id) for copy in same]


def _load_copies(name, copies, repo_id, split, splits, streaming, num_proc, **options):
    by_split = dict(copies_of_splits(copies))
    wanted = _split_names(split) if split else splits or tuple(by_split)
    missing = [each for each in wanted if each not in by_split]
    if missing or not by_split:
        what = f"split {missing[0]!r} of {name}" if missing else name
        holds = f"; on the Hub are its splits {', '.join(by_split)}" if by_split else ""
        raise ValueError(
            f"no copy of {what} on {repo_id or 'the Hub'} is known{holds}. "
            f"Get the official files and pass data_dir=. {TABLE[name].access}"
        )
    _check_options("a copy on the Hub", options, COPY_OPTIONS)
    if "image_dirs" in options:
        options["image_dirs"] = existing_folders(options["image_dirs"])
    readers = {each: CopyReader(name, by_split[each], **options) for each in wanted}
    if streaming:
        if split is not None and split not in readers:
            raise ValueError(f"split {split!r}: a stream is of one whole split out of {', '.join(by_split)}")
        streams = {each: reader.stream(each) for each, reader in readers.items()}
        return streams[split] if split else datasets.IterableDatasetDict(streams)
    rows = {each: reader.rows(each, num_proc) for each, reader in readers.items()}
    if split is None:
        return datasets.DatasetDict(rows)
    parts = datasets.ReadInstruction.from_spec(split).to_absolute({each: len(rows[each]) for each in rows})
    sliced = [
        rows[part.splitname].select(range(part.from_ or 0, _end(part.to, rows[part.splitname]))) for part in parts
    ]
    return sliced[0] if len(sliced) == 1 else datasets.concatenate_datasets(sliced)


def _end(stop: int | None, rows: datasets.Dataset) -> int:
    return len(rows) if stop is None else stop
