"""Compare whole training runs: transformers' Trainer on its own InstructBLIP, and ours: `benchmarks/training_runs.py`.

Both Trainers read the same pictures and texts in the same order, through the same tokenizers and image processor. What
is timed is a step as a user has it: fetching and collating the batch, forward, backward, AdamW, logging.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from batches import EQUAL, MIXED, QFORMER_TOKENS, VQA_LIKE
from comparisons import tolerance
from model_pairs import LANGUAGE, NUM_QUERY_TOKENS, SIZES, VISION, ModelPair, Setting, new_pair
from PIL import Image
from report import timing_table
from timing import CLOCKS, Ratio, ratios_of
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import CLIPImageProcessor, PreTrainedTokenizerFast, Trainer, TrainerCallback, TrainingArguments

from instructblip import InstructBLIPCollator, InstructBLIPProcessor
from instructblip.training import InstructBLIPTrainer, InstructBLIPTrainingArguments


@dataclass
class Work:
    """A kind of training run: (prompt, answer) tokens of a batch's rows, and how many rows show the same image."""

    title: str
    language: str
    lengths: list[tuple[int, int]]
    rows_per_image: int = 1


WORKS = {
    "llama-mixed": Work("Mixed lengths", "llama", MIXED),
    "llama-vqa": Work("VQA-like lengths", "llama", VQA_LIKE),
    "t5-equal": Work("Distinct images, equal lengths", "t5", EQUAL),
    "t5-shared": Work("Images shared by 4 rows", "t5", EQUAL, rows_per_image=4),
}
RESUMED = "resumed"


