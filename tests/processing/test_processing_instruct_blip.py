"""What the language model and the Q-Former read, and what the model learns from."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoProcessor,
    BlipImageProcessorPil,
    InstructBlipProcessor,
    PreTrainedTokenizerFast,
    T5Tokenizer,
    ViTImageProcessorPil,
)

from instructblip import InstructBLIPProcessor

IMAGE = "<image> <image> <image> <image> "  # num_query_tokens is 4


# Layout


def test_image_tokens_come_before_the_bos_token(processor, words, tiny_images):
    inputs = processor(tiny_images[0], "what is this")
    assert inputs["input_ids"].tolist() == [words(processor, IMAGE + "<s> what is this")]
    assert inputs["image_index"].tolist() == [[0]]


@pytest.mark.parametrize("prompt", ["<image>what is this", "<image>\nwhat is this", " <image> what is this"])
def test_a_leading_placeholder_means_the_same_as_none(processor, tiny_images, prompt):
    plain, marked = processor(tiny_images[0], "what is this"), processor(tiny_images[0], prompt)
    for name in plain:
        assert torch.equal(plain[name], marked[name]), name


def test_other_placeholders_stay_in_place(processor, words, tiny_images):
    inputs = processor([tiny_images[:2]], ["what <image> is <image> this"])
    assert inputs["input_ids"].tolist() == [words(processor, f"<s> what {IMAGE} is {IMAGE} this")]
    assert inputs["image_index"].tolist() == [[0, 1]]


def test_leading_and_inline_placeholders_keep_reading_order(processor, words, tiny_images):
    first, second = tiny_images[:2]
    inputs = processor([[second], [first, second]], ["what", "<image>what <image> is"])
    assert inputs["input_ids"][1].tolist() == words(processor, f"{IMAGE} <s> what {IMAGE} is")
    assert inputs["image_index"].tolist() == [[0, -1], [1, 0]]


def test_several_images_without_placeholders_all_come_first(processor, words, tiny_images):
    inputs = processor(tiny_images[:2], "what is")
    assert inputs["input_ids"].tolist() == [words(processor, IMAGE + IMAGE + "<s> what is")]


def test_a_tokenizer_without_bos_gets_none(make_processor, tiny_images):
    processor = make_processor("gpt2")
    inputs = processor(tiny_images[0], "what is")
    assert inputs["input_ids"][0].tolist() == [processor.image_token_id] * 4 + processor.tokenizer("what is").input_ids


def test_t5_prompts_end_with_the_end_token(make_processor, words, tiny_images):
    processor = make_processor("t5")
    inputs = processor(tiny_images[0], "what is this")
    assert inputs["input_ids"].tolist() == [words(processor, IMAGE + "what is this </s>")]


def test_add_special_tokens_false_leaves_out_bos_but_not_cls(processor, words, tiny_images):
    inputs = processor(tiny_images[0], "what is", add_special_tokens=False)
    assert inputs["input_ids"].tolist() == [words(processor, IMAGE + "what is")]
    assert processor.qformer_tokenizer.decode(inputs["qformer_input_ids"][0]) == "[CLS] what is [SEP]"


def test_the_qformer_reads_the_prompt_without_placeholders(processor, tiny_images):
    inputs = processor([tiny_images[:2]], ["<image>what is <image> this"])
    assert processor.qformer_tokenizer.decode(inputs["qformer_input_ids"][0]) == "[CLS] what is this [SEP]"


def test_qformer_text_replaces_the_prompt_there_only(processor, words, tiny_images):
    inputs = processor(tiny_images[0], "what is this", qformer_text="cat")
    assert processor.qformer_tokenizer.decode(inputs["qformer_input_ids"][0]) == "[CLS] cat [SEP]"
    assert inputs["input_ids"].tolist() == [words(processor, IMAGE + "<s> what is this")]


@pytest.mark.parametrize("language", ["t5", "llama"])
def test_one_image_and_prompt_give_what_transformers_gives(make_processor, tiny_images, language):
    ours = make_processor(language)
    theirs = InstructBlipProcessor(ours.image_processor, ours.tokenizer, ours.qformer_tokenizer, num_query_tokens=4)
    expected = theirs(tiny_images[0].resize((40, 31)), "what is the color of this cat ?", return_tensors="pt")
    got = ours(tiny_images[0].resize((40, 31)), "what is the color of this cat ?")
    for name in ("input_ids", "attention_mask", "pixel_values", "qformer_input_ids", "qformer_attention_mask"):
        assert torch.equal(got[name], expected[name]), name


def test_images_are_squashed_not_cropped(qformer_tokenizer, llama_tokenizer):
    processor = InstructBLIPProcessor(BlipImageProcessorPil(size=224), llama_tokenizer, qformer_tokenizer)
    wide = np.zeros((100, 400, 3), dtype=np.uint8)
    wide[:, 200:] = 255  # the right half is white, and so it stays when the sides are squeezed
    pixels = processor(wide, "what")["pixel_values"]
    assert pixels.shape == (1, 3, 224, 224)
    black, white = -0.48145466 / 0.26862954, (1 - 0.48145466) / 0.26862954  # CLIP's mean and deviation of red
    torch.testing.assert_close(pixels[0, 0, 112, [8, 100, 124, 216]], torch.tensor([black, black, white, white]))


# Rows and images


@pytest.fixture
def rgb_only(qformer_tokenizer, llama_tokenizer):
    """A processor with an image processor that takes three channels only."""
    image_processor = ViTImageProcessorPil(size={"height": 28, "width": 28})
    return InstructBLIPProcessor(image_processor, llama_tokenizer, qformer_tokenizer, num_query_tokens=4)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_image_processors_that_only_take_rgb_get_it(rgb_only, mode):
    assert rgb_only(Image.new(mode, (30, 20)), "what")["pixel_values"].shape == (1, 3, 28, 28)


@pytest.mark.parametrize("shape", [(30, 20), (1, 30, 20), (30, 20, 1)])
def test_a_grey_array_gives_the_pixels_of_the_grey_picture(rgb_only, shape):
    grey = np.random.default_rng(0).integers(256, size=(30, 20), dtype=np.uint8)
    picture = rgb_only(Image.fromarray(grey), "what")["pixel_values"]
    for array in (grey.reshape(shape), torch.from_numpy(grey.reshape(shape))):
        assert torch.equal(rgb_only(array, "what")["pixel_values"], picture)


def test_an_image_that_several_prompts_use_is_processed_once(processor, tiny_images):
    first, second = tiny_images[:2]
    inputs = processor([first, second, first], ["what", "is", "this"])
    assert inputs["pixel_values"].shape[0] == 2
    assert inputs["image_index"].tolist() == [[0], [1], [0]]
    alone = processor(second, "is")
    assert torch.equal(inputs["pixel_values"][1], alone["pixel_values"][0])


def test_the_same_path_is_the_same_image(processor, tiny_images, tmp_path):
    path = tmp_path / "a.png"
    tiny_images[0].save(path)
    inputs = processor([str(path), path, {"bytes": None, "path": str(path)}], ["what", "is", "this"])
    assert inputs["image_index"].tolist() == [[0], [0], [0]]
    assert torch.equal(inputs["pixel_values"], processor(tiny_images[0], "what")["pixel_values"])


def test_equal_images_that_are_different_objects_stay_apart(processor, tiny_images):
    inputs = processor([tiny_images[0], tiny_images[0].copy()], ["what", "is"])
    assert inputs["image_index"].tolist() == [[0], [1]]


def test_one_image_answers_every_prompt(processor, tiny_images):
    inputs = processor(tiny_images[0], ["what", "is", "this"])
    assert inputs["image_index"].tolist() == [[0], [0], [0]]
    assert inputs["pixel_values"].shape[0] == 1


def test_rows_with_none_one_and_several_images(processor, words, tiny_images):
    inputs = processor(
        [None, tiny_images[0], tiny_images[1:3], []], ["what", "is", "this", "cat"], padding_side="right"
    )
    assert inputs["image_index"].tolist() == [[-1, -1], [0, -1], [1, 2], [-1, -1]]
    counts = (inputs["input_ids"] == processor.image_token_id).sum(1)
    assert counts.tolist() == [0, 4, 8, 0]
    assert inputs["input_ids"][0, :2].tolist() == words(processor, "<s> what")


def test_text_only_batches_have_no_pixels(processor):
    assert set(processor(text=["what is", "this"])) == {
        "input_ids",
        "attention_mask",
        "qformer_input_ids",
        "qformer_attention_mask",
    }


def test_images_alone_give_pixels_one_per_image(processor, tiny_images):
    inputs = processor([tiny_images[0], tiny_images[0], tiny_images[1]])
    assert list(inputs) == ["pixel_values"]
    assert inputs["pixel_values"].shape == (3, 3, 28, 28)


def test_a_batch_array_is_a_list_of_images(processor):
    images = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), dtype=np.uint8)
    inputs = processor(images, ["what", "is"])
    assert inputs["image_index"].tolist() == [[0], [1]]
    tensors = processor(torch.from_numpy(images).permute(0, 3, 1, 2), ["what", "is"])
    assert torch.equal(inputs["pixel_values"], tensors["pixel_values"])


def test_encoded_images_stand_in_for_pixels(processor, tiny_images):
    embeds = torch.randn(2, 5, 8)
    inputs = processor(text=["what", "is", "this"], image_embeds=[embeds[0], embeds[1], None])
    assert torch.equal(inputs["image_embeds"], embeds)
    assert "pixel_values" not in inputs
    pixels = processor(text=["what", "is", "this"], images=[*tiny_images[:2], None])
    assert torch.equal(inputs["input_ids"], pixels["input_ids"])
    assert torch.equal(inputs["image_index"], pixels["image_index"])


def test_frames_of_a_video_become_images_of_the_prompt(processor, words):
    clip = np.arange(8, dtype=np.uint8)[:, None, None, None] * np.ones((8, 28, 28, 3), dtype=np.uint8)
    inputs = processor(videos=clip, text="what is")
    assert inputs["input_ids"].tolist() == [words(processor, IMAGE * 4 + "<s> what is")]
    assert inputs["image_index"].tolist() == [[0, 1, 2, 3]]
    frames = processor(list(clip[[0, 2, 4, 6]]), "what is")
    assert torch.equal(inputs["pixel_values"], frames["pixel_values"])


def test_video_placeholders_stay_in_place_and_share_frames(processor, words, tiny_images):
    clip = tiny_images[:2]
    inputs = processor([None, tiny_images[2]], ["what <video>", "<image> is <video>"], videos=[[clip], [clip]])
    assert inputs["input_ids"][0].tolist()[-10:] == words(processor, "<s> what" + " <image>" * 8)
    assert inputs["image_index"].tolist() == [[0, 1, -1], [2, 0, 1]]


def test_num_frames_can_be_set_for_one_call(processor, tiny_images):
    assert processor(videos=tiny_images, text="what")["image_index"].shape == (1, 4)
    assert processor(videos=tiny_images, text="what", num_frames=2)["image_index"].tolist() == [[0, 1]]
    nested = processor(videos=tiny_images, text="what", videos_kwargs={"num_frames": 3})
    assert nested["image_index"].shape == (1, 3)
    assert processor(videos=tiny_images, text="what", do_sample_frames=False)["image_index"].shape == (1, 8)


# Length and padding


def test_prompts_lose_their_beginning_but_neither_bos_nor_image(processor, words, tiny_images):
    inputs = processor(tiny_images[0], "what is the color of this cat", max_length=4)  # BOS and three words
    assert inputs["input_ids"].tolist() == [words(processor, IMAGE + "<s> of this cat")]


def test_truncation_keeps_images_inside_the_text(processor, words, tiny_images):
    inputs = processor(tiny_images[0], "what is the <image> color of this", max_length=3)
    assert inputs["input_ids"].tolist() == [words(processor, f"<s> {IMAGE} of this")]


def test_t5_prompts_keep_their_end_token(make_processor, words, tiny_images):
    processor = make_processor("t5")
    inputs = processor(tiny_images[0], "what is the color", max_length=3)
    assert inputs["input_ids"].tolist() == [words(processor, IMAGE + "the color </s>")]


def test_prompts_are_not_cut_without_max_length(processor, tiny_images):
    inputs = processor(tiny_images[0], "what is " * 300)
    assert inputs["input_ids"].shape == (1, 4 + 1 + 600)


def test_qformer_text_is_cut_on_the_left_to_its_own_length(make_processor, tiny_images):
    processor = make_processor(qformer_max_length=5)
    processor.qformer_tokenizer.truncation_side = "right"
    inputs = processor(tiny_images[0], "what is the color of this cat")
    assert processor.qformer_tokenizer.decode(inputs["qformer_input_ids"][0]) == "[CLS] of this cat [SEP]"
    assert inputs["input_ids"].shape == (1, 4 + 1 + 7)


@pytest.mark.parametrize("padding_side", [None, "left", "right"])
def test_qformer_text_is_padded_on_the_right_whatever_is_asked(processor, tiny_images, padding_side):
    processor.qformer_tokenizer.padding_side = "left"
    inputs = processor(tiny_images[0], ["what is this", "what"], padding_side=padding_side)
    assert inputs["qformer_attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]


def test_padding_side_follows_the_task_not_the_tokenizer(make_processor, tiny_images):
    texts = ["what is this", "what"]
    llama = make_processor("llama")
    llama.tokenizer.padding_side = "right"
    assert llama(tiny_images[0], texts)["attention_mask"][1].tolist() == [0, 0] + [1] * 6
    learned = llama(tiny_images[0], texts, answers=["cat", "cat"])
    assert learned["attention_mask"][1].tolist() == [1] * 8 + [0, 0]
    assert llama(tiny_images[0], texts, padding_side="right")["attention_mask"][1].tolist() == [1] * 6 + [0, 0]
    t5 = make_processor("t5")
    t5.tokenizer.padding_side = "left"
    assert t5(tiny_images[0], texts)["attention_mask"][1].tolist() == [1] * 6 + [0, 0]


def test_padding_stands_outside_image_and_text(processor, words, tiny_images):
    inputs = processor(tiny_images[0], ["what is this", "what"])
    assert inputs["input_ids"][1].tolist() == words(processor, f"<pad> <pad> {IMAGE} <s> what")


def test_every_part_is_padded_to_the_multiple(make_processor, tiny_images):
    processor = make_processor("t5")
    inputs = processor(tiny_images[0], "what is this", answers="cat dog", pad_to_multiple_of=8)
    assert inputs["input_ids"].shape == (1, 8)  # 4 + 3 + 1
    assert inputs["qformer_input_ids"].shape == (1, 8)  # 5
    assert inputs["labels"].shape == (1, 8)  # 3


def test_the_multiple_never_exceeds_the_qformers_length(make_processor, tiny_images):
    processor = make_processor(qformer_max_length=5)
    inputs = processor(tiny_images[0], "what is the color of", pad_to_multiple_of=8)
    assert inputs["qformer_input_ids"].shape == (1, 5)


def test_padding_to_max_length_fixes_the_whole_row(processor, tiny_images):
    inputs = processor([tiny_images[0], None], ["what is " * 10, "what"], padding="max_length", max_length=12)
    assert inputs["input_ids"].shape == (2, 12)
    assert inputs["attention_mask"].sum(1).tolist() == [12, 2]
    assert inputs["qformer_input_ids"].shape == (2, 128)


def test_rows_stay_as_they_are_without_padding(processor, tiny_images):
    inputs = processor(tiny_images[0], ["what is", "what"], padding=False, return_tensors=None)
    assert [len(row) for row in inputs["input_ids"]] == [7, 6]
    assert [len(row) for row in inputs["qformer_input_ids"]] == [4, 3]


def test_numpy_comes_back_when_asked_for(processor, tiny_images):
    inputs = processor(tiny_images[0], "what", return_tensors="np")
    assert all(isinstance(value, np.ndarray) for value in inputs.values())


def test_a_tokenizer_without_pad_token_still_pads(gpt2_tokenizer, qformer_tokenizer, tiny_images):
    gpt2_tokenizer.pad_token = None
    processor = InstructBLIPProcessor(BlipImageProcessorPil(size=28), gpt2_tokenizer, qformer_tokenizer, 4)
    inputs = processor(tiny_images[0], ["what is this", "what"])
    assert inputs["attention_mask"][1, 0] == 0


# Answers


def test_decoder_only_learns_answer_and_end_token_and_nothing_else(processor, words, tiny_images):
    inputs = processor(tiny_images[0], ["what is this", "what"], answers=["cat", "red dog"])
    assert inputs["input_ids"].tolist() == [
        words(processor, IMAGE + "<s> what is this cat </s>"),
        words(processor, IMAGE + "<s> what red dog </s> <pad>"),
    ]
    assert inputs["labels"].tolist() == [
        [-100] * 8 + words(processor, "cat </s>"),
        [-100] * 6 + words(processor, "red dog </s>") + [-100],
    ]


def test_encoder_decoder_answers_are_the_labels(make_processor, words, tiny_images):
    processor = make_processor("t5")
    inputs = processor(tiny_images[0], ["what is this", "what"], answers=["cat", "red dog"])
    assert inputs["labels"].tolist() == [
        [*words(processor, "cat </s>"), -100],
        words(processor, "red dog </s>"),
    ]
    assert torch.equal(inputs["input_ids"], processor(tiny_images[0], ["what is this", "what"])["input_ids"])


@pytest.mark.parametrize("language", ["t5", "llama"])
def test_the_qformer_never_sees_the_answer(make_processor, tiny_images, language):
    """known_defects A1: through the Q-Former an answer would reach the language model unmasked."""
    processor = make_processor(language)
    bare = processor(tiny_images[0], "what is this")
    for answer in ("red", "blue green"):
        inputs = processor(tiny_images[0], "what is this", answers=answer)
        assert torch.equal(inputs["qformer_input_ids"], bare["qformer_input_ids"])


@pytest.mark.parametrize("language", ["t5", "llama"])
def test_image_positions_are_never_learned(make_processor, tiny_images, language):
    processor = make_processor(language)
    inputs = processor([tiny_images[:2]], ["what <image> is <image>"], answers=["cat"])
    assert processor.image_token_id not in inputs["labels"]


@pytest.mark.parametrize("language", ["t5", "llama"])
def test_a_long_answer_loses_its_end_but_keeps_the_end_token(make_processor, words, tiny_images, language):
    processor = make_processor(language)
    inputs = processor(tiny_images[0], "what", answers="red blue green yes", answer_max_length=3)
    learned = [token for token in inputs["labels"][0].tolist() if token != -100]
    assert learned == words(processor, "red blue </s>")


def test_answers_are_encoded_without_bos_or_end_token(make_processor, words):
    for language in ("t5", "llama"):
        processor = make_processor(language)
        assert processor.encode_answers(["cat", "red dog"]) == [words(processor, "cat"), words(processor, "red dog")]


def test_byte_level_answers_read_as_running_text(make_processor, tiny_images):
    processor = make_processor("gpt2")
    running = processor.tokenizer("answer: yes").input_ids
    assert processor.tokenizer("answer:").input_ids + processor.encode_answers(["yes"])[0] == running
    assert processor.encode_answers([" yes"]) == processor.encode_answers(["yes"])
    inputs = processor(tiny_images[0], "answer:", answers="yes")
    assert inputs["input_ids"][0].tolist() == [processor.image_token_id] * 4 + running + [
        processor.tokenizer.eos_token_id
    ]


def test_generated_tokens_decode_to_the_answer(make_processor):
    for language in ("t5", "llama", "gpt2"):
        processor = make_processor(language)
        ids = torch.tensor([[*processor.encode_answers(["red dog"])[0], processor.tokenizer.eos_token_id]])
        assert processor.batch_decode(ids, skip_special_tokens=True)[0].strip() == "red dog"


# Bad input


def test_a_wrong_number_of_placeholders_names_sample_and_counts(processor, tiny_images):
    with pytest.raises(ValueError, match="sample 1 has 2 <image> placeholders in its prompt and 1 images"):
        processor(tiny_images[:2], ["<image>what", "<image>what <image>"])
    with pytest.raises(ValueError, match="sample 0 has 1 <image> placeholders in its prompt and 2 images"):
        processor([tiny_images[:2]], ["<image>what"])
    with pytest.raises(ValueError, match="sample 0 has 1 <image> placeholders in its prompt and 0 images"):
        processor(text="what <image>")
    with pytest.raises(ValueError, match="sample 0 has 2 <video> placeholders in its prompt and 1 videos"):
        processor(videos=tiny_images, text="<video> what <video>")


def test_a_wrong_number_of_images_is_refused(processor, tiny_images):
    with pytest.raises(ValueError, match="3 images for 2 prompts"):
        processor(tiny_images[:3], ["what", "is"])


def test_a_wrong_number_of_answers_is_refused(processor, tiny_images):
    with pytest.raises(ValueError, match="1 answers for 2 prompts"):
        processor(tiny_images[0], ["what", "is"], answers=["cat"])
    with pytest.raises(ValueError, match="3 Q-Former texts for 2 prompts"):
        processor(tiny_images[0], ["what", "is"], qformer_text=["a", "b", "c"])


def test_an_answer_must_not_show_an_image(processor, tiny_images):
    with pytest.raises(ValueError, match="answer 1 contains the placeholder <image>"):
        processor(tiny_images[0], ["what", "is"], answers=["cat", "a <image>"])


def test_a_prompt_beyond_the_models_positions_is_refused(processor, tiny_images):
    processor.tokenizer.model_max_length = 10
    processor(tiny_images[0], "what is this cat ?")  # 4 + 1 + 5
    with pytest.raises(
        ValueError, match="sample 1 is 11 tokens long, 4 of them image tokens, .* takes 10: .*max_length"
    ):
        processor(tiny_images[0], ["what", "what is this red cat ?"])
    processor(tiny_images[0], "what is this red cat ?", max_length=6)


def test_t5s_length_is_only_a_recommendation(make_processor, tiny_images):
    processor = make_processor("t5")
    processor.tokenizer.model_max_length = 10
    assert processor(tiny_images[0], "what is " * 20)["input_ids"].shape == (1, 45)


def test_an_image_that_cannot_be_read_names_the_sample(processor, tiny_images, tmp_path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"image 0 of sample 1 \(.*broken.jpg\) is not an image"):
        processor([tiny_images[0], path], ["what", "is"])


def test_something_that_is_no_image_names_the_sample(processor, tiny_images):
    with pytest.raises(TypeError, match="sample 1 has a int where one image or a list of images was expected"):
        processor([tiny_images[0], 3], ["what", "is"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({}, "pass text, images or both"),
        ({"text": []}, "the list of prompts is empty"),
        ({"text": [1]}, "prompts must be a string or a list of strings"),
        ({"text": "what", "stride": 3}, "stride=3 is not supported"),
        ({"text": "what", "padding": "max_length"}, "needs max_length"),
    ],
)
def test_calls_that_make_no_sense_say_why(processor, call, message):
    with pytest.raises(ValueError, match=message):
        processor(**call)


def test_embeddings_and_pixels_together_are_refused(processor, tiny_images):
    with pytest.raises(ValueError, match="pass one or the other"):
        processor(tiny_images[0], "what", image_embeds=torch.zeros(5, 8))


def test_embeddings_of_different_towers_are_refused(processor):
    with pytest.raises(ValueError, match=r"image 0 of sample 1 has embeddings of shape \(6, 8\) but .* \(5, 8\)"):
        processor(text=["what", "is"], image_embeds=[torch.zeros(5, 8), torch.zeros(6, 8)])


def test_a_qformer_tokenizer_without_cls_is_refused(llama_tokenizer):
    with pytest.raises(ValueError, match="Q-Former tokenizer .* has no cls_token"):
        InstructBLIPProcessor(BlipImageProcessorPil(), llama_tokenizer, copy.deepcopy(llama_tokenizer))


def test_a_model_that_does_not_fit_is_refused_with_every_difference(processor, tiny_config):
    config = tiny_config("llama", image_token_index=processor.image_token_id)
    processor.qformer_max_length = 64
    processor.check_compatible(config)
    config.image_token_id = 7
    config.num_query_tokens = 8
    config.qformer_config.vocab_size = 10
    with pytest.raises(
        ValueError, match=r"image_token_id is \d+ here and 7 in the model; num_query_tokens is 4 here and 8"
    ):
        processor.check_compatible(config)
    with pytest.raises(ValueError, match="the Q-Former's tokenizer has .* tokens but the model only 10"):
        processor.check_compatible(config)
    with pytest.raises(ValueError, match="is_encoder_decoder is False here and True in the model"):
        processor.check_compatible(tiny_config("t5", image_token_index=processor.image_token_id))


def test_only_the_image_token_may_lie_beyond_the_models_vocabulary(processor, tiny_config):
    processor.qformer_max_length = 64
    config = tiny_config("llama", image_token_index=processor.image_token_id)
    config.text_config.vocab_size = processor.image_token_id  # ids up to the one before it
    processor.check_compatible(config)
    config.text_config.vocab_size -= 1
    with pytest.raises(ValueError, match="the language model's tokenizer has 46 tokens but the model only 45"):
        processor.check_compatible(config)


# Saving and loading


def test_a_saved_processor_comes_back_the_same(make_processor, tiny_images, tmp_path):
    processor = make_processor("t5", qformer_max_length=7, num_frames=2)
    before = processor.to_dict()
    processor.save_pretrained(tmp_path)
    assert processor.to_dict() == before
    for loaded in (InstructBLIPProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is InstructBLIPProcessor
        assert loaded.to_dict() == before
        assert loaded.chat_template == processor.chat_template
        call = {"images": tiny_images[0], "text": "what is the color of this cat", "answers": "red", "max_length": 5}
        expected, got = processor(**call), loaded(**call)
        assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_official_folders_load_and_keep_their_ids(qformer_tokenizer, tiny_images, tmp_path):
    """Salesforce/instructblip-*: transformers' processor class, no word about the kind of language model."""
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁what", -3.0), ("▁is", -3.0)]
    tokenizer = T5Tokenizer(vocab=vocabulary)
    image_processor = BlipImageProcessorPil(size={"height": 28, "width": 28})
    theirs = InstructBlipProcessor(image_processor, tokenizer, qformer_tokenizer, num_query_tokens=4)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "instructblip"}')
    ours = InstructBLIPProcessor.from_pretrained(tmp_path)
    assert (ours.is_encoder_decoder, ours.num_query_tokens, ours.qformer_max_length) == (True, 4, 128)
    assert type(ours.image_processor) is BlipImageProcessorPil  # there is no torchvision here
    expected = theirs(tiny_images[0], "what is", return_tensors="pt")
    got = ours(tiny_images[0], "what is")
    assert all(torch.equal(got[name], expected[name]) for name in expected)


