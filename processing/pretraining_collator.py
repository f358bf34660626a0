"""Training batches of pictures and captions, for the two stages before instruction tuning (BLIP-2).

What is drawn at random (which of several captions, where a caption is split) depends on seed, epoch and sample alone,
so that a resumed run draws the same.
"""

import hashlib
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature

from .collator import InstructBLIPCollator, sample_name
from .processing_instruct_blip import InstructBLIPProcessor
from .text_layout import pad_row, padded_length

LAVIS_MAX_LENGTH = 32


class CaptionCollator(InstructBLIPCollator):
    """What both stages share: samples of one picture and its captions.

    A sample is a dict with one of `image` or `image_embeds`, as in [`InstructBLIPCollator`]; `caption`, a string, or
    `captions`, a list of which one is drawn (CapFilt), or `response`, which is how our data sets call it; and
    optionally `id`, `dataset`, `image_id` and `epoch`, by which is drawn instead of by that of `set_epoch`.

    Args:
        seed: of what is drawn.
    """

    def __init__(self, processor: InstructBLIPProcessor, seed: int = 0, **kwargs: Any):
        super().__init__(processor, **kwargs)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Draw anew from here on."""
        self.epoch = epoch

    def draw(self, feature: dict[str, Any], name: str) -> tuple[str, random.Random]:
        """A sample's caption in this epoch, and the source of whatever else is drawn for it.

        Raises:
            ValueError: it has none, or something else than text; the message calls the sample `name`.
        """
        key = next((key for key in ("captions", "caption", "response") if feature.get(key) is not None), None)
        if key is None:
            raise ValueError(f"{name}: 'caption' is missing; the keys are {sorted(feature)}")
        captions = feature[key] if key == "captions" else [feature[key]]
        usable = isinstance(captions, (list, tuple)) and captions and all(isinstance(text, str) for text in captions)
        if not usable or not all(text.strip() for text in captions):
            raise ValueError(f"{name}: '{key}' is {feature[key]!r}, where words were expected")
        epoch = self.epoch if feature.get("epoch") is None else feature["epoch"]
        source = random.Random(repr((self.seed, epoch, feature.get("id"), feature.get("image_id"), captions)))
        return source.choice(captions).strip(), source


class InstructBLIPStage1Collator(CaptionCollator):
    """Collate pictures and captions for `InstructBLIPForPreTraining`.

    Two captions of one picture are not wrong for each other, wherever they are in the batch (LAVIS does this where it
    knows the pictures' ids): `image_ids` tells the model. It comes from `image_id`, and without one from the pixels.

    Args:
        processor: its image processor and Q-Former tokenizer are used.
        max_length: tokens kept of a caption, [CLS] and [SEP] included; longer ones lose their end.
        pad_to_multiple_of: of the captions' length.
        keep_ids: also return `id` and `dataset` of the samples, as lists.
        seed: of what is drawn.
    """

    def __init__(
        self,
        processor: InstructBLIPProcessor,
        max_length: int = LAVIS_MAX_LENGTH,
        pad_to_multiple_of: int | None = 8,
        keep_ids: bool = False,
        seed: int = 0,
    ):
        if max_length < 3:
            raise ValueError(f"max_length is {max_length}: [CLS], [SEP] and one token need 3")
        super().__init__(
            processor, seed, max_length=max_length, pad_to_multiple_of=pad_to_multiple_of, keep_ids=keep_ids
        )

    def __call__(self, features: Sequence[dict[str, Any]]) -> BatchFeature:
        """Collate samples.

        Returns:
            pixel_values (images, 3, height, width) or image_embeds (images, patches, hidden), each picture once;
            image_index (rows, 1); image_ids (rows,); input_ids and attention_mask (rows, length), padded on the right;
            with `keep_ids` also lists `id` and `dataset`.

        Raises:
            ValueError: a sample has no caption, or not exactly one picture that can be read. The message names it.
        """
        names = [sample_name(row, feature) for row, feature in enumerate(features)]
        captions = [self.draw(feature, name)[0] for feature, name in zip(features, names, strict=True)]
        ((kind, rows),) = self._images(features, names).items()
        for name, row in zip(names, rows, strict=True):
            if len(row) != 1:
                raise ValueError(f"{name} has {len(row)} images: a caption belongs to one")
        unique = {id(image): image for (image,) in rows}
        numbers = {key: number for number, key in enumerate(unique)}
        data: dict[str, Any] = self._tokens(captions)
        data["image_index"] = [[numbers[id(image)]] for (image,) in rows]
        data["image_ids"] = [
            fingerprint(image if feature.get("image_id") is None else feature["image_id"])
            for feature, (image,) in zip(features, rows, strict=True)
        ]
        batch = BatchFeature(data, tensor_type="pt")
        if kind == "image_embeds":
            batch["image_embeds"] = torch.stack(list(unique.values()))
        else:
            batch["pixel_values"] = self.processor(images=list(unique.values()))["pixel_values"]
        if self.keep_ids:
            batch["id"] = [feature.get("id") for feature in features]
            batch["dataset"] = [feature.get("dataset") for feature in features]
        return batch

    def _tokens(self, captions: list[str]) -> dict[str, list[list[int]]]:
        tokenizer = self.processor.qformer_tokenizer
        encoded = tokenizer(captions, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        ids = [[tokenizer.cls_token_id, *row[: self.max_length - 2], tokenizer.sep_token_id] for row in encoded]
        length = padded_length(ids, self.pad_to_multiple_of)
        return {
            "input_ids": [pad_row(row, length, tokenizer.pad_token_id or 0, "right") for row in ids],
            "attention_mask": [pad_row([1] * len(row), length, 0, "right") for row in ids],
        }


class InstructBLIPStage2Collator(CaptionCollator):
    """Collate pictures and captions for a generative model whose Q-Former reads no text.

    An encoder-decoder reads the beginning of a caption, of a length drawn from none to all but the last word, and
    writes the rest (prefix language modeling). A decoder-only model writes all of it and a new line.

    Args:
        processor: turns the batch into tensors; it says of which kind the language model is.
        max_length: tokens kept of what is read.
        answer_max_length: tokens kept of what is written, the end token included.
        kwargs: `pad_to_multiple_of` and `keep_ids`, as in [`InstructBLIPCollator`].
    """

    def __init__(
        self,
        processor: InstructBLIPProcessor,
        seed: int = 0,
        max_length: int | None = LAVIS_MAX_LENGTH,
        answer_max_length: int | None = LAVIS_MAX_LENGTH,
        **kwargs: Any,
    ):
        super().__init__(processor, seed, max_length=max_length, answer_max_length=answer_max_length, **kwargs)

    def __call__(self, features: Sequence[dict[str, Any]]) -> BatchFeature:
        """Collate samples; returns what [`InstructBLIPCollator`] does.

        Raises:
            ValueError: a sample has no caption or no image that can be read. The message names it.
        """
        prepared = []
        for row, feature in enumerate(features):
            caption, source = self.draw(feature, sample_name(row, feature))
            read, written = "", f"{caption}\n"
            if self.processor.is_encoder_decoder:
                words = caption.split()
                place = source.randrange(len(words))
                read, written = " ".join(words[:place]), " ".join(words[place:])
            kept = {key: value for key, value in feature.items() if key not in ("history", "prompt", "completion")}
            prepared.append({**kept, "instruction": read, "response": written})
        return super().__call__(prepared)


def fingerprint(value: Any) -> int:
    """A signed 64-bit number that is the same for the same id, or pixels, in any process."""
    if isinstance(value, Image.Image):
        parts = (value.mode, value.size, value.tobytes())
    elif isinstance(value, torch.Tensor):
        parts = (tuple(value.shape), value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, np.ndarray):
        parts = (value.shape, value.tobytes())
    else:
        parts = (type(value).__name__, value)
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part if isinstance(part, bytes) else repr(part).encode())
    return int.from_bytes(digest.digest(), "big", signed=True)
