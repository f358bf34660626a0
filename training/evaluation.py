"""What training and validation report: loss and token accuracy per dataset, and scores of generated answers.

[`EvaluationMixin`] is the part of [`InstructBLIPTrainer`] that does it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch.utils.data import SequentialSampler
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from instructblip.modeling.packing import next_labels

from .console import use_console
from .homogeneous import HomogeneousSampler
from .resumable_trainer import NOT_FOR_THE_MODEL

Scorer = Callable[[list[str], list[Mapping[str, Any]]], dict[str, float]]
PARTS_OF_THE_LOSS = ("loss_itc", "loss_itm", "loss_itg")  # of stage 1


class EvaluationMixin(Trainer):
    """Reports beside the loss; each is summed on the device, and the host waits for none but when it is logged.

    - Training: every log has `token_accuracy`, the share of answer tokens that were the most likely ones, and, where
      samples come from several datasets, `loss/NAME` and `token_accuracy/NAME` of each, over all tokens since the last
      log, of all processes. Samples name their dataset with the key `dataset`. Stage 1 has the three parts of its loss.
    - Evaluation: `eval_loss` is the mean over all answer tokens, and `eval_token_accuracy` goes with it.
    - With `args.predict_with_generate` answers are generated from the instructions. `compute_metrics`, if there is one,
      gets their ids as predictions, padded with -100, for both kinds of language model; `scorer` gets their texts.
    - Of a dict of evaluation datasets, `eval_loss`, `eval_token_accuracy` and `eval_score` are the means over those
      that have them, so that `metric_for_best_model: score` keeps the best checkpoint of a mixture.

    Args:
        scorer: called with the answers and, for each, a dict of what its sample holds (`dataset`, `response`, and of an
            `InstructionDataset` its `task` and all of the row schema, such as `answers`); returns metric -> value, and
            the first of them is also called `score`. {} where nothing is to be scored. Default: `exact_match`, unless
            there is `compute_metrics`.
    """

    def __init__(self, *args: Any, scorer: Scorer | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.scorer = exact_match if scorer is None and self.compute_metrics is None else scorer
        self._sums = DatasetSums()
        self._parts: list[torch.Tensor] = []  # (3,) of each batch since the last log
        self._datasets: Sequence[str | None] | None = None  # of the rows of the batch at hand
        self._evaluated: torch.Tensor | None = None  # (3,), sums of `row_sums` over an evaluation
        use_console(self)

    # ---- loss and token accuracy

    def training_step(self, model, inputs, num_items_in_batch=None):
        self._datasets = inputs.get("dataset")
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if getattr(outputs, "token_losses", None) is not None:
            rows = row_sums(outputs.token_losses, outputs.token_hits, self._learned_per_row(inputs))
            if model.training:
                self._sums.add(rows, self._datasets)
            else:
                total = self.accelerator.gather_for_metrics(rows).sum(dim=0)
                self._evaluated = total if self._evaluated is None else self._evaluated + total
        elif model.training and getattr(outputs, PARTS_OF_THE_LOSS[0], None) is not None:
            self._parts.append(torch.stack([outputs[part].detach() for part in PARTS_OF_THE_LOSS]))
        return (loss, outputs) if return_outputs else loss

    def _learned_per_row(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        labels = inputs["labels"]
        if not self.model.config.is_encoder_decoder:
            labels = next_labels(labels, inputs["attention_mask"])
        return (labels != -100).sum(dim=1)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self._sums.take())
            logs.update(self._take_parts())
        super().log(logs, start_time)

    def _take_parts(self) -> dict[str, float]:
        """The parts of the loss, as means over batches and processes since the last time."""
        mine = [torch.stack(self._parts).mean(dim=0).tolist()] if self._parts else []
        self._parts = []
        gathered = gather_object(mine)
        return dict(zip(PARTS_OF_THE_LOSS, np.mean(gathered, axis=0).tolist(), strict=True)) if gathered else {}

    # ---- evaluation

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        datasets = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(datasets, dict):
            means = {}
            for what in ("loss", "token_accuracy", "score"):
                values = [metrics.get(f"{metric_key_prefix}_{name}_{what}") for name in datasets]
                values = [value for value in values if value is not None]
                if values:
                    means[f"{metric_key_prefix}_{what}"] = sum(values) / len(values)
            self.log(dict(means))
            metrics.update(means)
        return metrics

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        self._evaluated = None
        scored = self.args.predict_with_generate and self.scorer is not None
        if scored:
            prediction_loss_only = False  # the Trainer asks for no predictions where it has no compute_metrics
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        metrics: dict[str, float] = {}
        if self._evaluated is not None:
            loss, hits, tokens = self._evaluated.tolist()
            metrics = {"loss": loss / max(tokens, 1), "token_accuracy": hits / max(tokens, 1)}
        if scored and output.predictions is not None:
            scores = self.scorer(*self._answers(dataloader.dataset, output))
            metrics.update(scores)
            if scores:
                metrics["score"] = next(iter(scores.values()))
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output

    def _answers(self, dataset: Any, output: EvalLoopOutput) -> tuple[list[str], list[Mapping[str, Any]]]:
        """Generated answers, and what is known of each sample."""
        decoded = self._decode(output.predictions)
        if isinstance(dataset, (list, tuple)):
            return decoded, list(dataset)
        if hasattr(dataset, "sample") and hasattr(dataset, "text"):
            task = {"task": dataset.format.task} if hasattr(dataset, "format") else {}
            return decoded, [{**dataset.sample(item), **dataset.text(item), **task} for item in range(len(decoded))]
        return decoded, [{"response": response} for response in self._decode(output.label_ids)]

    def _decode(self, ids: Any) -> list[str]:
        tokenizer = getattr(self.processing_class, "tokenizer", self.processing_class)
        ids = np.where(ids == -100, tokenizer.pad_token_id, ids)
        return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        if not self.args.predict_with_generate or prediction_loss_only:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        loss, _, _ = self.prediction_step(model, inputs, True, ignore_keys)
        inputs = self._prepare_inputs(inputs)
        settings = {"max_new_tokens": self.args.generation_max_new_tokens, "num_beams": self.args.generation_num_beams}
        with torch.no_grad(), self.accelerator.autocast():
            answers = self.model.generate(**without_answers(inputs, self.model.config.is_encoder_decoder), **settings)
        return loss, answers, inputs.get("labels")

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        if self.args.predict_with_generate and self.args.world_size <= 1 and hasattr(eval_dataset, "__len__"):
            return SequentialSampler(eval_dataset)  # whatever the training order: answers are matched to samples
        return super()._get_eval_sampler(eval_dataset)

    # ---- order of training

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.homogeneous_batches:
            return HomogeneousSampler(dataset, self._train_batch_size, self.args.order_seed)
        if hasattr(dataset, "sources") and self.args.train_sampling_strategy == "random":
            return SequentialSampler(dataset)  # a mixture's order is drawn already, and a list of it would be long
        return super()._get_train_sampler(train_dataset)


class DatasetSums:
    """Loss, hits and tokens of each dataset, summed on the device until they are asked for."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._sums: torch.Tensor | None = None  # (datasets, 3)

    def add(self, rows: torch.Tensor, names: Sequence[str | None] | None) -> None:
        """Add (rows, 3) of `row_sums`; names are the rows' datasets."""
        names = [name or "" for name in names] if names is not None else [""] * len(rows)
        numbers = torch.tensor([self._numbers.setdefault(name, len(self._numbers)) for name in names])
        if self._sums is None:
            self._sums = rows.new_zeros(0, rows.shape[1])
        if len(self._sums) < len(self._numbers):
            more = self._sums.new_zeros(len(self._numbers) - len(self._sums), rows.shape[1])
            self._sums = torch.cat([self._sums, more])
        if rows.is_cuda:
            numbers = numbers.pin_memory().to(rows.device, non_blocking=True)
        self._sums.index_add_(0, numbers.to(rows.device), rows)

    def take(self) -> dict[str, float]:
        """What there is to log since the last time, the same on every process; every process has to call it."""
        mine = {} if self._sums is None else dict(zip(self._numbers, self._sums.tolist(), strict=True))
        if self._sums is not None:
            self._sums.zero_()
        totals: dict[str, np.ndarray] = {}
        for part in gather_object([mine]):
            for name, sums in part.items():
                totals[name] = totals.get(name, 0) + np.array(sums)
        logs: dict[str, float] = {}
        everything = sum(totals.values(), np.zeros(3))
        if everything[2]:
            logs["token_accuracy"] = everything[1] / everything[2]
        for name in sorted(totals) if len(totals) > 1 else ():
            loss, hits, tokens = totals[name]
            if tokens:
                logs[f"loss/{name or 'other'}"] = loss / tokens
                logs[f"token_accuracy/{name or 'other'}"] = hits / tokens
        return {name: float(value) for name, value in logs.items()}


