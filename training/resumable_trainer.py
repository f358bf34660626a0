"""[`ResumableTrainer`]: transformers' Trainer, which a kill, a full disk or a NaN costs as little as possible."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGINT, Signals
from typing import Any

import datasets
import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import HubStrategy, TrainOutput, rotate_checkpoints
from transformers.utils import logging

from . import checkpoints
from .interruptions import Interruption, ShieldedWorker
from .streams import StreamBatches, has_position

logger = logging.get_logger(__name__)

NOT_FOR_THE_MODEL = ("id", "dataset")  # what `InstructBLIPCollator(keep_ids=True)` adds
NAMES_SHOWN = 32  # of the samples of one process, in an error message


class ResumableTrainer(Trainer):
    """What it does differently (docs/fine_tuning.md, "Interruptions"):

    - A checkpoint appears under its name when it is whole, with the checksums of its files. `train(True)` takes the
      newest one that is as it was written, and says what is wrong with newer ones.
    - A stream goes on where it was, by its state.
    - A loss or gradient that is not finite ends the run with the ids of the batch's samples, before anything is saved.
    - SIGTERM and Ctrl-C finish the step, save a checkpoint and end the process.
    - A checkpoint that cannot be written, as the disk is full, is warned about and the training goes on.
    - On a CPU with several threads, two runs give the same numbers; on a GPU `full_determinism` is for that.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        self._interruption = Interruption()
        self._stopping = 0  # the signal that the training stops for
        self._staging: str | None = None  # folder that a checkpoint is being written into
        self._save_errors: list[str] | None = None  # of the checkpoint that is being saved
        self._push_when_whole = False
        self._resumed_from: str | None = None
        self._stream: StreamBatches | None = None
        self._running: list[tuple[torch.Tensor, list[str]]] = []  # loss and samples of the batches of this step
        self._unchecked: list[tuple[int, list[tuple[torch.Tensor, list[str]]], Any]] = []
        self.told_the_epoch: list[Any] = []  # datasets, collators and samplers with `set_epoch`
        super().__init__(*args, **kwargs)
        if self.args.enable_jit_checkpoint:
            raise ValueError("enable_jit_checkpoint saves within a step: leave it out, SIGTERM saves after the step")
        self.args.logging_nan_inf_filter = False  # waits for the device in every step, to hide what ends the run here
        self.add_callback(_TellEpoch(self.told_the_epoch))
        self.add_callback(_StopAfterStep(self))

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train, from the beginning or from a checkpoint.

        Args:
            resume_from_checkpoint: True takes the newest whole checkpoint of `args.output_dir`, or where there is none
                yet, warns and starts from the beginning; a path takes that one.
            trial, ignore_keys_for_eval: as transformers has them.

        Raises:
            ValueError: all checkpoints are broken, or the one at the path is broken or not there, or after training the
                best one is.
            FloatingPointError: a loss or gradient is not finite; names step and samples.
            SystemExit: after SIGTERM, with code 143, when the checkpoint is written.
            KeyboardInterrupt: after Ctrl-C, when the checkpoint is written.
        """
        if str(resume_from_checkpoint).lower() in ("true", "false"):  # from a command line
            resume_from_checkpoint = str(resume_from_checkpoint).lower() == "true"
        if self.args.should_save:
            checkpoints.recover(self.args.output_dir)
        self.accelerator.wait_for_everyone()
        self._resumed_from = self._checked(resume_from_checkpoint) if resume_from_checkpoint else None
        self._stopping = 0
        with self._interruption.caught(), _sums_in_order(self.args.device.type == "cpu"):
            output = super().train(self._resumed_from, trial, ignore_keys_for_eval)
        if self._stopping:
            self._end_process()
        return output

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """As in transformers, which looks whether the run is over after a step only, and so trains one too many."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)
            return
        logger.warning(
            f"{self._resumed_from} is the end of the run, of {self.state.max_steps} steps: nothing is trained"
        )
        self.control.should_training_stop = True

    def _checked(self, resume_from_checkpoint: str | bool) -> str | None:
        """The path of a checkpoint that is whole, the same on all processes; None for one that is not there yet."""
        if resume_from_checkpoint is True:
            return self._newest_checkpoint(self.args.output_dir)
        path = os.path.normpath(str(resume_from_checkpoint))
        wrong = self._problem(path, "It is taken as it is, since it was asked for")
        if wrong:
            raise ValueError(
                f"cannot resume from {path}: {wrong}. resume_from_checkpoint=True takes the newest whole one"
            )
        return path

    def _problem(self, path: str, unchecked: str) -> str | None:
        """What is wrong with a checkpoint, the same on all processes; of one without checksums it says `unchecked`."""
        wrong = None
        if not os.path.isdir(path):
            wrong = "there is no such folder"
        elif self.args.should_save:
            wrong = checkpoints.problem(path)
        wrong = next((text for text in gather_object([wrong]) if text), None)
        if wrong and os.path.isdir(path) and not os.path.exists(os.path.join(path, checkpoints.MANIFEST)):
            logger.warning(f"{path} cannot be checked: {wrong}. {unchecked}")
            return None
        return wrong

    def _load_best_model(self) -> None:
        """As in transformers, but a checkpoint that is not as it was written is an error.

        Raises:
            ValueError: it is damaged, or gone.
        """
        best = self.state.best_model_checkpoint
        wrong = self._problem(best, "It is the best one, and is loaded as it is")
        if wrong:
            raise ValueError(
                f"the best checkpoint, {best}, cannot be loaded: {wrong}. The training is over: to have the "
                "model of the last step instead, resume with load_best_model_at_end=False"
            )
        super()._load_best_model()

    def _newest_checkpoint(self, folder: str) -> str | None:
        """The path of the newest whole checkpoint; None where the run was killed before the first one.

        Raises:
            ValueError: there are checkpoints, and none is whole.
        """
        found = checkpoints.newest_whole(folder) if self.args.should_save else None
        found_by_all = [one for one in gather_object([found]) if one is not None]  # several where nodes share no disk
        step = min((one[0] or 0 for one in found_by_all), default=0)
        broken = {number: wrong for one in found_by_all for number, wrong in one[1].items()}
        if not step:
            if not broken:  # a script that starts a killed run again cannot know whether there is one
                logger.warning_once(f"{folder} has no checkpoint to resume from: the run starts from the beginning")
                return None
            listed = "; ".join(f"checkpoint-{number}: {wrong}" for number, wrong in broken.items())
            raise ValueError(
                f"{folder} has no whole checkpoint to resume from. {listed}. Start again without "
                "resume_from_checkpoint, or name one of them to take it all the same"
            )
        path = checkpoints.checkpoint_path(folder, step)
        for number, wrong in broken.items():
            logger.warning_once(f"checkpoint-{number} is broken: {wrong}. Resuming from {path}")
            if self.args.should_save and os.path.isdir(checkpoints.checkpoint_path(folder, number)):
                checkpoints.set_aside(folder, number)
        self.accelerator.wait_for_everyone()
        return path

    def _end_process(self) -> None:
        """After a signal; what would follow `train`, such as a release, would take the model for finished."""
        step = self.state.global_step
        saved = checkpoints.checkpoint_path(self.args.output_dir, step)
        what = f"{saved} holds everything" if os.path.isdir(saved) else f"step {step} could NOT be saved"
        if self.is_world_process_zero():
            logger.warning(
                f"stopped after step {step} for {Signals(self._stopping).name}: {what}. "
                "Go on with resume_from_checkpoint=True"
            )
        if self._stopping == SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + self._stopping)

    # Saving

    def _get_output_dir(self, trial: Any) -> str:
        return self._staging or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Have transformers write the checkpoint into a folder of another name, and rename it when it is whole."""
        folder, step = self._get_output_dir(trial), self.state.global_step
        self._save_errors, self._push_when_whole = [], False
        best_before = self.state.best_model_checkpoint
        try:
            error = self._write_checkpoint(model, trial, folder, step)
        finally:
            self._save_errors = None
        if error is not None:
            self.state.best_model_checkpoint = best_before
            if self.args.should_save:
                checkpoints.discard(folder, step)
            left = [one for one in checkpoints.checkpoint_steps(folder) if one != step]
            logger.warning(
                f"checkpoint-{step} could not be written: {error}. "
                + (f"checkpoint-{left[0]} is still there" if left else "There is no earlier one")
                + "; the training goes on, and tries again when the next one is due. Make room on the disk"
            )
            return
        if self._push_when_whole:
            self._push_whole(checkpoints.checkpoint_path(folder, step))
        if self.args.should_save:
            limit, best = self.args.save_total_limit, self.state.best_model_checkpoint
            rotate_checkpoints(folder, save_total_limit=limit, best_model_checkpoint=best, use_mtime=True)

    def _write_checkpoint(self, model: torch.nn.Module, trial: Any, folder: str, step: int) -> str | None:
        """Returns what went wrong on any process, if the disk did not take it."""
        staged = checkpoints.staging_path(folder, step)
        self._staging = os.path.dirname(staged)
        try:
            with self._noting_errors():
                super()._save_checkpoint(model, trial)
        finally:
            self._staging = None
        with self._noting_errors():
            if self.state.best_model_checkpoint == staged:
                self.state.best_model_checkpoint = checkpoints.checkpoint_path(folder, step)
                if self.args.should_save:
                    self.state.save_to_json(os.path.join(staged, TRAINER_STATE_NAME))
        error = self._error_of_any()  # all processes have written, so that the name can be given
        if error is None:
            if self.args.should_save:
                with self._noting_errors():
                    checkpoints.commit(folder, step)
            error = self._error_of_any()
        return error

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self._push_when_whole = True

    def _push_whole(self, checkpoint: str) -> None:
        """Begin an upload of a checkpoint. transformers copies its weights into `args.output_dir`, but no code."""
        self._save_errors = errors = []
        try:
            with self._noting_errors():
                if self.is_world_process_zero() and self.args.hub_strategy != HubStrategy.END:
                    for code in Path(checkpoint).glob("*.py"):  # without it, only we could load it
                        shutil.copy(code, self.args.output_dir)
                super()._push_from_checkpoint(checkpoint)
        finally:
            self._save_errors = None
        if errors:
            logger.warning(
                f"{checkpoint} could not be pushed to the Hub: {errors[0]}. It is whole on the disk; the training goes "
                "on, and the next one is pushed when it is due"
            )

    def _error_of_any(self) -> str | None:
        return next((error for errors in gather_object([self._save_errors]) for error in errors), None)

    @contextmanager
    def _noting_errors(self) -> Iterator[None]:
        """While a checkpoint is saved, a full disk must not keep a process from a barrier; else it does nothing."""
        try:
            yield
        except Exception as error:
            if self._save_errors is None or not _of_the_disk(error):
                raise
            self._save_errors.append(f"{type(error).__name__}: {error}")

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        with self._noting_errors():
            super().save_model(output_dir, _internal_call=_internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        with self._noting_errors():
            super()._save_optimizer_and_scheduler(output_dir)

    def _save_scaler(self, output_dir: str) -> None:
        with self._noting_errors():
            super()._save_scaler(output_dir)

    def _save_rng_state(self, output_dir: str) -> None:
        with self._noting_errors():
            super()._save_rng_state(output_dir)
            progress = {
                "loss_since_log": float(self._tr_loss),
                "last_logged_step": self._globalstep_last_logged,
                "stream": None if self._stream is None else self._stream.position(),
            }
            with open(self._progress_path(output_dir), "w", encoding="utf-8") as file:
                json.dump(progress, file)

    def _progress_path(self, checkpoint: str) -> str:
        """Of what this process alone knows, beside its random states."""
        process = f"_{self.args.process_index}" if self.args.world_size > 1 else ""
        return os.path.join(checkpoint, f"progress{process}.json")

    def _progress(self, checkpoint: str) -> dict[str, Any]:
        """Empty for a checkpoint of another trainer or number of processes."""
        path = self._progress_path(checkpoint)
        if not os.path.isfile(path):
            return {}
        with open(path, encoding="utf-8") as file:
            return json.load(file)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        progress = self._progress(checkpoint) if checkpoint else {}
        if progress:  # a logged loss is the mean since the one before
            self._tr_loss += progress["loss_since_log"]
            self._total_loss_scalar -= progress["loss_since_log"]  # it is of this call of `train` only
            self._globalstep_last_logged = progress["last_logged_step"]

    # Data

    def get_train_dataloader(self) -> DataLoader:
        """As in transformers, but a stream that can say where it is goes on by that; each rank reads its own part."""
        self._running, self._unchecked, self._stream = [], [], None
        args = self.args
        parts = max(1, args.dataloader_num_workers) * args.world_size
        if self.train_dataset is None or not has_position(self.train_dataset, parts):
            if args.homogeneous_batches and isinstance(self.train_dataset, (datasets.IterableDataset, IterableDataset)):
                raise ValueError(
                    "homogeneous_batches with a stream that cannot say where it is: make it with stream_mixture, "
                    "without a shuffle buffer, or leave homogeneous_batches out"
                )
            loader = super().get_train_dataloader()
            base = getattr(loader, "base_dataloader", loader)
            if base.num_workers:
                base.worker_init_fn = ShieldedWorker(base.worker_init_fn)
            return loader
        options: dict[str, Any] = {"pin_memory": args.dataloader_pin_memory and torch.cuda.is_available()}
        if args.dataloader_num_workers:
            options["prefetch_factor"] = args.dataloader_prefetch_factor
            options["multiprocessing_context"] = args.dataloader_multiprocessing_context
        self._stream = StreamBatches(
            self.train_dataset,
            self._get_collator_with_removed_columns(self.data_collator, description="training"),
            self._train_batch_size,
            args.dataloader_num_workers,
            args.process_index,
            args.world_size,
            args.order_seed,
            args.homogeneous_batches,
            **options,
        )
        if self._resumed_from is not None:
            with open(os.path.join(self._resumed_from, TRAINER_STATE_NAME), encoding="utf-8") as file:
                steps = json.load(file)["global_step"]
            skipped = 0 if args.ignore_data_skip else steps * args.gradient_accumulation_steps
            self._stream.go_on(self._progress(self._resumed_from).get("stream"), skipped)
        # It gives whole batches, so that the batches that transformers skips cost nothing.
        return DataLoader(self._stream, batch_size=None, collate_fn=_as_it_is)

    def _prepare_input(self, data: Any) -> Any:
        """As in transformers, but batches of a stream, which accelerate has not moved, do not wait for the device."""
        if isinstance(data, torch.Tensor) and data.is_pinned():
            data = data.to(self.args.device, non_blocking=True)
        return super()._prepare_input(data)

    # Losses that are not finite

    def training_step(self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._running.append((loss.clone(), _names(inputs)))  # CUDA graphs write the next one over it
        return loss

    def compute_loss(self, model: torch.nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        inputs = {key: value for key, value in inputs.items() if key not in NOT_FOR_THE_MODEL}
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _maybe_log_save_evaluate(self, tr_loss: torch.Tensor, grad_norm: Any, *args: Any, **kwargs: Any) -> None:
        if self._running:
            self._unchecked.append((self.state.global_step, self._running, grad_norm))
            self._running = []
        due = self.control.should_log or self.control.should_save or self.control.should_evaluate
        if due or self.control.should_training_stop or not self._looking_waits():
            self._check_finite()
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)

    def _looking_waits(self) -> bool:
        """Whether a number must first come from a device, which the host is steps ahead of."""
        return self.args.device.type != "cpu"

    def _check_finite(self) -> None:
        """Look at the losses and gradients since the last time, in one transfer from the device.

        Raises:
            FloatingPointError: on all processes, if one of them is not finite on any.
        """
        steps, self._unchecked = self._unchecked, []
        if not steps:
            return
        values = [[loss for loss, _ in batches] for _, batches, _ in steps]
        if self.accelerator.scaler is None:  # a scaler expects gradients that overflow, and leaves out the step
            for row, (_, _, grad_norm) in zip(values, steps, strict=True):
                row.extend([] if grad_norm is None else [_as_local(grad_norm, row[0])])
        flat = torch.stack([value.detach().float().reshape(()) for row in values for value in row]).cpu()
        row_of_value = [number for number, row in enumerate(values) for _ in row]
        bad = [number for number, good in zip(row_of_value, torch.isfinite(flat).tolist(), strict=True) if not good]
        first = bad[0] if bad else len(steps)
        if self.args.world_size > 1:
            first = int(self.accelerator.gather(torch.tensor([first], device=self.args.device)).min())
        if first == len(steps):
            return
        step, batches, grad_norm = steps[first]
        found = [(float(loss), names) for loss, names in batches]
        everything = gather_object([(self.args.process_index, found)])
        broken = [(process, batch) for process, all_of_it in everything for batch in all_of_it]
        cause = "loss" if any(not _finite(loss) for _, (loss, _) in broken) else "gradient"
        if cause == "loss":
            broken = [(process, (loss, names)) for process, (loss, names) in broken if not _finite(loss)]
        left = checkpoints.checkpoint_steps(self._get_output_dir(None))
        raise FloatingPointError(
            f"the {cause} of step {step} is not finite ("
            + (f"norm {float(grad_norm)}; " if cause == "gradient" else "")
            + "; ".join(_describe(process, loss, names, self.args.world_size) for process, (loss, names) in broken)
            + "). Nothing was saved since; "
            + (f"checkpoint-{left[0]} is the last one. " if left else "there is no checkpoint yet. ")
            + "Look at these samples, lower learning_rate, set max_grad_norm=1, or train in bf16 or float32 if this is "
            "fp16"
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        loader = super().get_eval_dataloader(eval_dataset)
        base = getattr(loader, "base_dataloader", loader)
        if base.num_workers and not isinstance(base.worker_init_fn, ShieldedWorker):
            base.worker_init_fn = ShieldedWorker(base.worker_init_fn)
        return loader


@contextmanager
def _sums_in_order(wanted: bool) -> Iterator[None]:
    """Deterministic algorithms: threads of a CPU else add the gradients of indexed rows in whatever order they come."""
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filling = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=before[1] or not before[0])
    torch.utils.deterministic.fill_uninitialized_memory = False  # finds bugs, and costs a write of every new tensor
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = filling


class _TellEpoch(TrainerCallback):
    """Tells each epoch's number to whatever draws by it; accelerate does not where a run resumes within one."""

    def __init__(self, told: list[Any]):
        self.told = told

    def on_epoch_begin(self, args, state, control, **kwargs):
        for each in self.told:
            each.set_epoch(int(state.epoch or 0))


