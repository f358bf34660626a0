"""Muon for a bridge: fewer steps than AdamW where the Q-Former has much to learn."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import AdamW, Muon, Optimizer


class MuonAndAdamW(Optimizer):
    """torch's Muon for the matrices that a model trains, AdamW for its embeddings, query tokens, biases and norms.

    Muon (Jordan et al. 2024) makes the momentum of a matrix orthogonal before it is applied. Updates are scaled to the
    size of AdamW's (Liu et al. 2025, arXiv 2502.16982), so one learning rate serves both.

    Args:
        model: all that requires a gradient is trained.
        learning_rate: of both.
        weight_decay: of everything with two or more dimensions, biases excepted.
        betas, eps: AdamW's.
    """

    def __init__(
        self,
        model: nn.Module,
        learning_rate: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ):
        embeddings = {id(each.weight) for each in model.modules() if isinstance(each, nn.Embedding)}
        matrices, others, vectors = [], [], []
        for parameter in model.parameters():
            if not parameter.requires_grad:
                continue
            if parameter.ndim == 2 and id(parameter) not in embeddings:
                matrices.append(parameter)
            else:
                (others if parameter.ndim > 1 else vectors).append(parameter)
        groups = [{"params": others, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.muon = Muon(matrices, learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self.adamw = AdamW([group for group in groups if group["params"]], learning_rate, betas, eps)
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], {})

    def step(self, closure: Any = None) -> None:
        """One step of both.

        Args:
            closure: not supported.
        """
        # A checkpoint that was loaded has put new groups and a new state here.
        self.muon.param_groups, self.adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        for part in (self.muon, self.adamw):
            part.state = self.state
            part.step()
