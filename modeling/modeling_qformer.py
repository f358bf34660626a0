"""The instruction-aware Q-Former (paper, section 2.2).

Learned query tokens and the instruction's tokens share the self-attention of a BERT; in every second layer the queries
alone also attend to the image. Two feed-forward networks per layer, one for queries and one for text. Only the query
outputs leave the model, so the last layer runs no text feed-forward, and an image's keys and values are computed once
however many instructions ask about it. Stage 1 of the pre-training also reads the text outputs (`text_output`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithCrossAttentions
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_instruct_blip import InstructBLIPQFormerConfig


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention that also returns its weights (batch, heads, queries, keys), for `output_attentions=True`."""
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.dropout(scores.softmax(dim=-1), p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class InstructBLIPQFormerSelfOutput(nn.Module):
    def __init__(self, in_features: int, config: InstructBLIPQFormerConfig):
        super().__init__()
        self.dense = nn.Linear(in_features, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.dropout(self.dense(hidden)) + residual)


class InstructBLIPQFormerMultiHeadAttention(nn.Module):
    def __init__(self, config: InstructBLIPQFormerConfig, key_size: int):
        super().__init__()
        if config.hidden_size % config.num_attention_heads:
            raise ValueError(
                f"Q-Former hidden_size {config.hidden_size} is not a multiple of num_attention_heads "
                f"{config.num_attention_heads}"
            )
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(key_size, config.hidden_size)
        self.value = nn.Linear(key_size, config.hidden_size)

    def split_heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (batch, heads, length, head_dim)

    def forward(
        self,
        hidden: torch.Tensor,
        key_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        key_index: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend from `hidden` (batch, length, hidden) to `key_states` (images or batch, keys, key_size).

        With `key_index` (batch,), row i attends to the keys of `key_states[key_index[i]]`, which are projected once.
        """
        query = self.split_heads(self.query(hidden))
        key, value = self.split_heads(self.key(key_states)), self.split_heads(self.value(key_states))
        if key_index is not None:
            key, value = key[key_index], value[key_index]
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        output, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return output.flatten(2), weights


class InstructBLIPQFormerAttention(nn.Module):
    def __init__(self, config: InstructBLIPQFormerConfig, key_size: int):
        super().__init__()
        self.attention = InstructBLIPQFormerMultiHeadAttention(config, key_size)
        self.output = InstructBLIPQFormerSelfOutput(config.hidden_size, config)

    def forward(self, hidden: torch.Tensor, key_states: torch.Tensor, **kwargs) -> torch.Tensor:
        attended, _ = self.attention(hidden, key_states, **kwargs)
        return self.output(attended, hidden)


class InstructBLIPQFormerIntermediate(nn.Module):
    def __init__(self, config: InstructBLIPQFormerConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.activation(self.dense(hidden))


class InstructBLIPQFormerLayer(GradientCheckpointingLayer):
    def __init__(self, config: InstructBLIPQFormerConfig, layer_index: int):
        super().__init__()
        self.attention = InstructBLIPQFormerAttention(config, config.hidden_size)
        if layer_index % config.cross_attention_frequency == 0:
            self.crossattention = InstructBLIPQFormerAttention(config, config.encoder_hidden_size)
        self.has_cross_attention = layer_index % config.cross_attention_frequency == 0
        # Kept in the last layer too, so that the official state dict fits; it runs there in stage 1 only.
        self.intermediate = InstructBLIPQFormerIntermediate(config)
        self.output = InstructBLIPQFormerSelfOutput(config.intermediate_size, config)
        self.intermediate_query = InstructBLIPQFormerIntermediate(config)
        self.output_query = InstructBLIPQFormerSelfOutput(config.intermediate_size, config)
        self.is_last = layer_index == config.num_hidden_layers - 1

    def forward(
        self,
        hidden: torch.Tensor,
        image_embeds: torch.Tensor | None,
        num_queries: int,
        attention_mask: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        text_output: bool = False,
        **kwargs,
    ) -> torch.Tensor:
        # Where the last layer's text outputs are read by nobody, only the queries attend there.
        queries_only = self.is_last and not text_output
        attending = hidden[:, :num_queries] if queries_only else hidden
        if queries_only and attention_mask is not None:
            attention_mask = attention_mask[:, :, :num_queries] if attention_mask.dim() == 4 else attention_mask
        attended = self.attention(attending, hidden, attention_mask=attention_mask, **kwargs)
        if num_queries == 0:
            return self.output(self.intermediate(attended), attended)
        queries, text = attended[:, :num_queries], attended[:, num_queries:]
        if self.has_cross_attention:
            queries = self.crossattention(queries, image_embeds, key_index=image_index, **kwargs)
        queries = self.output_query(self.intermediate_query(queries), queries)
        if text.shape[1] == 0:
            return queries
        return torch.cat([queries, self.output(self.intermediate(text), text)], dim=1)


class InstructBLIPQFormerEmbeddings(nn.Module):
    def __init__(self, config: InstructBLIPQFormerConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, query_embeds: torch.Tensor | None, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        embeddings = query_embeds
        if input_ids is not None:
            if attention_mask is None:
                attention_mask = torch.ones_like(input_ids)
            # Positions count real tokens, so that padding on either side changes nothing.
            positions = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
            text = self.word_embeddings(input_ids) + self.position_embeddings(positions)
            embeddings = text if query_embeds is None else torch.cat([query_embeds.to(text.dtype), text], dim=1)
        return self.dropout(self.layernorm(embeddings.to(self.layernorm.weight.dtype)))


class InstructBLIPQFormerEncoder(nn.Module):
    def __init__(self, config: InstructBLIPQFormerConfig):
        super().__init__()
        self.layer = nn.ModuleList(
            [InstructBLIPQFormerLayer(config, index) for index in range(config.num_hidden_layers)]
        )
        self.gradient_checkpointing = False


class InstructBLIPQFormerModel(PreTrainedModel):
    """Queries and an instruction in, query outputs out: (uses, queries, hidden)."""

    config: InstructBLIPQFormerConfig
    config_class = InstructBLIPQFormerConfig
    base_model_prefix = "qformer"
    main_input_name = "query_embeds"
    supports_gradient_checkpointing = True
    _supports_attention_backend = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _no_split_modules = ["InstructBLIPQFormerLayer", "InstructBLIPQFormerEmbeddings"]
    _can_record_outputs = {
        "hidden_states": InstructBLIPQFormerLayer,
        "attentions": [
            OutputRecorder(InstructBLIPQFormerMultiHeadAttention, index=1, layer_name=".attention.attention")
        ],
        "cross_attentions": [
            OutputRecorder(InstructBLIPQFormerMultiHeadAttention, index=1, layer_name=".crossattention")
        ],
    }

    def __init__(self, config: InstructBLIPQFormerConfig):
        super().__init__(config)
        self.embeddings = InstructBLIPQFormerEmbeddings(config)
        self.encoder = InstructBLIPQFormerEncoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings.word_embeddings = value

    def unread_parameters(self, text_input: bool = True) -> Iterator[nn.Parameter]:
        """Parameters that the official state dict has and no output depends on.

        Args:
            text_input: whether the Q-Former reads instructions; without them its whole text branch is unread.
        """
        layers = self.encoder.layer[-1:] if text_input else self.encoder.layer
        for layer in layers:
            yield from layer.intermediate.parameters()
            yield from layer.output.parameters()
        if not text_input:
            yield from self.embeddings.word_embeddings.parameters()
            yield from self.embeddings.position_embeddings.parameters()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        query_embeds: torch.Tensor | None,
        image_embeds: torch.Tensor | None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        text_output: bool = False,
        causal_text: bool = False,
        **kwargs,
    ) -> BaseModelOutputWithCrossAttentions:
        """Let the queries read images under instructions.

        Args:
            query_embeds: (uses, queries, hidden) learned query tokens, one copy per use of an image. None with
                `text_output`: the text is read alone, as by a BERT.
            image_embeds: (images, patches, encoder_hidden) features of the unique images; None without queries.
            input_ids: (uses, length) instruction tokens; None for a Q-Former without text (BLIP-2).
            attention_mask: (uses, length) 1 for real instruction tokens.
            image_index: (uses,) the image each use reads; None when use i reads image i.
            text_output: also return the outputs of the text, behind those of the queries.
            causal_text: no query sees the text, and a text token sees the queries and the text up to itself.

        Returns:
            `last_hidden_state` (uses, queries, hidden), with `text_output` (uses, queries + length, hidden); hidden
            states and attentions when asked for.

        Raises:
            ValueError: the text is longer than the position table, or the attention implementation has no such mask.
        """
        num_queries = 0 if query_embeds is None else query_embeds.shape[1]
        if input_ids is not None:
            if input_ids.shape[1] > self.config.max_position_embeddings:
                raise ValueError(
                    f"Q-Former instruction of {input_ids.shape[1]} tokens is longer than its "
                    f"{self.config.max_position_embeddings} positions: truncate it (the processor's qformer_max_length)"
                )
            if attention_mask is None:
                attention_mask = torch.ones_like(input_ids)
        hidden = self.embeddings(query_embeds, input_ids, attention_mask)
        mask = None
        if attention_mask is not None and input_ids is not None:
            attention_mask = torch.cat(
                [attention_mask.new_ones(len(attention_mask), num_queries), attention_mask], dim=1
            )
            if causal_text:
                mask = self._causal_mask(hidden, attention_mask, num_queries)
            else:
                mask = create_bidirectional_mask(
                    config=self.config,
                    inputs_embeds=hidden,
                    attention_mask=attention_mask,
                    # To see whether there is any padding, the host would wait for the device.
                    allow_is_bidirectional_skip=not self.training,
                )
        kwargs.update(attention_mask=mask, image_index=image_index, text_output=text_output)
        for layer in self.encoder.layer:
            hidden = layer(hidden, image_embeds, num_queries, **kwargs)
        return BaseModelOutputWithCrossAttentions(last_hidden_state=hidden)

    def _causal_mask(self, hidden: torch.Tensor, attention_mask: torch.Tensor, num_queries: int):
        """Everyone sees the queries; text also sees the real text up to itself."""
        if "flash" in (self.config._attn_implementation or ""):
            raise ValueError(
                f"{self.config._attn_implementation} has no mask that is causal for text alone: load the model with "
                'attn_implementation="sdpa"'
            )
        return create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=attention_mask,
            past_key_values=None,
            or_mask_function=lambda batch, head, query, key: key < num_queries,
        )
