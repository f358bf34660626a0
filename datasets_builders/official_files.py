"""Reading the files that a dataset's owners publish, so that every fault is named by file and row.

A module of its own because `datasets` patches `open` and `os.path` in every module that defines a builder.
"""

import contextlib
import glob
import gzip
import hashlib
import io
import json
import os
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

from PIL import Image, UnidentifiedImageError

VIDEO_ENDINGS = (".mp4", ".avi", ".webm", ".mkv", ".mov")


class BadRowError(ValueError):
    """One row of an annotation file, or the image it names, cannot be used.

    Args:
        file: the annotation file.
        row: counted from 1; the line of a JSON-lines file, the position in the list of a JSON file.
        reason: what is wrong, without file and row.
    """

    def __init__(self, file: str, row: int, reason: str):
        super().__init__(file, row, reason)  # all three as args: the exception survives the trip between processes
        self.file, self.row, self.reason = file, row, reason

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}: {self.reason}"


def open_bytes(path: str) -> IO[bytes]:
    """The bytes of a file, unpacked where its name ends in ".gz"."""
    return gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb")


@contextlib.contextmanager
def naming(path: str, kind: str) -> Iterator[None]:
    """Puts the file's name in front of what is wrong when it is unpacked and decoded.

    Args:
        kind: what it should be, such as "JSON".

    Raises:
        ValueError: it is not.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except (UnicodeDecodeError, RecursionError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: not a {kind} file ({error})") from error


def read_json(path: str) -> Any:
    """The value of a JSON file, gzipped or not.

    Raises:
        ValueError: not JSON, or not UTF-8; says where. One broken character spoils the file, so no row can be skipped.
    """
    with naming(path, "JSON"):
        with open_bytes(path) as file:
            text = file.read().decode("utf-8-sig")
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {error.lineno}, column {error.colno}: not JSON ({error.msg})") from error
        except ValueError as error:  # a number of thousands of digits
            raise ValueError(f"{path}: not a JSON file ({error})") from error


def read_json_list(path: str, key: str | None = None) -> list[Any]:
    """The list that a JSON file is, or that it holds under `key`.

    Raises:
        ValueError: the file holds no such list.
    """
    value = read_json(path)
    if key is not None:
        if not isinstance(value, dict) or key not in value:
            raise ValueError(f"{path}: expected an object with '{key}', found {describe(value)}")
        value = value[key]
    if not isinstance(value, list):
        raise ValueError(f"{path}: expected a list{f' under {key!r}' if key else ''}, found {describe(value)}")
    return value


def read_json_lines(path: str) -> Iterator[tuple[int, Any]]:
    """(row, value) of each line of a JSON-lines file; the value is a `BadRowError` where the line is not JSON."""
    with naming(path, "JSON-lines"), open_bytes(path) as file:
        for row, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield row, json.loads(line)
            except (ValueError, RecursionError) as error:
                yield row, BadRowError(path, row, f"not JSON ({error})")


def read_json_members(path: str, block: int = 1 << 20) -> Iterator[tuple[int, str, Any]]:
    """(row, key, value) of each member of the object that a JSON file is, in order; holds one value at a time.

    A key that comes twice is given twice, where `read_json` would keep the last.

    Args:
        block: characters read at a time.

    Raises:
        ValueError: no object, not JSON, or not UTF-8; says after which row.
    """
    yield from _read_parts(path, "{", "}", block)


def read_json_items(path: str, block: int = 1 << 20, key: str | None = None) -> Iterator[tuple[int, Any]]:
    """(row, value) of each item of the list that a JSON file is, or holds under `key`; holds one item at a time.

    Args:
        block: characters read at a time.

    Raises:
        ValueError: no such list, not JSON, or not UTF-8; says after which row.
    """
    for row, _, value in _read_parts(path, "[", "]", block, key):
        yield row, value


def _read_parts(
    path: str, opening: str, closing: str, block: int, under: str | None = None
) -> Iterator[tuple[int, str, Any]]:
    """(row, key, value); the items of a list have the key ""."""
    row = 0
    article, kind = ("an", "object") if opening == "{" else ("a", "list")
    try:
        with open_bytes(path) as file:
            text = _JSONText(io.TextIOWrapper(file, encoding="utf-8-sig"), block)
            if under is not None:
                _skip_to(text, path, under)
            start = text.next()
            if start != opening:
                place = "at its start" if under is None else f"under {under!r}"
                raise ValueError(f"{path}: expected {article} {kind}, found {start or 'nothing'!r} {place}")
            text.skip(opening)
            while text.next() != closing:
                if row:
                    text.skip(",")
                key = text.value() if kind == "object" else ""
                if kind == "object":
                    text.skip(":")
                value = text.value()
                row += 1
                if not isinstance(key, str):
                    raise ValueError(f"{path}, row {row}: expected a key, found {describe(key)}")
                yield row, key, value
            text.skip(closing)
            if under is not None:
                _skip_rest(text)
            if text.next():
                raise ValueError(f"{path}, after row {row}: more text behind the {kind}")
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, row {row + 1}: not JSON ({error.msg})") from error
    except (UnicodeDecodeError, RecursionError, EOFError, OSError, zlib.error) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path}, row {row + 1}: not a JSON file ({error})") from error


def _skip_to(text: "_JSONText", path: str, key: str) -> None:
    """Go on to the value of the member `key` of an object."""
    if text.next() != "{":
        raise ValueError(f"{path}: expected an object with '{key}', found {text.next() or 'nothing'!r} at its start")
    text.skip("{")
    while text.next() != "}":
        name = text.value()
        text.skip(":")
        if name == key:
            return
        text.value()
        if text.next() != "}":
            text.skip(",")
    raise ValueError(f"{path}: expected an object with '{key}', found none in it")


def _skip_rest(text: "_JSONText") -> None:
    """Read the members behind one, so that a file that is cut off there is noticed."""
    while text.next() != "}":
        text.skip(",")
        text.value()
        text.skip(":")
        text.value()
    text.skip("}")


class _JSONText:
    """JSON text read in blocks, of which only what is not yet used is held."""

    def __init__(self, file: IO[str], block: int):
        self.file, self.block = file, block
        self.text, self.at, self.ended = "", 0, False
        self.decoder = json.JSONDecoder()

    def next(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self._read_on()

    def skip(self, character: str) -> None:
        if self.next() != character:
            raise json.JSONDecodeError(
                f"expected {character!r}, found {self.next() or 'the end'!r}", self.text, self.at
            )
        self.at += 1

    def value(self) -> Any:
        self.next()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
                if end < len(self.text) or self.ended:  # a number that ends the block may go on in the next
                    self.at = end
                    return value
            except json.JSONDecodeError:
                if self.ended:
                    raise
            except ValueError as error:  # a number of thousands of digits
                raise json.JSONDecodeError(str(error), self.text, self.at) from error
            self._read_on()

    def _read_on(self) -> None:
        rest = self.text[self.at :]
        more = self.file.read(max(self.block, len(rest)))  # twice as much each time: a long value is not decoded often
        self.text, self.at, self.ended = rest + more, 0, not more


def describe(value: Any) -> str:
    """A value in a few words, for messages."""
    if isinstance(value, dict):
        return f"an object with {', '.join(map(repr, list(value)[:8])) or 'nothing'}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def field(record: Any, name: str, *kinds: type) -> Any:
    """`record[name]`, checked.

    Args:
        record: one row as JSON gave it, or as `read_json_lines` gives a line that is none.
        kinds: the exact types allowed; `bool` does not pass for `int`. Strings may not be blank.

    Raises:
        ValueError: no JSON, no object, no such field, another type, a blank string, or one that UTF-8 cannot hold.
    """
    if isinstance(record, BadRowError):
        raise ValueError(record.reason)
    if not isinstance(record, dict):
        raise ValueError(f"expected an object with '{name}', found {describe(record)}")
    if name not in record:
        raise ValueError(f"'{name}' is missing: found {describe(record)}")
    value = record[name]
    if type(value) not in kinds:
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"'{name}' should be {expected}, is {describe(value)}")
    if isinstance(value, str):
        if not value.strip():
            raise ValueError(f"'{name}' is blank")
        try:
            value.encode("utf-8")  # JSON can write half a surrogate pair, which Arrow refuses without naming the row
        except UnicodeEncodeError as error:
            raise ValueError(f"'{name}' is not valid text: {error}") from error
    return value


def matching_files(folder: str, pattern: str) -> list[str]:
    """Paths of the files in `folder` that fit a pattern such as "parts/*.tar", in the order of their names."""
    found = (os.path.join(folder, name) for name in glob.glob(pattern, root_dir=folder))
    return sorted(path for path in found if os.path.isfile(path))


def existing_folders(given: str | os.PathLike | Iterable[str | os.PathLike]) -> tuple[str, ...]:
    """Whole paths of one folder with images, or of several.

    Raises:
        FileNotFoundError: one is not there.
    """
    paths = [given] if isinstance(given, (str, os.PathLike)) else given
    folders = tuple(os.path.abspath(os.path.expanduser(path)) for path in paths)
    missing = next((folder for folder in folders if not os.path.isdir(folder)), None)
    if missing is not None:
        raise FileNotFoundError(f"there is no folder {missing} to find images in")
    return folders


def text_field(record: Any, name: str) -> str:
    """As `field` for a string that may be blank: a hint, a description.

    Raises:
        ValueError: no object, no such field, no string, or one that UTF-8 cannot hold.
    """
    if isinstance(record, dict) and isinstance(record.get(name), str) and not record[name].strip():
        return ""
    return field(record, name, str).strip()


def choices_field(record: Any, name: str) -> list[str]:
    """The options of a multiple-choice question.

    Raises:
        ValueError: no list, an empty one, or an item that is no string or a blank one.
    """
    choices = field(record, name, list)
    if not choices:
        raise ValueError(f"'{name}' is empty")
    items = {f"{name}[{number}]": choice for number, choice in enumerate(choices)}
    return [field(items, item, str).strip() for item in items]


def index_field(record: Any, name: str, count: int) -> int:
    """A position in a list of `count`, from 0.

    Raises:
        ValueError: no whole number, or one outside the list.
    """
    index = field(record, name, int)
    if not 0 <= index < count:
        raise ValueError(f"'{name}' is {index}: expected 0 to {count - 1}")
    return index


def image_path(folders: Iterable[str], name: str) -> str:
    """Where the image `name` lies: in the first of `folders` that has it.

    Raises:
        ValueError: `name` points outside the folders, or no folder has it.
    """
    folders = list(folders)
    path = _find(folders, name, "image")
    if path is None:
        raise ValueError(f"image {name!r} is not in {', '.join(folders)}")
    return path


def first_image(folders: Iterable[str], *names: str) -> str:
    """Where an image lies that may have any of `names`.

    Raises:
        ValueError: a name points outside the folders, or no folder has any; says so of the first.
    """
    folders, errors = list(folders), []
    for name in names:
        try:
            return image_path(folders, name)
        except ValueError as error:
            errors.append(error)
    raise errors[0]


def clip_path(folders: Iterable[str], names: Iterable[str]) -> str:
    """Where a clip lies: a video file, or a folder of frames, that has one of `names`.

    Raises:
        ValueError: a name points outside the folders, or nothing is there.
    """
    folders, names = list(folders), list(names)
    for name in names:
        paths = [_find(folders, name + ending, "video") for ending in VIDEO_ENDINGS]
        found = next((path for path in paths if path), None) or _find(folders, name, "video", os.path.isdir)
        if found:
            return found
    wanted = " or ".join(map(repr, names))
    raise ValueError(
        f"video {wanted} ({', '.join(VIDEO_ENDINGS)}, or a folder of frames) is not in {', '.join(folders)}"
    )


def _find(folders: Iterable[str], name: str, kind: str, there: Callable[[str], bool] = os.path.isfile) -> str | None:
    if os.path.isabs(name) or ".." in name.replace("\\", "/").split("/"):
        raise ValueError(f"{kind} {name!r} is not a name inside the {kind} folder")
    return next((path for path in (os.path.join(folder, name) for folder in folders) if there(path)), None)


def stem(name: str) -> str:
    """A file's name without folders and its last ending: "photos/1.jpg" -> "1".

    `os.path.splitext` is slow in builders, where `datasets` has put a function for remote files in its place.
    """
    return name.replace("\\", "/").rpartition("/")[2].rsplit(".", 1)[0]


def check_image(image: str | bytes) -> None:
    """Decode an image once, so that a broken file is found while building and not in the middle of training.

    Args:
        image: path of a file, or its bytes.

    Raises:
        ValueError: missing, not an image, cut off, or so large that Pillow takes it for a decompression bomb.
    """
    name = f"of {len(image)} bytes" if isinstance(image, bytes) else image
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as picture:
                picture.load()
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(f"image {name}: too large, refused as a decompression bomb ({error})") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"image {name}: no image that Pillow can read") from error
    except Exception as error:  # Pillow's readers raise whatever the broken bytes lead them to
        raise ValueError(f"image {name}: {type(error).__name__}: {error}") from error


def digest(contents: Iterable[str] = (), listed: Iterable[str] = (), salt: str = "") -> str:
    """A name for the state of files: another state, another name.

    Args:
        contents: files that count with name, size and every byte.
        listed: files, and folders whose files, count with name, size and time of change only.
        salt: anything else that should change the name.
    """
    state = hashlib.blake2b(salt.encode(), digest_size=16)
    for path in contents:
        content = hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                content.update(block)
        entry = f"\n{path}\t{os.path.getsize(path)}\t{content.hexdigest()}"
        state.update(entry.encode("utf-8", "surrogateescape"))
    for place in listed:
        for path in [place] if os.path.isfile(place) else _files_below(place):
            stat = os.stat(path)
            state.update(f"\n{path}\t{stat.st_size}\t{stat.st_mtime_ns}".encode("utf-8", "surrogateescape"))
    return state.hexdigest()


def _files_below(folder: str) -> Iterator[str]:
    for parent, folders, names in os.walk(folder):
        folders.sort()
        yield from (os.path.join(parent, name) for name in sorted(names))
