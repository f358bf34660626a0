"""Datasets in one row schema, and the instructions made from them."""

from .instructions import InstructionDataset, InstructionFormat
from .loading import builder, load
from .mixture import InstructionMixture, paper_probabilities, sampling_probabilities
from .own_data import load_own
from .own_format import own_format
from .streaming import stream_mixture

__all__ = [
    "InstructionDataset",
    "InstructionFormat",
    "InstructionMixture",
    "builder",
    "load",
    "load_own",
    "own_format",
    "paper_probabilities",
    "sampling_probabilities",
    "stream_mixture",
]
