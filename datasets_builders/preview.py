"""A look at the data: one HTML page with a sample of it, and its texts in numbers.

    preview(InstructionDataset(rows, "vqa_rad"), "preview.html")

    instructblip-data preview vqa_rad=examples/vqa_rad/data mine=data/train.jsonl --split train

The page stands alone: pictures are small JPEGs inside it, and there is no script and nothing to fetch. All text of the
data is escaped.
"""

import argparse
import base64
import collections
import dataclasses
import html
import io
import itertools
import os
import random
import re
import uuid
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
from PIL import Image

from ..processing.image_loading import open_image
from .instructions import InstructionDataset
from .loading import load
from .mixture import InstructionMixture
from .own_data import load_own
from .own_format import own_format
from .table import TABLE

THUMBNAIL = 400  # pixels of the longer side
MOST_IMAGES = 8  # shown of an item
MOST_CHARACTERS = 1500  # shown of a text
MOST_FREQUENT = 8  # answers listed
OPENED = 4  # datasets whose numbers are unfolded
SECURITY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclasses.dataclass(frozen=True)
class Lengths:
    """How long texts are, in tokens or words."""

    mean: float
    median: int
    ninety: int  # nine of ten are not longer
    ninety_nine: int
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> "Lengths":
        ordered = np.sort(np.asarray(lengths, dtype=np.int64))
        quantiles = [int(np.quantile(ordered, share, method="inverted_cdf")) for share in (0.5, 0.9, 0.99)]
        return cls(float(ordered.mean()), *quantiles, int(ordered[-1]))


@dataclasses.dataclass(frozen=True)
class TextStatistics:
    """What the items of a dataset are like."""

    items: int  # counted; a sample where there are very many
    unanswered: float  # share of samples that have no answer, and so give no item or an empty response
    unit: str  # of the lengths: "tokens" or "words"
    instruction: Lengths
    response: Lengths
    frequent: tuple[tuple[str, float], ...]  # the most frequent responses and their shares
    different: int  # responses


