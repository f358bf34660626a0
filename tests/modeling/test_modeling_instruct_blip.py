"""The model: a sample alone equals the same sample in any batch; what trains, what is computed, what is refused."""

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
def test_a_sample_alone_equals_itself_in_a_batch(language, side, qformer_side, tiny_model, make_batch, mixed_rows):
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


@pytest.mark.parametrize("language", KINDS)
def test_a_shared_image_equals_its_copies(language, tiny_model, make_batch, mixed_rows):
    model = tiny_model(language)
    shared = make_batch(mixed_rows, language, labels=True)
    copied = make_batch(mixed_rows, language, labels=True, shared_images=False)
    assert len(shared["pixel_values"]) == 4  # of six uses
    assert len(copied["pixel_values"]) == 6
    torch.testing.assert_close(model(**shared).logits, model(**copied).logits, **TOLERANCE)


@pytest.mark.parametrize("language", KINDS)
def test_frames_equal_several_images(language, tiny_model, make_batch):
    model = tiny_model(language)
    rows = [dict(text=(5, 6, 7), images=(0, 1, 2), answer=(20,)), dict(text=(8,), images=(3, 4, 5), answer=(21, 2))]
    indexed = make_batch(rows, language, labels=True)
    frames = dict(indexed, pixel_values=indexed["pixel_values"].view(2, 3, 3, 28, 28))
    expected = model(**indexed).logits
    torch.testing.assert_close(model(**frames).logits, expected)
    del frames["image_index"]
    torch.testing.assert_close(model(**frames).logits, expected)


@pytest.mark.parametrize("vision", ["instructblip_vision_model", "siglip_vision_model", "clip_vision_model", "dinov2"])
def test_image_embeds_equal_pixel_values(vision, tiny_model, make_batch, mixed_rows):
    model = tiny_model("llama", vision=vision)
    batch = make_batch(mixed_rows, "llama", labels=True)
    expected = model(**batch).logits
    assert expected.std() > 0.1  # every part matters
    embeds = model.encode_images(batch.pop("pixel_values")).last_hidden_state
    assert not embeds.isnan().any()
    torch.testing.assert_close(model(**batch, image_embeds=embeds).logits, expected, **TOLERANCE)


@pytest.mark.parametrize("vision", ["instructblip_vision_model", "siglip_vision_model", "clip_vision_model", "dinov2"])
def test_the_answer_depends_on_image_and_instruction(vision, tiny_model, make_batch):
    model = tiny_model("llama", vision=vision)
    batch = make_batch([dict(text=(5, 6))], "llama")
    before = model(**batch).logits
    assert not torch.allclose(model(**{**batch, "pixel_values": -batch["pixel_values"]}).logits, before, atol=1e-3)
    assert not torch.allclose(model(**{**batch, "qformer_input_ids": torch.tensor([[6, 5]])}).logits, before, atol=1e-3)


@pytest.mark.parametrize("language", KINDS)
def test_image_index_may_be_left_out_when_every_row_has_its_image(language, tiny_model, make_batch):
    model = tiny_model(language)
    batch = make_batch([dict(text=(5, 6), images=(0,), answer=(2,)), dict(text=(7,), images=(1,), answer=(2,))],
                       language, labels=True)  # fmt: skip
    expected = model(**batch).logits
    del batch["image_index"]
    torch.testing.assert_close(model(**batch).logits, expected)


@pytest.mark.parametrize("language", KINDS)
def test_rows_without_images_may_come_with_an_empty_image_index(language, tiny_model, make_batch):
    model = tiny_model(language)
    batch = make_batch([dict(text=(5, 6), images=(), answer=(2,)), dict(text=(7,), images=(), answer=(2,))],
                       language, labels=True)  # fmt: skip
    expected = model(**batch).logits
    for pixels, index in [((0, 3, 28, 28), (2, 1)), ((0, 3, 28, 28), (2, 0)), ((1, 3, 28, 28), (2, 1))]:
        images = {"pixel_values": torch.zeros(pixels), "image_index": torch.full(index, -1)}
        torch.testing.assert_close(model(**batch, **images).logits, expected)


