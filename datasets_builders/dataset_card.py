"""The README of published data: what it is, how large, under which terms, how to load it.

What is said of each config comes from `configs.json` beside the README, and from the table of datasets.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from datasets import DatasetInfo, Features, List, Value
from datasets.info import DatasetInfosDict
from datasets.splits import SplitDict, SplitInfo
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData

from instructblip.release import CITATION

from .mixture import paper_probabilities
from .own_format import TASK as OWN_TASK
from .schema import row_features
from .table import TABLE, DatasetSpec

BEGIN = "<!-- Written when data was pushed. What stands between these two lines is replaced by the next push. -->"
END = "<!-- The end of what is replaced. -->"
FREE = (
    "Apache-2.0",
    "BSD-3-Clause",
    "CC-BY-2.0",
    "CC-BY-3.0",
    "CC-BY-4.0",
    "CC-BY-SA-3.0",
    "CC-BY-SA-4.0",
    "CC0-1.0",
    "MIT",
)
SIZES = (
    (1e3, "n<1K"),
    (1e4, "1K<n<10K"),
    (1e5, "10K<n<100K"),
    (1e6, "100K<n<1M"),
    (1e7, "1M<n<10M"),
    (1e8, "10M<n<100M"),
)


@dataclasses.dataclass(frozen=True)
class PublishedSplit:
    """What a split holds."""

    rows: int
    samples: int
    unanswered: int
    num_bytes: int  # unpacked
    files: Mapping[str, int]  # path in the repository: size


@dataclasses.dataclass(frozen=True)
class PublishedConfig:
    """One entry of `configs.json`."""

    name: str  # of the config, and the "dataset" of its items
    several_images: bool
    task: str
    style: str
    answer_policy: str
    seed: int
    made_with: str  # version of this package, whose templates these are
    licence: str  # of data that is not in the table
    splits: Mapping[str, PublishedSplit]

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> "PublishedConfig":
        """From JSON.

        Raises:
            TypeError, KeyError: it is none.
        """
        splits = {split: PublishedSplit(**values) for split, values in entry["splits"].items()}
        return cls(**{**entry, "splits": splits})

    @property
    def spec(self) -> DatasetSpec | None:
        return TABLE.get(self.name)

    @property
    def files(self) -> list[str]:
        return [path for split in self.splits.values() for path in split.files]


def published_features(several_images: bool) -> Features:
    """The columns of published rows; `instruction` and `response` have one entry a sample."""
    texts = {"instruction": List(Value("string")), "response": List(Value("string"))}
    return Features({**row_features(several_images), **texts})


def terms(name: str) -> list[str]:
    """What stands in the way of giving a dataset to everyone; empty where its licence allows it."""
    spec = TABLE.get(name)
    found = []
    for entry in (spec, spec.source) if spec else ():
        if entry.non_commercial:
            found.append(f"not for commercial use ({entry.licence})")
        if entry.gated:
            found.append(f"handed out to those who accepted {entry.gated}")
        if not found and re.split(r"[ ,;]", entry.licence)[0] not in FREE:
            found.append(f"without a licence that allows to pass it on ({entry.licence})")
    return list(dict.fromkeys(found))


def write_card(repo_id: str, configs: Iterable[PublishedConfig], readme: str = "", dropped: Iterable[str] = ()) -> str:
    """The README after a push.

    Args:
        configs: all that the repository holds.
        readme: what it says now; what people wrote into it is kept.
        dropped: names of configs that it may still speak of and that are gone.
    """
    configs = sorted(configs, key=lambda config: config.name)
    card = DatasetCard(readme or "---\n{}\n---\n", ignore_metadata_errors=True)
    body = _body(repo_id, configs)
    section = f"{BEGIN}\n\n{body}\n\n{END}"
    if BEGIN in card.text and END in card.text:
        before, _, rest = card.text.partition(BEGIN)
        text = before + section + rest.partition(END)[2]
    else:
        text = f"{card.text.strip()}\n\n{section}\n"
    data = _metadata(repo_id, configs, card.data.to_dict(), dropped)
    return f"---\n{data.to_yaml()}\n---\n\n{text.strip()}\n"


def _metadata(
    repo_id: str, configs: list[PublishedConfig], present: dict[str, Any], dropped: Iterable[str]
) -> DatasetCardData:
    names = {config.name for config in configs} | set(dropped)
    made = ("configs", "dataset_info", "license", "license_name", "license_link")
    kept = {key: value for key, value in present.items() if key not in made}
    for key in ("configs", "dataset_info"):  # of other configs, which were pushed by other means
        entries = present.get(key) or []
        entries = entries if isinstance(entries, list) else [entries]
        others = [entry for entry in entries if entry.get("config_name", "default") not in names]
        if others:
            kept[key] = others
    rows = sum(split.rows for config in configs for split in config.splits.values())
    tasks = {"image-text-to-text", *(_hub_task(config) for config in configs)}
    tags = {*(present.get("tags") or []), "instruction-tuning", "instructblip"}
    data = DatasetCardData(
        **{
            "pretty_name": repo_id.split("/")[-1],
            "language": ["en"],
            **kept,
            **_licence(repo_id, configs),
            "task_categories": sorted(tasks),
            "size_categories": [next((size for limit, size in SIZES if rows < limit), "100M<n<1B")],
            "tags": sorted(tags),
        }
    )
    infos, files = {}, {}
    for config in configs:
        splits = SplitDict()
        for name, split in config.splits.items():
            splits.add(SplitInfo(name=name, num_bytes=split.num_bytes, num_examples=split.rows))
        infos[config.name] = DatasetInfo(
            features=published_features(config.several_images),
            splits=splits,
            config_name=config.name,
            download_size=sum(sum(split.files.values()) for split in config.splits.values()),
            dataset_size=sum(split.num_bytes for split in config.splits.values()),
        )
        files[config.name] = {
            "data_files": [{"split": split, "path": f"{config.name}/{split}-*.parquet"} for split in config.splits]
        }
    DatasetInfosDict(infos).to_dataset_card_data(data)
    MetadataConfigs(files).to_dataset_card_data(data)
    return data


def _licence(repo_id: str, configs: list[PublishedConfig]) -> dict[str, str]:
    licences = {config.spec.licence if config.spec else config.licence for config in configs}
    if len(licences) == 1 and (only := next(iter(licences))) in FREE:
        return {"license": only.lower()}
    link = f"https://huggingface.co/datasets/{repo_id}#licences"
    return {"license": "other", "license_name": "see-the-table-of-licences", "license_link": link}


def _hub_task(config: PublishedConfig) -> str:
    if config.several_images and config.spec and config.spec.category == "video question answering":
        return "video-text-to-text"
    return "image-to-text" if config.task == "caption" else "visual-question-answering"


def _body(repo_id: str, configs: list[PublishedConfig]) -> str:
    sections = [
        f"# {repo_id.split('/')[-1]}",
        "Images with what is asked about them, in one row schema, for tuning vision-language models on instructions. "
        "One row is one image (or video, as frames) with all its questions.",
        *_warnings(configs),
        "## How to load it",
        _usage(repo_id, configs),
        "## What is in it",
        _contents(configs),
        "## Columns",
        _columns(configs),
        "## How instructions and responses were made",
        _rendering(configs),
        "## Sampling weights",
        _weights(configs),
        "## Licences",
        "Each config keeps the terms of its source. The licence is that of questions, answers and captions; where "
        "nothing else is said, images belong to those who made them.",
        _table(["config", "licence", "where it comes from"], [_origin(config) for config in configs]),
        "## Citation",
        "```bibtex\n" + "\n\n".join(_citations(configs)) + "\n```",
    ]
    return "\n\n".join(sections)


def _warnings(configs: list[PublishedConfig]) -> list[str]:
    lines = [f"> `{config.name}` is {' and '.join(terms(config.name))}." for config in configs if terms(config.name)]
    return ["\n>\n".join(["> [!WARNING]\n> Not all of this may be used by everyone.", *lines])] if lines else []


def _usage(repo_id: str, configs: list[PublishedConfig]) -> str:
    config = configs[0]
    split = next(iter(config.splits))
    own = not config.spec and config.task == OWN_TASK
    how = "" if config.spec else f', format=own_format("{config.name}")' if own else f', task="{config.task}"'
    return f"""Only `datasets` is needed:

