"""Arguments of [`InstructBLIPTrainer`]: those of transformers, with the paper's instruction tuning as defaults."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments
from transformers.utils import is_torch_bf16_gpu_available, logging

logger = logging.get_logger(__name__)


@dataclass
class InstructBLIPTrainingArguments(TrainingArguments):
    """Everything in transformers' `TrainingArguments`; only what differs is written here.

    The paper instruction-tunes for at most 60,000 steps with batches of 192 (FlanT5-XL), 128 (Vicuna-7B) or 64
    (FlanT5-XXL, Vicuna-13B). Neither is a default here, because both depend on the data and the machine.
    """

    learning_rate: float = field(default=1e-5, metadata={"help": "Peak learning rate (paper)."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Falls to 0 after the warm-up (paper)."})
    warmup_steps: float = field(
        default=1000, metadata={"help": "Linear warm-up (paper); below 1 it is a share of the whole run."}
    )
    weight_decay: float = field(
        default=0.05, metadata={"help": "Of tensors with two or more dimensions, biases excepted (LAVIS)."}
    )
    muon: bool = field(
        default=False,
        metadata={"help": "Muon for matrices, AdamW for the rest, in place of `optim`. Not with FSDP or DeepSpeed."},
    )
    max_grad_norm: float = field(default=0.0, metadata={"help": "0: gradients are not clipped (LAVIS)."})
    bf16: bool | None = field(
        default=None, metadata={"help": "bfloat16 autocast and frozen weights. Default: where a GPU can do it."}
    )
    language_model_dropout: bool = field(
        default=True, metadata={"help": "Keep dropout on inside the frozen language model while training (LAVIS)."}
    )
    homogeneous_batches: bool = field(
        default=False, metadata={"help": "Each batch of a process is of one dataset of the mixture (LAVIS)."}
    )
    predict_with_generate: bool = field(
        default=False, metadata={"help": "Generate answers in evaluations, for `scorer` or `compute_metrics`."}
    )
    generation_max_new_tokens: int = field(default=32, metadata={"help": "Longest answer generated in evaluations."})
    generation_num_beams: int = field(default=1, metadata={"help": "Beams of answers generated in evaluations."})
    feature_cache: str | None = field(
        default=None, metadata={"help": "Folder of vision features, so that each image is encoded once."}
    )
    feature_cache_dtype: str = field(
        default="bfloat16", metadata={"help": "Of cached features. float32 is exact where the tower runs in float32."}
    )
    feature_cache_gb: float | None = field(
        default=None, metadata={"help": "Size, in 10^9 bytes, at which nothing more is cached. None: no limit."}
    )
    feature_cache_views: int = field(
        default=1, metadata={"help": "Views cached of each image: itself, and random crops; epochs take turns."}
    )
    random_crops: bool = field(
        default=False,
        metadata={
            "help": "Train on crops of 50 to 100 % of each image, half of them mirrored, new in each epoch (LAVIS)."
        },
    )
    images_together: int = field(
        default=1, metadata={"help": "Most samples of one image that are put into a batch together, to encode it once."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Whatever trains has a gradient in every batch, so there is nothing to find."}
    )
    logging_steps: float = field(default=10, metadata={"help": "Steps between two lines of the log."})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "The collator needs columns that the model does not."}
    )

    @property
    def order_seed(self) -> int:
        """What the order of the training data is drawn from."""
        return self.seed if self.data_seed is None else self.data_seed

    def __post_init__(self):
        if self.random_crops and self.feature_cache is not None:
            raise ValueError(
                "random_crops draws new crops in each epoch, and feature_cache keeps what was encoded: set "
                "feature_cache_views, the number of crops to keep of each image, instead"
            )
        if self.bf16 is None:
            self.bf16 = not (self.fp16 or self.use_cpu) and is_torch_bf16_gpu_available()
        if self.use_cpu or not torch.accelerator.is_available():
            self.dataloader_pin_memory = False  # nothing to pin for, and both torch and transformers would warn of it
        if self.accelerator_config is None:
            # accelerate's default for streams cuts every tensor of a batch by rows, which parts samples from images;
            # and its default for all makes the host wait for each step before it launches the next.
            self.accelerator_config = {"dispatch_batches": False, "non_blocking": self.dataloader_pin_memory}
        super().__post_init__()
        if self.torch_compile_mode in ("reduce-overhead", "max-autotune") and self.gradient_accumulation_steps > 1:
            raise ValueError(
                f"torch_compile_mode {self.torch_compile_mode!r} records CUDA graphs, which write each gradient over "
                "the one before: set gradient_accumulation_steps to 1, or take another mode"
            )
        if self.n_gpu > 1:  # for which transformers' Trainer cuts batches by rows, which parts samples from images
            logger.warning(
                f"this process sees {self.n_gpu} GPUs and trains on the first, unless the model is spread over them: "
                "start it with `accelerate launch` to use all (docs/scaling.md), or choose with CUDA_VISIBLE_DEVICES"
            )
            self._n_gpu = 1
