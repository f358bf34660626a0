"""Checkpoints on disk: whole or absent, and known by a list of their files' sizes and checksums.

A checkpoint is written into `_tmp-checkpoint-7/checkpoint-7`, its manifest last, and then renamed to `checkpoint-7`. A
kill at any moment leaves the folder with or without it, never with a part of it. Names begin with "_" because uploads
to the Hub leave those out.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil

from transformers.utils import logging

logger = logging.get_logger(__name__)

MANIFEST = "complete.json"
_NAME = re.compile(r"checkpoint-(\d+)")


def checkpoint_steps(folder: str) -> list[int]:
    """The steps of which `folder` has a checkpoint, whole or not; the newest first."""
    if not os.path.isdir(folder):
        return []
    matches = (_NAME.fullmatch(name) for name in os.listdir(folder) if os.path.isdir(os.path.join(folder, name)))
    return sorted((int(match[1]) for match in matches if match), reverse=True)


def checkpoint_path(folder: str, step: int) -> str:
    return os.path.join(folder, f"checkpoint-{step}")


def staging_path(folder: str, step: int) -> str:
    """Where a checkpoint is written before it stands under its own name."""
    return os.path.join(folder, f"_tmp-checkpoint-{step}", f"checkpoint-{step}")


def problem(checkpoint: str) -> str | None:
    """What is wrong with a checkpoint, in words; None where every file is as it was written."""
    manifest = os.path.join(checkpoint, MANIFEST)
    try:
        with open(manifest, encoding="utf-8") as file:
            files = json.load(file)["files"]
        expected = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except FileNotFoundError:
        return f"it has no {MANIFEST}, which is written last"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its {MANIFEST} cannot be read: {error}"
    for name, (size, checksum) in expected.items():
        path = os.path.join(checkpoint, name)
        try:
            if os.path.getsize(path) != size:
                return f"{name} has {os.path.getsize(path)} bytes instead of {size}"
            if _checksum(path) != checksum:
                return f"the content of {name} has changed (its checksum differs)"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error}"
    return None


def commit(folder: str, step: int) -> str:
    """Give the checkpoint in `staging_path` its name; the last thing that a save does.

    Returns:
        Its path.

    Raises:
        OSError: the disk is full or fails. What was under that name before is still there.
    """
    staged, final = staging_path(folder, step), checkpoint_path(folder, step)
    _write_manifest(staged)
    replaced = os.path.join(folder, f"_replaced-checkpoint-{step}")
    if os.path.isdir(final):  # of a run that was resumed from an earlier one; from here on `recover` prefers the new
        os.replace(final, replaced)
    try:
        os.replace(staged, final)
    except OSError:
        if os.path.isdir(replaced):
            os.replace(replaced, final)
        raise
    _sync(folder)
    shutil.rmtree(replaced, ignore_errors=True)
    discard(folder, step)
    return final


def discard(folder: str, step: int) -> None:
    """Remove what was written of a checkpoint that has not got its name."""
    shutil.rmtree(os.path.dirname(staging_path(folder, step)), ignore_errors=True)


def recover(folder: str) -> None:
    """Finish or remove what a killed save left in `folder`; no other run may be saving there."""
    if not os.path.isdir(folder):
        return
    for name in sorted(os.listdir(folder), reverse=True):  # _tmp- before _replaced-
        kind, _, checkpoint = name.partition("checkpoint-")
        if kind not in ("_tmp-", "_replaced-") or not checkpoint.isdigit():
            continue
        step = int(checkpoint)
        left, final = os.path.join(folder, name), checkpoint_path(folder, step)
        inner = staging_path(folder, step) if kind == "_tmp-" else left
        if not os.path.exists(final) and problem(inner) is None:
            os.replace(inner, final)
            logger.warning(f"{final} was whole when the run was killed, and has its name now")
        shutil.rmtree(left, ignore_errors=True)


def newest_whole(folder: str) -> tuple[int | None, dict[int, str]]:
    """The newest checkpoint that is as it was written.

    Returns:
        Its step, or None, and what is wrong with each newer one.
    """
    broken: dict[int, str] = {}
    for step in checkpoint_steps(folder):
        wrong = problem(checkpoint_path(folder, step))
        if wrong is None:
            return step, broken
        broken[step] = wrong
    return None, broken


def set_aside(folder: str, step: int) -> str:
    """Rename a broken checkpoint, so that nothing takes it for the newest one; returns its new path."""
    aside = os.path.join(folder, f"_broken-checkpoint-{step}")
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(checkpoint_path(folder, step), aside)
    return aside


def _write_manifest(checkpoint: str) -> None:
    files = {}
    for parent, _, names in os.walk(checkpoint):
        for name in names:
            path = os.path.join(parent, name)
            _sync(path)
            entry = {"bytes": os.path.getsize(path), "sha256": _checksum(path)}
            files[os.path.relpath(path, checkpoint).replace(os.sep, "/")] = entry
        _sync(parent)
    with open(os.path.join(checkpoint, MANIFEST), "w", encoding="utf-8") as file:
        json.dump({"files": files}, file, indent=1)
    _sync(os.path.join(checkpoint, MANIFEST))
    _sync(checkpoint)


def _checksum(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: str) -> None:
    """Have a file or folder on the disk, not in memory only: a power cut would lose it."""
    if os.name == "nt" and os.path.isdir(path):
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
