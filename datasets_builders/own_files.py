"""Reading a user's own annotation files: JSON lines, a JSON list or CSV, and finding the images that they name.

A module of its own because `datasets` patches `open` and `os.path` in every module that defines a builder.
"""

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Sequence, Set
from typing import Any

from .official_files import (
    BadRowError,
    describe,
    image_path,
    naming,
    open_bytes,
    read_json,
    read_json_items,
    read_json_lines,
)
from .own_records import IMAGE_KEYS, KEYS, LIST_KEYS, Reading

BLOCK = 1 << 20
ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".ndjson")
NOT_ANNOTATIONS = ("dataset_info.json", "dataset_infos.json")  # what `datasets` writes beside Parquet
SPLIT_NAMES = {  # what files and folders are called -> our names of the splits
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}


def annotation_files(folder: str) -> dict[str, str]:
    """Split -> annotation file, relative to the folder that holds them; empty where none is found.

    Looked for, in this order: `metadata.jsonl` (or .csv, .json) in the folder, or in folders named like splits; files
    named like splits; a single annotation file of any name, which is the split "train".

    Raises:
        ValueError: several files, and nothing tells which is which.
    """
    for stem in ("metadata", "annotations"):
        inside = _files_named(folder, {stem: "train"})
        for name in sorted(os.listdir(folder)):
            if name.lower() in SPLIT_NAMES and os.path.isdir(os.path.join(folder, name)):
                found = _files_named(os.path.join(folder, name), {stem: SPLIT_NAMES[name.lower()]})
                inside.update({split: os.path.join(name, file) for split, file in found.items()})
        if inside:
            return inside
    named = _files_named(folder, SPLIT_NAMES)
    if named:
        return named
    every = [name for name in sorted(os.listdir(folder)) if _ending(name) and name not in NOT_ANNOTATIONS]
    if len(every) > 1:
        raise ValueError(
            f"{folder} holds {len(every)} annotation files ({', '.join(every[:6])}): pass the one to read, "
            "or name them train, validation and test"
        )
    return {"train": every[0]} if every else {}


def _files_named(folder: str, stems: dict[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in sorted(os.listdir(folder)):
        split = stems.get(stem_of(name).lower()) if _ending(name) else None
        if split in found:
            raise ValueError(f"{folder} holds {found[split]} and {name}, both for {split}: pass the one to read")
        if split is not None:
            found[split] = name
    return found


def _ending(name: str) -> str:
    """The ending of a name of an annotation file, ".gz" included; "" for other files."""
    plain = name.lower().removesuffix(".gz")
    return next((name[len(plain) - len(end) :] for end in ENDINGS if plain.endswith(end)), "")


def stem_of(name: str) -> str:
    """The name of an annotation file without its ending."""
    return name[: len(name) - len(_ending(name))]


def read_records(path: str, reading: Reading) -> Iterator[tuple[int, Any]]:
    """(row, record) of a JSON-lines, JSON or CSV file; what it is, its content says before its name does.

    The row is the line, or the place in a JSON list; a `BadRowError` stands for a line that cannot be read.

    Raises:
        ValueError: a JSON file that is broken, or that is no list of records.
    """
    plain = path.lower().removesuffix(".gz")
    if plain.endswith((".csv", ".tsv")):
        lists = {reading.key_of(name) for name in LIST_KEYS}
        yield from _read_table(path, "\t" if plain.endswith(".tsv") else ",", lists)
        return
    with naming(path, "JSON"), open_bytes(path) as file:
        start = file.read(BLOCK).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start:
        raise ValueError(f"{path}: the file is empty")
    if start.startswith(b"["):
        yield from read_json_items(path)
        return
    line, _, rest = start.partition(b"\n")
    if plain.endswith(".json") and (not _is_json(line) or not rest.strip()):
        found = read_json(path)
        if not isinstance(found, dict) or not {reading.key_of(key) for key in KEYS} & found.keys() or rest.strip():
            lists = [key for key, value in found.items() if isinstance(value, list)] if isinstance(found, dict) else []
            hint = f": write what is under {lists[0]!r} into a file of its own" if lists else ""
            raise ValueError(
                f"{path}: expected a list of records, or a record on each line, found {describe(found)}{hint}"
            )
    yield from read_json_lines(path)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _read_table(path: str, delimiter: str, lists: Set[str | None]) -> Iterator[tuple[int, Any]]:
    """Rows of a CSV file: an empty cell is a key that is not there, and a list is written as in JSON."""
    with (
        naming(path, "CSV"),
        open_bytes(path) as file,
        io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text,
    ):
        rows = csv.reader(text, delimiter=delimiter, strict=True)
        line = 1  # the first one of a record: cells may hold line breaks
        try:
            header = next(rows, [])
            if len(set(header)) < len(header) or not any(header):
                raise ValueError(f"{path}, line 1: expected the names of the columns, each once, found {header}")
            if len(header) == 1 and (other := next((mark for mark in ";\t," if mark in header[0]), "")):
                raise ValueError(
                    f"{path}, line 1: its columns have {other!r} between them, where {delimiter!r} was expected: "
                    "save it with commas as .csv, or with tabs as .tsv"
                )
            line = rows.line_num + 1
            for cells in rows:
                row, line = line, rows.line_num + 1
                if not cells:
                    continue
                if len(cells) != len(header):
                    yield row, BadRowError(path, row, f"{len(cells)} cells for the {len(header)} columns")
                    continue
                try:
                    named = zip(header, cells, strict=True)
                    yield row, {name: _cell(name, cell, name in lists) for name, cell in named if cell != ""}
                except ValueError as error:
                    yield row, BadRowError(path, row, str(error))
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}, line {line}: not a CSV file ({error})") from error


def _cell(name: str, cell: str, is_list: bool) -> Any:
    if not is_list or not cell.lstrip().startswith(("[", "{")):
        return cell
    try:
        return json.loads(cell)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"'{name}' begins a list, but is not JSON ({error})") from error


