"""The paper's experiments in small: Table 2, Figure 4 and Table 3, with both kinds of language model, over seeds.

    python examples/miniature/experiments.py --output outputs/miniature/experiments
    python examples/miniature/experiments.py --output outputs/miniature/experiments --report
    python examples/miniature/experiments.py --output outputs/miniature/others --bridges outputs/miniature/bridge

A cell of the table is a training and an evaluation in `<output>/<kind>/<experiment>/<seed>`. Cells that are finished
are not run again, and one that was interrupted starts afresh; to repeat a cell, remove its folder. After each cell the
report is written anew: experiments.md, experiments.json and experiments.html in `<output>`.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import findings
import steps
from tqdm import tqdm

from instructblip.eval_tasks.report_results import read_models
from instructblip.eval_tasks.whole_files import write_whole

SCIENCEQA = ("instructblip_scienceqa",)
ALL_TASKS = ("instructblip_heldout", *(column.task for column in findings.HELD_IN))


@dataclass(frozen=True)
class Experiment:
    """What is trained and evaluated."""

    label: str  # in the report
    tables: tuple[str, ...]  # of the report that have a row of it
    options: Mapping[str, object] = field(default_factory=dict)  # in place of the recipe's values
    recipe: str | None = "instruct"  # None: the stage-2 release is evaluated as it is, and nothing is random
    dataset: str | None = None  # the one that the recipe trains on; None: the mixture
    start: str | None = None  # experiment whose release it starts from; None: the stage-2 release
    blank: bool = False  # all pictures are gray, in training and in evaluation
    tasks: tuple[str, ...] = ALL_TASKS


MAIN, BOTH, FINE = ("table_2",), ("table_2", "figure_4"), ("table_3",)
EXPERIMENTS = {
    "blip2": Experiment("BLIP-2: no instruction tuning", BOTH, recipe=None),
    "full": Experiment("InstructBLIP", BOTH),
    "no_instruction": Experiment("no instruction to the Q-Former", MAIN, {"qformer_text_input": False}),
    # The paper does not say which of the two its model without balancing has.
    "no_balancing_uniform": Experiment("no balancing: all datasets alike", MAIN, {"sampling": "uniform"}),
    "no_balancing_proportional": Experiment("no balancing: by size", MAIN, {"sampling": "proportional"}),
    # Figure 4. The paper evaluates both with the instructions of the tasks, as is done here, but captions of the first
    # with the picture alone, and the second once more with the task's name in place of the instruction. The package's
    # tasks have one prompt each, so neither is done here; none of the figure's held-out benchmarks is about captions.
    "plain": Experiment("multitask: inputs and outputs alone", BOTH, {"style": "plain"}),
    "tagged": Experiment("multitask: the dataset's name in front", BOTH, {"style": "tagged"}),
    "blind": Experiment("gray pictures (a check, not in the paper)", MAIN, blank=True),
    "finetune_blip2": Experiment(
        "BLIP-2, fine-tuned", FINE, recipe="finetune", dataset="scienceqa", tasks=SCIENCEQA
    ),
    "finetune_instructblip": Experiment(
        "InstructBLIP, fine-tuned", FINE, recipe="finetune", dataset="scienceqa", start="full", tasks=SCIENCEQA
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One run: an experiment with a kind of language model and a seed."""

    kind: str
    experiment: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.kind}/{self.experiment}/{self.seed}"

    @property
    def what(self) -> Experiment:
        return EXPERIMENTS[self.experiment]

    @property
    def needs(self) -> "Cell | None":
        """The cell whose release this one starts from."""
        return Cell(self.kind, self.what.start, self.seed) if self.what.start else None


@dataclass(frozen=True)
class Setting:
    """What all cells of a folder have in place of the usual."""

    steps: int | None = None  # of every training; None: the recipes'
    bridges: str | None = None  # folder of pretrain_bridge.py, seen from the repository; None: the shipped releases

    def stage2(self, kind: str) -> Path:
        """The release that cells with this kind of language model start from.

        Raises:
            FileNotFoundError: it is not there.
        """
        return steps.stage2(kind, None if self.bridges is None else (steps.REPOSITORY / self.bridges).resolve())

    def words(self) -> list[str]:
        """The options of the command that give it."""
        given = {"--steps": self.steps, "--bridges": self.bridges}
        return [str(word) for name, value in given.items() if value is not None for word in (name, value)]


# ---- What to run


