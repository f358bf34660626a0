"""Finished answers on disk, so that a run that was killed goes on where it stopped (`result_cache=FOLDER`).

    FOLDER/3f0c9a61d2b84e57/identity.json                      what the answers depend on beside the document
    FOLDER/3f0c9a61d2b84e57/20260314T150926-9be41c07.sqlite    what one process finished, a transaction a batch

Each process writes a file of its own and reads those of all at its start, so a run may go on with another number of
processes. Whoever no longer needs the answers deletes the folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from PIL import Image

from instructblip.eval_tasks.driver import Prompt
from instructblip.eval_tasks.images import ROW_PREFIX, undecoded_picture
from instructblip.eval_tasks.whole_files import write_whole
from instructblip.processing.image_loading import bytes_or_path

logger = logging.getLogger(__name__)

Result = str | np.ndarray  # a generated answer, or the float32 log-likelihoods of candidates

TABLE = "CREATE TABLE results (key BLOB PRIMARY KEY, kind TEXT, value BLOB, checksum INTEGER) WITHOUT ROWID"
PATIENCE = 60  # seconds to wait while another process commits to the file that is being read
DAMAGED = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)  # no such table, torn, something else


class ResultCache:
    """Answers that some process has finished.

    Args:
        folder: for the answers of any number of models.
        identity: all that an answer depends on beside its document (`model_identity.model_identity`).
        loaded_from: what the user called the model; for whoever reads `identity.json`.

    Raises:
        OSError: a file cannot be read or written.
    """

    def __init__(self, folder: str | os.PathLike, identity: Mapping[str, Any], loaded_from: str = "") -> None:
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = Path(folder).expanduser().absolute() / digest
        self.folder.mkdir(parents=True, exist_ok=True)
        described = json.dumps({"loaded_from": loaded_from, **identity}, indent=2) + "\n"
        write_whole(self.folder / "identity.json", described)
        self._files: dict[bytes, Path] = {}  # which file holds the answer of a key
        self._pictures: dict[str, str | None] = {}  # many questions ask about one picture
        self._own: tuple[Path, sqlite3.Connection] | None = None
        for file in sorted(self.folder.glob("*.sqlite")):
            self._files.update(dict.fromkeys(_checked_keys(file), file))

    def __len__(self) -> int:
        return len(self._files)

    def keys(
        self, kind: str, tasks: Sequence[str | None], prompts: Sequence[Prompt], asked: Sequence[str]
    ) -> list[bytes | None]:
        """What the answers to some prompts are kept under.

        Args:
            kind: the type of the requests.
            tasks: per prompt the name of its task.
            asked: per prompt the generation settings, or the candidates.

        Returns:
            Per prompt a digest; None where a picture has none (`picture_digest`), whose answer is not kept.
        """
        keys: list[bytes | None] = []
        for task, prompt, what in zip(tasks, prompts, asked, strict=True):
            pictures = [self._picture(reference) for reference in prompt.references]
            parts = [task, kind, prompt.text, [list(turn) for turn in prompt.history], pictures, what]
            keys.append(None if None in pictures else hashlib.sha256(json.dumps(parts).encode()).digest())
        return keys

    def _picture(self, reference: Any) -> str | None:
        if not isinstance(reference, str):  # may be gone, and its place in memory taken, when the next one comes
            return picture_digest(reference)
        if reference not in self._pictures:
            self._pictures[reference] = picture_digest(reference)
        return self._pictures[reference]

    def get(self, keys: Iterable[bytes | None]) -> dict[bytes, Result]:
        """The finished answers among those of `keys`."""
        by_file: dict[Path, list[bytes]] = {}
        for key in keys:
            if key is not None and key in self._files:
                by_file.setdefault(self._files[key], []).append(key)
        found: dict[bytes, Result] = {}
        for file, wanted in by_file.items():
            with closing(_open(file)) as database:
                for key in wanted:
                    row = database.execute("SELECT kind, value FROM results WHERE key = ?", (key,)).fetchone()
                    if row is not None:
                        found[key] = row[1].decode() if row[0] == "text" else np.frombuffer(row[1], "<f4").copy()
        return found

    def put(self, results: Iterable[tuple[bytes | None, Result]]) -> None:
        """Keep the answers of a batch: all or, where that fails, none of them. Those whose key is None are left out.

        Raises:
            OSError: the file cannot be written, for example because the disk is full.
        """
        rows = []
        for key, result in results:
            if key is not None:
                kind = "text" if isinstance(result, str) else "float32"
                value = result.encode() if isinstance(result, str) else np.asarray(result, "<f4").tobytes()
                rows.append((key, kind, value, zlib.crc32(key + value)))
        if not rows:
            return
        try:
            if self._own is None:
                self._own = _new_file(self.folder)
            file, database = self._own
            with database:
                database.executemany("INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?)", rows)
        except sqlite3.Error as error:
            raise OSError(
                f"the result cache {self.folder} cannot be written ({error}): make room on its disk and start again; "
                "what was finished before is kept"
            ) from error
        self._files.update(dict.fromkeys((row[0] for row in rows), file))


def picture_digest(reference: Any) -> str | None:
    """What tells a picture from any other, in this run and in later ones.

    Bytes count as they are, wherever they come from. A file counts with its path, size and time of change, so that a
    run of which all is known need not read it. None for what may change unnoticed (a URL) or is not there.

    Args:
        reference: as in `images.py`.
    """
    if isinstance(reference, str) and reference.startswith(ROW_PREFIX):
        reference = undecoded_picture(reference)
    reference = bytes_or_path(reference)
    if isinstance(reference, bytes):
        return f"bytes {hashlib.sha256(reference).hexdigest()}"
    if isinstance(reference, Image.Image):
        pixels = hashlib.sha256(reference.tobytes()).hexdigest()
        return f"pixels {reference.mode} {reference.size} {pixels}"
    if isinstance(reference, (str, os.PathLike)):
        with suppress(OSError, ValueError):  # no such file; no file name at all
            path = os.path.realpath(reference)
            stat = os.stat(path)
            return f"file {path} {stat.st_size} {stat.st_mtime_ns}"
    return None


def _checked_keys(file: Path) -> list[bytes]:
    """The keys of a file whose every row is sound; none of a damaged file, which is set aside."""
    try:
        with closing(_open(file)) as database:
            if database.execute("PRAGMA integrity_check").fetchone() != ("ok",):
                return _set_aside(file, "its pages are damaged")
            keys = []
            for key, value, checksum in database.execute("SELECT key, value, checksum FROM results"):
                if not isinstance(key, bytes) or not isinstance(value, bytes) or zlib.crc32(key + value) != checksum:
                    return _set_aside(file, "a row is damaged")
                keys.append(key)
            return keys
    except sqlite3.Error as error:
        if (getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF) not in DAMAGED:
            raise OSError(f"the result cache {file} cannot be read ({error})") from error
        return _set_aside(file, str(error))


def _set_aside(file: Path, reason: str) -> list[bytes]:
    aside = file.with_name(file.name + ".damaged")
    logger.warning(
        "result cache: %s is damaged (%s): set aside as %s, its documents are computed again", file, reason, aside.name
    )
    with suppress(FileNotFoundError):  # another process was quicker
        file.replace(aside)
        Path(f"{file}-journal").replace(f"{aside}-journal")
    return []


def _open(file: Path) -> sqlite3.Connection:
    """An existing file. Not read-only: what a killed process left half done is rolled back by whoever opens it."""
    return sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=PATIENCE)


def _new_file(folder: Path) -> tuple[Path, sqlite3.Connection]:
    """A file of this process alone; others never see it without its table."""
    file = folder / f"{time.strftime('%Y%m%dT%H%M%S')}-{uuid4().hex[:8]}.sqlite"
    unfinished = file.with_suffix(".unfinished")
    with closing(sqlite3.connect(unfinished)) as database, database:
        database.execute(TABLE)
    unfinished.replace(file)
    return file, _open(file)
