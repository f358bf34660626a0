"""Runs that are killed, interrupted, or meet a full disk, a broken checkpoint or a NaN."""

import json
import os
import random
import re
import shutil
import signal
import socket
import tempfile
import time
from pathlib import Path

import datasets
import killable_run
import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPImageProcessor, TrainerCallback

from instructblip import InstructBLIPProcessor
from instructblip.datasets_builders import InstructionFormat, stream_mixture
from instructblip.training import checkpoints
from instructblip.training.streams import has_position

KILLED = -signal.SIGKILL
DEAD_AT_BYTE = -signal.SIGXFSZ


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A folder; in memory where there is one, as checkpoints wait for the disk, and these runs write hundreds."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path_factory.mktemp("runs")
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture
def settings(tiny_model, t5_tokenizer, qformer_tokenizer, places):
    """settings("name", max_steps=9): what `killable_run.run` takes, for a run in a folder of that name."""
    model = places / "model"
    if not model.exists():
        processor = InstructBLIPProcessor(
            CLIPImageProcessor(size={"height": 28, "width": 28}, do_center_crop=False), t5_tokenizer,
            qformer_tokenizer, num_query_tokens=4, qformer_max_length=32, is_encoder_decoder=True,
        )  # fmt: skip
        tiny_model("t5", image_token_index=processor.image_token_id).save_pretrained(model)
        processor.save_pretrained(model)

    def make(name, **arguments):
        return dict(model_folder=str(model), folder=str(places / name), record=str(places / f"{name}.log"), **arguments)

    return make


@pytest.fixture
def trainer(settings):
    """trainer("name", max_steps=9): one in this process."""

    def make(name, **arguments):
        return killable_run.make(**settings(name, **arguments))

    return make


def same_steps(killed, unbroken):
    """Every step of every attempt had the loss and the samples of the unbroken run."""
    expected = {step: [loss, samples] for step, loss, samples in unbroken}
    assert {step for step, _, _ in killed} == set(expected)
    for step, loss, samples in killed:
        assert [loss, samples] == expected[step], f"step {step}"


def said(settings, rank=0):
    return killable_run.said(settings["record"], rank)


def newest(folder):
    return max((path for path in Path(folder).glob("checkpoint-*")), key=lambda path: int(path.name.split("-")[1]))


def test_a_run_killed_at_twenty_moments_gives_the_losses_and_samples_of_an_unbroken_one(settings):
    """Killed while it opens, renames or removes a file, in the middle of a file, and after any time."""
    unbroken, killed = settings("unbroken"), settings("killed")
    assert killable_run.run(unbroken) == 0
    sizes = [path.stat().st_size for path in newest(unbroken["folder"]).iterdir()]
    draw = random.Random(0)
    moments = (
        [{"event": draw.randint(1, 500)} for _ in range(10)]
        + [{"byte": draw.randint(1, max(sizes) - 1)} for _ in range(5)]
        + [{"after": draw.random() / 4} for _ in range(5)]
    )
    draw.shuffle(moments)
    saved = 0
    for moment in moments:
        code = killable_run.run(killed, resume=True, **moment)
        assert code == (DEAD_AT_BYTE if "byte" in moment else KILLED), said(killed)[-3000:]
        step, broken = checkpoints.newest_whole(killed["folder"])
        assert (step or 0) >= saved
        assert not broken
        saved = step or 0
    assert killable_run.run(killed, resume=True) == 0
    same_steps(killable_run.lines(killed["record"]), killable_run.lines(unbroken["record"]))
    left = {path.name for path in Path(killed["folder"]).iterdir()}
    assert left == {"checkpoint-38", "checkpoint-40"}
    ours, theirs = (load_file(newest(run["folder"]) / "model.safetensors") for run in (killed, unbroken))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("data", "options"),
    [
        ("finite", {"max_steps": 15}),
        ("endless", {"max_steps": 8, "gradient_accumulation_steps": 2, "dataloader_num_workers": 3}),
        ("endless", {"max_steps": 8, "dataloader_num_workers": 2, "homogeneous_batches": True}),
    ],
)
def test_a_stream_goes_on_at_the_next_sample(settings, data, options):
    """Of the finite one in its third epoch; with workers, where the turn of the next one was; samples that waited."""
    kind = f"{data}-homogeneous" if options.get("homogeneous_batches") else data
    unbroken = settings(f"unbroken-{kind}", data=data, **options)
    killed = settings(f"killed-{kind}", data=data, **options)
    assert killable_run.run(unbroken) == 0, said(unbroken)
    for _ in range(2):
        assert killable_run.run(killed, resume=True, event=180) == KILLED
    assert killable_run.run(killed, resume=True) == 0, said(killed)
    same_steps(killable_run.lines(killed["record"]), killable_run.lines(unbroken["record"]))


