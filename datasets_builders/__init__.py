"""Datasets in one row schema, and the instructions made from them."""

from .instructions import InstructionDataset
from .loading import builder, load
from .own_data import load_own, own_task

__all__ = ["InstructionDataset", "builder", "load", "load_own", "own_task"]