def plan(
    output: Path, kinds: Sequence[str], names: Sequence[str], seeds: Sequence[int], setting: Setting
) -> list[Cell]:
    """The cells that are asked for and not finished, and those that they need, in the order in which to start them.

    All experiments of a seed come before those of the next, so that the report has something of each early.

    Raises:
        ValueError: an unknown kind or experiment, or a finished cell that had another setting.
    """
    for given, known, what in ((kinds, steps.KINDS, "kind of language model"), (names, EXPERIMENTS, "cell")):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise ValueError(f"there is no {what} {unknown[0]!r}: choose from {', '.join(known)}")
    wanted = set(names) | {EXPERIMENTS[name].start for name in names}
    cells = []
    for seed in seeds:
        for kind in kinds:
            for name in EXPERIMENTS:
                cell = Cell(kind, name, 0 if EXPERIMENTS[name].recipe is None else seed)
                if name in wanted and cell not in cells and not finished(cell, output, setting):
                    cells.append(cell)
    return cells


def finished(cell: Cell, output: Path, setting: Setting) -> bool:
    """Whether the scores of a cell are there.

    Raises:
        ValueError: they are of another setting.
    """
    file = output / cell.name / findings.SCORES
    if not file.exists():
        return False
    record = json.loads(file.read_text("utf-8"))
    before = Setting(setting.steps if cell.what.recipe is None else record["steps"], record.get("bridges"))
    if before != setting:
        had = " ".join(before.words()) or "neither --steps nor --bridges"
        raise ValueError(f"{cell.name} was run with {had}: remove {output / cell.name}, or choose another --output")
    return True


# ---- One cell


def run_cell(cell: Cell, output: Path, setting: Setting) -> None:
    """Train and evaluate, and leave the scores and what made them in the cell's folder."""
    started, folder, what = time.time(), output / cell.name, cell.what
    data = data_folder(output, what.blank)
    release = setting.stage2(cell.kind) if cell.needs is None else output / cell.needs.name / "training" / "release"
    if what.recipe is not None:
        options: dict[str, object] = {"model": release, "seed": cell.seed, "max_steps": setting.steps, **what.options}
        if what.dataset is not None:
            options["data_dir"] = data / what.dataset
        release = steps.train(what.recipe, data, folder / "training", **options)
    results = steps.evaluate(release, data, folder / "results", ",".join(what.tasks))
    record = {
        "kind": cell.kind,
        "experiment": cell.experiment,
        "seed": cell.seed,
        "random": what.recipe is not None,
        **asdict(setting),
        "scores": measured(results),
        "minutes": round((time.time() - started) / 60, 2),
        "made_with": made_with(),
    }
    write_whole(folder / findings.SCORES, json.dumps(record, indent=2) + "\n")


def data_folder(output: Path, blank: bool) -> Path:
    return output / ("data_blank" if blank else "data")


def measured(results: Path) -> steps.Scores:
    """Scores x 100, by the names of the benchmarks, of those that were evaluated.

    Raises:
        ValueError: a score is not a number.
    """
    (model,) = read_models([results])
    scores: steps.Scores = {}
    for column in (*steps.HELD_OUT, *findings.HELD_IN):
        if column.task in model.runs:
            value = model.runs[column.task].scores[column.metric]
            if value is None:
                raise ValueError(f"{column.task} has no {column.metric}: see {results}")
            scores[column.name] = 100 * value
    return scores


