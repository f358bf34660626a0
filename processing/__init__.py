"""Turning images, videos, prompts and answers into what the model reads."""

from .collator import InstructBLIPCollator
from .processing_instruct_blip import InstructBLIPProcessor

__all__ = ["InstructBLIPCollator", "InstructBLIPProcessor"]