def preview(
    dataset: Any,
    path: str | os.PathLike,
    count: int = 48,
    tokenizer: Any = None,
    seed: int = 0,
    counted: int = 10_000,
) -> dict[str, TextStatistics]:
    """Write the page and print the statistics.

    Args:
        dataset: anything with a length whose items have "instruction", "response", and "image" or "images": an
            `InstructionDataset`, an `InstructionMixture`, a list of samples.
        path: of the HTML file; it is there when it is whole.
        count: items shown, drawn at random.
        tokenizer: counts tokens; without one, words are counted.
        seed: decides the draw.
        counted: items that the statistics are made from, drawn at random.

    Returns:
        Name of the dataset -> statistics, and for several also "all".

    Raises:
        ValueError: a dataset without items, or an item without instruction or response.
    """
    if not len(dataset):
        raise ValueError("the dataset has no item to look at")
    found = statistics(dataset, tokenizer, counted, seed)
    page = render_page(dataset, found, count, seed)
    path = os.fspath(path)
    partial = f"{path}.{uuid.uuid4().hex}.partial"
    try:
        with open(partial, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(page)
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.unlink(partial)
    print(describe_statistics(found))
    return found


def statistics(dataset: Any, tokenizer: Any = None, counted: int = 10_000, seed: int = 0) -> dict[str, TextStatistics]:
    """Lengths and answers of a dataset, and of each that a mixture has; see `preview`."""
    texts: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for index in drawn(len(dataset), counted, seed):
        item = _text(dataset, index)
        texts[str(item.get("dataset") or "data")].append(item)
    unanswered = _unanswered(dataset)
    found = {name: _statistics_of(texts[name], unanswered.get(name, (0, 0)), tokenizer) for name in sorted(texts)}
    if len(found) > 1:
        every = [item for items in texts.values() for item in items]
        total = tuple(sum(part) for part in zip(*unanswered.values(), strict=True)) or (0, 0)
        found = {"all": _statistics_of(every, total, tokenizer), **found}
    return found


def drawn(length: int, count: int, seed: int) -> list[int]:
    """`count` different places out of `length`, all where there are not more; ascending."""
    return sorted(random.Random(seed).sample(range(length), count)) if count < length else list(range(length))


def _text(dataset: Any, index: int) -> dict[str, Any]:
    """An item, without its image where the dataset can leave that out.

    Raises:
        ValueError: it lacks instruction or response.
    """
    item = dataset.text(index) if hasattr(dataset, "text") else dataset[index]
    for key in ("instruction", "response"):
        if not isinstance(item, Mapping) or not isinstance(item.get(key), str):
            keys = ", ".join(map(repr, item)) if isinstance(item, Mapping) else type(item).__name__
            raise ValueError(f"item {index} has no text under {key!r}: found {keys}")
    return dict(item)


def _unanswered(dataset: Any) -> dict[str, tuple[int, int]]:
    """Name -> (samples without an answer, which give no item; items) for datasets that count them."""
    parts = dataset.datasets if hasattr(dataset, "datasets") else {getattr(dataset, "name", ""): dataset}
    return {name: (part.unanswered, len(part)) for name, part in parts.items() if hasattr(part, "unanswered")}


def _statistics_of(items: list[dict[str, Any]], unanswered: tuple[int, int], tokenizer: Any) -> TextStatistics:
    left_out, kept = unanswered
    responses = collections.Counter(item["response"].strip() for item in items)
    empty = responses.pop("", 0) / len(items)
    share = left_out / (left_out + kept) if left_out else 0.0
    return TextStatistics(
        items=len(items),
        unanswered=share + (1 - share) * empty,
        unit="words" if tokenizer is None else "tokens",
        instruction=Lengths.of(_lengths([item["instruction"] for item in items], tokenizer)),
        response=Lengths.of(_lengths([item["response"] for item in items], tokenizer)),
        frequent=tuple((text, number / len(items)) for text, number in responses.most_common(MOST_FREQUENT)),
        different=len(responses),
    )


def _lengths(texts: list[str], tokenizer: Any) -> list[int]:
    if tokenizer is None:
        return [len(text.split()) for text in texts]
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def describe_statistics(found: Mapping[str, TextStatistics]) -> str:
    """The statistics as a few lines of plain text each."""
    blocks = []
    for name, about in found.items():
        lines = [f"{name}: items counted: {about.items:,}; unanswered: {about.unanswered:.1%}"]
        lines.append(f"  {about.unit:<12}{'mean':>8}{'median':>8}{'90 %':>8}{'99 %':>8}{'most':>8}")
        for kind, lengths in (("instruction", about.instruction), ("response", about.response)):
            numbers = (lengths.median, lengths.ninety, lengths.ninety_nine, lengths.longest)
            lines.append(f"  {kind:<12}{lengths.mean:>8.1f}" + "".join(f"{number:>8}" for number in numbers))
        frequent = ", ".join(f"{shortened(text, 40)!r} {share:.1%}" for text, share in about.frequent)
        lines.append(f"  different responses: {about.different:,}; most frequent: {frequent or 'none'}")
        blocks.append("\n".join(lines))
    return "\n".join(blocks)


# ---- The command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `run` needs to know."""
    parser.add_argument(
        "data",
        nargs="+",
        metavar="NAME[=PLACE]",
        help="a dataset of the table, with the folder of its files or the Hub repository that has it; or data of your "
        "own: a file, a folder or a Hub id, with a name in front if you like. Several are mixed",
    )
    parser.add_argument("--out", default="preview.html", help="the page to write (default %(default)s)")
    parser.add_argument("--split", default="train", help="default %(default)s")
    parser.add_argument(
        "--rows", type=positive, help="look at this many rows from the start; nothing else is read or built"
    )
    parser.add_argument("--count", type=positive, default=48, help="items on the page (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw and the wordings (default %(default)s)")
    parser.add_argument("--tokenizer", metavar="MODEL", help="Hub id or folder; counts tokens instead of words")
    parser.add_argument(
        "--columns", nargs="+", default=[], metavar="OURS=THEIRS", type=_renamed,
        help="what your own data call our fields, such as response=output; OURS= for a field that they do not have",
    )  # fmt: skip
    parser.add_argument("--image-dir", help="images of your own files, where they are not beside them")
    parser.add_argument(
        "--on-bad", choices=("raise", "skip"), default="raise", help="stop at a bad row or image, or leave it out"
    )


def _renamed(text: str) -> tuple[str, str | None]:
    ours, named, theirs = text.partition("=")
    if not named:
        raise argparse.ArgumentTypeError(f"{text!r}: expected OURS=THEIRS")
    return ours, theirs or None


def positive(text: str) -> int:
    """A whole number of 1 or more, for `argparse`."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected 1 or more")
    return int(text)


def run(options: argparse.Namespace) -> None:
    """Preview what the command line names."""
    parts = dict(_dataset(given, options) for given in options.data)
    if len(parts) < len(options.data):
        raise ValueError(f"{' '.join(options.data)}: give each a name of its own, NAME=PLACE")
    tokenizer = None
    if options.tokenizer:
        from transformers import AutoTokenizer  # seconds, for those who count tokens

        tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    dataset = next(iter(parts.values())) if len(parts) == 1 else InstructionMixture(parts, seed=options.seed)
    preview(dataset, options.out, options.count, tokenizer, options.seed)
    print(f"wrote {options.out}")


def _dataset(given: str, options: argparse.Namespace) -> tuple[str, InstructionDataset]:
    name, named, place = given.partition("=")
    settings = {"split": options.split, "streaming": options.rows is not None}
    if options.on_bad != "raise":  # rows that were built have no bad ones, and take no such option
        settings["on_bad"] = options.on_bad
    if name in TABLE:
        here = place if os.path.isdir(place) else None
        if place and not here and not re.fullmatch(r"\w[\w.-]*/[\w.-]+", place):
            raise FileNotFoundError(f"{given}: there is no folder {place}, and no repository can be called so")
        rows = load(name, here, repo_id=place if place and not here else None, **settings)
        return name, InstructionDataset(_first(rows, options.rows), name, seed=options.seed)
    rows = load_own(place if named else given, options.image_dir, columns=dict(options.columns), **settings)
    name = name if named else os.path.basename(os.path.abspath(given)).partition(".")[0]
    return name, InstructionDataset(_first(rows, options.rows), name, format=own_format(name, seed=options.seed))


def _first(rows: Any, count: int | None) -> datasets.Dataset:
    if count is None:
        return rows
    return datasets.Dataset.from_list(list(itertools.islice(rows, count)), features=rows.features)


# ---- The page


def render_page(dataset: Any, found: Mapping[str, TextStatistics], count: int, seed: int) -> str:
    """The page as text; see `preview`."""
    shown = drawn(len(dataset), count, seed)
    cards = "\n".join(_card(dataset, index) for index in shown)
    names = [name for name in found if name != "all" or len(found) == 1]
    title = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    summary = f"{len(shown):,} of {len(dataset):,} items, drawn with seed {seed}"
    if getattr(dataset, "epoch", None) is not None:
        summary += f", worded for epoch {dataset.epoch}"
    tables = "\n".join(
        _statistics_section(name, about, opened=number < OPENED) for number, (name, about) in enumerate(found.items())
    )
    body = f"""<header>
<h1>{_escaped(title)}</h1>
<p>{_escaped(summary)}</p>
</header>
<section class="numbers">
{tables}
</section>
<main>
{cards}
</main>"""
    return html_page(title, body)


def html_page(title: str, body: str, style: str = "") -> str:
    """A page in our style that stands alone: no script and nothing to fetch.

    Args:
        title: plain text.
        body: HTML.
        style: CSS after the common one.
    """
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{SECURITY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_escaped(title)}</title>
<style>{STYLE}{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def _card(dataset: Any, index: int) -> str:
    broken = ""
    try:
        item = dict(dataset[index])
    except OSError as error:  # a broken image is what one wants to see here
        item, broken = _text(dataset, index), str(error)
    pictures = f'<p class="note">{_escaped(broken)}</p>' if broken else _pictures(item, index)
    name = str(item.get("dataset") or "")
    badge = f'<span class="badge" style="--hue: {_hue(name)}">{_escaped(name)}</span>' if name else ""
    template = item.get("template")
    used = f'<p class="template" title="template">{_escaped(shortened(str(template)))}</p>' if template else ""
    history = "".join(
        f'<p class="turn">{_escaped(shortened(str(turn.get("question", ""))))}<br>'
        f"{_escaped(shortened(str(turn.get('answer', ''))))}</p>"
        for turn in item.get("history") or []
    )
    response = _escaped(shortened(item["response"])) or '<span class="note">unanswered</span>'
    return f"""<article>
{pictures}
<div class="text">
<p class="of">{badge}<span class="id">{_escaped(str(item.get("id", index)))}</span></p>
{history}<p class="instruction" dir="auto">{_escaped(shortened(item["instruction"]))}</p>
<p class="response" dir="auto">{response}</p>
{used}</div>
</article>"""


def _pictures(item: Mapping[str, Any], index: int) -> str:
    images = item.get("images") if item.get("images") is not None else [item.get("image")]
    images = [image for image in images or [] if image is not None]
    if not images:
        return '<p class="note">no image</p>'
    tags = []
    for number, image in enumerate(images[:MOST_IMAGES]):
        try:
            data = base64.b64encode(thumbnail(image, f"image {number} of item {index}")).decode("ascii")
            tags.append(f'<img alt="" loading="lazy" src="data:image/jpeg;base64,{data}">')
        except ValueError as error:
            tags.append(f'<p class="note">{_escaped(str(error))}</p>')
    more = f'<p class="note">and {len(images) - MOST_IMAGES} more</p>' if len(images) > MOST_IMAGES else ""
    kind = "pictures several" if len(images) > 1 else "pictures"
    return f'<div class="{kind}">{"".join(tags)}</div>{more}'


def thumbnail(image: Any, name: str) -> bytes:
    """A small JPEG of anything that the processor opens, as it opens it: without transparency.

    Raises:
        ValueError: the image cannot be read; calls it `name`.
    """
    picture = open_image(image, name)
    if not isinstance(picture, Image.Image):
        array = np.asarray(picture)
        if array.ndim == 3 and array.shape[0] == 3 and array.shape[2] != 3:
            array = array.transpose(1, 2, 0)  # channels first, as tensors have them
        if array.dtype != np.uint8:
            array = (np.clip(array, 0, 1 if array.max() <= 1 else 255) * (255 if array.max() <= 1 else 1)).astype(
                np.uint8
            )
        picture = Image.fromarray(array)
    picture = picture.convert("RGB")
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80, optimize=True)
    return file.getvalue()


def _statistics_section(name: str, about: TextStatistics, opened: bool) -> str:
    rows = "".join(
        f"<tr><th>{kind}</th><td>{lengths.mean:.1f}</td><td>{lengths.median}</td><td>{lengths.ninety}</td>"
        f"<td>{lengths.ninety_nine}</td><td>{lengths.longest}</td></tr>"
        for kind, lengths in (("instruction", about.instruction), ("response", about.response))
    )
    largest = max((share for _, share in about.frequent), default=1.0)
    bars = "".join(
        f'<li><span class="bar" style="width: {100 * share / largest:.1f}%"></span>'
        f'<span class="answer" dir="auto">{_escaped(shortened(text, 80))}</span>'
        f'<span class="share">{share:.1%}</span></li>'
        for text, share in about.frequent
    )
    return f"""<details{" open" if opened else ""}>
<summary>{_escaped(name)} <small>items counted: {about.items:,}; unanswered: {about.unanswered:.1%}</small></summary>
<table>
<tr><th>{about.unit}</th><th>mean</th><th>median</th><th>90 %</th><th>99 %</th><th>most</th></tr>
{rows}
</table>
<ol style="--hue: {_hue(name)}">{bars}</ol>
<p class="note">different responses: {about.different:,}</p>
</details>"""


def _escaped(text: str) -> str:
    return html.escape(text, quote=True)


def shortened(text: str, most: int = MOST_CHARACTERS) -> str:
    """A text that is not too long to show."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text) - most:,} more characters)"


def _hue(name: str) -> int:
    return zlib.crc32(name.encode("utf-8", "backslashreplace")) % 360


STYLE = """
:root {
  color-scheme: light dark;
  --ground: #f6f5f2; --card: #ffffff; --ink: #1d1d1f; --soft: #6b6b70; --line: #e4e2dc; --mat: #efede8;
}
@media (prefers-color-scheme: dark) {
  :root { --ground: #151517; --card: #1f1f22; --ink: #ececee; --soft: #9a9aa2; --line: #323238; --mat: #29292e; }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 92rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", "Noto Sans", sans-serif;
}
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; font-weight: 650; letter-spacing: -0.02em; }
h1, summary, .note, .text p { overflow-wrap: anywhere; }
header p { margin: 0.4rem 0 0; color: var(--soft); }
p, ol { margin: 0; }
.numbers {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(21rem, 1fr)); gap: 1rem; align-items: start;
  margin: 1.8rem 0 2rem;
}
details, article { background: var(--card); border: 1px solid var(--line); border-radius: 12px; min-width: 0; }
details { padding: 1rem 1.2rem; }
summary { font-weight: 600; cursor: default; }
summary small { display: block; font-weight: 400; font-size: 0.82rem; color: var(--soft); }
table, .share { font-variant-numeric: tabular-nums; }
table { width: 100%; margin: 0.7rem 0; border-collapse: collapse; font-size: 0.82rem; }
th { font-weight: 500; color: var(--soft); text-align: right; padding: 0.15rem 0; }
td { text-align: right; padding: 0.15rem 0; }
tr + tr > * { border-top: 1px solid var(--line); }
th:first-child { text-align: left; }
ol { padding: 0; list-style: none; font-size: 0.85rem; }
li {
  position: relative; display: flex; justify-content: space-between; gap: 1rem;
  padding: 0.12rem 0.45rem; margin: 2px 0;
}
.bar { position: absolute; inset: 0 auto 0 0; border-radius: 5px; background: hsl(var(--hue) 55% 55% / 0.2); }
.answer { position: relative; min-width: 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.share { position: relative; color: var(--soft); }
.note { color: var(--soft); font-size: 0.82rem; }
main { columns: 20rem; column-gap: 1.1rem; }
article { break-inside: avoid; margin: 0 0 1.1rem; overflow: hidden; }
article > .note { padding: 0.9rem 1.1rem 0; }
.pictures { background: var(--mat); }
.pictures .note { padding: 0.9rem 1.1rem; }
.pictures img { display: block; width: 100%; max-height: 24rem; object-fit: contain; }
.pictures.several { display: grid; grid-template-columns: repeat(2, 1fr); gap: 2px; align-items: center; }
.text { padding: 0.9rem 1.1rem 1rem; }
.text p { white-space: pre-wrap; unicode-bidi: isolate; }
.text .of { display: flex; align-items: baseline; gap: 0.6rem; margin-bottom: 0.55rem; white-space: normal; }
.badge {
  flex: none; max-width: 60%; padding: 0.05rem 0.55rem; border-radius: 99px; font-size: 0.75rem; font-weight: 600;
  color: hsl(var(--hue) 55% 32%); background: hsl(var(--hue) 60% 50% / 0.16);
}
@media (prefers-color-scheme: dark) { .badge { color: hsl(var(--hue) 65% 76%); } }
.id { font: 0.72rem/1.4 ui-monospace, "SF Mono", "DejaVu Sans Mono", monospace; color: var(--soft); min-width: 0; }
.turn { margin-bottom: 0.5rem; color: var(--soft); font-size: 0.9rem; }
.response {
  margin-top: 0.6rem; padding: 0.05rem 0 0.05rem 0.8rem; border-left: 3px solid hsl(150 45% 45%); font-weight: 500;
}
.template {
  margin-top: 0.8rem; padding-top: 0.55rem; border-top: 1px solid var(--line); color: var(--soft);
  font: 0.72rem/1.45 ui-monospace, "SF Mono", "DejaVu Sans Mono", monospace;
}
@media print { details, article { border-color: #ccc; } }
"""