@pytest.mark.parametrize("data", ["rows", "endless"])
def test_a_run_that_is_over_trains_no_step_more(trainer, caplog, data):
    """Within an epoch, where max_steps ends it; the best checkpoint is loaded all the same."""
    options = dict(data=data, max_steps=5, save_steps=1, eval_strategy="steps", eval_steps=1)
    options |= dict(load_best_model_at_end=True, metric_for_best_model="loss")
    trainer(f"over-{data}", **options).train()
    again = trainer(f"over-{data}", **options)
    ended = []
    again.add_callback(type("Ended", (TrainerCallback,), {"on_train_end": lambda *_, **__: ended.append(True)})())
    trained = len(killable_run.lines(again.record))
    assert again.train(resume_from_checkpoint=True).global_step == 5
    assert len(killable_run.lines(again.record)) == trained
    assert checkpoints.checkpoint_steps(again.args.output_dir)[0] == 5
    best = load_file(os.path.join(again.state.best_model_checkpoint, "model.safetensors"))
    assert torch.equal(again.model.query_tokens, best["query_tokens"])
    assert ended
    assert "checkpoint-5 is the end of the run, of 5 steps: nothing is trained" in caplog.text


def test_going_on_reads_no_sample_of_a_stream_again(trainer, monkeypatch):
    trainer("read", data="finite", max_steps=4).train()
    read, picture = [], killable_run.picture
    monkeypatch.setattr(killable_run, "picture", lambda number: read.append(number) or picture(number))
    trainer("read", data="finite", max_steps=5).train(resume_from_checkpoint=True)
    assert read == [8, 9]


def test_streams_that_cannot_say_where_they_are_are_left_to_transformers():
    stream = killable_run.finite_stream()
    mixture = killable_run.endless_stream()
    assert has_position(stream, 6)
    assert has_position(mixture, 6)
    assert not has_position(stream.shuffle(seed=0, buffer_size=4).map(killable_run.with_picture), 1)
    rows = mixture._ex_iterable.sources[0].rows
    shuffled = rows.shuffle(seed=0, buffer_size=4)
    assert has_position(datasets.interleave_datasets([rows, rows]), 1)
    assert not has_position(datasets.interleave_datasets([rows, shuffled]), 1)
    formats = {"a": InstructionFormat.of("a", task="vqa")}
    assert not has_position(stream_mixture({"a": shuffled}, {"a": 1.0}, formats, with_images=False), 1)
    assert not has_position(killable_run.Rows(), 1)


def test_a_shuffle_buffer_is_filled_again_on_the_way(trainer, monkeypatch):
    shuffled = killable_run.finite_stream().shuffle(seed=0, buffer_size=5)
    monkeypatch.setitem(killable_run.DATA, "finite", lambda: shuffled)
    whole = trainer("shuffled", data="finite", max_steps=5, save_steps=3)
    whole.train()
    trainer("shuffled", data="finite", max_steps=5).train(
        resume_from_checkpoint=os.path.join(whole.args.output_dir, "checkpoint-3")
    )
    lines = killable_run.lines(whole.record)
    assert lines[5:] == lines[3:5]


def test_a_stream_whose_parts_have_changed_goes_on_with_another_epoch(trainer, caplog):
    trainer("parts", data="finite", max_steps=4).train()
    again = trainer("parts", data="finite", max_steps=6, per_device_train_batch_size=3)
    again.train(resume_from_checkpoint=True)
    assert "goes on with another epoch of the stream" in caplog.text
    assert again._stream.position()["parts"][0]["epoch"] == 1


