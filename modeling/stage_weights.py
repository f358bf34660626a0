"""How a stage of the training starts: BERT's weights for stage 1, those of stage 1 for what follows it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import BertConfig, PreTrainedModel
from transformers.utils import logging

from .backbones import read_tensors

if TYPE_CHECKING:
    from .modeling_instruct_blip import InstructBLIPForConditionalGeneration
    from .modeling_pretraining import InstructBLIPForPreTraining

logger = logging.get_logger(__name__)

BERT_FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "initializer_range",
    "layer_norm_eps",
    "pad_token_id",
)
BERT_LAYER = {
    "attention.self.query": ("attention.attention.query",),
    "attention.self.key": ("attention.attention.key",),
    "attention.self.value": ("attention.attention.value",),
    "attention.output.dense": ("attention.output.dense",),
    "attention.output.LayerNorm": ("attention.output.LayerNorm",),
    "intermediate.dense": ("intermediate.dense", "intermediate_query.dense"),
    "output.dense": ("output.dense", "output_query.dense"),
    "output.LayerNorm": ("output.LayerNorm", "output_query.LayerNorm"),
}
BERT_HEAD = {"transform.dense": "lm_head.dense", "transform.LayerNorm": "lm_head.LayerNorm"}


def bert_sizes(bert: BertConfig) -> dict[str, Any]:
    """The fields of an `InstructBLIPQFormerConfig` for a Q-Former that starts as a BERT: one word more, [DEC]."""
    return {"vocab_size": bert.vocab_size + 1, **{name: getattr(bert, name) for name in BERT_FIELDS}}


def copy_bert(model: InstructBLIPForPreTraining, bert: PreTrainedModel) -> None:
    """Start the Q-Former, and the language-modeling head, as a BERT.

    The query feed-forward starts as the text's (LAVIS); cross-attention, queries and the other heads stay as they are.
    So do words beyond BERT's, such as [DEC]. BERT's embedding of the first segment, which the Q-Former lacks, is added
    to its positions, so that the text branch is exactly that BERT (LAVIS leaves it out).

    Args:
        bert: a `BertForPreTraining`, `BertForMaskedLM` or `BertLMHeadModel`; a `BertModel` has no head to copy. Where
            it has more layers than the Q-Former the first ones are taken.

    Raises:
        ValueError: its sizes are not the Q-Former's; all differences are named.
    """
    source = dict(getattr(bert, "bert", bert).state_dict())
    tensors = {
        "qformer.embeddings.word_embeddings.weight": source["embeddings.word_embeddings.weight"],
        "qformer.embeddings.position_embeddings.weight": source["embeddings.position_embeddings.weight"]
        + source["embeddings.token_type_embeddings.weight"][0],
    }
    for kind in ("weight", "bias"):
        tensors[f"qformer.embeddings.layernorm.{kind}"] = source[f"embeddings.LayerNorm.{kind}"]
        for layer in range(model.config.qformer_config.num_hidden_layers):
            for theirs, ours in BERT_LAYER.items():
                tensor = source.get(f"encoder.layer.{layer}.{theirs}.{kind}")
                if tensor is None:
                    raise ValueError(
                        f"the BERT has {layer} layers and the Q-Former {model.config.qformer_config.num_hidden_layers}:"
                        " a Q-Former may have fewer, not more"
                    )
                tensors.update({f"qformer.encoder.layer.{layer}.{name}.{kind}": tensor for name in ours})
    if hasattr(bert, "cls"):
        head = bert.cls.predictions.state_dict()
        tensors["lm_head.bias"] = head["bias"]
        for theirs, ours in BERT_HEAD.items():
            tensors.update({f"{ours}.{kind}": head[f"{theirs}.{kind}"] for kind in ("weight", "bias")})
    else:
        logger.warning(f"a {type(bert).__name__} has no language-modeling head: that of stage 1 starts at random")
    _copy(model, tensors, "the BERT", "the Q-Former", grown=("word_embeddings.weight", "lm_head.bias"))


def start_from_stage1(
    model: InstructBLIPForConditionalGeneration,
    stage1: InstructBLIPForPreTraining | str | os.PathLike,
    text_branch_only: bool = False,
    revision: str | None = None,
    **hub: Any,
) -> None:
    """Start a generative model from a stage-1 model: vision LayerNorm, query tokens and Q-Former, text branch included.

    Stage 2 trains what reads no text, and leaves the text branch as stage 1 had it. A stage-2 model that came without
    one, such as BLIP-2's, gets it by `text_branch_only`: InstructBLIP starts from stage 2 laid over stage 1.

    Args:
        model: changed in place.
        stage1: the model, or the folder or Hub id of a saved one.
        text_branch_only: take word and position embeddings and the text feed-forwards only, and keep the rest.
        revision, hub: branch, tag or commit, `token`, `cache_dir`, ...: for a Hub id.

    Raises:
        ValueError: something is missing there, or has another shape; all is named.
    """
    wanted = [name for name, _ in model.named_bridge_parameters() if not name.startswith("language_projection.")]
    if text_branch_only:
        text = {id(parameter) for parameter in model.qformer.unread_parameters(text_input=False)}
        wanted = [name for name, parameter in model.named_parameters() if id(parameter) in text]
    if isinstance(stage1, PreTrainedModel):
        place, tensors = f"the {type(stage1).__name__}", stage1.state_dict()
    else:
        place, tensors = str(stage1), read_tensors(str(stage1), revision, prefix="", **hub)
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise ValueError(f"{place} is no stage 1 of this model's vision tower and Q-Former; it lacks {missing}")
    _copy(model, {name: tensors[name] for name in wanted}, place, "this model")


@torch.no_grad()
def _copy(
    model: nn.Module, tensors: Mapping[str, torch.Tensor], source: str, target: str, grown: tuple[str, ...] = ()
) -> None:
    """Copy tensors into parameters of the same names, all or none; those that end in `grown` may have rows more."""
    parameters = dict(model.named_parameters())
    problems = []
    for name, tensor in tensors.items():
        ours, theirs = tuple(parameters[name].shape), tuple(tensor.shape)
        if ours != theirs and not (name.endswith(grown) and ours[0] > theirs[0] and ours[1:] == theirs[1:]):
            problems.append(f"{name}: {theirs}, expected {ours}")
    if problems:
        raise ValueError(f"{source} does not fit {target}: {'; '.join(problems)}")
    for name, tensor in tensors.items():
        parameters[name][: len(tensor)].copy_(tensor)
