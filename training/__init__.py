"""Training: the trainer that tunes the bridge, and its arguments."""

from .arguments import InstructBLIPTrainingArguments
from .encode_ahead import encode_images
from .trainer import InstructBLIPTrainer

__all__ = ["InstructBLIPTrainer", "InstructBLIPTrainingArguments", "encode_images"]
