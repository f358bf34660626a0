"""The Q-Former: the same numbers as transformers' at less work, and attention maps."""

import pytest
import torch
from transformers.models.instructblip.configuration_instructblip import InstructBlipQFormerConfig
from transformers.models.instructblip.modeling_instructblip import InstructBlipQFormerModel

from instructblip import InstructBLIPQFormerConfig, InstructBLIPQFormerModel

SHAPE = dict(
    vocab_size=60, hidden_size=24, num_hidden_layers=4, num_attention_heads=4, intermediate_size=32,
    max_position_embeddings=64, encoder_hidden_size=20, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip
TOLERANCE = dict(atol=1e-6, rtol=1e-5)


@pytest.fixture
def qformers():
    """transformers' and ours with the same weights."""
    theirs = InstructBlipQFormerModel(InstructBlipQFormerConfig(**SHAPE)).eval()
    for parameter in theirs.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    ours = InstructBLIPQFormerModel(InstructBLIPQFormerConfig(**SHAPE)).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.fixture
def inputs():
    queries = torch.randn(1, 5, 24).expand(3, -1, -1)
    image, ids = torch.randn(3, 7, 20), torch.randint(3, 60, (3, 6))
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] + [0] * 5])
    return queries, image, ids, mask


def theirs_output(theirs, queries, image, ids, mask):
    mask = torch.cat([torch.ones(len(ids), queries.shape[1], dtype=torch.long), mask], dim=1)
    output = theirs(input_ids=ids, attention_mask=mask, query_embeds=queries, encoder_hidden_states=image)
    return output.last_hidden_state[:, : queries.shape[1]]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_query_outputs_equal_those_of_transformers(qformers, inputs, padded, attention):
    theirs, ours = qformers
    ours.set_attn_implementation(attention)
    queries, image, ids, mask = inputs
    mask = mask if padded else torch.ones_like(mask)
    output = ours(queries, image, ids, mask).last_hidden_state
    torch.testing.assert_close(output, theirs_output(theirs, queries, image, ids, mask), **TOLERANCE)


def test_gradients_equal_those_of_transformers_and_the_unread_part_has_none(qformers, inputs):
    theirs, ours = qformers
    theirs_output(theirs, *inputs).square().sum().backward()
    queries, image, ids, mask = inputs
    ours(queries, image, ids, mask).last_hidden_state.square().sum().backward()
    unread = {id(parameter) for parameter in ours.unread_parameters()}
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        if id(parameter) in unread:
            assert parameter.grad is None, name
            assert expected[name].grad is None or not expected[name].grad.any(), name
        else:
            torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-4, rtol=1e-4, msg=name)
    assert len(unread) == 6  # two linear layers and a LayerNorm


def test_without_text_it_is_the_blip2_qformer(qformers, inputs):
    theirs, ours = qformers
    queries, image, _, _ = inputs
    expected = theirs(
        input_ids=None, attention_mask=torch.ones(3, 5), query_embeds=queries, encoder_hidden_states=image
    )
    torch.testing.assert_close(ours(queries, image).last_hidden_state, expected.last_hidden_state, **TOLERANCE)


def test_an_instruction_padded_on_the_left_equals_it_padded_on_the_right(qformers, inputs):
    _, ours = qformers
    queries, image, ids, mask = inputs
    expected = ours(queries, image, ids, mask).last_hidden_state
    left_ids, left_mask = torch.zeros_like(ids), torch.zeros_like(mask)
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        left_ids[row, 6 - length :], left_mask[row, 6 - length :] = ids[row, :length], 1
    torch.testing.assert_close(ours(queries, image, left_ids, left_mask).last_hidden_state, expected, **TOLERANCE)


def test_what_padding_holds_changes_nothing(qformers, inputs):
    _, ours = qformers
    queries, image, ids, mask = inputs
    expected = ours(queries, image, ids, mask).last_hidden_state
    changed = ids.masked_fill(mask == 0, 59)
    torch.testing.assert_close(ours(queries, image, changed, mask).last_hidden_state, expected, **TOLERANCE)


def test_an_image_is_projected_once_however_many_instructions_ask_about_it(qformers, inputs):
    _, ours = qformers
    queries, image, ids, mask = inputs
    index = torch.tensor([1, 1, 0])
    expected = ours(queries, image[index], ids, mask).last_hidden_state
    projected = []
    for layer in ours.encoder.layer[::2]:
        for part in (layer.crossattention.attention.key, layer.crossattention.attention.value):
            part.register_forward_hook(lambda _, inputs, output: projected.append(output.shape[0]))
    output = ours(queries, image[:2], ids, mask, image_index=index).last_hidden_state
    torch.testing.assert_close(output, expected, **TOLERANCE)
    assert projected == [2, 2, 2, 2]  # two layers with cross-attention, keys and values, two images for three uses


def test_cross_attention_is_in_every_second_layer(qformers):
    _, ours = qformers
    assert [hasattr(layer, "crossattention") for layer in ours.encoder.layer] == [True, False, True, False]


def test_the_last_layer_computes_no_text(qformers, inputs):
    _, ours = qformers
    queries, image, ids, mask = inputs
    lengths = []
    last = ours.encoder.layer[-1]
    last.attention.attention.query.register_forward_hook(lambda _, args, output: lengths.append(output.shape[1]))
    last.intermediate.register_forward_hook(lambda *_: pytest.fail("the last text feed-forward ran"))
    ours(queries, image, ids, mask)
    assert lengths == [5]


def test_attention_maps_are_distributions_over_patches(qformers, inputs):
    _, ours = qformers
    ours.set_attn_implementation("eager")
    queries, image, ids, mask = inputs
    output = ours(queries, image, ids, mask, output_attentions=True, output_hidden_states=True)
    assert [tuple(weights.shape) for weights in output.cross_attentions] == [(3, 4, 5, 7)] * 2
    assert [tuple(weights.shape) for weights in output.attentions] == [(3, 4, 11, 11)] * 3 + [(3, 4, 5, 11)]
    for weights in (*output.cross_attentions, *output.attentions):
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))
    assert not output.attentions[0][1, :, :, 9:].any()  # two padded tokens of row 1 are not read
    torch.testing.assert_close(output.hidden_states[-1], output.last_hidden_state)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="hidden_size 24 is not a multiple of num_attention_heads 5"):
        InstructBLIPQFormerModel(InstructBLIPQFormerConfig(**{**SHAPE, "num_attention_heads": 5}))
