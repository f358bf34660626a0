"""Sizes that the host knows: the same results, nothing to wait for, and shapes that compile."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

LANGUAGES = ("t5", "llama", "gpt2")
TOLERANCE = dict(atol=1e-5, rtol=1e-5)


def sizes_of(batch, more=0):
    """Without `more` exact, and then with the length of the longest row."""
    longest = {} if more else {"longest": int(batch["attention_mask"].sum(dim=1).max())}
    return {
        **longest,
        "tokens": int(batch["attention_mask"].sum()) + more,
        "supervised": int((batch["labels"] != -100).sum()) + more,
        "uses": int((batch["image_index"] >= 0).sum()) + more,
    }


def loss_and_gradients(model, **inputs):
    output = model(**inputs, skip_logits=True)
    output.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return output, gradients


@pytest.fixture
def bridge_model(tiny_model):
    def make(language):
        model = tiny_model(language)
        model.freeze_backbones()
        return model.eval()  # without dropout, which draws by shape

    return make


@pytest.mark.parametrize("side", ["right", "left", "before answer"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_sizes_change_nothing_even_if_they_are_too_large(language, side, bridge_model, make_batch, mixed_rows):
    model = bridge_model(language)
    batch = make_batch(mixed_rows, language, side, labels=True, extra=3)
    expected, gradients = loss_and_gradients(model, **batch)
    for more in (0, 7, 10_000):
        found, others = loss_and_gradients(model, **batch, sizes=sizes_of(batch, more))
        torch.testing.assert_close(found.loss, expected.loss, **TOLERANCE)
        torch.testing.assert_close(others, gradients, **TOLERANCE)
        known = len(expected.token_losses)
        torch.testing.assert_close(found.token_losses[:known], expected.token_losses, **TOLERANCE)
        assert torch.equal(found.token_hits[:known], expected.token_hits)
        assert not found.token_losses[known:].any()
        assert not found.token_hits[known:].any()


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_host_never_waits_for_the_device(language, bridge_model, make_batch, mixed_rows):
    """Nothing on the meta device has a value, so that whatever asks for one fails."""
    model = bridge_model(language).train().to("meta")
    batch = make_batch(mixed_rows, language, labels=True)
    sizes = sizes_of(batch, more=2)
    batch = {name: tensor.to("meta") for name, tensor in batch.items()}
    output = model(**batch, sizes=sizes, num_items_in_batch=torch.tensor(9, device="meta"))
    output.loss.backward()
    assert model.query_tokens.grad.shape == model.query_tokens.shape
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        model(**batch)


@pytest.mark.parametrize(
    ("name", "change"), [("tokens", -1), ("supervised", -1), ("uses", -1), ("longest", -1), ("tokens", 1)]
)
def test_sizes_that_do_not_fit_are_refused(name, change, bridge_model, make_batch, mixed_rows):
    batch = make_batch(mixed_rows, "llama", labels=True)
    sizes = sizes_of(batch)
    sizes[name] += change
    with pytest.raises(RuntimeError, match="than its `sizes` say: count again"):
        bridge_model("llama")(**batch, skip_logits=True, sizes=sizes)


@pytest.mark.parametrize("language", ["t5", "llama"])
def test_a_training_step_compiles_into_one_graph(language, bridge_model, make_batch, mixed_rows):
    model = bridge_model(language)
    batch = make_batch(mixed_rows, language, labels=True, extra=2)
    batch["sizes"] = sizes_of(batch, more=1)
    expected, gradients = loss_and_gradients(model, **batch)
    torch._dynamo.reset()
    found, others = loss_and_gradients(torch.compile(model, fullgraph=True, backend="aot_eager"), **batch)
    torch.testing.assert_close(found.loss, expected.loss, **TOLERANCE)
    others = {name.removeprefix("_orig_mod."): gradient for name, gradient in others.items()}
    torch.testing.assert_close(others, gradients, **TOLERANCE)


@pytest.mark.parametrize("language", ["t5", "llama"])
def test_one_graph_serves_all_lengths(language, bridge_model, make_batch, mixed_rows):
    model = bridge_model(language)
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter)
    for more, extra in enumerate((1, 4, 6, 11), start=1):
        batch = make_batch(mixed_rows, language, labels=True, extra=extra)
        compiled(**batch, sizes=sizes_of(batch, more), skip_logits=True)
    assert counter.frame_count == 2  # the second is the one for all: the first took what it saw as fixed


def test_what_compiles_has_no_padding_and_no_vocabulary_logits(bridge_model, make_batch, mixed_rows):
    model = bridge_model("llama")
    batch = make_batch(mixed_rows, "llama", labels=True, extra=2)
    seen = []
    model.language_model.register_forward_pre_hook(
        lambda _, inputs, options: seen.append(options["inputs_embeds"].shape[:2]), with_kwargs=True
    )
    torch._dynamo.reset()
    output = torch.compile(model, backend="eager")(**batch, sizes=sizes_of(batch), skip_logits=True)
    assert output.logits is None
    assert seen == [(1, int(batch["attention_mask"].sum()))]


ENCODER_DECODERS = {
    "mt5": dict(d_model=40, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"),
    "umt5": dict(d_model=40, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"),
    "bart": dict(
        d_model=40, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64, forced_eos_token_id=None,
    ),
    "longt5": dict(d_model=40, d_kv=8, d_ff=64, num_layers=2, num_heads=4, local_radius=3),
}  # fmt: skip


@pytest.mark.parametrize("language", ENCODER_DECODERS)
def test_sizes_change_nothing_for_other_encoder_decoders(language, tiny_model, make_batch, mixed_rows):
    """Also for those that make masks of their own out of (rows, seq), as LongT5 does."""
    common = dict(vocab_size=80, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)
    model = tiny_model(language, text={**common, **ENCODER_DECODERS[language]})
    batch = make_batch(mixed_rows, "t5", labels=True)
    expected = model(**batch, skip_logits=True)
    found = model(**batch, skip_logits=True, sizes=sizes_of(batch))
    torch.testing.assert_close(found.loss, expected.loss, **TOLERANCE)


def test_a_prompt_that_is_too_long_is_refused_when_compiled_too(tiny_model, make_batch):
    model = tiny_model("llama", text=dict(max_position_embeddings=8))
    batch = make_batch([dict(text=(5, 6), answer=(7, 8, 2))], "llama", labels=True)
    torch._dynamo.reset()
    with pytest.raises(RuntimeError, match="a prompt is longer than the 8 positions"):
        torch.compile(model, backend="eager")(**batch, sizes=sizes_of(batch))


def test_an_image_that_is_not_there_is_named_where_waiting_costs_nothing(bridge_model, make_batch, mixed_rows):
    batch = make_batch(mixed_rows, "llama", labels=True)
    batch["image_index"][1, 0] = 9
    with pytest.raises(ValueError, match="sample 1 shows image 9, but there are 4 images"):
        bridge_model("llama")(**batch, sizes=sizes_of(batch))


def test_rows_that_do_not_fit_their_images_are_named_where_waiting_costs_nothing(bridge_model, make_batch, mixed_rows):
    batch = make_batch(mixed_rows, "llama", labels=True)
    sizes = sizes_of(batch)
    batch["input_ids"][1, 0] = 5
    with pytest.raises(ValueError, match="sample 1 has 3 image placeholders and its images need 4"):
        bridge_model("llama")(**batch, sizes=sizes)
