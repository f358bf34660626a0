"""Language models of every kind: those whose rows are packed, tries scored and prompts shared, and all others."""

import copy

import pytest
import torch

from instructblip.modeling.packing import PLAIN_DECODERS, has_plain_attention

SIZE = dict(
    hidden_size=40, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=80, pad_token_id=0,
    bos_token_id=1, eos_token_id=2, max_position_embeddings=64,
)  # fmt: skip
TEXT = {
    "gpt2": {},
    "opt": {},
    "llama": dict(num_key_value_heads=2),
    "qwen2": {},
    "mistral": dict(SIZE, num_key_value_heads=2, sliding_window=None),
    "qwen3": dict(SIZE, num_key_value_heads=2, head_dim=12),
    # Attention that is not plain: these take the way that works for every model.
    "gemma2": dict(SIZE, num_key_value_heads=2, head_dim=10, sliding_window=4),
    "mistral sliding": dict(SIZE, num_key_value_heads=2, sliding_window=4),
    "bloom": dict(hidden_size=40, n_layer=2, n_head=4, vocab_size=80, pad_token_id=0, bos_token_id=1, eos_token_id=2),
    "gpt_neox": dict(SIZE),
    "falcon": dict(SIZE, num_kv_heads=2, new_decoder_architecture=True),
    "phi": dict(SIZE, partial_rotary_factor=0.4),
}
PLAIN = sorted(PLAIN_DECODERS)
OTHERS = sorted(set(TEXT) - PLAIN_DECODERS)
TOLERANCE = dict(atol=1e-5, rtol=1e-5)
CANDIDATES = [[20], [20, 21], [20, 21, 22], [23, 24], [23, 25]]


@pytest.fixture
def model_of(tiny_model):
    def make(language, **text):
        return tiny_model(language.split()[0], text={**TEXT[language], **text})

    return make


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_every_packed_decoder_is_tested_here():
    assert set(TEXT) >= PLAIN_DECODERS


@pytest.mark.parametrize("language", TEXT)
def test_only_plain_attention_is_packed(language, model_of):
    assert has_plain_attention(model_of(language).language_model) == (language in PLAIN_DECODERS)


@pytest.mark.parametrize("language", TEXT)
def test_a_sample_alone_equals_itself_in_a_batch(language, model_of, make_batch, mixed_rows):
    model = model_of(language)
    for side in ("right", "left"):
        batch = make_batch(mixed_rows, language, side, labels=True)
        together = model(**batch)
        for number, row in enumerate(mixed_rows):
            alone = model(**make_batch([row], language, labels=True))
            real = batch["attention_mask"][number].bool()
            torch.testing.assert_close(together.logits[number][real], alone.logits[0], **TOLERANCE)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("language", TEXT)
