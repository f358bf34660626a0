"""Adapters of PEFT beside the bridge: what they may adapt, and the bridge as something that PEFT trains and saves."""

from __future__ import annotations

import json
import os
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D
from transformers.utils import CONFIG_NAME, find_adapter_config_file

if TYPE_CHECKING:
    from .modeling_instruct_blip import InstructBLIPForConditionalGeneration

ADAPTED_PARTS = ("language_model", "qformer")
NO_LINEAR_LAYERS = "dummy-target-modules"  # PEFT's word for a config that names modules to save and no others


class QueryTokens(nn.Module):
    """Hands out a model's query tokens as a module, because PEFT's `modules_to_save` copies and saves modules only.

    The tokens stay the model's own parameter `query_tokens`, as in official checkpoints: here is nothing to save. A
    copy of this module alone, as PEFT makes it, has tokens of its own and hands those out.
    """

    def __init__(self, model: InstructBLIPForConditionalGeneration | None = None):
        super().__init__()
        self.register_parameter("weight", None)
        self.model = None if model is None else weakref.ref(model)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """The copy's own tokens, (1, query, hidden), or else the model's, which are given."""
        return tokens if self.weight is None else self.weight

    def __deepcopy__(self, memo: dict[int, Any]) -> QueryTokens:
        model = None if self.model is None else self.model()
        copied = QueryTokens()
        if model is not None and id(model) in memo:  # the whole model is being copied, which then binds its own
            return copied
        tokens = model.query_tokens if self.weight is None else self.weight
        partitioned = hasattr(tokens, "ds_id")  # by DeepSpeed; PEFT gathers those of the module, which these are not
        if partitioned:
            tokens.all_gather()
        copied.weight = nn.Parameter(tokens.detach().clone(), requires_grad=tokens.requires_grad)
        if partitioned:
            tokens.partition()
        return copied

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "model": None}  # weak references cannot be pickled


class AdaptersMixin:
    """Targets for PEFT's configs, and loading of what PEFT saved, for the model class."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "queries" and isinstance(value, QueryTokens) and value.weight is not None:
            # PEFT merges by putting its copy in the place of the module: its tokens become the model's.
            self.query_tokens = value.weight
            value = QueryTokens(self)
        super().__setattr__(name, value)
        if name == "peft_config" and any(hasattr(module, "base_layer") for module in self.language_model.modules()):
            self._language_model_adapted = True

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        queries = getattr(self.queries, "original_module", self.queries)  # PEFT's wrapper keeps it there
        queries.model = weakref.ref(self)

    @property
    def has_adapters(self) -> bool:
        """Whether PEFT has put modules of its own into the model."""
        return any(hasattr(module, "base_layer") or hasattr(module, "modules_to_save") for module in self.modules())

    @property
    def language_model_changed(self) -> bool:
        """Whether adapters were merged into the language model, which then is not the one from the Hub any more."""
        return getattr(self, "_language_model_adapted", False) and not self.has_adapters

    def lora_targets(self, *parts: str, train_bridge: bool = True) -> dict[str, Any]:
        """What a `LoraConfig` needs to adapt `parts` and train the bridge with them.

            config = LoraConfig(r=16, **model.lora_targets("language_model"))

        PEFT's own "all-linear" would also adapt the frozen vision tower.

        Args:
            parts: "language_model", "qformer", both, or none, which leaves the bridge. Every linear layer of a part is
                adapted, but for the language model's head and layers that nothing reads.
            train_bridge: also train and save the bridge, but for parts that are adapted.

        Returns:
            `target_modules` and `modules_to_save`.

        Raises:
            ValueError: a part that cannot be adapted, or nothing to train.
        """
        unknown = sorted(set(parts) - set(ADAPTED_PARTS))
        if unknown:
            raise ValueError(f"{unknown} cannot be adapted: the parts are {list(ADAPTED_PARTS)}")
        if not parts and not train_bridge:
            raise ValueError("nothing to train: name a part to adapt, or leave train_bridge=True")
        head = self.get_output_embeddings()
        unread = {id(parameter) for parameter in self.qformer.unread_parameters(self.config.qformer_text_input)}
        targets = [
            name
            for name, module in self.named_modules()
            if isinstance(module, (nn.Linear, Conv1D)) and name.partition(".")[0] in parts
            if module is not head and id(module.weight) not in unread
        ]
        saved = [name for name in ("queries", "qformer", "language_projection", self.norm_name) if name not in parts]
        return {"target_modules": targets or NO_LINEAR_LAYERS, "modules_to_save": saved if train_bridge else None}


def adapter_of(source: Any, options: dict[str, Any]) -> tuple[str | None, Any]:
    """(adapter, model) that a folder or repository of an adapter stands for; (None, itself) for that of a model.

    Args:
        source: what `from_pretrained` was given.
        options: its keyword arguments. AutoModel has looked already and says what it found; that is taken out.

    Raises:
        ValueError: the adapter does not name its model.
    """
    if "adapter_kwargs" in options:
        adapter = (options.pop("adapter_kwargs") or {}).get("_adapter_model_path")
        embedded = adapter is not None and os.path.isfile(os.path.join(adapter, CONFIG_NAME))
        return (None if embedded else adapter), source
    if source is None:
        return None, source
    names = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
    place = {name: options[name] for name in names if options.get(name) is not None}
    config = find_adapter_config_file(str(source), **place)
    if config is None or os.path.isfile(os.path.join(os.path.dirname(config), CONFIG_NAME)):
        return None, source
    with open(config, encoding="utf-8") as file:
        base = json.load(file).get("base_model_name_or_path")
    if not base:
        raise ValueError(
            f"{source} holds adapters and does not say of which model: load that one, and then "
            f'PeftModel.from_pretrained(model, "{source}")'
        )
    return str(source), base
