"""Batches of preferences, for TRL's DPOTrainer."""

from collections.abc import Sequence
from typing import Any

from transformers.feature_extraction_utils import BatchFeature

from .collator import InstructBLIPCollator, sample_name


class InstructBLIPPreferenceCollator:
    """Collate samples of a better and a worse answer; every image is opened and encoded once.

    A sample is what [`InstructBLIPCollator`] takes, with `chosen` and `rejected` in place of the answer, in the form
    that `completion` may have: a string, or one message.

    Args:
        processor: turns the batch into tensors; its language model must be decoder-only, as TRL's trainer asks.
        options: of [`InstructBLIPCollator`].
    """

    def __init__(self, processor: Any, **options: Any):
        if processor.is_encoder_decoder:
            raise ValueError("TRL's DPOTrainer is for decoder-only language models, and this processor is for another")
        self.collate = InstructBLIPCollator(processor, **options)

    def __call__(self, features: Sequence[dict[str, Any]]) -> BatchFeature:
        """Collate samples.

        Returns:
            The processor's outputs for all better answers and then all worse ones, and `completion_mask` (rows, seq), 1
            where the answer is, its end token included.

        Raises:
            ValueError: as [`InstructBLIPCollator`], or a sample lacks an answer. The message names the sample.
        """
        rows = []
        for key in ("chosen", "rejected"):
            for number, feature in enumerate(features):
                if key not in feature:
                    raise ValueError(
                        f"{sample_name(number, feature)}: '{key}' is missing; the keys are {sorted(feature)}"
                    )
                rest = {name: value for name, value in feature.items() if name not in ("response", "completion")}
                rows.append({**rest, "completion": feature[key]})
        batch = self.collate(rows)
        batch["completion_mask"] = (batch.pop("labels") != -100).long()
        del batch["sizes"]  # TRL's trainer knows none
        return batch
