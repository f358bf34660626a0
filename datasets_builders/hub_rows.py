"""Rows of the schema from copies on the Hub, whose columns `hub_copies` gives a meaning.

Pixels are neither decoded nor copied: text is read first, grouped by image, and put beside the image column as the Hub
sent it.
"""

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Features, Image, List, Value
from datasets.arrow_writer import ArrowWriter

from . import hub_copies, official_files
from .hub_copies import HubCopy, evaluate
from .official_files import BadRowError, check_image, image_path
from .schema import SAMPLE_FEATURES, make_sample, row_features

logger = logging.getLogger(__name__)

BATCH = 1000  # rows of text at a time
STREAM_BATCH = 100  # rows with images at a time; neighbours in it that show one image become one row
SAMPLES = Features({"samples": List(dict(SAMPLE_FEATURES))}).arrow_schema.field("samples").type


@dataclasses.dataclass(frozen=True)
class CopyReader:
    """Reads one copy.

    Args:
        dataset: its name in `table.TABLE`.
        copy: what its columns mean.
        on_bad: "skip" leaves out what cannot be used, and counts it; "raise" stops.
        verify_images: decode each image once; else it is only made sure that there are bytes.
        image_dirs: folders with the images, for copies that only name them.
        cache_dir, revision, token: as for `datasets.load_dataset`.
    """

    dataset: str
    copy: HubCopy
    on_bad: str = "raise"
    verify_images: bool = False
    image_dirs: tuple[str, ...] = ()
    cache_dir: str | None = None
    revision: str | None = None
    token: str | bool | None = None

    def __post_init__(self):
        if self.on_bad not in ("raise", "skip"):
            raise ValueError(f"on_bad={self.on_bad!r}: expected 'raise' or 'skip'")
        if "image_file" in self.copy.columns and not self.image_dirs:
            raise ValueError(
                f"{self.dataset}: {self.copy.repo} only names its images: pass image_dirs=, the folders that hold them"
            )

    def rows(self, split: str, num_proc: int | None = None) -> datasets.Dataset:
        """All rows of a split of ours, grouped by image over the whole split.

        The grouped text is kept in the cache; the images stay in the files that `datasets` keeps.

        Raises:
            BadRowError: a row that cannot be used, with `on_bad="raise"`.
            ValueError: the repository has other columns than the copy is said to have.
        """
        table = self._open(self.copy.config, self.copy.splits[split], num_proc=num_proc)
        self._check_columns(table.column_names, joined=self.copy.image_rows is not None)
        pictures, positions = self._pictures(table, split, num_proc)
        folder = self._cache_folder(table, pictures, split)
        if not os.path.isdir(folder):
            grouping = _Grouping(self, split, pictures, positions)
            grouping.read(table.select_columns(self.copy.text_columns))
            grouping.save(folder)
        skipped = _read_json(os.path.join(folder, "skipped.json"))
        if skipped:
            message = "%s: left out %d bad rows; first: %s; all in %s"
            logger.warning(message, self.copy.file(split), len(skipped), BadRowError(**skipped[0]), folder)
        text = datasets.Dataset.from_file(os.path.join(folder, "text.arrow"), split=split)
        if pictures is None:
            return text
        places = np.load(os.path.join(folder, "places.npy"))
        rows = datasets.concatenate_datasets([pictures, text], axis=1, split=split)
        return rows if len(places) == len(rows) and (np.diff(places) == 1).all() else rows.select(places)

    def stream(self, split: str) -> datasets.IterableDataset:
        """Rows of a split as they come; samples of one image are together where they follow one another.

        A sample id that comes twice is not noticed, and `on_bad="skip"` names what it leaves out in the log.

        Raises:
            ValueError: the copy cannot be streamed, or has other columns than it is said to have.
        """
        copy = self.copy
        if copy.image_rows is not None:
            raise ValueError(
                f"{self.dataset}: {copy.repo} keeps images apart from questions: load it with streaming=False"
            )
        stream = self._open(copy.config, copy.splits[split], streaming=True)
        if stream.features is not None:
            self._check_columns(stream.column_names)
            columns = [*copy.text_columns, *([copy.image_column] if copy.image_column else [])]
            stream = stream.select_columns(list(dict.fromkeys(columns)))
            if copy.image_column:
                undecoded = _undecoded(stream.features[copy.image_column])
                stream = stream.cast_column(copy.image_column, undecoded)
        elif copy.image_column:
            raise ValueError(f"{self.dataset}: {copy.repo} does not say its columns: load it with streaming=False")
        if "_row" in copy.paths and stream.num_shards > 1:
            raise ValueError(
                f"{self.dataset}: {copy.file(split)} comes in {stream.num_shards} files, and its ids are made of row "
                "numbers, which are not known in a stream: load it with streaming=False"
            )
        grouped = stream.map(
            _StreamGrouping(self, split),
            batched=True,
            batch_size=STREAM_BATCH,
            with_indices=True,
            remove_columns=stream.column_names,
        )
        # not as `features` of `map`, which would take the images for decoded ones
        return grouped.cast(row_features("images" in copy.columns))

    def _open(self, config: str | None, split: str, num_proc: int | None = None, streaming: bool = False) -> Any:
        """`split` may be several of theirs, joined by "+"."""
        kwargs = {"cache_dir": self.cache_dir, "revision": self.revision, "token": self.token}
        if not streaming:
            return datasets.load_dataset(self.copy.repo, config, split=split, num_proc=num_proc, **kwargs)
        parts = [part.strip() for part in split.split("+")]
        streams = [
            datasets.load_dataset(self.copy.repo, config, split=part, streaming=True, **kwargs) for part in parts
        ]
        return streams[0] if len(streams) == 1 else datasets.concatenate_datasets(streams)

    def _check_columns(self, columns: Sequence[str], joined: bool = False) -> None:
        needed = [*self.copy.text_columns]
        if self.copy.image_column and not joined:
            needed.append(self.copy.image_column)
        missing = [name for name in needed if name not in columns]
        if missing:
            raise ValueError(
                f"{self.dataset}: {self.copy.repo} has no column {missing[0]!r}, it has {', '.join(columns)}: it is "
                "another dataset, or has changed since it was described in specs/"
            )

    def _pictures(self, table, split: str, num_proc: int | None) -> tuple[datasets.Dataset | None, dict | None]:
        """The image column, one row an image, and which of its rows an image has where they are in another config."""
        copy, positions = self.copy, None
        if copy.image_column is None:
            return None, None
        source, column = table, copy.image_column
        if copy.image_rows is not None:
            rows = copy.image_rows
            source = self._open(rows.config, rows.splits.get(split) or copy.splits[split], num_proc)
            missing = [name for name in (rows.id, column) if name not in source.column_names]
            if missing:
                raise ValueError(f"{self.dataset}: {copy.repo}, config {rows.config}, has no column {missing[0]!r}")
            positions = {key: place for place, key in enumerate(source[rows.id])}
        pictures = source.select_columns([column])
        name = "images" if "images" in copy.columns else "image"
        if column != name:
            pictures = pictures.rename_column(column, name)
        if name == "image" and "." in copy.columns["image"]:
            pictures = _only_images(pictures, copy.file(split))
        wanted = List(Image()) if name == "images" else Image()
        if pictures.features[name] != wanted:
            pictures = pictures.cast_column(name, wanted)
        return pictures, positions

    def _cache_folder(self, table, pictures: datasets.Dataset | None, split: str) -> str:
        """Another folder for other rows, another reading of them, or other code."""
        state = [
            table._fingerprint, pictures and pictures._fingerprint, split, repr(dataclasses.replace(self, token=None)),
        ]  # fmt: skip
        if pictures is None and self.on_bad == "skip":
            state.append(official_files.digest(listed=self.image_dirs))
        sources = [__file__, hub_copies.__file__, official_files.__file__]
        name = official_files.digest(contents=sources, salt="\x1f".join(map(str, state)))
        root = self.cache_dir or datasets.config.HF_DATASETS_CACHE
        return os.path.join(str(root), "instructblip_hub_copies", f"{self.dataset}-{split}-{name}")

    def samples(
        self, record: Mapping[str, Any], row: int, split: str, special: Mapping[str, Any]
    ) -> list[tuple[str, dict[str, Any]]]:
        """(image_id, sample) of each sample of a row.

        Raises:
            BadRowError: it cannot be used.
        """
        try:
            parts = [{**part, **special} for part in self.copy.records(record, row, split)]
            return [(self.copy.image_id(part), make_sample(**self.copy.sample(part))) for part in parts]
        except ValueError as error:
            raise BadRowError(self.copy.file(split), row, str(error)) from error

    def bad(self, error: BadRowError, bad: list[BadRowError]) -> None:
        if self.on_bad == "raise":
            raise error
        bad.append(error)


