"""Datasets in one row schema, and the instructions made from them."""

from .instructions import InstructionDataset
from .loading import builder, load

__all__ = ["InstructionDataset", "builder", "load"]
