"""Training: what is frozen, what it costs, in which precision, compiled, and that the answer does not leak."""

import copy

import pytest
import torch
from transformers import AutoConfig

from instructblip import InstructBLIPForConditionalGeneration

KINDS = ["t5", "llama"]
TOLERANCE = dict(atol=1e-5, rtol=1e-5)
BRIDGE = ("query_tokens", "qformer.", "language_projection.", "vision_model.post_layernorm.")


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# ---- frozen parts


@pytest.mark.parametrize("language", KINDS)
def test_freeze_backbones_leaves_exactly_the_bridge(language, tiny_model, make_batch, mixed_rows):
    model = tiny_model(language)
    model.freeze_backbones()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(name.startswith(BRIDGE) for name in trained)
    model.train()(**make_batch(mixed_rows, language, labels=True)).loss.backward()
    assert (
        set(gradients(model)) == trained
    )  # every trained parameter has a gradient, which DistributedDataParallel needs
    left_out = {name for name, _ in model.named_bridge_parameters()} - trained
    assert left_out == {name for name in left_out if name.startswith(("qformer.encoder.layer.3.intermediate.",
                                                                      "qformer.encoder.layer.3.output."))}  # fmt: skip
    assert len(left_out) == 6


@pytest.mark.parametrize("vision", ["siglip_vision_model", "clip_vision_model", "dinov2"])
def test_other_towers_are_frozen_with_their_own_layernorm(vision, tiny_model, make_batch, mixed_rows):
    model = tiny_model("llama", vision=vision)
    model.freeze_backbones()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not [name for name in trained if name.startswith("vision_model.")]
    assert {"ln_vision.weight", "ln_vision.bias"} < trained
    model.train()(**make_batch(mixed_rows, "llama", labels=True)).loss.backward()
    assert set(gradients(model)) == trained


def test_a_qformer_without_text_trains_no_text_branch(tiny_model, make_batch, mixed_rows):
    model = tiny_model("llama", qformer_text_input=False)
    model.freeze_backbones()
    batch = make_batch(mixed_rows, "llama", labels=True)
    del batch["qformer_input_ids"], batch["qformer_attention_mask"]
    model.train()(**batch).loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(gradients(model)) == trained
    assert not [name for name in trained if "embeddings.word" in name or "embeddings.position" in name]


def test_a_frozen_tower_builds_no_graph(tiny_model):
    model = tiny_model("llama")
    pixels = torch.randn(1, 3, 28, 28)
    assert model.encode_images(pixels).last_hidden_state.requires_grad
    model.freeze_backbones()
    # PEFT's prepare_model_for_kbit_training does this to every embedding layer, the tower's too.
    model.vision_model.embeddings.register_forward_hook(lambda _, inputs, output: output.requires_grad_())
    assert not model.train().encode_images(pixels).last_hidden_state.requires_grad


@pytest.mark.parametrize("dropout", [True, False])
def test_the_tower_stays_in_eval_and_language_model_dropout_is_a_switch(dropout, tiny_model):
    model = tiny_model("t5")
    model.freeze_backbones(language_model_dropout=dropout)
    for _ in range(2):  # Trainer calls train() before every epoch and after every evaluation
        model.train()
        assert model.qformer.training
        assert not any(module.training for module in model.vision_model.modules())
        assert all(module.training == dropout for module in model.language_model.modules())
        model.eval()
        assert not any(module.training for module in model.modules())


def test_a_copy_of_a_frozen_model_freezes_its_own_parts(tiny_model):
    model = tiny_model("t5")
    model.freeze_backbones()
    duplicate = copy.deepcopy(model)
    duplicate.train()
    assert not duplicate.vision_model.training
    assert not model.training


# ---- initialisation


def test_new_query_tokens_are_drawn_from_a_normal_distribution_of_0_02(tiny_config):
    config = tiny_config("llama", num_query_tokens=400)
    queries = InstructBLIPForConditionalGeneration(config).query_tokens
    assert queries.shape == (1, 400, 24)
    assert abs(queries.mean()) < 0.001
    assert 0.019 < queries.std() < 0.021


