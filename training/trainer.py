"""[`InstructBLIPTrainer`]: transformers' Trainer, training the bridge between two frozen backbones."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import nn
from transformers.utils import SAFE_WEIGHTS_NAME, logging

from instructblip.modeling import InstructBLIPForConditionalGeneration, InstructBLIPForPreTraining
from instructblip.processing import InstructBLIPCollator, InstructBLIPProcessor

from .arguments import InstructBLIPTrainingArguments
from .encode_once import EncodeOnceMixin
from .evaluation import EvaluationMixin
from .muon import MuonAndAdamW
from .resumable_trainer import ResumableTrainer
from .sharding import ShardedTrainer, gathered

logger = logging.get_logger(__name__)


class InstructBLIPTrainer(EncodeOnceMixin, EvaluationMixin, ResumableTrainer, ShardedTrainer):
    """Train the Q-Former, its queries, the projection and the vision LayerNorm; everything else is frozen.

    - Precision: what trains is float32, whatever it was loaded in, as steps of 1e-5 vanish in bfloat16. With
      `args.bf16` (the default on GPUs that can) the frozen weights become bfloat16 and training runs under autocast;
      without, they stay in the precision they came in. Quantized weights stay as they are.
    - Loss: with gradient accumulation it is the mean over all answer tokens of a step, as if it were one batch.
    - Adapters: of a `PeftModel` around the model, whatever its config says trains, and is saved as PEFT saves it.
    - Checkpoints hold the bridge, optimizer, scheduler and RNG states. `save_model` writes a bridge-only release where
      it is known which backbones the model was built from, else the whole model; `model.save_pretrained` writes either.
    - Reports: loss and token accuracy of each dataset, and scores of generated answers; see [`EvaluationMixin`].

    Args:
        model: its backbones are frozen in place. Or a `PeftModel` around it (docs/adapters.md).
        args: default `InstructBLIPTrainingArguments("trainer_output")`.
        data_collator: default `InstructBLIPCollator(processing_class, keep_ids=True)`; ids name samples in errors. With
            `args.torch_compile` an `InstructBLIPCollator` becomes `bucketed`, so that few shapes are compiled.
        train_dataset, eval_dataset: samples for the collator, `{"image", "instruction", "response"}`. One with
            `set_epoch` is told each epoch's number.
        processing_class: an `InstructBLIPProcessor`, saved beside the model.
        kwargs: `scorer` of [`EvaluationMixin`], and what transformers' Trainer takes besides: `compute_metrics`,
            `callbacks`, ...

    Raises:
        TypeError: `model` is no InstructBLIP model, or the data cannot be ordered by image.
        ValueError: neither a processor nor a collator was passed, processor and model do not belong together, adapters
            were put inside the model instead of around it, a feature cache does not fit the model, or `muon` is on
            under FSDP or DeepSpeed.
    """

    def __init__(
        self,
        model: InstructBLIPForConditionalGeneration | PeftModel,
        args: InstructBLIPTrainingArguments | None = None,
        data_collator: Callable[[list[Any]], Any] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: InstructBLIPProcessor | None = None,
        **kwargs: Any,
    ):
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        if not isinstance(base, (InstructBLIPForConditionalGeneration, InstructBLIPForPreTraining)):
            raise TypeError(f"InstructBLIPTrainer trains an InstructBLIP model, not a {type(base).__name__}")
        if args is None:
            args = InstructBLIPTrainingArguments("trainer_output")
        if processing_class is not None and isinstance(base, InstructBLIPForConditionalGeneration):
            processing_class.check_compatible(base.config)
        self._save_whole_model = False
        self._num_parameters: int | None = None
        if data_collator is None:
            if processing_class is None:
                raise ValueError("pass processing_class=, the model's processor, or a data_collator")
            data_collator = InstructBLIPCollator(processing_class, keep_ids=True)
        if args.torch_compile and isinstance(data_collator, InstructBLIPCollator):
            data_collator = copy.copy(data_collator)
            data_collator.bucketed = True
        if base is model:
            if isinstance(base, InstructBLIPForConditionalGeneration) and base.has_adapters:
                raise ValueError(
                    "the model has adapters inside it, which would neither train nor be saved: put them around it with "
                    "get_peft_model(model, config) or PeftModel.from_pretrained(model, folder, is_trainable=True)"
                )
            base.freeze_backbones(language_model_dropout=args.language_model_dropout)
        else:  # PEFT has frozen what its config does not train
            base.freeze_unread()
            base.keep_in_eval(language_model_dropout=args.language_model_dropout)
        set_precision(base, torch.bfloat16 if args.bf16 else None)
        with not_quantized(base):
            super().__init__(
                model=model,
                args=args,
                data_collator=data_collator,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                **kwargs,
            )
        if self.args.muon and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError("muon needs whole matrices, which FSDP and DeepSpeed cut: leave it out")
        self.told_the_epoch += [each for each in (train_dataset, data_collator) if hasattr(each, "set_epoch")]

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """As in LAVIS: one-dimensional tensors and biases do not decay, and so the queries do."""
        return [
            name
            for name, p in model.named_parameters()
            if len(getattr(p, "ds_shape", p.shape)) > 1 and not name.endswith("bias")
        ]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.args.muon and self.optimizer is None:
            args = self.args
            self.optimizer = MuonAndAdamW(
                self.model if model is None else model,
                args.learning_rate,
                args.weight_decay,
                (args.adam_beta1, args.adam_beta2),
                args.adam_epsilon,
            )
        return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        warmup = self.args.get_warmup_steps(num_training_steps)
        if warmup >= num_training_steps:
            logger.warning(
                f"the warm-up takes {warmup} steps and the whole run only {num_training_steps}: the learning rate "
                f"never reaches {self.args.learning_rate}. Lower warmup_steps; 0.03 warms up for 3 % of any run"
            )
        return super().create_scheduler(num_training_steps, optimizer)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """transformers' estimate, with the parameters counted once; in each step it would walk all modules for it."""
        if self._num_parameters is None:
            self._num_parameters = self.model.num_parameters(exclude_embeddings=True)
        return 6 * inputs["input_ids"].numel() * self._num_parameters if "input_ids" in inputs else 0

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        if prediction_loss_only and "labels" in inputs:
            inputs = {**inputs, "skip_logits": True}  # the loss needs vocabulary logits at answer tokens only
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def save_model(
        self, output_dir: str | None = None, _internal_call: bool = False, bridge_only: bool | None = None
    ) -> None:
        """Save model and processor; every process calls it, and the first one writes.

        Checkpoints, for which the Trainer itself calls this, hold the bridge alone in any case.

        Args:
            output_dir: default `args.output_dir`.
            bridge_only: a bridge-only release, or the whole model. Default: bridge-only where the backbones are known.
        """
        whole = not self._backbones_are_known() if bridge_only is None else not bridge_only
        self._save_whole_model = whole and not _internal_call
        super().save_model(output_dir, _internal_call=_internal_call)

    def _gathered_model(self) -> dict[str, torch.Tensor]:
        model = self.accelerator.unwrap_model(self.model)
        if self._save_whole_model or isinstance(model, PeftModel):
            return super()._gathered_model()
        return gathered(model.named_bridge_parameters(), keep=self.args.should_save)

    def _backbones_are_known(self) -> bool:
        model = self.accelerator.unwrap_model(self.model)
        return bool(model.known_backbones)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        if isinstance(self.accelerator.unwrap_model(self.model), PeftModel):
            super()._save(output_dir, state_dict)
            return
        if not self.args.should_save:
            return
        output_dir = output_dir or self.args.output_dir
        os.makedirs(output_dir, exist_ok=True)
        model = self.accelerator.unwrap_model(self.model)
        bridge = model.bridge_state_dict() if state_dict is None else state_dict
        if self._save_whole_model or self._backbones_are_known():
            model.save_pretrained(output_dir, bridge_only=not self._save_whole_model, state_dict=state_dict)
        else:  # enough to resume; loading it as a model says that the backbones are missing
            config = copy.deepcopy(model.config)
            config.bridge_only = True
            config.save_pretrained(output_dir)
            save_file(bridge, os.path.join(output_dir, SAFE_WEIGHTS_NAME), metadata={"format": "pt"})
        if self.processing_class is not None:
            self.processing_class.save_pretrained(output_dir)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Refuse a checkpoint of another bridge; the frozen tensors are missing from every checkpoint."""
        bridge = dict(self.model.named_bridge_parameters())
        missing = [name for name in load_result.missing_keys if name in bridge]
        if missing or load_result.unexpected_keys:
            raise ValueError(
                f"the checkpoint does not belong to this model: missing {missing}, unexpected "
                f"{list(load_result.unexpected_keys)}"
            )


@contextmanager
def not_quantized(model: InstructBLIPForConditionalGeneration) -> Iterator[None]:
    """Inside, the model does not say that it is quantized: transformers would ask for adapters, which the bridge is."""
    quantized = vars(model).pop("is_quantized", None)
    try:
        yield
    finally:
        if quantized is not None:
            model.is_quantized = quantized


def set_precision(model: InstructBLIPForConditionalGeneration, frozen_dtype: torch.dtype | None) -> None:
    """Make bridge and adapters float32 and, unless `frozen_dtype` is None, the backbones `frozen_dtype`.

    Buffers and quantized weights keep their type.
    """
    bridge = {id(parameter) for _, parameter in model.named_bridge_parameters()}
    for parameter in model.parameters():
        dtype = torch.float32 if parameter.requires_grad or id(parameter) in bridge else frozen_dtype
        if dtype is not None and parameter.dtype in (torch.float32, torch.bfloat16, torch.float16):
            parameter.data = parameter.data.to(dtype)
