"""The miniature's experiments: which cells run and in what order, their statistics, and the report on them."""

import importlib.util
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import datasets
import experiments
import findings
import pytest
import steps
import write_datasets
from experiments import EXPERIMENTS, Cell, Setting
from findings import Spread
from steps import KINDS

from instructblip.datasets_builders.data_sources import training_data, validation_data
from instructblip.eval_tasks.report_tables import as_markdown

ALL = (*findings.HELD_OUT_NAMES, *findings.MEANS["held-in"])
MADE_WITH = {"commit": "abc", "cpu": "some CPU", "cores": 4, "threads": 2, "torch": "2", "transformers": "5"}


def make_run(kind, experiment, seed, score, random=True, names=ALL, steps=None):
    """A cell's scores.json in which all benchmarks have one score."""
    return {
        "kind": kind,
        "experiment": experiment,
        "seed": seed,
        "random": random,
        "steps": steps,
        "scores": dict.fromkeys(names, score),
        "minutes": 1.5,
        "made_with": MADE_WITH,
    }


def write_run(output, run):
    folder = output / run["kind"] / run["experiment"] / str(run["seed"])
    folder.mkdir(parents=True)
    (folder / findings.SCORES).write_text(json.dumps(run))


def plan(output, kinds=("decoder_only",), names=("full",), seeds=(0,), **setting):
    return [cell.name for cell in experiments.plan(output, kinds, names, seeds, Setting(**setting))]


# ---- Planning


def test_all_experiments_of_a_seed_come_before_the_next_and_what_is_not_random_runs_once(tmp_path):
    names = ["full", "blip2"]
    assert plan(tmp_path, KINDS, names, [3, 4]) == [
        "decoder_only/blip2/0",
        "decoder_only/full/3",
        "encoder_decoder/blip2/0",
        "encoder_decoder/full/3",
        "decoder_only/full/4",
        "encoder_decoder/full/4",
    ]


def test_a_cell_brings_the_one_that_it_starts_from(tmp_path):
    assert plan(tmp_path, names=["finetune_instructblip"], seeds=[1]) == [
        "decoder_only/full/1",
        "decoder_only/finetune_instructblip/1",
    ]
    assert Cell("decoder_only", "finetune_instructblip", 1).needs == Cell("decoder_only", "full", 1)
    assert Cell("decoder_only", "finetune_blip2", 1).needs is None


def test_finished_cells_are_not_run_again_and_interrupted_ones_are(tmp_path):
    write_run(tmp_path, make_run("decoder_only", "full", 0, 50.0))
    (tmp_path / "decoder_only" / "full" / "1" / "training").mkdir(parents=True)
    assert plan(tmp_path, names=["full"], seeds=[0, 1]) == ["decoder_only/full/1"]


def test_cells_of_other_settings_are_not_mixed(tmp_path):
    write_run(tmp_path, make_run("decoder_only", "full", 0, 50.0, steps=5))
    assert plan(tmp_path, steps=5) == []
    with pytest.raises(ValueError, match="decoder_only/full/0 was run with --steps 5: remove"):
        plan(tmp_path)
    write_run(tmp_path, make_run("decoder_only", "blip2", 0, 50.0))
    assert plan(tmp_path, names=["blip2"], steps=5) == []
    with pytest.raises(ValueError, match="blip2/0 was run with neither --steps nor --bridges: remove"):
        plan(tmp_path, names=["blip2"], bridges="outputs/bridge")


def test_unknown_names_are_refused_in_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit, match="there is no cell 'ful': choose from .*full") as error:
        experiments.main(["--output", str(tmp_path), "--cells", "ful"])
    assert "\n" not in str(error.value)
    with pytest.raises(SystemExit, match="there is no kind of language model 'gpt'"):
        experiments.main(["--output", str(tmp_path), "--kinds", "gpt"])


