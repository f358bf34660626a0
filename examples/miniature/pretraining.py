"""What the scripts that train the backbones share: their options, and a run that goes on from its last checkpoint."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from torch.utils.data import Dataset
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint


def options(description: str, steps: int, batch_size: int, learning_rate: float = 1e-3) -> argparse.ArgumentParser:
    """The options of a script.

    Args:
        steps, batch_size, learning_rate: their defaults.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--output", type=Path, required=True, help="folder; a run that it holds goes on")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch_size", type=int, default=batch_size)
    parser.add_argument("--learning_rate", type=float, default=learning_rate)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="only measure the model that is there")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments of the command line; `--check` without a model ends the program with a sentence."""
    args = parser.parse_args()
    if args.check and not (args.output / "model").is_dir():
        parser.error(f"{args.output / 'model'} is missing: train it first, without --check")
    return args


def pretrain(
    model: torch.nn.Module,
    args: argparse.Namespace,
    dataset: Dataset,
    collate: Callable[[list[Any]], dict],
    optimizer: Optimizer | None = None,
) -> None:
    """Train the model in place, on the dataset's rows in their order.

    Args:
        args: of `options`.
        optimizer: None is AdamW.
    """
    arguments = TrainingArguments(
        str(args.output / "run"),
        max_steps=args.steps,
        per_device_train_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=200,
        adam_beta2=0.98,
        weight_decay=0.05,
        max_grad_norm=1.0,
        logging_steps=50,
        save_steps=250,
        save_total_limit=1,
        train_sampling_strategy="sequential",
        bf16=True,  # five times as fast as float32 where the CPU has instructions for it
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        dataloader_num_workers=1,
        remove_unused_columns=False,
        report_to="none",
        seed=args.seed,
    )
    trainer = Trainer(model, arguments, data_collator=collate, train_dataset=dataset, optimizers=(optimizer, None))
    begun = get_last_checkpoint(arguments.output_dir) if Path(arguments.output_dir).exists() else None
    trainer.train(resume_from_checkpoint=begun)


def keep(model: PreTrainedModel, reader: Any, folder: Path, **options: Any) -> None:
    """Save a model in float16, which halves its size, and the tokenizer or processor that makes its inputs.

    Args:
        options: of its `save_pretrained`.
    """
    model.to(torch.float16).save_pretrained(folder, **options)
    reader.save_pretrained(folder)


def report(what: str, shares: dict[str, float]) -> None:
    """Print shares of right answers."""
    print(what)
    for name, share in shares.items():
        print(f"  {name:26} {share:6.1%}")