def test_two_processes_go_on_alike(settings):
    """Both are killed while the first writes a checkpoint; maps and streams."""
    for data in ("rows", "endless"):
        options = dict(data=data, max_steps=6, homogeneous_batches=data == "endless")
        unbroken, killed = (settings(f"{name}-two-{data}", **options) for name in ("unbroken", "killed"))
        assert two_processes(unbroken) == [0, 0], said(unbroken)
        assert two_processes(killed, event=200)[0] == KILLED
        assert two_processes(killed, resume=True) == [0, 0], said(killed)
        for rank in (0, 1):
            same_steps(killable_run.lines(killed["record"], rank), killable_run.lines(unbroken["record"], rank))
        mine, theirs = (killable_run.lines(unbroken["record"], rank) for rank in (0, 1))
        assert [samples for _, _, samples in mine] != [samples for _, _, samples in theirs]


def two_processes(settings, signal_after=None, event=None, **moment):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = dict(world_size=2, port=port, **moment)
    running = [killable_run.start(settings, rank=rank, event=None if rank else event, **options) for rank in (0, 1)]
    if signal_after is not None:
        while len(killable_run.lines(settings["record"])) < signal_after:
            assert running[0].is_alive()
            time.sleep(0.01)
        os.kill(running[1].pid, signal.SIGTERM)
    running[0].join(120)
    if running[0].exitcode == KILLED:
        running[1].kill()
    running[1].join(120)
    return [process.exitcode for process in running]


def test_sigterm_finishes_the_step_and_saves(settings):
    unbroken, stopped = settings("unbroken-term", max_steps=12), settings("term", max_steps=12, save_steps=100)
    assert killable_run.run(unbroken) == 0
    process = killable_run.start(stopped)
    while len(killable_run.lines(stopped["record"])) < 3:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 128 + signal.SIGTERM
    step, broken = checkpoints.newest_whole(stopped["folder"])
    assert not broken
    assert step in (3, 4, 5, 6)
    message = f"stopped after step {step} for SIGTERM: {stopped['folder']}/checkpoint-{step} holds everything"
    assert message in said(stopped)
    assert killable_run.run(stopped, resume=True) == 0
    same_steps(killable_run.lines(stopped["record"]), killable_run.lines(unbroken["record"]))


def test_sigterm_of_one_of_two_processes_stops_both_after_the_same_step(settings):
    stopped = settings("two-term", max_steps=300, save_steps=1000)
    assert two_processes(stopped, signal_after=2) == [143, 143], said(stopped)
    steps = [killable_run.lines(stopped["record"], rank)[-1][0] for rank in (0, 1)]
    assert steps[0] == steps[1] == checkpoints.newest_whole(stopped["folder"])[0]


class SignalAt(TrainerCallback):
    def __init__(self, step, number, times=1):
        self.step, self.number, self.times = step, number, times

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)


def test_ctrl_c_saves_once_however_often_it_is_passed_on(trainer):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest's worker processes ignore it
    try:
        run = trainer("ctrl-c", max_steps=9, save_strategy="epoch", callbacks=[SignalAt(3, signal.SIGINT, times=2)])
        with pytest.raises(KeyboardInterrupt):
            run.train()
        assert checkpoints.newest_whole(run.args.output_dir) == (3, {})
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_handler_of_the_user_is_left_alone(trainer):
    got = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    try:
        trainer("handler", max_steps=2, callbacks=[SignalAt(1, signal.SIGTERM)]).train()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert got == [signal.SIGTERM]


@pytest.mark.parametrize("data", ["rows", "endless"])
def test_a_sigterm_to_the_whole_job_does_not_end_workers(settings, data):
    options = dict(dataloader_num_workers=2, max_steps=3, save_strategy="no")
    run = settings(f"workers-{data}", data=data, callbacks=[killable_run.KillWorkers()], **options)
    assert killable_run.run(run) == 0, said(run)
    assert len(killable_run.lines(run["record"])) == 3


