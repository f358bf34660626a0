"""Files that are there whole or not at all."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4


def write_whole(file: Path, text: str) -> None:
    """Write a file under another name first; what UTF-8 cannot say (half a character of a model's) is escaped.

    Raises:
        OSError: it cannot be written; an earlier one stays.
    """
    unfinished = file.with_name(f"{file.name}-{uuid4().hex[:8]}.unfinished")
    try:
        unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)
