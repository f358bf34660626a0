"""Compare this package with transformers' InstructBLIP on the same work: `python benchmarks/compare.py`.

Both models run in one process on the same weights and batches, in an order that rotates; the peer also runs against
itself, which shows what the machine's noise looks like. Results are checked to be equal before they are timed.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import generation_rows
import peak_memory
import ranking_rows
import torch
import training_rows
import transformers
from arithmetic import count_operations, matrix_rate
from comparisons import Comparison, Row
from model_pairs import LANGUAGES, SIZES, Setting, new_pair
from report import as_markdown
from timing import CLOCKS, alternate, ratios_of

TIMED_ROWS: list[Row] = [*training_rows.ROWS, *generation_rows.ROWS, *ranking_rows.ROWS]
ROW_NAMES = [*(row.name for row in TIMED_ROWS), "memory"]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    arguments = _parse(argv)
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    names = [name for name in ROW_NAMES if any(fnmatch.fnmatch(name, pattern) for pattern in arguments.rows)]
    if not names:
        raise SystemExit(f"no row is called {' or '.join(arguments.rows)}: the rows are {', '.join(ROW_NAMES)}")
    report: dict[str, Any] = {"machine": _machine(arguments), "rows": []}
    for language in arguments.language:
        for training in (True, False):
            rows = [row for row in TIMED_ROWS if row.name in names and row.training == training]
            report["rows"] += _time_rows(rows, language, training, arguments)
        if "memory" in names:
            report["rows"].append(_measure_memory(language, arguments))
    print(as_markdown(report))
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    return report


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=["*"], help=f"names or patterns of: {', '.join(ROW_NAMES)}")
    parser.add_argument("--language", nargs="+", choices=LANGUAGES, default=list(LANGUAGES))
    parser.add_argument("--size", choices=SIZES, default="toy", help="xl: FlanT5-XL, Vicuna-7B; xxl: XXL, Vicuna-13B")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument(
        "--compile",
        nargs="?",
        const="default",
        metavar="MODE",
        help="also time training steps of both models under torch.compile; `reduce-overhead` records CUDA graphs",
    )
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: the process' CPU time")
    parser.add_argument("--output", type=Path, help="also write everything as JSON")
    return parser.parse_args(argv)


def _time_rows(rows: list[Row], language: str, training: bool, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    if not rows:
        return []
    dtype = getattr(torch, arguments.dtype)
    setting = Setting(language, arguments.size, arguments.device, dtype, training, arguments.compile)
    pair = new_pair(setting)
    timed = []
    for row in rows:
        print(f"{language} {row.name}", file=sys.stderr, flush=True)
        comparison = row.prepare(pair)
        equal = comparison.check()
        seconds = alternate(comparison.contestants, arguments.repetitions, arguments.clock, setting.synchronize)
        ratios = ratios_of(seconds)
        print("  " + ", ".join(f"{name} {ratio}" for name, ratio in ratios.items()), file=sys.stderr, flush=True)
        timed.append(
            {
                "name": row.name,
                "title": row.title,
                "language": language,
                "apart": row.apart,
                "equal": equal,
                "note": "; ".join(part for part in (comparison.note, _rates(comparison, seconds, arguments)) if part),
                "seconds": seconds,
                "ratios": {name: vars(ratio) for name, ratio in ratios.items()},
            }
        )
    del pair
    gc.collect()
    if arguments.device.startswith("cuda"):
        torch.cuda.empty_cache()
    return timed


def _rates(comparison: Comparison, seconds: dict[str, list[float]], arguments: argparse.Namespace) -> str:
    """Samples a second and, of the fastest of ours, the share of the rate at which this device multiplies matrices."""
    if not comparison.rows:
        return ""
    samples = {name: comparison.rows / statistics.median(taken) for name, taken in seconds.items()}
    shown = ", ".join(f"{name} {rate:.3g}" for name, rate in samples.items())
    ours = next(contestant for contestant in comparison.contestants if contestant.name == "ours")
    operations = count_operations(ours.parts[0][0])
    best = min(statistics.median(seconds[name]) for name in ("ours", "ours compiled") if name in seconds)
    rate = matrix_rate(arguments.device, getattr(torch, arguments.dtype), arguments.clock)
    return (
        f"samples a second: {shown}; ours computes {operations / 1e9:.4g} GFLOP in matrix products a step, "
        f"{operations / best / rate:.0%} of the measured matrix rate of {rate / 1e12:.3g} TFLOP/s"
    )


def _measure_memory(language: str, arguments: argparse.Namespace) -> dict[str, Any]:
    print(f"{language} memory", file=sys.stderr, flush=True)
    # Fixed, so that freed tensors leave the process and its peak is that of live ones.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    options = [f"--{name}={getattr(arguments, name)}" for name in ("size", "device", "dtype", "threads")]
    script = str(Path(peak_memory.__file__))
    mib = {}
    for contestant in ("peer", "peer tuned", "ours"):
        command = [sys.executable, script, contestant, f"--language={language}", *options]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        mib[contestant] = json.loads(done.stdout)
    return {"name": "memory", "language": language, "mib": mib}


def _machine(arguments: argparse.Namespace) -> dict[str, Any]:
    cuda = arguments.device.startswith("cuda")
    models = [line.split(": ")[1] for line in _cpu_info() if line.startswith("model name")]
    return {
        "device": torch.cuda.get_device_name() if cuda else (models or [platform.processor()])[0],
        "cores": os.cpu_count(),
        "threads": arguments.threads,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "size": arguments.size,
        "dtype": arguments.dtype,
        "clock": arguments.clock,
        "repetitions": arguments.repetitions,
    }


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    main()
