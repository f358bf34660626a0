"""Datasets in one row schema, and the instructions made from them."""

from .instructions import InstructionDataset, InstructionFormat
from .loading import builder, load
from .own_data import load_own
from .own_format import own_format

__all__ = ["InstructionDataset", "InstructionFormat", "builder", "load", "load_own", "own_format"]
