"""Datasets of the library `datasets` as rows of our schema: from the Hub, from Parquet, or made by the user.

Images are not copied: a map-style result is the source's own image column beside a new column of samples.
"""

import collections
import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Features, Image, List, Value

from . import official_files, own_records, schema
from .official_files import BadRowError, check_image, digest
from .own_records import IMAGE_KEYS, Reading, read_record
from .schema import SAMPLE_FEATURES

logger = logging.getLogger(__name__)

TEXT_FEATURES = Features({"image_id": Value("string"), "samples": List(dict(SAMPLE_FEATURES)), "bad": Value("string")})
STREAM_BATCH = 16  # rows at a time, with their images


def convert(
    source: datasets.Dataset | datasets.IterableDataset,
    name: str,
    reading: Reading,
    on_bad: str = "raise",
    verify_images: bool = True,
    num_proc: int | None = None,
    trust_paths: bool = True,
) -> datasets.Dataset | datasets.IterableDataset:
    """Rows of the schema from columns that `own_records` knows.

    Sample ids are made of `name` and a digest of the row (or its `id`), and image ids are digests of the images, so
    that both are the same streamed or not, and in any order. Rows with the same image become one, where they first
    come; in a stream only neighbours do.

    Args:
        name: of the dataset, for ids and messages.
        trust_paths: images may be named by path alone. A file that does so could name any image of this machine, which
            `push` would publish. Of Parquet files, which carry images in them, it is never taken; of image folders,
            which bring the files that they name, always.

    Raises:
        ValueError: an image column that holds no images, or a stream that does not say its columns.
        BadRowError: a row or image that cannot be used, with `on_bad="raise"`; the row is counted from 1.
    """
    if source.features is None:
        raise ValueError(f"{name}: the stream does not say its columns: pass features= where it is made")
    if {"image_id", "samples"} <= source.features.keys():
        raise ValueError(
            f"{name} has image_id and samples already: rows as ours need no reading, `load` takes them from Parquet"
        )
    source, visual = source.with_format(None), image_column(source.features, reading, name)
    kind = None if visual is None else source.features[visual]
    several = kind is not None and not isinstance(kind, (Image, dict, Value))
    shown = "images" if several else "image"
    labels = {key: tuple(kind.names) for key, kind in source.features.items() if isinstance(kind, ClassLabel)}
    kind_of_files = source.info.builder_name
    reader = RowReader(
        name=name,
        reading=reading,
        visual=visual,
        labels=tuple(labels.items()),
        skip=on_bad == "skip",
        verify_images=verify_images,
        refuse_paths=kind_of_files == "parquet" or (not trust_paths and kind_of_files != "imagefolder"),
        code=digest([module.__file__ for module in (official_files, own_records, schema)], salt=__file__),
    )
    if isinstance(source, datasets.IterableDataset):
        return _stream(source, reader, shown, List(Image()) if several else Image())
    text = source.with_format("arrow").map(  # as Arrow has them, images stay undecoded
        reader,
        with_indices=True,
        batched=True,
        batch_size=100,
        remove_columns=source.column_names,
        features=TEXT_FEATURES,
        num_proc=num_proc,
        desc=f"Reading {name}",
    )
    text, rows = _group(text.with_format(None), name)
    if visual is None:
        images = datasets.Dataset.from_dict({"image": [None] * len(text)}, features=Features(image=Image()))
    else:
        images = source.select_columns([visual])
        if visual != shown:
            images = images.rename_column(visual, shown)
        if not isinstance(getattr(kind, "feature", kind), Image):  # bytes that do not say that they are images
            images = images.cast_column(shown, List(Image()) if several else Image())
    joined = datasets.concatenate_datasets([images, text], axis=1)
    return joined if len(rows) == len(joined) else joined.select(rows)


def _stream(
    source: datasets.IterableDataset, reader: "RowReader", shown: str, feature: Any
) -> datasets.IterableDataset:
    undecoded = List(Image(decode=False)) if isinstance(feature, List) else Image(decode=False)
    columns = list(source.features)
    if reader.visual is not None:
        source = source.cast_column(reader.visual, undecoded)
    text = {key: kind for key, kind in TEXT_FEATURES.items() if key != "bad"}
    rows = source.map(
        StreamReader(reader, shown),
        with_indices=True,
        batched=True,
        batch_size=STREAM_BATCH,
        remove_columns=columns,
    )
    return rows.cast(Features({shown: feature, **text}))  # which decodes; `features` of `map` do not


def image_column(features: Features, reading: Reading, name: str) -> str | None:
    """The column with the images; None where no column is named like one.

    Raises:
        ValueError: it holds something else, such as paths.
    """
    column = next((key for key in map(reading.key_of, IMAGE_KEYS) if key in features), None)
    if column is None:
        return None
    kind = features[column]
    inner = kind if isinstance(kind, (Image, dict)) else getattr(kind, "feature", kind)
    if isinstance(inner, Image) or (isinstance(inner, dict) and "bytes" in inner) or inner == Value("binary"):
        return column
    raise ValueError(
        f"{name}: column {column!r} holds {kind}, not images. For paths that you trust: "
        f"dataset.cast_column({column!r}, datasets.Image())"
    )


