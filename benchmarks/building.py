"""Compare building a dataset with this package and with plain `datasets`: `python benchmarks/building.py`.

Synthetic official files (VQA-RAD's layout, JPEG of 224 x 224) are built into grouped rows by `load` and by
`Dataset.from_generator` over a generator that reads the same files into the same rows without any check of them. Every
build runs in a process of its own, in an order that rotates; the peer also runs against itself.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from timing import Ratio

QUESTIONS = 5  # per image
WORK = {
    "paths": "paths kept, images not opened",
    "verify": "paths kept, every image decoded once",
    "embed": "every image decoded once, its bytes kept",
}
NAMES = ("peer", "peer again", "ours", "ours, 2 processes")


def main(argv: list[str] | None = None) -> dict[str, Any]:
    arguments = _parse(argv)
    if arguments.one:
        name, work, folder = arguments.one
        print(json.dumps(_measure(name, work, Path(folder))))
        return {}
    report: dict[str, Any] = {"machine": _machine(arguments), "rows": {}}
    with tempfile.TemporaryDirectory() as folder:
        _write_official_files(Path(folder), arguments.images)
        for work in WORK:
            runs: dict[str, list[dict[str, float]]] = {name: [] for name in NAMES}
            for repetition in range(arguments.repetitions):
                first = repetition % len(NAMES)
                for name in [*NAMES[first:], *NAMES[:first]]:
                    command = [sys.executable, __file__, "--one", name, work, folder]
                    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                    runs[name].append(json.loads(done.stdout))
            report["rows"][work] = runs
    print(_as_markdown(report, arguments.images))
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    return report


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000, help=f"each with {QUESTIONS} questions")
    parser.add_argument("--repetitions", type=int, default=4)
    parser.add_argument("--output", type=Path, help="also write everything as JSON")
    parser.add_argument("--one", nargs=3, metavar=("NAME", "WORK", "FOLDER"), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def _write_official_files(folder: Path, images: int) -> None:
    from PIL import Image

    (folder / "images").mkdir()
    random = np.random.default_rng(0)
    for number in range(images):
        blocks = random.integers(0, 256, (28, 28, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize((224, 224)).save(folder / "images" / f"synpic{number}.jpg")
    fixed = {"image_organ": "HEAD", "answer_type": "OPEN", "question_type": "PRES", "phrase_type": "freeform"}
    records = [
        {"qid": qid, "image_name": f"synpic{qid % images}.jpg", "question": f"What is {qid}?", "answer": "it", **fixed}
        for qid in range(images * QUESTIONS)
    ]
    (folder / "trainset.json").write_text(json.dumps(records))


def _measure(name: str, work: str, folder: Path) -> dict[str, float]:
    """Seconds (wall, and CPU of all processes), peak MiB of the largest process, and rows of one build."""
    from instructblip.datasets_builders import vqa_rad  # noqa: F401  (imports are not part of the work)

    with tempfile.TemporaryDirectory() as cache:
        before, start = _cpu_seconds(), time.perf_counter()
        build = _build_plainly if name.startswith("peer") else _build
        rows = build(work, folder, cache, 2 if "2 processes" in name else None)
        wall, cpu = time.perf_counter() - start, _cpu_seconds() - before
        usage = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return {"wall": wall, "cpu": cpu, "mib": max(usage) / 1024, "rows": len(rows)}


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _build(work: str, folder: Path, cache: str, num_proc: int | None) -> Any:
    from instructblip.datasets_builders import load

    options = {"verify_images": work != "paths", "embed_images": work == "embed"}
    return load("vqa_rad", str(folder), split="train", num_proc=num_proc, cache_dir=cache, **options)


def _build_plainly(work: str, folder: Path, cache: str, num_proc: int | None) -> Any:
    import datasets
    from PIL import Image

    from instructblip.datasets_builders.schema import row_features

    def rows() -> Iterator[dict[str, Any]]:
        grouped: dict[str, list[dict[str, Any]]] = {}
        for record in json.loads((folder / "trainset.json").read_text()):
            sample = {"id": str(record["qid"]), "question": record["question"], "answers": [record["answer"]]}
            empty = {"choices": [], "label": -1, "context": "", "ocr_tokens": [], "history": []}
            tags = [f"answer_type={record['answer_type']}", f"organ={record['image_organ']}"]
            grouped.setdefault(record["image_name"], []).append({**sample, **empty, "tags": tags})
        for name, samples in grouped.items():
            path = os.path.join(folder, "images", name)
            if work != "paths":
                Image.open(path).load()
            image: Any = path if work != "embed" else {"bytes": Path(path).read_bytes(), "path": None}
            yield {"image": image, "image_id": name, "samples": samples}

    return datasets.Dataset.from_generator(rows, features=row_features(), cache_dir=cache, num_proc=num_proc)


def _as_markdown(report: dict[str, Any], images: int) -> str:
    lines = [
        f"Machine: {', '.join(f'{name} {value}' for name, value in report['machine'].items())}.",
        "",
        "| Work | Build | Images a second | CPU time of peer | Peak memory, MiB |",
        "|---|---|---|---|---|",
    ]
    for work, runs in report["rows"].items():
        for name, measured in runs.items():
            speed = statistics.median(images / run["wall"] for run in measured)
            peer = [run["cpu"] for run in runs["peer"]]
            ratio = "-" if name == "peer" else str(Ratio.of([run["cpu"] for run in measured], peer))
            memory = statistics.median(run["mib"] for run in measured)
            lines.append(f"| {WORK[work]} | {name} | {speed:.0f} | {ratio} | {memory:.0f} |")
    return "\n".join(lines)


def _machine(arguments: argparse.Namespace) -> dict[str, Any]:
    import datasets

    return {
        "cores": os.cpu_count(),
        "datasets": datasets.__version__,
        "python": platform.python_version(),
        "images": arguments.images,
        "repetitions": arguments.repetitions,
    }


if __name__ == "__main__":
    main()
