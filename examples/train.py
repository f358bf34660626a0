"""Train InstructBLIP: fine-tuning on your own images, the paper's instruction tuning, and the two stages before it.

    python examples/train.py --config examples/finetune.yaml
    python examples/train.py --config examples/recipes/instruct_vicuna_7b.yaml --data_root /data --sampling uniform
    accelerate launch examples/train.py --config examples/finetune.yaml          # several GPUs

A recipe is a YAML file with the fields of `Recipe` below and of transformers' `TrainingArguments`. `include` names
another recipe, beside it, whose values it replaces, and `--name value` replaces either. Only the bridge trains: vision
tower and language model stay frozen.
"""

import os
import sys
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml
from transformers import AutoImageProcessor, AutoTokenizer, BitsAndBytesConfig
from trl import TrlParser

from instructblip import (
    InstructBLIPCollator,
    InstructBLIPConfig,
    InstructBLIPForConditionalGeneration,
    InstructBLIPForPreTraining,
    InstructBLIPProcessor,
    InstructBLIPStage1Collator,
    InstructBLIPStage2Collator,
    start_from_stage1,
)
from instructblip.datasets_builders.data_sources import (
    DataSource,
    make_source,
    read_sources,
    training_data,
    validation_data,
)
from instructblip.datasets_builders.official_files import BadRowError
from instructblip.datasets_builders.table import TABLE
from instructblip.eval_tasks.held_in import held_in_scores
from instructblip.training import (
    InstructBLIPTrainer,
    InstructBLIPTrainingArguments,
    encode_images,
    hold_in_float8,
)
from instructblip.user_errors import raised_by


def option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class Recipe:
    # what trains
    stage: Literal[1, 2, 3] = option(3, "1: image-text losses, no language model; 2: captions; 3: instructions.")
    model: str | None = option(None, "Hub id or folder of a model with its processor to start from.")
    stage1: str | None = option(None, "Stage-1 release: what stage 2 starts from; in stage 3, for a text branch.")
    vision_model: str | None = option(None, "Without `model`: the vision tower, by Hub id or folder.")
    language_model: str | None = option(None, "Without `model`, in stage 2: the language model.")
    bert: str = option("google-bert/bert-base-uncased", "Without `model`: what the Q-Former starts as.")
    num_query_tokens: int = option(32, "In stage 1: query tokens, and so positions of the language model, per image.")
    qformer_text_input: bool = option(True, "False: the Q-Former does not read the instruction (ablation).")
    quantize: Literal["8bit", "4bit", "fp8"] | None = option(None, "Hold the frozen language model in fewer bits.")
    dtype: str = option("auto", "Precision to load in; bfloat16 takes half of float32.")
    release: Literal["bridge", "full"] = option("bridge", "Save what trained and the backbones' names, or all.")
    # on what: `data` is your own, or one dataset that we have a builder for; `mixture` lists several
    data: str | None = option(None, "File, folder or Hub id (docs/your_data.md), or the name of a dataset.")
    train_split: str = option("train", "Split of `data` to train on.")
    eval_data: str | None = option(None, "Another file or folder to validate on, or a split of `data`.")
    data_config: str | None = option(None, "Variant of the dataset that `data` names.")
    data_dir: str | None = option(None, "Official files of the dataset that `data` names.")
    repo_id: str | None = option(None, "Or its copy on the Hub.")
    data_task: str | None = option(None, "Family of templates, where it is not the dataset's own.")
    image_dir: str | None = option(None, "Images of your own file, where they are not beside it.")
    prompt: str | None = option(None, "One wording for all questions; null draws from our templates.")
    mixture: str | None = option(None, "YAML file that lists datasets.")
    data_root: str = option("data", "Folder of the datasets in `mixture`.")
    sampling: Literal["sqrt", "uniform", "proportional"] = option("sqrt", "Shares of the mixture; sqrt balances.")
    style: Literal["natural", "plain", "tagged"] = option("natural", "Instructions, or the formats of Fig. 4.")
    streaming: bool = option(False, "Read as it goes, with nothing built; needs max_steps.")
    encode_only: bool = option(False, "Fill `feature_cache` with the images of this recipe, and train nothing.")


def read_recipe(path: str) -> dict[str, Any]:
    """A recipe's values over those of the recipe that it includes."""
    with open(path, encoding="utf-8") as file:
        recipe = yaml.safe_load(file)
    if not isinstance(recipe, dict):
        raise ValueError(f"{path} is no recipe: expected lines such as 'learning_rate: 1.0e-5'")
    base = recipe.pop("include", None)
    return recipe if base is None else {**read_recipe(os.path.join(os.path.dirname(path), base)), **recipe}


def parse(arguments: list[str] | None = None) -> tuple[Recipe, InstructBLIPTrainingArguments]:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = TrlParser((Recipe, InstructBLIPTrainingArguments))
    if "--config" in arguments:
        place = arguments.index("--config")
        unknown = parser.set_defaults_with_config(**read_recipe(arguments[place + 1]))
        if unknown:
            raise ValueError(f"{arguments[place + 1]}: no such fields: {' '.join(unknown[::2])}")
        del arguments[place : place + 2]
    recipe, training = parser.parse_args_and_config(arguments)
    return Recipe(**{name: None if value == "null" else value for name, value in vars(recipe).items()}), training