def words_tokenizer(size: int, special: dict[str, str], template: str) -> PreTrainedTokenizerFast:
    """A tokenizer of `size` tokens that makes one of each word "w7"; the last ids are the words of highest number."""
    tokens = list(special.values())
    vocabulary = {token: number for number, token in enumerate(tokens)}
    vocabulary.update({f"w{number}": number for number in range(len(tokens), size)})
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=special["unk_token"]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(token, vocabulary[token]) for token in tokens]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def new_processor(setting: Setting) -> InstructBLIPProcessor:
    """Words for the language model, so that `<image>` gets the id that the models know, and for the Q-Former."""
    size = LANGUAGE[setting.language, setting.size].get("vocab_size", 32128) - 1
    if setting.language == "t5":
        text = words_tokenizer(size, dict(pad_token="<pad>", eos_token="</s>", unk_token="<unk>"), "$A </s>")
    else:
        special = dict(pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")
        text = words_tokenizer(size, special, "<s> $A")
    special = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")
    qformer = words_tokenizer(900, special, "[CLS] $A [SEP]")
    pixels = VISION[setting.size].get("image_size", 224)
    image_processor = CLIPImageProcessor(size={"height": pixels, "width": pixels}, do_center_crop=False)
    return InstructBLIPProcessor(
        image_processor,
        text,
        qformer,
        num_query_tokens=NUM_QUERY_TOKENS,
        qformer_max_length=QFORMER_TOKENS,
        is_encoder_decoder=setting.language == "t5",
    )


def new_samples(setting: Setting, work: Work, batches: int) -> list[dict[str, Any]]:
    """Pictures of noise with random words, whose tokens are as many as `work.lengths` says, special ones included."""
    draw = random.Random(0)
    noise = np.random.default_rng(0)
    pixels = VISION[setting.size].get("image_size", 224)

    def text(count: int) -> str:
        return " ".join(f"w{draw.randrange(10, 900)}" for _ in range(count))

    samples = []
    for _ in range(batches):
        count = -(-len(work.lengths) // work.rows_per_image)
        images = [Image.fromarray(noise.integers(0, 256, (pixels, pixels, 3), dtype=np.uint8)) for _ in range(count)]
        for row, (prompt, answer) in enumerate(work.lengths):
            image = images[row // work.rows_per_image]
            samples.append({"image": image, "instruction": text(prompt - 1), "response": text(answer - 1)})
    return samples


class PeerCollator:
    """What our collator makes, as transformers' model takes it: every row with its own copy of its image.

    Args:
        collator: ours.
        tuned: also say which columns of a decoder-only model's logits are needed.
    """

    def __init__(self, collator: InstructBLIPCollator, tuned: bool):
        self.collator, self.tuned = collator, tuned

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = dict(self.collator(samples))
        del batch["sizes"]
        batch["pixel_values"] = batch["pixel_values"][batch.pop("image_index")[:, 0]]
        if self.tuned and not self.collator.processor.is_encoder_decoder:
            shifted = nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100)
            columns = (shifted != -100).any(dim=0)
            batch.update(logits_to_keep=columns, shift_labels=shifted[:, columns], use_cache=False)
        return batch


class StepClock(TrainerCallback):
    """When the training began, and when steps ended.

    Args:
        now: the clock.
        wait: for the device.
        marks: steps after which it is waited for; what lies between two others goes on as it does for a user.
    """

    def __init__(self, now: Callable[[], float], wait: Callable[[], None], marks: set[int]):
        self.now, self.wait, self.marks = now, wait, marks
        self.began, self.ended = 0.0, dict[int, float]()

    def on_train_begin(self, args, state, control, **kwargs):
        self.began = self.now()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in self.marks:
            self.wait()
            self.ended[state.global_step] = self.now()

    def seconds_per_step(self, first: int, last: int) -> float:
        """Of the steps after `first`, up to `last`."""
        return (self.ended[last] - self.ended[first]) / (last - first)


class Runs:
    """Training runs of one pair of models on one kind of work."""

    def __init__(self, pair: ModelPair, work: Work, folder: Path, options: argparse.Namespace):
        self.pair, self.work, self.folder, self.options = pair, work, folder, options
        self.samples = new_samples(pair.setting, work, options.steps)
        self.processor = new_processor(pair.setting)
        self.collator = InstructBLIPCollator(self.processor, pad_to_multiple_of=None)

    def trainer(self, contestant: str, **changes: Any) -> Trainer:
        """A new Trainer of "peer", "peer again", "peer tuned", "ours" or "ours cached"."""
        shared: dict[str, Any] = dict(
            output_dir=str(self.folder / "run"),
            max_steps=self.options.steps,
            per_device_train_batch_size=len(self.work.lengths),
            per_device_eval_batch_size=len(self.work.lengths),
            train_sampling_strategy="sequential",
            learning_rate=0.0,  # the same work, and both models stay as they are
            lr_scheduler_type="constant",
            warmup_steps=0,
            weight_decay=0.05,
            max_grad_norm=0.0,
            bf16=self.pair.setting.dtype == torch.bfloat16,
            use_cpu=self.pair.setting.device == "cpu",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            prediction_loss_only=True,
            dataloader_pin_memory=self.pair.setting.device != "cpu",
            dataloader_num_workers=self.options.workers,
        )
        shared |= changes
        contestant, compiled = contestant.removesuffix(" compiled"), contestant.endswith(" compiled")
        if compiled:
            shared |= dict(torch_compile=True, torch_compile_mode=self.options.compile)
        if contestant.startswith("peer"):
            tuned = contestant == "peer tuned" or compiled
            collator = PeerCollator(self.collator, tuned)
            if tuned:
                shared |= dict(accelerator_config={"non_blocking": shared["dataloader_pin_memory"]})  # as ours does
            arguments = TrainingArguments(**shared)
            peer = self.pair.tuned_peer if contestant == "peer tuned" else self.pair.peer
            return Trainer(peer, arguments, data_collator=collator, train_dataset=self.samples)
        if contestant == "ours cached":
            shared |= dict(feature_cache=str(self.folder / "features"), feature_cache_dtype="float32")
        return InstructBLIPTrainer(
            self.pair.ours,
            InstructBLIPTrainingArguments(**shared),
            data_collator=self.collator,
            train_dataset=self.samples,
            processing_class=self.processor,
        )

    def contestants(self) -> list[str]:
        compiled = ["peer compiled", "ours compiled"] if self.options.compile else []
        return ["peer", "peer again", "peer tuned", "ours", "ours cached", *compiled]

    def time(self, contestant: str, marks: set[int], resume: str | None = None, **changes: Any) -> StepClock:
        clock = StepClock(CLOCKS[self.options.clock], self.pair.setting.synchronize, marks)
        trainer = self.trainer(contestant, **changes)
        trainer.add_callback(clock)
        trainer.train(resume_from_checkpoint=resume)
        return clock

    def seconds_per_step(self, contestant: str) -> float:
        """Of all steps but the first ones, which allocate the optimizer's state, and compile."""
        first, last = self.options.untimed, self.options.steps
        return self.time(contestant, {first, last}).seconds_per_step(first, last)

    def check(self) -> str:
        """Losses of all contestants on the first batch, without dropout; fills the cache.

        Raises:
            RuntimeError: they differ.
        """
        first = self.samples[: len(self.work.lengths)]
        self.trainer("ours cached").evaluate(self.samples)
        losses = [self.trainer(name).evaluate(first)["eval_loss"] for name in self.contestants()]
        worst = max(abs(loss - losses[0]) for loss in losses) / abs(losses[0])
        if not worst < tolerance(self.pair):
            raise RuntimeError(f"the losses of {', '.join(self.contestants())} differ: {losses}")
        return f"loss {worst:.0e}"


def measure(work: Work, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds per step of each contestant in each repetition; the order rotates by one each time."""
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(new_pair(setting_of(work, options)), work, Path(folder), options)
        equal, names = runs.check(), runs.contestants()
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for repetition in range(options.repetitions):
            first = repetition % len(names)
            for name in [*names[first:], *names[:first]]:
                seconds[name].append(runs.seconds_per_step(name))
    ratios = ratios_of(seconds)
    shown = ", ".join(f"{name} {ratio}" for name, ratio in ratios.items())
    print(f"{work.language} {work.title}: {shown}", file=sys.stderr, flush=True)
    ratios_as_dicts = {name: vars(ratio) for name, ratio in ratios.items()}
    return {
        "title": work.title,
        "language": work.language,
        "equal": equal,
        "seconds": seconds,
        "ratios": ratios_as_dicts,
        "samples a second": {name: len(work.lengths) / statistics.median(taken) for name, taken in seconds.items()},
    }


def setting_of(work: Work, options: argparse.Namespace) -> Setting:
    return Setting(work.language, options.size, options.device, getattr(torch, options.dtype))


def measure_resumed(work: Work, options: argparse.Namespace) -> dict[str, Any]:
    """Our run of twice as many steps, and the same from its checkpoint in the middle: the same steps of both."""
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(new_pair(setting_of(work, options)), work, Path(folder), options)
        middle, last = options.steps, 2 * options.steps
        whole: list[float] = []
        again: list[float] = []
        start: list[float] = []
        changes = dict(save_strategy="steps", save_steps=middle)
        for _ in range(options.repetitions):
            # Saving at the end would lie outside of what is timed in both.
            unbroken = runs.time("ours", {1, middle + 1, last}, max_steps=last, **changes)
            whole.append(unbroken.seconds_per_step(middle + 1, last))
            checkpoint = str(Path(folder) / "run" / f"checkpoint-{middle}")
            resumed = runs.time("ours", {middle + 1, last}, resume=checkpoint, max_steps=last, **changes)
            again.append(resumed.seconds_per_step(middle + 1, last))
            start.append((resumed.ended[middle + 1] - resumed.began) - (unbroken.ended[1] - unbroken.began))
    return {"unbroken": whole, "resumed": again, "start": start}


def _samples(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {rate:.3g}" for name, rate in row["samples a second"].items())


def as_markdown(report: dict[str, Any]) -> str:
    lines = [
        f"Machine and setting: {', '.join(f'{name} {value}' for name, value in report['machine'].items())}.",
        "",
        *timing_table(report["rows"], "Run", "Peer, s/step"),
        "",
        *(f"- {row['title']} ({row['language']}): samples a second: {_samples(row)}." for row in report["rows"]),
    ]
    if RESUMED in report:
        times = report[RESUMED]
        ratio = Ratio.of(times["resumed"], times["unbroken"])
        lines += [
            "",
            f"A resumed step takes {ratio} of the same step of an unbroken run; "
            f"to resume costs {statistics.median(times['start']):.2f} s once.",
        ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=[*WORKS, RESUMED], default=[*WORKS, RESUMED])
    parser.add_argument("--size", choices=SIZES, default="toy")
    parser.add_argument("--steps", type=int, default=4, help="of a run")
    parser.add_argument("--untimed", type=int, default=1, help="of these, the first ones; more to compile")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the frozen weights")
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare batches")
    parser.add_argument(
        "--compile",
        nargs="?",
        const="default",
        metavar="MODE",
        help="also time both under torch.compile; `reduce-overhead` records CUDA graphs",
    )
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=list(CLOCKS), default="cpu", help="cpu: the process' CPU time")
    parser.add_argument("--output", type=Path, help="also write everything as JSON")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    cuda = options.device.startswith("cuda")
    machine = {
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load at the start": os.getloadavg()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    names = ("size", "dtype", "steps", "untimed", "workers", "repetitions", "threads", "clock")
    settings = {name: getattr(options, name) for name in names}
    report: dict[str, Any] = {"machine": {**machine, **settings}, "rows": []}
    with contextlib.redirect_stdout(sys.stderr):  # what the Trainers log
        for name, work in WORKS.items():
            if name in options.rows:
                report["rows"].append(measure(work, options))
        if RESUMED in options.rows:
            report[RESUMED] = measure_resumed(WORKS["llama-mixed"], options)
    print(as_markdown(report))
    if options.output:
        options.output.write_text(json.dumps(report, indent=2) + "\n")
    return report


if __name__ == "__main__":
    main()
