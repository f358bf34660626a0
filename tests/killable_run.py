"""A short training run in a process of its own, which can be killed at a given moment.

The processes are forked from one that has imported everything (`multiprocessing`'s forkserver), so each starts at once.
"""

import gc
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
import traceback

import datasets
import psutil
import torch
from pictured_questions import ANSWERS, QUESTIONS, grouped_rows, picture
from transformers import TrainerCallback

from instructblip import InstructBLIPForConditionalGeneration, InstructBLIPProcessor
from instructblip.datasets_builders import InstructionFormat, stream_mixture
from instructblip.training import InstructBLIPTrainer, InstructBLIPTrainingArguments

datasets.disable_progress_bars()
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["instructblip.datasets_builders", "instructblip.training"])


class Rows(torch.utils.data.Dataset):
    """Answers depend on the epoch, as drawn instructions do."""

    def __init__(self, length=14):
        self.length, self.epoch = length, 0

    def __len__(self):
        return self.length

    def __getitem__(self, item):
        answer = ANSWERS[(item + self.epoch) % len(ANSWERS)]
        return {"id": item, "image": picture(item), "instruction": QUESTIONS[item % 4], "response": answer}

    def set_epoch(self, epoch):
        self.epoch = epoch


def with_picture(row):
    return {**row, "image": picture(int(row["id"][1:]))}


def finite_stream():
    """Twelve samples in four shards; a run goes through it several times."""
    rows = [{"id": f"s{n}", "instruction": QUESTIONS[n % 4], "response": ANSWERS[n % 5]} for n in range(12)]
    return datasets.Dataset.from_list(rows).to_iterable_dataset(num_shards=4).map(with_picture)


def endless_stream():
    """A mixture of two sources, tiny."""
    sources = {name: rows.to_iterable_dataset(num_shards=2) for name, rows in grouped_rows(a=9, b=5).items()}
    formats = {name: InstructionFormat.of(name, task="vqa") for name in sources}
    return stream_mixture(sources, {"a": 0.7, "b": 0.3}, formats, block_rows=4)


DATA = {"rows": Rows, "finite": finite_stream, "endless": endless_stream}


class Recorded(InstructBLIPTrainer):
    """Writes down every step's samples and unrounded loss at once."""

    def __init__(self, *args, record, poison=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.record, self.poison, self.seen = record, poison, []

    def compute_loss(self, model, inputs, *args, **kwargs):
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if self.poison is None or self.poison[0] not in inputs["id"]:
            return loss
        _, value, what = self.poison
        if what == "loss":
            return loss * value
        loss.register_hook(lambda gradient: gradient * value)
        return loss

    def training_step(self, model, inputs, *args, **kwargs):
        self.seen.append(inputs["id"])
        return super().training_step(model, inputs, *args, **kwargs)

    def log(self, logs, *args, **kwargs):
        if "loss" in logs:
            line = json.dumps([self.state.global_step, float(logs["loss"]).hex(), self.seen])
            with open(f"{self.record}-{self.args.process_index}", "a") as file:
                file.write(line + "\n")
            self.seen = []
        super().log(logs, *args, **kwargs)


class KillWorkers(TrainerCallback):
    """SIGTERM to the workers, as a scheduler that signals a whole job does."""

    def on_step_end(self, args, state, control, **kwargs):
        workers = [str(child.pid) for child in psutil.Process().children()]
        subprocess.run(["kill", *workers], check=bool(workers))  # a process that is not their parent


class NoLongFiles(TrainerCallback):
    """From step 3 on, no file can be longer than `size` bytes."""

    def __init__(self, size):
        self.size = size

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))


def make(model_folder, folder, record, data="rows", callbacks=None, poison=None, **arguments):
    """The trainer of a tiny model; `poison=(sample, value, "loss" or "gradient")` spoils that of a sample's batch."""
    torch.manual_seed(0)
    model = InstructBLIPForConditionalGeneration.from_pretrained(model_folder)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.2  # so that the random state matters
    defaults = dict(
        per_device_train_batch_size=2, learning_rate=1e-2, warmup_steps=0, logging_steps=1, report_to="none",
        use_cpu=True, disable_tqdm=True, save_steps=2, max_steps=40, save_total_limit=2,
        dataloader_multiprocessing_context="fork" if arguments.get("dataloader_num_workers") else None,
    )  # fmt: skip
    return Recorded(
        model=model,
        args=InstructBLIPTrainingArguments(str(folder), **{**defaults, **arguments}),
        train_dataset=DATA[data](),
        eval_dataset=Rows(4),
        processing_class=InstructBLIPProcessor.from_pretrained(model_folder),
        callbacks=callbacks,
        record=record,
        poison=poison,
    )


def die_at_event(folder, number):
    """SIGKILL at the `number`th time that this process opens, renames or removes something in `folder`."""
    left = [number]

    def hook(event, arguments):
        if event.split(".")[0] not in ("open", "os", "shutil") or folder not in str(arguments[:1]):
            return
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def die_at_byte(number):
    """Die, without a word, once a file is longer than `number` bytes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (number, number))


def _child(arguments, resume, event, byte, rank, world_size, port):
    gc.freeze()  # what the server has imported stays as it is
    torch.set_num_threads(1)
    if world_size > 1:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port), OMP_NUM_THREADS="1",  # which accelerate raises
        )  # fmt: skip
    with open(f"{arguments['record']}-said-{rank}", "a") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    try:
        trainer = make(**arguments)
        if event is not None:
            die_at_event(str(arguments["folder"]), event)
        if byte is not None:
            die_at_byte(byte)
        trainer.train(resume_from_checkpoint=resume)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def start(arguments, resume=None, event=None, byte=None, rank=0, world_size=1, port=0):
    process = processes.Process(target=_child, args=(arguments, resume, event, byte, rank, world_size, port))
    process.start()
    return process


def run(arguments, after=None, **moment):
    """Run until it ends or dies; SIGKILL `after` seconds from its first logged step. Returns the exit code."""
    known = len(lines(arguments["record"]))
    process = start(arguments, **moment)
    if after is not None:
        while process.is_alive() and len(lines(arguments["record"])) == known:
            time.sleep(0.01)
        process.join(after)
        process.kill()
    process.join(120)
    return process.exitcode


def lines(record, rank=0):
    path = f"{record}-{rank}"
    if not os.path.exists(path):
        return []
    with open(path) as file:
        return [json.loads(line) for line in file if line.endswith("\n")]


def said(record, rank=0):
    with open(f"{record}-said-{rank}") as file:
        return file.read()
