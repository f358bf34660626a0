"""Rows without padding: which language models allow it, and how rows are laid out for them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from .packed_attention import PackedRowsMask

# Decoders whose attention is plain (causal, full, no bias of its own) and goes through transformers' attention
# interface, so that masks, positions and caches of ours reach it. tests/modeling/test_language_models.py runs each.
PLAIN_DECODERS = frozenset({"gpt2", "llama", "mistral", "opt", "qwen2", "qwen3"})
# Encoder-decoders whose masks are transformers' own, which take one that was made before as it is.
# tests/modeling/test_static_sizes.py runs each.
PLAIN_ENCODERS = frozenset({"mt5", "t5", "umt5"})


def has_plain_attention(language_model: nn.Module) -> bool:
    """Whether rows may be packed, tries scored and prompts shared by beams with this decoder-only language model."""
    config = language_model.config
    return (
        config.model_type in PLAIN_DECODERS
        and set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        and getattr(config, "sliding_window", None) is None
    )


def takes_position_ids(language_model: nn.Module) -> bool:
    """Whether positions can be given to a language model; T5, for one, has none."""
    if hasattr(language_model, "get_base_model"):  # PEFT's wrapper takes anything
        language_model = language_model.get_base_model()
    return "position_ids" in inspect.signature(language_model.forward).parameters


@contextmanager
def attention_as(language_model: nn.Module, implementation: str) -> Iterator[None]:
    """Inside, every part of `language_model` computes attention by the registered function `implementation`.

    For inference only: gradient checkpointing would run the function again after the block.
    """
    configs = {id(module.config): module.config for module in language_model.modules() if hasattr(module, "config")}
    before = {key: config._attn_implementation for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation = implementation
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]


def additive_mask(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where `allowed` and the dtype's minimum elsewhere, which both SDPA and eager attention add to their scores."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, torch.finfo(dtype).min)


def positions_from_mask(attention_mask: torch.Tensor) -> torch.Tensor:
    """Position of each real token among its row's real tokens, (rows, seq); padding gets 0 or its predecessor's."""
    return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)


def next_labels(labels: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """The label of each position's next real token in its row, (rows, seq); -100 at padding and at the last token.

    Args:
        labels: (rows, seq), aligned with the inputs.
        attention_mask: (rows, seq); the next real token may lie beyond padding, as when padded prompts are joined to
            answers.
    """
    length = labels.shape[1]
    real = attention_mask.bool()
    columns = torch.arange(length, device=labels.device).expand_as(labels).masked_fill(~real, length)
    following = columns.flip(1).cummin(dim=1).values.flip(1)  # the first real column from here on
    # Not a pad with `length`, which would be compiled anew for each.
    following = torch.cat([following[:, 1:], following.new_full((len(following), 1), length)], dim=1)
    shifted = nn.functional.pad(labels, (0, 1), value=-100).gather(1, following)
    return shifted.masked_fill(~real, -100)


def align(attention_mask: torch.Tensor, side: str, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Move all padding of every row to one side, keeping the order of the real columns.

    Args:
        attention_mask: (rows, seq), any pattern of padding, also inside a row.
        side: "left" or "right", where the padding goes.
        tensors: each (rows, seq, ...), reordered alike.

    Returns:
        The mask and the tensors, in the order given.
    """
    real = attention_mask.bool()
    order = torch.argsort((real if side == "left" else ~real).int(), dim=1, stable=True)
    aligned = [attention_mask.gather(1, order)]
    for tensor in tensors:
        index = order.view(*order.shape, *[1] * (tensor.dim() - 2)).expand_as(tensor)
        aligned.append(tensor.gather(1, index))
    return tuple(aligned)


def assert_later(condition: torch.Tensor, message: str) -> None:
    """Fail if `condition`, one bool, is False, without waiting for it: on a GPU by an assertion on the device.

    Raises:
        RuntimeError: on a CPU, at once, with the message.
    """
    if condition.device.type in ("cpu", "cuda"):
        torch._assert_async(condition, message)


def places_of(wanted: torch.Tensor, count: int | None = None) -> torch.Tensor:
    """Where `wanted` is True, as indices into it flattened, in order: (count,).

    Args:
        wanted: bool, any shape.
        count: how many are wanted, where the host knows; else it has to wait for the device. A larger one is filled up
            with places that are not wanted, behind the others. A smaller one fails as `assert_later` does.
    """
    flat = wanted.flatten()
    if count is None:
        return flat.nonzero()[:, 0]
    assert_later(flat.sum() <= count, "a batch holds more than its `sizes` say: count again, or leave them out")
    return torch.argsort((~flat).int(), stable=True)[:count]


