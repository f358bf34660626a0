"""The row that every dataset is brought into, and the builder that all datasets share.

One row is one visual input with all that is asked about it, so that its pixels are stored, sent and encoded once:

    {"image": ..., "image_id": "coco/000000391895", "samples": [
        {"id": "vqa_rad/1", "question": "Are regions of the brain infarcted?", "answers": ["Yes"], "choices": [],
         "label": -1, "context": "", "ocr_tokens": [], "history": [], "tags": ["answer_type=CLOSED"]}]}
"""

import collections
import dataclasses
import gc
import inspect
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import datasets
from datasets import Features, Image, List, Value
from datasets.builder import Key

from .official_files import BadRowError, check_image, digest, existing_folders, matching_files
from .sharded_building import Shard, ShardedBuilder
from .table import TABLE

logger = logging.getLogger(__name__)

SAMPLE_FEATURES = {
    "id": Value("string"),  # unique in the dataset, over its splits
    "question": Value("string"),  # "" where the task asks nothing, as captions do
    "answers": List(Value("string")),  # of all annotators, repeats kept; empty in a test set without answers
    "choices": List(Value("string")),  # in the order given; empty where the answer is open
    "label": Value("int32"),  # index of the right choice; -1: none
    "context": Value("string"),  # text that belongs to the question: a hint, the text on a meme
    "ocr_tokens": List(Value("string")),  # words read in the image, in reading order
    "history": List({"question": Value("string"), "answer": Value("string")}),  # earlier turns of a dialogue
    "tags": List(Value("string")),  # "name=value" facts that metrics group by and no model sees
}


def row_features(several_images: bool = False) -> Features:
    """The columns of a dataset: `image`, or `images` where a row shows several (frames of a video, in order)."""
    visual = {"images": List(Image())} if several_images else {"image": Image()}
    return Features({**visual, "image_id": Value("string"), "samples": List(dict(SAMPLE_FEATURES))})


def make_sample(id: str, question: str, answers: list[str], **rest: Any) -> dict[str, Any]:
    """A sample with every field of the schema; those left out are empty.

    Raises:
        TypeError: a field that the schema lacks.
    """
    unknown = rest.keys() - SAMPLE_FEATURES.keys()
    if unknown:
        raise TypeError(f"no such field in a sample: {', '.join(sorted(unknown))}")
    empty = {"choices": [], "label": -1, "context": "", "ocr_tokens": [], "history": [], "tags": []}
    return {"id": id, "question": question, "answers": answers, **empty, **rest}


def tag(sample: dict[str, Any], name: str) -> str | None:
    """The value of the tag `name` ("answer_type" -> "CLOSED"), None where the sample has none."""
    return next((value[len(name) + 1 :] for value in sample["tags"] if value.startswith(f"{name}=")), None)


@dataclasses.dataclass
class BuilderConfig(datasets.BuilderConfig):
    """What a builder may be asked for besides `data_dir`."""

    splits: tuple[str, ...] = ()  # build only these; empty: every split whose annotation file is there
    on_bad: str = "raise"  # "skip": leave out what cannot be used, and count it
    verify_images: bool = True  # decode each image once while building; False trusts the files
    embed_images: bool = False  # keep the files' bytes, not their paths: the result survives a move of the images
    shards: int = 16  # parts that a split is cut into: the most processes that can build or stream it
    image_dirs: tuple[str, ...] = ()  # where the images are; empty: the folders that the dataset's module names

    def folders(self, *names: str) -> list[str]:
        """`image_dirs`, or else the folders with these names in `data_dir`."""
        return list(self.image_dirs) or [os.path.normpath(os.path.join(str(self.data_dir), name)) for name in names]


@dataclasses.dataclass
class Record:
    """One sample as a builder read it, with the place that messages name."""

    file: str
    row: int
    image_id: str
    image: str | bytes | list[str | bytes]  # path or encoded bytes; several where the builder has `several_images`
    sample: dict[str, Any]


