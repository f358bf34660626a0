"""Rows without padding, worked by hand."""

import pytest
import torch

from instructblip.modeling.packing import align, attention_as, next_labels, pack_rows, positions_from_mask

MASK = torch.tensor([[0, 1, 1, 0, 1], [1, 1, 0, 0, 0]])


def test_positions_count_real_tokens():
    assert positions_from_mask(MASK)[MASK.bool()].tolist() == [0, 1, 2, 0, 1]
    assert positions_from_mask(MASK.bool()).tolist() == positions_from_mask(MASK).tolist()


def test_the_next_label_lies_beyond_padding():
    labels = torch.tensor([[7, 10, 11, 7, 12], [20, 21, 7, 7, 7]])  # 7 at padding is never used
    assert next_labels(labels, MASK).tolist() == [[-100, 11, 12, -100, -100], [21, -100, -100, -100, -100]]


def test_align_moves_padding_to_one_side_and_keeps_order():
    values = torch.arange(10).view(2, 5)
    embeds = values[..., None].expand(-1, -1, 3)
    mask, left, left_embeds = align(MASK, "left", values, embeds)
    assert mask.tolist() == [[0, 0, 1, 1, 1], [0, 0, 0, 1, 1]]
    assert left[0, 2:].tolist() == [1, 2, 4]
    assert left[1, 3:].tolist() == [5, 6]
    assert torch.equal(left_embeds[..., 2], left)
    mask, right = align(MASK, "right", values)
    assert mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]
    assert right[0, :3].tolist() == [1, 2, 4]


def test_packed_rows_see_themselves_only_and_start_at_position_zero():
    embeds = torch.arange(10.0).view(2, 5, 1)
    labels = torch.tensor([[-100, -100, 31, -100, 32], [40, 41, -100, -100, -100]])
    packed = pack_rows(embeds, MASK, labels, dense_mask=True)
    assert packed.inputs_embeds.flatten().tolist() == [1, 2, 4, 5, 6]
    assert packed.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    # 40 labels the first token of row 1, which is no token's next: nobody learns it, least of all row 0's last token
    assert packed.labels.tolist() == [[31, 32, -100, 41, -100]]
    assert (packed.attention_mask[0, 0] == 0).int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]


def test_the_attention_implementation_comes_back_after_an_error(tiny_model):
    language_model = tiny_model("llama").language_model
    before = language_model.config._attn_implementation

    def fail():
        with attention_as(language_model, "eager"):
            assert language_model.model.config._attn_implementation == "eager"
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert language_model.config._attn_implementation == before == "sdpa"
