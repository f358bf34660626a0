"""The loss of the tokens to be learned, and nothing else's."""

from __future__ import annotations

import torch
from torch import nn


def answer_loss(
    logits: torch.Tensor, labels: torch.Tensor, learned: torch.Tensor, num_items_in_batch: torch.Tensor | int | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, and of each label its loss and whether it is the most likely token.

    The loss is their sum divided by `num_items_in_batch`, or their mean; 0 if there are none. A label of -100 counts
    for nothing.

    Args:
        logits: (rows, seq, vocabulary), or those at `learned`: (supervised, vocabulary).
        labels: (rows, seq).
        learned: (supervised,), where the labels are in (rows, seq) flattened.
    """
    if logits.dim() == 3:
        logits = logits.flatten(0, 1)[learned.to(logits.device)]
    targets = labels.flatten()[learned].to(logits.device)
    losses = nn.functional.cross_entropy(logits.float(), targets, reduction="none")
    items = (targets != -100).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    loss = losses.sum() / (items.to(losses.device) if isinstance(items, torch.Tensor) else items)
    return loss, losses.detach(), logits.detach().argmax(dim=-1) == targets
