"""What the harness hands to a model (`Prompt`), and what it asks of one (`Driver`)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from instructblip.processing.image_loading import image_key


class Prompt:
    """What the model sees of a document: a text and references to its pictures.

    Args:
        text: the prompt.
        references: one reference (see `images.py`) or a list of them; None or "" for no picture.
        history: earlier (question, answer) turns, for models with a chat template.
    """

    def __init__(self, text: str, references: Any, history: Sequence[tuple[str, str]] = ()) -> None:
        self.text = text
        if references is None or references == "":
            references = []
        self.references = list(references) if isinstance(references, (list, tuple)) else [references]
        self.image_keys: tuple[Hashable, ...] = tuple(image_key(reference) for reference in self.references)
        self.history = tuple(history)


class Driver(Protocol):
    """A model with its processor."""

    model: Any
    processor: Any
    prompt_form: str  # how prompts become the model's text; written into the results

    @property
    def is_encoder_decoder(self) -> bool: ...

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raise a ValueError for what the model cannot take; called with all prompts before the first is answered."""
        ...

    def inputs(self, prompts: Sequence[Prompt], images: Mapping[Hashable, Image.Image]) -> Any:
        """What `generate` and `score` take of a batch, on the CPU; runs in a background thread while the model works.

        Args:
            images: decoded pictures by the prompts' `image_keys`.
        """
        ...

    def generate(self, inputs: Any, settings: dict[str, Any]) -> list[str]:
        """New text, one a prompt; `settings` are arguments of transformers' `generate`."""
        ...

    def encode_candidates(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of candidate answers, without end token; runs in the background thread."""
        ...

    def score(
        self,
        inputs: Any,
        candidates: list[list[list[int]]],
        add_end_token: bool | None,
        length_normalize: bool,
    ) -> np.ndarray:
        """Log-likelihoods of each prompt's candidates.

        Returns:
            (prompts, most candidates of a prompt) float32 in nats, -inf where a prompt has fewer.
        """
        ...