@pytest.mark.parametrize("language", KINDS)
def test_text_only_rows_equal_the_bare_language_model(language, tiny_model, make_batch):
    model = tiny_model(language)
    batch = make_batch([dict(text=(5, 6, 8), images=(), answer=(20, 2)), dict(text=(7,), images=(), answer=(2,))],
                       language, labels=True)  # fmt: skip
    text = {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}
    real = slice(None) if language == "t5" else batch["attention_mask"].bool()
    torch.testing.assert_close(model(**batch).logits[real], model.language_model(**text).logits[real], **TOLERANCE)


def test_inputs_embeds_equal_input_ids(tiny_model, make_batch, mixed_rows):
    model = tiny_model("llama")
    batch = make_batch(mixed_rows, "llama", labels=True)
    expected = model(**batch)
    embeds = model.get_input_embeddings()(batch.pop("input_ids")).detach()
    torch.testing.assert_close(model(**batch, inputs_embeds=embeds).logits, expected.logits)


@pytest.mark.parametrize("language", KINDS)
def test_the_placeholder_may_lie_beyond_the_vocabulary(language, tiny_model, make_batch, mixed_rows):
    model = tiny_model(language)
    batch = make_batch(mixed_rows, language, labels=True)
    expected = model(**batch).logits
    model.config.image_token_id = 1000
    batch["input_ids"][batch["input_ids"] == 79] = 1000
    torch.testing.assert_close(model(**batch).logits, expected)
    embeds = torch.zeros(len(mixed_rows), batch["input_ids"].shape[1], 40)
    del batch["input_ids"]
    with pytest.raises(ValueError, match="inputs_embeds cannot hold placeholders"):
        model(**batch, inputs_embeds=embeds)


# ---- the loss


@pytest.mark.parametrize("language", KINDS)
def test_four_small_steps_accumulate_to_one_large_step(language, tiny_model, make_batch, mixed_rows):
    model = tiny_model(language).train()
    rows = mixed_rows[:4]  # 3, 2, 4 and 2 answer tokens: a mean of means would differ
    model(**make_batch(rows, language, labels=True)).loss.backward()
    together = gradients(model)
    model.zero_grad()
    items = torch.tensor(sum(len(row.answer) for row in rows))
    total = 0.0
    for row in rows:
        loss = model(**make_batch([row], language, labels=True), num_items_in_batch=items).loss
        loss.backward()
        total += loss.detach()
    expected = model(**make_batch(rows, language, labels=True)).loss
    torch.testing.assert_close(total, expected.detach(), **TOLERANCE)
    torch.testing.assert_close(gradients(model), together, **TOLERANCE)


