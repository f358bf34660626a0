import dataclasses
import importlib

import pytest

from instructblip.datasets_builders.schema import InstructionBuilder, make_sample
from instructblip.datasets_builders.table import TABLE, Counts, read_spec
from instructblip.datasets_builders.templates import TEMPLATES, format_instruction


@pytest.mark.parametrize("spec", TABLE.values(), ids=TABLE)
def test_every_entry_names_a_builder_with_its_splits(spec):
    source = spec.source
    builder = getattr(importlib.import_module(f"instructblip.datasets_builders.{source.name}"), source.builder)
    assert issubclass(builder, InstructionBuilder)
    assert spec.task in TEMPLATES
    configs = {config.name for config in builder.BUILDER_CONFIGS} or {"default"}
    assert spec.config is None or spec.config in configs
    for key in spec.counts:
        config, split = key.split("/")
        assert config in configs
        assert split in source.splits
    assert spec.citation_key in spec.citation


@pytest.mark.parametrize("spec", TABLE.values(), ids=TABLE)
def test_only_held_in_entries_are_sampled(spec):
    assert (spec.sampling_size is not None) == (spec.role == "held_in")


@pytest.mark.parametrize("spec", TABLE.values(), ids=TABLE)
def test_recalled_facts_are_keys_of_the_entry(spec):
    for fact in spec.recalled:
        value = dataclasses.asdict(spec)
        for key in fact.split("."):
            value = value[int(key)] if key.isdigit() and isinstance(value, (list, tuple)) else value[key]


SPEC = """
title: Toy
builder: Toy
category: visual reasoning
role: extra
task: vqa
licence: MIT
access: nowhere
homepage: https://example.org
hub: []
prompt: "{question}"
metric: accuracy
method: generate
citation_key: toy
citation: "@misc{toy}"
"""


def test_an_entry_is_read_with_its_defaults():
    spec = read_spec("toy", SPEC + "counts: {a/train: {rows: 1, samples: 2, answers: null}}")
    assert spec.name == "toy"
    assert spec.counts["a/train"] == Counts(1, 2, None)
    assert spec.answer_policy == "most_frequent"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SPEC + "sise: 3", r"specs/toy.yaml: unknown keys \['sise'\]"),
        (SPEC.replace("licence: MIT", ""), r"missing keys \['licence'\]"),
        (SPEC.replace("visual reasoning", "visual"), "category 'visual' is none of image captioning"),
        (SPEC + "rows_from: vqav2", "either builder or rows_from"),
    ],
)
def test_a_wrong_entry_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        read_spec("toy", text)


@pytest.mark.parametrize("spec", TABLE.values(), ids=TABLE)
def test_every_prompt_takes_a_sample(spec):
    assert "{" not in format_instruction(spec.prompt, make_sample("1", "The dog is on the bed.", ["true"]))


BARE = make_sample("1", "What is it?", ["a cat"], choices=["a dog", "a cat"], label=1)
SHORT = "Question: What is it? Short answer:"


@pytest.mark.parametrize(
    ("name", "sample", "prompt"),
    [
        ("nocaps", make_sample("1", "", ["a cat"]), "A short image description:"),
        ("flickr30k", make_sample("1", "", ["a cat"]), "A short image description:"),
        ("gqa", make_sample("1", "What is it?", ["a cat"]), SHORT),
        ("vizwiz", make_sample("1", "What is it?", ["a cat"]), SHORT),
        ("ivqa", make_sample("1", "What is it?", ["a cat"]), SHORT),
        ("msvd_qa", make_sample("1", "What is it?", ["a cat"]), SHORT),
        ("msrvtt_qa", make_sample("1", "What is it?", ["a cat"]), SHORT),
        (
            "textvqa",
            make_sample("1", "What is it?", ["a"], ocr_tokens=["STOP", "exit"]),
            f"OCR tokens: STOP, exit. {SHORT}",
        ),
        ("textvqa", make_sample("1", "What is it?", ["a"]), SHORT),
        ("iconqa", BARE, "Question: What is it? Options: (a) a dog (b) a cat. Short answer:"),
        (
            "scienceqa",
            {**BARE, "context": "Cats purr."},
            "Context: Cats purr. Question: What is it? Options: (a) a dog (b) a cat. Answer:",
        ),
        ("scienceqa", BARE, "Question: What is it? Options: (a) a dog (b) a cat. Answer:"),
        (
            "hateful_memes",
            make_sample("1", "Is it hateful?", ["no"], context="so nice"),
            'This is an image with: "so nice" written on it. Is it hateful? Answer:',
        ),
        (
            "vsr",
            make_sample("1", "The dog is on the bed.", ["true"], choices=["false", "true"], label=1),
            'Based on the image, is this statement true or false? "The dog is on the bed." Answer:',
        ),
        (
            "visdial",
            make_sample("1", "How many?", ["2"], context="two cats", history=[{"question": "Big?", "answer": "no"}]),
            "Dialog history: two cats Big? no \n Question: How many? Short answer:",
        ),
    ],
)
def test_the_prompts_are_those_of_appendix_e(name, sample, prompt):
    assert format_instruction(TABLE[name].prompt, sample) == prompt
