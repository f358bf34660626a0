"""Samples out of a tar as WebDataset writes it, one after the other: nothing is unpacked, and one sample is held.

`tarfile` reads the headers. Going from one to the next is done here, because `tarfile.open` takes a damaged header for
the end of the archive, keeps a record of every member, and reads extended headers of any length.
"""

import dataclasses
import itertools
import re
import tarfile
from collections.abc import Iterator, Mapping
from typing import BinaryIO

from .official_files import BadRowError

BLOCK = 512  # a tar is made of such
LONGEST_HEADER = 8192  # bytes of an extended header; WebDataset's hold a time
EXTENDED = {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}
PLAIN = {tarfile.REGTYPE, tarfile.AREGTYPE}


class BrokenTarError(ValueError):
    """What follows in a tar cannot be read."""


@dataclasses.dataclass
class TarSample:
    """The members that share a name up to the extension: `000000012.jpg`, `000000012.json`, `000000012.txt`."""

    row: int  # in the tar, from 1
    key: str  # "000000012"
    parts: dict[str, bytes]  # extension in lower case -> content


def read_samples(path: str, limits: Mapping[str, int]) -> Iterator[TarSample | BadRowError]:
    """The samples of a tar in order; as a `BadRowError` where one cannot be used, or the rest cannot be read.

    Names are compared and reported, never opened. In memory are one sample and the keys seen, to notice one that comes
    again.

    Args:
        path: an uncompressed tar.
        limits: extension -> most bytes of such a member; members with other extensions are passed over.
    """
    rows: dict[str, int] = {}
    row = 0
    with open(path, "rb") as file:
        try:
            for key, members in itertools.groupby(_members(file), key=lambda member: member.key):
                row += 1
                try:
                    sample = TarSample(row, key, _read_parts(members, limits))
                    if key in rows:
                        raise ValueError(f"sample {key!r} again, first in row {rows[key]}")
                    rows[key] = row
                    yield sample
                except BrokenTarError:
                    raise
                except ValueError as error:
                    yield BadRowError(path, row, str(error))
        except BrokenTarError as error:
            yield BadRowError(path, max(row, 1), f"{error}; this sample and what follows it is lost")


@dataclasses.dataclass
class _Member:
    file: BinaryIO  # stands at the content
    name: str
    size: int
    fault: str  # why it cannot be used; "" where it can

    @property
    def key(self) -> str:
        folder, slash, name = self.name.rpartition("/")
        return folder + slash + name.partition(".")[0]

    @property
    def extension(self) -> str:
        return self.name.rpartition("/")[2].partition(".")[2].lower()

    def read(self) -> bytes:
        content = self.file.read(self.size)
        if len(content) < self.size:
            raise BrokenTarError(f"the tar is cut off in {self.name!r}, after {len(content)} of {self.size} bytes")
        return content


def _read_parts(members: Iterator[_Member], limits: Mapping[str, int]) -> dict[str, bytes]:
    """The contents of a sample's members; all are gone through, so that the first fault hides no break after it."""
    parts: dict[str, bytes] = {}
    fault = ""
    for member in members:
        limit = limits.get(member.extension)
        if member.fault:
            fault = fault or f"member {member.name!r} {member.fault}"
        elif limit is None or fault:
            continue
        elif member.extension in parts:
            fault = f"member {member.name!r} comes twice"
        elif member.size > limit:
            fault = f"member {member.name!r} has {member.size} bytes: at most {limit} are read"
        else:
            parts[member.extension] = member.read()
    if fault:
        raise ValueError(fault)
    return parts


def _members(file: BinaryIO) -> Iterator[_Member]:
    """What a tar holds but its folders, in order. Content that is not read is passed over."""
    while (found := _next_header(file)) is not None:
        header, long_name = found
        has_content = header.isreg() or header.type not in tarfile.SUPPORTED_TYPES
        end = file.tell() + (-(-header.size // BLOCK) * BLOCK if has_content else 0)
        if not header.isdir():
            yield _Member(file, header.name.removeprefix("./"), header.size, _fault(header, long_name))
        file.seek(end)


def _fault(header: tarfile.TarInfo, long_name: bool) -> str:
    if header.type not in PLAIN:
        return "is a link" if header.islnk() or header.issym() else "is no plain file"
    if long_name:
        return "has a name of more than 100 bytes or not in ASCII"
    if header.name.startswith("/") or ".." in header.name.split("/") or not header.name.isprintable():
        return "has a name that no sample has"
    return ""


def _next_header(file: BinaryIO) -> tuple[tarfile.TarInfo, bool] | None:
    """The next member's header and whether its whole name stands elsewhere; None at the end mark."""
    long_name = False
    while True:
        block = file.read(BLOCK)
        if len(block) < BLOCK:
            raise BrokenTarError("the tar is cut off: it has no end mark" if file.tell() else "the tar is empty")
        if block.count(0) == BLOCK:
            _expect_end(file)
            return None
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            where = "no tar" if file.tell() == BLOCK else "damaged"
            raise BrokenTarError(f"{where}: the header at byte {file.tell() - BLOCK} is none ({error})") from error
        if header.size < 0 or header.type == tarfile.GNUTYPE_SPARSE:
            raise BrokenTarError(f"member {header.name!r} is of a kind that is not read")
        if header.type not in EXTENDED:
            return header, long_name
        if header.size > LONGEST_HEADER:
            raise BrokenTarError(f"an extended header of {header.size} bytes: at most {LONGEST_HEADER} are read")
        content = file.read(-(-header.size // BLOCK) * BLOCK)[: header.size]
        fields = set(re.findall(rb"(?m)^\d{1,4} ([^=\n]{1,99})=", content))
        if b"size" in fields or any(field.startswith(b"GNU.sparse") for field in fields):
            raise BrokenTarError("a member of more than 8 GiB, or one with holes")
        long_name = long_name or header.type not in (tarfile.XHDTYPE, tarfile.XGLTYPE) or b"path" in fields


def _expect_end(file: BinaryIO) -> None:
    while rest := file.read(1 << 20):
        if rest.count(0) < len(rest):
            raise BrokenTarError("the tar goes on behind its end mark, as joined tars do: split it")