# Broken checkpoints


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def garble(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def four_steps(places):
    return places / "four"


@pytest.mark.parametrize("damage", [truncate, garble, Path.unlink])
@pytest.mark.parametrize(
    "file",
    ["model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state.pth", "complete.json"],
)
def test_a_broken_checkpoint_is_named_and_the_one_before_is_taken(file, damage, four_steps, tmp_path):
    if not four_steps.exists():
        for step in (2, 4):
            staged = Path(checkpoints.staging_path(str(four_steps), step))
            staged.mkdir(parents=True)
            for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state.pth"):
                (staged / name).write_bytes(os.urandom(1000))
            checkpoints.commit(str(four_steps), step)
    shutil.copytree(four_steps, tmp_path / "run")
    if (file, damage) == ("complete.json", garble):
        damage = truncate  # a flipped bit of it may be a blank
    damage(tmp_path / "run" / "checkpoint-4" / file)
    step, broken = checkpoints.newest_whole(str(tmp_path / "run"))
    assert step == 2
    assert file in broken[4]


def test_a_run_goes_on_from_the_checkpoint_before_a_broken_one(trainer, caplog):
    trainer("broken", max_steps=4).train()
    run = trainer("broken", max_steps=4)
    folder = Path(run.args.output_dir)
    truncate(folder / "checkpoint-4" / "optimizer.pt")
    run.train(resume_from_checkpoint="true")  # as from a command line
    assert "checkpoint-4 is broken: optimizer.pt has" in caplog.text
    assert "Resuming from" in caplog.text
    same_steps(killable_run.lines(run.record), killable_run.lines(run.record)[:4])
    assert len(killable_run.lines(run.record)) == 6
    assert {path.name for path in folder.iterdir()} == {"checkpoint-2", "checkpoint-4", "_broken-checkpoint-4"}
    assert checkpoints.problem(str(folder / "checkpoint-4")) is None


def test_a_run_killed_before_its_first_checkpoint_starts_from_the_beginning(trainer, caplog):
    unbroken = trainer("first", max_steps=2)
    unbroken.train()
    again = trainer("killed-first", max_steps=2)
    again.train(resume_from_checkpoint=True)
    assert f"{again.args.output_dir} has no checkpoint to resume from: the run starts from the beginning" in caplog.text
    same_steps(killable_run.lines(again.record), killable_run.lines(unbroken.record))


def test_without_a_whole_checkpoint_the_error_says_what_is_wrong_with_each(trainer):
    run = trainer("none", max_steps=2)
    run.train()
    truncate(newest(run.args.output_dir) / "model.safetensors")
    with pytest.raises(ValueError, match=r"no whole checkpoint .* checkpoint-2: model.safetensors has \d+ bytes"):
        trainer("none", max_steps=2).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match=r"cannot resume from .*checkpoint-2: model.safetensors has"):
        trainer("none", max_steps=2).train(resume_from_checkpoint=str(newest(run.args.output_dir)))
    with pytest.raises(ValueError, match="there is no such folder"):
        trainer("none", max_steps=2).train(resume_from_checkpoint="nowhere/checkpoint-1")


def test_a_checkpoint_without_checksums_is_taken_where_it_is_named(trainer, caplog):
    run = trainer("foreign", max_steps=2)
    run.train()
    (newest(run.args.output_dir) / checkpoints.MANIFEST).unlink()
    trainer("foreign", max_steps=3).train(resume_from_checkpoint=str(newest(run.args.output_dir)))
    assert "cannot be checked" in caplog.text


def test_a_save_killed_before_the_rename_is_finished_at_the_next_start(tmp_path, monkeypatch):
    """Also where it replaces a checkpoint of the same step."""
    folder = str(tmp_path)

    def stage(step, content):
        staged = Path(checkpoints.staging_path(folder, step))
        staged.mkdir(parents=True)
        (staged / "model.safetensors").write_text(content)

    stage(3, "old")
    checkpoints.commit(folder, 3)
    renames = []

    class KilledError(BaseException):
        pass

    def killed(source, target, replace=os.replace):
        renames.append(target)
        if len(renames) == 2:
            raise KilledError
        replace(source, target)

    stage(3, "new")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KilledError):
            checkpoints.commit(folder, 3)
    assert checkpoints.checkpoint_steps(folder) == []
    checkpoints.recover(folder)
    assert (tmp_path / "checkpoint-3" / "model.safetensors").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


