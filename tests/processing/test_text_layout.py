"""Positions of text and image tokens, worked by hand."""

from instructblip.processing.text_layout import drop_beginning, pad_row, padded_length, resolve_prompt, token_positions

IMAGE_ID = 9


def resolve(prompt, images=(), videos=()):
    return resolve_prompt(prompt, [[image] for image in images], videos, "<image>", "<video>", "sample 0")


def test_unplaced_images_come_first_and_then_unplaced_videos():
    prompt = resolve("a b", images=[0, 3], videos=[[1, 2]])
    assert (prompt.leading, prompt.inline, prompt.images, prompt.text) == (4, [], [0, 3, 1, 2], "a b")


def test_a_kind_without_placeholders_goes_first_while_the_other_stays():
    prompt = resolve("a <image> b", images=[0], videos=[[1, 2]])
    assert (prompt.leading, prompt.inline, prompt.images) == (2, [1], [1, 2, 0])


def test_placeholders_are_resolved_in_reading_order():
    prompt = resolve("<video> <image>\na <video> b <image>", images=[0, 1], videos=[[2, 3], [4]])
    assert (prompt.leading, prompt.inline) == (3, [1, 1])
    assert prompt.images == [2, 3, 0, 4, 1]
    assert prompt.text == "a <image> b <image>"
    assert prompt.removed == len("<video> <image>\n")
    assert prompt.qformer_text == "a b"


def test_a_prompt_without_images_is_left_alone():
    prompt = resolve("  a b ")
    assert (prompt.text, prompt.qformer_text, prompt.images) == ("  a b ", "  a b ", [])


def test_positions_put_query_tokens_at_placeholders():
    prompt = resolve("<image>a <image> b", images=[0, 1])
    assert token_positions(prompt, [1, 5, IMAGE_ID, 6], IMAGE_ID, 2) == [-1, -1, 0, 1, -1, -1, 3]


def test_dropping_keeps_prefix_and_images():
    assert drop_beginning([-1, -1, 0, 1, 2, -1, 3, 4], max_text=3, prefix=1) == [-1, -1, 0, -1, 3, 4]
    assert drop_beginning([0, 1, 2], max_text=3, prefix=1) == [0, 1, 2]


def test_padding_goes_to_the_side_asked_for():
    assert pad_row([1, 2], 4, 0, "left") == [0, 0, 1, 2]
    assert pad_row([1, 2], 4, 0, "right") == [1, 2, 0, 0]
    assert pad_row([1, 2], 0, 0, "right") == [1, 2]


def test_lengths_are_rounded_up_to_the_multiple():
    assert [padded_length([[0] * length], 8) for length in (1, 8, 9)] == [8, 8, 16]
    assert padded_length([[0] * 3, [0] * 5], None) == 5
