"""Linear layers in float32 on CPUs where those of torch are slow; their results differ by rounding alone.

On x86 torch multiplies float32 matrices with Intel's MKL, which does not use the AVX-512 of AMD's CPUs. oneDNN, which
torch also holds and uses for bfloat16, does (Zen 5: benchmarks/README.md, "Matrix products").
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd.function import FunctionCtx, once_differentiable

SMALLEST = 2**20  # multiplications of a product, below which a call costs more than is won


@cache
def mkl_is_slow() -> bool:
    """Whether torch has both libraries here, and MKL leaves AVX-512 unused."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    cpu_info = Path("/proc/cpuinfo")
    vendor_is_amd = cpu_info.exists() and "AuthenticAMD" in cpu_info.read_text()
    return vendor_is_amd and torch.backends.cpu.get_cpu_capability() == "AVX512"


def linear(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`nn.functional.linear`, by oneDNN where that is faster: (..., in), (out, in) and (out,) to (..., out).

    `torch.backends.mkldnn.enabled = False` turns it off.
    """
    if (
        hidden.device.type != "cpu"
        or torch.compiler.is_compiling()
        or not hidden.dtype == weight.dtype == torch.float32
        or hidden.numel() * weight.shape[0] < SMALLEST
        or type(hidden) not in (torch.Tensor, nn.Parameter)  # neither quantized, nor in parts, nor a stand-in
        or type(weight) not in (torch.Tensor, nn.Parameter)
        or torch.is_autocast_enabled("cpu")
        or not torch.backends.mkldnn.enabled
        or not mkl_is_slow()
    ):
        return nn.functional.linear(hidden, weight, bias)
    if torch.is_grad_enabled():
        return _Linear.apply(hidden, weight, bias)
    return _product(hidden, weight, bias)


class OneDNNLinear(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return linear(input, self.weight, self.bias)


def use_onednn(model: nn.Module) -> None:
    """Let the linear layers of `model` multiply with oneDNN where that is faster, weights and names unchanged.

    Layers whose weights are yet to be loaded, on the meta device, stay: transformers quantizes plain `nn.Linear` only.
    """
    if mkl_is_slow():
        for module in model.modules():
            if (
                type(module) is nn.Linear
                and module.weight.device.type == "cpu"
                and module.weight.dtype == torch.float32
            ):
                module.__class__ = OneDNNLinear


def _product(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    # The operator that torch.compile chooses for such layers; it knows no gradient.
    return torch.ops.mkldnn._linear_pointwise(hidden, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        trains, gradient_wanted = ctx.needs_input_grad[1], ctx.needs_input_grad[0]
        ctx.save_for_backward(hidden if trains else None, weight if gradient_wanted else None)
        return _product(hidden, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        of_hidden = None if weight is None else _product(gradient, weight.t())
        of_weight = None if hidden is None else _product(rows.t(), hidden.reshape(-1, hidden.shape[-1]).t())
        of_bias = rows.sum(dim=0) if ctx.needs_input_grad[2] else None
        return of_hidden, of_weight, of_bias
