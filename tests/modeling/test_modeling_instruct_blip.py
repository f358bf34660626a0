"""The model: a sample alone equals the same sample in any batch; what trains, what is computed, what is refused."""

import copy

import pytest
import torch

KINDS = ["t5", "llama"]
SIDES = ["right", "left", "inner", "before answer"]
TOLERANCE = dict(atol=1e-5, rtol=1e-5)


def real_logits(model, output, batch, row):
    """Logits of a row's real positions: of the target for an encoder-decoder, else of the prompt and the answer."""
    mask = batch["labels"][row] != -100 if model.config.is_encoder_decoder else batch["attention_mask"][row].bool()
    return output.logits[row][mask]


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# ---- alone == in any batch


@pytest.mark.parametrize("qformer_side", ["right", "left"])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("language", KINDS)
def test_a_sample_alone_equals_itself_in_a_batch(
    language, side, qformer_side, tiny_model, make_batch, mixed_rows
):
    model = tiny_model(language)
    batch = make_batch(mixed_rows, language, side, qformer_side, labels=True, extra=3)
    together = model(**batch)
    losses, tokens = [], []
    for number, row in enumerate(mixed_rows):
        alone_batch = make_batch([row], language, labels=True)
        alone = model(**alone_batch)
        torch.testing.assert_close(
            real_logits(model, together, batch, number), real_logits(model, alone, alone_batch, 0), **TOLERANCE
        )
        losses.append(alone.loss)
        tokens.append(len(row.answer))
    mean = sum(loss * count for loss, count in zip(losses, tokens, strict=True)) / sum(tokens)
    torch.testing.assert_close(together.loss, mean, **TOLERANCE)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("language", KINDS)
def test_training_loss_and_gradients_equal_those_with_padding_and_all_logits(
    language, side, tiny_model, make_batch, mixed_rows
):
    model = tiny_model(language)  # dropout is 0 everywhere, so that train mode differs only in what is computed
    reference = model(**make_batch(mixed_rows, language, labels=True))
    reference.loss.backward()
    expected = gradients(model)
    model.zero_grad()
    model.train()
    output = model(**make_batch(mixed_rows, language, side, labels=True, extra=2))
    output.loss.backward()
    assert output.logits is None
    torch.testing.assert_close(output.loss, reference.loss, **TOLERANCE)
    torch.testing.assert_close(gradients(model), expected, **TOLERANCE)
