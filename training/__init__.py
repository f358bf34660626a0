"""Training: the trainer that tunes the bridge, and its arguments."""

from .arguments import InstructBLIPTrainingArguments
from .encode_ahead import encode_images
from .float8 import hold_in_float8
from .trainer import InstructBLIPTrainer

__all__ = ["InstructBLIPTrainer", "InstructBLIPTrainingArguments", "encode_images", "hold_in_float8"]