def test_a_missing_stage_2_release_is_named_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "BACKBONES", tmp_path)
    monkeypatch.setattr(steps, "draw", lambda *args, **options: pytest.fail("drew the data"))
    with pytest.raises(SystemExit, match="stage2_decoder_only is missing"):
        experiments.main(["--output", str(tmp_path), "--kinds", "decoder_only"])
    with pytest.raises(SystemExit, match="bridge/decoder_only/model is missing: pretrain_bridge.py makes it"):
        experiments.main(["--output", str(tmp_path), "--kinds", "decoder_only", "--bridges", str(tmp_path / "bridge")])


# ---- One cell


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What `run_cell` asks of the steps, by their name."""
    asked = {}
    monkeypatch.setattr(steps, "BACKBONES", tmp_path)
    for kind in KINDS:
        (tmp_path / f"stage2_{kind}").mkdir()

    def train(recipe, data, output, **options):
        asked["train"] = SimpleNamespace(recipe=recipe, data=data.name, options=options)
        return output / "release"

    def evaluate(model, data, output, tasks):
        output.parent.mkdir(parents=True, exist_ok=True)
        asked["evaluate"] = SimpleNamespace(model=model, data=data.name, tasks=tasks.split(","))
        return output

    monkeypatch.setattr(steps, "train", train)
    monkeypatch.setattr(steps, "evaluate", evaluate)
    monkeypatch.setattr(experiments, "measured", lambda results: {"GQA": 1.0})
    return asked


def test_an_experiment_is_its_options_and_its_seed(asked, tmp_path):
    experiments.run_cell(Cell("decoder_only", "no_instruction", 7), tmp_path, Setting(12))
    release = tmp_path / "stage2_decoder_only"
    options = {"model": release, "seed": 7, "qformer_text_input": False, "max_steps": 12}
    assert asked["train"] == SimpleNamespace(recipe="instruct", data="data", options=options)
    assert asked["evaluate"].model == tmp_path / "decoder_only/no_instruction/7/training/release"
    written = json.loads((tmp_path / "decoder_only/no_instruction/7/scores.json").read_text())
    assert (written["steps"], written["scores"], written["random"]) == (12, {"GQA": 1.0}, True)
    assert {"commit", "cpu", "cores", "threads", "torch", "transformers", "date"} <= set(written["made_with"])


def test_blip2_is_evaluated_as_it_is(asked, tmp_path):
    experiments.run_cell(Cell("encoder_decoder", "blip2", 0), tmp_path, Setting())
    assert "train" not in asked
    assert asked["evaluate"].model == tmp_path / "stage2_encoder_decoder"
    assert asked["evaluate"].tasks[0] == "instructblip_heldout"


def test_the_blind_model_sees_gray_pictures_in_training_and_evaluation(asked, tmp_path):
    experiments.run_cell(Cell("decoder_only", "blind", 0), tmp_path, Setting())
    assert (asked["train"].data, asked["evaluate"].data) == ("data_blank", "data_blank")


def test_fine_tuning_starts_from_the_release_of_the_same_seed(asked, tmp_path):
    experiments.run_cell(Cell("decoder_only", "finetune_instructblip", 2), tmp_path, Setting())
    options = asked["train"].options
    assert options["model"] == tmp_path / "decoder_only/full/2/training/release"
    assert options["data_dir"] == tmp_path / "data/scienceqa"
    assert asked["evaluate"].tasks == ["instructblip_scienceqa"]


def test_scores_are_named_as_the_papers_columns_and_none_is_made_up(monkeypatch, tmp_path):
    def results(value):
        model = SimpleNamespace(runs={"instructblip_gqa": SimpleNamespace(scores={"accuracy": value})})
        monkeypatch.setattr(experiments, "read_models", lambda places: [model])
        return experiments.measured(tmp_path)

    assert results(0.25) == {"GQA": 25.0}
    with pytest.raises(ValueError, match="instructblip_gqa has no accuracy"):
        results(None)


# ---- Fine-tuning ScienceQA


@pytest.fixture(scope="module")
def scienceqa(tmp_path_factory):
    root = tmp_path_factory.mktemp("experiments")
    write_datasets.write_datasets(root / "data", ["scienceqa"], scale=0.05)
    datasets.config.HF_DATASETS_CACHE = str(root / "cache")
    return root / "data" / "scienceqa"


def test_the_recipe_trains_on_pictures_of_its_own(scienceqa):
    script = steps.HERE.parent / "train.py"
    spec = importlib.util.spec_from_file_location("examples_train_experiments", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    file = steps.HERE / "recipes" / "finetune.yaml"
    words = ["--config", str(file), "--output_dir", "unused", "--data_dir", str(scienceqa), "--seed", "5"]
    recipe, training = module.parse(words)
    found = module.sources(recipe)
    train, validation = training_data(found, recipe.sampling, recipe.style, training.seed), validation_data(found)
    assert (len(train), {name: len(each) for name, each in validation.items()}) == (15, {"scienceqa": 4})
    assert "Options: (a)" in train[0]["instruction"]
    assert (training.seed, recipe.stage, recipe.qformer_text_input) == (5, 3, True)


def test_no_picture_is_in_two_splits(scienceqa):
    ids = json.loads((scienceqa / "pid_splits.json").read_text())
    assert {split: len(numbers) for split, numbers in ids.items()} == {"test": 8, "train": 15, "val": 4}
    pictures = [path.read_bytes() for path in scienceqa.glob("images/*/*/image.png")]
    assert len(pictures) == len(set(pictures)) == len({number for numbers in ids.values() for number in numbers}) == 27


# ---- Running cells


class Process:
    """A process that ends after some looks at it."""

    def __init__(self, returncode=0, looks=2):
        self.code, self.looks, self.returncode = returncode, looks, None

    def poll(self):
        self.looks -= 1
        self.returncode = self.code if self.looks <= 0 else None
        return self.returncode


def run(cells, parallel, failing=()):
    """Names in the order of their start, the most at a time, and what failed."""
    started, together = [], []
    processes = {}

    def start(cell):
        running = [name for name, process in processes.items() if process.returncode is None]
        needed = cell.needs and cell.needs.name
        assert needed not in running
        processes[cell.name] = Process(returncode=int(cell.name in failing))
        started.append(cell.name)
        together.append(len(running) + 1)
        return processes[cell.name]

    reports = []
    failed = experiments.run_cells(cells, start, parallel, lambda: reports.append(len(started)), pause=0)
    assert len(reports) == len(started)
    return started, max(together), {cell.name: reason for cell, reason in failed.items()}


def cells(*names, seed=0):
    return [Cell("decoder_only", name, seed) for name in names]


def test_as_many_cells_run_at_a_time_as_asked():
    assert run(cells("blip2", "blind", "full", "plain"), 2)[:2] == (
        ["decoder_only/blip2/0", "decoder_only/blind/0", "decoder_only/full/0", "decoder_only/plain/0"],
        2,
    )
    assert run(cells("blip2", "full"), 1)[1] == 1


def test_a_cell_waits_for_its_start_while_others_run():
    started, _, failed = run(cells("full", "finetune_instructblip", "finetune_blip2"), 2)
    names = [name.split("/")[1] for name in started]
    assert names == ["full", "finetune_blip2", "finetune_instructblip"]
    assert not failed


def test_a_failed_cell_leaves_the_others_going_and_takes_what_starts_from_it():
    started, _, failed = run(cells("full", "plain", "finetune_instructblip"), 1, failing=["decoder_only/full/0"])
    assert started == ["decoder_only/full/0", "decoder_only/plain/0"]
    assert failed == {
        "decoder_only/full/0": "exit status 1, see decoder_only/full/0/log.txt",
        "decoder_only/finetune_instructblip/0": "it starts from decoder_only/full/0, which failed",
    }


def test_the_command_names_failed_cells_at_its_end_and_reports_on_the_others(asked, tmp_path, monkeypatch):
    def start_in_process(output, setting):
        def start(cell):
            if cell.experiment == "plain":
                return Process(returncode=1)
            experiments.run_cell(cell, output, setting)
            return Process()

        return start

    drawn = []
    monkeypatch.setattr(steps, "draw", lambda folder, blank: drawn.append((folder.name, blank)))
    monkeypatch.setattr(experiments, "start_in_process", start_in_process)
    output = tmp_path / "out"
    arguments = ["--output", str(output), "--kinds", "decoder_only", "--cells", "full", "plain", "blind"]
    with pytest.raises(SystemExit) as error:
        experiments.main([*arguments, "--seeds", "0"])
    assert str(error.value.code) == (
        "these cells failed:\n  decoder_only/plain/0: exit status 1, see decoder_only/plain/0/log.txt"
    )  # sys.exit with a text: exit status 1
    assert drawn == [("data", False), ("data_blank", True)]
    assert {run["experiment"] for run in findings.read_runs(output)} == {"full", "blind"}
    assert (output / "experiments.html").exists()


def test_a_cell_starts_in_an_empty_folder(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(subprocess, "Popen", lambda words, **options: seen.update(words=words))
    cell = Cell("decoder_only", "full", 3)
    left = tmp_path / cell.name / "training" / "release"
    left.mkdir(parents=True)
    experiments.start_in_process(tmp_path, Setting(9, "outputs/bridge"))(cell)
    assert not left.exists()
    assert seen["words"][-6:] == ["--one", "decoder_only/full/3", "--steps", "9", "--bridges", "outputs/bridge"]


def test_cells_start_from_the_bridges_that_are_given(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "REPOSITORY", tmp_path)
    release = tmp_path / "bridge" / "decoder_only" / "model"
    release.mkdir(parents=True)
    words = ["--output", str(tmp_path / "out"), "--one", "decoder_only/full/0", "--bridges", str(tmp_path / "bridge")]
    experiments.main(words)
    assert asked["train"].options["model"] == release
    written = json.loads((tmp_path / "out/decoder_only/full/0/scores.json").read_text())
    assert (written["steps"], written["bridges"]) == (None, "bridge")
    assert findings.command([written], tmp_path / "out").endswith("--bridges bridge")


def test_cells_end_with_the_command(tmp_path):
    def start(cell):
        words = [sys.executable, "-c", "import time; time.sleep(60)"]
        processes.append(subprocess.Popen(words, start_new_session=True))
        return processes[-1] if len(processes) == 1 else Process(looks=1)

    def interrupt():
        raise KeyboardInterrupt

    processes = []
    started = time.time()
    with pytest.raises(KeyboardInterrupt):
        experiments.run_cells(cells("full", "plain"), start, 2, interrupt, pause=0)
    processes[1].kill()
    assert processes[0].wait() == -signal.SIGTERM
    assert time.time() - started < 30


# ---- Statistics


def test_mean_deviation_and_error_by_hand():
    found = Spread((1.0, 2.0, 6.0))
    assert found.mean == 3.0
    assert found.deviation == pytest.approx(7**0.5)  # (4 + 1 + 9) / 2
    assert found.error == pytest.approx((7 / 3) ** 0.5)
    assert (Spread((4.0,)).mean, Spread((4.0,)).deviation) == (4.0, None)


def test_differences_are_paired_by_seed():
    kind = "decoder_only"
    runs = [make_run(kind, "full", seed, score) for seed, score in ((0, 10.0), (1, 30.0), (2, 50.0))]
    runs += [make_run(kind, "plain", seed, score) for seed, score in ((1, 28.0), (2, 49.0), (5, 0.0))]
    assert findings.difference(runs, kind, "plain", "full", "held-out").values == (-2.0, -1.0)
    assert findings.difference(runs, "encoder_decoder", "plain", "full", "held-out") is None


def test_what_is_not_random_is_paired_with_every_seed():
    runs = [make_run("decoder_only", "full", seed, 40.0 + seed) for seed in (0, 1, 2)]
    runs += [make_run("decoder_only", "blip2", 0, 30.0, random=False)]
    assert findings.difference(runs, "decoder_only", "full", "blip2", "GQA").values == (10.0, 11.0, 12.0)
    assert findings.difference(runs, "decoder_only", "blip2", "full", "GQA").values == (-10.0, -11.0, -12.0)


@pytest.mark.parametrize(
    ("values", "expected", "verdict"),
    [
        ((1.0, 2.0, 3.0), 1, "shows up"),  # 2 is more than 2 / 3 ** 0.5
        ((-1.0, -2.0, -3.0), 1, "does not show up"),
        ((0.0, 1.0, 5.0), 1, "cannot be told"),  # 2 is less than 2 * 2.65 / 3 ** 0.5 = 3.06
        ((9.0,), 1, "cannot be told"),
        ((1.0, 1.0), 1, "shows up"),
        ((0.0, 0.0), 1, "cannot be told"),
        ((1.0, 2.0, 3.0), 0, "does not show up"),
        ((-1.0, 1.0), 0, "cannot be told"),
    ],
)
def test_a_finding_shows_up_where_the_difference_is_over_two_standard_errors(values, expected, verdict):
    assert findings.verdict(Spread(values), expected) == verdict


def test_means_are_over_their_benchmarks_and_only_where_all_are_there():
    run = make_run("decoder_only", "full", 0, 10.0)
    run["scores"]["GQA"] = 18.0
    assert findings.by_seed([run], "decoder_only", "full", "held-out of Fig. 4") == {0: 11.0}
    assert findings.by_seed([run], "decoder_only", "full", "held-in") == {0: 10.0}
    del run["scores"]["NoCaps"]
    assert findings.by_seed([run], "decoder_only", "full", "held-out") == {}
    assert findings.by_seed([run], "decoder_only", "full", "GQA") == {0: 18.0}


# ---- The report


@pytest.fixture
def output(tmp_path):
    """Three seeds of the full model and of one ablation, BLIP-2, and one seed of fine-tuning."""
    kind = "decoder_only"
    for seed in range(3):
        write_run(tmp_path, make_run(kind, "full", seed, 40.0 + seed))
        write_run(tmp_path, make_run(kind, "no_instruction", seed, 30.0 + 2 * seed))
    write_run(tmp_path, make_run(kind, "blip2", 0, 20.0, random=False))
    write_run(tmp_path, make_run(kind, "finetune_blip2", 0, 60.0, names=["SciQA"]))
    write_run(tmp_path, make_run(kind, "finetune_instructblip", 0, 65.0, names=["SciQA"]))
    findings.write_report(tmp_path, EXPERIMENTS, KINDS)
    return tmp_path


def line(text, start):
    (found,) = [each for each in text.splitlines() if each.startswith(start)]
    return found


def test_the_table_has_means_and_says_what_was_not_run(output):
    table = as_markdown(findings.table_2(findings.read_runs(output), EXPERIMENTS, KINDS))
    assert line(table, "| **InstructBLIP, decoder\\_only** | 3 |").count("41.0 (± 1.0)") == 16
    assert line(table, "| BLIP-2: no instruction tuning, decoder\\_only | 1 |").count("| 20.0 ") == 16
    assert line(table, "| multitask: inputs and outputs alone, encoder\\_decoder | 0 |").count("not run") == 16


def test_differences_have_their_own_spread(output):
    table = as_markdown(findings.differences(findings.read_runs(output), EXPERIMENTS, KINDS))
    # 30 - 40, 32 - 41, 34 - 42
    assert line(table, "| no instruction to the Q-Former, decoder\\_only |").count("-9.0 (± 1.0)") == 16
    assert line(table, "| no instruction to the Q-Former, encoder\\_decoder |").count("not run") == 16


def test_directions_stand_beside_the_papers(output):
    table = findings.directions(findings.read_runs(output), EXPERIMENTS, KINDS)
    rows = {each.label: dict(zip(table.columns, each.cells, strict=True)) for each in table.rows}
    ours = rows["no instruction to the Q-Former, decoder_only"]
    assert (ours["GQA"].text, ours["mean held-in"].text, ours["NoCaps"]) == ("↓ / ↓", "↓ / ↓", None)
    assert rows["no balancing: by size, decoder_only"]["IconQA"].text == "↑ / not run"
    blip2 = rows["BLIP-2: no instruction tuning, decoder_only"]  # the paper: 44.9 against 45.2 in VisDial
    assert (blip2["VisDial"].text, blip2["mean held-in"]) == ("↓ / ↓", None)
    assert "gray pictures (a check, not in the paper), decoder_only" not in rows


def test_findings_are_words_made_of_their_numbers(output):
    found = findings.findings(findings.read_runs(output), KINDS)
    said = findings.sentences(found)
    assert said[0] == (
        "Shows up: Instruction tuning raises held-out scores (Table 1; decoder_only). Mean held-out: full less blip2 "
        "is +21.0 over 3 seeds, standard error 0.6."
    )
    assert (
        "Cannot be told: InstructBLIP is the better start for fine-tuning than BLIP-2 (Table 3; decoder_only). SciQA: "
        "finetune_instructblip less finetune_blip2 is +5.0 with one seed."
    ) in said
    left = [each for each in found if each["verdict"] == "not run"]
    assert said[-1] == f"Not run: what {len(left)} of the {len(found)} comparisons need."
    assert len(said) == len(found) - len(left) + 1
    assert len(found) == len(KINDS) * len(findings.FINDINGS)
    order = [findings.VERDICTS.index(each["verdict"]) for each in found]
    assert order == sorted(order)


def test_fine_tuning_stands_beside_what_it_started_from(output):
    table = as_markdown(findings.table_3(findings.read_runs(output), EXPERIMENTS, KINDS))
    assert line(table, "| BLIP-2, fine-tuned, decoder\\_only |") == (
        "| BLIP-2, fine-tuned, decoder\\_only | 20.0 | 60.0 |"
    )
    assert line(table, "| **InstructBLIP, fine-tuned, decoder\\_only** |").endswith("| 41.0 (± 1.0) | 65.0 |")


def test_the_report_names_what_made_it_and_is_written_in_three_forms(output):
    content = json.loads((output / "experiments.json").read_text())
    assert content["made_with"]["commit"] == "abc"
    assert content["made_with"]["command"].endswith("--seeds 0 1 2")
    assert content["scores"]["decoder_only"]["full"]["held-out"]["mean"] == 41.0
    assert content["scores"]["encoder_decoder"]["full"] == {}
    assert len(content["runs"]) == 9
    page = (output / "experiments.html").read_text()
    assert page.count("<svg") == 5  # one kind of language model: two of held-out, two of Figure 4, and Table 3
    for text in (page, (output / "experiments.md").read_text()):
        assert "some CPU" in text
        assert "Fine-tuned on ScienceQA (Table 3)" in text


def test_a_report_on_nothing_says_so(tmp_path):
    experiments.main(["--output", str(tmp_path), "--report"])
    text = (tmp_path / "experiments.md").read_text()
    count = len(KINDS) * len(findings.FINDINGS)
    assert f"Not run: what {count} of the {count} comparisons need." in text
    assert "<svg" not in (tmp_path / "experiments.html").read_text()


def test_every_experiment_has_a_row_and_every_finding_its_experiments():
    assert {name for finding in findings.FINDINGS for name in (finding.experiment, finding.than)} == set(EXPERIMENTS)
    assert all(each.tables for each in EXPERIMENTS.values())
    assert set(findings.LIKE) == set(KINDS)


def test_the_repository_names_its_commit():
    if not (steps.REPOSITORY / ".git").exists():
        pytest.skip("a copy without its history")
    assert len(experiments.commit().removesuffix("+changes")) == 40
    assert Path(steps.HERE / "experiments.py").exists()
