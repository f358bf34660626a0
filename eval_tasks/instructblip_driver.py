"""Our model behind the interface of `driver.py`."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature

from instructblip.eval_tasks.driver import Prompt
from instructblip.processing.chat_template import join_history


class InstructBLIPDriver:
    """An InstructBLIP model and its processor.

    Args:
        model: on its device, in eval mode.
        max_length: most text tokens of a prompt, longer ones lose their beginning. Default: no limit.
    """

    prompt_form = "plain prompt"

    def __init__(self, model: Any, processor: Any, max_length: int | None = None) -> None:
        self.model = model
        self.processor = processor
        self.max_length = max_length
        self._tokenizing = threading.Lock()  # a tokenizer that pads in one thread must not decode in another

    @property
    def is_encoder_decoder(self) -> bool:
        return bool(self.model.config.is_encoder_decoder)

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Any number of pictures will do."""

    def inputs(self, prompts: Sequence[Prompt], images: Mapping[Hashable, Image.Image]) -> BatchFeature:
        pictures = [[images[key] for key in prompt.image_keys] or None for prompt in prompts]
        with self._tokenizing:
            return self.processor(
                images=pictures if any(pictures) else None,
                text=[join_history(_turns(prompt), prompt.text) for prompt in prompts],
                max_length=self.max_length,
                padding=True,
                return_tensors="pt",
            )

    @torch.inference_mode()
    def generate(self, inputs: BatchFeature, settings: dict[str, Any]) -> list[str]:
        # The model brings pictures to the precision of its vision tower.
        tokens = self.model.generate(**inputs.to(self.model.device), **settings)
        with self._tokenizing:
            return self.processor.batch_decode(tokens, skip_special_tokens=True)

    def encode_candidates(self, texts: Sequence[str]) -> list[list[int]]:
        with self._tokenizing:
            return self.processor.encode_answers(list(texts))

    @torch.inference_mode()
    def score(
        self,
        inputs: BatchFeature,
        candidates: list[list[list[int]]],
        add_end_token: bool | None,
        length_normalize: bool,
    ) -> np.ndarray:
        scores = self.model.score_candidates(
            candidates=candidates,
            add_end_token=add_end_token,
            length_normalize=length_normalize,
            **inputs.to(self.model.device),
        )
        return scores.float().cpu().numpy()


def _turns(prompt: Prompt) -> list[dict[str, str]]:
    return [{"question": question, "answer": answer} for question, answer in prompt.history]
