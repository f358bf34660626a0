import collections
import inspect
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_samples import HOSTILE, quick, samples, texts

from instructblip.datasets_builders.schema import make_sample
from instructblip.datasets_builders.table import TABLE
from instructblip.datasets_builders.templates import (
    PLAIN_TEMPLATES,
    TASK_NAMES,
    TEMPLATES,
    Template,
    choose_template,
    draw,
    format_instruction,
    format_options,
)

EVERY_TEMPLATE = [*(each for family in TEMPLATES.values() for each in family), *PLAIN_TEMPLATES.values()]


def test_each_task_has_enough_wordings_and_none_twice():
    fewest = {"caption": 13, "chat": 1}
    for task, templates in TEMPLATES.items():
        wordings = {template.text for template in templates}
        assert len(wordings) == len(templates) >= fewest.get(task, 10)
    assert TEMPLATES.keys() == PLAIN_TEMPLATES.keys() == TASK_NAMES.keys()


@pytest.mark.parametrize(
    ("task", "fields"),
    [
        ("vqa", {"question"}),
        ("caption", set()),
        ("true_false", {"question"}),
        ("multiple_choice", {"question", "options"}),
        ("vqg", {"answer"}),
        ("dialog", {"question"}),
        ("chat", {"question"}),
    ],
)
def test_templates_place_what_their_task_asks_with_once(task, fields):
    for template in (*TEMPLATES[task], PLAIN_TEMPLATES[task]):
        assert template.fields - {"history"} == fields
        assert len([name for _, name in template.parts if name]) == len(template.fields)


def test_short_answers_are_asked_for_by_some_templates_and_said_so():
    asks_for_short = re.compile(r"short|brief|few words|to three words", re.IGNORECASE)
    for task in ("vqa", "multiple_choice", "dialog"):
        assert 0 < sum(template.short for template in TEMPLATES[task]) < len(TEMPLATES[task])
    for task in TEMPLATES.keys() - {"caption"}:  # where the answers are as short as the wording
        assert all(template.short == bool(asks_for_short.search(template.text)) for template in TEMPLATES[task])


def test_any_task_can_be_worded_without_a_history():
    for templates in TEMPLATES.values():
        assert any("history" not in template.fields for template in templates)


def test_draws_are_the_same_in_another_process():
    here = [draw(13, "template", 5, epoch, f"vqa_rad/{number}") for epoch in range(3) for number in range(20)]
    code = (
        "import runpy, sys\n"
        "draw = runpy.run_path(sys.argv[1])['draw']\n"
        "print([draw(13, 'template', 5, epoch, f'vqa_rad/{number}') for epoch in range(3) for number in range(20)])"
    )
    environment = {"PYTHONHASHSEED": "77", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, inspect.getfile(draw)]
    there = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
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


@given(st.lists(texts, max_size=26))
@quick
def test_any_options_keep_their_order_from_a_on(choices):
    rest = format_options(choices)
    for letter, choice in zip("abcdefghijklmnopqrstuvwxyz", choices, strict=False):
        start = f"({letter}) {choice}"
        assert rest.startswith(start)
        rest = rest[len(start) :].removeprefix(" ")
    assert rest == ""


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


def test_choices_are_listed_only_where_the_template_says_so():
    """A hundred candidates of Visual Dialog, or "no" and "yes", are ranked and not read out."""
    sample = make_sample("1", "What is on?", [], choices=[str(number) for number in range(100)])
    assert format_instruction("{question} Answer:", sample) == "What is on? Answer:"
    with pytest.raises(ValueError, match="100 choices: only 26"):
        format_instruction("{question} {options}", sample)


def test_a_bare_template_introduces_nothing():
    turns = [{"question": "Is it big?", "answer": "Yes."}, {"question": "Red?", "answer": "No."}]
    chat = make_sample("1", "Why?", ["So."], history=turns)
    assert format_instruction(TEMPLATES["chat"][0], chat) == "Is it big? Yes.\nRed? No.\nWhy?"
    read = make_sample("1", "", ["A sign."], context="A hint.", ocr_tokens=["stop", "now"])
    assert format_instruction(PLAIN_TEMPLATES["caption"], read) == "A hint.\nstop, now"
    assert format_instruction(PLAIN_TEMPLATES["caption"], make_sample("1", "", ["A sign."])) == ""


def test_an_answer_is_placed_only_by_its_own_field():
    sample = make_sample("1", "Why?", ["b", "a", "a"])
    assert format_instruction("Answer: {answer} Question:", sample) == "Answer: a Question:"
    assert format_instruction("Answer: {answer} Question:", sample, "b") == "Answer: b Question:"
    assert format_instruction("Answer: {answer}", make_sample("1", "Why?", [])) == "Answer: "


def filled_in(text, sample, answer):
    """The template's text with its fields replaced, in one pass and with nothing read twice."""
    values = {
        "question": sample["question"],
        "answer": answer,
        "context": sample["context"],
        "ocr_tokens": ", ".join(sample["ocr_tokens"][:30]),
        "options": " ".join(f"({chr(97 + number)}) {choice}" for number, choice in enumerate(sample["choices"])),
        "history": " ".join(f"{turn['question']} {turn['answer']}" for turn in sample["history"]),
    }
    return re.sub(r"\{(\w+)\}", lambda field: values[field[1]], text), values


@given(samples(), texts)
@quick
def test_any_sample_fills_every_template_with_its_texts_as_they_are(sample, answer):
    for template in EVERY_TEMPLATE:
        text, values = filled_in(template.text, sample, answer)
        instruction = format_instruction(template, sample, answer)
        assert instruction.endswith(text)
        before = instruction[: len(instruction) - len(text)]
        for name in ("context", "ocr_tokens"):
            assert values[name] in before
        for turn in sample["history"]:
            assert f"{turn['question']} {turn['answer']}" in (text if "history" in template.fields else before)
        if not (sample["context"] or sample["ocr_tokens"] or sample["history"]):
            assert before == ""


@given(samples())
@quick
def test_any_sample_fills_every_prompt_of_the_table(sample):
    for prompt in {spec.prompt for spec in TABLE.values()}:
        answer = "{context}"
        assert format_instruction(prompt, sample, answer).endswith(filled_in(prompt, sample, answer)[0])


@pytest.mark.parametrize("text", HOSTILE)
def test_braces_and_the_like_stay_as_they_are(text):
    sample = make_sample("1", text, [text], choices=[text, "no"], context=text, ocr_tokens=[text])
    sample["history"] = [{"question": text, "answer": text}]
    assert format_instruction("Q: {question} {options}; {{x}}", sample) == (
        f"Context: {text} OCR tokens: {text}. Dialog history: {text} {text} \n Q: {text} (a) {text} (b) no; {{x}}"
    )


@given(samples(), st.integers(0, 3), st.integers(0, 1 << 60), texts)
@quick
def test_a_drawn_template_suits_its_sample(sample, seed, epoch, response):
    for templates in TEMPLATES.values():
        try:
            drawn = choose_template(templates, sample, response, seed, epoch, sample["id"])
        except ValueError:
            assert not sample["question"] or not sample["choices"]
            continue
        assert drawn == choose_template(templates, sample, response, seed, epoch, sample["id"])
        for name in drawn.fields - {"answer"}:
            assert sample["choices" if name == "options" else name]
        assert not drawn.short or len(response.split()) <= 3


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