def row_sums(losses: torch.Tensor, hits: torch.Tensor, per_row: torch.Tensor) -> torch.Tensor:
    """Sum the losses and hits of a batch's tokens by row, with nothing for the host to wait for.

    Args:
        losses, hits: (tokens,), row after row, and perhaps some that are of no row.
        per_row: (rows,) how many tokens each row has.

    Returns:
        (rows, 3) summed loss, hits and tokens.
    """
    ends = per_row.cumsum(0)
    row = torch.searchsorted(ends, torch.arange(len(losses), device=ends.device), right=True).to(losses.device)
    dtype = torch.float32 if losses.device.type == "mps" else torch.float64
    values = torch.stack([losses.to(dtype), hits.to(dtype), torch.ones_like(losses, dtype=dtype)], dim=1)
    return values.new_zeros(len(per_row) + 1, 3).index_add_(0, row, values)[:-1]


def without_answers(inputs: Mapping[str, Any], is_encoder_decoder: bool) -> dict[str, Any]:
    """The inputs of `generate` for a training batch: without labels, and for a decoder-only model without answers.

    Columns in which nothing is left are dropped.
    """
    prompt = {key: value for key, value in inputs.items() if key not in (*NOT_FOR_THE_MODEL, "labels", "sizes")}
    if not is_encoder_decoder and "labels" in inputs:
        mask = prompt["attention_mask"] * (inputs["labels"] == -100)
        kept = mask.any(dim=0)
        prompt["attention_mask"], prompt["input_ids"] = mask[:, kept], prompt["input_ids"][:, kept]
    return prompt


def exact_match(answers: list[str], samples: list[Mapping[str, Any]]) -> dict[str, float]:
    """The share of answers that are the sample's response but for case and blanks at the ends."""
    pairs = [(answer, sample["response"].strip()) for answer, sample in zip(answers, samples, strict=True)]
    hits = [answer.lower() == response.lower() for answer, response in pairs]
    return {"exact_match": sum(hits) / len(hits)} if hits else {}
