"""Rows of all processes side by side, for losses that compare each row with the whole batch.

Every process of the default group must take part, in the same order. In a single process these functions hand back
what they are given.
"""

from __future__ import annotations

import torch
from torch import distributed, nn


def rank_and_size() -> tuple[int, int]:
    """This process' number, and how many there are."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def gather_numbers(numbers: list[int], device: torch.device) -> list[list[int]]:
    """The same list of every process: [process][number]."""
    _, size = rank_and_size()
    if size == 1:
        return [numbers]
    return _all_gather(torch.tensor(numbers, device=device), size).tolist()


def gather_rows(tensor: torch.Tensor, counts: list[int], with_grad: bool = False) -> torch.Tensor:
    """The rows of all processes, those of process 0 first.

    Args:
        tensor: (rows, ...), of the same shape everywhere but for the number of rows.
        counts: rows of each process.
        with_grad: whether a row's gradient is the sum of what all processes make of it, or none.

    Returns:
        (rows of all, ...)
    """
    _, size = rank_and_size()
    if size == 1:
        return tensor if with_grad else tensor.detach()
    missing = max(counts) - len(tensor)
    if missing:
        tensor = torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])])
    gathered = _Gather.apply(tensor) if with_grad else _all_gather(tensor.detach(), size)
    return torch.cat([gathered[rank, :count] for rank, count in enumerate(counts)])


def gather_text(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, counts: list[int], length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts of all processes, padded on the right to `length`: ids and mask, (rows of all, length)."""
    missing = (0, length - input_ids.shape[1])
    both = torch.stack([nn.functional.pad(part, missing) for part in (input_ids, attention_mask.long())], dim=1)
    both = gather_rows(both, counts)
    return both[:, 0], both[:, 1]


def _all_gather(tensor: torch.Tensor, size: int) -> torch.Tensor:
    gathered = tensor.new_empty(size, *tensor.shape)
    distributed.all_gather(list(gathered.unbind()), tensor.contiguous())
    return gathered


class _Gather(torch.autograd.Function):
    """(...) of each process -> (processes, ...); backward sums what all processes made of one's own part."""

    @staticmethod
    def forward(ctx, tensor: torch.Tensor) -> torch.Tensor:
        return _all_gather(tensor, rank_and_size()[1])

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        own = torch.empty_like(grad[0])
        distributed.reduce_scatter(own, list(grad.contiguous().unbind()))
        return own