def test_a_new_tower_tells_images_apart(tiny_config):
    model = InstructBLIPForConditionalGeneration(tiny_config("llama")).eval()
    features = model.encode_images(torch.randn(2, 3, 28, 28)).last_hidden_state
    assert (features[0] - features[1]).abs().mean() > 0.01
    assert 0.015 < model.vision_model.embeddings.position_embedding.std() < 0.025


# ---- cost


def test_gradient_checkpointing_gives_equal_gradients(tiny_model, make_batch, mixed_rows):
    for language in KINDS:
        model = tiny_model(language)
        model.freeze_backbones()
        batch = make_batch(mixed_rows, language, labels=True)
        model.train()(**batch).loss.backward()
        expected = gradients(model)
        model.zero_grad()
        runs = []
        model.qformer.encoder.layer[0].attention.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        model.gradient_checkpointing_enable()
        model(**batch).loss.backward()
        assert len(runs) == 2  # once more in the backward pass
        torch.testing.assert_close(gradients(model), expected, **TOLERANCE)


@pytest.mark.parametrize("language", KINDS)
def test_attention_implementations_agree(language, tiny_model, make_batch, mixed_rows):
    model = tiny_model(language)
    batch = make_batch(mixed_rows, language, "left", labels=True)
    real = batch["labels"] != -100
    parts = (model.vision_model, model.qformer, model.language_model)
    assert [part.config._attn_implementation for part in parts] == ["sdpa"] * 3
    expected = model(**batch)
    model.set_attn_implementation("eager")
    assert [part.config._attn_implementation for part in parts] == ["eager"] * 3
    output = model(**batch)
    torch.testing.assert_close(output.logits[real], expected.logits[real], **TOLERANCE)
    torch.testing.assert_close(model.train()(**batch).loss, expected.loss, **TOLERANCE)


