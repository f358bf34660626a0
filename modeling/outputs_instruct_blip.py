"""What [`InstructBLIPForConditionalGeneration`] returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput


@dataclass
class InstructBLIPOutput(ModelOutput):
    """What `forward` returns.

    Attributes:
        loss: scalar, cross-entropy in nats over the supervised positions.
        logits: (rows, seq or target, vocabulary); None while training with labels, where they are computed at
            supervised positions only.
        token_losses: (supervised,) cross-entropy in nats of each supervised position, row after row, without gradient.
            With `sizes` that say more than there are, zeros follow.
        token_hits: (supervised,) whether the label was the most likely token there.
        image_features: (uses, query, llm_hidden), what the language model reads in place of the placeholders.
        past_key_values, hidden_states, attentions: of a decoder-only language model, when asked for.
        encoder_last_hidden_state: (rows, seq, hidden), encoder-decoder only; the other encoder, decoder and cross
            fields are those of transformers' `Seq2SeqLMOutput`, when asked for.
        vision_attentions, qformer_attentions, qformer_cross_attentions: of the towers, with `output_attentions=True`
            and `attn_implementation="eager"`; the last is (uses, heads, query, patches) per layer with cross-attention.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    token_losses: torch.Tensor | None = None
    token_hits: torch.Tensor | None = None
    past_key_values: Any = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    decoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    decoder_attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None
    encoder_last_hidden_state: torch.Tensor | None = None
    encoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    encoder_attentions: tuple[torch.Tensor, ...] | None = None
    image_features: torch.Tensor | None = None
    vision_attentions: tuple[torch.Tensor, ...] | None = None
    qformer_attentions: tuple[torch.Tensor, ...] | None = None
    qformer_cross_attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class InstructBLIPImageFeatures(BaseModelOutputWithPooling):
    """What `get_image_features` returns.

    Attributes:
        last_hidden_state: (images, patches, vision_hidden), what the Q-Former attends to.
        pooler_output: (uses, query, llm_hidden), query outputs projected into the language model.
        qformer_attentions, qformer_cross_attentions: one tensor a layer, when asked for.
    """

    qformer_attentions: tuple[torch.Tensor, ...] | None = None
    qformer_cross_attentions: tuple[torch.Tensor, ...] | None = None
