"""What the harness costs beside the model: `python benchmarks/harness.py`.

Ranked tasks run through lm-eval on synthetic official files of the real sizes, with a stub in place of the model:
Visual Dialog (20,640 rounds with 100 options each) and MSRVTT-QA (72,821 questions, 1,500 candidates out of 158,581
training answers). Each run is a process of its own. lm-eval's own `multiple_choice`, with a request for every option,
runs on part of Visual Dialog, where ours runs too.
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
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from timing import Ratio

DOCUMENTS = {"visdial": 20_640, "msrvtt_qa": 72_821}
ROUNDS, OPTIONS = 10, 100
ANSWERS = 337_527  # different ones in Visual Dialog's files
TRAINING_ANSWERS, CLIPS = 158_581, 2_990
WAYS = {
    "build": "rows built from the files, every picture decoded once",
    "scores": "evaluated",
    "samples": "evaluated, samples logged and written",
    "part": "part of it, samples logged and written",
    "peer": "the same part by lm-eval's `multiple_choice`",
}
WORDS = "a the is are there two man woman dog street red blue white yes no not can see his her on it table tree".split()


def main(argv: list[str] | None = None) -> dict[str, Any]:
    arguments = _parse(argv)
    if arguments.one:
        work, way, folder = arguments.one
        print(json.dumps(_measure(work, way, Path(folder), arguments)))
        return {}
    report: dict[str, Any] = {"machine": _machine(arguments), "rows": {}}
    with tempfile.TemporaryDirectory() as folder:
        for work in arguments.works:
            write = _write_visdial if work == "visdial" else _write_msrvtt
            write(Path(folder) / work, arguments.documents or DOCUMENTS[work])
            ways = [way for way in WAYS if work == "visdial" or way not in ("part", "peer")]
            runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
            for repetition in range(arguments.repetitions):
                for way in (
                    ways[:1] + _rotated(ways[1:], repetition) if repetition == 0 else _rotated(ways[1:], repetition)
                ):
                    command = [sys.executable, __file__, "--one", work, way, folder, f"--part={arguments.part}"]
                    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                    runs[way].append(json.loads(done.stdout.splitlines()[-1]))
            report["rows"][work] = runs
    print(_as_markdown(report))
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    return report


def _rotated(ways: list[str], by: int) -> list[str]:
    first = by % len(ways)
    return [*ways[first:], *ways[:first]]


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--works", nargs="+", choices=DOCUMENTS, default=list(DOCUMENTS), metavar="WORK")
    parser.add_argument("--documents", type=int, help="questions of each; default: as many as the real files have")
    parser.add_argument("--part", type=int, default=2_000, help="questions that lm-eval's own form is compared on")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--output", type=Path, help="also write everything as JSON")
    parser.add_argument("--one", nargs=3, metavar=("WORK", "WAY", "FOLDER"), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


# ---- Files


def _texts(random: np.random.Generator, count: int, most: int) -> list[str]:
    """Different texts of up to `most` words and a number."""
    lengths = random.integers(1, most + 1, count)
    words = random.choice(WORDS, int(lengths.sum())).tolist()
    ends = np.cumsum(lengths).tolist()
    starts = [0, *ends[:-1]]
    return [" ".join([*words[first:end], str(n)]) for n, (first, end) in enumerate(zip(starts, ends, strict=True))]


def _picture(path: Path, size: tuple[int, int]) -> Path:
    from PIL import Image

    blocks = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True)
    Image.fromarray(blocks).resize(size).save(path)
    return path


def _write_visdial(folder: Path, documents: int) -> None:
    """Dialogues of ten rounds with 100 options, about one picture of 640 x 480 under many names."""
    picture = _picture(folder / "picture.jpg", (640, 480))
    (folder / "VisualDialog_val2018").mkdir()
    random = np.random.default_rng(0)
    dialogs = []
    for number in range(documents // ROUNDS):
        os.link(picture, folder / "VisualDialog_val2018" / f"VisualDialog_val2018_{number:012d}.jpg")
        options = random.choice(ANSWERS, (ROUNDS, OPTIONS), replace=False)
        truths = random.integers(0, OPTIONS, ROUNDS).tolist()
        turns = [
            {"question": number * ROUNDS + n, "answer": row[truth], "answer_options": row, "gt_index": truth}
            for n, (row, truth) in enumerate(zip(options.tolist(), truths, strict=True))
        ]
        dialogs.append({"image_id": number, "caption": " ".join(WORDS[:10]), "dialog": turns})
    data = {"questions": _texts(random, documents, 8), "answers": _texts(random, ANSWERS, 4), "dialogs": dialogs}
    (folder / "visdial_1.0_val.json").write_text(json.dumps({"version": "1.0", "split": "val2018", "data": data}))


def _write_msrvtt(folder: Path, documents: int) -> None:
    """Questions about clips whose four frames are one picture of 320 x 240; some answers are frequent, most are not."""
    picture = _picture(folder / "picture.jpg", (320, 240))
    clips = min(CLIPS, documents)
    for number in range(clips):
        (folder / "video" / f"video{number}").mkdir(parents=True)
        for frame in range(4):
            os.link(picture, folder / "video" / f"video{number}" / f"{frame}.jpg")
    random = np.random.default_rng(0)
    for split, count in (("train", TRAINING_ANSWERS), ("test", documents)):
        answers = np.minimum(random.zipf(1.3, count), 6_000).tolist()
        records = [
            {"answer": f"word{answer}", "category_id": 0, "id": n, "question": text, "video_id": n % clips}
            for n, (answer, text) in enumerate(zip(answers, _texts(random, count, 8), strict=True))
        ]
        (folder / f"{split}_qa.json").write_text(json.dumps(records))


# ---- One run


class StubDriver:
    """Scores that depend on the prompt's length and the candidate's place, at no cost."""

    is_encoder_decoder = True
    prompt_form = "none"

    def __init__(self, model: Any) -> None:
        self.model = self.processor = model

    def check(self, prompts: Sequence[Any]) -> None: ...

    def inputs(self, prompts: Sequence[Any], images: Mapping[Any, Any]) -> list[int]:
        return [len(prompt.text) for prompt in prompts]

    def encode_candidates(self, texts: Sequence[str]) -> list[list[int]]:
        return [[len(text)] for text in texts]

    def score(self, inputs: list[int], candidates: list[list[list[int]]], *_: Any) -> np.ndarray:
        most = max(map(len, candidates))
        return -((np.array(inputs)[:, None] * 31 + np.arange(most) * 17) % 997).astype(np.float32) / 7


def _stub_lm() -> Any:
    import torch

    from instructblip.eval_tasks import InstructBLIPEvalModel

    config = SimpleNamespace(_name_or_path="stub", is_encoder_decoder=True)
    model = SimpleNamespace(
        config=config, device=torch.device("cpu"), dtype=torch.float32, eval=lambda: None, score_candidates=None,
        num_parameters=lambda: 0, check_compatible=lambda config: None,
    )  # fmt: skip
    lm = InstructBLIPEvalModel(model, model, device="cpu", batch_size=16)
    lm.driver = StubDriver(model)
    return lm


def _measure(work: str, way: str, folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds (wall, and CPU), peak MiB of the process and before the work, documents, and pictures decoded."""
    import datasets
    import lm_eval
    from lm_eval.loggers import EvaluationTracker

    from instructblip.eval_tasks import lm_eval_model, task_manager

    datasets.config.HF_DATASETS_CACHE = str(folder / "cache")
    decoded: list[Any] = []
    read = lm_eval_model.read_image
    lm_eval_model.read_image = lambda reference: decoded.append(reference) or read(reference)
    lm, before = _stub_lm(), _peak_mib()
    start, cpu = time.perf_counter(), _cpu_seconds()

    def used() -> dict[str, float]:
        seconds = {"wall": time.perf_counter() - start, "cpu": _cpu_seconds() - cpu}
        return {**seconds, "before": before, "mib": _peak_mib()}

    manager = task_manager(data_root=str(folder))
    name = f"instructblip_{work}"
    if way == "build":
        documents = len(manager.load([name])["tasks"][name].eval_docs)
        return {**used(), "documents": documents}
    tasks = [_one_request_per_option(name, folder)] if way == "peer" else [name]
    with tempfile.TemporaryDirectory() as output:
        tracker = EvaluationTracker(output_path=output) if way != "scores" else None
        results = lm_eval.simple_evaluate(
            lm,
            tasks=tasks,
            task_manager=manager,
            bootstrap_iters=0,
            log_samples=tracker is not None,
            limit=arguments.part if way in ("part", "peer") else None,
            evaluation_tracker=tracker,
        )
        documents = results["n-samples"][name]["effective"]
        if tracker is not None:
            samples = results.pop("samples")
            tracker.save_results_aggregated(results=results, samples=samples)
            tracker.save_results_samples(task_name=name, samples=samples[name])
        written = sum(path.stat().st_size for path in Path(output).rglob("samples_*"))
    if len(decoded) != len(set(decoded)):
        raise ValueError(f"{len(decoded)} pictures decoded, {len(set(decoded))} different ones")
    sizes = {"documents": documents, "decoded": len(decoded), "written_mb": written / 1e6}
    return {**used(), **sizes}


