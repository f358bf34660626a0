"""The batches and candidate answers that both models get: random from a fixed seed, with stated lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from model_pairs import NUM_QUERY_TOKENS, Setting, configs

from instructblip.processing.collator import bucket

# (prompt, answer) tokens of each row, beside the 32 of its image.
EQUAL = [(64, 16)] * 8
VQA_LIKE = [(23, 3), (20, 3), (20, 2), (19, 2), (17, 3), (18, 2), (17, 2), (16, 2)]  # 464 padded, 425 real
# Five short questions, two captions and one long answer: 1296 padded, 534 real (decoder-only).
MIXED = [(14, 2), (15, 3), (13, 2), (17, 3), (14, 3), (14, 16), (15, 17), (40, 90)]
QFORMER_TOKENS = 40  # of a row whose prompt has at least as many


@dataclass
class Batch:
    """Rows of one image, one prompt and one answer each, padded on the right.

    Attributes:
        pixel_values: (images, 3, height, width), the unique images.
        image_index: (rows,) the image of each row.
        text: input_ids, attention_mask, qformer_input_ids and qformer_attention_mask.
        labels: as both models take them; None in a batch of prompts.
        prompts: the token ids of each row's prompt, placeholders included.
    """

    pixel_values: torch.Tensor
    image_index: torch.Tensor
    text: dict[str, torch.Tensor]
    labels: torch.Tensor | None
    prompts: list[torch.Tensor]

    def for_peer(self) -> dict[str, Any]:
        """Arguments with every row's own copy of its image, which is what the peer takes."""
        return {"pixel_values": self.pixel_values[self.image_index], **self.text, **self._labels()}

    def for_ours(self, image_embeds: torch.Tensor | None = None, bucketed: bool = False) -> dict[str, Any]:
        """Arguments with each image once, or with its cached features.

        Args:
            image_embeds: the features.
            bucketed: give the sizes that are compiled for, as the trainer's collator rounds them.
        """
        images = {"pixel_values": self.pixel_values} if image_embeds is None else {"image_embeds": image_embeds}
        index = {"image_index": self.image_index[:, None]} if len(self.pixel_values) < len(self.image_index) else {}
        arguments = {**images, **index, **self.text, **self._labels()}
        if self.labels is not None:
            lengths, supervised = self.text["attention_mask"].sum(dim=1), int((self.labels != -100).sum())
            sizes = {"tokens": int(lengths.sum()), "longest": int(lengths.max()), "supervised": supervised}
            if bucketed:
                sizes = {"tokens": bucket(sizes["tokens"], 4), "supervised": bucket(supervised)}
            arguments["sizes"] = {**sizes, "uses": len(self.image_index)}
        return arguments

    def _labels(self) -> dict[str, torch.Tensor]:
        return {} if self.labels is None else {"labels": self.labels}


def new_batch(setting: Setting, lengths: list[tuple[int, int]], rows_per_image: int = 1) -> Batch:
    """Rows of (prompt, answer) lengths; an answer of 0 tokens makes a batch of prompts to answer."""
    config = configs(setting)[1]
    generator = torch.Generator().manual_seed(0)
    size = config.vision_config.image_size
    image_token = config.image_token_id
    image_rows = torch.full((NUM_QUERY_TOKENS,), image_token)

    def tokens(count: int, vocabulary: int) -> torch.Tensor:
        return torch.randint(3, vocabulary - 1, (count,), generator=generator)  # neither special nor placeholder

    prompts = [torch.cat([image_rows, tokens(prompt, image_token)]) for prompt, _ in lengths]
    answers = [tokens(answer, image_token) for _, answer in lengths]
    instructions = [tokens(min(prompt, QFORMER_TOKENS), config.qformer_config.vocab_size) for prompt, _ in lengths]
    inputs, labels = prompts, answers
    if not config.is_encoder_decoder:
        inputs = [torch.cat(pair) for pair in zip(prompts, answers, strict=True)]
        labels = [torch.cat([torch.full_like(p, -100), a]) for p, a in zip(prompts, answers, strict=True)]

    text = dict(zip(("input_ids", "attention_mask"), _pad(inputs), strict=True))
    text.update(zip(("qformer_input_ids", "qformer_attention_mask"), _pad(instructions), strict=True))
    images = -(-len(lengths) // rows_per_image)
    pixels = torch.randn(images, 3, size, size, generator=generator)
    learned = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
    device = setting.device
    return Batch(
        pixel_values=pixels.to(device=device, dtype=setting.dtype),
        image_index=(torch.arange(len(lengths)) // rows_per_image).to(device),
        text={name: tensor.to(device) for name, tensor in text.items()},
        labels=learned.to(device) if any(answer for _, answer in lengths) else None,
        prompts=[prompt.to(device) for prompt in prompts],
    )


def _pad(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return ids, mask


def candidate_answers(setting: Setting, kind: str) -> list[list[int]]:
    """Different answers without end token.

    - "16": two to four tokens, all tokens uniform.
    - "100": one to six tokens; first tokens follow Zipf's law with exponent 1, so many answers begin alike.
    - "1000": a vocabulary of short answers; 75 % have one token, 18 % two, 7 % three; all tokens uniform.
    """
    generator = torch.Generator().manual_seed(1)
    size = int(kind)
    vocabulary = configs(setting)[1].image_token_id
    weights = torch.zeros(vocabulary)
    weights[3:] = 1 / torch.arange(1, vocabulary - 2) if kind == "100" else 1.0
    kinds: dict[str, list[float]] = {"16": [0, 1, 1, 1], "100": [1, 1, 1, 1, 1, 1], "1000": [0.75, 0.18, 0.07]}
    shares = kinds[kind]
    if kind == "1000":  # exactly these shares
        wanted = [length for length, share in enumerate(shares, 1) for _ in range(round(size * share))]
        wanted = [wanted[i] for i in torch.randperm(size, generator=generator)]
    else:
        drawn = torch.multinomial(torch.tensor(shares, dtype=torch.float), size, replacement=True, generator=generator)
        wanted = (drawn + 1).tolist()
    found: dict[tuple[int, ...], None] = {}
    for length in wanted:
        answer: tuple[int, ...] | None = None
        while answer is None or answer in found:
            first = int(torch.multinomial(weights, 1, generator=generator))
            rest = torch.randint(3, vocabulary, (length - 1,), generator=generator).tolist()
            answer = (first, *rest)
        found[answer] = None
    return [list(answer) for answer in found]
