import collections
import subprocess
import sys

import pytest

from instructblip.datasets_builders.schema import make_sample
from instructblip.datasets_builders.templates import (
    TEMPLATES,
    Template,
    choose_template,
    draw,
    format_instruction,
    format_options,
)


def test_each_task_has_enough_wordings_and_none_twice():
    for task, fewest in (("vqa", 10), ("caption", 13), ("true_false", 10)):
        texts = [template.text for template in TEMPLATES[task]]
        assert len(set(texts)) == len(texts) >= fewest
        assert all(text.count("{question}") == (task != "caption") for text in texts)
    assert 0 < sum(template.short for template in TEMPLATES["vqa"]) < len(TEMPLATES["vqa"])


def test_draws_are_the_same_in_another_process():
    here = [draw(13, "template", 5, epoch, f"vqa_rad/{number}") for epoch in range(3) for number in range(20)]
    code = (
        "from instructblip.datasets_builders.templates import draw\n"
        "print([draw(13, 'template', 5, epoch, f'vqa_rad/{number}') for epoch in range(3) for number in range(20)])"
    )
    environment = {"PYTHONHASHSEED": "77", "OMP_NUM_THREADS": "1"}
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert there.stdout.strip() == str(here)


def test_the_first_draws_never_change():
    """A run made today must come out the same with every later version."""
    assert [draw(13, "template", 0, 0, f"a/{number}") for number in range(8)] == [11, 2, 8, 10, 2, 4, 8, 7]


def test_draws_are_even_and_differ_by_seed_epoch_sample_and_purpose():
    counts = collections.Counter(draw(13, "template", 0, 0, str(number)) for number in range(13_000))
    assert len(counts) == 13
    assert all(850 < count < 1150 for count in counts.values())  # 1,000 expected, standard deviation 30
    draws = [(draw(1 << 30, *key)) for key in [("a", 0, 0, "x"), ("b", 0, 0, "x"), ("a", 1, 0, "x"), ("a", 0, 1, "x")]]
    assert len({*draws, draw(1 << 30, "a", 0, 0, "y")}) == 5


def test_a_long_answer_gets_no_template_that_asks_for_a_short_one():
    templates = (Template("{question} Briefly:", short=True), Template("{question}"))
    sample = make_sample("1", "Where?", [])
    long = {choose_template(templates, sample, "in the left lower lobe", 0, 0, str(number)) for number in range(50)}
    assert long == {templates[1]}
    short = {choose_template(templates, sample, "left lower lobe", 0, 0, str(number)) for number in range(50)}
    assert short == set(templates)
    with pytest.raises(ValueError, match="s1: no template for a long answer"):
        choose_template(templates[:1], sample, "in the left lower lobe", 0, 0, "s1")


def test_a_template_that_needs_what_a_sample_lacks_is_not_drawn():
    templates = (Template("{history} {question}"), Template("{question} {options}"), Template("{question}"))
    asked = make_sample("1", "Where?", [])
    assert {choose_template(templates, asked, "x", 0, 0, str(number)) for number in range(50)} == {templates[2]}
    chosen = make_sample("1", "Where?", [], choices=["here"])
    assert {choose_template(templates, chosen, "x", 0, 0, str(number)) for number in range(50)} == set(templates[1:])
    with pytest.raises(ValueError, match="s1: no template suits, as the sample has no history; context, ocr_tokens"):
        choose_template(templates[:1], asked, "x", 0, 0, "s1")


def test_options_are_lettered_in_the_order_given():
    assert format_options(["blue", "yellow"]) == "(a) blue (b) yellow"
    assert format_options([]) == ""
    with pytest.raises(ValueError, match="27 choices: only 26"):
        format_options(["x"] * 27)


def test_what_a_sample_brings_along_is_put_around_its_question():
    sample = make_sample(
        "1",
        "Which one?",
        ["blue"],
        choices=["blue", "yellow"],
        context="A hint.",
        ocr_tokens=[str(number) for number in range(40)],
        history=[{"question": "Is it big?", "answer": "Yes."}],
    )
    read = ", ".join(str(number) for number in range(30))
    assert format_instruction("Question: {question} Answer:", sample) == (
        f"Context: A hint. OCR tokens: {read}. Dialog history: Is it big? Yes. \n Question: Which one? Answer:"
    )


def test_a_template_places_fields_itself():
    sample = make_sample("1", "Which?", ["b"], choices=["b", "y"], context="Hint")
    template = "Context: {context} Question: {question} Options: {options}. Answer:"
    assert format_instruction(template, sample) == "Context: Hint Question: Which? Options: (a) b (b) y. Answer:"


def test_true_and_false_are_not_listed_as_options():
    sample = make_sample("1", "It is on.", ["true"], choices=["false", "true"])
    assert format_instruction("True or false: {question}", sample) == "True or false: It is on."


def test_braces_in_a_question_stay():
    assert format_instruction("Q: {question}", make_sample("1", "Is {x} in {question}?", [])) == (
        "Q: Is {x} in {question}?"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{qestion}", r"template '{qestion}': {qestion} is no field, expected one of question, context"),
        ("{question.__class__}", "{question.__class__} is no field"),
        ("{question!r}", "{question!r} is no field"),
        ("{question:>9}", "{question:>9} is no field"),
        ("{}", "{} is no field"),
        ("{question} }", "write a brace that is no field twice"),
    ],
)
def test_a_wrong_template_is_refused_where_it_is_written(text, message):
    with pytest.raises(ValueError, match=message):
        Template(text)
    with pytest.raises(ValueError, match=message):
        format_instruction(text, make_sample("1", "a", []))
