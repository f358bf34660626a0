"""The frozen vision tower and the LayerNorm after it, which trains: what every stage's model has."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import torch
from torch import nn
from transformers import AutoModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.instructblip.modeling_instructblip import InstructBlipVisionModel
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_instruct_blip import InstructBLIPConfig
from .lean_blocks import own_precision


class InstructBLIPVisionModel(InstructBlipVisionModel):
    """transformers' EVA ViT-g, returning its features before the last LayerNorm.

    That LayerNorm (LAVIS' `ln_vision`) trains while the tower is frozen, so it belongs to the bridge; it keeps its
    place in the state dict.
    """

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs) -> BaseModelOutput:
        hidden = self.embeddings(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
        return self.encoder(inputs_embeds=hidden, **kwargs)


class VisionTowerMixin:
    """`vision_model`, its LayerNorm and what of a model trains; a model says in `bridge_modules` what besides."""

    config: InstructBLIPConfig
    bridge_modules: tuple[str, ...]

    def build_vision_tower(self, config: InstructBLIPConfig) -> None:
        """Make `vision_model` and, where the tower has no such LayerNorm, `ln_vision`."""
        if config.vision_config.model_type == "instructblip_vision_model":
            self.vision_model = InstructBLIPVisionModel._from_config(config.vision_config)
        else:
            self.vision_model = AutoModel.from_config(config.vision_config)
            self.ln_vision = nn.LayerNorm(config.vision_config.hidden_size)
        if config.post_layernorm_eps is not None:
            self.vision_layernorm.eps = config.post_layernorm_eps

    @property
    def vision_layernorm(self) -> nn.LayerNorm:
        """The trained LayerNorm between the frozen tower and the Q-Former."""
        if isinstance(self.vision_model, InstructBLIPVisionModel):
            return self.vision_model.post_layernorm
        return self.ln_vision

    @property
    def norm_name(self) -> str:
        """Name of `vision_layernorm`. Other towers than the EVA one have a `post_layernorm` of their own, frozen."""
        return "vision_model.post_layernorm" if _is_eva(self.vision_model) else "ln_vision"

    def named_bridge_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that train: those of `bridge_modules` and the vision LayerNorm."""
        for name, parameter in self.named_parameters():
            if any(name == part or name.startswith(part + ".") for part in (*self.bridge_modules, self.norm_name)):
                yield name, parameter

    def encode_images(self, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutput:
        """Run the vision tower up to its trained LayerNorm; the result can be stored and passed as `image_embeds`.

        Args:
            pixel_values: (images, 3, height, width). A size other than the tower's interpolates its positions.

        Returns:
            `last_hidden_state` (images, patches, vision_hidden), without gradient where the tower is frozen.

        Raises:
            ValueError: the tower cannot take this image size.
        """
        tower = self.vision_model
        outside = "post_layernorm" if _is_eva(tower) else "ln_vision"  # a trained LayerNorm is not the tower's
        own = [parameter for name, parameter in tower.named_parameters() if not name.startswith(outside)]
        frozen = not any(parameter.requires_grad for parameter in own)
        pixel_values = move(pixel_values, next(tower.parameters())).to(tower.dtype)
        size = self.config.vision_config.image_size
        size = (size, size) if isinstance(size, int) else tuple(size)
        other_size = tuple(pixel_values.shape[-2:]) != size
        if other_size and (_is_eva(tower) or "interpolate_pos_encoding" in inspect.signature(tower.forward).parameters):
            kwargs["interpolate_pos_encoding"] = True
        elif other_size and not _resizes_itself(tower):
            raise ValueError(
                f"images of {tuple(pixel_values.shape[-2:])} pixels for a {type(tower).__name__} of {size}: "
                "resize them (the processor does)"
            )
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen), own_precision(own, pixel_values.device):
            return tower(pixel_values=pixel_values, **kwargs)

    def normed_images(self, image_embeds: torch.Tensor) -> torch.Tensor:
        """What the Q-Former attends to of the tower's output: (images, patches, vision_hidden)."""
        norm = self.vision_layernorm
        return norm(move(image_embeds, norm.weight).to(norm.weight.dtype))


def _is_eva(tower: nn.Module) -> bool:
    return isinstance(tower, InstructBLIPVisionModel)


def move(tensor: torch.Tensor, weight: nn.Parameter) -> torch.Tensor:
    """To the weight's device, unless that is offloaded (on the meta device), where accelerate moves inputs."""
    return tensor if weight.is_meta else tensor.to(weight.device)


def _resizes_itself(tower: nn.Module) -> bool:
    return tower.config.model_type.startswith("dinov2")  # interpolates its positions whatever the size
