"""Batches for TRL's trainers: its column names, and preferences."""

import pytest
import torch

from instructblip import InstructBLIPCollator, InstructBLIPPreferenceCollator


def said(text, role="assistant"):
    return [{"role": role, "content": text}]


@pytest.mark.parametrize("language", ["t5", "llama"])
def test_prompts_and_completions_make_the_batch_of_instructions_and_responses(make_processor, tiny_images, language):
    collate = InstructBLIPCollator(make_processor(language))
    expected = collate([{"image": tiny_images[0], "instruction": "what is this ?", "response": "a cat"}])
    block = [{"type": "image"}, {"type": "text", "text": "what is this ?"}]
    for prompt, completion in (
        ("what is this ?", "a cat"),
        (said("what is this ?", "user"), said("a cat")),
        (said(block, "user"), said([{"type": "text", "text": "a cat"}])),
    ):
        batch = collate([{"images": [tiny_images[0]], "prompt": prompt, "completion": completion}])
        torch.testing.assert_close(dict(batch), dict(expected), rtol=0, atol=0)


def test_earlier_rounds_of_a_conversation_are_part_of_the_prompt(processor, tiny_images):
    prompt = [*said("what is this ?", "user"), *said("a cat"), *said("what color ?", "user")]
    batch = InstructBLIPCollator(processor)([{"image": tiny_images[0], "prompt": prompt, "completion": "red"}])
    read = processor.qformer_tokenizer.decode(batch["qformer_input_ids"][0], skip_special_tokens=True)
    assert read == "what is this? a cat what color?"


def test_an_answer_of_several_messages_is_named(processor, tiny_images):
    sample = {"image": tiny_images[0], "prompt": "what ?", "completion": said("a") * 2, "id": "x"}
    with pytest.raises(ValueError, match=r"sample 0 \(id 'x'\): 'completion' has 2 messages"):
        InstructBLIPCollator(processor)([sample])


def test_a_preference_batch_holds_each_image_once_and_marks_the_answers(processor, tiny_images):
    samples = [
        {"image": tiny_images[0], "prompt": "what is this ?", "chosen": "a cat", "rejected": "a dog"},
        {"image": tiny_images[1], "prompt": "what color ?", "chosen": said("red"), "rejected": said("blue green")},
    ]
    batch = InstructBLIPPreferenceCollator(processor)(samples)
    assert batch["pixel_values"].shape[0] == 2
    assert batch["image_index"].tolist() == [[0], [1], [0], [1]]
    answers = [
        processor.tokenizer.decode(ids[mask == 1])
        for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)
    ]
    assert answers == ["a cat </s>", "red </s>", "a dog </s>", "blue green </s>"]
    assert "labels" not in batch


def test_a_preference_without_a_worse_answer_is_named(processor, tiny_images):
    sample = {"image": tiny_images[0], "prompt": "what ?", "chosen": "red", "id": "x"}
    with pytest.raises(ValueError, match=r"sample 0 \(id 'x'\): 'rejected' is missing"):
        InstructBLIPPreferenceCollator(processor)([sample])


def test_preferences_are_for_decoder_only_models(make_processor):
    with pytest.raises(ValueError, match="decoder-only"):
        InstructBLIPPreferenceCollator(make_processor("t5"))