def _one_request_per_option(name: str, folder: Path) -> dict[str, Any]:
    """The task's configuration as lm-eval's own `multiple_choice`."""
    from lm_eval.tasks._yaml_loader import load_yaml

    from instructblip.eval_tasks import TASK_FOLDER

    config = load_yaml(TASK_FOLDER / f"{name.removeprefix('instructblip_')}.yaml")
    score = config["process_results"]
    config["process_results"] = lambda doc, results: score(doc, [[value for value, _ in results]])
    config["metadata"] = {**config["metadata"], "data_root": str(folder)}
    return {key: value for key, value in config.items() if key != "class"}


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ---- The table


def _as_markdown(report: dict[str, Any]) -> str:
    lines = [
        f"Machine: {', '.join(f'{name} {value}' for name, value in report['machine'].items())}.",
        "",
        "| Work | Run | Documents | Wall, s | CPU, s | CPU, ms each | Peak memory, MiB | over that before | Decoded |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for work, runs in report["rows"].items():
        for way, measured in runs.items():
            wall, cpu, memory = (_median(measured, name) for name in ("wall", "cpu", "mib"))
            documents = measured[0]["documents"]
            over = statistics.median(run["mib"] - run["before"] for run in measured)
            decoded = measured[0].get("decoded")
            shown = "-" if decoded is None else f"{decoded:,.0f}"
            lines.append(
                f"| {work} | {WAYS[way]} | {documents:,.0f} | {wall:.1f} | {cpu:.1f} | "
                f"{1000 * cpu / documents:.2f} | {memory:.0f} | {over:.0f} | {shown} |"
            )
        if "peer" in runs:
            ratio = Ratio.of([run["cpu"] for run in runs["peer"]], [run["cpu"] for run in runs["part"]])
            sizes = [_median(runs[way], "written_mb") for way in ("part", "peer")]
            lines += ["", f"{work}: lm-eval's form takes {ratio} of the CPU time, and writes {sizes[1]:.0f} MB"]
            lines[-1] += f" instead of {sizes[0]:.0f}."
        costs = (_median(runs["samples"], "cpu") - _median(runs["scores"], "cpu")) / runs["samples"][0]["documents"]
        lines += ["", f"{work}: logging and writing samples costs {1000 * costs:.2f} ms of CPU time a document.", ""]
    return "\n".join(lines)


def _median(runs: list[dict[str, float]], name: str) -> float:
    return statistics.median(run[name] for run in runs)


def _machine(arguments: argparse.Namespace) -> dict[str, Any]:
    from importlib.metadata import version

    return {
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "lm_eval": version("lm_eval"),
        "datasets": version("datasets"),
        "python": platform.python_version(),
        "repetitions": arguments.repetitions,
    }


if __name__ == "__main__":
    main()
