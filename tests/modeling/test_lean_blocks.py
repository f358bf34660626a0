"""Lean feed-forward blocks compute what transformers' blocks do, and keep less."""

import copy
import pickle

import pytest
import torch
from torch.autograd import gradcheck
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaMLP
from transformers.models.t5.modeling_t5 import T5Config, T5DenseGatedActDense

from instructblip.modeling.lean_blocks import GatedProduct, LeanLlamaMLP, make_lean
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
