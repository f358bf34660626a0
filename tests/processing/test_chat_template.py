"""Conversations become the plain text that the checkpoints were trained on."""

import pytest
import torch

from instructblip.processing.chat_template import join_history


def user(*parts):
    blocks = {"text": "text", "image": "image", "video": "video"}
    return {"role": "user", "content": [{"type": blocks[kind], kind: value} for kind, value in parts]}


def assistant(text):
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


@pytest.mark.parametrize("generation", [True, False])
def test_one_question_is_exactly_that_question(processor, generation):
    question = "Question: what is this? Short answer:"
    for content in (question, [{"type": "text", "text": question}]):
        messages = [{"role": "user", "content": content}]
        assert processor.apply_chat_template(messages, add_generation_prompt=generation) == question


def test_one_question_about_an_image_is_what_the_processor_makes_of_both(processor, tiny_images):
    messages = [user(("image", tiny_images[0]), ("text", "what is this"))]
    got = processor.apply_chat_template(messages, tokenize=True, return_dict=True, add_generation_prompt=True)
    expected = processor(tiny_images[0], "what is this")
    assert set(got) == set(expected)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_an_image_named_after_the_question_still_comes_first(processor, tiny_images):
    before = [user(("image", tiny_images[0]), ("text", "what is this"))]
    after = [user(("text", "what is this"), ("image", tiny_images[0]))]
    assert processor.apply_chat_template(after) == processor.apply_chat_template(before) == "<image>what is this"


def test_several_texts_keep_their_order_with_images(processor, tiny_images):
    messages = [user(("text", "is "), ("image", tiny_images[0]), ("text", " or "), ("image", tiny_images[1]))]
    assert processor.apply_chat_template(messages) == "is <image> or <image>"
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True)
    assert inputs["image_index"].tolist() == [[0, 1]]


def test_history_is_plain_text_in_front(processor, tiny_images):
    messages = [
        user(("image", tiny_images[0]), ("text", "what is this?")),
        assistant("a cat"),
        user(("text", "what is the color?")),
    ]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert prompt == "<image>what is this? a cat\nwhat is the color?"
    history = [{"question": "what is this?", "answer": "a cat"}]
    assert prompt == "<image>" + join_history(history, "what is the color?")


def test_a_system_message_is_the_first_line(processor):
    messages = [{"role": "system", "content": "short answer"}, user(("text", "what is this"))]
    assert processor.apply_chat_template(messages) == "short answer\nwhat is this"


def test_a_finished_conversation_is_the_open_one_continued_and_closed(processor):
    """Training on prompt and completion needs the one to begin with the other."""
    prompt = processor.apply_chat_template([user(("text", "what is this"))], add_generation_prompt=True)
    whole = processor.apply_chat_template([user(("text", "what is this")), assistant("a cat")])
    assert whole == prompt + " a cat</s>"
    earlier = [user(("text", "what")), assistant("a cat"), user(("text", "is"))]
    assert "</s>" not in processor.apply_chat_template(earlier)


def test_a_final_answer_can_be_continued(processor):
    messages = [user(("text", "what is this")), assistant("a red")]
    assert processor.apply_chat_template(messages, continue_final_message=True) == "what is this a red"


def test_conversations_of_a_batch_may_differ_in_images(processor, tiny_images):
    batch = [
        [user(("text", "what is this"))],
        [user(("image", tiny_images[0]), ("image", tiny_images[1]), ("text", "what is this"))],
    ]
    inputs = processor.apply_chat_template(batch, tokenize=True, return_dict=True)
    assert inputs["image_index"].tolist() == [[-1, -1], [0, 1]]
    assert (inputs["input_ids"] == processor.image_token_id).sum(1).tolist() == [0, 8]


def test_a_video_in_a_conversation_gives_its_frames(processor, tiny_images):
    messages = [user(("video", tiny_images), ("text", "what is this"))]
    options = {"num_frames": 2}
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, processor_kwargs=options)
    assert inputs["image_index"].tolist() == [[0, 1]]


def test_answer_positions_can_be_asked_for(processor, tiny_images):
    messages = [user(("image", tiny_images[0]), ("text", "what is this")), assistant("red cat")]
    batch = [messages, [user(("text", "what")), assistant("dog")]]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template(batch, return_assistant_tokens_mask=True, **options)
    answers = [ids[mask.bool()] for ids, mask in zip(inputs["input_ids"], inputs["assistant_masks"], strict=True)]
    assert [processor.tokenizer.decode(ids) for ids in answers] == ["red cat </s>", "dog </s>"]


def test_a_part_that_is_neither_text_nor_picture_is_named(processor):
    messages = [{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}]
    with pytest.raises(Exception, match="message part of type 'audio': use 'text', 'image' or 'video'"):
        processor.apply_chat_template(messages)
