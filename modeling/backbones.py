"""Frozen backbones by Hub id: putting a new pair together, and releases that hold the trained bridge only.

A bridge-only release is a `model.safetensors` with the trained tensors and a config whose `backbones` names the frozen
parts by Hub id and commit. Loading it fetches those from their owners, so that their licences stay with them.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.integrations import deepspeed
from transformers.models.instructblip.configuration_instructblip import InstructBlipVisionConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file, logging
from transformers.utils.hub import resolve_revision

from .adapters import adapter_of
from .configuration_instruct_blip import InstructBLIPConfig
from .lean_blocks import make_lean
from .onednn_linear import use_onednn
from .packing import hook_head

if TYPE_CHECKING:
    from .modeling_instruct_blip import InstructBLIPForConditionalGeneration

logger = logging.get_logger(__name__)

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token")
EVA_TOWERS = ("instructblip_vision_model", "blip_2_vision_model")  # the same network under two names


def commit_of(repo: str, revision: str | None, **hub: Any) -> str | None:
    """The commit that `revision` of a Hub repository points to; None for a local folder."""
    known = {key: hub[key] for key in ("cache_dir", "local_files_only", "token") if hub.get(key) is not None}
    resolved = resolve_revision(repo, revision, **known)
    return getattr(resolved, "resolved", None) or revision


def describe_backbones(
    vision_id: str,
    llm_id: str,
    vision_revision: str | None = None,
    llm_revision: str | None = None,
    **kwargs: Any,
) -> InstructBLIPConfig:
    """A config for a new pair of backbones; behind `InstructBLIPForConditionalGeneration.from_backbones`.

    Either id may be a whole vision-language checkpoint: its tower or its language model is taken out of it.
    """
    hub = {key: kwargs.pop(key) for key in HUB_ARGUMENTS if key in kwargs}
    vision_config, vision = describe_vision(vision_id, vision_revision, **hub)
    llm_commit = commit_of(llm_id, llm_revision, **hub)
    text_config = AutoConfig.from_pretrained(llm_id, revision=llm_commit, **hub)
    language: dict[str, Any] = {"repo": str(llm_id), "revision": llm_commit}
    if getattr(text_config, "qformer_config", None) is not None:
        text_config, language["prefix"] = text_config.text_config, "language_model."
    if "image_token_index" not in kwargs and "image_token_id" not in kwargs:
        # Where the processor puts `<image>`; the language model never embeds it, so its vocabulary need not grow.
        tokenizer = AutoTokenizer.from_pretrained(llm_id, revision=llm_commit, **hub)
        kwargs["image_token_index"] = tokenizer.get_vocab().get("<image>", len(tokenizer))
    return InstructBLIPConfig(
        vision_config=vision_config,
        text_config=text_config,
        backbones={"vision": vision, "language": language},
        **kwargs,
    )


def describe_vision(
    vision_id: str, vision_revision: str | None = None, **hub: Any
) -> tuple[PreTrainedConfig, dict[str, Any]]:
    """The config of a tower, or of the tower in a vision-language checkpoint, and its entry for `backbones`."""
    commit = commit_of(vision_id, vision_revision, **hub)
    config = AutoConfig.from_pretrained(vision_id, revision=commit, **hub)
    where: dict[str, Any] = {"repo": str(vision_id), "revision": commit}
    if getattr(config, "vision_config", None) is not None:
        config = config.vision_config
        if config.model_type in EVA_TOWERS:
            where["prefix"] = "vision_model."
    if config.model_type in EVA_TOWERS:
        config = InstructBlipVisionConfig(**{**config.to_dict(), "model_type": EVA_TOWERS[0]})
    return config, where


def read_tensors(
    repo: str, revision: str | None, prefix: str, subfolder: str = "", **hub: Any
) -> dict[str, torch.Tensor]:
    """The safetensors of a checkpoint whose names begin with `prefix`, without it; only their shards are downloaded."""
    place = {"revision": revision, "subfolder": subfolder, **hub}
    # As in transformers, a whole file comes before an index, which may be left over from an earlier, sharded save.
    whole = cached_file(repo, SAFE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False, **place)
    files = [whole]
    if whole is None:
        with open(cached_file(repo, SAFE_WEIGHTS_INDEX_NAME, **place), encoding="utf-8") as file:
            weight_map = json.load(file)["weight_map"]
        shards = sorted({shard for name, shard in weight_map.items() if name.startswith(prefix)})
        files = [cached_file(repo, shard, **place) for shard in shards]
    tensors = {}
    for name in files:
        with safe_open(name, framework="pt") as shard:
            for key in shard.keys():  # noqa: SIM118, safe_open does not iterate
                if key.startswith(prefix):
                    tensors[key.removeprefix(prefix)] = shard.get_tensor(key)
    if not tensors:
        raise ValueError(f"{repo} has no tensor whose name begins with {prefix!r}: check the release's `backbones`")
    return tensors


def load_backbone(where: dict[str, Any], config: PreTrainedConfig, auto_class: type, **kwargs: Any) -> PreTrainedModel:
    """Load a frozen part from the place that a config's `backbones` names.

    Raises:
        ValueError: the entry is none, or the checkpoint there lacks weights of the part.
    """
    unknown = set(where) - {"repo", "revision", "prefix"}
    if unknown or not where.get("repo"):
        raise ValueError(f"backbones entry {where} must have `repo` and may have `revision` and `prefix`")
    hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
    if not where.get("prefix"):
        source, place = where["repo"], {"revision": where.get("revision"), **kwargs}
    else:
        tensors = read_tensors(where["repo"], where.get("revision"), where["prefix"], **hub)
        source, place = None, {"state_dict": tensors}
        place.update((key, value) for key, value in kwargs.items() if key not in HUB_ARGUMENTS)
        if not isinstance(auto_class, type) or not issubclass(auto_class, PreTrainedModel):
            auto_class = auto_class._model_mapping[type(config)]
    loaded: Any = auto_class.from_pretrained(source, config=config, output_loading_info=True, **place)
    model, found = loaded
    missing = sorted(name for name in found["missing_keys"] if "pooler" not in name)  # the Q-Former reads no pooler
    if missing:
        raise ValueError(
            f"{where['repo']} is no {type(model).__name__} of this config: {len(missing)} of its weights are not there "
            f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}): check the release's `backbones`"
        )
    return model


class BackbonesMixin:
    """`from_backbones`, and loading and saving of bridge-only releases, for the model class."""

    frozen_parts = ("vision", "language")  # what a bridge-only release of this class names

    @classmethod
    def from_backbones(
        cls,
        vision_id: str,
        llm_id: str,
        vision_revision: str | None = None,
        llm_revision: str | None = None,
        config: InstructBLIPConfig | None = None,
        **kwargs: Any,
    ) -> InstructBLIPForConditionalGeneration:
        """A model with pretrained, frozen backbones and a new Q-Former.

        Args:
            vision_id: Hub id or folder of an image encoder, or of a checkpoint that contains one.
            llm_id: Hub id or folder of a causal or encoder-decoder language model, or of an InstructBLIP checkpoint.
            vision_revision, llm_revision: branch, tag or commit; the commit is what a bridge-only release records.
            config: default `InstructBLIPConfig.from_backbones(...)`; pass one to shape the Q-Former.
            kwargs: for both backbones' `from_pretrained`: `dtype`, `device_map`, `quantization_config` (language model
                only), `attn_implementation`, `token`, `cache_dir`, ...
        """
        hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
        config = config or describe_backbones(vision_id, llm_id, vision_revision, llm_revision, **hub)
        return cls._assemble(config, None, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """Load a full checkpoint, an official `Salesforce/instructblip-*` one, or a bridge-only release.

        Arguments are transformers'. A `quantization_config` quantizes the language model only. What PEFT saved of a
        model loads as that model with the adapters in it.
        """
        adapter, pretrained_model_name_or_path = adapter_of(pretrained_model_name_or_path, kwargs)
        if adapter is not None:
            place = {key: kwargs.pop(key) for key in ("revision", "subfolder") if key in kwargs}
            hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
            loaded = cls.from_pretrained(pretrained_model_name_or_path, *model_args, config=config, **kwargs)
            (loaded[0] if isinstance(loaded, tuple) else loaded).load_adapter(adapter, adapter_kwargs={**place, **hub})
            return loaded
        hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
        revision = kwargs.get("revision")
        if pretrained_model_name_or_path is None:
            return super().from_pretrained(None, *model_args, config=config, **kwargs)
        commit = commit_of(str(pretrained_model_name_or_path), revision, **hub)
        if not isinstance(config, PreTrainedConfig):
            source = pretrained_model_name_or_path if config is None else config
            names = ("subfolder", "revision")
            place = {key: kwargs[key] for key in names if kwargs.get(key) is not None} if config is None else {}
            config = InstructBLIPConfig.from_pretrained(source, **place, **hub)
        if config.bridge_only:
            loading_info = kwargs.pop("output_loading_info", False)
            model = cls._assemble(config, str(pretrained_model_name_or_path), **kwargs)
            info = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}
            return (model, info) if loading_info else model
        if kwargs.get("quantization_config") is not None:
            _quantize_language_model_only(kwargs["quantization_config"])
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, config=config, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        use_onednn(model)
        model.freeze_unread()  # loading forgets what was frozen
        if kwargs.get("subfolder") is None:
            place = {"repo": str(pretrained_model_name_or_path), "revision": commit}
            model._loaded_from = {part: {**place, "prefix": f"{part}_model."} for part in cls.frozen_parts}
        return loaded

    @classmethod
    def _assemble(cls, config: InstructBLIPConfig, release: str | None, **kwargs: Any):
        """Backbones from where `config.backbones` says, and the bridge of `release`, or a new one."""
        named = set(config.backbones or ())
        if not set(cls.frozen_parts) <= named <= {"vision", "language"}:
            parts = " and ".join(f"`{part}`" for part in cls.frozen_parts)
            raise ValueError(f"a bridge-only config must name its {parts} backbones, not {config.backbones}")
        place = {key: kwargs.pop(key) for key in ("revision", "subfolder") if key in kwargs}
        place["revision"] = place.get("revision")
        quantization = kwargs.pop("quantization_config", None)
        device_map = kwargs.pop("device_map", None)
        hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
        text_kwargs = {"device_map": device_map, "quantization_config": quantization}
        text_kwargs = {**kwargs, **{key: value for key, value in text_kwargs.items() if value is not None}}

        skeleton = copy.deepcopy(config)
        skeleton.bridge_only = False
        if kwargs.get("attn_implementation") is not None:  # the Q-Former's too, which no backbone brings
            skeleton._attn_implementation = kwargs["attn_implementation"]
        with torch.device("meta"), _not_partitioned():
            model = cls(skeleton)
        tower_class = type(model.vision_model) if config.vision_config.model_type in EVA_TOWERS else AutoModel
        text_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        vision = load_backbone(config.backbones["vision"], skeleton.vision_config, tower_class, **kwargs)
        eps = model.vision_layernorm.eps
        model.vision_model = vision
        model.vision_layernorm.eps = eps
        language = None
        if "language" in cls.frozen_parts:
            language = load_backbone(config.backbones["language"], skeleton.text_config, text_class, **text_kwargs)
            if device_map is not None:
                vision.to(_runs_on(language))
            make_lean(language)
            hook_head(language)
            model.language_model = language
        for mark in ("is_loaded_in_4bit", "is_loaded_in_8bit"):  # where PEFT looks, to make adapters for such weights
            if getattr(language, mark, False):
                setattr(model, mark, True)
        if release is not None:
            model.name_or_path = config.name_or_path = release  # where PEFT looks, to name the model of its adapters
        bridge = cls.new_bridge(skeleton) if release is None else read_tensors(release, prefix="", **place, **hub)
        _load_bridge(model, bridge, vision, release)
        use_onednn(model)
        model.freeze_unread()
        if language is not None:
            model.generation_config = _generation_config(model, release, place, hub)
        return model.eval()

    @classmethod
    def new_bridge(cls, config: InstructBLIPConfig) -> dict[str, torch.Tensor]:
        """Freshly initialised bridge tensors for `config`, made without building its backbones at full depth."""
        small = copy.deepcopy(config)
        for sub in (small.vision_config, small.text_config):
            for name in ("num_hidden_layers", "num_layers", "num_decoder_layers", "n_layer"):
                if isinstance(getattr(sub, name, None), int):
                    setattr(sub, name, 1)
            if getattr(sub, "layer_types", None):
                sub.layer_types = sub.layer_types[:1]
        with _not_partitioned():
            model = cls(small)
        return {name: parameter.detach() for name, parameter in model.named_bridge_parameters()}

    @property
    def known_backbones(self) -> dict[str, Any] | None:
        """Where the frozen parts came from, as a bridge-only release names it; None where that is not known."""
        return None if self.language_model_changed else self.config.backbones or getattr(self, "_loaded_from", None)

    def bridge_state_dict(self) -> dict[str, torch.Tensor]:
        """The tensors that instruction tuning trains, by their names in the full state dict."""
        return {name: parameter.detach() for name, parameter in self.named_bridge_parameters()}

    def save_pretrained(self, save_directory: str | os.PathLike, *, bridge_only: bool = False, **kwargs: Any) -> None:
        """Save a full checkpoint, or with `bridge_only=True` the trained tensors and the names of the frozen parts.

        Raises:
            ValueError: `bridge_only=True` and it is not known where the frozen backbones came from, or the model has
                adapters.
        """
        config = self.config
        if self._auto_class is not None:
            # register_for_auto_class holds one name; AutoModel must find the whole model as well.
            module = type(self).__module__.rpartition(".")[-1]
            config.auto_map = {
                **(getattr(config, "auto_map", None) or {}),
                "AutoModel": f"{module}.{type(self).__name__}",
            }
        if not bridge_only:
            super().save_pretrained(save_directory, **kwargs)
            return
        backbones = self.known_backbones
        if self.has_adapters:
            raise ValueError(
                "a bridge release has no adapters: save them and the bridge with the PeftModel's save_pretrained, or "
                "merge them first (merge_and_unload)"
            )
        if self.language_model_changed:
            raise ValueError(
                "adapters were merged into the language model, which a bridge release would leave behind: save the "
                "whole model, without bridge_only=True"
            )
        if backbones is None:
            raise ValueError(
                "bridge_only=True needs to know where the frozen backbones are: build the model with from_backbones() "
                "or from_pretrained(), or set config.backbones"
            )
        for part, where in backbones.items():
            if os.path.isdir(where["repo"]):
                logger.warning(
                    f"the {part} backbone of this release is the local folder {where['repo']}: push it first"
                )
        tensors = self.bridge_state_dict()
        given = kwargs.pop("state_dict", None)  # Trainer's, gathered from all processes
        if given is not None:
            tensors = {name: given[name] for name in tensors}
        before = config.backbones
        try:
            config.backbones, config.bridge_only = backbones, True
            with _without_quantization(self):
                super().save_pretrained(save_directory, state_dict=tensors, **kwargs)
        finally:
            config.backbones, config.bridge_only = before, False


def _runs_on(model: PreTrainedModel) -> torch.device | str:
    """Where a model's first layer computes, though its weights may wait on the disk."""
    embeddings = model.get_input_embeddings()
    hook = getattr(embeddings, "_hf_hook", None)
    return embeddings.weight.device if hook is None else hook.execution_device


