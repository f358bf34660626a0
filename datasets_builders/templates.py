"""Wordings that turn a sample into an instruction, and the draw that picks one.

A draw depends on the seed, the epoch and the sample's id and on nothing else, so that any row of any run can be made
again, by any worker, in any order.
"""

import dataclasses
import hashlib
import string
from collections.abc import Sequence
from typing import Any

MAX_OCR_TOKENS = 30  # as in LAVIS: the first 30, joined with ", "
SHORT_WORDS = 3  # an answer of more words is not short, so no template that asks for a short one is drawn for it


@dataclasses.dataclass(frozen=True)
class Template:
    """A wording with `{question}` where the question goes; none for tasks that ask nothing."""

    text: str
    short: bool = False  # asks for a short answer


TEMPLATES: dict[str, tuple[Template, ...]] = {
    "vqa": (
        Template("{question}"),
        Template("Question: {question}"),
        Template("Question: {question} Answer:"),
        Template("Look at the picture. {question}"),
        Template("Answer from what the image shows: {question}"),
        Template("Here is a question about the image. {question} The answer is"),
        Template("{question} What does the picture tell?"),
        Template("Question: {question} Short answer:", short=True),
        Template("{question} Reply in a few words.", short=True),
        Template("{question} Keep the answer short:", short=True),
        Template("In one to three words: {question}", short=True),
        Template("Give a brief answer to this question about the picture. {question}", short=True),
        Template("Q: {question} Brief A:", short=True),
    ),
    "caption": (
        Template("A short image description:"),
        Template("A sentence about this image:"),
        Template("Say briefly what the picture shows."),
        Template("Write a one-sentence caption for this photo."),
        Template("What can be seen here? Answer in a sentence."),
        Template("Describe the scene in a few words."),
        Template("Sum up the contents of the image:"),
        Template("Caption:"),
        Template("How would you describe this picture to someone who cannot see it? Be brief."),
        Template("In one sentence, what is going on in this image?"),
        Template("Name what matters in the picture, in a single sentence."),
        Template("Put this image into words."),
        Template("Compose a brief caption that fits the photo."),
    ),
    "true_false": (
        Template('Based on the image, is this statement true or false? "{question}" Answer:'),
        Template('"{question}" Does the picture make this true or false?'),
        Template("True or false: {question}"),
        Template("Check the statement against the image. {question} True or false?"),
        Template("Statement: {question} Is it true or false of this picture? Answer:"),
        Template("{question} Judge by the image and reply true or false."),
        Template('Someone says of this photo: "{question}" Is that true or false?'),
        Template("Decide whether the sentence fits the image, true or false. {question}"),
        Template('Look at where things are. "{question}" True or false:'),
        Template("Reply with true if the image supports it and false if not. {question}"),
        Template("Claim: {question} Verdict (true or false):"),
    ),
}


def draw(count: int, purpose: str, seed: int, epoch: int, sample_id: str) -> int:
    """A number from 0 to `count` - 1, the same in every process; another `purpose` gives an independent draw."""
    key = f"{purpose}\x1f{seed}\x1f{epoch}\x1f{sample_id}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") % count


def choose_template(templates: Sequence[Template], response: str, seed: int, epoch: int, sample_id: str) -> Template:
    """The template of a sample in an epoch, uniform among those that suit the length of its response.

    Raises:
        ValueError: the response is long, and every template asks for a short one.
    """
    if len(response.split()) > SHORT_WORDS:
        templates = [template for template in templates if not template.short]
    if not templates:
        raise ValueError(f"{sample_id}: no template for a long answer, and {response[:40]!r} is one")
    return templates[draw(len(templates), "template", seed, epoch, sample_id)]


def format_options(choices: Sequence[str]) -> str:
    """`(a) blue (b) yellow`, in the order given.

    Raises:
        ValueError: more choices than letters.
    """
    if len(choices) > len(string.ascii_lowercase):
        raise ValueError(f"{len(choices)} choices: only {len(string.ascii_lowercase)} have a letter")
    return " ".join(f"({letter}) {choice}" for letter, choice in zip(string.ascii_lowercase, choices, strict=False))


def format_instruction(template: str, sample: dict[str, Any]) -> str:
    """The instruction: what the sample brings along, in front of or after the question, set into the template.

    A template may place `{context}`, `{options}`, `{ocr_tokens}` and `{history}` itself, as evaluation prompts do. What
    it does not place is put around the question in the words of the paper's prompts; the choices of a true-or-false
    statement are in its template's words already, and are listed only where `{options}` asks for them.

    Args:
        template: text with `{question}` and the like; other braces are an error.
        sample: a sample of the row schema; its answers are not looked at.

    Raises:
        KeyError: the template has an unknown field.
    """
    parts = {
        "context": sample.get("context") or "",
        "options": format_options(sample.get("choices") or []),
        "ocr_tokens": ", ".join((sample.get("ocr_tokens") or [])[:MAX_OCR_TOKENS]),
        "history": " ".join(f"{turn['question']} {turn['answer']}" for turn in sample.get("history") or []),
    }
    placed = {name for _, name, _, _ in string.Formatter().parse(template) if name}
    before = []
    if parts["context"] and "context" not in placed:
        before.append(f"Context: {parts['context']}")
    if parts["ocr_tokens"] and "ocr_tokens" not in placed:
        before.append(f"OCR tokens: {parts['ocr_tokens']}.")
    if parts["history"] and "history" not in placed:
        before.append(f"Dialog history: {parts['history']} \n")
    question = sample.get("question") or ""
    if parts["options"] and "options" not in placed and not is_true_false(sample["choices"]):
        question = f"{question} Options: {parts['options']}."
    return " ".join([*before, template.format(question=question, **parts)])


def is_true_false(choices: Sequence[str]) -> bool:
    """Whether the choices are just true and false."""
    return {choice.lower() for choice in choices} == {"true", "false"}
