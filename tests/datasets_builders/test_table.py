import importlib

import pytest

from instructblip.datasets_builders.schema import InstructionBuilder, make_sample
from instructblip.datasets_builders.table import TABLE
from instructblip.datasets_builders.templates import TEMPLATES, format_instruction


@pytest.mark.parametrize("spec", TABLE.values(), ids=TABLE)
def test_every_entry_names_a_builder_with_its_splits(spec):
    builder = getattr(importlib.import_module(f"instructblip.datasets_builders.{spec.name}"), spec.builder)
    assert issubclass(builder, InstructionBuilder)
    assert spec.task in TEMPLATES
    configs = {config.name for config in builder.BUILDER_CONFIGS} or {"default"}
    for key in spec.counts:
        config, split = key.split("/")
        assert config in configs
        assert split in spec.splits
    assert spec.citation_key in spec.citation


@pytest.mark.parametrize("spec", TABLE.values(), ids=TABLE)
def test_every_prompt_takes_a_sample(spec):
    assert "{" not in format_instruction(spec.prompt, make_sample("1", "The dog is on the bed.", ["true"]))


def test_the_prompts_are_those_of_the_paper():
    sample = make_sample("1", "The dog is on the bed.", ["true"], choices=["false", "true"], label=1)
    statement = 'Based on the image, is this statement true or false? "The dog is on the bed." Answer:'
    assert format_instruction(TABLE["vsr"].prompt, sample) == statement
    assert format_instruction(TABLE["coco_caption"].prompt, make_sample("1", "", ["a"])) == "A short image description:"
    vqa = make_sample("1", "Why?", ["a"])
    assert format_instruction(TABLE["vqa_rad"].prompt, vqa) == "Question: Why? Short answer:"