@pytest.mark.parametrize("language", KINDS)
def test_forward_and_backward_in_bfloat16(language, tiny_model, make_batch, mixed_rows):
    model = tiny_model(language).to(torch.bfloat16)
    batch = make_batch(mixed_rows, language, labels=True)
    output = model(**batch)  # float32 pixels are cast
    assert output.logits.dtype == torch.bfloat16
    assert output.loss.dtype == torch.float32
    model.freeze_backbones()
    loss = model.train()(**batch).loss
    loss.backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())
    reference = tiny_model(language)
    reference.load_state_dict(model.float().state_dict())
    torch.testing.assert_close(loss, reference(**batch).loss, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("language", KINDS)
def test_a_float32_bridge_trains_between_bfloat16_backbones(language, tiny_model, make_batch, mixed_rows):
    model = tiny_model(language)
    model.vision_model.to(torch.bfloat16)
    model.language_model.to(torch.bfloat16)
    model.vision_layernorm.float()
    model.freeze_backbones()
    model.train()(**make_batch(mixed_rows, language, labels=True)).loss.backward()
    assert all(gradient.isfinite().all() and gradient.dtype == torch.float32 for gradient in gradients(model).values())
    generated = model.eval().generate(**make_batch(mixed_rows, language), max_new_tokens=2, num_beams=2)
    assert generated.shape[0] == 5


def test_t5_in_float16_warns(tiny_model, make_batch, caplog, monkeypatch):
    from transformers.utils import logging

    model = tiny_model("t5").half()
    messages = []
    logger = logging.get_logger(type(model).__module__)
    monkeypatch.setattr(logger, "warning_once", messages.append)
    model(**make_batch([dict(text=(5,), answer=(6,))], "t5", labels=True))
    assert messages == ["T5 overflows in float16: load the model with dtype=torch.bfloat16"]


@pytest.mark.parametrize("language", KINDS)
def test_forward_compiles_into_one_graph(language, tiny_model, make_batch, mixed_rows):
    model = tiny_model(language)
    batch = make_batch(mixed_rows, language, labels=True)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")  # a graph break is an error
    output, expected = compiled(**batch), model(**batch)
    torch.testing.assert_close(output.loss, expected.loss, **TOLERANCE)
    torch.testing.assert_close(output.logits, expected.logits, **TOLERANCE)


# ---- attention maps


def test_attention_maps_come_back_in_shape(tiny_model, make_batch):
    model = tiny_model("llama")
    model.set_attn_implementation("eager")
    batch = make_batch([dict(text=(5, 6, 7), images=(0, 1)), dict(text=(8,), images=(0,))], "llama")
    output = model(**batch, output_attentions=True, output_hidden_states=True)
    assert [tuple(weights.shape) for weights in output.attentions] == [(2, 4, 11, 11)] * 3
    assert len(output.hidden_states) == 4
    assert [tuple(weights.shape) for weights in output.vision_attentions] == [(2, 4, 17, 17)] * 2  # two pictures
    maps = output.qformer_cross_attentions
    assert [tuple(weights.shape) for weights in maps] == [(3, 4, 4, 17)] * 2  # three uses, four queries, 17 patches
    torch.testing.assert_close(maps[0].sum(dim=-1), torch.ones(3, 4, 4))
    assert [tuple(weights.shape) for weights in output.qformer_attentions[:3]] == [(3, 4, 7, 7)] * 3
    assert output.image_features.shape == (3, 4, 40)


def test_an_encoder_decoder_returns_the_attention_of_both(tiny_model, make_batch):
    model = tiny_model("t5")
    model.set_attn_implementation("eager")
    output = model(**make_batch([dict(text=(5, 6), answer=(7, 8, 1))], "t5", labels=True), output_attentions=True)
    assert [tuple(weights.shape) for weights in output.cross_attentions] == [(1, 4, 3, 6)] * 2
    assert [tuple(weights.shape) for weights in output.encoder_attentions] == [(1, 4, 6, 6)] * 2
    assert [tuple(weights.shape) for weights in output.decoder_attentions] == [(1, 4, 3, 3)] * 2


def test_a_picture_is_projected_once_for_all_rows_that_show_it(tiny_model, make_batch):
    model = tiny_model("llama")
    rows = [dict(text=(number,), images=(0,)) for number in range(5, 9)]
    projected = []
    key = model.qformer.encoder.layer[0].crossattention.attention.key
    key.register_forward_hook(lambda _, inputs, output: projected.append(output.shape[0]))
    encoded = []
    model.vision_model.register_forward_hook(lambda _, inputs, output: encoded.append(output[0].shape[0]))
    model(**make_batch(rows, "llama"))
    assert projected == encoded == [1]


# ---- the answer must not leak through the Q-Former (random answers about noise cannot be predicted)


@pytest.mark.parametrize(("leak", "learns"), [(False, False), (True, True)])
def test_random_answers_are_learned_only_by_a_qformer_that_reads_them(leak, learns, tiny_config):
    """Noise images and a random answer out of eight, new in every batch: no honest model beats ln 8 = 2.079 nats."""
    config = tiny_config("llama", qformer=dict(num_hidden_layers=2), num_query_tokens=2)
    config.vision_config = AutoConfig.for_model(
        "instructblip_vision_model", hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
        image_size=14, patch_size=7, initializer_range=0.02,
    )  # fmt: skip
    model = InstructBLIPForConditionalGeneration(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(250):
        answers = torch.randint(20, 28, (32, 1))
        prompt = torch.tensor([[79, 79, 5, 6]]).expand(32, -1)
        instruction = torch.tensor([[5, 6]]).expand(32, -1)
        loss = model(
            input_ids=torch.cat([prompt, answers], dim=1),
            labels=torch.cat([torch.full_like(prompt, -100), answers], dim=1),
            qformer_input_ids=torch.cat([instruction, answers], dim=1) if leak else instruction,
            pixel_values=torch.randn(32, 3, 14, 14),
        ).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    final = sum(losses[-30:]) / 30
    assert (final < 1.0) == learns, final
    if not learns:
        assert final > 2.05, final