def sources(recipe: Recipe) -> list[DataSource]:
    """What to train and validate on."""
    if (recipe.data is None) == (recipe.mixture is None):
        raise ValueError("give either data, one dataset, or mixture, a file that lists several")
    if recipe.mixture is not None:
        return read_sources(recipe.mixture, recipe.data_root)
    known = recipe.data in TABLE
    entry = {"dataset": recipe.data, "config": recipe.data_config, "train": recipe.train_split}
    entry |= {"prompt": recipe.prompt, "task": recipe.data_task}
    if known:
        entry |= {"repo_id": recipe.repo_id, "data_dir": recipe.data_dir}
    else:
        entry |= {"name": "own", "image_dir": recipe.image_dir}
    entry = {key: value for key, value in entry.items() if value is not None}
    if recipe.eval_data is None or known or not os.path.exists(recipe.eval_data):
        return [make_source(entry | {"validation": recipe.eval_data})]
    other = {"dataset": recipe.eval_data, "name": "validation", "train": None, "validation": "train"}
    return [make_source(entry), make_source(entry | other)]


def build(recipe: Recipe) -> tuple[Any, InstructBLIPProcessor, Any]:
    """Model, processor and collator of a stage."""
    options: dict[str, Any] = {"dtype": recipe.dtype}
    if recipe.quantize == "fp8" and (recipe.stage == 1 or recipe.release == "full"):
        raise ValueError("quantize fp8 is for a language model, which stage 1 has not, and for release: bridge")
    if recipe.quantize in ("8bit", "4bit"):
        bits = {"load_in_8bit": True} if recipe.quantize == "8bit" else {"load_in_4bit": True}
        options["quantization_config"] = BitsAndBytesConfig(**bits)
    model_class = InstructBLIPForPreTraining if recipe.stage == 1 else InstructBLIPForConditionalGeneration
    reads = recipe.stage != 2 and recipe.qformer_text_input
    if recipe.model is not None:
        processor = InstructBLIPProcessor.from_pretrained(recipe.model)
        config = InstructBLIPConfig.from_pretrained(recipe.model)
        config.qformer_text_input = reads or recipe.stage == 1
        model = model_class.from_pretrained(recipe.model, config=config, **options)
        if recipe.stage1 is not None:
            start_from_stage1(model, recipe.stage1, text_branch_only=True)
    elif recipe.stage == 1:
        options["num_query_tokens"] = recipe.num_query_tokens
        model = model_class.from_backbones(recipe.vision_model, recipe.bert, **options)
        processor = new_processor(recipe, recipe.bert, model.config)
    elif recipe.stage == 2:
        like = InstructBLIPConfig.from_pretrained(recipe.stage1)
        config = InstructBLIPConfig.from_backbones(
            recipe.vision_model,
            recipe.language_model,
            qformer_config=like.qformer_config.to_dict(),
            num_query_tokens=like.num_query_tokens,
            qformer_text_input=False,
        )
        model = model_class.from_backbones(recipe.vision_model, recipe.language_model, config=config, **options)
        start_from_stage1(model, recipe.stage1)
        processor = new_processor(recipe, recipe.language_model, config)
    else:
        raise ValueError("model is missing: stage 3 starts from the release of stage 2, or from an InstructBLIP model")
    if recipe.quantize == "fp8":
        hold_in_float8(model)
    collators = {1: InstructBLIPStage1Collator, 2: InstructBLIPStage2Collator, 3: InstructBLIPCollator}
    return model, processor, collators[recipe.stage](processor, keep_ids=True)


def new_processor(recipe: Recipe, language: str, config: InstructBLIPConfig) -> InstructBLIPProcessor:
    return InstructBLIPProcessor(
        AutoImageProcessor.from_pretrained(recipe.vision_model),
        AutoTokenizer.from_pretrained(language),
        AutoTokenizer.from_pretrained(recipe.bert, bos_token="[DEC]", truncation_side="left"),
        num_query_tokens=config.num_query_tokens,
        is_encoder_decoder=config.is_encoder_decoder,
    )


def main(arguments: list[str] | None = None) -> None:
    recipe, training = parse(arguments)
    with training.main_process_first(local=False, desc="build the data"):
        found = sources(recipe)
        train = training_data(found, recipe.sampling, recipe.style, training.seed, recipe.streaming)
        validation: Any = validation_data(found)
    if recipe.encode_only:
        if recipe.model is None:
            raise ValueError("encode_only takes the vision tower out of `model`, which is missing")
        encode_images(recipe.model, [train, *validation.values()], training, recipe.dtype)
        return
    model, processor, collator = build(recipe)
    if recipe.data is not None:
        validation = next(iter(validation.values()), None)
    trainer = InstructBLIPTrainer(
        model,
        training,
        data_collator=collator,
        train_dataset=train,
        eval_dataset=validation or None,
        processing_class=processor,
        scorer=held_in_scores,
    )
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    folder = os.path.join(training.output_dir, "release")
    trainer.save_model(folder, bridge_only=recipe.release == "bridge")
    if trainer.is_world_process_zero():
        print(f"saved the {recipe.release} release to {folder}")


def command(arguments: list[str] | None = None) -> None:
    """`main`, with one line in place of a traceback where data or settings are to be mended, and exit status 2."""
    try:
        main(arguments)
    except (ValueError, OSError) as error:
        ours = raised_by(error, ("instructblip.", __name__))
        if not ours and not isinstance(error, BadRowError):  # a bad row may have been raised in another process
            raise
        print(f"examples/train.py: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    command()
