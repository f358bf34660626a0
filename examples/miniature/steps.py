"""The steps of the demo and of the experiments: commands of the package, which one could type as well.

A step leaves a folder. Where that is there already, the step is not run again.
"""

import collections
import os
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from write_datasets import write_datasets

from instructblip.eval_tasks.cider import cider
from instructblip.eval_tasks.report_results import TaskRun, read_models, read_samples
from instructblip.eval_tasks.report_tables import Column, read_published

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
BACKBONES = (HERE / "backbones").relative_to(REPOSITORY)  # as releases name them
KINDS = ("decoder_only", "encoder_decoder")  # of language models
HELD_OUT: tuple[Column, ...] = read_published().columns  # the paper's 13 benchmarks in its order, with task and metric
HELD_IN = (  # what the tasks of `instructblip_heldin` measure
    Column("COCO", "instructblip_coco_caption", "cider", ""),
    Column("TextCaps", "instructblip_textcaps", "cider", ""),
    Column("VQAv2", "instructblip_vqav2", "vqa_accuracy", ""),
    Column("OKVQA", "instructblip_okvqa", "vqa_accuracy", ""),
    Column("A-OKVQA", "instructblip_aokvqa_multiple_choice", "accuracy", ""),
    Column("A-OKVQA, no choices", "instructblip_aokvqa_direct_answer", "vqa_accuracy", ""),
    Column("OCR-VQA", "instructblip_ocr_vqa", "accuracy", ""),
)
ANSWERED = tuple(column.name for column in HELD_OUT if column.metric != "cider")  # CIDEr outweighs all others in a mean
Scores = dict[str, float]  # benchmark -> score x 100
COMMANDS: list[str] = []  # that this process has run
THREADS = 1  # of each command: models of this size gain little from a second, which another command can use


def run(program: Sequence[str | Path], options: Mapping[str, object], log: Path | None = None) -> None:
    """Run a Python program, and show the command that does it.

    Args:
        log: file for what it says; None: it says it here.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    words = [str(word) for word in program]
    for name, value in options.items():
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    where = f"   > {log}" if log else ""
    COMMANDS.append(f"python {shlex.join(words)}")
    print(f"\n{COMMANDS[-1]}{where}", flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
    with log.open("w", encoding="utf-8") if log else nullcontext() as out:
        command = [sys.executable, *words]
        # recipes and releases name folders from the repository's root
        subprocess.run(command, check=True, cwd=REPOSITORY, env=environment, stdout=out, stderr=out)


def stage2(kind: str, bridges: Path | None = None) -> Path:
    """The release of stage 2, BLIP-2 in small, with this kind of language model.

    Args:
        bridges: folder of pretrain_bridge.py, absolute; None: the shipped release.

    Raises:
        FileNotFoundError: it is not there.
    """
    folder = BACKBONES / f"stage2_{kind}" if bridges is None else bridges / kind / "model"
    if not (REPOSITORY / folder).is_dir():
        raise FileNotFoundError(f"{folder} is missing: pretrain_bridge.py makes it")
    return folder


def draw(
    folder: Path, names: Sequence[str] | None = None, seed: int = 0, scale: float = 1.0, blank: bool = False
) -> Path:
    """The 26 datasets, or some of them; `blank`: with nothing in their pictures."""
    write_datasets(folder, names, seed=seed, scale=scale, blank=blank)
    return folder


def train(recipe: str, data: Path, output: Path, log: Path | None = None, **options: object) -> Path:
    """Run `examples/train.py` with a recipe of `recipes/`.

    Args:
        data, output: absolute, as all paths here.
        log: as in `run`.
        options: in place of the recipe's values; one that is None leaves the recipe's.

    Returns:
        folder of the release.
    """
    release = output / "release"
    if not release.exists():
        shutil.rmtree(output, ignore_errors=True)  # of a run that was interrupted
        script, recipe_file = HERE.parent / "train.py", HERE / "recipes" / f"{recipe}.yaml"
        given = {name: value for name, value in options.items() if value is not None}
        run([script, "--config", recipe_file], {"data_root": data, "output_dir": output, **given}, log)
    return release


def evaluate(model: Path, data: Path, output: Path, tasks: str, log: Path | None = None) -> Path:
    """Run `instructblip-eval` on a release.

    Returns:
        folder of the results.
    """
    if not output.exists():
        unfinished = output.with_name(f"{output.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        options = {"model_args": f"pretrained={model},dtype=float32", "tasks": tasks, "metadata": f"data_root={data}"}
        more = {"batch_size": 64, "output_path": unfinished, "log_samples": True}
        run(["-m", "instructblip.eval_tasks"], {**options, **more}, log)
        unfinished.rename(output)
    return output


def mean(scores: Scores) -> float:
    return statistics.mean(scores.values())


def chance(results: Path) -> Scores:
    """What one reaches who neither sees nor learns: guesses among the choices, or always gives the same answer.

    The same answer is the one that scores most in the test; of captions it is the first of the test's.

    Args:
        results: of any model; only the documents that it was asked are read.
    """
    (model,) = read_models([results])
    columns = (*HELD_OUT, *HELD_IN)
    return {column.name: 100 * guess(column.metric, documents(model.runs[column.task])) for column in columns}


def documents(run: TaskRun) -> list[dict[str, Any]]:
    """What was asked in a task, with its answers."""
    samples = read_samples(run)
    assert samples is not None  # `evaluate` logs them
    return [samples.line(place)["doc"] for place in range(len(samples.names))]


def guess(metric: str, asked: list[dict[str, Any]]) -> float:
    """The score of `chance` in one benchmark, from 0 to 1 (CIDEr: to 10)."""
    if metric == "cider":
        same = asked[0]["answers"][0]
        return cider([{"id": each["id"], "caption": same, "references": each["answers"]} for each in asked])
    if metric == "auroc":
        return 0.5
    if metric == "mrr":  # of a random order
        ranks = [sum(1 / rank for rank in range(1, len(each["choices"]) + 1)) for each in asked]
        return statistics.mean(rank / len(each["choices"]) for rank, each in zip(ranks, asked, strict=True))
    if asked[0]["choices"]:
        return statistics.mean(1 / len(each["choices"]) for each in asked)
    if asked[0]["label"] >= 0:  # true or false
        share = statistics.mean(each["label"] for each in asked)
        return max(share, 1 - share)
    counts = collections.Counter(answer for each in asked for answer in set(each["answers"]))
    return counts.most_common(1)[0][1] / len(asked)
