"""Fine-tune InstructBLIP on your own images: the bridge trains, vision tower and language model stay frozen.

    python examples/train.py --config examples/finetune.yaml
    python examples/train.py --config examples/finetune.yaml --model Salesforce/instructblip-vicuna-7b
    accelerate launch examples/train.py --config examples/finetune.yaml          # several GPUs

`data` is a JSON-lines file. Image paths are relative to its folder and may not lead out of it:

    {"image": "photos/0001.jpg", "question": "How many dogs are there?", "answer": "two"}

The `metadata.jsonl` of an image folder (`file_name` in place of `image`) will do as well; so will the name of a dataset
of `instructblip.datasets_builders` with `data_dir`, the folder of its official files.
"""

import os
from dataclasses import dataclass, field
from typing import Any, Literal

from trl import TrlParser

from instructblip import InstructBLIPForConditionalGeneration, InstructBLIPProcessor
from instructblip.datasets_builders import InstructionDataset, load
from instructblip.datasets_builders.official_files import BadRowError, image_path, read_json_lines
from instructblip.datasets_builders.official_files import field as text_field
from instructblip.datasets_builders.table import TABLE
from instructblip.training import InstructBLIPTrainer, InstructBLIPTrainingArguments


@dataclass
class FineTuning:
    model: str = field(metadata={"help": "Hub id or folder of an InstructBLIP model with its processor."})
    data: str = field(metadata={"help": "JSON-lines file to train on, or the name of a dataset."})
    eval_data: str | None = field(default=None, metadata={"help": "JSON-lines file, or the dataset's split."})
    data_dir: str | None = field(default=None, metadata={"help": "Official files of the dataset that `data` names."})
    prompt: str = field(
        default="Question: {question} Short answer:",
        metadata={"help": "What the model reads for a question of a JSON-lines file."},
    )
    release: Literal["bridge", "full"] = field(
        default="bridge", metadata={"help": "Save the trained part and the backbones' names, or all weights."}
    )
    dtype: str = field(default="auto", metadata={"help": "Precision to load in; bfloat16 takes half of float32."})


def read_samples(file: str, prompt: str) -> list[dict[str, Any]]:
    """The samples of a JSON-lines file; images are opened when their batch is due.

    Raises:
        BadRowError: naming the row that lacks a field or whose image is not there.
    """
    samples = []
    for row, record in read_json_lines(file):
        if isinstance(record, BadRowError):
            raise record
        try:
            name = text_field(record, "file_name" if "file_name" in record else "image", str)
            question, answer = text_field(record, "question", str), text_field(record, "answer", str)
            image = image_path([os.path.dirname(os.path.abspath(file))], name)
        except ValueError as error:
            raise BadRowError(file, row, str(error)) from error
        samples.append({"image": image, "instruction": prompt.format(question=question), "response": answer})
    return samples


def dataset(name: str | None, split: str, options: FineTuning):
    """Samples of a file, or of a split of a dataset that we have a builder for."""
    if name is None:
        return None
    if options.data in TABLE:
        return InstructionDataset(load(options.data, options.data_dir, split=split), options.data)
    return read_samples(name, options.prompt)


def main(arguments: list[str] | None = None) -> None:
    options, training = TrlParser((FineTuning, InstructBLIPTrainingArguments)).parse_args_and_config(arguments)
    processor = InstructBLIPProcessor.from_pretrained(options.model)
    model = InstructBLIPForConditionalGeneration.from_pretrained(options.model, dtype=options.dtype)
    trainer = InstructBLIPTrainer(
        model,
        training,
        train_dataset=dataset(options.data, "train", options),
        eval_dataset=dataset(options.eval_data, options.eval_data, options),
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
