"""Compare mixing with this package and with plain `datasets`: `python benchmarks/mixture.py`.

- Streams: DataLoader workers read the same Parquet files in batches, with `stream_mixture`, which formats and shuffles
  every item, and with `datasets`, which hands out rows as they are. With images, both decode each row's.
- Index: a mixture of ten million places over sources whose sizes have the paper's proportions is set up, and 100,000
  rows are read through it, with `MixtureOrder` and with `datasets.interleave_datasets`; neither formats.

Every run is a process of its own, in an order that rotates; the peer also runs against itself.
"""

from __future__ import annotations

import argparse
import gc
import io
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from timing import Ratio

BATCH = 32
FILES = 4  # of each source
SIZES = {
    "capfilt": 13_873_136, "ocr_vqa": 798_245, "coco_caption": 566_747, "vqav2": 443_757, "vqg_vqav2": 443_757,
    "textcaps": 109_765, "llava_reasoning": 77_000, "llava_conversation": 58_000, "llava_detail": 23_000,
    "aokvqa": 17_056, "vqg_aokvqa": 17_056, "okvqa": 9_009, "vqg_okvqa": 9_009,
}  # fmt: skip
STREAMS = {  # work -> (sources, workers, images)
    "Text, 1 worker": (1, 1, False),
    "Text, 2 workers": (1, 2, False),
    "Text of 3 sources, 1 worker": (3, 1, False),
    "Images, 1 worker": (1, 1, True),
    "Images, 2 workers": (1, 2, True),
    "Images of 3 sources, 2 workers": (3, 2, True),
}
INDEX = {
    "Index, set up": "set_up",
    "Index, rows in order": "in_order",
    "Index, rows anywhere": "anywhere",
}
NAMES = ("peer", "peer again", "ours")


