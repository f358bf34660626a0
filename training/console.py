"""The training log on a console: one line for the run, and below it one for each dataset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PrinterCallback, ProgressCallback, Trainer

LEFT_OUT = ("total_flos", "epoch", "step", "runtime", "samples_per_second", "steps_per_second")


def use_console(trainer: Trainer) -> None:
    """Put our lines in the place of transformers' printed dicts; other callbacks stay as they are."""
    for theirs, ours in ((ProgressCallback, ProgressLines), (PrinterCallback, PrintedLines)):
        if any(type(callback) is theirs for callback in trainer.callback_handler.callbacks):
            trainer.remove_callback(theirs)
            trainer.add_callback(ours)


def lines(logs: Mapping[str, Any], step: int, total: int) -> str:
    """A log as text; "loss/vqav2" and "token_accuracy/vqav2" stand in a line of their own."""
    whole, parts = [f"step {step}/{total}"], {}
    if isinstance(logs.get("epoch"), (int, float)):
        whole.append(f"epoch {logs['epoch']:.4g}")
    for key, value in logs.items():
        what, _, name = key.partition("/")
        shown = f"{what} {value:.4g}" if isinstance(value, float) else f"{what} {value}"
        if name:
            parts.setdefault(name, []).append(shown)
        elif not key.endswith(LEFT_OUT):
            whole.append(shown)
    width = max(map(len, parts), default=0)
    return "\n".join(["  ".join(whole), *(f"    {name:{width}}  {'  '.join(shown)}" for name, shown in parts.items())])


class ProgressLines(ProgressCallback):
    """transformers' progress bars with `lines` above them."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and self.training_bar is not None and logs:
            self.training_bar.write(lines(logs, state.global_step, state.max_steps))


class PrintedLines(PrinterCallback):
    """`lines` alone, where `disable_tqdm` is set."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and logs:
            print(lines(logs, state.global_step, state.max_steps), flush=True)
