"""Turning images, videos, prompts and answers into what the model reads."""

from .collator import InstructBLIPCollator
from .preference_collator import InstructBLIPPreferenceCollator
from .pretraining_collator import InstructBLIPStage1Collator, InstructBLIPStage2Collator
from .processing_instruct_blip import InstructBLIPProcessor

__all__ = [
    "InstructBLIPCollator",
    "InstructBLIPPreferenceCollator",
    "InstructBLIPProcessor",
    "InstructBLIPStage1Collator",
    "InstructBLIPStage2Collator",
]