def mentions_several_images(path: str, reading: Reading) -> bool:
    """Whether a file has lists of images anywhere: a search for the key, which parses nothing."""
    names = [key for key in map(reading.key_of, IMAGE_KEYS) if key is not None]
    keys = [json.dumps(name, ensure_ascii=ascii).encode() for name in names for ascii in (True, False)]
    if path.lower().removesuffix(".gz").endswith((".csv", ".tsv")):
        lists = [key for key in map(reading.key_of, ("images", "file_names")) if key is not None]
        with naming(path, "CSV"), open_bytes(path) as file:
            header = file.readline().decode("utf-8-sig", "replace")
        return any(key in re.split(r"[,\t\r\n\"]", header) for key in lists)
    pattern = re.compile(rb"(?<!\\)(%s)\s*:\s*\[" % b"|".join(map(re.escape, keys)))
    rest = b""
    with naming(path, "JSON"), open_bytes(path) as file:
        while block := file.read(BLOCK):
            block = rest + block
            if pattern.search(block):
                return True
            rest = block[-4096:]
    return False


def image_place(folders: Sequence[str], name: Any) -> tuple[str, str]:
    """(path, id) of an image that a record names.

    Raises:
        ValueError: no name, none inside the folders, or a file that is not there.
    """
    if not isinstance(name, str):
        raise ValueError(f"an image is named by its path, found a {type(name).__name__}")
    if re.match(r"(https?|hf|s3|gs|data):", name):
        raise ValueError(f"image {name[:80]!r} is an address: download the images, and name the files")
    try:
        name.encode("utf-8")  # Arrow refuses half a surrogate pair without naming the row
    except UnicodeEncodeError as error:
        raise ValueError(f"image {name!r} is not valid text: {error}") from error
    if os.path.isabs(name):
        inside = [folder for folder in folders if name.startswith(os.path.join(folder, ""))]
        if not inside:
            raise ValueError(f"image {name!r} is not in {', '.join(folders)}: pass image_dir=, a folder that holds it")
        name = os.path.relpath(name, inside[0]) if ".." not in name.split(os.sep) else name
    path = image_path(folders, name)
    folder = next(folder for folder in folders if path == os.path.join(folder, name))
    number = hashlib.blake2b(folder.encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()
    return path, f"{number}/{os.path.normpath(name)}".replace(os.sep, "/")
