"""[`ShardedTrainer`]: FSDP2 and ZeRO-3 through accelerate for a model most of which is frozen."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.module import _IncompatibleKeys
from transformers import PreTrainedModel, Trainer
from transformers.integrations.deepspeed import deepspeed_load_checkpoint
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.utils import ADAPTER_SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_NAME


class ShardedTrainer(Trainer):
    """What it does differently where weights are sharded (docs/scaling.md); elsewhere, nothing.

    Under FSDP2:

    - Units are the layers of vision tower, Q-Former and language model, and the rest together.
    - Every parameter keeps its precision, and autocast decides in which one a layer computes, as on one GPU. accelerate
      would compute the bridge, and sum up its gradients, in bfloat16.
    - Checkpoints are those of a single process, written by the first one: any number of processes can go on from them,
      sharded or not.

    Under DeepSpeed, checkpoints have no frozen weights, and `model.safetensors` has the bridge in float32. Optimizer
    states are DeepSpeed's files, one of each process, for the same number of processes.
    """

    @property
    def is_sharded(self) -> bool:
        return self.accelerator.is_fsdp2

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self.is_sharded:
            self.accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> AbstractContextManager:
        if self.is_sharded:  # for other models accelerate puts it around `forward`
            return self.accelerator.autocast()
        return super().autocast_smart_context_manager(cache_enabled)

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        if self.is_deepspeed_enabled:
            prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
            if resume_from_checkpoint is not None:
                deepspeed_load_checkpoint(self.model_wrapped, resume_from_checkpoint, load_module_strict=False)
                self._load_optimizer_and_scheduler(resume_from_checkpoint)
            return prepared
        if not self.is_sharded:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        with layers_as_units(self.accelerator, self.model):
            prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        # transformers looks here before it lets processes end their answers at different lengths
        for part in self.model.modules():
            if isinstance(part, PreTrainedModel):
                part._is_fsdp_managed_module = True
        return prepared

    # Checkpoints

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if not (self.is_sharded or self.is_deepspeed_enabled):
            super().save_model(output_dir, _internal_call=_internal_call)
            return
        tensors = self._gathered_model()
        if self.is_deepspeed_enabled:  # transformers, having read the weights for ZeRO-3, would save them by old names
            self.accelerator.unwrap_model(self.model)._weight_conversions = []
        with under_its_own_class(self.model):
            self._save(output_dir or self.args.output_dir, state_dict=tensors)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _gathered_model(self) -> dict[str, torch.Tensor]:
        """Whole tensors for `_save`, on the first process; all processes call it."""
        return gathered(self.model.state_dict(keep_vars=True).items(), keep=self.args.should_save)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_deepspeed_enabled:
            self.model_wrapped.save_checkpoint(output_dir, exclude_frozen_parameters=True)
        elif self.is_sharded:
            saved = self.optimizer.state_dict()
            for number, entry in saved["state"].items():
                saved["state"][number] = gathered(entry.items(), keep=self.args.should_save)
            if self.args.should_save:
                torch.save(saved, os.path.join(output_dir, OPTIMIZER_NAME))
        else:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), os.path.join(output_dir, SCHEDULER_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not self.is_sharded:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        model = self.model if model is None else model
        parameters = dict(model.named_parameters())
        file = os.path.join(resume_from_checkpoint, SAFE_WEIGHTS_NAME)
        if isinstance(model, PeftModel):
            parameters = get_peft_model_state_dict(model, state_dict=parameters)
            file = os.path.join(resume_from_checkpoint, ADAPTER_SAFE_WEIGHTS_NAME)
        if not os.path.isfile(file):
            raise ValueError(f"{resume_from_checkpoint} has no {os.path.basename(file)} to resume from")
        found = load_file(file)
        with torch.no_grad():
            for name in set(found) & set(parameters):
                parameters[name].copy_(sharded_like(found[name], parameters[name]))
        result = _IncompatibleKeys(sorted(set(parameters) - set(found)), sorted(set(found) - set(parameters)))
        self._issue_warnings_after_load(result)

    def _load_best_model(self) -> None:
        if self.is_sharded:
            self._load_from_checkpoint(self.state.best_model_checkpoint)
        elif self.is_deepspeed_enabled:
            deepspeed_load_checkpoint(self.model_wrapped, self.state.best_model_checkpoint, load_module_strict=False)
        else:
            super()._load_best_model()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.is_sharded:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        if checkpoint is None:
            return
        saved = torch.load(os.path.join(checkpoint, OPTIMIZER_NAME), map_location="cpu", weights_only=True)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for number, entry in saved["state"].items():
            for name, tensor in entry.items():
                if tensor.dim():  # the number of steps has none
                    entry[name] = sharded_like(tensor, parameters[number])
        self.optimizer.load_state_dict(saved)
        self.lr_scheduler.load_state_dict(torch.load(os.path.join(checkpoint, SCHEDULER_NAME), weights_only=True))


@contextmanager
def layers_as_units(accelerator: Accelerator, model: nn.Module) -> Iterator[None]:
    """Inside, accelerate's FSDP2 shards `model` by its layers, and everything else as one unit.

    It would look for classes that the model's parts only could contain, make units of embeddings that T5 uses in three
    places, and tie T5's head to them.
    """
    plugin, asked = accelerator.state.fsdp_plugin, accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap
    ours = {
        "get_input_embeddings": lambda: None,
        "get_output_embeddings": lambda: None,
        "tie_weights": rebind(model),
    }
    plugin.transformer_cls_names_to_wrap = asked or layer_classes(model)
    for name, value in ours.items():
        setattr(model, name, value)
    try:
        yield
    finally:
        plugin.transformer_cls_names_to_wrap = asked
        for name in ours:
            delattr(model, name)


@contextmanager
def under_its_own_class(model: nn.Module) -> Iterator[None]:
    """Inside, a model is not of the class that FSDP2 made for it, which nobody who loads what it saves would have."""
    sharded = type(model)
    if not issubclass(sharded, FSDPModule):
        yield
        return
    model.__class__ = next(base for base in sharded.__mro__[1:] if not issubclass(base, FSDPModule))
    try:
        yield
    finally:
        model.__class__ = sharded


def layer_classes(model: nn.Module) -> list[str]:
    """Those of the model's `_no_split_modules` that it has, but for those inside another."""
    listed = set(model._no_split_modules)
    found = [module for module in model.modules() if type(module).__name__ in listed]
    inner = {type(part).__name__ for module in found for part in module.modules() if part is not module}
    return sorted({type(module).__name__ for module in found} - inner)


