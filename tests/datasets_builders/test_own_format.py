import dataclasses
import pickle

import datasets
import pytest

from instructblip.datasets_builders import InstructionDataset, own_format
from instructblip.datasets_builders.schema import make_sample
from instructblip.datasets_builders.templates import TEMPLATES, Template

CHOICES = {"choices": ["a cat", "a dog"], "label": 1}


def sample(task, question="What is it?", answer="a dog", **other):
    return make_sample(f"mine/{task}", question, [answer], tags=[f"task={task}"], **other)


ROW = {
    "image_id": "1",
    "samples": [
        sample("vqa"),
        sample("multiple_choice", **CHOICES),
        sample("caption", ""),
        sample("chat", "Say {it}.", history=[{"question": "Hi", "answer": "Hello"}]),
    ],
}


def test_every_sample_gets_what_it_is_meant_for():
    vqa, choice, caption, chat = own_format("mine").items(ROW)
    assert vqa["template"] in {template.text for template in TEMPLATES["vqa"]}
    assert "(a) a cat (b) a dog" in choice["instruction"]
    assert caption["instruction"] in {template.text for template in TEMPLATES["caption"]}
    assert chat["instruction"] == "Hi Hello\nSay {it}."
    assert {item["response"] for item in (vqa, choice, caption, chat)} == {"a dog"}
    assert {item["dataset"] for item in (vqa, choice, caption, chat)} == {"mine"}


def test_templates_are_for_questions_and_list_their_choices():
    fixed = own_format("mine", [Template("Question: {question} Short answer:")])
    vqa, choice, caption, chat = fixed.items(ROW)
    assert vqa["instruction"] == "Question: What is it? Short answer:"
    assert choice["instruction"] == "Question: What is it? Options: (a) a cat (b) a dog. Short answer:"
    assert "Question" not in caption["instruction"] + chat["instruction"]
    placed = own_format("mine", [Template("{options} {question}")])
    assert placed.item(ROW["samples"][1], "1")["instruction"] == "(a) a cat (b) a dog What is it?"


def test_draws_are_the_same_alone_in_a_row_and_after_pickling():
    made = own_format("mine", seed=3)
    again = pickle.loads(pickle.dumps(made))
    for epoch in range(5):
        items = made.items(ROW, epoch)
        assert items == [again.item(sample, "1", epoch) for sample in ROW["samples"]]


def test_all_answers_and_styles_are_passed_on():
    several = {"image_id": "1", "samples": [{**sample("vqa"), "answers": ["A dog", "a cat"]}]}
    made = own_format("mine", answer_policy="all", lowercase_answers=True, style="plain")
    assert [(item["id"], item["instruction"], item["response"]) for item in made.items(several)] == [
        ("mine/vqa#0", "What is it?", "a dog"),
        ("mine/vqa#1", "What is it?", "a cat"),
    ]


def test_a_format_with_another_policy_has_it_for_every_task():
    made = dataclasses.replace(own_format("mine", answer_policy="all"), answer_policy="sampled")
    assert [item["id"] for item in made.items(ROW)] == [sample["id"] for sample in ROW["samples"]]


def test_rows_of_another_origin_are_refused():
    with pytest.raises(ValueError, match="mine/vsr: its tag 'task' is 'vsr'; `load_own` writes vqa, multiple_choice"):
        own_format("mine").item(sample("vsr"), "1")


def test_a_labelled_question_is_one_item_however_many_answered(tmp_path):
    samples = [{**sample("multiple_choice", **CHOICES), "answers": ["a dog", "a dog", "a cat"]}]
    rows = datasets.Dataset.from_list([{"image": None, "image_id": "1", "samples": samples}])
    items = InstructionDataset(rows, "mine", format=own_format("mine", answer_policy="all"), with_images=False)
    assert [items[number]["response"] for number in range(len(items))] == ["a dog"]
