"""`instructblip-data`: what datasets there are, building, publishing and looking at them."""

import argparse
import itertools
import logging
import os
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import datasets
from huggingface_hub.errors import HfHubHTTPError

from . import dataset_card, loading, preview, publishing
from .table import TABLE, DatasetSpec

USE_ERRORS = 2  # exit status where the command cannot mean anything, as argparse has it; 1 where it fails


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; what is wrong with the data or the request is one line, and no traceback."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        return options.run(options) or 0
    except datasets.exceptions.DatasetGenerationError as error:
        return _fail(error.__cause__ or error)
    except (ValueError, TypeError, OSError) as error:
        return _fail(error)
    except HfHubHTTPError.__bases__ as error:  # of the HTTP client beneath, whichever it is
        return _fail(f"the Hub cannot be reached: {error}")
    except KeyboardInterrupt:
        return _fail("stopped; the same command goes on where it was", 130)


def _fail(error: BaseException | str, status: int = 1) -> int:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    print(f"instructblip-data: {' '.join(line.strip() for line in lines)}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="instructblip-data", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("list", help="datasets, their sizes and terms, and how to get them")
    command.add_argument("names", nargs="*", metavar="NAME", type=_dataset, help="tell all about these")
    command.add_argument(
        "--role", choices=("held_in", "held_out", "extra"), help="only those of this role in the paper"
    )
    command.set_defaults(run=_list)

    command = commands.add_parser("build", help="official files -> Parquet with images, one row an image")
    command.add_argument("name", metavar="NAME", type=_dataset)
    command.add_argument("--data-dir", required=True, help="folder with the official files")
    command.add_argument("--out", required=True, help="folder that gets a folder NAME with the Parquet files")
    command.add_argument("--splits", nargs="+", default=[], metavar="SPLIT", help="default: all whose files are there")
    _add_building(command)
    command.set_defaults(run=_build)

    command = commands.add_parser("push", help="official files, or what build made, -> a dataset repository on the Hub")
    command.add_argument(
        "names", nargs="+", metavar="NAME", type=_datasets,
        help="each becomes a config; held-in and held-out stand for the paper's 13 each",
    )  # fmt: skip
    command.add_argument("--repo", required=True, metavar="OWNER/NAME", help="made, and private, where it is not there")
    command.add_argument(
        "--data-dir", required=True,
        help="folder with a folder NAME for each (question generation takes that of its questions, a part of "
        "LLaVA-Instruct that of the whole), or that of the one NAME",
    )  # fmt: skip
    command.add_argument("--public", action="store_true", help="make the repository public")
    command.add_argument(
        "--accept-terms", nargs="+", default=[], metavar="NAME", type=_dataset,
        help="datasets that you may publish although their terms do not let everyone have them",
    )  # fmt: skip
    command.add_argument("--seed", type=int, default=0, help="of the draw of instructions (default 0)")
    command.add_argument(
        "--work-dir", help="where one shard at a time and the progress are kept (default: in the cache)"
    )
    _add_building(command)
    command.set_defaults(run=_push)

    command = commands.add_parser("preview", help="a page with pictures, instructions and responses, and statistics")
    preview.add_arguments(command)
    command.set_defaults(run=preview.run)
    return parser


def _add_building(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", help="variant that the dataset has; default: the one the paper uses")
    command.add_argument("--num-proc", type=preview.positive, default=1, help="processes that build (default 1)")
    command.add_argument("--shards", type=preview.positive, help="parts that a split is cut into (default 16)")
    command.add_argument(
        "--on-bad", choices=("raise", "skip"), default="raise", help="stop at a bad row or image, or leave it out"
    )


def _dataset(name: str) -> str:
    if name not in TABLE:
        raise argparse.ArgumentTypeError(f"no dataset {name!r}: there are {', '.join(TABLE)}")
    return name


def _datasets(name: str) -> list[str]:
    roles = {"held-in": "held_in", "held-out": "held_out"}
    if name in roles:
        return [spec.name for spec in TABLE.values() if spec.role == roles[name]]
    return [_dataset(name)]


def _list(options: argparse.Namespace) -> None:
    specs = [spec for spec in TABLE.values() if options.role in (None, spec.role)]
    if options.names:
        print("\n\n".join(_describe(TABLE[name]) for name in options.names))
        return
    head = ("name", "role", "category", "images", "samples", "on the Hub", "licence")
    lines = [head, *(_line(spec) for spec in specs)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head) - 1)]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=False)]
        print("  ".join([*cells, line[-1]]).rstrip())
    print("\nimages and samples: of the variant that is taken by default, all splits; +: and splits of unknown size")
    print("licence *: not everyone may have it; `instructblip-data list NAME` tells why, and how to get the files")


