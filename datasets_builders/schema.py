"""The row that every dataset is brought into, and the builder that all datasets share.

One row is one visual input with all that is asked about it, so that its pixels are stored, sent and encoded once:

    {"image": ..., "image_id": "coco/000000391895", "samples": [
        {"id": "vqa_rad/1", "question": "Are regions of the brain infarcted?", "answers": ["Yes"], "choices": [],
         "label": -1, "context": "", "ocr_tokens": [], "history": [], "tags": ["answer_type=CLOSED"]}]}
"""

import collections
import dataclasses
import glob
import inspect
import json
import logging
import os
from collections.abc import Iterable, Iterator
from typing import Any

import datasets
from datasets import Features, Image, List, Value
from datasets.builder import Key

from .official_files import BadRowError, check_image, digest
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


@dataclasses.dataclass
class Record:
    """One sample as a builder read it, with the place that messages name."""

    file: str
    row: int
    image_id: str
    image: str  # path of the image
    sample: dict[str, Any]


class InstructionBuilder(datasets.GeneratorBasedBuilder):
    """Reads official files into grouped rows. A dataset says where its images are and what a record in its files means.

    Rows come in the order in which the annotation file first names their images, whatever the number of processes. An
    annotation file or builder code that changed, and with `on_bad="skip"` or `embed_images=True` an image folder that
    changed, gives another cache entry, so nothing stale is read.

    Raises:
        FileNotFoundError: `data_dir` lacks every annotation file, or that of a split in `splits`.
        BadRowError: a row or image that cannot be used, with `on_bad="raise"`.
    """

    BUILDER_CONFIG_CLASS = BuilderConfig
    SHARDS = 16  # parts that a split is cut into: the most processes that can build or stream it

    def annotation_files(self) -> dict[str, list[str]]:
        """Split -> where its annotation file may lie, relative to `data_dir`; the first found is read."""
        splits = TABLE[self.name].splits
        return {split: [name.format(config=self.config.name) for name in names] for split, names in splits.items()}

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
        config, config_id = super()._create_builder_config(config_name, custom_features, config_id, **config_kwargs)
        if config.on_bad not in ("raise", "skip"):
            raise ValueError(f"on_bad={config.on_bad!r}: expected 'raise' or 'skip'")
        self.config = config
        files = self.split_files()
        rows_depend_on_images = config.on_bad == "skip" or config.embed_images
        folders = {folder: None for split in files for folder in self.image_folders(split)}  # in order, once
        contents = [*files.values(), *self._sources()]
        self.hash = digest(contents, folders if rows_depend_on_images else (), salt=self.hash or "")
        self._parsed: tuple[str, list[BadRowError | list[Record]]] | None = None  # the last file read
        self._report_folder: str | None = None  # where a build, but not a stream, leaves its lists of bad rows
        return config, config_id

    def _sources(self) -> list[str]:
        """The files of the code that makes the rows."""
        package = [cls for cls in type(self).__mro__ if issubclass(cls, InstructionBuilder)]
        return [*{inspect.getfile(cls): None for cls in package}, inspect.getfile(BadRowError)]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_parsed": None}  # a worker reads the file itself

    def _info(self) -> datasets.DatasetInfo:
        spec = TABLE.get(self.name)
        about = {} if spec is None else {"license": spec.licence, "homepage": spec.homepage, "citation": spec.citation}
        return datasets.DatasetInfo(features=row_features(), **about)

    def split_files(self) -> dict[str, str]:
        """Split -> absolute path of its annotation file, for the splits to build.

        Raises:
            FileNotFoundError: none is there, or one asked for is not.
            ValueError: a split that the dataset does not have.
        """
        known, data_dir = self.annotation_files(), self.config.data_dir
        unknown = [split for split in self.config.splits if split not in known]
        if unknown:
            raise ValueError(f"{self.name} has no split {unknown[0]!r}: it has {', '.join(known)}")
        found = {}
        for split in self.config.splits or known:
            paths = [os.path.join(data_dir, name) for name in known[split]]
            path = next((path for path in paths if os.path.isfile(path)), None)
            if path is not None:
                found[split] = path
            elif self.config.splits:
                raise FileNotFoundError(f"{self.name}: no annotation file for {split}: looked for {', '.join(paths)}")
        if not found:
            names = ", ".join(names[0] for names in known.values())
            raise FileNotFoundError(f"{self.name}: no annotation file in {data_dir}: expected one or more of {names}")
        return found

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        return [
            datasets.SplitGenerator(
                name=split,
                gen_kwargs={"shards": [(split, file, index, self.SHARDS) for index in range(self.SHARDS)]},
            )
            for split, file in self.split_files().items()
        ]

    def _generate_examples(self, shards: list[tuple[str, str, int, int]]) -> Iterator[tuple[Key, dict[str, Any]]]:
        for split, file, index, count in shards:
            items = self._items(split, file)
            bad: list[BadRowError] = []
            part = items[len(items) * index // count : len(items) * (index + 1) // count]
            for number, item in enumerate(part):
                try:
                    if isinstance(item, BadRowError):
                        raise item
                    yield Key(index, number), self._row(item)
                except BadRowError as error:
                    if self.config.on_bad == "raise":
                        raise
                    bad.append(error)
            if bad:
                self._report(split, index, bad)

    def _items(self, split: str, file: str) -> list[BadRowError | list[Record]]:
        """The file's samples grouped by image, bad rows at their places; the last file read is kept."""
        if self._parsed is None or self._parsed[0] != file:
            self._parsed = (file, group_by_image(self.read(split, file)))
        return self._parsed[1]

    def _row(self, records: list[Record]) -> dict[str, Any]:
        """One row of the schema.

        Raises:
            BadRowError: the image is missing or broken; names the first sample and how many go with it.
        """
        first = records[0]
        try:
            if self.config.verify_images:
                check_image(first.image)
            image: Any = first.image
            if self.config.embed_images:
                with open(first.image, "rb") as file:
                    image = {"bytes": file.read(), "path": None}
        except (OSError, ValueError) as error:
            lost = f" ({len(records)} samples need it)" if len(records) > 1 else ""
            raise BadRowError(first.file, first.row, f"{error}{lost}") from error
        return {"image": image, "image_id": first.image_id, "samples": [record.sample for record in records]}

    def _report(self, split: str, shard: int, bad: list[BadRowError]) -> None:
        """Leave a list of what a shard left out for the building process to sum up; a stream says it at once."""
        if self._report_folder is None:
            logger.warning("%s/%s: skipped %d bad rows or images; first: %s", self.name, split, len(bad), bad[0])
            return
        with open(os.path.join(self._report_folder, f"skipped-{split}-{shard:05d}.jsonl"), "w") as file:
            for error in bad:
                file.write(json.dumps({"file": error.file, "row": error.row, "reason": error.reason}) + "\n")

    def _prepare_split(self, split_generator, *args, **kwargs) -> None:
        self._report_folder = self._output_dir  # the lists move with the rows when the build is complete
        try:
            super()._prepare_split(split_generator, *args, **kwargs)
        finally:
            self._report_folder = None
        if not split_generator.split_info.num_examples:
            skipped = self.skipped(split_generator.name)
            why = f": {len(skipped)} skipped; first: {BadRowError(**skipped[0])}" if skipped else ""
            raise ValueError(f"{self.name}: no usable row for {split_generator.name}{why}")

    def _prepare_split_single(self, *args, **kwargs):
        try:
            yield from super()._prepare_split_single(*args, **kwargs)
        except datasets.exceptions.DatasetGenerationError as error:
            if isinstance(error.__cause__, ValueError):  # ours: it names file and row, the wrapper names nothing
                raise error.__cause__ from None
            raise

    def download_and_prepare(self, *args, **kwargs) -> None:
        """As `datasets` does it, and a summary of what was left out, also when the rows come from the cache."""
        super().download_and_prepare(*args, **kwargs)
        for split, info in self.info.splits.items():
            skipped = self.skipped(split)
            if skipped:
                message = "%s/%s: %d rows kept, %d bad rows or images left out; first: %s; all in %s"
                first = BadRowError(**skipped[0])
                logger.warning(message, self.name, split, info.num_examples, len(skipped), first, self._output_dir)

    def skipped(self, split: str) -> list[dict[str, Any]]:
        """What building `split` left out: {"file", "row", "reason"} each, in file order."""
        entries: list[dict[str, Any]] = []
        for path in sorted(glob.glob(os.path.join(glob.escape(self._output_dir), f"skipped-{split}-*.jsonl"))):
            with open(path) as file:
                entries.extend(json.loads(line) for line in file)
        return entries


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
        group.append(record)
    return items
