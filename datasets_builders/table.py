"""What differs between the datasets and is no code: one file each in `specs/`, one entry each in `TABLE`.

An entry lists under `recalled` its facts that no public document seen by us confirms ("counts.2017/train.answers");
all others were checked against the owners' pages or counted in the files.
"""

import dataclasses
import importlib.resources
from collections.abc import Mapping
from typing import Literal, get_args

import yaml

from .hub_copies import HubCopy, read_hub_copies

Category = Literal[
    "image captioning",
    "image captioning with reading comprehension",
    "visual reasoning",
    "image question answering",
    "knowledge-grounded image question answering",
    "image question answering with reading comprehension",
    "image question generation",
    "video question answering",
    "visual conversational question answering",
    "image classification",
    "LLaVA-Instruct-150K",
]  # the paper's eleven (Fig. 2)
Role = Literal["held_in", "held_out", "extra"]  # in the paper's mixture; "extra": not one of its 26
AnswerPolicy = Literal["most_frequent", "sampled", "all"]  # see `instructions.InstructionFormat`
Method = Literal["generate", "rank"]


@dataclasses.dataclass(frozen=True)
class Counts:
    """What a split holds when nothing is left out; None: not known."""

    rows: int | None  # visual inputs
    samples: int | None
    answers: int | None


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """One dataset."""

    name: str  # of the file, and in `load`
    title: str
    category: Category
    role: Role
    task: str  # family of templates in `templates.TEMPLATES`
    licence: str
    access: str  # how to get the files, and terms to accept
    homepage: str
    hub: tuple[HubCopy, ...]  # copies on the Hub and what their columns mean
    prompt: str  # for evaluation; the paper's appendix E where it has one
    metric: str
    method: Method
    citation_key: str
    citation: str  # BibTeX
    builder: str = ""  # class in the module that is named like the dataset
    rows_from: str = ""  # or the dataset whose rows this one asks about in another way; then it has no builder
    config: str | None = None  # the builder's variant that is meant; None: the builder's own default
    splits: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)  # split -> places of its file in
    # data_dir, of which the first that is there is read; {config} is filled in, and `*` stands for many files
    counts: Mapping[str, Counts] = dataclasses.field(default_factory=dict)  # "config/split"
    sampling_size: int | None = None  # training examples that square-root sampling counts; held-in sets only
    sampling_factor: float = 1.0  # what its share is multiplied by before the shares are made to sum to 1
    non_commercial: bool = False
    gated: str = ""  # what must be accepted, and where, before the files may be had
    answer_policy: AnswerPolicy = "most_frequent"
    lowercase_answers: bool = False  # for sets that spell one answer in several ways, "Yes" and "yes"
    recalled: tuple[str, ...] = ()

    @property
    def source(self) -> "DatasetSpec":
        """The dataset that has the builder: this one, or the one in `rows_from`."""
        return TABLE[self.rows_from] if self.rows_from else self


def read_spec(name: str, text: str) -> DatasetSpec:
    """An entry from its YAML file.

    Raises:
        ValueError: an unknown or missing key, or a value that is none of those allowed; names dataset and key.
    """
    entry = yaml.safe_load(text)
    fields = {field.name: field for field in dataclasses.fields(DatasetSpec)}
    unknown = entry.keys() - fields.keys() | entry.keys() & {"name"}
    missing = {
        key
        for key, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    } - {"name", *entry}
    if unknown or missing:
        raise ValueError(f"specs/{name}.yaml: unknown keys {sorted(unknown)}, missing keys {sorted(missing)}")
    choices = {"category": Category, "role": Role, "answer_policy": AnswerPolicy, "method": Method}
    for key, allowed in choices.items():
        if key in entry and entry[key] not in get_args(allowed):
            raise ValueError(f"specs/{name}.yaml: {key} {entry[key]!r} is none of {', '.join(get_args(allowed))}")
    if bool(entry.get("builder")) == bool(entry.get("rows_from")):
        raise ValueError(f"specs/{name}.yaml: give either builder or rows_from")
    entry["splits"] = {split: tuple(places) for split, places in entry.get("splits", {}).items()}
    entry["counts"] = {key: Counts(**counts) for key, counts in entry.get("counts", {}).items()}
    entry["hub"] = read_hub_copies(name, entry["hub"])
    entry["recalled"] = tuple(entry.get("recalled", ()))
    return DatasetSpec(name=name, **entry)


def _read_table() -> dict[str, DatasetSpec]:
    files = importlib.resources.files(__package__).joinpath("specs").iterdir()
    texts = {file.name.removesuffix(".yaml"): file.read_text("utf-8") for file in files if file.name.endswith(".yaml")}
    return {name: read_spec(name, texts[name]) for name in sorted(texts)}


TABLE: dict[str, DatasetSpec] = _read_table()
