"""Rows that time a training step: forward, backward and AdamW over the bridge's parameters."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from batches import EQUAL, MIXED, VQA_LIKE, Batch, new_batch
from comparisons import Comparison, ResultsDifferError, Row, contestants, tolerance
from model_pairs import ModelPair, Setting
from torch import nn


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW as the step runs it. A learning rate of 0 does the same work and keeps both models' weights equal."""
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0)


def train_step(
    model: nn.Module, inputs: dict[str, Any], optimizer: torch.optim.Optimizer, setting: Setting
) -> torch.Tensor:
    with setting.autocast():
        loss = model(**inputs).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def tuned_inputs(pair_setting: Setting, batch: Batch) -> dict[str, Any]:
    """The peer's arguments with everything that it offers for this work: no cache, logits of answer columns only."""
    inputs = {**batch.for_peer(), "use_cache": False}
    if pair_setting.language == "llama" and batch.labels is not None:
        shifted = nn.functional.pad(batch.labels[:, 1:], (0, 1), value=-100)
        columns = (shifted != -100).any(dim=0)
        inputs.update(logits_to_keep=columns, shift_labels=shifted[:, columns])
    return inputs


def image_embeds_of(pair: ModelPair, batch: Batch) -> torch.Tensor:
    with torch.no_grad(), pair.setting.autocast():
        return pair.ours.encode_images(batch.pixel_values).last_hidden_state


def prepare(
    pair: ModelPair, lengths: list[tuple[int, int]], rows_per_image: int = 1, cached: bool = False
) -> Comparison:
    batch = new_batch(pair.setting, lengths, rows_per_image)
    peer_inputs, tuned = batch.for_peer(), tuned_inputs(pair.setting, batch)
    embeds = image_embeds_of(pair, batch) if cached else None
    ours_inputs, bucketed = batch.for_ours(embeds), batch.for_ours(embeds, bucketed=True)
    peer_optimizer, ours_optimizer = optimizer_of(pair.peer), optimizer_of(pair.ours)
    compiled: list[Callable] = []
    if pair.setting.compile is not None:
        compiled = [
            partial(train_step, pair.compiled_peer, tuned, peer_optimizer, pair.setting),
            partial(train_step, pair.compiled_ours, bucketed, ours_optimizer, pair.setting),
        ]
    padded, real = batch.text["attention_mask"].numel(), int(batch.text["attention_mask"].sum())
    return Comparison(
        contestants(
            partial(train_step, pair.peer, peer_inputs, peer_optimizer, pair.setting),
            partial(train_step, pair.tuned_peer, tuned, peer_optimizer, pair.setting),
            partial(train_step, pair.ours, ours_inputs, ours_optimizer, pair.setting),
            *compiled,
        ),
        partial(check, pair, peer_inputs, tuned, [(pair.ours, ours_inputs), (pair.compiled_ours, bucketed)]),
        note=f"{len(lengths)} rows, {len(batch.pixel_values)} images, {padded} padded and {real} real prompt tokens"
        if pair.ours.config.is_encoder_decoder
        else f"{len(lengths)} rows, {len(batch.pixel_values)} images, {padded} padded and {real} real tokens",
        rows=len(lengths),
    )


def check(
    pair: ModelPair,
    peer_inputs: dict[str, Any],
    tuned: dict[str, Any],
    ours_inputs: list[tuple[nn.Module | None, dict[str, Any]]],
) -> str:
    """Compare losses and gradients without dropout, which no two models draw alike."""
    expected, gradients = _loss_and_gradients(pair, pair.peer, peer_inputs)
    worst_loss, worst_gradient = 0.0, 0.0
    others: list[tuple[nn.Module, dict[str, Any]]] = [(pair.tuned_peer, tuned)]
    # In eval mode ours would also return all logits; training computes those of the answers only.
    others += [(model, {**inputs, "skip_logits": True}) for model, inputs in ours_inputs if model is not None]
    for model, inputs in others:
        loss, found = _loss_and_gradients(pair, model, inputs)
        difference = sum(float((gradients[n] - found.get(n, 0.0)).square().sum()) for n in gradients) ** 0.5
        norm = sum(float(gradient.square().sum()) for gradient in gradients.values()) ** 0.5
        worst_loss = max(worst_loss, abs(loss - expected) / abs(expected))
        worst_gradient = max(worst_gradient, difference / norm)
    if not max(worst_loss, worst_gradient) <= tolerance(pair):
        raise ResultsDifferError(f"relative difference {worst_loss:.1e} of losses, {worst_gradient:.1e} of gradients")
    return f"loss {worst_loss:.0e}, gradients {worst_gradient:.0e}"


def _loss_and_gradients(
    pair: ModelPair, model: nn.Module, inputs: dict[str, Any]
) -> tuple[float, dict[str, torch.Tensor]]:
    model.eval()
    with pair.setting.autocast():
        loss = model(**inputs).loss
    loss.backward()
    gradients = {
        n.removeprefix("_orig_mod."): p.grad.float().clone()  # the compiler's name for the model
        for n, p in model.named_parameters()
        if p.grad is not None
    }
    model.zero_grad(set_to_none=True)
    model.train()
    return float(loss.detach()), gradients


def _row(name: str, title: str, apart: bool = False, **kwargs: Any) -> Row:
    run: Callable[[ModelPair], Comparison] = partial(prepare, **kwargs)
    return Row(f"train-{name}", f"Training step, {title}", apart, training=True, prepare=run)


ROWS = [
    _row("equal", "distinct images, equal lengths", lengths=EQUAL),
    _row("vqa", "VQA-like lengths", lengths=VQA_LIKE),
    _row("mixed", "mixed lengths", lengths=MIXED),
    _row("shared", "images shared by 4 rows", apart=True, lengths=EQUAL, rows_per_image=4),
    _row("cached", "cached features", apart=True, lengths=EQUAL, cached=True),
    _row("vqa-cached", "VQA-like lengths, cached features", apart=True, lengths=VQA_LIKE, cached=True),
    _row("mixed-cached", "mixed lengths, cached features", apart=True, lengths=MIXED, cached=True),
]