```python
import datasets

rows = datasets.load_dataset("{repo_id}", "{config.name}", split="{split}", streaming=True)
row = next(iter(rows))
print(row["instruction"][0], "->", row["response"][0])
```

The package `instructblip` draws other instructions each epoch and mixes configs:

```python
from instructblip.datasets_builders import InstructionDataset, load{", own_format" if own else ""}

rows = load("{config.name}", repo_id="{repo_id}", split="{split}")
item = InstructionDataset(rows, "{config.name}"{how})[0]
```"""


def _contents(configs: list[PublishedConfig]) -> str:
    rows = []
    for config in configs:
        spec = config.spec
        about = (spec.title, spec.category, spec.role.replace("_", "-")) if spec else (config.name, config.task, "own")
        for name, split in config.splits.items():
            counts = (f"{split.rows:,}", f"{split.samples:,}", f"{split.unanswered:,}")
            rows.append((f"`{config.name}`", *about, name, *counts))
    head = ["config", "dataset", "category", "role", "split", "images", "samples", "without answer"]
    return _table(head, rows) + (
        "\n\nThe role is that in the paper of InstructBLIP: held-in sets are trained on, held-out sets only evaluated."
    )


def _columns(configs: list[PublishedConfig]) -> str:
    names = {"images" if config.several_images else "image" for config in configs}
    about = {"image": "the picture", "images": "the pictures, or the frames of a video in order"}
    rows = [(f"`{name}`", about[name]) for name in sorted(names)]
    rows += [
        ("`image_id`", 'the same in all datasets of one source: "coco/000000391895"'),
        ("`samples`", "all that is asked: `id`, `question`, `answers` of all annotators, `choices`, `label` (index of "
         "the right choice, -1 for none), `context`, `ocr_tokens`, `history`, `tags`"),
        ("`instruction`", "one for each sample: the question in the words of a template"),
        ("`response`", 'one for each sample; "" where the sample has no answer'),
    ]  # fmt: skip
    return _table(["column", "what it holds"], rows)


def _rendering(configs: list[PublishedConfig]) -> str:
    about = {
        "most_frequent": "the answer given most often",
        "sampled": "one of the answers, drawn; frequent ones come often",
    }
    rows = []
    for each in configs:
        response = (
            "the question; the answer is in the instruction"
            if each.task == "vqg"
            else about.get(each.answer_policy, "?")
        )
        rows.append((f"`{each.name}`", f"{each.task}, instructblip {each.made_with}", each.style, response, each.seed))
    return (
        "One draw, the same whenever it is made again: it depends on the seed and the sample's id. To draw anew, make "
        "instructions from `samples`.\n\n" + _table(["config", "templates", "style", "response", "seed"], rows)
    )


def _weights(configs: list[PublishedConfig]) -> str:
    names = [config.name for config in configs if config.spec and config.spec.sampling_size is not None]
    if not names:
        return "None of the configs is of the mixture that the paper trains on, so it gives no weights for them."
    weights = paper_probabilities(names)
    rows = [(f"`{name}`", f"{TABLE[name].sampling_size:,}", f"{weight:.3f}") for name, weight in weights.items()]
    return (
        "Of the configs that the paper trains on: the square root of the number of training examples, times the "
        "config's factor where it has one, over the sum of all here.\n\n"
        + _table(["config", "training examples", "probability"], rows)
    )


def _origin(config: PublishedConfig) -> tuple[str, ...]:
    if config.spec is None:
        return f"`{config.name}`", config.licence or "not stated", "not stated"
    return f"`{config.name}`", config.spec.licence, config.spec.homepage


def _citations(configs: list[PublishedConfig]) -> list[str]:
    found = {config.spec.citation_key: config.spec.citation.strip() for config in configs if config.spec}
    return [CITATION, *(found[key] for key in sorted(found))]


def _table(head: list[str], rows: Iterable[Iterable[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    cells = ([str(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
