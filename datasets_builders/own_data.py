"""Your own data as rows of our schema, whichever of the common forms it has.

rows = load_own("data/train.jsonl")
rows = load_own("photos")                                             # a folder with metadata.jsonl
rows = load_own("llava_instruct.json", image_dir="coco/train2017")
rows = load_own("HuggingFaceM4/the_cauldron", config="ai2d", split="train", streaming=True)
train = InstructionDataset(rows, "mine")
"""

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import datasets

from .official_files import BadRowError, existing_folders
from .own_columns import convert
from .own_files import annotation_files, image_place, mentions_several_images, read_records, stem_of
from .own_records import Reading, read_record
from .schema import BuilderConfig, InstructionBuilder, Record
from .table import TABLE

KINDS_OF_SOURCES = """Expected one of
  a JSON, JSON-lines or CSV file of records (.json, .jsonl, .csv, .tsv, also with .gz);
  a folder with metadata.jsonl or metadata.csv beside its images, or with files named train, validation and test;
  a folder of Parquet files, a Parquet file, or a folder written by save_to_disk;
  a dataset on the Hub, as "owner/name";
  a datasets.Dataset, DatasetDict or a stream of one"""


@dataclasses.dataclass
class OwnConfig(BuilderConfig):
    """`BuilderConfig`, and what a user says of the files."""

    files: tuple[tuple[str, str], ...] = ()  # (split, annotation file relative to data_dir)
    columns: tuple[tuple[str, str | None], ...] = ()  # see `own_records.Reading`
    history: bool | None = None  # see `own_records.Reading`


class OwnFiles(InstructionBuilder):
    """JSON, JSON-lines and CSV files of the forms that `own_records` knows.

    Rows have `images` where a file has a list of them, else `image`; None where there is text alone. Sample ids are
    `folder/file/row`, or the record's `id` in the row's place; image ids are the files' names behind a number that
    stands for their folder, since batches take images of one id for the same.
    """

    BUILDER_CONFIG_CLASS = OwnConfig

    @property
    def called(self) -> str:
        files = [name for _, name in self.config.files]
        return os.path.join(self.config.data_dir, *(files if len(files) == 1 else []))

    def annotation_files(self) -> dict[str, list[str]]:
        return {split: [name] for split, name in self.config.files}

    def image_folders(self, split: str) -> list[str]:
        return self.config.folders(os.path.dirname(dict(self.config.files)[split]))  # else beside the annotation file

    def _create_builder_config(self, config_name=None, custom_features=None, config_id=None, **config_kwargs):
        made = super()._create_builder_config(config_name, custom_features, config_id, **config_kwargs)
        self.reading = Reading(self.config.columns, self.config.history)
        files = [path for paths in self.split_files().values() for path in paths]
        self.several_images = any(mentions_several_images(path, self.reading) for path in files)
        return made

    def read(self, split: str, file: str) -> Iterator[Record | BadRowError]:
        folders = self.image_folders(split)
        prefix = f"{os.path.basename(self.config.data_dir)}/{stem_of(os.path.relpath(file, self.config.data_dir))}"
        for row, record in read_records(file, self.reading):
            if isinstance(record, BadRowError):
                yield record
                continue
            try:
                examples = read_record(record, self.reading, str(row), prefix)
                places = [[image_place(folders, image) for image in example.images] for example in examples]
                if not self.several_images and any(len(place) > 1 for place in places):
                    raise ValueError("several images, in a file where no list of images was found")
            except ValueError as error:
                yield BadRowError(file, row, str(error))
                continue
            for example, place in zip(examples, places, strict=True):
                paths = [path for path, _ in place]
                # Text alone has an id of its own, or batches would take its absent image for another's.
                image_id = "+".join(image_id for _, image_id in place) or f"{prefix}/{row}"
                image = paths if self.several_images else next(iter(paths), None)
                yield Record(file, row, image_id, image, example.sample)

    def _pixels(self, image: str | bytes | None) -> Any:
        return None if image is None else super()._pixels(image)