def rebind(model: nn.Module):
    """A function that gives parameters which are the same now one tensor again, whatever was done to them since."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(id(parameter), []).append((module, name))
    shared = [owners for owners in places.values() if len(owners) > 1]

    def bind(*args: Any, **kwargs: Any) -> None:
        for (first, first_name), *others in shared:
            for module, name in others:
                module._parameters[name] = first._parameters[first_name]

    return bind


def gathered(tensors: Iterable[tuple[str, torch.Tensor]], keep: bool) -> dict[str, torch.Tensor]:
    """Whole tensors in the host's memory; nothing where `keep` is False. All processes call it with the same names."""
    kept = {}
    for name, tensor in tensors:
        tensor = whole(tensor)
        if keep:
            kept[name] = tensor.cpu()
    return kept


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor that FSDP2 or DeepSpeed has distributed; what DeepSpeed trains in float32, as it keeps it."""
    if isinstance(tensor, DTensor):
        return tensor.detach().full_tensor()
    if not hasattr(tensor, "ds_id") and not hasattr(tensor, "_hp_mapping"):
        return tensor.detach()
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_get_full_fp32_param

    trained = safe_get_full_fp32_param(tensor) if tensor.requires_grad else None
    if trained is not None:
        return trained
    with GatheredParameters([tensor]):
        return tensor.detach().clone()


def sharded_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This process' part of a whole tensor that every process has."""
    tensor = tensor.to(like.device)
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
