"""The frozen language model's matrices in eight-bit floating point, which takes half of the memory of bfloat16.

torchao's layers of this kind keep a bfloat16 copy for the backward pass, or compute the gradient of a weight that is
frozen; here there is neither.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import FunctionCtx, once_differentiable

from instructblip.modeling import InstructBLIPForConditionalGeneration
from instructblip.modeling.onednn_linear import OneDNNLinear

FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max
MULTIPLE = 16  # of both sides of a matrix that GPUs multiply in this precision
LEAST_ROWS = 257


class Float8Linear(nn.Module):
    """A frozen linear layer: (..., in) to (..., out), its weight in float8 (e4m3) with one scale for each output.

    On a GPU that can (compute capability 8.9 and above: Ada, Hopper), inputs and gradients of more than 256 tokens are
    rounded to float8 as well, with one scale for each token, and multiplied in it. Elsewhere the weight becomes what
    the input is, anew in each pass.

    Both parameters are bits in integers, which no change of precision touches, and parameters because DDP sends buffers
    in every step.

    Attributes:
        weight: (out, in), as int8. T5 reads the dtype of its layers, and knows int8 as quantized.
        scale: (out, 1), float32 as int32.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        weight, scale = to_float8_rows(linear.weight.detach())
        self.weight = nn.Parameter(weight.view(torch.int8), requires_grad=False)
        self.scale = nn.Parameter(scale.view(torch.int32), requires_grad=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        device = hidden.device.type
        if torch.is_autocast_enabled(device):
            hidden = hidden.to(torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):
            output = _Product.apply(hidden, self.weight.view(FLOAT8), self.scale.view(torch.float32))
            return output if self.bias is None else output + self.bias.to(output.dtype)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        raise ValueError("a language model in float8 is not saved: save with bridge_only=True")


class _Product(torch.autograd.Function):
    """hidden @ weight.T. The weight is frozen, so that only it is kept for the gradient of `hidden`."""

    @staticmethod
    def forward(ctx: FunctionCtx, hidden: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(weight, scale)
        if not multiplies_float8(hidden):
            return nn.functional.linear(hidden, _from_float8(weight, scale, hidden.dtype))
        return multiply(hidden, weight.t(), scale.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        weight, scale = ctx.saved_tensors
        if not multiplies_float8(gradient):
            return gradient @ _from_float8(weight, scale, gradient.dtype), None, None
        # The scales are of what is summed over here, so they go with the gradient.
        scaled = gradient * scale.t().to(gradient.dtype)
        by_column = weight.t().contiguous().t()
        return multiply(scaled, by_column, scale.new_ones(1, weight.shape[1])), None, None


def to_float8_rows(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, columns) in float8, and float32 scales (rows, 1) to multiply it with."""
    largest = matrix.abs().amax(dim=1, keepdim=True).float()
    scale = (largest / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
    return (matrix.float() / scale).clamp(-LARGEST, LARGEST).to(FLOAT8), scale


def multiply(hidden: torch.Tensor, matrix: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """(..., in), rounded to float8, times `matrix` (in, out), float8 and stored by columns, with scales (1, out)."""
    rows, row_scale = to_float8_rows(hidden.flatten(0, -2))
    # bfloat16 is what all of these GPUs can give with scales by rows.
    output = torch._scaled_mm(rows, matrix, scale_a=row_scale, scale_b=scale.contiguous(), out_dtype=torch.bfloat16)
    return output.to(hidden.dtype).view(*hidden.shape[:-1], matrix.shape[1])


def multiplies_float8(hidden: torch.Tensor) -> bool:
    """Whether (..., in) is on a GPU that can, and has enough rows: cuBLAS refuses fewer (pytorch/ao#4582)."""
    if hidden.device.type != "cuda" or torch.version.hip is not None:
        return False
    return hidden.shape[:-1].numel() >= LEAST_ROWS and torch.cuda.get_device_capability(hidden.device) >= (8, 9)


def _from_float8(weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return weight.to(dtype) * scale.to(dtype)


def hold_in_float8(model: InstructBLIPForConditionalGeneration) -> None:
    """Turn the linear layers of the language model into `Float8Linear`, in place; not its head.

    For a model on one device, or that DDP copies to several, with a bridge-only release: it cannot be saved whole, nor
    get adapters, nor be cut by FSDP or ZeRO.

    Raises:
        ValueError: it has adapters, or no such layers, as GPT-2 or a language model that is quantized already.
    """
    if model.has_adapters:
        raise ValueError("the model has adapters, which float8 would freeze: hold it in float8 without them")
    head = model.get_output_embeddings()
    layers = [
        (parent, name, child)
        for parent in model.language_model.modules()
        for name, child in parent.named_children()
        if type(child) in (nn.Linear, OneDNNLinear) and child is not head
    ]
    layers = [layer for layer in layers if not (layer[2].in_features % MULTIPLE or layer[2].out_features % MULTIPLE)]
    if not layers:
        raise ValueError(
            f"the language model ({model.config.text_config.model_type}) has no linear layers to hold in float8, or "
            "they are quantized already"
        )
    while layers:  # one by one, so that the old weights go
        parent, name, child = layers.pop()
        setattr(parent, name, Float8Linear(child))
        del child