def made_with() -> dict[str, Any]:
    """What decides a score beside the options: code, versions and, by rounding, the machine and its threads."""
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text("utf-8").splitlines() if cpu_info.exists() else []
    models = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    return {
        "commit": commit(),
        "cpu": (models or [platform.processor()])[0],
        "cores": os.cpu_count(),
        "threads": steps.THREADS,  # so a score does not depend on what runs beside it
        **{name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        "python": platform.python_version(),
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
    }


def commit() -> str:
    """The commit of the code, "+changes" where files of it differ."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=steps.REPOSITORY, check=True, capture_output=True, text=True).stdout

    try:
        changes = git("status", "--porcelain", "--untracked-files=no").strip()
        return git("rev-parse", "HEAD").strip() + ("+changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"  # a copy without its history


# ---- All cells

Start = Callable[[Cell], subprocess.Popen]


def start_in_process(output: Path, setting: Setting) -> Start:
    """How a cell starts: in an empty folder, in a process of its own, which writes to log.txt there."""

    def start(cell: Cell) -> subprocess.Popen:
        folder = output / cell.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        words = [sys.executable, str(Path(__file__).resolve()), "--output", str(output), "--one", cell.name]
        words += setting.words()
        with open(folder / "log.txt", "w", encoding="utf-8") as log:
            # A session of its own: what it starts ends with it.
            return subprocess.Popen(words, cwd=steps.REPOSITORY, stdout=log, stderr=log, start_new_session=True)

    return start


def run_cells(
    cells: Sequence[Cell], start: Start, parallel: int, after: Callable[[], object], pause: float = 0.5
) -> dict[Cell, str]:
    """Run cells, several at a time; one that needs another waits for it.

    Args:
        after: called whenever a cell has finished.
        pause: seconds between looks at the processes.

    Returns:
        the cells that failed, with the reason.
    """
    waiting, failed = list(cells), dict[Cell, str]()
    running: dict[Cell, subprocess.Popen] = {}
    begun: dict[Cell, float] = {}
    progress = tqdm(total=len(cells), desc="experiments", unit="cell")
    try:
        while waiting or running:
            for cell in [each for each in waiting if each.needs in failed]:
                waiting.remove(cell)
                failed[cell] = f"it starts from {cell.needs.name}, which failed" if cell.needs else ""
                progress.update()
            ready = [cell for cell in waiting if cell.needs not in waiting and cell.needs not in running]
            for cell in ready[: parallel - len(running)]:
                waiting.remove(cell)
                running[cell], begun[cell] = start(cell), time.time()
            done = {cell: process.returncode for cell, process in running.items() if process.poll() is not None}
            for cell, status in done.items():
                del running[cell]
                if status:
                    failed[cell] = f"exit status {status}, see {cell.name}/log.txt"
                outcome = "failed" if status else "finished"
                progress.write(f"{cell.name} {outcome} after {(time.time() - begun[cell]) / 60:.1f} minutes")
                progress.update()
                after()
            progress.set_postfix_str(", ".join(cell.name for cell in running), refresh=bool(done))
            if running and not done:
                time.sleep(pause)
    finally:
        progress.close()
        for process in running.values():  # after Ctrl-C
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
    return failed


def run_all(args: argparse.Namespace) -> dict[Cell, str]:
    """Draw the data, run what is missing and write the report; the cells that failed."""
    cells = plan(args.output, args.kinds, args.cells, args.seeds, args.setting)
    for kind in dict.fromkeys(cell.kind for cell in cells):
        args.setting.stage2(kind)
    for blank in sorted({cell.what.blank for cell in cells}):
        steps.draw(data_folder(args.output, blank), blank=blank)

    def report() -> None:
        findings.write_report(args.output, EXPERIMENTS, steps.KINDS)

    failed = run_cells(cells, start_in_process(args.output, args.setting), args.parallel, report)
    report()
    return failed


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("outputs/miniature/experiments"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--kinds", nargs="+", default=list(steps.KINDS), help=f"of language model: {' '.join(steps.KINDS)}"
    )
    parser.add_argument("--cells", nargs="+", default=list(EXPERIMENTS), help=f"experiments: {' '.join(EXPERIMENTS)}")
    parser.add_argument("--steps", type=int, help="of every training, in place of the recipes'")
    parser.add_argument("--bridges", type=Path, help="folder of pretrain_bridge.py: start from its releases of stage 2")
    parser.add_argument("--parallel", type=int, default=2, help="cells at a time, each on one core")
    parser.add_argument("--report", action="store_true", help="run nothing, write the report on what is there")
    parser.add_argument("--one", metavar="CELL", help="run KIND/EXPERIMENT/SEED here and write no report: each process")
    args = parser.parse_args(argv)
    args.output = args.output.resolve()
    bridges = args.bridges and os.path.relpath(args.bridges.resolve(), steps.REPOSITORY)
    args.setting = Setting(args.steps, bridges)
    if args.parallel < 1:
        parser.error(f"--parallel {args.parallel}: expected at least 1")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    if args.one:
        kind, experiment, seed = args.one.split("/")
        run_cell(Cell(kind, experiment, int(seed)), args.output, args.setting)
        return
    try:
        failed = {}
        if args.report:
            findings.write_report(args.output, EXPERIMENTS, steps.KINDS)
        else:
            failed = run_all(args)
    except (ValueError, OSError) as error:
        sys.exit(f"experiments.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    print(f"see {args.output / 'experiments.html'}")
    if failed:
        lines = [f"  {cell.name}: {reason}" for cell, reason in failed.items()]
        sys.exit("\n".join(["these cells failed:", *lines]))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # end the cells too
    main()