def _line(spec: DatasetSpec) -> tuple[str, ...]:
    counts = [counts for key, counts in spec.source.counts.items() if key.split("/")[0] == loading.default_config(spec)]
    sizes = (_total(count.rows for count in counts), _total(count.samples for count in counts))
    on_hub = ",".join(
        dict.fromkeys(split for copy in loading.known_copies(spec.name, None, None) for split in copy.splits)
    )
    mark = "* " if dataset_card.terms(spec.name) else ""
    return (
        spec.name,
        spec.role.replace("_", "-"),
        spec.category,
        *sizes,
        on_hub or "-",
        mark + textwrap.shorten(spec.licence.split(" (")[0], 44),
    )


def _total(values: Iterable[int | None]) -> str:
    values = list(values)
    known = [value for value in values if value is not None]
    if not known:
        return "?"
    return f"{sum(known):,}{'+' if len(known) < len(values) else ''}"


def _describe(spec: DatasetSpec) -> str:
    lines = [f"{spec.name}: {spec.title}", f"{spec.category}, {spec.role.replace('_', '-')}", spec.homepage]
    for key, counts in spec.source.counts.items():
        sizes = (f"{name} {value:,}" for name, value in vars(counts).items() if value is not None)
        lines.append(f"{key}: {', '.join(sizes)}")
    lines += [f"licence: {spec.licence}", *(f"terms: {each}" for each in dataset_card.terms(spec.name))]
    lines.append(f"how to get it: {spec.access}")
    for split, places in spec.source.splits.items():
        lines.append(f"file of {split}: {' or '.join(places)}")
    for copy in spec.hub or spec.source.hub:
        variant = f", variant {copy.variant}" if copy.variant else ""
        lines.append(
            f"on the Hub: {copy.repo} ({', '.join(copy.splits)}{variant}){'. ' if copy.note else ''}{copy.note}"
        )
    return "\n  ".join(lines)


def _build_options(options: argparse.Namespace) -> dict[str, Any]:
    shards = {"shards": options.shards} if options.shards else {}
    return {"config": options.config, "on_bad": options.on_bad, **shards}


def _build(options: argparse.Namespace) -> None:
    made = loading.builder(options.name, options.data_dir, splits=tuple(options.splits), **_build_options(options))
    out = os.path.join(os.path.abspath(os.path.expanduser(options.out)), options.name)
    made.download_and_prepare(output_dir=out, file_format="parquet", num_proc=options.num_proc)
    for split, info in made.info.splits.items():
        skipped = len(made.skipped(split))
        print(
            f"{options.name}/{split}: {info.num_examples:,} rows{f', {skipped:,} bad ones left out' if skipped else ''}"
        )
    print(f"in {out}")


def _push(options: argparse.Namespace) -> int:
    names = list(dict.fromkeys(itertools.chain.from_iterable(options.names)))
    if options.config and len(names) > 1:
        return _fail(f"--config {options.config} is of one dataset, and there are {len(names)}", USE_ERRORS)
    publishing.check_terms(names, options.accept_terms, public=options.public)
    folders = {name: _folder(name, options.data_dir, alone=len(names) == 1) for name in names}
    for name, folder in folders.items():
        is_built = loading.holds_rows(folder)
        settings = {"config": options.config} if is_built else _build_options(options)
        rows = loading.load(name, folder, num_proc=options.num_proc, **settings)
        commits = publishing.push(
            {name: rows}, options.repo, private=not options.public, accept_terms=options.accept_terms,
            seed=options.seed, work_dir=options.work_dir,
        )  # fmt: skip
        print(f"{name}: in {options.repo} since {commits[name]}")
    return 0


def _folder(name: str, data_dir: str, alone: bool) -> str:
    """Where the files of a dataset are: in a folder of its name, or of the dataset whose rows it takes."""
    root = os.path.expanduser(data_dir)
    places = [os.path.join(root, each) for each in (name, TABLE[name].source.name)]
    found = next((place for place in places if os.path.isdir(place)), None)
    if found is None and not alone:
        raise FileNotFoundError(f"{places[0]} is no folder: it should hold the files of {name}")
    return found or root


if __name__ == "__main__":
    sys.exit(main())