@contextmanager
def _not_partitioned() -> Iterator[None]:
    """Inside, models are made whole; with DeepSpeed's ZeRO-3, transformers would give each process a part of them."""
    setting = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed._hf_deepspeed_config_weak_ref = None
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = setting


@contextmanager
def _without_quantization(model: InstructBLIPForConditionalGeneration) -> Iterator[None]:
    """Inside, nothing says that the language model is quantized.

    A quantizer saves all tensors instead of those that it is given, and a bridge is not quantized: who loads it decides
    how to load the language model.
    """
    marks = ((model, "hf_quantizer"), (model.config, "quantization_config"))
    marks = (*marks, (model.config.text_config, "quantization_config"))
    taken = [(part, name, vars(part).pop(name)) for part, name in marks if name in vars(part)]
    try:
        yield
    finally:
        for part, name, value in taken:
            setattr(part, name, value)


def _load_bridge(
    model: InstructBLIPForConditionalGeneration,
    tensors: dict[str, torch.Tensor],
    like: PreTrainedModel,
    release: str | None,
) -> None:
    """Put bridge tensors, all of them and nothing else, into a model with none yet, with `like`'s dtype and device."""
    wanted = dict(model.named_bridge_parameters())
    missing, unexpected = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
    shapes = {name: getattr(parameter, "ds_shape", parameter.shape) for name, parameter in wanted.items()}  # ZeRO-3
    wrong = [name for name in set(wanted) & set(tensors) if shapes[name] != tensors[name].shape]
    if missing or unexpected or wrong:
        raise ValueError(
            f"{release} is not a bridge for this config; missing {missing}, unexpected {unexpected}, "
            f"of another shape {sorted(wrong)}"
        )
    placed = {name: tensor.to(device=like.device, dtype=like.dtype) for name, tensor in tensors.items()}
    # One by one: `load_state_dict` refuses whole tensors in the place of those that ZeRO-3 has taken apart.
    for name, tensor in placed.items():
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, torch.nn.Parameter(tensor, wanted[name].requires_grad))


def _generation_config(model, release: str | None, place: dict[str, Any], hub: dict[str, Any]) -> GenerationConfig:
    if release is not None:
        try:
            return GenerationConfig.from_pretrained(release, **place, **hub)
        except OSError:
            logger.info(f"{release} has no generation_config.json; the language model's own settings apply")
    return copy.deepcopy(model.language_model.generation_config)


def _quantize_language_model_only(quantization_config: Any) -> None:
    """Keep the vision tower and the bridge in full precision, whatever library quantizes the language model."""
    keep = ["vision_model", "qformer", "language_projection", "lm_head"]
    for name in ("llm_int8_skip_modules", "modules_to_not_convert"):
        if hasattr(quantization_config, name) and not getattr(quantization_config, name):
            setattr(quantization_config, name, keep)
