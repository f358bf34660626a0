"""Where text and image tokens of a prompt go; plain functions on lists, one row at a time."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

IMAGE_POSITION = -1  # stands for an image token among the token numbers of a row


@dataclass
class Prompt:
    """A prompt whose placeholders have been resolved.

    Args:
        text: what the language model's tokenizer reads; every placeholder in it is one image token.
        removed: characters cut off in front, which count for character offsets.
        leading: uses of images before the BOS token.
        inline: uses of images at each placeholder in `text`: one, or one per frame of a video.
        images: number of the image of each use, in reading order.
        qformer_text: the prompt without placeholders.
    """

    text: str
    removed: int
    leading: int
    inline: list[int]
    images: list[int]
    qformer_text: str


def resolve_prompt(
    prompt: str,
    images: Sequence[Sequence[int]],
    videos: Sequence[Sequence[int]],
    image_token: str,
    video_token: str,
    name: str,
) -> Prompt:
    """Match the placeholders of a prompt with its images and videos.

    Images without `<image>` in the prompt are shown in front of it, and so are videos without `<video>`. Placeholders
    at the beginning of the prompt mean the same, and the white space after them goes with them.

    Args:
        images: for each of its images a list of its number.
        videos: for each of its videos the numbers of the frames.
        name: what an error calls the prompt, such as `"sample 3"`.

    Raises:
        ValueError: there are placeholders, and not as many as images or videos.
    """
    either = f"(?:{re.escape(image_token)}|{re.escape(video_token)})"
    markers = re.findall(either, prompt)
    uses: list[list[int]] = []
    for token, given, kind in ((image_token, images, "image"), (video_token, videos, "video")):
        if token not in markers:
            uses += [list(use) for use in given]
        elif markers.count(token) != len(given):
            raise ValueError(
                f"{name} has {markers.count(token)} {token} placeholders in its prompt and {len(given)} {kind}s: "
                f"write {token} once per {kind}, or not at all to show them first"
            )
    unplaced = len(uses)
    left = {image_token: iter(images), video_token: iter(videos)}
    uses += [list(next(left[marker])) for marker in markers]
    beginning = re.match(rf"(?:\s*{either})+\s*", prompt)
    removed = beginning.end() if beginning else 0
    leading = unplaced + len(re.findall(either, prompt[:removed]))
    text = prompt[removed:]
    return Prompt(
        text=re.sub(either, lambda _: image_token, text),
        removed=removed,
        leading=sum(len(use) for use in uses[:leading]),
        inline=[len(use) for use in uses[leading:]],
        images=[number for use in uses for number in use],
        qformer_text=re.sub(rf"\s*{either}\s*", " ", text).strip() if leading < len(uses) else text,
    )


def token_positions(prompt: Prompt, token_ids: Sequence[int], image_token_id: int, num_query_tokens: int) -> list[int]:
    """For each position of the row the number of the token that stands there, IMAGE_POSITION for image tokens."""
    positions = [IMAGE_POSITION] * (prompt.leading * num_query_tokens)
    if not prompt.inline:
        return positions + list(range(len(token_ids)))
    uses = iter(prompt.inline)
    for number, token in enumerate(token_ids):
        if token == image_token_id:
            positions += [IMAGE_POSITION] * (next(uses) * num_query_tokens)
        else:
            positions.append(number)
    return positions


def drop_beginning(positions: Sequence[int], max_text: int, prefix: int) -> list[int]:
    """Drop the first text tokens until `max_text` are left; image tokens and the first `prefix` tokens stay."""
    excess = sum(position != IMAGE_POSITION for position in positions) - max_text
    kept = []
    for position in positions:
        if excess > 0 and position >= prefix:
            excess -= 1
        else:
            kept.append(position)
    return kept


def pad_row(row: Sequence[Any], length: int, value: Any, side: str) -> list[Any]:
    """Bring a row to `length`; a longer one stays as it is."""
    padding = [value] * (length - len(row))
    return [*padding, *row] if side == "left" else [*row, *padding]


def padded_length(rows: Sequence[Sequence[Any]], multiple: int | None) -> int:
    """Length of the longest row, rounded up to a multiple."""
    longest = max(len(row) for row in rows)
    return -(-longest // multiple) * multiple if multiple else longest
