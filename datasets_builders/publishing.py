"""Putting grouped rows on the Hub as Parquet, with one rendering as instructions, so that `datasets` alone reads them.

Each config becomes public in one commit, together with a card that names it: nobody sees half a config, or a card that
speaks of what is not there. Shards are written and uploaded one after another, and what is uploaded is noted on disk,
so that a push which was stopped goes on with the next shard.
"""

import dataclasses
import hashlib
import json
import logging
import os
import random
import re
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from datasets.arrow_writer import ParquetWriter
from datasets.table import embed_table_storage
from datasets.utils import tqdm as progress_bar
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.lfs import UploadInfo

from . import dataset_card, instructions, official_files, templates
from .dataset_card import PublishedConfig, PublishedSplit, published_features, terms, write_card
from .hub_rows import images_have_bytes
from .instructions import InstructionFormat

logger = logging.getLogger(__name__)

SHARD_BYTES = 500 << 20  # as `datasets` cuts Parquet
ROW_GROUP_BYTES = 16 << 20  # who reads one row reads this much, and a mixture of streams holds one of each source;
ROW_GROUP_ROWS = 1000  # `datasets` would write 100 MB
READ_ROWS = {"image": 100, "images": 10}  # read at a time
CONFIGS = "configs.json"
TRIES = 5  # commits that others overtook