def load_own(
    source: Any,
    image_dir: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
    split: str | None = None,
    config: str | None = None,
    columns: Mapping[str, str | None] | None = None,
    history: bool | None = None,
    on_bad: Literal["raise", "skip"] = "raise",
    verify_images: bool = True,
    streaming: bool = False,
    num_proc: int | None = None,
    cache_dir: str | os.PathLike | None = None,
    **options: Any,
):
    """Rows of our schema, one per image, from a user's own data. What form the records have is seen from their keys.

    Args:
        source: an annotation file; a folder with one, or with Parquet files, or written by `save_to_disk`; a dataset
            on the Hub, "owner/name"; or a dataset of the library `datasets`.
        image_dir: folder, or folders, that the image paths in annotation files are relative to, and may not lead out
            of. None: the folder of the file.
        split: "train", also "train[:10%]". A single file is the split "train".
        config: of a dataset on the Hub.
        columns: our field -> its name in the data, where they differ: {"question": "query"}. None for the name: the
            data have no such field, whatever looks like one.
        history: whether the turns before a turn become its history. None: in `conversations` and `messages`, and not in
            `texts` (the_cauldron, FineVision), which mostly hold unrelated questions about one image.
        on_bad: "skip" leaves out records and images that cannot be used, counts them, and shows the first.
        verify_images: decode each image once, so that a broken one is found now.
        streaming: read as it goes, with nothing built or cached.
        num_proc: processes that build.
        options: further fields of `schema.BuilderConfig` for annotation files, such as `embed_images=True`.

    Returns:
        Dataset, or IterableDataset when streaming; a dict of them where there are several splits and none is asked for.
        Each sample has the tag "task": "vqa", "multiple_choice", "caption", or "chat" for texts to be used as they are.

    Raises:
        ValueError: nothing that can be read; says what was found and what can be.
        BadRowError: a record or image that cannot be used; names file, row and key.
    """
    reading = Reading(tuple(dict(columns or {}).items()), history)
    if on_bad not in ("raise", "skip"):
        raise ValueError(f"on_bad={on_bad!r}: expected 'raise' or 'skip'")
    if isinstance(source, (str, os.PathLike)):
        source = os.fspath(source)
        folder, files = find_files(source)
        if files:
            builder = OwnFiles(
                data_dir=folder,
                files=tuple(sorted(files.items())),
                image_dirs=() if image_dir is None else existing_folders(image_dir),
                columns=reading.columns,
                history=history,
                on_bad=on_bad,
                verify_images=verify_images,
                splits=tuple(_split_names(split)),
                cache_dir=cache_dir,
                **options,
            )
            if streaming:
                return _only(builder.as_streaming_dataset(split))
            builder.download_and_prepare(num_proc=num_proc)
            return _only(builder.as_dataset(split=split))
    if image_dir is not None or options:
        name = "image_dir" if image_dir is not None else next(iter(options))
        raise TypeError(f"{name}= is for annotation files that name their images, and {source!r} holds them")
    name, found = open_dataset(source, split, config, streaming, cache_dir)
    settings = {"on_bad": on_bad, "verify_images": verify_images, "num_proc": num_proc}
    settings["trust_paths"] = not isinstance(source, str) or _is_saved(source)
    if not isinstance(found, dict):
        return convert(found, f"{name}/{found.split}" if found.split else name, reading, **settings)
    parts = {key: convert(part, f"{name}/{key}", reading, **settings) for key, part in found.items()}
    return _only(type(found)(parts))


def find_files(source: str) -> tuple[str, dict[str, str]]:
    """(folder, split -> annotation file in it) of a path; no files where it holds datasets, or is an id on the Hub.

    Raises:
        FileNotFoundError: neither a path nor an id.
        ValueError: a file or folder with nothing that can be read, or with more than one thing.
    """
    if os.path.isdir(source):
        if _is_saved(source):
            return source, {}
        files = annotation_files(source)
        if files or any(name.endswith(".parquet") for _, _, names in os.walk(source) for name in names):
            return source, files
        found = sorted(os.listdir(source))
        shown = ", ".join(found[:8]) + (", ..." if len(found) > 8 else "") or "nothing"
        raise ValueError(f"{source} holds {shown}: no annotation file and no Parquet file.\n{KINDS_OF_SOURCES}")
    if os.path.isfile(source):
        if source.lower().endswith(".parquet"):
            return source, {}
        folder, name = os.path.split(os.path.abspath(source))
        if stem_of(name) == name:
            raise ValueError(f"{source} is no file that can be read, by its name.\n{KINDS_OF_SOURCES}")
        return folder, {"train": name}
    if stem_of(source) != source or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):
        hint = f" There is a builder for {source}: load({source!r}, ...)." if source in TABLE else ""
        raise FileNotFoundError(f"there is no {source}, seen from {os.getcwd()}.{hint}\n{KINDS_OF_SOURCES}")
    return source, {}


def open_dataset(
    source: Any, split: str | None, config: str | None, streaming: bool, cache_dir: str | os.PathLike | None
) -> tuple[str, Any]:
    """(name, dataset, or dict of them) with the columns as they are."""
    if isinstance(source, str) and not (os.path.isdir(source) and _is_saved(source)):
        options = {"split": split, "streaming": streaming, "cache_dir": cache_dir}
        if os.path.isfile(source):
            name = os.path.basename(source).removesuffix(".parquet")
            return name, datasets.load_dataset("parquet", data_files={"train": source}, **options)
        name = os.path.basename(os.path.abspath(source)) if os.path.isdir(source) else source
        return f"{name}/{config}" if config else name, datasets.load_dataset(source, config, **options)
    name = os.path.basename(os.path.abspath(source)) if isinstance(source, str) else "own"
    found = datasets.load_from_disk(source) if isinstance(source, str) else source
    kinds = (datasets.Dataset, datasets.DatasetDict, datasets.IterableDataset, datasets.IterableDatasetDict)
    if not isinstance(found, kinds):
        raise TypeError(f"source is a {type(source).__name__}.\n{KINDS_OF_SOURCES}")
    if split is not None and isinstance(found, dict):
        if split not in found:
            raise ValueError(f"{name}: no split {split!r}: there are {', '.join(found)}")
        found = found[split]
    if streaming and isinstance(found, datasets.DatasetDict):
        found = datasets.IterableDatasetDict({key: part.to_iterable_dataset() for key, part in found.items()})
    elif streaming and isinstance(found, datasets.Dataset):
        found = found.to_iterable_dataset()
    return name, found


def _is_saved(folder: str) -> bool:
    """Whether `save_to_disk` wrote it."""
    return any(os.path.isfile(os.path.join(folder, name)) for name in ("state.json", "dataset_dict.json"))


def _split_names(split: str | None) -> list[str]:
    return [] if split is None else list(dict.fromkeys(part.split("[")[0].strip() for part in split.split("+")))


def _only(found: Any) -> Any:
    """The one split where there is one, so that a file is a dataset and not a dict of one."""
    return next(iter(found.values())) if isinstance(found, dict) and len(found) == 1 else found
