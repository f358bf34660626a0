"""Align InstructBLIP with preferences, for instance against objects that are not in the picture: DPO of the bridge.

    python examples/dpo.py --model Salesforce/instructblip-vicuna-7b --data preferences.jsonl --output_dir outputs/dpo

`data` is a JSON-lines file, with image paths relative to it, or a dataset on the Hub with such columns:

    {"image": "photos/1.jpg", "prompt": "Question: Is there a dog? Short answer:", "chosen": "no", "rejected": "yes"}

Vision tower and language model stay frozen. The bridge trains against the bridge that it was, of which PEFT keeps a
copy: no second model. For decoder-only language models, as TRL's DPOTrainer.
"""

import os
from dataclasses import dataclass, field

import torch
from datasets import Dataset, load_dataset
from peft import LoraConfig
from transformers.utils import is_torch_bf16_gpu_available
from trl import DPOConfig, DPOTrainer, TrlParser

from instructblip import (
    InstructBLIPForConditionalGeneration,
    InstructBLIPPreferenceCollator,
    InstructBLIPProcessor,
)
from instructblip.training.trainer import set_precision


@dataclass
class Alignment:
    model: str = field(metadata={"help": "Hub id or folder of an InstructBLIP model with its processor."})
    data: str = field(metadata={"help": "JSON-lines file or Hub id of image, prompt, chosen and rejected."})


@dataclass
class AlignmentConfig(DPOConfig):
    """TRL's, but that it also runs where there is no bfloat16."""

    def __post_init__(self):
        if self.bf16 is None:
            self.bf16 = is_torch_bf16_gpu_available()
        super().__post_init__()


def preferences(source: str) -> Dataset:
    """Rows of pictures, `prompt`, `chosen` and `rejected`; the pictures of a file are opened when they are due."""
    if not os.path.isfile(source):
        return load_dataset(source, split="train")
    folder = os.path.dirname(os.path.abspath(source))
    rows = load_dataset("json", data_files=source, split="train")
    return rows.map(lambda row: {"image": os.path.join(folder, row["image"])})


def main(arguments: list[str] | None = None) -> None:
    options, training = TrlParser((Alignment, AlignmentConfig)).parse_args_and_config(arguments)
    processor = InstructBLIPProcessor.from_pretrained(options.model)
    model = InstructBLIPForConditionalGeneration.from_pretrained(options.model)
    model.freeze_backbones()
    set_precision(model, torch.bfloat16 if training.bf16 else None)  # of the frozen parts; the bridge is float32
    trainer = DPOTrainer(
        model,
        args=training,
        data_collator=InstructBLIPPreferenceCollator(processor),
        train_dataset=preferences(options.data),
        processing_class=processor,
        peft_config=LoraConfig(**model.lora_targets()),  # no adapters: the bridge, and what it was as the reference
    )
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    if trainer.is_world_process_zero():
        folder = os.path.join(training.output_dir, "release")
        aligned = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
        aligned.save_pretrained(folder, bridge_only=True)
        processor.save_pretrained(folder)
        print(f"saved the bridge release to {folder}")


if __name__ == "__main__":
    main()