# Full disks


@pytest.mark.parametrize("part", ["model", "tokenizer", "optimizer", "state"])
def test_a_full_disk_costs_a_checkpoint_and_not_the_run(trainer, monkeypatch, caplog, part):
    run = trainer(f"full-{part}", max_steps=5, save_steps=1, save_total_limit=1)
    full = [2, 3]  # steps
    error = Exception("No space left on device (os error 28)") if part == "tokenizer" else OSError(28, "No space left")

    def refusing(write):
        def writer(*args, **kwargs):
            if run.state.global_step in full:
                raise error
            return write(*args, **kwargs)

        return writer

    if part == "model":
        monkeypatch.setattr(run.model, "save_pretrained", refusing(run.model.save_pretrained))
    elif part == "tokenizer":
        made = run.processing_class
        monkeypatch.setattr(made, "save_pretrained", refusing(made.save_pretrained))
    elif part == "optimizer":
        monkeypatch.setattr(torch, "save", refusing(torch.save))
    else:
        monkeypatch.setattr(checkpoints, "_write_manifest", refusing(checkpoints._write_manifest))
    run.train()
    assert run.state.global_step == 5
    assert re.search(
        r"checkpoint-2 could not be written: (OSError: \[Errno 28\]|Exception:) No space left", caplog.text
    )
    assert "checkpoint-1 is still there; the training goes on" in caplog.text
    assert {path.name for path in Path(run.args.output_dir).iterdir()} == {"checkpoint-5"}


def test_files_that_cannot_grow_leave_the_checkpoint_before(settings):
    """The writers of torch and safetensors as they fail by themselves, at a limit of the process."""
    run = settings("limit", max_steps=4, callbacks=[killable_run.NoLongFiles(20_000)])
    assert killable_run.run(run) == 0, said(run)
    assert "checkpoint-4 could not be written: " in said(run)
    assert "checkpoint-2 is still there" in said(run)
    assert checkpoints.newest_whole(run["folder"]) == (2, {})
    assert [path.name for path in Path(run["folder"]).iterdir()] == ["checkpoint-2"]


