"""Feed-forward blocks of language models that keep less for the backward pass; their results are the same."""

from __future__ import annotations

import torch
from torch import nn
from torch.autograd.function import FunctionCtx, once_differentiable
from transformers.activations import ACT2FN, NewGELUActivation, SiLUActivation
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.mistral.modeling_mistral import MistralMLP
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP
from transformers.models.t5.modeling_t5 import T5DenseGatedActDense


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


LEAN = {LlamaMLP: LeanLlamaMLP, MistralMLP: LeanMistralMLP, Qwen2MLP: LeanQwen2MLP, Qwen3MLP: LeanQwen3MLP}


def make_lean(language_model: nn.Module) -> None:
    """Let the gated blocks of `language_model` keep less, weights and names unchanged."""
    for module in language_model.modules():
        if type(module) in LEAN and isinstance(module.act_fn, (nn.SiLU, SiLUActivation)):
            module.__class__ = LEAN[type(module)]
        elif isinstance(module, T5DenseGatedActDense) and isinstance(module.act, NewGELUActivation):
            module.act = ACT2FN["gelu_pytorch_tanh"]  # the same in one kernel, which keeps one tensor of four
