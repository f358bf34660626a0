"""Which row uses which image, and whether its placeholders fit."""

from __future__ import annotations

import torch

from .packing import assert_later, places_of


def find_uses(
    image_index: torch.Tensor | None,
    num_images: int,
    qformer_input_ids: torch.Tensor | None,
    num_uses: int | None = None,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Row and image of each use of an image, in reading order.

    Args:
        image_index: (rows, most images of a row), -1 for none; None: row i shows image i.
        num_images: unique images of the batch.
        qformer_input_ids: (rows, length) instructions, whose number must fit.
        num_uses: where the host knows it. If there are fewer, uses that no placeholder takes follow.

    Returns:
        Two (uses,) tensors, or (None, None) when row i shows image i.

    Raises:
        ValueError: rows and images do not fit, naming the sample.
    """
    if image_index is None:
        if qformer_input_ids is not None and len(qformer_input_ids) != num_images:
            raise ValueError(
                f"{num_images} images for {len(qformer_input_ids)} instructions: pass image_index to say which row "
                "shows which image"
            )
        return None, None
    if qformer_input_ids is not None and len(qformer_input_ids) != len(image_index):
        raise ValueError(f"image_index has {len(image_index)} rows for {len(qformer_input_ids)} instructions")
    if not _may_look(image_index, num_uses is not None):
        num_uses = image_index.numel() if num_uses is None else num_uses  # so that no shape depends on data
        assert_later((image_index < num_images).all(), "some rows show images that are not there")
    elif image_index.numel() and int(image_index.max()) >= num_images:
        row = int((image_index >= num_images).any(dim=1).nonzero()[0])
        raise ValueError(f"sample {row} shows image {int(image_index[row].max())}, but there are {num_images} images")
    places = places_of(image_index >= 0, num_uses)
    return places // image_index.shape[1], image_index.flatten()[places].clamp(min=0)


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
        image_index: as in `find_uses`.
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
    if not _may_look(found, sizes_known):
        assert_later((found == expected).all(), "some rows have more or fewer placeholders than their images need")
    elif not torch.equal(found, expected):
        row = int((found != expected).nonzero()[0])
        raise ValueError(
            f"sample {row} has {int(found[row])} image placeholders and its images need {int(expected[row])}: "
            f"put {num_query_tokens} placeholder tokens per image into its prompt (the processor does)"
        )


def _may_look(tensor: torch.Tensor, sizes_known: bool) -> bool:
    """Whether to read values, so that an error can name the sample: not of a GPU that need not be waited for."""
    return not torch.compiler.is_compiling() and (not sizes_known or tensor.device.type == "cpu")