@pytest.mark.parametrize("language", [*KINDS, "gemma2"])
def test_training_computes_vocabulary_logits_at_supervised_positions_only(language, tiny_model, make_batch, mixed_rows):
    text = dict(hidden_size=40, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, head_dim=10,
                num_key_value_heads=2, vocab_size=80, pad_token_id=0) if language == "gemma2" else None  # fmt: skip
    model = tiny_model(language, text=text)
    seen = []
    model.get_output_embeddings().register_forward_hook(lambda _, inputs, output: seen.append(output.numel() // 80))
    batch = make_batch(mixed_rows, language, labels=True)
    model.train()(**batch)
    supervised = sum(len(row.answer) for row in mixed_rows)
    assert seen == [supervised]
    model.eval()(**batch)
    assert seen[1] > supervised  # all positions, for whoever wants the logits


def test_placeholders_are_never_learned_even_if_labels_say_so(tiny_model, make_batch, mixed_rows):
    model = tiny_model("llama")
    batch = make_batch(mixed_rows, "llama", labels=True)
    careless = dict(batch, labels=torch.where(batch["input_ids"] == 79, 79, batch["labels"]))
    assert not torch.equal(careless["labels"], batch["labels"])
    for mode in (False, True):
        model.train(mode)
        torch.testing.assert_close(model(**careless).loss, model(**batch).loss)


@pytest.mark.parametrize("mode", [False, True])
@pytest.mark.parametrize("language", KINDS)
def test_nothing_supervised_gives_zero_loss_and_not_nan(language, mode, tiny_model, make_batch, mixed_rows):
    model = tiny_model(language).train(mode)
    batch = make_batch(mixed_rows, language, labels=True)
    loss = model(**dict(batch, labels=torch.full_like(batch["labels"], -100))).loss
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize("language", KINDS)
def test_a_batch_without_images_gives_the_bridge_zero_gradients(language, tiny_model, make_batch):
    """One process of several may draw such a batch, and a Trainer cannot step on a loss without gradient."""
    model = tiny_model(language)
    model.freeze_backbones()
    loss = model.train()(**make_batch([dict(text=(5, 6), images=(), answer=(7, 2))], language, labels=True)).loss
    loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert loss > 0
    assert all(p.grad is not None and (p.grad == 0).all() for p in trained.values())


# ---- what is refused


def test_a_wrong_number_of_placeholders_names_the_sample(tiny_model, make_batch, mixed_rows):
    model = tiny_model("llama")
    batch = make_batch(mixed_rows, "llama")
    batch["input_ids"][1, 0] = 5
    message = "sample 1 has 3 image placeholders and its images need 4"
    for call in (model.forward, model.generate, lambda **kwargs: model.score_candidates([[5]], **kwargs)):
        with pytest.raises(ValueError, match=message):
            call(**batch)


def test_placeholders_without_images_name_the_sample(tiny_model, make_batch, mixed_rows):
    batch = make_batch(mixed_rows, "llama")
    del batch["pixel_values"], batch["image_index"]
    with pytest.raises(ValueError, match="sample 0 has 4 image placeholders and its images need 0"):
        tiny_model("llama")(**batch)


def test_an_image_that_is_not_there_names_the_sample(tiny_model, make_batch, mixed_rows):
    batch = make_batch(mixed_rows, "llama")
    batch["image_index"][3, 1] = 9
    with pytest.raises(ValueError, match="sample 3 shows image 9, but there are 4 images"):
        tiny_model("llama")(**batch)


def test_images_and_rows_that_cannot_be_matched_are_refused(tiny_model, make_batch, mixed_rows):
    model = tiny_model("llama")
    batch = make_batch(mixed_rows, "llama")
    index = batch.pop("image_index")
    with pytest.raises(ValueError, match="4 images for 5 instructions: pass image_index"):
        model(**batch)
    with pytest.raises(ValueError, match="image_index has 4 rows for 5 instructions"):
        model(**batch, image_index=index[:4])
    with pytest.raises(ValueError, match="pass either pixel_values or image_embeds"):
        model(**batch, image_index=index, image_embeds=torch.zeros(4, 17, 32))


def test_missing_inputs_are_named(tiny_model, make_batch, mixed_rows):
    batch = make_batch(mixed_rows, "llama")
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="pass either input_ids or inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="qformer_input_ids is missing"):
        model(**{key: value for key, value in batch.items() if not key.startswith("qformer")})
    with pytest.raises(ValueError, match="needs labels or decoder_input_ids"):
        tiny_model("t5")(**batch)
    model.config.image_token_id = None
    with pytest.raises(ValueError, match="image_token_id is None"):
        model(**batch)


@pytest.mark.parametrize("language", ["t5", "llama"])
def test_ids_outside_a_vocabulary_are_refused_with_their_sample(language, tiny_model, make_batch, mixed_rows):
    model = tiny_model(language)
    batch = make_batch(mixed_rows, language, labels=True)
    prompt = {key: value for key, value in batch.items() if key != "labels"}
    calls = [lambda inputs: model(**inputs, labels=batch["labels"]), lambda inputs: model.generate(**inputs)]
    calls.append(lambda inputs: model.score_candidates([[5]], **inputs))
    beyond = {
        "input_ids": ("language model", 80),
        "qformer_input_ids": ("Q-Former", model.config.qformer_config.vocab_size),
    }
    for name, (reader, vocabulary) in beyond.items():
        for token in (vocabulary, -100):
            wrong = prompt[name].clone()
            wrong[1, 0] = token
            for call in calls:
                message = f"sample 1 has token {token}, but the vocabulary of the {reader} has {vocabulary}"
                with pytest.raises(ValueError, match=message):
                    call({**prompt, name: wrong})
    for token in (80, -1):
        labels = batch["labels"].clone()
        labels[2, (labels[2] != -100).nonzero()[0]] = token
        with pytest.raises(ValueError, match=f"sample 2 has token {token}"):
            model(**prompt, labels=labels)


@pytest.mark.parametrize("language", ["t5", "llama"])
def test_inputs_of_other_shapes_are_refused(language, tiny_model, make_batch, mixed_rows):
    model = tiny_model(language)
    batch = make_batch(mixed_rows, language, labels=True)
    rows, length = batch["labels"].shape
    decoder = {"decoder_input_ids": torch.full((rows, length + 2), 5)} if language == "t5" else {}
    given = batch if decoder else {**batch, "labels": batch["labels"][:, 1:]}
    with pytest.raises(ValueError, match=r"labels are \(\d+, \d+\) and what the decoder reads is \(\d+, \d+\)"):
        model(**given, **decoder)
    with pytest.raises(ValueError, match="shift_labels is not supported"):
        model(**batch, shift_labels=batch["labels"])
    features = model.encode_images(batch.pop("pixel_values")).last_hidden_state
    with pytest.raises(ValueError, match="image_embeds are 31 wide and the vision tower is 32"):
        model(**batch, image_embeds=features[..., 1:])


def test_a_prompt_longer_than_the_language_model_is_refused_and_padding_does_not_count(tiny_model, make_batch):
    model = tiny_model("llama", text=dict(max_position_embeddings=12))
    fits = make_batch([dict(text=tuple(range(5, 13)))], "llama", extra=4)  # 4 + 8 of 16 columns
    model(**fits)
    with pytest.raises(ValueError, match="13 tokens is longer than the 12 positions of the language model"):
        model(**make_batch([dict(text=tuple(range(5, 14)))], "llama"))


def test_an_instruction_longer_than_the_qformer_is_refused(tiny_model, make_batch):
    with pytest.raises(ValueError, match="instruction of 65 tokens is longer than its 64 positions"):
        tiny_model("llama")(**make_batch([dict(text=(5,), instruction=(6,) * 65)], "llama"))


# ---- images of another size


def test_images_of_another_size_interpolate_the_positions_as_transformers_does(tiny_model):
    model = tiny_model("llama")
    pixels = torch.randn(2, 3, 42, 21)
    tower = model.vision_model
    embeddings = tower.embeddings(pixels, interpolate_pos_encoding=True)
    expected = tower.encoder(inputs_embeds=embeddings).last_hidden_state
    torch.testing.assert_close(model.encode_images(pixels).last_hidden_state, expected)
    assert expected.shape == (2, 1 + 6 * 3, 32)


@pytest.mark.parametrize("vision", ["siglip_vision_model", "clip_vision_model", "dinov2"])
def test_other_towers_interpolate_too(vision, tiny_model):
    model = tiny_model("llama", vision=vision)
    patches = model.encode_images(torch.randn(1, 3, 42, 42)).last_hidden_state.shape[1]
    assert patches == 36 + (vision != "siglip_vision_model")  # a class token


def test_a_tower_that_cannot_interpolate_refuses_another_size(tiny_model, monkeypatch):
    model = tiny_model("llama", vision="clip_vision_model")
    monkeypatch.setattr(model.vision_model, "forward", lambda pixel_values: None)
    with pytest.raises(ValueError, match=r"images of \(14, 14\) pixels for a CLIPVisionModel of \(28, 28\): resize"):
        model.encode_images(torch.zeros(1, 3, 14, 14))
