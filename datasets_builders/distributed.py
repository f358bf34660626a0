"""Building a dataset on more than one machine, with datatrove's executors (Slurm, Ray, or processes of one machine).

    from datatrove.executor import SlurmPipelineExecutor
    from instructblip.datasets_builders import load
    from instructblip.datasets_builders.distributed import BuildShards

    step = BuildShards("ocr_vqa", "/data/ocr_vqa", options={"cache_dir": "/shared/cache", "shards": 64})
    SlurmPipelineExecutor(pipeline=[step], tasks=64, ...).run()
    load("ocr_vqa", "/data/ocr_vqa", cache_dir="/shared/cache", shards=64)  # when all tasks are done

Anything else that starts workers with a rank will do as well: `InstructionBuilder.write_shards(rank, world_size)`.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

from .loading import builder


@dataclasses.dataclass(frozen=True)
class BuildShards:
    """A datatrove pipeline step: task `rank` of `world_size` writes its share of a dataset's shards.

    A dataset has `shards` of them (an option of its builder, 16 unless told; CapFilt one for each tar file), and more
    tasks than shards find nothing to do. A task that is run again writes only what is not there yet. The folder that
    holds the result (`cache_dir` in `options`, or `output_dir`) must be one that all tasks see.
    """

    name: str  # of the dataset
    data_dir: str
    config: str | None = None
    output_dir: str | None = None  # as for `download_and_prepare`; None: in the cache, where `load` finds it
    file_format: str = "arrow"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)  # of `loading.builder`

    def __call__(self, data: Iterable[Any] | None = None, rank: int = 0, world_size: int = 1) -> tuple[()]:
        made = builder(self.name, self.data_dir, self.config, **self.options)
        made.write_shards(rank, world_size, self.output_dir, self.file_format)
        return ()
