"""Building a split shard by shard: a killed build goes on where it stopped, and any number of machines can take part.

Each shard is written under a temporary name and renamed when it is whole; beside it lies a report with its counts. The
finished shards wait in a folder named like the result with ".shards" behind it, which goes when the build is complete.
"""

import dataclasses
import glob
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from typing import Any

import datasets
from datasets.arrow_writer import ArrowWriter, ParquetWriter
from datasets.utils import tqdm as progress_bar
from multiprocess import get_context

from .official_files import BadRowError

BUILD = ".build"  # beside what was built: of which dataset and config, and from which state of files, options and code


@dataclasses.dataclass(frozen=True)
class Shard:
    """A part of a split: a whole annotation file, or one of `parts` equal parts of its rows."""

    split: str
    number: int  # in the split, from 0
    file: str
    part: int = 0
    parts: int = 1


class ShardedBuilder(datasets.GeneratorBasedBuilder):
    """A `datasets` builder that writes and reads by shards. A subclass says what the shards are and what is in them."""

    @property
    def called(self) -> str:
        """What messages call the data."""
        return self.name

    def shards_to_build(self, split: str) -> list[Shard]:
        """The shards of `split` in the order of their rows."""
        raise NotImplementedError

    def shard_rows(self, shard: Shard, bad: list[BadRowError]) -> Iterator[dict[str, Any]]:
        """The rows of a shard; what it leaves out is appended to `bad`."""
        raise NotImplementedError

    def write_shards(
        self, rank: int = 0, world_size: int = 1, output_dir: str | None = None, file_format: str = "arrow"
    ) -> None:
        """Write every `world_size`-th shard that is not there yet, as one of several workers, machines or array jobs.

        When all workers are done, `download_and_prepare` (or `load`) with the same arguments finds the shards and only
        puts them together. All must see the same `cache_dir` (or `output_dir`) and the same official files.

        Args:
            rank: of this worker, from 0.
            output_dir, file_format: as for `download_and_prepare`.

        Raises:
            ValueError: a rank that is none, or `output_dir` holds another build.
        """
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size} workers: expected 0 to {world_size - 1}")
        final = output_dir or self.cache_dir
        if os.path.exists(os.path.join(final, "dataset_info.json")):
            self._check_same(final)
            return
        folder = self._shard_folder(final, file_format)
        every = [shard for split in self._split_names() for shard in self.shards_to_build(split)]
        for shard in every[rank::world_size]:
            self.write_shard(shard, folder, file_format)

    def write_shard(self, shard: Shard, folder: str, file_format: str) -> None:
        """Write one shard and its report into `folder`, unless it is there already.

        Raises:
            BadRowError: a row that cannot be used; nothing of the shard is left behind.
        """
        data, report = _shard_paths(shard, folder, file_format)
        if _read_report(data, report) is not None:
            return
        os.makedirs(folder, exist_ok=True)
        partial = os.path.join(folder, f"partial-{uuid.uuid4().hex}")
        bad: list[BadRowError] = []
        writer = (ParquetWriter if file_format == "parquet" else ArrowWriter)(
            features=self.info.features,
            path=partial,
            writer_batch_size=self._writer_batch_size,
            embed_local_files=file_format == "parquet",
        )
        try:
            for row in self.shard_rows(shard, bad):
                writer.write(self.info.features.encode_example(row))
            rows, size = writer.finalize()
            writer.close()
            os.replace(partial, data)
        finally:
            if os.path.exists(partial):
                writer.close()
                os.unlink(partial)
        skipped = [{"file": error.file, "row": error.row, "reason": error.reason} for error in bad]
        with open(partial, "w", encoding="utf-8") as file:
            json.dump({"rows": rows, "bytes": size, "skipped": skipped}, file)
        os.replace(partial, report)

    def _split_names(self) -> list[str]:
        raise NotImplementedError

    def _shard_folder(self, final: str, file_format: str) -> str:
        """Where shards wait: another folder for other options, files or code, so that no stale shard is taken."""
        identity = f"{self.config_id}\x1f{self.hash}\x1f{file_format}"
        return os.path.join(f"{final}.shards", hashlib.blake2b(identity.encode(), digest_size=8).hexdigest())

    def _build(self) -> dict[str, str]:
        """What `BUILD` says."""
        return {"dataset": self.name, "config": self.config.name, "made_from": f"{self.config_id} {self.hash}"}

    def _check_same(self, folder: str) -> None:
        """Whether what is in `folder` is what this builder makes; in the cache, the folder's name says so.

        Raises:
            ValueError: it was built from other files, with other options or by other code.
        """
        if os.path.realpath(folder) != os.path.realpath(self.cache_dir) and read_build(folder) != self._build():
            raise ValueError(
                f"{folder} holds something that was built from other files, with other options or by another version: "
                "delete it, or build into another folder"
            )

    def _prepare_split(self, split_generator, file_format="arrow", num_proc=None, max_shard_size=None) -> None:
        if max_shard_size is not None:
            raise ValueError("max_shard_size does not apply: the builder's option shards= decides on the files")
        split, final = split_generator.name, self._output_dir.removesuffix(".incomplete")
        if "://" in final:
            raise ValueError(f"output_dir {final}: expected a local folder; publish from there with `push`")
        folder = self._shard_folder(final, file_format)
        shards = self.shards_to_build(split)
        todo = [shard for shard in shards if _read_report(*_shard_paths(shard, folder, file_format)) is None]
        tasks = [(shard, folder, file_format) for shard in todo]
        processes = min(num_proc or 1, len(tasks))
        done = len(shards) - len(todo)
        with progress_bar(total=len(shards), initial=done, unit=" shards", desc=f"Building {split}") as bar:
            if processes > 1:
                # forked workers inherit what this process has parsed; where there is no fork, each parses for itself
                with get_context().Pool(processes, initializer=_adopt, initargs=(self,)) as pool:
                    for _ in pool.imap_unordered(_write_adopted, tasks):
                        bar.update()
            else:
                for task in tasks:
                    self.write_shard(*task)
                    bar.update()
        self._put_together(split_generator.split_info, shards, folder, file_format)

    def _put_together(self, split_info, shards: list[Shard], folder: str, file_format: str) -> None:
        """Move finished shards to the names that `datasets` reads; empty ones leave no file."""
        prefix = os.path.join(self._output_dir, f"{self.dataset_name}-{split_info.name}")
        for stale in glob.glob(f"{glob.escape(prefix)}-*-of-*"):  # of a build that was killed here
            os.unlink(stale)
        paths = [_shard_paths(shard, folder, file_format) for shard in shards]
        reports = [_read_report(*path) or {} for path in paths]
        skipped = [entry for report in reports for entry in report["skipped"]]
        full = [(data, report) for (data, _), report in zip(paths, reports, strict=True) if report["rows"]]
        if not full:
            why = f": {len(skipped)} skipped; first: {BadRowError(**skipped[0])}" if skipped else ""
            raise ValueError(f"{self.called}: no usable row for {split_info.name}{why}")
        for number, (data, _) in enumerate(full):
            part = f"-{number:05d}-of-{len(full):05d}" if len(full) > 1 else ""
            os.replace(data, f"{prefix}{part}.{file_format}")
        if skipped:
            with open(os.path.join(self._output_dir, f"skipped-{split_info.name}.jsonl"), "w") as file:
                file.writelines(json.dumps(entry) + "\n" for entry in skipped)
        with open(os.path.join(self._output_dir, BUILD), "w", encoding="utf-8") as file:
            json.dump(self._build(), file)
        split_info.num_examples = sum(report["rows"] for _, report in full)
        split_info.num_bytes = sum(report["bytes"] for _, report in full)
        if len(full) > 1:
            split_info.shard_lengths = [report["rows"] for _, report in full]

    def download_and_prepare(self, *args, **kwargs) -> None:
        """As `datasets` does it; a build that was stopped goes on with the shards that are not there yet."""
        super().download_and_prepare(*args, **kwargs)
        self._check_same(self._output_dir)  # `datasets` takes whatever is there already
        shutil.rmtree(f"{self._output_dir}.shards", ignore_errors=True)

    def skipped(self, split: str) -> list[dict[str, Any]]:
        """What building `split` left out: {"file", "row", "reason"} each, in file order."""
        path = os.path.join(self._output_dir, f"skipped-{split}.jsonl")
        if not os.path.exists(path):
            return []
        with open(path) as file:
            return [json.loads(line) for line in file]


def _shard_paths(shard: Shard, folder: str, file_format: str) -> tuple[str, str]:
    stem = os.path.join(folder, f"{shard.split}-{shard.number:05d}")
    return f"{stem}.{file_format}", f"{stem}.json"


def _read_report(data: str, report: str) -> dict[str, Any] | None:
    """The counts of a finished shard; None where it is not finished."""
    if not os.path.exists(report) or not os.path.exists(data):
        return None
    with open(report, encoding="utf-8") as file:
        return json.load(file)


def read_build(folder: str) -> dict[str, str] | None:
    """What a build noted of itself in the folder that it wrote; None where it wrote none."""
    path = os.path.join(folder, BUILD)
    if not os.path.isfile(path):
        return None
    with open(path, encoding="utf-8") as file:
        return json.load(file)


_adopted: ShardedBuilder  # of a worker process


def _adopt(builder: ShardedBuilder) -> None:
    global _adopted
    _adopted = builder


def _write_adopted(task: tuple[Shard, str, str]) -> None:
    _adopted.write_shard(*task)