class InstructionBuilder(ShardedBuilder):
    """Reads official files into grouped rows. A dataset says where its images are and what a record in its files means.

    Rows come in the order in which the annotation file first names their images, whatever the number of processes. An
    annotation file or builder code that changed, and with `on_bad="skip"` or `embed_images=True` an image folder that
    changed, gives another cache entry, so nothing stale is read.

    An annotation file is parsed whole, so memory grows with it (not with the images); `one_shard_per_file` is for
    datasets too large for that.

    Raises:
        FileNotFoundError: `data_dir` lacks every annotation file, or that of a split in `splits`.
        BadRowError: a row or image that cannot be used, with `on_bad="raise"`.
    """

    BUILDER_CONFIG_CLASS = BuilderConfig
    SMALLEST_SHARD = 64  # rows: smaller splits are built into fewer files than `shards`

    several_images: ClassVar[bool] = False  # rows have `images`, as videos do
    # The places in the table are patterns; every file that fits is a shard, read in one pass with nothing kept, and
    # images are grouped where their samples are neighbours.
    one_shard_per_file: ClassVar[bool] = False

    def annotation_files(self) -> dict[str, list[str]]:
        """Split -> where its annotation file may lie, relative to `data_dir`; the first found is read."""
        splits = TABLE[self.name].splits
        return {split: [name.format(config=self.config.name) for name in names] for split, names in splits.items()}

    def extra_files(self, split: str) -> list[str]:
        """Absolute paths of further files that `read` opens for `split`, of those that are there."""
        return []

    def image_folders(self, split: str) -> list[str]:
        """Absolute folders that hold the images of `split`."""
        raise NotImplementedError

    def read(self, split: str, file: str) -> Iterator[Record | BadRowError]:
        """The samples of an annotation file in order, each as a `Record`, or as a `BadRowError` where it makes none."""
        raise NotImplementedError

    def _create_builder_config(self, config_name=None, custom_features=None, config_id=None, **config_kwargs):
        if not config_kwargs.get("data_dir"):
            raise ValueError(f"{type(self).__name__} needs data_dir=, the folder with the official files")
        config_kwargs["data_dir"] = os.path.realpath(config_kwargs["data_dir"])  # one folder, one cache entry
        if isinstance(config_kwargs.get("splits"), str):
            config_kwargs["splits"] = (config_kwargs["splits"],)
        if "image_dirs" in config_kwargs:
            config_kwargs["image_dirs"] = existing_folders(config_kwargs["image_dirs"])
        config, config_id = super()._create_builder_config(config_name, custom_features, config_id, **config_kwargs)
        if config.on_bad not in ("raise", "skip"):
            raise ValueError(f"on_bad={config.on_bad!r}: expected 'raise' or 'skip'")
        if config.shards < 1:
            raise ValueError(f"shards={config.shards}: expected 1 or more")
        self.config = config
        files = self.split_files()
        annotations = [path for paths in files.values() for path in paths]
        extra = [path for split in files for path in self.extra_files(split)]
        rows_depend_on_images = config.on_bad == "skip" or config.embed_images
        folders = [folder for split in files for folder in self.image_folders(split)] if rows_depend_on_images else []
        listed = [*annotations, *folders] if self.one_shard_per_file else folders  # too large to be read for a digest
        contents = [*extra, *self._sources()] if self.one_shard_per_file else [*annotations, *extra, *self._sources()]
        self.hash = digest(dict.fromkeys(contents), dict.fromkeys(listed), salt=self.hash or "")
        self._parsed: tuple[tuple[str, str], list[BadRowError | list[Record]]] | None = None  # the last split read
        return config, config_id

    def _sources(self) -> list[str]:
        """The files of the code that makes the rows: of this class, its bases, and the siblings that they import."""
        package = __name__.rpartition(".")[0]
        modules = [cls.__module__ for cls in type(self).__mro__ if issubclass(cls, ShardedBuilder)]
        modules += [
            getattr(value, "__module__", None) or ""
            for module in modules
            for value in vars(sys.modules[module]).values()
        ]
        return sorted({inspect.getfile(sys.modules[name]) for name in modules if name.rpartition(".")[0] == package})

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_parsed": None}  # a worker reads the file itself

    def _info(self) -> datasets.DatasetInfo:
        spec = TABLE.get(self.name)
        about = {} if spec is None else {"license": spec.licence, "homepage": spec.homepage, "citation": spec.citation}
        return datasets.DatasetInfo(features=row_features(self.several_images), **about)

    def split_files(self) -> dict[str, list[str]]:
        """Split -> absolute paths of its annotation files, for the splits to build.

        Raises:
            FileNotFoundError: none is there, or one asked for is not.
            ValueError: a split that the dataset does not have.
        """
        known, data_dir = self.annotation_files(), self.config.data_dir
        unknown = [split for split in self.config.splits if split not in known]
        if unknown:
            raise ValueError(f"{self.called} has no split {unknown[0]!r}: it has {', '.join(known)}")
        found = {}
        for split in self.config.splits or known:
            files = next((files for files in (matching_files(data_dir, name) for name in known[split]) if files), [])
            if files:
                found[split] = files if self.one_shard_per_file else files[:1]
            elif self.config.splits:
                places = ", ".join(os.path.join(data_dir, name) for name in known[split])
                raise FileNotFoundError(f"{self.called}: no annotation file for {split}: looked for {places}")
        if not found:
            names = ", ".join(dict.fromkeys(names[0] for names in known.values()))
            others = [config.name for config in self.BUILDER_CONFIGS if config.name != self.config.name]
            of = f" for config {self.config.name}; other configs are {', '.join(others)}" if others else ""
            raise FileNotFoundError(
                f"{self.called}: no annotation file in {data_dir}: expected one or more of {names}{of}"
            )
        return found

    def _split_names(self) -> list[str]:
        return list(self.split_files())

    def _shards(self, split: str, parts: int) -> list[Shard]:
        files = self.split_files()[split]
        if self.one_shard_per_file:
            return [Shard(split, number, file) for number, file in enumerate(files)]
        return [Shard(split, part, files[0], part, parts) for part in range(parts)]

    def shards_to_build(self, split: str) -> list[Shard]:
        parts = 1
        if not self.one_shard_per_file:
            items = self._items(split, self.split_files()[split][0])
            parts = max(1, min(self.config.shards, len(items) // self.SMALLEST_SHARD))
        return self._shards(split, parts)

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"shards": self._shards(split, self.config.shards)})
            for split in self.split_files()
        ]

    def _generate_examples(self, shards: list[Shard]) -> Iterator[tuple[Key, dict[str, Any]]]:
        for shard in shards:
            bad: list[BadRowError] = []
            for number, row in enumerate(self.shard_rows(shard, bad)):
                yield Key(shard.number, number), row
            if bad:
                message = "%s/%s: skipped %d bad rows or images; first: %s"
                logger.warning(message, self.called, shard.split, len(bad), bad[0])

    def shard_rows(self, shard: Shard, bad: list[BadRowError]) -> Iterator[dict[str, Any]]:
        if self.one_shard_per_file:
            items = group_neighbours(self.read(shard.split, shard.file))
        else:
            every = self._items(shard.split, shard.file)
            items = every[len(every) * shard.part // shard.parts : len(every) * (shard.part + 1) // shard.parts]
        for item in items:
            try:
                if isinstance(item, BadRowError):
                    raise item
                yield self._row(item)
            except BadRowError as error:
                if self.config.on_bad == "raise":
                    raise
                bad.append(error)

    def _items(self, split: str, file: str) -> list[BadRowError | list[Record]]:
        """The file's samples grouped by image, bad rows at their places; the last file read is kept."""
        if self._parsed is None or self._parsed[0] != (split, file):  # one file may hold several splits
            collecting = gc.isenabled()
            gc.disable()  # so many small objects, and no cycle among them: looking for one takes a third of the time
            try:
                self._parsed = ((split, file), group_by_image(self.read(split, file)))
            finally:
                if collecting:
                    gc.enable()
        return self._parsed[1]

    def _row(self, records: list[Record]) -> dict[str, Any]:
        """One row of the schema.

        Raises:
            BadRowError: an image is missing or broken; names the first sample and how many go with it.
        """
        first = records[0]
        try:
            pixels = [self._pixels(image) for image in self.images_of(first)]
        except (OSError, ValueError) as error:
            lost = f" ({len(records)} samples need it)" if len(records) > 1 else ""
            raise BadRowError(first.file, first.row, f"{error}{lost}") from error
        visual = {"images": pixels} if self.several_images else {"image": pixels[0]}
        return {**visual, "image_id": first.image_id, "samples": [record.sample for record in records]}

    def images_of(self, record: Record) -> Sequence[str | bytes]:
        """Paths or encoded bytes of a record's images.

        Raises:
            OSError, ValueError: they cannot be had.
        """
        return record.image if isinstance(record.image, list) else [record.image]

    def _pixels(self, image: str | bytes) -> Any:
        """What the `Image` feature takes for an image that can be read."""
        if self.config.verify_images:
            check_image(image)
        if isinstance(image, str) and self.config.embed_images:
            with open(image, "rb") as file:
                image = file.read()
        return {"bytes": image, "path": None} if isinstance(image, bytes) else image

    def download_and_prepare(self, *args, **kwargs) -> None:
        """As `datasets` does it, and a summary of what was left out, also when the rows come from the cache."""
        super().download_and_prepare(*args, **kwargs)
        for split, info in self.info.splits.items():
            skipped = self.skipped(split)
            if skipped:
                message = "%s/%s: %d rows kept, %d bad rows or images left out; first: %s; all in %s"
                first = BadRowError(**skipped[0])
                logger.warning(message, self.called, split, info.num_examples, len(skipped), first, self._output_dir)


def group_neighbours(records: Iterable[Record | BadRowError]) -> Iterator[BadRowError | list[Record]]:
    """Samples of one image together where they follow one another; holds one image's samples at a time."""
    group: list[Record] = []
    for record in records:
        if group and (isinstance(record, BadRowError) or record.image_id != group[0].image_id):
            yield group
            group = []
        if isinstance(record, BadRowError):
            yield record
        else:
            group.append(record)
    if group:
        yield group


def group_by_image(records: Iterable[Record | BadRowError]) -> list[BadRowError | list[Record]]:
    """Samples of one image together, in the order of their first; a repeated sample id becomes a `BadRowError`."""
    groups: dict[str, list[Record]] = {}
    items: list[BadRowError | list[Record]] = []
    seen: dict[str, int] = collections.defaultdict(int)
    for record in records:
        if isinstance(record, BadRowError):
            items.append(record)
            continue
        sample_id = record.sample["id"]
        if sample_id in seen:
            items.append(
                BadRowError(record.file, record.row, f"id {sample_id!r} again, first in row {seen[sample_id]}")
            )
            continue
        seen[sample_id] = record.row
        group = groups.get(record.image_id)
        if group is None:
            group = groups[record.image_id] = []
            items.append(group)
        elif record.image != group[0].image:
            reason = f"image {record.image_id!r} is another file in row {group[0].row}"
            items.append(BadRowError(record.file, record.row, reason))
            continue
        group.append(record)
    return items
