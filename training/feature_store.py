"""[`FeatureStore`]: tensors by name in a folder that any number of processes read and write at the same time."""

from __future__ import annotations

import hashlib
import os
import time
import uuid
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.utils import logging

logger = logging.get_logger(__name__)

SHARD_BYTES = 128 * 2**20  # 185 images of the released tower in bfloat16
HEADER_BYTES = 256  # what a record takes beside its tensor, at most
OPEN_SHARDS = 256  # memory maps that one process holds
UNFINISHED = ".unfinished"  # how the name of a shard ends until it is whole


class FeatureStore:
    """Tensors by name, in shards: safetensors files that are written under another name, renamed, and never changed.

    So readers need no lock, and writers none of each other: a name that two of them write is there twice, and either
    will do. Every record has a checksum, which is compared at each reading; one that does not fit is as good as absent.

    Memory: 12 bytes a record for the index, memory maps, which the system may drop, and up to `shard_bytes` of records
    that are not written yet.

    Args:
        folder: of the shards; made if it does not exist.
        max_bytes: of all shards below `limited`; a shard that would go over it is not written, with a warning.
        limited: the folder whose size counts. None: `folder`.
        shard_bytes: of records that are collected before a shard is written.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        max_bytes: int | None = None,
        limited: str | os.PathLike | None = None,
        shard_bytes: int = SHARD_BYTES,
    ):
        self.folder = Path(folder)
        self.max_bytes, self.shard_bytes = max_bytes, shard_bytes
        self.limited = Path(folder if limited is None else limited)
        self.stopped = False  # nothing is written any more
        self._pending: dict[str, torch.Tensor] = {}
        self._pending_bytes = 0
        self._open: OrderedDict[int, tuple[Any, dict[str, str]]] = OrderedDict()  # shard -> file, checksums
        self._shards: list[Path] = []
        self._seen: set[str] = set()
        self._listed = -1  # when the folder had last changed, as it was last listed
        self._bad: set[tuple[int, str]] = set()
        self._hashes = np.empty(0, np.uint64)  # of names, sorted
        self._shard_of_hash = np.empty(0, np.int32)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_unfinished()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict(), "_pending": {}, "_pending_bytes": 0}  # for DataLoader workers

    def __len__(self) -> int:
        """Records in the shards, those that are there twice counted twice."""
        self._list_shards()
        return len(self._hashes)

    # ---- reading

    def get(self, name: str) -> torch.Tensor | None:
        """The tensor of a name, a memory map that must not be changed; None if there is none that can be read."""
        if name in self._pending:
            return self._pending[name]
        found = self._read(name)
        if found is None and self._list_shards():
            found = self._read(name)
        return found

    def _read(self, name: str) -> torch.Tensor | None:
        value = np.uint64(_hash(name))
        first, last = np.searchsorted(self._hashes, value, "left"), np.searchsorted(self._hashes, value, "right")
        for number in self._shard_of_hash[first:last].tolist():
            if (number, name) in self._bad:
                continue
            try:
                shard, checksums = self._shard(number)
                tensor = shard.get_tensor(name)
            except (SafetensorError, OSError) as error:  # or another name with this hash
                logger.debug(f"{self._shards[number]} has no {name}: {error}")
                continue
            if checksums.get(name) == _checksum(tensor):
                return tensor
            self._bad.add((number, name))
            logger.warning(f"{self._shards[number]}: the record of image {name} is damaged, and will not be used")
        return None

    def _shard(self, number: int) -> tuple[Any, dict[str, str]]:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        if len(self._open) >= OPEN_SHARDS:
            self._open.popitem(last=False)
        file = safe_open(self._shards[number], framework="pt")
        self._open[number] = file, file.metadata() or {}
        return self._open[number]

    def _list_shards(self) -> bool:
        """Index the shards that have come since the last time; whether there were any."""
        try:
            changed = os.stat(self.folder).st_mtime_ns
        except OSError:
            return False
        if changed == self._listed:
            return False
        # Clocks of file systems are coarse: what changes again within a moment may have the same time.
        self._listed = changed if time.time_ns() - changed > 2 * 10**9 else -1
        hashes, shards = [self._hashes], [self._shard_of_hash]
        for path in sorted(self.folder.glob("*.safetensors")):
            if path.name in self._seen:
                continue
            self._seen.add(path.name)
            try:
                names = list(safe_open(path, framework="pt").keys())
            except (SafetensorError, OSError) as error:
                logger.warning(f"{path} is damaged and will not be used, nor its images: {error}. You can remove it")
                continue
            hashes.append(np.array([_hash(name) for name in names], np.uint64))
            shards.append(np.full(len(names), len(self._shards), np.int32))
            self._shards.append(path)
        if len(hashes) == 1:
            return False
        self._hashes, self._shard_of_hash = np.concatenate(hashes), np.concatenate(shards)
        order = np.argsort(self._hashes, kind="stable")
        self._hashes, self._shard_of_hash = self._hashes[order], self._shard_of_hash[order]
        return True

    def damaged(self) -> Iterator[tuple[Path, str]]:
        """Read everything; gives (shard, name) of each record that is damaged, and (shard, "") for a whole shard."""
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                shard = safe_open(path, framework="pt")
                names, checksums = list(shard.keys()), shard.metadata() or {}
            except (SafetensorError, OSError):
                yield path, ""
                continue
            for name in names:
                if checksums.get(name) != _checksum(shard.get_tensor(name)):
                    yield path, name

    # ---- writing

    def put(self, name: str, tensor: torch.Tensor) -> None:
        """Keep a tensor; it is on the disk after the next `flush`, which comes by itself when a shard is full."""
        if self.stopped or name in self._pending:
            return
        self._pending[name] = tensor.detach().to("cpu", copy=True).contiguous()
        self._pending_bytes += tensor.nbytes
        if self._pending_bytes >= self.shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what is not written yet. At the size limit, or if the disk is full, warn and write no more."""
        records, size = self._pending, self._pending_bytes + HEADER_BYTES * (len(self._pending) + 1)
        self._pending, self._pending_bytes = {}, 0
        if not records or self.stopped:
            return
        if self.max_bytes is not None and (used := self.size()) + size > self.max_bytes:
            self._stop(f"holds {used / 1e9:.3g} GB, and its limit is {self.max_bytes / 1e9:.3g} GB")
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{uuid.uuid4().hex}.safetensors"
        unfinished = self.folder / f"{name}{UNFINISHED}"
        try:
            checksums = {name: _checksum(tensor) for name, tensor in records.items()}
            save_file(records, unfinished, metadata=checksums)
            os.replace(unfinished, self.folder / name)
        except (OSError, SafetensorError) as error:
            unfinished.unlink(missing_ok=True)
            self._stop(f"cannot be written: {error}")

    def size(self) -> int:
        """Bytes of all shards that count for the limit."""
        total = 0
        for path in self.limited.rglob("*.safetensors"):
            try:
                total += path.stat().st_size
            except FileNotFoundError:  # renamed or removed by another process
                continue
        return total

    def _stop(self, reason: str) -> None:
        self.stopped = True
        logger.warning(
            f"the feature cache {self.limited} {reason}. From here on nothing is added to it; images that it lacks are "
            "encoded each time that they come"
        )

    def _remove_unfinished(self) -> None:
        """Remove what killed writers left; a shard takes seconds to write."""
        for path in self.folder.glob("*"):
            unfinished = path.suffix == UNFINISHED or path.name.startswith(".tmp")  # safetensors' own
            try:
                if unfinished and time.time() - path.stat().st_mtime > 3600:
                    path.unlink()
            except FileNotFoundError:
                continue


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _checksum(tensor: torch.Tensor) -> str:
    return f"{zlib.crc32(tensor.flatten().view(torch.uint8).numpy()):08x}"
