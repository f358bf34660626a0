"""The mask of packed rows against the dense mask of the same rows."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from instructblip.modeling.packed_attention import PackedRowsMask
from instructblip.modeling.packing import additive_mask, pack_rows


@pytest.mark.parametrize("mask", [[[0, 1, 1, 0, 1], [1, 1, 0, 0, 0]], [[1, 1], [1, 1]]])
def test_packed_rows_attend_as_under_a_dense_mask(mask):
    mask = torch.tensor(mask)
    row = mask.nonzero()[:, 0]
    dense = additive_mask((row[:, None] == row[None]).tril()[None, None], torch.float32)
    query, key, value = torch.randn(3, 1, 2, len(row), 8).requires_grad_().unbind(0)
    expected = scaled_dot_product_attention(query, key, value, attn_mask=dense, scale=0.3)
    packed = pack_rows(torch.zeros(*mask.shape, 4), mask, torch.full_like(mask, -100)).attention_mask
    assert isinstance(packed, PackedRowsMask)
    found = scaled_dot_product_attention(query, key, value, attn_mask=packed, scale=0.3)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    for gradient, wanted in zip(
        torch.autograd.grad(found, (query, key, value), weights),
        torch.autograd.grad(expected, (query, key, value), weights),
        strict=True,
    ):
        torch.testing.assert_close(gradient, wanted)


def test_packed_tokens_are_not_kept_beside_the_rows_that_they_fill():
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    packed = pack_rows(torch.zeros(2, 3, 4), mask, torch.full_like(mask, -100)).attention_mask
    query, key, value = (torch.randn(1, 2, 5, 8, requires_grad=True) for _ in range(3))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        scaled_dot_product_attention(query, key, value, attn_mask=packed)
    tokens = {tensor.untyped_storage().data_ptr() for tensor in (query, key, value)}
    assert kept
    assert not [tensor for tensor in kept if tensor.untyped_storage().data_ptr() in tokens]


def test_taken_for_a_dense_mask_it_gives_nan():
    packed = pack_rows(torch.zeros(2, 3, 4), torch.ones(2, 3), torch.full((2, 3), -100)).attention_mask
    assert packed.shape == (1, 1, 6, 6)
    assert (torch.zeros(1, 2, 6, 6) + packed).isnan().all()


def test_one_long_row_among_short_ones_gets_a_dense_mask():
    mask = torch.zeros(9, 30, dtype=torch.long)
    mask[:, :2] = 1
    mask[0] = 1  # 9 * 30**2 is more than 2 * 46**2
    packed = pack_rows(torch.zeros(9, 30, 4), mask, torch.full((9, 30), -100))
    assert not isinstance(packed.attention_mask, PackedRowsMask)
    mask[:, :20] = 1
    packed = pack_rows(torch.zeros(9, 30, 4), mask, torch.full((9, 30), -100))
    assert isinstance(packed.attention_mask, PackedRowsMask)