class _StopAfterStep(TrainerCallback):
    """Ends the training after a step, with a checkpoint and without an evaluation, once a signal has come."""

    def __init__(self, trainer: ResumableTrainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer._stopping = self.trainer._interruption.agreed()
        if self.trainer._stopping:
            control.should_training_stop = control.should_save = True
            control.should_evaluate = False

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.trainer._stopping:  # the epoch is not over
            control.should_save = control.should_evaluate = control.should_log = False


def _of_the_disk(error: Exception) -> bool:
    """Whether this is how one of those who write a checkpoint says that the disk does not take it."""
    if isinstance(error, RuntimeError):  # of torch's writer; it says nothing about the disk but where it stopped
        return any(word in str(error) for word in ("PytorchStreamWriter", "unexpected pos", "inline_container"))
    if type(error) is Exception:  # of the tokenizers' writer
        return "os error" in str(error)
    return isinstance(error, (OSError, SafetensorError))


def _as_it_is(batch: Any) -> Any:
    return batch


def _names(inputs: Any) -> list[str]:
    """What the samples of a batch are called."""
    ids, sources = inputs.get("id"), inputs.get("dataset")
    if ids is None:
        return []
    return [_name(*pair) for pair in zip(ids, sources or [None] * len(ids), strict=True)]


def _name(identity: Any, source: Any) -> str:
    known = [str(part) for part in (source, identity) if part is not None]
    return ":".join(known) if known else "a sample without id"


def _describe(process: int, loss: float, names: list[str], processes: int) -> str:
    where = f"process {process}, " if processes > 1 else ""
    shown = ", ".join(names[:NAMES_SHOWN]) + (f" and {len(names) - NAMES_SHOWN} more" if names[NAMES_SHOWN:] else "")
    return f"{where}loss {loss}, samples {shown or 'unknown: let the collator keep_ids'}"


def _finite(value: float) -> bool:
    return value - value == 0


def _as_local(value: Any, like: torch.Tensor) -> torch.Tensor:
    if hasattr(value, "full_tensor"):  # of FSDP2
        value = value.full_tensor()
    return torch.as_tensor(value, device=like.device)
