"""Short training runs for `several_processes.run`, on tiny models from a folder."""

import os

import several_processes
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pictured_questions import ANSWERS, QUESTIONS, grouped_rows, picture

from instructblip import InstructBLIPForConditionalGeneration, InstructBLIPProcessor
from instructblip.datasets_builders import InstructionDataset, InstructionFormat, InstructionMixture, stream_mixture
from instructblip.training import InstructBLIPTrainer, InstructBLIPTrainingArguments
from instructblip.training.sharding import gathered


class Rows(torch.utils.data.Dataset):
    """Samples with answers of different lengths; those in `without_image` are text only."""

    def __init__(self, length=32, without_image=()):
        self.length, self.without_image = length, without_image

    def __len__(self):
        return self.length

    def __getitem__(self, item):
        return {
            "id": item,
            "image": None if item in self.without_image else picture(item),
            "instruction": QUESTIONS[item % 4],
            "response": ANSWERS[item % 5],
        }


class Recorded(InstructBLIPTrainer):
    """Notes the ids of all samples that it trains on, and the unrounded losses."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.samples, self.losses = [], []

    def training_step(self, model, inputs, *args, **kwargs):
        self.samples.append(list(zip(inputs["dataset"], inputs["id"], strict=True)))
        return super().training_step(model, inputs, *args, **kwargs)

    def log(self, logs, *args, **kwargs):
        if "loss" in logs:
            self.losses.append(logs["loss"])
        super().log(logs, *args, **kwargs)


def trainer(model_folder, folder, dataset=None, sharded=False, deepspeed=False, adapted=(), **arguments):
    """`adapted`: the parts with adapters beside the bridge."""
    if sharded or deepspeed:
        several_processes.on_cpu(deepspeed)
    # With Adam's usual epsilon, the rounding noise of tiny gradients would become steps of the learning rate's size.
    defaults = dict(
        per_device_train_batch_size=2, learning_rate=2e-3, adam_epsilon=1e-3, warmup_steps=0, logging_steps=1,
        report_to="none", use_cpu=not deepspeed, disable_tqdm=True, save_strategy="no", max_steps=3, save_steps=500,
        train_sampling_strategy="sequential",
    )  # fmt: skip
    arguments = InstructBLIPTrainingArguments(str(folder), **{**defaults, **arguments})
    model = InstructBLIPForConditionalGeneration.from_pretrained(model_folder)
    if adapted:
        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(r=2, **model.lora_targets(*adapted)))
    return Recorded(
        model,
        arguments,
        train_dataset=dataset or Rows(),
        eval_dataset=[Rows()[number] for number in range(7)],
        processing_class=InstructBLIPProcessor.from_pretrained(model_folder),
    )


def train(model_folder, folder, resume=None, release=(), **arguments):
    """Losses, samples and the bridge of a run, with adapters where it has some; `release` says which kinds to save."""
    made = trainer(model_folder, folder, **arguments)
    made.train(resume_from_checkpoint=resume)
    for kind in release:
        made.save_model(os.path.join(folder, kind), bridge_only=kind == "bridge")
    made.accelerator.wait_for_everyone()
    model = made.accelerator.unwrap_model(made.model)
    bridge = dict(model.named_bridge_parameters())
    if isinstance(model, PeftModel):
        bridge = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    frozen = [parameter for name, parameter in model.named_parameters() if name not in bridge]
    return {
        "losses": made.losses,
        "ids": [[identity for _, identity in batch] for batch in made.samples],
        "bridge": {name: tensor.numpy() for name, tensor in gathered(bridge.items(), keep=True).items()},
        "sharded": any(hasattr(parameter, "full_tensor") for parameter in frozen),
        "dtypes": {
            "bridge": sorted({str(parameter.dtype) for parameter in bridge.values()}),
            "frozen": sorted({str(parameter.dtype) for parameter in frozen}),
        },
    }


def evaluate(model_folder, folder, **arguments):
    """The metrics of the evaluation after a step."""
    made = trainer(model_folder, folder, max_steps=1, **arguments)
    made.train()
    return made.evaluate()


def mixture(kind):
    """Two datasets of 14 and 6 questions, as a map-style mixture of one epoch, or as a stream."""
    sources = grouped_rows(a=7, b=3)
    formats = {name: InstructionFormat.of(name, task="vqa") for name in sources}
    shares = {"a": 0.7, "b": 0.3}
    if kind == "map":
        made = {name: InstructionDataset(rows, name, format=formats[name]) for name, rows in sources.items()}
        return InstructionMixture(made, shares, length=20)
    streams = {name: rows.to_iterable_dataset(num_shards=2) for name, rows in sources.items()}
    return stream_mixture(streams, shares, formats, block_rows=4)


def read(model_folder, folder, data, **arguments):
    """The dataset and id of each sample that this process trains on."""
    made = trainer(model_folder, folder, dataset=mixture(data), max_steps=5, **arguments)
    made.train()
    return [sample for batch in made.samples for sample in batch]
