"""Lean parts compute what transformers' parts do, and keep less."""

import contextlib
import copy
import pickle

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaMLP
from transformers.models.t5.modeling_t5 import T5Config, T5DenseGatedActDense

from instructblip.modeling import modeling_instruct_blip, vision_tower
from instructblip.modeling.lean_blocks import LEAN_NORMS, GatedProduct, LeanLlamaMLP, make_lean
from instructblip.modeling.packing import last_feed_forward_at


def _blocks():
    t5 = T5Config(d_model=8, d_ff=16, feed_forward_proj="gated-gelu", dropout_rate=0.0)
    return [LlamaMLP(LlamaConfig(hidden_size=8, intermediate_size=16, num_attention_heads=2)), T5DenseGatedActDense(t5)]


def _bytes_kept(run):
    kept = {}

    def remember(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        output = run()
    return sum(kept.values()), output


@pytest.mark.parametrize("block", _blocks(), ids=lambda block: type(block).__name__)
def test_a_lean_block_gives_the_same_and_keeps_less(block):
    block.requires_grad_(False)
    lean = copy.deepcopy(block)
    make_lean(lean)
    hidden = torch.randn(64, 8, requires_grad=True)
    kept, expected = _bytes_kept(lambda: block(hidden))
    kept_lean, found = _bytes_kept(lambda: lean(hidden))
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    wanted = torch.autograd.grad(expected, hidden, weights)
    torch.testing.assert_close(torch.autograd.grad(found, hidden, weights), wanted)
    assert kept_lean < 0.8 * kept


def test_the_gradient_of_the_gated_product_is_right():
    gate, up = torch.randn(2, 3, 4, dtype=torch.float64).requires_grad_().unbind(0)
    assert gradcheck(GatedProduct.apply, (gate, up))


def test_a_block_with_another_activation_stays_as_it_is():
    block = LlamaMLP(LlamaConfig(hidden_size=8, intermediate_size=16, num_attention_heads=2, hidden_act="gelu"))
    make_lean(block)
    assert type(block) is LlamaMLP


def test_a_lean_block_can_be_pickled():
    block = _blocks()[0]
    make_lean(block)
    assert type(pickle.loads(pickle.dumps(block))) is LeanLlamaMLP


def test_the_last_feed_forward_block_runs_at_kept_positions_only(tiny_model):
    language_model = tiny_model("llama").language_model
    block = language_model.model.layers[-1].mlp
    keep = torch.tensor([[False, True, False, True, True]])
    hidden = torch.randn(1, 5, 40)
    everywhere = block(hidden)
    seen = []
    block.gate_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    with last_feed_forward_at(language_model, keep[0].nonzero()[:, 0], 5):
        found = block(hidden)
    assert seen == [(1, 3, 40)]
    torch.testing.assert_close(found[keep], everywhere[keep])
    assert found[~keep].abs().max() == 0
    torch.testing.assert_close(block(hidden), everywhere)  # as before, afterwards


# ---- norms


def _norms(kind, dtype):
    """transformers' norm with weights of its own, and the lean one that holds the same."""
    norm = kind(8, eps=1e-3).to(dtype)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
    lean = nn.Sequential(copy.deepcopy(norm))
    make_lean(lean)
    assert type(lean[0]) is LEAN_NORMS[kind]
    return norm, lean[0]


@pytest.mark.parametrize("kind", LEAN_NORMS, ids=lambda kind: kind.__name__)
def test_a_lean_norm_gives_the_same(kind):
    norm, lean = _norms(kind, torch.float64)
    hidden = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
    expected, found = norm(hidden), lean(hidden)
    # transformers' computes in float32 at most.
    torch.testing.assert_close(found, expected.double(), atol=1e-6, rtol=1e-6)
    weights = torch.randn_like(found)
    wanted = torch.autograd.grad(expected.double(), (hidden, norm.weight), weights)
    torch.testing.assert_close(torch.autograd.grad(found, (hidden, lean.weight), weights), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", LEAN_NORMS, ids=lambda kind: kind.__name__)
def test_a_lean_norm_rounds_to_the_precision_of_its_input(kind, autocast):
    norm, lean = _norms(kind, torch.bfloat16)
    hidden = torch.randn(64, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = lean(hidden)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), norm.float()(hidden.float()), atol=0, rtol=2**-8)


@pytest.mark.parametrize("kind", LEAN_NORMS, ids=lambda kind: kind.__name__)
def test_a_lean_norm_leaves_mixed_precisions_to_transformers(kind):
    """T5's `wo` may be float32 in a model of half precision, and its norms bring that back."""
    norm, lean = _norms(kind, torch.bfloat16)
    hidden = torch.randn(3, 8)
    torch.testing.assert_close(lean(hidden), norm(hidden), atol=0, rtol=0)


# ---- precision


@pytest.mark.parametrize("language", ["t5", "llama", "gpt2"])
def test_frozen_parts_in_the_precision_of_autocast_run_without_it(
    language, tiny_model, make_batch, mixed_rows, monkeypatch
):
    model = tiny_model(language)
    model.freeze_backbones(language_model_dropout=False)
    parts = {
        "tower": model.vision_model.encoder.layers[0],
        "qformer": model.qformer.encoder.layer[0],
        "language": model.language_model,
    }
    seen = {}
    for name, part in parts.items():
        part.register_forward_pre_hook(
            lambda *_, name=name: seen.update({name: torch.is_autocast_enabled("cpu")}), with_kwargs=True
        )
    batch = make_batch(mixed_rows, language, labels=True)

    def step():
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**batch, skip_logits=True).loss
        loss.backward()
        gradient = model.query_tokens.grad.clone()
        model.zero_grad()
        return loss.detach(), gradient

    step()
    assert seen == {"tower": True, "qformer": True, "language": True}  # all is float32
    bridge = {id(parameter) for _, parameter in model.named_bridge_parameters()}
    for parameter in model.parameters():
        if id(parameter) not in bridge:
            parameter.data = parameter.data.bfloat16()
    loss, gradient = step()
    assert seen == {"tower": False, "qformer": True, "language": False}
    for module in (modeling_instruct_blip, vision_tower):
        monkeypatch.setattr(module, "own_precision", lambda *_: contextlib.nullcontext())
    expected, wanted = step()
    assert seen == {"tower": True, "qformer": True, "language": True}
    torch.testing.assert_close(loss, expected, rtol=1e-2, atol=0)
    torch.testing.assert_close(gradient, wanted, rtol=0, atol=0.05 * wanted.abs().max().item())
    # One weight in another precision, as an adapter's, and autocast has to bring them together.
    monkeypatch.undo()
    names = model.language_model.named_parameters()
    weight = next(weight for name, weight in names if "att" in name.lower() and weight.dim() == 2)
    weight.data = weight.data.float()
    step()
    assert seen == {"tower": False, "qformer": True, "language": True}