def main(argv: list[str] | None = None) -> dict[str, Any]:
    arguments = _parse(argv)
    if arguments.one:
        name, work, folder = arguments.one
        measure = _measure_index if work == "index" else _measure_stream
        print(json.dumps(measure(name, work, Path(folder), arguments)))
        return {}
    report: dict[str, Any] = {"machine": _machine(arguments), "rows": {}}
    with tempfile.TemporaryDirectory() as folder:
        _write_parquet(Path(folder), arguments.rows)
        for work in [*STREAMS, "index"]:
            runs: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES}
            for repetition in range(arguments.repetitions):
                first = repetition % len(NAMES)
                for name in [*NAMES[first:], *NAMES[:first]]:
                    options = [f"--rows={arguments.rows}", f"--places={arguments.places}", f"--reads={arguments.reads}"]
                    command = [sys.executable, __file__, *options, "--one", name, work, folder]
                    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                    runs[name].append(json.loads(done.stdout))
            if work != "index":
                report["rows"][work] = runs
            else:
                for title, part in INDEX.items():
                    report["rows"][title] = {name: [run[part] for run in measured] for name, measured in runs.items()}
    print(_as_markdown(report))
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    return report


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=12_000, help="of each source; text is read three times over")
    parser.add_argument("--places", type=int, default=10_000_000, help="about how many the index has")
    parser.add_argument("--reads", type=int, default=100_000, help="rows read through the index")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--output", type=Path, help="also write everything as JSON")
    parser.add_argument("--one", nargs=3, metavar=("NAME", "WORK", "FOLDER"), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def _write_parquet(folder: Path, rows: int) -> None:
    """Three sources of rows with a JPEG of 224 x 224 and one question with ten answers."""
    import datasets
    from PIL import Image

    from instructblip.datasets_builders.schema import make_sample, row_features

    datasets.disable_progress_bars()
    random = np.random.default_rng(0)
    pictures = []
    for blocks in random.integers(0, 256, (64, 28, 28, 3), dtype=np.uint8):
        buffer = io.BytesIO()
        Image.fromarray(blocks).resize((224, 224)).save(buffer, "JPEG")
        pictures.append({"bytes": buffer.getvalue(), "path": None})
    answers = ["yes", "no", "yes", "red", "yes", "a dog", "no", "yes", "yes", "no"]
    for source in range(3):
        made = [
            {
                "image": pictures[number % len(pictures)],
                "image_id": f"coco/{number:012d}",
                "samples": [make_sample(f"{source}/{number}", f"What is the colour of object {number}?", answers)],
            }
            for number in range(rows)
        ]
        table = datasets.Dataset.from_list(made, features=row_features())
        for file in range(FILES):
            part = table.shard(FILES, file)
            part.to_parquet(folder / f"source{source}-{file}.parquet", batch_size=100)  # as `push_to_hub` cuts them


def _measure_stream(name: str, work: str, folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Reading batches with DataLoader workers: seconds, rows, and MiB of the largest process."""
    import datasets
    from torch.utils.data import DataLoader

    sources, workers, images = STREAMS[work]
    streams = {}
    for source in range(sources):
        files = sorted(map(str, folder.glob(f"source{source}-*.parquet")))
        streams[f"source{source}"] = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    mixed = _mix(streams, images) if name == "ours" else _mix_plainly(streams, images)
    rows = arguments.rows * (1 if images else 3)

    def read() -> dict[str, float]:
        start = time.perf_counter()
        loader = iter(DataLoader(mixed, batch_size=BATCH, num_workers=workers, collate_fn=list))
        count = sum(len(batch) for batch in itertools.islice(loader, rows // BATCH))
        wall = time.perf_counter() - start  # without waiting for workers to end: the peer's may take seconds
        del loader  # ends them, so that their CPU time counts
        return {"rows": count, "wall": wall}

    return _measured(read)


def _mix(streams: dict[str, Any], images: bool) -> Any:
    from instructblip.datasets_builders.instructions import InstructionFormat
    from instructblip.datasets_builders.streaming import stream_mixture

    formats = {name: InstructionFormat.of(name, task="vqa") for name in streams}
    return stream_mixture(streams, {name: 1 / len(streams) for name in streams}, formats, with_images=images)


def _mix_plainly(streams: dict[str, Any], images: bool) -> Any:
    import datasets

    plain = [
        (stream if images else stream.select_columns(["image_id", "samples"])).repeat(None)
        for stream in streams.values()
    ]
    if len(plain) == 1:
        return plain[0]
    return datasets.interleave_datasets(plain, [1 / len(plain)] * len(plain), seed=0)


def _measure_index(name: str, work: str, folder: Path, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Setting an index up, and reading rows through it in two ways."""
    import datasets

    # all_exhausted, the peer's way to see every row, stops when the largest source is through.
    roots = {name: size**0.5 for name, size in SIZES.items()}
    probabilities = [root / sum(roots.values()) for root in roots.values()]
    scale = arguments.places * max(probabilities) / max(SIZES.values())
    sizes = [max(1, round(size * scale)) for size in SIZES.values()]
    sources = [datasets.Dataset.from_dict({"id": np.arange(size)}) for size in sizes]
    measured = {}
    if name == "ours":
        from instructblip.datasets_builders.mixture import MixtureOrder

        order = MixtureOrder(sizes, np.array(probabilities), arguments.places, seed=0)
        measured["set_up"] = _measured(lambda: {"rows": arguments.places, "done": order.start_epoch(0)})
        length = arguments.places

        def row(place: int) -> dict[str, Any]:
            source, item, _ = order.locate(place)
            return sources[source][item]
    else:
        mixed: Any = None

        def interleave() -> dict[str, float]:
            nonlocal mixed
            mixed = datasets.interleave_datasets(sources, probabilities, seed=0, stopping_strategy="all_exhausted")
            return {"rows": len(mixed)}

        measured["set_up"] = _measured(interleave)
        length, row = len(mixed), mixed.__getitem__

    anywhere = np.random.default_rng(0).integers(length, size=arguments.reads).tolist()
    for part, places in (("in_order", range(min(arguments.reads, length))), ("anywhere", anywhere)):
        measured[part] = _measured(lambda places=places: {"rows": sum(1 for place in places if row(place))})
    return measured


def _measured(work: Any) -> dict[str, float]:
    """What `work` returns, its seconds, the most MiB of the largest process, and those over what was there before."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from what is in use
    resident, cpu, start = _status("VmRSS"), sum(os.times()[:4]), time.perf_counter()
    result = work()
    wall, cpu = time.perf_counter() - start, sum(os.times()[:4]) - cpu
    peaks = _status("VmHWM"), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {"wall": wall, "cpu": cpu, "mib": max(peaks) / 1024, "over_mib": (max(peaks) - resident) / 1024, **result}


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def _as_markdown(report: dict[str, Any]) -> str:
    lines = [
        f"Machine: {', '.join(f'{name} {value}' for name, value in report['machine'].items())}.",
        "",
        "| Work | | Rows a second | Wall time of peer | CPU time of peer | Peak memory, MiB | over that before |",
        "|---|---|---|---|---|---|---|",
    ]
    for work, runs in report["rows"].items():
        for name, measured in runs.items():
            cells = [work, name, f"{statistics.median(run['rows'] / run['wall'] for run in measured):,.0f}"]
            for clock in ("wall", "cpu"):
                # Seconds a row, as the peer's index is a few places longer or shorter.
                taken, peers = ([run[clock] / run["rows"] for run in each] for each in (measured, runs["peer"]))
                cells.append("-" if name == "peer" else str(Ratio.of(taken, peers)))
            cells += [f"{statistics.median(run[key] for run in measured):.0f}" for key in ("mib", "over_mib")]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _machine(arguments: argparse.Namespace) -> dict[str, Any]:
    import datasets
    import pyarrow
    import torch

    models = [line.split(": ")[1] for line in _cpu_info() if line.startswith("model name")]
    return {
        "device": (models or [platform.processor()])[0],
        "cores": os.cpu_count(),
        "datasets": datasets.__version__,
        "pyarrow": pyarrow.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "rows": arguments.rows,
        "places": arguments.places,
        "reads": arguments.reads,
        "repetitions": arguments.repetitions,
        "load": f"{os.getloadavg()[0]:.1f}",
    }


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    main()
