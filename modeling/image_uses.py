"""Which row uses which image."""

from __future__ import annotations

import torch

from .input_checks import may_look
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
    if not may_look(image_index, num_uses is not None):
        num_uses = image_index.numel() if num_uses is None else num_uses  # so that no shape depends on data
        assert_later((image_index < num_images).all(), "some rows show images that are not there")
    elif image_index.numel() and int(image_index.max()) >= num_images:
        row = int((image_index >= num_images).any(dim=1).nonzero()[0])
        raise ValueError(f"sample {row} shows image {int(image_index[row].max())}, but there are {num_images} images")
    places = places_of(image_index >= 0, num_uses)
    return places // image_index.shape[1], image_index.flatten()[places].clamp(min=0)
