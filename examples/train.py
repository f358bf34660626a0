"""Fine-tune InstructBLIP on your own images: the bridge trains, vision tower and language model stay frozen.

    python examples/train.py --config examples/finetune.yaml
    python examples/train.py --config examples/finetune.yaml --model Salesforce/instructblip-vicuna-7b
    accelerate launch examples/train.py --config examples/finetune.yaml          # several GPUs

`data` is a file of questions, a folder of images with `metadata.jsonl`, a LLaVA-style file, Parquet, a dataset on the
Hub: whatever docs/your_data.md shows. Or it names a dataset of `instructblip.datasets_builders`, with `data_dir` the
folder of its official files.

    {"image": "photos/0001.jpg", "question": "How many dogs are there?", "answer": "two"}
"""

import os
from dataclasses import dataclass, field
from typing import Literal

from trl import TrlParser

from instructblip import InstructBLIPForConditionalGeneration, InstructBLIPProcessor
from instructblip.datasets_builders import InstructionDataset, load, load_own, own_format
from instructblip.datasets_builders.table import TABLE
from instructblip.datasets_builders.templates import Template
from instructblip.training import InstructBLIPTrainer, InstructBLIPTrainingArguments


@dataclass
class FineTuning:
    model: str = field(metadata={"help": "Hub id or folder of an InstructBLIP model with its processor."})
    data: str = field(metadata={"help": "File, folder or Hub id to train on, or the name of a dataset."})
    eval_data: str | None = field(default=None, metadata={"help": "Another such file or folder, or a split of `data`."})
    data_config: str | None = field(default=None, metadata={"help": "Variant of the dataset that `data` names."})
    data_dir: str | None = field(default=None, metadata={"help": "Official files of the dataset that `data` names."})
    image_dir: str | None = field(default=None, metadata={"help": "Images of a file, where they are not beside it."})
    prompt: str | None = field(
        default="Question: {question} Short answer:",
        metadata={"help": "What the model reads for a question of your own; null draws from our templates."},
    )
    release: Literal["bridge", "full"] = field(
        default="bridge", metadata={"help": "Save the trained part and the backbones' names, or all weights."}
    )
    dtype: str = field(default="auto", metadata={"help": "Precision to load in; bfloat16 takes half of float32."})


def dataset(options: FineTuning, source: str, split: str | None) -> InstructionDataset:
    """A split of a dataset that we have a builder for, or of one's own data; images are opened when they are due."""
    if source in TABLE:
        return InstructionDataset(load(source, options.data_dir, options.data_config, split=split), source)
    templates = None if options.prompt is None else [Template(options.prompt)]
    rows = load_own(source, options.image_dir, split, options.data_config)
    return InstructionDataset(rows, "own", format=own_format("own", templates))


def eval_dataset(options: FineTuning) -> InstructionDataset | None:
    if options.eval_data is None:
        return None
    if options.data not in TABLE and os.path.exists(options.eval_data):
        return dataset(options, options.eval_data, None)
    return dataset(options, options.data, options.eval_data)


def main(arguments: list[str] | None = None) -> None:
    options, training = TrlParser((FineTuning, InstructBLIPTrainingArguments)).parse_args_and_config(arguments)
    processor = InstructBLIPProcessor.from_pretrained(options.model)
    model = InstructBLIPForConditionalGeneration.from_pretrained(options.model, dtype=options.dtype)
    trainer = InstructBLIPTrainer(
        model,
        training,
        train_dataset=dataset(options, options.data, "train"),
        eval_dataset=eval_dataset(options),
        processing_class=processor,
    )
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    if trainer.is_world_process_zero():
        folder = os.path.join(training.output_dir, "release")
        model.save_pretrained(folder, bridge_only=options.release == "bridge")
        processor.save_pretrained(folder)
        print(f"saved the {options.release} release to {folder}")


if __name__ == "__main__":
    main()
