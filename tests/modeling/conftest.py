"""Rows of prompts, images and answers laid out as a batch with any padding."""

from dataclasses import dataclass

import pytest
import torch

QUERIES, IMAGE_TOKEN, PAD = 4, 79, 0


@dataclass
class Row:
    """One sample; `images` are numbers into the pictures of the test."""

    text: tuple[int, ...]
    images: tuple[int, ...] = (0,)
    answer: tuple[int, ...] = ()
    instruction: tuple[int, ...] = ()  # for the Q-Former; default: the text


PICTURES = torch.randn(6, 3, 28, 28, generator=torch.Generator().manual_seed(5))


def pad(lists, value, side="right", width=None):
    """(rows, longest) from lists of ids, and the mask."""
    width = width or max(len(ids) for ids in lists)
    ids, mask = torch.full((len(lists), width), value), torch.zeros(len(lists), width, dtype=torch.long)
    for row, values in enumerate(lists):
        where = slice(0, len(values)) if side == "right" else slice(width - len(values), width)
        ids[row, where], mask[row, where] = torch.tensor(values, dtype=torch.long), 1
    return ids, mask


def make_batch(
    rows, language="llama", side="right", qformer_side="right", labels=False, extra=0, shared_images=True, pictures=None
):
    """Model inputs of `rows`.

    Args:
        side: of the language model's padding: "left", "right", "inner" (between the images and the text, as official
            processors pad on the left) or "before answer".
        extra: columns of padding beyond the longest row.
        shared_images: whether a picture that several rows show enters `pixel_values` once.
    """
    rows = [row if isinstance(row, Row) else Row(**row) for row in rows]
    decoder_only = language != "t5"
    heads, tails = [], []  # the padding goes between
    for row in rows:
        image_ids, text = [IMAGE_TOKEN] * QUERIES * len(row.images), list(row.text)
        answer = list(row.answer) if labels and decoder_only else []
        whole = image_ids + text + answer
        cut = {"right": len(whole), "left": 0, "inner": len(image_ids), "before answer": len(image_ids + text)}[side]
        heads.append(whole[:cut])
        tails.append(whole[cut:])
    width = max(len(head) + len(tail) for head, tail in zip(heads, tails, strict=True)) + extra
    ids, mask = pad(heads, PAD, "right", width)
    tail_ids, tail_mask = pad(tails, PAD, "left", width)
    batch = {"input_ids": torch.where(tail_mask == 1, tail_ids, ids), "attention_mask": mask | tail_mask}
    batch["qformer_input_ids"], batch["qformer_attention_mask"] = pad(
        [row.instruction or row.text for row in rows], PAD, qformer_side
    )
    if labels and decoder_only:
        batch["labels"] = torch.full_like(ids, -100)
        for number, row in enumerate(rows):
            real = batch["attention_mask"][number].nonzero()[:, 0]
            if row.answer:
                batch["labels"][number, real[-len(row.answer) :]] = torch.tensor(row.answer)
    elif labels:
        target, target_mask = pad([row.answer for row in rows], PAD)
        batch["labels"] = target.masked_fill(target_mask == 0, -100)
    pictures = PICTURES if pictures is None else pictures
    uses = [picture for row in rows for picture in row.images]
    if not uses:
        return batch
    unique = sorted(set(uses)) if shared_images else uses
    batch["pixel_values"] = pictures[unique]
    places = iter(range(len(uses)))
    index = [[unique.index(use) if shared_images else next(places) for use in row.images] for row in rows]
    batch["image_index"] = pad([[number + 1 for number in row] for row in index], 0)[0] - 1
    return batch


@pytest.fixture(name="make_batch")
def make_batch_fixture():
    return make_batch


MIXED_ROWS = [
    Row((5, 6, 7, 8, 9, 10, 11), (0,), (20, 21, 2)),
    Row((12, 13), (1,), (22, 2)),
    Row((14, 15, 16, 17), (), (23, 24, 25, 2)),  # text only
    Row((18, 19, 30), (2, 0, 3), (26, 2)),  # several, one of them shared with the first row
    Row((31, 32, 33, 34, 35), (0,), (27, 28, 2)),  # the first row's picture under another instruction
]


@pytest.fixture
def mixed_rows():
    """Rows with one, no and several images, different lengths, and a picture shown three times."""
    return list(MIXED_ROWS)
