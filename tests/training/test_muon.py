"""Muon beside AdamW: which of them moves what, against torch's own, and runs that go on."""

import torch
from torch import nn

from instructblip.training.muon import MuonAndAdamW


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(7, 6)
        self.first, self.second = nn.Linear(6, 9), nn.Linear(9, 4)
        self.queries = nn.Parameter(torch.randn(1, 3, 4))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)

    def gradients(self):
        torch.manual_seed(1)
        for parameter in self.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.randn_like(parameter)


def test_matrices_move_as_by_torchs_muon_and_the_rest_as_by_adamw():
    ours, theirs = Small(), Small()
    both = MuonAndAdamW(ours, 1e-2, weight_decay=0.1, betas=(0.9, 0.98))
    muon = torch.optim.Muon(
        [theirs.first.weight, theirs.second.weight], 1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(
        [
            {"params": [theirs.words.weight, theirs.queries], "weight_decay": 0.1},
            {"params": [theirs.first.bias, theirs.second.bias], "weight_decay": 0.0},
        ],
        1e-2,
        (0.9, 0.98),
    )
    for _ in range(3):
        for model in (ours, theirs):
            model.gradients()
        both.step()
        muon.step()
        adamw.step()
    for (name, moved), (_, expected) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.equal(moved, expected), name
    assert torch.equal(ours.frozen.weight, Small().frozen.weight)


def test_a_loaded_state_goes_on_as_if_never_stopped():
    unbroken, stopped = Small(), Small()
    first = MuonAndAdamW(unbroken, 1e-2)
    before = MuonAndAdamW(stopped, 1e-2)
    for model, optimizer in ((unbroken, first), (stopped, before)):
        model.gradients()
        optimizer.step()
    after = MuonAndAdamW(stopped, 1e-2)
    after.load_state_dict(before.state_dict())
    for model, optimizer in ((unbroken, first), (stopped, after)):
        model.gradients()
        optimizer.step()
    for (name, one), (_, other) in zip(unbroken.named_parameters(), stopped.named_parameters(), strict=True):
        assert torch.equal(one, other), name
