"""Frozen parts that compute less, and keep less for the backward pass; their results are the same."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.autograd.function import FunctionCtx, once_differentiable
from transformers.activations import ACT2FN, NewGELUActivation, SiLUActivation
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralMLP, MistralRMSNorm
from transformers.models.mt5.modeling_mt5 import MT5LayerNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP, Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP, Qwen3RMSNorm
from transformers.models.t5.modeling_t5 import T5DenseGatedActDense, T5LayerNorm
from transformers.models.umt5.modeling_umt5 import UMT5LayerNorm


class GatedProduct(torch.autograd.Function):
    """silu(gate) * up, elementwise. Only `gate` and `up` are kept; the activation is computed again."""

    @staticmethod
    def forward(ctx: FunctionCtx, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return nn.functional.silu(gate) * up

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient * up, gate), gradient * nn.functional.silu(gate)


def gated_block(block: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """The feed-forward block of LLaMA and its kin, with SiLU: (..., hidden) in and out."""
    gate, up = block.gate_proj(hidden), block.up_proj(hidden)
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # a compiler decides by itself what to keep
        return block.down_proj(GatedProduct.apply(gate, up))
    return block.down_proj(block.act_fn(gate) * up)


class LeanLlamaMLP(LlamaMLP):
    forward = gated_block


class LeanMistralMLP(MistralMLP):
    forward = gated_block


class LeanQwen2MLP(Qwen2MLP):
    forward = gated_block


class LeanQwen3MLP(Qwen3MLP):
    forward = gated_block


def rms_norm(norm: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
    """The RMSNorm of LLaMA, T5 and their kin: (..., hidden) in and out.

    On a GPU it is one kernel, which keeps its input as it is; transformers' is seven, and keeps it in float32.
    """
    if hidden_states.dtype != norm.weight.dtype:  # each kind has its own way to bring them together
        return type(norm).__bases__[0].forward(norm, hidden_states)
    normed = nn.functional.rms_norm(hidden_states, norm.weight.shape, norm.weight, norm.variance_epsilon)
    return normed.to(hidden_states.dtype)  # under autocast it is float32


class LeanLlamaRMSNorm(LlamaRMSNorm):
    forward = rms_norm


class LeanMistralRMSNorm(MistralRMSNorm):
    forward = rms_norm


class LeanQwen2RMSNorm(Qwen2RMSNorm):
    forward = rms_norm


class LeanQwen3RMSNorm(Qwen3RMSNorm):
    forward = rms_norm


class LeanT5LayerNorm(T5LayerNorm):
    forward = rms_norm


class LeanMT5LayerNorm(MT5LayerNorm):
    forward = rms_norm


class LeanUMT5LayerNorm(UMT5LayerNorm):
    forward = rms_norm


LEAN_BLOCKS = {lean.__bases__[0]: lean for lean in (LeanLlamaMLP, LeanMistralMLP, LeanQwen2MLP, LeanQwen3MLP)}
LEAN_NORMS = {
    lean.__bases__[0]: lean
    for lean in (
        LeanLlamaRMSNorm,
        LeanMistralRMSNorm,
        LeanQwen2RMSNorm,
        LeanQwen3RMSNorm,
        LeanT5LayerNorm,
        LeanMT5LayerNorm,
        LeanUMT5LayerNorm,
    )
}


def make_lean(language_model: nn.Module) -> None:
    """Let the norms and gated blocks of `language_model` compute and keep less, weights and names unchanged."""
    for module in language_model.modules():
        if type(module) in LEAN_NORMS:
            module.__class__ = LEAN_NORMS[type(module)]
        elif type(module) in LEAN_BLOCKS and isinstance(module.act_fn, (nn.SiLU, SiLUActivation)):
            module.__class__ = LEAN_BLOCKS[type(module)]
        elif isinstance(module, T5DenseGatedActDense) and isinstance(module.act, NewGELUActivation):
            module.act = ACT2FN["gelu_pytorch_tanh"]  # the same in one kernel, which keeps one tensor of four


def own_precision(weights: Iterable[torch.Tensor], device: torch.device) -> AbstractContextManager:
    """No autocast inside for a part whose `weights` all have the precision that it casts to already.

    It would only cast what enters a norm to float32, and what leaves it back; their kernels compute in float32 anyway.
    """
    if not torch.amp.is_autocast_available(device.type) or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    precision = torch.get_autocast_dtype(device.type)
    if all(weight.dtype == precision for weight in weights if weight.is_floating_point()):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