@pytest.mark.parametrize("language", ["t5", "llama", "gpt2"])
def test_the_kind_of_language_model_is_told_by_the_end_token(make_processor, language):
    """Not by the tokenizer's class: all of these have the generic one, as Salesforce/instructblip-flan-t5-* has."""
    assert make_processor(language, is_encoder_decoder=None).is_encoder_decoder == (language == "t5")


def test_the_image_token_is_added_once(make_processor):
    tokenizer = make_processor().tokenizer
    size = len(tokenizer)
    assert len(make_processor().tokenizer) == size
    assert tokenizer.convert_tokens_to_ids("<image>") == size - 1


def test_a_tokenizers_own_image_token_is_used(llama_tokenizer, qformer_tokenizer, tiny_images):
    own = PreTrainedTokenizerFast(
        tokenizer_object=llama_tokenizer.backend_tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<|picture|>"},
    )
    processor = InstructBLIPProcessor(BlipImageProcessorPil(size=28), own, qformer_tokenizer, 4)
    assert processor.image_token == "<|picture|>"
    inputs = processor(tiny_images[0], "what <|picture|> is")
    assert (inputs["input_ids"] == own.convert_tokens_to_ids("<|picture|>")).sum() == 4


def test_model_input_names_are_what_comes_back(processor, tiny_images):
    assert set(processor(tiny_images[0], "what")) == set(processor.model_input_names)