@dataclass
class PackedRows:
    """All real tokens of a batch in one row.

    Attributes:
        inputs_embeds: (1, tokens, hidden).
        attention_mask: (1, 1, tokens, tokens); a token sees its own row up to itself. Additive, or a `PackedRowsMask`.
        position_ids: (1, tokens), starting again at 0 with each row.
        labels: (1, tokens), the label of each token's *next* token in its row, -100 where there is none.
    """

    inputs_embeds: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor


def pack_rows(
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor,
    labels: torch.Tensor,
    dense_mask: bool = False,
    tokens: int | None = None,
    longest: int | None = None,
) -> PackedRows:
    """Drop the padding of (rows, seq) inputs; `labels` (rows, seq) are aligned with the inputs.

    Args:
        dense_mask: ask for a mask that attention other than SDPA understands.
        tokens: how many are real, where the host knows. If there are fewer, padding follows, which no real token sees.
        longest: how many the longest row has, if the host knows that too, and `tokens` exactly.
    """
    real = attention_mask.bool()
    rows, seq = real.shape
    places = places_of(real, tokens)
    row = places // seq
    lengths = real.sum(dim=1, keepdim=True)
    positions = positions_from_mask(attention_mask)
    # The column of each token in its row without padding, which comes after.
    columns = torch.where(real, positions, lengths + (~real).cumsum(dim=1) - 1).flatten()[places]
    if tokens is None:
        longest = int(lengths.max())
    elif longest is None:
        longest = seq
    else:
        exact = (lengths.sum() == tokens) & (lengths.max() <= longest)
        assert_later(exact, "a batch holds more or less than its `sizes` say: count again, or leave `longest` out")
    # One row much longer than the others would leave little but padding; causal kernels do half of the work.
    if dense_mask or rows * longest**2 > 2 * len(places) ** 2:
        mask = additive_mask((row[:, None] == row[None, :]).tril()[None, None], inputs_embeds.dtype)
    else:
        mask = PackedRowsMask.of(row, columns, rows, longest, inputs_embeds.dtype)
    return PackedRows(
        inputs_embeds=inputs_embeds.flatten(0, 1).index_select(0, places)[None],
        attention_mask=mask,
        position_ids=positions.flatten()[places][None],
        labels=next_labels(labels, attention_mask).flatten()[places][None],
    )


class _KeptPlaces:
    """A pre-hook of a head, which then sees only `places`, if there are any, of (rows, seq, hidden) flattened.

    A hook, because it is the one way that works for every language model and keeps what the model does to its logits;
    and one that stays, because a compiler traces hooks that are there and refuses new ones.
    """

    places: torch.Tensor | None = None

    def __call__(self, head: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
        if self.places is None:
            return None
        return (inputs[0].flatten(0, 1).index_select(0, self.places.to(inputs[0].device)),)


def hook_head(language_model: nn.Module) -> _KeptPlaces | None:
    """The hook that `logits_at` needs, put on the head if it is missing: not while compiling, which gives None."""
    head = language_model.get_output_embeddings()
    if head is None:
        return None
    for hook in head._forward_pre_hooks.values():
        if isinstance(hook, _KeptPlaces):
            return hook
    if torch.compiler.is_compiling():
        return None
    hook = _KeptPlaces()
    head.register_forward_pre_hook(hook)
    return hook


@contextmanager
def logits_at(language_model: nn.Module, places: torch.Tensor | None) -> Iterator[None]:
    """Inside, the head sees only (rows, seq) positions at `places` of them flattened: logits are (places, vocabulary).

    Where `hook_head` gives none they are (rows, seq, vocabulary).
    """
    hook = None if places is None else hook_head(language_model)
    if hook is None:
        yield
        return
    hook.places = places
    try:
        yield
    finally:
        hook.places = None


@contextmanager
def last_feed_forward_at(language_model: nn.Module, places: torch.Tensor | None, tokens: int) -> Iterator[None]:
    """Inside, the last layer's feed-forward block runs only at `places` of one row of `tokens`, and adds 0 elsewhere.

    Nobody reads the other positions of the last layer when logits are computed at `places` only. Does nothing for
    language models without `layers[-1].mlp`, or under gradient checkpointing, which runs layers again after the block.
    """
    layers = getattr(language_model.base_model, "layers", None)
    block = None if layers is None else getattr(layers[-1], "mlp", None)
    if places is None or block is None:
        yield
        return
    if language_model.is_activation_checkpointing or hasattr(
        layers[-1], "_checkpoint_wrapped_module"
    ):  # FSDP's wrapper
        yield
        return

    def select(_: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (inputs[0].index_select(1, places.to(inputs[0].device)),)

    def scatter(_: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        everywhere = output.new_zeros(1, tokens, output.shape[-1])
        return everywhere.index_copy(1, places.to(output.device), output)

    hooks = [block.register_forward_pre_hook(select), block.register_forward_hook(scatter)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
