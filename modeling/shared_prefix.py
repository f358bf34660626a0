"""Beam search that computes, keeps and reads the prompt once for all beams of a row.

transformers' own beam search runs the prompt, and stores its keys and values, once per beam; for an encoder-decoder it
projects the encoder's output once per beam and reorders the copies at every step. Here the prompt's keys and values
stay (rows, ...), and an attention function folds the beams of a row into its query dimension. Any search that reorders
its cache may use it: transformers' own, or that of beam_search.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

SHARED_PREFIX = "instruct_blip_shared_prefix"


@dataclass
class PrefixAndSuffix:
    """Keys (or values) of a prompt (rows, heads, prompt, head_dim) and of what each beam added (rows * beams, ...)."""

    prefix: torch.Tensor
    suffix: torch.Tensor


class SharedPrefixLayer(DynamicLayer):
    """A cache layer whose prompt is stored once per row and never reordered; only the beams' own tokens are."""

    def __init__(self, prefix_keys: torch.Tensor, prefix_values: torch.Tensor):
        super().__init__()
        self.prefix_keys, self.prefix_values = prefix_keys, prefix_values

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        return PrefixAndSuffix(self.prefix_keys, keys), PrefixAndSuffix(self.prefix_values, values)

    def get_seq_length(self) -> int:
        return self.prefix_keys.shape[-2] + super().get_seq_length()

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        if self.is_initialized:
            self.keys = self.keys.index_select(0, beam_idx.to(self.keys.device))
            self.values = self.values.index_select(0, beam_idx.to(self.values.device))


class SharedCrossLayer(DynamicLayer):
    """Cross-attention keys and values of the encoder's output, stored once per row: (rows, heads, source, head_dim)."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor):
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """All beams of a row read the same source, so there is nothing to reorder."""


def share_prompt(cache: DynamicCache) -> Cache:
    """A cache for beam search from one filled with (rows, ...) prompts."""
    return Cache(layers=[SharedPrefixLayer(layer.keys, layer.values) for layer in cache.layers])


def share_source(decoder: nn.Module, encoded: torch.Tensor) -> EncoderDecoderCache:
    """A T5 decoder's cache for beam search that holds its cross-attention to `encoded` (rows, source, hidden)."""

    def split_heads(states: torch.Tensor, size: int) -> torch.Tensor:
        return states.unflatten(-1, (-1, size)).transpose(1, 2)

    layers = []
    for block in decoder.get_submodule("block").children():
        attention: Any = block.get_submodule("layer.1.EncDecAttention")
        size = attention.key_value_proj_dim
        keys, values = attention.k(encoded), attention.v(encoded)
        layers.append(SharedCrossLayer(split_heads(keys, size), split_heads(values, size)))
    return EncoderDecoderCache(DynamicCache(), Cache(layers=layers))


def shared_prefix_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor | PrefixAndSuffix,
    value: torch.Tensor | PrefixAndSuffix,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Attention of one new token per beam: query (rows * beams, heads, 1, head_dim)."""
    if isinstance(key, PrefixAndSuffix):
        return _attend_prefix_and_suffix(query, key, value, attention_mask, scaling), None
    beams = query.shape[0] // key.shape[0]
    if beams == 1:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, position_bias=position_bias, **kwargs
        )
    rows, heads, head_dim = key.shape[0], query.shape[1], query.shape[-1]
    folded = query.view(rows, beams, heads, head_dim).transpose(1, 2)
    mask = _of_rows(attention_mask, rows)
    # T5's cross-attention has a position bias of zeros, so it is not added here.
    output = nn.functional.scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling)
    return output.transpose(1, 2).reshape(rows * beams, 1, heads, head_dim), None


def _attend_prefix_and_suffix(
    query: torch.Tensor,
    key: PrefixAndSuffix,
    value: PrefixAndSuffix,
    attention_mask: torch.Tensor | None,
    scaling: float | None,
) -> torch.Tensor:
    rows, kv_heads, prompt, head_dim = key.prefix.shape
    beams, groups, added = query.shape[0] // rows, query.shape[1] // kv_heads, key.suffix.shape[2]
    query = query * (head_dim**-0.5 if scaling is None else scaling)
    per_beam = query.view(rows * beams, kv_heads, groups, head_dim)
    per_row = query.view(rows, beams, kv_heads, groups, head_dim).transpose(1, 2).flatten(2, 3)  # (r, kv, b*g, d)

    scores = per_row.new_empty(rows, kv_heads, beams * groups, prompt + added)
    scores[..., :prompt] = per_row @ key.prefix.transpose(-1, -2)
    own = per_beam @ key.suffix.transpose(-1, -2)  # (rows * beams, kv_heads, groups, added)
    scores[..., prompt:] = own.view(rows, beams, kv_heads, groups, added).transpose(1, 2).flatten(2, 3)
    mask = _of_rows(attention_mask, rows)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)

    output = (weights[..., :prompt] @ value.prefix).view(rows, kv_heads, beams, groups, head_dim).transpose(1, 2)
    own = weights[..., prompt:].view(rows, kv_heads, beams, groups, added).transpose(1, 2).flatten(0, 1)
    output = output.flatten(0, 1) + own @ value.suffix  # (rows * beams, kv_heads, groups, head_dim)
    return output.reshape(rows * beams, 1, kv_heads * groups, head_dim)


def _of_rows(attention_mask: torch.Tensor | None, rows: int) -> torch.Tensor | None:
    """(rows, ...) of a mask for rows, or for beams, as it is the same for all beams of a row."""
    return None if attention_mask is None else attention_mask[:: attention_mask.shape[0] // rows]


AttentionInterface.register(SHARED_PREFIX, shared_prefix_attention)
AttentionMaskInterface.register(SHARED_PREFIX, sdpa_mask)
