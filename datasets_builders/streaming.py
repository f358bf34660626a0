"""A mixture of streams without end, which stops and goes on at any item.

`datasets` can repeat, shuffle and interleave streams, but its repeats come in one order, and a shuffle buffer is lost
when a run stops. Here the order is computed: a pass over a source takes its shards in an order drawn for that pass,
cuts the rows into blocks, and draws an order of each block's items. The state is a few numbers per source, and going on
reads one block of each again.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets.iterable_dataset import _BaseExamplesIterable  # private; what a stream is made of has no public name

from .instructions import InstructionFormat
from .mixture import check_probabilities, paper_probabilities

PARTS = 20_160  # 2^6 * 3^2 * 5 * 7: ranks and workers that divide it each get a part of their own
DRAWS = 1024  # sources drawn at a time
SHARDS, ITEMS, SOURCES = range(3)  # what a random order is for, so that no two are drawn alike


def stream_mixture(
    sources: Mapping[str, datasets.IterableDataset],
    probabilities: Mapping[str, float] | None = None,
    formats: Mapping[str, InstructionFormat] | None = None,
    seed: int = 0,
    block_rows: int = 256,
    keep_images_together: bool = False,
    with_images: bool = True,
) -> datasets.IterableDataset:
    """Mix streams of grouped rows into one stream of items that does not end.

    - Each item's source is drawn with `probabilities`, independently of all others.
    - A source that is exhausted starts again at once, in another order and with other templates; nothing happens to the
      others. So within a source, no row comes a third time before every row came twice, and the share of a source is
      its probability, however small it is.
    - `set_epoch` gives another order and other templates. `state_dict` and `load_state_dict` go on with the next item.
      A state belongs to one mixture, number of ranks and number of workers, and to an epoch: set that first, as
      `datasets` says nothing and starts from the beginning where it differs.
    - Ranks (`datasets.distributed.split_dataset_by_node`) and DataLoader workers each draw sources for themselves and
      share the rows out: no row comes to two of them in the same pass. Where a source's shards do not divide by ranks
      times workers, several of them read the same shards and keep different rows, so save large sources in a multiple.
      A source with fewer rows than that goes whole to those that would get nothing of it.

    The rows of a block are near each other in their file, and are what is in memory: `block_rows` rows of each source,
    in each worker. For Parquet, `source.reshard()` makes shards of row groups, which mixes better than whole files.

    Args:
        sources: name -> stream of rows in the schema of `schema.py`, with `image` or `images`; not yet split by node.
        probabilities: name -> how often it is drawn; they add up to 1. None: the paper's, for its held-in datasets.
        formats: name -> how rows become items; those left out get `InstructionFormat.of(name, seed=seed)`.
        seed: decides every order.
        block_rows: rows shuffled with one another.
        keep_images_together: the items of a row follow each other in their source, and the image is decoded once.
        with_images: False leaves images out of the items.

    Returns:
        A stream of the items of `InstructionFormat.items`, and "image", or "images" for rows that have several. No
        column is filled up: an item has the one that its source has. `num_shards` says into how many parts the stream
        can be cut, not how many files there are.

    Raises:
        TypeError: a source that is no stream.
        ValueError: no source, a source of another schema, or probabilities or formats that do not fit the sources.
        OSError: while reading: an image is broken; names the sample.
    """
    if not sources:
        raise ValueError("no sources: expected a dict of name -> stream of rows")
    if block_rows < 1:
        raise ValueError(f"block_rows={block_rows}: expected 1 or more")
    if seed < 0:
        raise ValueError(f"seed={seed}: expected 0 or more")
    if probabilities is None:
        probabilities = paper_probabilities(sources)
    chances = check_probabilities(probabilities, sources)
    formats = formats or {}
    unknown = [name for name in formats if name not in sources]
    if unknown:
        raise ValueError(f"a format for {unknown[0]!r}, which is no source: the sources are {', '.join(sources)}")
    made = tuple(
        _Source.of(name, rows, formats.get(name) or InstructionFormat.of(name, seed=seed), with_images)
        for name, rows in sources.items()
    )
    return datasets.IterableDataset(_Mixture(made, chances, seed, block_rows, keep_images_together))


@dataclasses.dataclass(frozen=True)
class _Source:
    name: str
    rows: datasets.IterableDataset  # gives Arrow tables
    format: InstructionFormat
    image_column: str | None  # "image", "images", or None to leave them out
    image_feature: Any  # how the column's values are decoded

    @classmethod
    def of(cls, name: str, rows: datasets.IterableDataset, format: InstructionFormat, with_images: bool) -> "_Source":
        if not isinstance(rows, datasets.IterableDataset):
            raise TypeError(f"source {name!r} is a {type(rows).__name__}: expected a datasets.IterableDataset")
        features = rows.features
        if features is None:
            raise ValueError(f"source {name!r} does not say its features: pass features= to the map that made it")
        image_column = next((column for column in ("image", "images") if column in features), None)
        if not {"image_id", "samples"} <= features.keys() or (with_images and image_column is None):
            raise ValueError(
                f"source {name!r} has columns {', '.join(features)}: expected image or images, image_id and samples"
            )
        columns = ["image_id", "samples"]
        if not with_images:
            return cls(name, rows.select_columns(columns).with_format("arrow"), format, None, None)
        feature = features[image_column]
        return cls(
            name, rows.select_columns([*columns, image_column]).with_format("arrow"), format, image_column, feature
        )

    def shard(self, index: int) -> datasets.IterableDataset:
        return self.rows.shard(self.rows.num_shards, index, contiguous=False)

    def items(self, table: pa.Table, epoch: int) -> list[list[dict[str, Any]]]:
        """The items of each row."""
        columns = zip(table["image_id"].to_pylist(), table["samples"].to_pylist(), strict=True)
        rows = ({"image_id": image_id, "samples": samples} for image_id, samples in columns)
        return [self.format.items(row, epoch) for row in rows]

    def image(self, table: pa.Table, row: int, item: dict[str, Any]) -> Any:
        try:
            return _decode(self.image_feature, table[self.image_column][row].as_py())
        except Exception as error:  # Pillow's readers raise whatever the broken bytes lead them to
            raise OSError(f"{item['id']}: image {item['image_id']} cannot be read: {error}") from error


def _decode(feature: Any, value: Any) -> Any:
    if isinstance(feature, datasets.List):
        return [_decode(feature.feature, part) for part in value]
    return feature.decode_example(value) if feature.decode and value is not None else value


class _Mixture(_BaseExamplesIterable):
    """The items of part `part` of `parts`; a part is what one worker of one rank reads."""

    _sleep_on_threads_shutdown = False

    def __init__(
        self,
        sources: tuple[_Source, ...],
        probabilities: np.ndarray,
        seed: int,
        block_rows: int,
        keep_images_together: bool,
        epoch: int = 0,
        part: int = 0,
        parts: int = 1,
    ):
        super().__init__()
        self.sources, self.probabilities, self.seed, self.block_rows = sources, probabilities, seed, block_rows
        self.keep_images_together = keep_images_together
        self.epoch, self.part, self.parts = epoch, part, parts

    def _with(self, **changes: int) -> "_Mixture":
        same = (self.sources, self.probabilities, self.seed, self.block_rows, self.keep_images_together)
        return _Mixture(*same, **{"epoch": self.epoch, "part": self.part, "parts": self.parts, **changes})

    @property
    def num_shards(self) -> int:
        return max(1, PARTS // self.parts)

    def shard_data_sources(self, num_shards: int, index: int, contiguous: bool = True) -> "_Mixture":
        return self._with(part=self.part * num_shards + index, parts=self.parts * num_shards)

    def reshard_data_sources(self) -> "_Mixture":
        return self

    def shuffle_data_sources(self, generator: np.random.Generator) -> "_Mixture":
        """`datasets` calls this with `default_rng(epoch)` for every epoch but 0."""
        epoch = generator.bit_generator.seed_seq.entropy
        return self._with(epoch=epoch if isinstance(epoch, int) else int(generator.integers(2**31)))

    def _init_state_dict(self) -> dict[str, Any]:
        # None is replaced by what is loaded as it is, so that `_position` can say what does not fit.
        self._state_dict = {"position": None, "type": type(self).__name__}
        return self._state_dict

    def _made_of(self) -> dict[str, Any]:
        return {
            "sources": [[source.name, source.rows.num_shards] for source in self.sources],
            "probabilities": self.probabilities.tolist(),
            "seed": self.seed,
            "block_rows": self.block_rows,
            "keep_images_together": self.keep_images_together,
            "part": [self.part, self.parts],
        }

    def _position(self) -> dict[str, Any]:
        """Where the stream is, as a part of the state that `datasets` keeps."""
        if self._state_dict is None:
            self._init_state_dict()
        position = self._state_dict["position"]
        if position is None:
            source = {
                "pass": 0,  # passes completed
                "given": 0,  # items of this pass already given
                "all_rows": False,  # no item of the source falls to this part, so it takes every row
                # Where the current block begins, and how much of it was given:
                "shard": 0,
                "shard_state": None,  # of `datasets`, inside the shard
                "row": 0,
                "block": 0,
                "taken": 0,
            }
            sources = [dict(source) for _ in self.sources]
            position = self._state_dict["position"] = {"made_of": self._made_of(), "given": 0, "sources": sources}
        theirs, ours = position["made_of"], self._made_of()
        for name in ours:
            if theirs.get(name) != ours[name]:
                what = f"its {name} is {theirs.get(name)}, here it is {ours[name]}"
                raise ValueError(
                    f"the loaded state is of another mixture, or another number of workers or ranks: {what}"
                )
        return position

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        position = self._position()
        readers = [self._read(number, state) for number, state in enumerate(position["sources"])]
        while True:
            draw, offset = divmod(position["given"], DRAWS)
            generator = np.random.default_rng([SOURCES, self.seed, self.epoch, self.part, draw])
            for number in generator.choice(len(readers), DRAWS, p=self.probabilities)[offset:].tolist():
                item = next(readers[number])
                item["dataset"] = self.sources[number].name
                position["given"] += 1
                yield item["id"], item

    def _read(self, number: int, state: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Items of one source without end, from `state` on, which is always that of the last item given."""
        source = self.sources[number]
        while True:
            for start, table in self._blocks(number, state):
                state.update(start)
                for item in self._block_items(number, table, state):
                    state["taken"] += 1
                    state["given"] += 1
                    yield item
                state["taken"] = 0
            empty = not state["given"]
            if empty and state["all_rows"]:
                raise ValueError(f"source {source.name!r} gives no item: it has no row, or no sample with an answer")
            following = state["pass"] + (not empty)
            state.update(given=0, all_rows=state["all_rows"] or empty, shard=0, shard_state=None, row=0, block=0)
            state["pass"] = following

    def _blocks(self, number: int, state: dict[str, Any]) -> Iterator[tuple[dict[str, Any], pa.Table]]:
        """The blocks of a pass from the one in `state` on, each with the state at its beginning."""
        source = self.sources[number]
        part, parts = (0, 1) if state["all_rows"] else (self.part, self.parts)
        groups = math.gcd(parts, source.rows.num_shards)  # parts of different groups share no shard
        group, stride, offset = part % groups, parts // groups, part // groups
        # Parts that share shards keep different rows of the same order, so it is drawn for the group.
        key = [SHARDS, self.seed, self.epoch, number, state["pass"], group]
        order = np.random.default_rng(key).permutation(np.arange(group, source.rows.num_shards, groups)).tolist()
        start = {name: state[name] for name in ("shard", "shard_state", "row", "block")}
        row, tables, kept = start["row"], [], 0
        for position in range(start["shard"], len(order)):
            shard = source.shard(order[position])
            if position == state["shard"] and state["shard_state"] is not None:
                shard.load_state_dict(state["shard_state"])
            for table in shard.iter(self.block_rows):
                length = len(table)
                if stride > 1:
                    table = table.take(pa.array(np.arange((offset - row) % stride, length, stride)))
                row += length
                tables.append(table)
                kept += len(table)
                if kept >= self.block_rows:
                    yield start, pa.concat_tables(tables)
                    shard_state = shard.state_dict()
                    start = {"shard": position, "shard_state": shard_state, "row": row, "block": start["block"] + 1}
                    tables, kept = [], 0
        if kept:
            yield start, pa.concat_tables(tables)

    def _block_items(self, number: int, table: pa.Table, state: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The items of a block in their order, without those that `state` says were given."""
        source = self.sources[number]
        rows = source.items(table, self.epoch + (state["pass"] << 32))  # the first pass as `InstructionDataset` has it
        key = [ITEMS, self.seed, self.epoch, number, state["pass"], self.part, state["block"]]
        generator = np.random.default_rng(key)
        if self.keep_images_together:
            order = [(row, item) for row in generator.permutation(len(rows)).tolist() for item in rows[row]]
        else:
            pairs = [(row, item) for row, items in enumerate(rows) for item in items]
            order = [pairs[index] for index in generator.permutation(len(pairs)).tolist()]
        image, row_of_image = None, -1
        for row, item in order[state["taken"] :]:
            if source.image_column is not None:
                if row != row_of_image:
                    image, row_of_image = source.image(table, row, item), row
                item[source.image_column] = image
            yield item
