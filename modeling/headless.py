"""The model without its head, which is how TRL's trainers call it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPast

from .packing import positions_from_mask, takes_position_ids

if TYPE_CHECKING:
    from .modeling_instruct_blip import InstructBLIPForConditionalGeneration


class Headless:
    """A model up to the last hidden state of its language model; everything else is the model's.

    TRL (1.16, `add_fused_lm_head`) applies the head by itself, in pieces, so that no batch of vocabulary logits exists.
    """

    def __init__(self, model: InstructBLIPForConditionalGeneration):
        self._whole = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)

    def __call__(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        qformer_input_ids: torch.Tensor | None = None,
        qformer_attention_mask: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        sizes: Mapping[str, int] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the model; arguments are those of its `forward`.

        Returns:
            The language model's output: `last_hidden_state` (rows, seq, hidden).

        Raises:
            ValueError: the language model is an encoder-decoder, whose answers are no part of `input_ids`.
        """
        model = self._whole
        if model.config.is_encoder_decoder:
            raise ValueError(
                f"TRL's trainers are for decoder-only language models and {model.config.text_config.model_type} is an "
                "encoder-decoder: train it with InstructBLIPTrainer"
            )
        embeds, mask, _, features = model._prompt(
            input_ids,
            attention_mask,
            inputs_embeds,
            pixel_values,
            image_embeds,
            image_index,
            qformer_input_ids,
            qformer_attention_mask,
            sizes,
        )
        language_model = model.language_model
        if hasattr(language_model, "get_base_model"):  # PEFT's wrapper
            language_model = language_model.get_base_model()
        if "position_ids" not in kwargs and takes_position_ids(language_model):
            kwargs["position_ids"] = positions_from_mask(mask)
        output = language_model.base_model(inputs_embeds=embeds, attention_mask=mask, **kwargs)
        if features is None and model.training and torch.is_grad_enabled():
            output.last_hidden_state = output.last_hidden_state + model._no_image()
        return output