def test_training_equals_evaluation_without_dropout(language, attention, model_of, make_batch, mixed_rows):
    dropouts = {"attention_dropout": 0.0, "hidden_dropout": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    model = model_of(language, **(dropouts if language in ("bloom", "gpt_neox", "falcon", "phi") else {}))
    model.set_attn_implementation("eager" if language == "gemma2" else attention)  # Gemma 2 has no SDPA
    batch = make_batch(mixed_rows, language, "left", labels=True)
    reference = model(**batch)
    reference.loss.backward()
    expected = gradients(model)
    model.zero_grad()
    output = model.train()(**batch)
    output.loss.backward()
    assert output.logits is None
    torch.testing.assert_close(output.loss, reference.loss, **TOLERANCE)
    torch.testing.assert_close(gradients(model), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("language", TEXT)
def test_scores_equal_one_forward_per_candidate(language, model_of, make_batch, mixed_rows):
    model = model_of(language)
    batch = make_batch(mixed_rows, language, "left")
    packed = model.score_candidates(CANDIDATES, **batch, add_end_token=True)
    naive = model.score_candidates(CANDIDATES, **batch, add_end_token=True, packed=False)
    torch.testing.assert_close(packed, naive, atol=1e-4, rtol=0)


@pytest.mark.parametrize("language", TEXT)
def test_beams_equal_those_of_transformers(language, model_of, make_batch, mixed_rows):
    model = model_of(language)
    batch = make_batch(mixed_rows, language)
    settings = dict(num_beams=3, max_new_tokens=6, eos_token_id=[2, *range(40, 50)], return_dict_in_generate=True,
                    output_scores=True)  # fmt: skip
    output = model.generate(**batch, **settings)
    plain = copy.deepcopy(model)
    plain._may_share_prompt = lambda *args: False
    expected = plain.generate(**batch, **settings)
    assert output.sequences.tolist() == expected.sequences.tolist()
    torch.testing.assert_close(output.sequences_scores, expected.sequences_scores, **TOLERANCE)


@pytest.mark.parametrize("language", TEXT)
def test_answers_alone_equal_answers_in_a_batch(language, model_of, make_batch, mixed_rows):
    model = model_of(language)
    together = model.generate(**make_batch(mixed_rows, language, extra=2), max_new_tokens=4, eos_token_id=None)
    for number, row in enumerate(mixed_rows):
        alone = model.generate(**make_batch([row], language), max_new_tokens=4, eos_token_id=None)
        assert alone[0].tolist() == together[number].tolist()


@pytest.mark.parametrize("language", ["mistral", "qwen3"])
def test_gradient_checkpointing_of_packed_rows(language, model_of, make_batch, mixed_rows):
    model = model_of(language)
    batch = make_batch(mixed_rows, language, "left", labels=True)
    model.train()(**batch).loss.backward()
    expected = gradients(model)
    for reentrant in (False, True):
        model.zero_grad()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model(**batch).loss.backward()
        torch.testing.assert_close(gradients(model), expected, **TOLERANCE)


def test_packed_rows_under_autocast(model_of, make_batch, mixed_rows):
    """Trainer's bf16=True computes attention in bfloat16 between float32 parameters."""
    for language in PLAIN:
        model = model_of(language)
        batch = make_batch(mixed_rows, language, "left", labels=True)
        expected = model(**batch).loss
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.train()(**batch).loss
        loss.backward()
        torch.testing.assert_close(loss, expected, atol=0.05, rtol=0.01)
        assert all(gradient.isfinite().all() for gradient in gradients(model).values())


def test_one_long_row_among_short_ones_is_packed_too(model_of, make_batch):
    """Few real tokens in a wide batch take the dense mask."""
    model = model_of("llama")
    rows = [dict(text=tuple(range(5, 40)), answer=(50, 2)), *[dict(text=(5,), images=(), answer=(6, 2))] * 6]
    batch = make_batch(rows, "llama", labels=True)
    expected = model(**batch).loss
    torch.testing.assert_close(model.train()(**batch).loss, expected, **TOLERANCE)


@pytest.mark.parametrize("language", ["mt5", "bart"])
def test_other_encoder_decoders(language, tiny_model, make_batch, mixed_rows):
    text = {
        "mt5": dict(d_model=40, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=80, decoder_start_token_id=0,
                    pad_token_id=0, eos_token_id=1, dropout_rate=0.0),
        "bart": dict(d_model=40, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
                     decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, vocab_size=80, pad_token_id=0,
                     bos_token_id=1, eos_token_id=2, decoder_start_token_id=2, dropout=0.0, max_position_embeddings=64,
                     forced_eos_token_id=None),
    }[language]  # fmt: skip
    model = tiny_model(language, text=text)
    batch = make_batch(mixed_rows, "t5", "left", labels=True)
    together = model(**batch)
    for number, row in enumerate(mixed_rows):
        alone = model(**make_batch([row], "t5", labels=True))
        torch.testing.assert_close(together.logits[number][: len(row.answer)], alone.logits[0], atol=1e-4, rtol=1e-4)
    loss = model.train()(**batch).loss
    torch.testing.assert_close(loss, together.loss, **TOLERANCE)
    model.eval()
    prompt = make_batch(mixed_rows, "t5", "left")
    scores = model.score_candidates(CANDIDATES, **prompt)
    naive = model.score_candidates(CANDIDATES, **prompt, packed=False)
    torch.testing.assert_close(scores, naive, atol=1e-3, rtol=0)
    assert model.generate(**prompt, num_beams=3, max_new_tokens=4).shape[0] == 5