class _Grouping:
    """The samples of a split by image: text in memory, images only looked at where a copy's mapping asks for it."""

    def __init__(self, reader: CopyReader, split: str, pictures: datasets.Dataset | None, positions: dict | None):
        self.reader, self.split, self.pictures, self.positions = reader, split, pictures, positions
        self.file = reader.copy.file(split)
        self.needs_digest = "_image" in reader.copy.paths
        self.bad: list[BadRowError] = []
        self.seen: dict[str, int] = {}  # sample id: row
        self.groups: dict[str, int] = {}  # image_id: number, in the order of their first rows
        self.places: list[int] = []  # of each group's image among the pictures
        self.id_at: dict[int, str] = {}  # place: image_id
        self.files: list[str] = []  # of each group's image, where the copy only names it
        self.group_of_sample: list[int] = []
        self.chunks: list[pa.Array] = []
        if pictures is not None:
            self.column = pictures.data.column(0)
            self.has_bytes = images_have_bytes(self.column)

    def read(self, text: datasets.Dataset) -> None:
        row = 0
        for start in range(0, len(text), BATCH):
            batch = text[start : start + BATCH]
            samples = []
            for values in zip(*batch.values(), strict=True):
                row += 1
                try:
                    samples += self._read_row(dict(zip(batch, values, strict=True)), row)
                except BadRowError as error:
                    self.reader.bad(error, self.bad)
            self.chunks.append(pa.array(samples, type=SAMPLES.value_type))

    def _read_row(self, record: dict[str, Any], row: int) -> list[dict[str, Any]]:
        copy = self.reader.copy
        if not copy.belongs(record):
            return []
        place, special = row - 1, {}
        if self.positions is not None:
            key = evaluate(copy.image_rows.key, record)
            place = self.positions.get(key, -1)
            if place < 0:
                raise BadRowError(self.file, row, f"image {key!r} is not in config {copy.image_rows.config}")
        if self.pictures is not None and not self.has_bytes[place]:
            raise BadRowError(self.file, row, "the image has no bytes")
        if self.needs_digest:
            special["_image"] = image_digest(self._bytes(place)[0])
        found = self.reader.samples(record, row, self.split, special)
        again = next((sample["id"] for _, sample in found if sample["id"] in self.seen), None)
        if again is not None:
            raise BadRowError(self.file, row, f"id {again!r} again, first in row {self.seen[again]}")
        for image_id in dict.fromkeys(image_id for image_id, _ in found):
            if image_id not in self.groups:
                if self.id_at.setdefault(place, image_id) != image_id:
                    reason = f"one image with two ids, {self.id_at[place]!r} and {image_id!r}"
                    raise BadRowError(self.file, row, reason)
                self._add_image(image_id, record, row, place)
        for image_id, sample in found:
            self.seen[sample["id"]] = row
            self.group_of_sample.append(self.groups[image_id])
        return [sample for _, sample in found]

    def _add_image(self, image_id: str, record: dict[str, Any], row: int, place: int) -> None:
        reader = self.reader
        try:
            if self.pictures is None:
                path = image_path(reader.image_dirs, reader.copy.image_file(record))
                if reader.verify_images:
                    check_image(path)
                self.files.append(path)
            elif reader.verify_images:
                for image in self._bytes(place):
                    check_image(image)
        except ValueError as error:
            raise BadRowError(self.file, row, str(error)) from error
        self.groups[image_id] = len(self.groups)
        self.places.append(place)

    def _bytes(self, place: int) -> list[bytes]:
        value = self.column[place].as_py()
        return [image["bytes"] for image in (value if isinstance(value, list) else [value])]

    def save(self, folder: str) -> None:
        """Write the grouped text, aligned with the pictures, so that both are put side by side without a copy."""
        if not self.groups:
            first = f"; first: {self.bad[0]}" if self.bad else ""
            raise ValueError(f"{self.file}: no usable row, {len(self.bad)} bad ones{first}")
        places = np.arange(len(self.groups)) if self.pictures is None else np.array(self.places)
        length = len(self.groups) if self.pictures is None else len(self.pictures)
        group_of_sample = np.array(self.group_of_sample)
        flat = pa.concat_arrays(self.chunks).take(pa.array(np.argsort(places[group_of_sample], kind="stable")))
        counts = np.bincount(places[group_of_sample], minlength=length)
        offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), type=pa.int32())
        ids = np.full(length, "", dtype=object)
        ids[places] = list(self.groups)
        columns = {"image_id": pa.array(ids, pa.string()), "samples": pa.ListArray.from_arrays(offsets, flat)}
        features = Features({"image_id": Value("string"), "samples": List(dict(SAMPLE_FEATURES))})
        if self.pictures is None:
            features = row_features()
            columns["image"] = pa.array([{"bytes": None, "path": path} for path in self.files], Image().pa_type)
        partial = f"{folder}.{uuid.uuid4().hex}"
        os.makedirs(partial)
        try:
            table = pa.table([columns[name] for name in features], schema=features.arrow_schema)
            with ArrowWriter(features=features, path=os.path.join(partial, "text.arrow")) as writer:
                writer.write_table(table, BATCH)
                writer.finalize()
            np.save(os.path.join(partial, "places.npy"), places)
            skipped = [{"file": error.file, "row": error.row, "reason": error.reason} for error in self.bad]
            with open(os.path.join(partial, "skipped.json"), "w", encoding="utf-8") as file:
                json.dump(skipped, file)
            os.rename(partial, folder)
        except OSError:
            if not os.path.isdir(folder):  # else another process was faster
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@dataclasses.dataclass(frozen=True)
class _StreamGrouping:
    """A batch of their rows as a batch of ours."""

    reader: CopyReader
    split: str

    def __call__(self, batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        name = "images" if "images" in self.reader.copy.columns else "image"
        rows: dict[str, list[Any]] = {name: [], "image_id": [], "samples": []}
        needs_digest = "_image" in self.reader.copy.paths
        bad: list[BadRowError] = []
        for index, values in zip(indices, zip(*batch.values(), strict=True), strict=True):
            try:
                self._add(dict(zip(batch, values, strict=True)), index + 1, name, rows, needs_digest)
            except BadRowError as error:
                self.reader.bad(error, bad)
        for error in bad:
            logger.warning("left out: %s", error)
        return rows

    def _add(self, record: dict[str, Any], row: int, name: str, rows: dict[str, list[Any]], needs_digest: bool) -> None:
        copy, reader = self.reader.copy, self.reader
        if not copy.belongs(record):
            return
        try:
            images = self._images(record)
            if reader.verify_images:
                for image in images:
                    check_image(image["bytes"] or image["path"])
        except ValueError as error:
            raise BadRowError(copy.file(self.split), row, str(error)) from error
        special = {"_image": image_digest(images[0]["bytes"])} if needs_digest else {}
        for image_id, sample in reader.samples(record, row, self.split, special):
            if not rows["image_id"] or rows["image_id"][-1] != image_id:
                rows[name].append(images if name == "images" else images[0])
                rows["image_id"].append(image_id)
                rows["samples"].append([])
            rows["samples"][-1].append(sample)

    def _images(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        """The images of a row, undecoded."""
        copy = self.reader.copy
        if copy.image_column is None:
            return [{"bytes": None, "path": image_path(self.reader.image_dirs, copy.image_file(record))}]
        found = evaluate(copy.columns.get("image") or copy.columns["images"], record)
        images = found if isinstance(found, list) else [found]
        if not images or not all(isinstance(image, Mapping) and image.get("bytes") for image in images):
            raise ValueError("the image has no bytes")
        return [dict(image) for image in images]


def image_digest(image: bytes) -> str:
    """What an image without a name is called."""
    return hashlib.sha256(image).hexdigest()[:16]


def images_have_bytes(column: pa.ChunkedArray) -> np.ndarray:
    """Whether each row's images, one or a list, have bytes: a path alone would be one on this machine."""
    parts = [_has_bytes_in(chunk) for chunk in column.chunks]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=bool)


def _has_bytes_in(chunk: pa.Array) -> np.ndarray:
    if isinstance(chunk, pa.ExtensionArray):
        chunk = chunk.storage
    if pa.types.is_list(chunk.type) or pa.types.is_large_list(chunk.type):
        lengths = pc.fill_null(pc.list_value_length(chunk), 0).to_numpy(zero_copy_only=False)
        held = _has_bytes_in(pc.list_flatten(chunk))
        before = np.concatenate([[0], np.cumsum(held)])
        ends = np.cumsum(lengths)
        return (lengths > 0) & (before[ends] - before[ends - lengths] == lengths)
    held = pc.is_valid(pc.struct_field(chunk, "bytes"))
    return pc.and_(held, pc.is_valid(chunk)).to_numpy(zero_copy_only=False)


def _only_images(pictures: datasets.Dataset, file: str) -> datasets.Dataset:
    """The images of lists with one image each, without a copy.

    Raises:
        BadRowError: a list that holds none or several.
    """
    column = pictures.data.column(0)
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    if (lengths != 1).any():
        row = int(np.flatnonzero(lengths != 1)[0])
        raise BadRowError(file, row + 1, f"expected one image, found {lengths[row]}")
    flat = pa.chunked_array([pc.list_flatten(chunk) for chunk in column.chunks])
    return datasets.Dataset(pa.table({"image": flat}, schema=Features({"image": Image()}).arrow_schema))


def _undecoded(feature: Any) -> Any:
    return List(Image(decode=False)) if isinstance(feature, List) else Image(decode=False)


def _read_json(path: str) -> Any:
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def copies_of_splits(copies: Sequence[HubCopy]) -> Iterator[tuple[str, HubCopy]]:
    """Each split with the first copy that has it."""
    found: dict[str, HubCopy] = {}
    for copy in copies:
        for split in copy.splits:
            found.setdefault(split, copy)
    yield from found.items()
