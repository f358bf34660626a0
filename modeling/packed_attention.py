"""Attention over rows that were packed into one, without a mask of all tokens by all tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn


class PackedRowsMask(torch.Tensor):
    """An attention mask that makes SDPA attend causally within each of the rows that were packed into one.

    Queries, keys and values are laid out as (rows, longest row) again for SDPA's causal kernels, as in
    `torch.nn.attention.bias`. Whoever takes it for a dense mask reads NaN, so that no wrong result goes unnoticed.
    """

    rows: int
    longest: int
    places: torch.Tensor

    @staticmethod
    def of(row: torch.Tensor, column: torch.Tensor, rows: int, longest: int, dtype: torch.dtype) -> PackedRowsMask:
        """The mask of tokens whose places among `rows` rows of `longest` columns are `row` and `column`, (tokens,)."""
        tokens = len(row)
        shape = torch.full((), float("nan"), dtype=dtype, device=row.device).expand(1, 1, tokens, tokens)
        mask = torch.Tensor._make_subclass(PackedRowsMask, shape)
        mask.rows, mask.longest, mask.places = rows, longest, row * longest + column
        return mask

    @classmethod
    def __torch_function__(cls, func: Callable, types: Sequence[type], args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.scaled_dot_product_attention:
            return _attend(*args, **(kwargs or {}))
        if func is torch.Tensor.to:
            return args[0]  # moved where it is used
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: PackedRowsMask, **kwargs: Any
) -> torch.Tensor:
    """SDPA of (1, heads, tokens, head_dim), row by row."""
    rows, longest = attn_mask.rows, attn_mask.longest
    places = attn_mask.places.to(query.device)

    def unpack(packed: torch.Tensor) -> torch.Tensor:
        tokens = packed.squeeze(0).transpose(0, 1)  # (tokens, heads, head_dim)
        padded = tokens.new_zeros(rows * longest, *tokens.shape[1:])
        # Not index_copy_, which would keep the tokens for its backward pass.
        return padded.index_put_((places,), tokens).unflatten(0, (rows, longest)).transpose(1, 2)

    # Padding follows a row's last token, so causal attention never reaches it.
    output = nn.functional.scaled_dot_product_attention(
        unpack(query), unpack(key), unpack(value), **{**kwargs, "is_causal": True}
    )
    output = output.transpose(1, 2).flatten(0, 1).index_select(0, places)
    return output.transpose(0, 1)[None]
