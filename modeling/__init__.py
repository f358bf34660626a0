"""Configuration, Q-Former and model; these files travel to the Hub with every release."""

from .configuration_instruct_blip import InstructBLIPConfig, InstructBLIPQFormerConfig
from .modeling_instruct_blip import InstructBLIPForConditionalGeneration, InstructBLIPPreTrainedModel
from .modeling_pretraining import InstructBLIPForPreTraining
from .modeling_qformer import InstructBLIPQFormerModel
from .stage_weights import start_from_stage1

__all__ = [
    "InstructBLIPConfig",
    "InstructBLIPForConditionalGeneration",
    "InstructBLIPForPreTraining",
    "InstructBLIPPreTrainedModel",
    "InstructBLIPQFormerConfig",
    "InstructBLIPQFormerModel",
    "start_from_stage1",
]
