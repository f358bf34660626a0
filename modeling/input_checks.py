"""Whether what a model is given fits it; what does not is named in one sentence."""

from __future__ import annotations

import torch
from transformers import PreTrainedConfig

from .packing import assert_later


def may_look(tensor: torch.Tensor, sizes_known: bool) -> bool:
    """Whether to read values, so that an error can name the sample: not of a GPU that need not be waited for."""
    return not torch.compiler.is_compiling() and (not sizes_known or tensor.device.type == "cpu")


def check_placeholders(
    is_image: torch.Tensor,
    features: torch.Tensor | None,
    image_index: torch.Tensor | None,
    num_query_tokens: int,
    sizes_known: bool = False,
) -> None:
    """Refuse rows without exactly one placeholder per query output of their images.

    Args:
        is_image: (rows, seq) True at placeholders.
        features: (uses, query, llm_hidden) of all images, or None.
        image_index: (rows, most images of a row) image of each use, -1 for none; None: row i shows image i.
        sizes_known: to the host, which then does not wait for a GPU: what does not fit is found by `assert_later`.

    Raises:
        ValueError: naming the first sample that does not fit, and both counts.
    """
    found = is_image.sum(dim=1)
    if features is None:
        expected = torch.zeros_like(found)
    elif image_index is None:
        expected = torch.full_like(found, num_query_tokens)
    else:
        expected = (image_index >= 0).sum(dim=1).to(found.device) * num_query_tokens
    if len(found) != len(expected):
        raise ValueError(f"image_index has {len(expected)} rows for {len(found)} prompts")
    if features is not None and image_index is None and len(features) != len(found):
        raise ValueError(f"{len(features)} images for {len(found)} prompts: pass image_index")
    if not may_look(found, sizes_known):
        assert_later((found == expected).all(), "some rows have more or fewer placeholders than their images need")
    elif not torch.equal(found, expected):
        row = int((found != expected).nonzero()[0])
        raise ValueError(
            f"sample {row} has {int(found[row])} image placeholders and its images need {int(expected[row])}: "
            f"put {num_query_tokens} placeholder tokens per image into its prompt (the processor does)"
        )


def check_ids(
    ids: torch.Tensor, vocabulary: int, reader: str, sizes_known: bool = False, ignored: int | None = None
) -> None:
    """Refuse ids that are not in the vocabulary of what reads them.

    Args:
        ids: (rows, length).
        vocabulary: how many there are.
        reader: its name.
        sizes_known: as in `check_placeholders`. An embedding on a GPU asserts by itself that ids fit.
        ignored: an id that stands for none, as -100 among labels.

    Raises:
        ValueError: naming the first sample with such an id, and the id.
    """
    if not may_look(ids, sizes_known):
        return
    beyond = (ids < 0) | (ids >= vocabulary)
    if ignored is not None:
        beyond &= ids != ignored
    if beyond.any():
        row, place = beyond.nonzero()[0].tolist()
        raise ValueError(
            f"sample {row} has token {int(ids[row, place])}, but the vocabulary of the {reader} has {vocabulary}: use "
            "the processor that was saved with the model"
        )


def check_labels(labels: torch.Tensor, read: torch.Tensor) -> None:
    """Refuse labels (rows, seq) of another shape than what the decoder reads, (rows, seq) or (rows, seq, hidden)."""
    if labels.shape != read.shape[:2]:
        raise ValueError(
            f"labels are {tuple(labels.shape)} and what the decoder reads is {tuple(read.shape[:2])}: pass a label for "
            "each token, -100 where nothing is learned"
        )


def check_length(attention_mask: torch.Tensor, text_config: PreTrainedConfig, further: int = 0) -> None:
    """Refuse prompts that have, with what follows, more tokens than a decoder-only language model has positions.

    Args:
        attention_mask: (rows, seq) of the prompts.
        text_config: the language model's.
        further: how many tokens may be read after a prompt.

    Raises:
        ValueError: naming both numbers. What is compiled asserts on the device, without them.
    """
    positions = getattr(text_config, "max_position_embeddings", None)
    if positions is None or attention_mask.shape[1] + further <= positions:
        return
    longest = attention_mask.sum(dim=1).max() + further
    if torch.compiler.is_compiling():
        assert_later(longest <= positions, f"a prompt is longer than the {positions} positions of the language model")
    elif longest > positions:
        counted = f"{int(longest) - further} tokens" + (f" and {further} tokens that may follow" if further else "")
        raise ValueError(
            f"a prompt of {counted} is longer than the {positions} positions of the language model "
            f"({text_config.model_type}): shorten it or pass max_length to the processor"
        )