def push(
    sources: Mapping[str, Mapping[str, datasets.Dataset] | datasets.Dataset],
    repo_id: str,
    *,
    private: bool = True,
    accept_terms: Collection[str] = (),
    seed: int = 0,
    formats: Mapping[str, InstructionFormat] | None = None,
    work_dir: str | os.PathLike | None = None,
    shard_bytes: int = SHARD_BYTES,
    token: str | bool | None = None,
) -> dict[str, str]:
    """Publish datasets as configs of one dataset repository, which is made if it is not there.

    A config that is there is replaced, one that is there unchanged is left alone, and those of other names stay. What
    people wrote into the card outside of the part that is made stays too.

    Args:
        sources: name -> splits, as `load` gives them; the name becomes the config's. A `Dataset` alone is one split.
        repo_id: "owner/name".
        private: of a repository that is made. Data whose terms do not let everyone have it (non-commercial, gated, no
            licence stated) goes into a private one without further ado, and into a public one only if it is in:
        accept_terms: names of such datasets that you may publish.
        seed: of the draw of templates and answers; the card says it.
        formats: name -> how rows become instructions; those left out get `InstructionFormat.of(name, seed=seed)`. Where
            every answer would be an item of its own, as with captions, one of them is drawn.
        work_dir: where one shard at a time is written, and what is uploaded is noted. Default: in the cache of
            `datasets`. A later push with another folder uploads nothing twice either, but writes all shards again.
        shard_bytes: unpacked size at which a Parquet file is closed.
        token: of the Hub; None takes the one that is logged in.

    Returns:
        name -> the commit that holds it.

    Raises:
        ValueError: terms that were not accepted, names or rows that cannot be published, an image without bytes.
        HfHubHTTPError: the Hub refuses.
    """
    splits = {name: _splits(name, rows) for name, rows in sources.items()}
    made = {name: _format(name, (formats or {}).get(name), seed) for name in splits}
    api = HfApi(token=token)
    _open_repository(api, repo_id, private, splits, accept_terms)
    root = Path(work_dir or Path(datasets.config.HF_DATASETS_CACHE) / "instructblip_push")
    folder = root / hashlib.sha256(f"{api.endpoint}\x1f{repo_id}".encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return {name: _Config(api, repo_id, name, made[name], folder, shard_bytes).push(splits[name]) for name in splits}


def check_terms(names: Collection[str], accept_terms: Collection[str], public: bool) -> None:
    """Whether datasets may go where everyone can get them.

    Raises:
        ValueError: the terms of one do not let everyone have it, and it is not in `accept_terms`.
    """
    for name in names:
        if public and terms(name) and name not in accept_terms:
            raise ValueError(
                f"{name} is {' and '.join(terms(name))}. Push it to a private repository, or, if you may publish it, "
                f"say so: accept_terms=[{name!r}]"
            )


def _open_repository(
    api: HfApi, repo_id: str, private: bool, names: Collection[str], accept_terms: Collection[str]
) -> None:
    """Make the repository where it is not there, once it is sure that the data may go into it."""
    try:
        found = bool(api.repo_info(repo_id, repo_type="dataset").private)
    except RepositoryNotFoundError:
        found = None
    if private and found is False:
        raise ValueError(f"{repo_id} is there and public: pass private=False if that is meant")
    check_terms(names, accept_terms, public=not (private if found is None else found))
    if found is None:
        api.create_repo(repo_id, repo_type="dataset", private=private)


def _splits(name: str, rows: Any) -> dict[str, datasets.Dataset]:
    if not re.fullmatch(r"\w[\w.-]*", name) or name == "data":
        raise ValueError(f"{name!r} cannot be the name of a config: letters, digits, '_', '-' and '.', and not 'data'")
    splits = {str(rows.split or "train"): rows} if isinstance(rows, datasets.Dataset) else dict(rows)
    for split, part in splits.items():
        if not re.fullmatch(r"\w+(\.\w+)*", split):
            raise ValueError(f"{name}: {split!r} cannot be the name of a split: letters, digits and '_'")
        if not isinstance(part, datasets.Dataset):
            raise ValueError(f"{name}/{split} is a {type(part).__name__}: expected a datasets.Dataset, not streamed")
        images = {"image", "images"} & {*part.column_names}
        if not {"image_id", "samples"} <= {*part.column_names} or len(images) != 1:
            columns = ", ".join(part.column_names)
            raise ValueError(f"{name}/{split} has columns {columns}: expected image or images, image_id and samples")
        if not len(part):
            raise ValueError(f"{name}/{split} has no rows: leave it out")
    if not splits:
        raise ValueError(f"{name} has no split")
    if len({"images" in part.column_names for part in splits.values()}) > 1:
        raise ValueError(f"{name} has splits with `image` and splits with `images`: expected one kind")
    return splits


def _format(name: str, given: InstructionFormat | None, seed: int) -> InstructionFormat:
    made = given or InstructionFormat.of(name, seed=seed)
    return dataclasses.replace(made, answer_policy="sampled") if made.answer_policy == "all" else made


@dataclasses.dataclass(frozen=True)
class _Shard:
    """A file that is uploaded: a line of the notes."""

    start: int
    stop: int
    path: str  # in the repository; named by its content, so the same rows are the same file
    sha256: str
    size: int
    num_bytes: int
    samples: int
    unanswered: int

    def operation(self) -> CommitOperationAdd:
        """An addition of what was uploaded before, by this process or another."""
        addition = CommitOperationAdd(self.path, b"")
        addition.upload_info = UploadInfo(size=self.size, sample=b"", sha256=bytes.fromhex(self.sha256))
        addition._upload_mode, addition._is_uploaded = "lfs", True  # as upload_large_folder resumes
        return addition


@dataclasses.dataclass(frozen=True)
class _Config:
    """One config on its way to the Hub."""

    api: HfApi
    repo_id: str
    name: str
    format: InstructionFormat
    folder: Path
    shard_bytes: int

    def push(self, splits: Mapping[str, datasets.Dataset]) -> str:
        """Upload what is not there, and commit; returns the commit."""
        shards = {split: self._upload(split, rows) for split, rows in splits.items()}
        first = next(iter(splits.values()))
        published = PublishedConfig(
            name=self.name,
            several_images="images" in first.column_names,
            task=self.format.task,
            style=self.format.style,
            answer_policy=self.format.answer_policy,
            seed=self.format.seed,
            made_with=version("instructblip"),
            licence=first.info.license or "",
            splits={split: _summary(done) for split, done in shards.items()},
        )
        return self._commit(published, [shard for done in shards.values() for shard in done])

    def _upload(self, split: str, rows: datasets.Dataset) -> list[_Shard]:
        """The shards of a split, those that the notes have and the rest."""
        notes = self.folder / f"{self.name}-{split}-{self._identity(rows)}.jsonl"
        shards = [_Shard(**json.loads(line)) for line in notes.read_text().splitlines()] if notes.exists() else []
        done = shards[-1].stop if shards else 0
        with progress_bar(total=len(rows), initial=done, unit=" rows", desc=f"Pushing {self.name}/{split}") as bar:
            while done < len(rows):
                shard = self._upload_shard(split, rows, done, len(shards))
                with open(notes, "a") as file:
                    file.write(json.dumps(dataclasses.asdict(shard)) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                shards.append(shard)
                bar.update(shard.stop - done)
                done = shard.stop
        return shards

    def _identity(self, rows: datasets.Dataset) -> str:
        """Other rows, another rendering or other code start anew. Images that changed on disk are not noticed."""
        modules = [templates, instructions, dataset_card, sys.modules[type(self.format).__module__]]
        sources = dict.fromkeys([*(str(module.__file__) for module in modules), __file__])
        return official_files.digest(sources, salt=f"{rows._fingerprint}\x1f{self.format}\x1f{self.shard_bytes}")

    def _upload_shard(self, split: str, rows: datasets.Dataset, start: int, number: int) -> _Shard:
        partial = self.folder / f"{self.name}-{split}-{os.getpid()}.parquet"
        try:
            stop, num_bytes, samples, unanswered = self._write(partial, split, rows, start)
            with open(partial, "rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            path = f"{self.name}/{split}-{number:05d}-{sha256[:16]}.parquet"
            size = partial.stat().st_size
            addition = CommitOperationAdd(path, partial)
            addition.upload_info.sha256 = bytes.fromhex(sha256)
            self.api.preupload_lfs_files(self.repo_id, [addition], repo_type="dataset")
            if not addition._is_uploaded:
                raise ValueError(f"{self.repo_id} does not store *.parquet as large files: see its .gitattributes")
        finally:
            partial.unlink(missing_ok=True)
        return _Shard(start, stop, path, sha256, size, num_bytes, samples, unanswered)

    def _write(self, path: Path, split: str, rows: datasets.Dataset, start: int) -> tuple[int, int, int, int]:
        """Write rows from `start` on, until the shard is full; (stop, unpacked bytes, samples, unanswered)."""
        features = published_features("images" in rows.column_names)
        rows = rows.select_columns([name for name in features if name in rows.column_names]).with_format("arrow")
        stop, size, samples, unanswered = start, 0, 0, 0
        with ParquetWriter(features=features, path=str(path)) as writer:
            for group in self._row_groups(split, rows, start, features):
                texts = group["response"].to_pylist()
                samples += sum(map(len, texts))
                unanswered += sum(text == "" for row in texts for text in row)
                writer.write_table(group, len(group))
                stop += len(group)
                size += group.nbytes
                if size >= self.shard_bytes:
                    break
            writer.finalize()
        return stop, size, samples, unanswered

    def _row_groups(
        self, split: str, rows: datasets.Dataset, start: int, features: datasets.Features
    ) -> Iterator[pa.Table]:
        step = READ_ROWS["images" if "images" in features else "image"]
        tables: list[pa.Table] = []
        for at in range(start, len(rows), step):
            tables.append(self._render(split, rows[at : at + step], at, features))
            size, count = sum(table.nbytes for table in tables), sum(map(len, tables))
            if size >= min(ROW_GROUP_BYTES, self.shard_bytes) or count >= ROW_GROUP_ROWS or at + step >= len(rows):
                yield pa.concat_tables(tables)
                tables = []

    def _render(self, split: str, table: pa.Table, at: int, features: datasets.Features) -> pa.Table:
        """Rows with their images' bytes in them, and with instructions and responses."""
        visual = "images" if "images" in features else "image"
        schema = features.arrow_schema
        instruction, response = [], []
        for row in table.select(["image_id", "samples"]).to_pylist():
            items = {item["id"]: item for item in self.format.items(row)}
            found = [items.get(sample["id"]) for sample in row["samples"]]
            instruction.append([item["instruction"] if item else "" for item in found])
            response.append([item["response"] if item else "" for item in found])
        for name, texts in (("instruction", instruction), ("response", response)):
            table = table.append_column(schema.field(name), pa.array(texts, schema.field(name).type))
        table = table.select(schema.names).cast(schema)
        try:
            table = embed_table_storage(table, remote_files=False)
        except OSError as error:
            where = f"{self.name}/{split}, rows {at + 1} to {at + len(table)}"
            raise ValueError(
                f"{where}: an image cannot be read ({error}): were images moved after the build?"
            ) from error
        no_image = pc.is_null(table[visual]).to_numpy()  # rows of text alone, as one's own data may have
        sound = images_have_bytes(table[visual]) | no_image
        if not sound.all():
            row = int(sound.argmin())
            image_id = table["image_id"][row].as_py()
            raise ValueError(f"{self.name}/{split}, row {at + row + 1} ({image_id}): the image has no bytes")
        return table

    def _commit(self, published: PublishedConfig, shards: list[_Shard]) -> str:
        """Make the config public, with a card that names it, unless just this is there already."""
        for attempt in range(TRIES):
            head = self.api.repo_info(self.repo_id, repo_type="dataset").sha
            files = set(self.api.list_repo_files(self.repo_id, repo_type="dataset", revision=head))
            before = self._read_configs(files, head)
            if before.get(self.name) == published and files.issuperset(published.files):
                logger.info("%s: %s is there already", self.repo_id, self.name)
                return head
            try:
                return self.api.create_commit(
                    self.repo_id,
                    self._operations(published, shards, before, files, head),
                    commit_message=f"Publish {self.name}",
                    repo_type="dataset",
                    parent_commit=head,  # else a push beside this one could lose its place in the card
                ).oid
            except HfHubHTTPError as error:
                status = error.response.status_code
                if status == 400:
                    self._forget()
                    error.append_to_message("\nWhat was uploaded before may be gone; it is forgotten now: push again.")
                if status not in (409, 412) or attempt + 1 == TRIES:
                    raise
                time.sleep(2**attempt * random.random())
        raise AssertionError("unreachable")

    def _operations(
        self,
        published: PublishedConfig,
        shards: list[_Shard],
        before: Mapping[str, PublishedConfig],
        files: set[str],
        head: str,
    ) -> list[CommitOperationAdd | CommitOperationDelete]:
        whole = {name: config for name, config in before.items() if files.issuperset(config.files)}
        after = {**whole, self.name: published}
        readme = self._read_file("README.md", head) if "README.md" in files else ""
        card = write_card(self.repo_id, after.values(), readme, dropped=before.keys() - after.keys())
        entries = {name: dataclasses.asdict(after[name]) for name in sorted(after)}
        new = set(published.files)
        stale = [path for path in files - new if path.startswith(f"{self.name}/") and path.endswith(".parquet")]
        return [
            *(shard.operation() for shard in shards if shard.path not in files),
            *(CommitOperationDelete(path) for path in sorted(stale)),
            CommitOperationAdd(CONFIGS, (json.dumps(entries, indent=1) + "\n").encode()),
            CommitOperationAdd("README.md", card.encode()),
        ]

    def _read_configs(self, files: set[str], head: str) -> dict[str, PublishedConfig]:
        if CONFIGS not in files:
            return {}
        try:
            entries = json.loads(self._read_file(CONFIGS, head))
            return {name: PublishedConfig.of(entry) for name, entry in entries.items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{self.repo_id}: {CONFIGS} is not what a push writes ({error}): delete it") from error

    def _read_file(self, path: str, revision: str) -> str:
        found = self.api.hf_hub_download(self.repo_id, path, repo_type="dataset", revision=revision)
        return Path(found).read_text("utf-8")

    def _forget(self) -> None:
        for notes in self.folder.glob(f"{self.name}-*.jsonl"):
            notes.unlink()


def _summary(shards: list[_Shard]) -> PublishedSplit:
    return PublishedSplit(
        rows=shards[-1].stop,
        samples=sum(shard.samples for shard in shards),
        unanswered=sum(shard.unanswered for shard in shards),
        num_bytes=sum(shard.num_bytes for shard in shards),
        files={shard.path: shard.size for shard in shards},
    )