def test_errors_that_are_not_the_disks_are_not_hidden(trainer, monkeypatch):
    run = trainer("bug", max_steps=2)
    monkeypatch.setattr(run.model, "save_pretrained", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        run.train()


# Losses that are not finite


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_samples_of_its_batch(trainer, value):
    options = dict(max_steps=9, gradient_accumulation_steps=2, save_steps=1, train_sampling_strategy="sequential")
    run = trainer(f"nan-{value}", poison=(6, value, "loss"), **options)
    expected = rf"the loss of step 2 is not finite \(loss {value}, samples 6, 7\)\. .*checkpoint-1 is the last one\."
    with pytest.raises(FloatingPointError, match=expected):
        run.train()
    assert checkpoints.newest_whole(run.args.output_dir) == (1, {})


def test_a_gradient_that_is_not_finite_stops_the_run_too(trainer):
    options = dict(max_steps=9, save_steps=1, train_sampling_strategy="sequential")
    run = trainer("gradient", poison=(2, float("nan"), "gradient"), **options)
    expected = r"the gradient of step 2 is not finite \(norm nan; loss [\d.]+, samples 2, 3\)"
    with pytest.raises(FloatingPointError, match=expected):
        run.train()
    assert checkpoints.newest_whole(run.args.output_dir) == (1, {})


def test_where_looking_would_wait_for_the_device_it_is_done_when_logging(trainer, monkeypatch):
    options = dict(max_steps=9, logging_steps=4, train_sampling_strategy="sequential", save_strategy="no")
    run = trainer("late", poison=(2, float("nan"), "loss"), **options)
    monkeypatch.setattr(run, "_looking_waits", lambda: True)
    with pytest.raises(FloatingPointError, match=r"the loss of step 2 .* samples 2, 3\)\. Nothing was saved since"):
        run.train()
    assert run.state.global_step == 4


def test_all_processes_stop_for_the_loss_of_one(settings):
    bad = settings("nan-two", max_steps=9, poison=(5, float("inf"), "loss"))
    assert two_processes(bad) == [1, 1]
    for rank in (0, 1):
        found = re.findall(
            r"the loss of step \d is not finite \(process \d, loss inf, samples (.*?)\)", said(bad, rank)
        )
        assert any("5" in samples.split(", ") for samples in found)


# The Hub


def test_a_push_is_of_the_checkpoint_under_its_name(trainer, monkeypatch):
    pushed = []
    run = trainer("push", max_steps=2)
    run.args.push_to_hub = True
    monkeypatch.setattr(
        "transformers.Trainer._push_from_checkpoint",
        lambda self, folder: pushed.append((folder, checkpoints.problem(folder))),
    )
    run.train()
    assert pushed == [(os.path.join(run.args.output_dir, "checkpoint-2"), None)]


def test_a_full_disk_costs_a_push_and_not_the_run(trainer, monkeypatch, caplog):
    """transformers copies the weights beside the checkpoints to push them."""
    run = trainer("full-push", max_steps=3, save_steps=1)
    run.args.push_to_hub, run.push_in_progress = True, None

    def full(source, target):
        raise OSError(28, "No space left on device", target)

    monkeypatch.setattr(shutil, "copy", full)
    assert run.train().global_step == 3
    assert "checkpoint-3 could not be pushed to the Hub: OSError: [Errno 28] No space left on device" in caplog.text
    assert checkpoints.newest_whole(run.args.output_dir) == (3, {})


def test_the_best_checkpoint_is_known_by_its_last_name(trainer):
    options = dict(eval_strategy="steps", eval_steps=1, save_steps=1, metric_for_best_model="loss", save_total_limit=1)
    run = trainer("best", max_steps=3, load_best_model_at_end=True, **options)
    run.train()
    best = run.state.best_model_checkpoint
    assert os.path.isdir(best)
    assert os.path.dirname(best) == run.args.output_dir
    saved = json.loads((newest(run.args.output_dir) / "trainer_state.json").read_text())
    assert saved["best_model_checkpoint"].startswith(os.path.join(run.args.output_dir, "checkpoint-"))


@pytest.mark.parametrize("damage", [garble, shutil.rmtree])
def test_no_release_is_made_of_a_damaged_best_checkpoint(trainer, damage):
    options = dict(
        eval_strategy="steps", eval_steps=1, save_steps=1, metric_for_best_model="loss", save_total_limit=None
    )
    options |= dict(greater_is_better=True, learning_rate=1e-3)  # the first step is the best

    class Damage(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == 3:
                best = Path(state.best_model_checkpoint)
                damage(best if damage is shutil.rmtree else best / "model.safetensors")

    run = trainer(f"best-{damage.__name__}", max_steps=3, load_best_model_at_end=True, callbacks=[Damage()], **options)
    wrong = "there is no such folder" if damage is shutil.rmtree else "the content of model.safetensors has changed"
    with pytest.raises(ValueError, match=f"the best checkpoint, .*checkpoint-1, cannot be loaded: {wrong}"):
        run.train()
    again = trainer(f"best-{damage.__name__}", max_steps=3, load_best_model_at_end=False, **options)
    assert again.train(resume_from_checkpoint=True).global_step == 3


def test_a_logged_mean_goes_on_over_a_checkpoint(trainer):
    """Logs every third step, saves every second."""
    whole = trainer("mean", max_steps=6, logging_steps=3)
    whole.train()
    again = trainer("mean", max_steps=6, logging_steps=3)
    again.train(resume_from_checkpoint=os.path.join(again.args.output_dir, "checkpoint-4"))
    logged = killable_run.lines(whole.record)
    assert [line[:2] for line in logged[2:]] == [line[:2] for line in logged[1:2]]
