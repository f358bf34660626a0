import numpy as np
import pytest
import torch

from instructblip.eval_tasks.driver import Prompt
from instructblip.eval_tasks.instructblip_driver import InstructBLIPDriver


@pytest.fixture
def images(tiny_images):
    return {f"{number}.png": image for number, image in enumerate(tiny_images[:3])}


@pytest.fixture
def driver(tiny_lm):
    return lambda language, **kwargs: tiny_lm(language, **kwargs).driver


def test_a_prompt_has_any_number_of_references():
    assert Prompt("what ?", None).references == Prompt("what ?", "").references == []
    assert Prompt("what ?", "a.png").references == ["a.png"]
    assert Prompt("what ?", ["a.png", "b.png"]).image_keys == ("a.png", "b.png")
    assert Prompt("what ?", None, history=[("a", "b")]).history == (("a", "b"),)


@pytest.mark.parametrize("language", ["t5", "llama"])
def test_inputs_are_those_of_the_processor(driver, images, language):
    ours = driver(language)
    assert isinstance(ours, InstructBLIPDriver)
    prompts = [Prompt("what is this ?", "1.png"), Prompt("two ?", ["0.png", "1.png"]), Prompt("text", None)]
    inputs = ours.inputs(prompts, images)
    first, second, _ = images.values()
    expected = ours.processor(
        images=[[second], [first, second], None], text=["what is this ?", "two ?", "text"], padding=True
    )
    assert inputs.keys() == expected.keys()
    for name, value in inputs.items():
        assert torch.equal(value, expected[name])
    assert "pixel_values" not in ours.inputs(prompts[2:], images)


@pytest.mark.parametrize("language", ["t5", "llama"])
def test_answers_and_scores_are_those_of_the_model(driver, images, language):
    ours = driver(language)
    prompts = [Prompt("what is this ?", "0.png"), Prompt("is there a cat ?", "1.png")]
    inputs = ours.inputs(prompts, images)
    settings = {"max_new_tokens": 4, "num_beams": 2}
    tokens = ours.model.generate(**inputs, **settings)
    assert ours.generate(inputs, settings) == ours.processor.batch_decode(tokens, skip_special_tokens=True)
    ids = ours.encode_candidates(["yes", "no", "red cat"])
    assert ids == ours.processor.encode_answers(["yes", "no", "red cat"])
    scores = ours.score(inputs, [ids, ids[:2]], None, False)
    assert (scores.shape, scores.dtype) == ((2, 3), np.float32)
    assert np.isneginf(scores[1, 2])
    np.testing.assert_array_equal(scores, ours.model.score_candidates([ids, ids[:2]], **inputs).numpy())
    assert ours.is_encoder_decoder == (language == "t5")


def test_long_prompts_lose_their_beginning(driver, images):
    ours = driver("llama", max_length=4)
    [row] = ours.inputs([Prompt("a red cat is left of the dog", "0.png")], images)["input_ids"].tolist()
    assert ours.processor.tokenizer.decode(row, skip_special_tokens=True).split()[-2:] == ["the", "dog"]
    assert "red" not in ours.processor.tokenizer.decode(row)
