"""Training: the trainer that tunes the bridge, and its arguments."""

from .arguments import InstructBLIPTrainingArguments
from .trainer import InstructBLIPTrainer

__all__ = ["InstructBLIPTrainer", "InstructBLIPTrainingArguments"]
