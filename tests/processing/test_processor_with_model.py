"""The model takes what the processor gives, and a sample does not depend on its batch."""

import pytest
import torch
from transformers import pipeline

from instructblip import InstructBLIPCollator


@pytest.fixture
def make_pair(make_processor, tiny_model):
    def make(language):
        processor = make_processor(language, qformer_max_length=64)
        model = tiny_model(language, image_token_index=processor.image_token_id)
        processor.check_compatible(model.config)
        return processor, model

    return make


@pytest.mark.parametrize("language", ["t5", "llama"])
def test_generated_tokens_of_a_mixed_batch_are_those_of_each_sample_alone(make_pair, tiny_images, language):
    processor, model = make_pair(language)
    images = [tiny_images[:2], None, tiny_images[0], tiny_images[2]]
    texts = ["what is <image> or <image> ?", "yes", "what is the color of this red cat ?", "what"]
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    together = model.generate(**processor(images, texts), **options)
    for row, (image, text) in enumerate(zip(images, texts, strict=True)):
        alone = model.generate(**processor([image] if isinstance(image, list) else image, text), **options)
        assert together[row].tolist() == alone[0].tolist(), text


@pytest.mark.parametrize("language", ["t5", "llama"])
def test_the_loss_of_a_batch_is_the_mean_over_its_learned_tokens(make_pair, tiny_images, language):
    processor, model = make_pair(language)
    collate = InstructBLIPCollator(processor)
    rows = [
        {"image": tiny_images[0], "instruction": "what is the color of this", "response": "red"},
        {"image": tiny_images[0], "instruction": "what", "response": "a red cat"},
        {"image": None, "instruction": "is this a dog", "response": "yes no"},
    ]
    with torch.no_grad():
        losses = [model(**collate([row])).loss.item() for row in rows]
        batch = model(**collate(rows)).loss.item()
    assert batch == pytest.approx((2 * losses[0] + 4 * losses[1] + 3 * losses[2]) / 9, abs=1e-5)


@pytest.mark.parametrize("language", ["t5", "llama"])
def test_embeddings_of_the_models_tower_stand_in_for_pixels(make_pair, tiny_images, language):
    processor, model = make_pair(language)
    texts, answers = ["what is this", "what"], ["red", "a cat"]
    pixels = processor(tiny_images[:2], texts, answers=answers)
    with torch.no_grad():
        embeds = model.encode_images(pixels["pixel_values"]).last_hidden_state
        encoded = processor(text=texts, answers=answers, image_embeds=embeds)
        assert model(**encoded).loss.item() == pytest.approx(model(**pixels).loss.item(), abs=1e-6)


@pytest.mark.parametrize("language", ["t5", "llama"])
def test_encoded_answers_are_candidates(make_pair, tiny_images, language):
    processor, model = make_pair(language)
    candidates = processor.encode_answers(["yes", "a red cat"])
    scores = model.score_candidates(candidates=candidates, **processor(tiny_images[:2], ["what is this", "what"]))
    assert scores.shape == (2, 2)
    assert scores.isfinite().all()


@pytest.mark.parametrize("language", ["t5", "llama"])
def test_transformers_pipeline_says_what_the_model_generates(make_pair, tiny_images, tmp_path, language):
    processor, model = make_pair(language)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    asked = {"return_full_text": False, "generate_kwargs": options}
    texts = ["what is this ?", "what is the color of this red cat ?"]
    expected = processor.batch_decode(
        model.generate(**processor(tiny_images[:2], texts), **options), skip_special_tokens=True
    )
    assert all(expected)
    chats = [
        [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}]
        for image, text in zip(tiny_images, texts, strict=False)
    ]
    for parts in ({"model": model, "processor": processor}, {"model": str(tmp_path)}):
        answerer = pipeline("image-text-to-text", **parts)
        batch = answerer(images=tiny_images[:2], text=texts, **asked)
        assert [answer["generated_text"] for answer in batch] == expected
        assert [answer["generated_text"] for (answer,) in answerer(text=chats, **asked)] == expected
