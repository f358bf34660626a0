"""Configuration, Q-Former and model; these files travel to the Hub with every release."""

from .configuration_instruct_blip import InstructBLIPConfig, InstructBLIPQFormerConfig
from .modeling_instruct_blip import InstructBLIPForConditionalGeneration, InstructBLIPPreTrainedModel
from .modeling_qformer import InstructBLIPQFormerModel

__all__ = [
    "InstructBLIPConfig",
    "InstructBLIPForConditionalGeneration",
    "InstructBLIPPreTrainedModel",
    "InstructBLIPQFormerConfig",
    "InstructBLIPQFormerModel",
]
