"""What a training recipe says of its data, and the datasets made of it.

# mixture.yaml
- dataset: okvqa                    # a dataset that we have a builder for; reads <root>/okvqa
  validation: "validation[:1000]"
- dataset: data/train.jsonl         # or your own, in any form that `load_own` reads
  name: mine
  factor: 2

sources = read_sources("mixture.yaml", root="/data")
train, validation = training_data(sources), validation_data(sources)
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import yaml

from .instructions import InstructionDataset, InstructionFormat, Style
from .loading import load
from .mixture import InstructionMixture, Rule, sampling_probabilities
from .own_data import load_own
from .own_format import own_format
from .streaming import stream_mixture
from .table import TABLE
from .templates import Template


@dataclasses.dataclass(frozen=True)
class DataSource:
    """One dataset of a recipe.

    Raises:
        ValueError: it has no split, no name for its items, or a task that its samples decide.
    """

    dataset: str  # a name in `table.TABLE`, or a file, folder or Hub id that `load_own` reads
    name: str = ""  # of its items, in logs and scores; needed where `dataset` is your own
    train: str | None = "train"  # split to train on; None: validated only
    validation: str | None = None  # split to validate on, such as "validation[:1000]"
    task: str | None = None  # family of templates, where it is not the table's: "vqa" for A-OKVQA's direct answers
    prompt: str | None = None  # one wording for training too, in place of templates drawn anew each epoch
    factor: float = 1.0  # what its share of the mixture is multiplied by, beside the table's own factor
    size: int | None = None  # examples that its share is computed from; None: those it has, of a stream the table's
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of `load` or `load_own`

    def __post_init__(self) -> None:
        if not self.name and not self.is_known:
            raise ValueError(f"{self.dataset} has no name: write name: next to it, for logs and scores")
        if self.train is None and self.validation is None:
            raise ValueError(f"{self.label} has neither a split to train nor one to validate on: leave it out")
        if self.task is not None and not self.is_known:
            raise ValueError(
                f"{self.label} has task {self.task!r}: your own data say themselves what they are, leave it out"
            )

    @property
    def is_known(self) -> bool:
        return self.dataset in TABLE

    @property
    def label(self) -> str:
        return self.name or self.dataset

    def rows(self, split: str, **options: Any) -> Any:
        """A split as grouped rows, from `load` or `load_own`."""
        read = load if self.is_known else load_own
        return read(self.dataset, split=split, **{**self.options, **options})

    def training_format(self, style: Style, seed: int) -> InstructionFormat:
        templates = None if self.prompt is None or style != "natural" else [Template(self.prompt)]
        return self._format(templates, seed=seed, style=style)

    def validation_format(self) -> InstructionFormat:
        """One item a sample, in the words that the dataset is evaluated with."""
        prompt = self.prompt or (TABLE[self.dataset].prompt if self.is_known else None)
        return self._format(prompt and [Template(prompt)], answer_policy="most_frequent")

    def _format(self, templates: Sequence[Template] | None, **options: Any) -> InstructionFormat:
        if not self.is_known:
            return own_format(self.label, templates, **options)
        spec = TABLE[self.dataset]
        defaults = {"task": spec.task, "answer_policy": spec.answer_policy, "lowercase_answers": spec.lowercase_answers}
        changed = {"task": self.task} if self.task else {}
        return InstructionFormat.of(self.label, templates=templates, **{**defaults, **changed, **options})


def read_sources(path: str, root: str = "") -> list[DataSource]:
    """The sources that a YAML file lists.

    A dataset with a builder reads its official files from `<root>/<data_dir>`, where `data_dir` is its name unless the
    entry says otherwise, or with `repo_id` from the Hub. Keys that `DataSource` does not have are options of `load` or
    `load_own`, such as `config`, `image_dirs` or `on_bad`.

    Raises:
        ValueError: no list of mappings, an entry without `dataset`, or two of the same name.
    """
    with open(path, encoding="utf-8") as file:
        entries = yaml.safe_load(file)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{path}: expected a list of datasets, each with the key dataset")
    sources = []
    for number, entry in enumerate(entries, start=1):
        if "dataset" not in entry:
            raise ValueError(f"{path}: entry {number} has no key dataset; it has {', '.join(map(str, entry))}")
        sources.append(make_source(_below(entry, root)))
    labels = [source.label for source in sources]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise ValueError(f"{path}: two datasets are called {twice}: write another name: next to one of them")
    return sources


def make_source(entry: Mapping[str, Any]) -> DataSource:
    """A source from one entry; keys that `DataSource` does not have are options of `load` or `load_own`."""
    fields = {field.name for field in dataclasses.fields(DataSource)} - {"options"}
    given = {key: value for key, value in entry.items() if key in fields}
    return DataSource(**given, options={key: value for key, value in entry.items() if key not in fields})


def _below(entry: Mapping[str, Any], root: str) -> dict[str, Any]:
    """An entry with the folders of a dataset that has a builder below `root`."""
    entry = dict(entry)
    if entry["dataset"] in TABLE:
        if "repo_id" not in entry:
            name = TABLE[entry["dataset"]].source.name
            entry["data_dir"] = os.path.join(root, entry.get("data_dir", name))
        if "image_dirs" in entry:
            entry["image_dirs"] = tuple(os.path.join(root, folder) for folder in entry["image_dirs"])
    return entry


def training_data(
    sources: Sequence[DataSource],
    sampling: Rule = "sqrt",
    style: Style = "natural",
    seed: int = 0,
    streaming: bool = False,
) -> InstructionDataset | InstructionMixture | datasets.IterableDataset:
    """What to train on: the one dataset that there is, or a mixture of several.

    Args:
        sampling: how shares follow from sizes; "sqrt" is the paper's.
        style: "natural", or "plain" or "tagged", the formats without instructions of the paper's Fig. 4.
        seed: of templates and order.
        streaming: read rows as they are due, with nothing built; one dataset becomes a stream without end too.

    Raises:
        ValueError: nothing to train on, or a stream whose size is not known.
    """
    trained = [source for source in sources if source.train is not None]
    if not trained:
        raise ValueError("no dataset has a split to train on")
    formats = {source.label: source.training_format(style, seed) for source in trained}
    if streaming:
        streams = {source.label: source.rows(source.train, streaming=True) for source in trained}
        sizes = {source.label: source.size or (_table_size(source) if len(trained) > 1 else 1) for source in trained}
        chances = _probabilities(trained, sizes, sampling)
        return stream_mixture(streams, chances, formats, seed=seed)
    built = {
        source.label: InstructionDataset(source.rows(source.train), source.label, format=formats[source.label])
        for source in trained
    }
    if len(built) == 1:
        return next(iter(built.values()))
    sizes = {source.label: source.size or len(built[source.label]) for source in trained}
    return InstructionMixture(built, _probabilities(trained, sizes, sampling), seed=seed)


def validation_data(sources: Sequence[DataSource]) -> dict[str, InstructionDataset]:
    """Name -> what to validate on, for the sources that have a split for it."""
    return {
        source.label: InstructionDataset(
            source.rows(source.validation), source.label, format=source.validation_format()
        )
        for source in sources
        if source.validation is not None
    }


def _probabilities(sources: Sequence[DataSource], sizes: Mapping[str, int], sampling: Rule) -> dict[str, float]:
    factors = {
        source.label: source.factor * (TABLE[source.dataset].sampling_factor if source.is_known else 1)
        for source in sources
    }
    return sampling_probabilities(sizes, sampling, factors=factors)


def _table_size(source: DataSource) -> int:
    size = TABLE[source.dataset].sampling_size if source.is_known else None
    if size is None:
        raise ValueError(f"{source.label} is streamed and its size not known: write size: next to it")
    return size