@dataclasses.dataclass(frozen=True)
class RowReader:
    """A batch of rows to image ids and samples; what is wrong with a row goes to "bad", or is raised."""

    name: str
    reading: Reading
    visual: str | None
    labels: tuple[tuple[str, tuple[str, ...]], ...]
    skip: bool
    verify_images: bool
    refuse_paths: bool
    code: str  # of what reads the rows: `datasets` takes a finished result for one of other code only if this differs

    def __call__(self, batch: Mapping[str, list[Any]] | pa.Table, indices: Sequence[int]) -> dict[str, list[Any]]:
        if isinstance(batch, pa.Table):
            batch = batch.to_pydict()
        made: dict[str, list[Any]] = {"image_id": [], "samples": [], "bad": []}
        for number, index in enumerate(indices):
            record = {key: values[number] for key, values in batch.items()}
            image_id, samples, bad = "", [], ""
            try:
                image_id, samples = self.read(record)
            except ValueError as error:
                if not self.skip:
                    raise BadRowError(self.name, index + 1, str(error)) from error
                bad = json.dumps([index + 1, str(error)])
            for key, value in zip(made, (image_id, samples, bad), strict=True):
                made[key].append(value)
        return made

    def read(self, record: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
        """(image id, samples) of a row.

        Raises:
            ValueError: a row or image that cannot be used.
        """
        for key, names in self.labels:
            number = record[key]
            record[key] = names[number] if type(number) is int and 0 <= number < len(names) else None
        images = record.get(self.visual) if self.visual else None
        image_id = self.image_id(images if isinstance(images, list) else [images] if images is not None else [])
        text = {key: value for key, value in record.items() if key != self.visual}
        content = f"{image_id}\x1f{json.dumps(text, sort_keys=True, default=str)}"
        row_id = hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
        examples = read_record(record, self.reading, row_id, self.name)
        shown = max((len(example.images) for example in examples), default=0)
        if any(len(example.images) < shown for example in examples):
            raise ValueError("a later turn marks an image with <image>: in columns, every turn shows all images")
        return image_id or f"{self.name}/{row_id}", [example.sample for example in examples]

    def image_id(self, images: list[Any]) -> str:
        """A digest of all images; "" without any.

        Raises:
            ValueError: an image that is broken, or has neither bytes nor a file.
        """
        state = hashlib.blake2b(digest_size=8)
        for image in images:
            content, path = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (image, None)
            source = path if content is None else content
            if source is None or (content is None and self.refuse_paths):
                raise ValueError(f"an image without bytes{f', a path {path!r} alone' if path else ''}")
            remote = isinstance(source, str) and "://" in source
            if self.verify_images and not remote:
                check_image(source)
            state.update(source.encode("utf-8", "surrogatepass") if isinstance(source, str) else source)
        return state.hexdigest() if images else ""


@dataclasses.dataclass(frozen=True)
class StreamReader:
    """As `RowReader`, with the images; neighbours that show the same are put together, and bad rows left out."""

    reader: RowReader
    shown: str

    def __call__(self, batch: Mapping[str, list[Any]], indices: Sequence[int]) -> dict[str, list[Any]]:
        made = self.reader(batch, indices)
        images = batch[self.reader.visual] if self.reader.visual else [None] * len(indices)
        rows: dict[str, list[Any]] = {self.shown: [], "image_id": [], "samples": []}
        for image, image_id, samples, bad in zip(images, *made.values(), strict=True):
            if bad:
                logger.warning("left out: %s", BadRowError(self.reader.name, *json.loads(bad)))
            elif rows["image_id"] and rows["image_id"][-1] == image_id:
                rows["samples"][-1] += samples
            else:
                for key, value in zip(rows, (image, image_id, samples), strict=True):
                    rows[key].append(value)
        return rows


def _group(text: datasets.Dataset, name: str) -> tuple[datasets.Dataset, np.ndarray]:
    """`text` with all samples of an image in its first row, and the rows to keep. Says what was left out.

    Raises:
        ValueError: no row can be used.
    """
    bad = [(row, message) for row, message in enumerate(text["bad"]) if message]
    if bad:
        message = "%s: %d rows kept, %d bad rows or images left out; first: %s"
        logger.warning(message, name, len(text) - len(bad), len(bad), BadRowError(name, *json.loads(bad[0][1])))
    if len(bad) == len(text):
        raise ValueError(
            f"{name}: no usable row{f'; first: {BadRowError(name, *json.loads(bad[0][1]))}' if bad else ''}"
        )
    left_out = {row for row, _ in bad}
    members: dict[str, list[int]] = {}
    for row, image_id in enumerate(text["image_id"]):
        if row not in left_out:
            members.setdefault(image_id, []).append(row)
    text = text.remove_columns("bad")
    repeated = {rows[0]: rows for rows in members.values() if len(rows) > 1}
    if repeated:
        text = text.map(Gather(text, repeated), with_indices=True, batched=True, desc=f"Grouping {name} by image")
    rows = np.array([rows[0] for rows in members.values()])
    ids = pc.list_flatten(text.with_format("arrow")["samples"].combine_chunks().take(rows)).field("id")
    if pc.count_distinct(ids).as_py() < len(ids):
        again = pc.value_counts(ids).filter(pc.greater(pc.value_counts(ids).field("counts"), 1))[0]["values"].as_py()
        raise ValueError(f"{name}: id {again!r} comes more than once: pass columns={{'id': None}} to number the rows")
    return text, rows


@dataclasses.dataclass(frozen=True)
class Gather:
    """Puts the samples of several rows into the first of them; what comes twice gets another id."""

    text: datasets.Dataset
    repeated: dict[int, list[int]]  # first row -> rows

    def __call__(self, batch: Mapping[str, list[Any]], indices: Sequence[int]) -> dict[str, list[Any]]:
        return {"samples": [self.samples(index) or own for index, own in zip(indices, batch["samples"], strict=True)]}

    def samples(self, first: int) -> list[dict[str, Any]]:
        samples = [sample for row in self.repeated.get(first, ()) for sample in self.text[row]["samples"]]
        times: collections.Counter[str] = collections.Counter()
        for sample in samples:
            times[sample["id"]] += 1
            if times[sample["id"]] > 1:
                sample["id"] += f"#{times[sample['id']]}"
        return samples
