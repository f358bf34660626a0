"""Wordings that turn a sample into an instruction, and the draw that picks one.

A draw depends on the seed, the epoch and the sample's id and on nothing else, so that any row of any run can be made
again, by any worker, in any order.
"""

import collections
import dataclasses
import functools
import hashlib
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

MAX_OCR_TOKENS = 30  # as in LAVIS: the first 30, joined with ", "
SHORT_WORDS = 3  # an answer of more words is not short, so no template that asks for a short one is drawn for it


def format_options(choices: Sequence[str]) -> str:
    """`(a) blue (b) yellow`, in the order given.

    Raises:
        ValueError: more choices than letters.
    """
    if len(choices) > len(string.ascii_lowercase):
        raise ValueError(f"{len(choices)} choices: only {len(string.ascii_lowercase)} have a letter")
    return " ".join([f"({letter}) {choice}" for letter, choice in zip(string.ascii_lowercase, choices, strict=False)])


def _turns(sample: Mapping[str, Any]) -> list[str]:
    return [f"{turn['question']} {turn['answer']}" for turn in sample.get("history") or ()]


FIELDS: dict[str, Callable[[Mapping[str, Any]], str]] = {  # what a template may place, but for {answer}
    "question": lambda sample: sample.get("question") or "",
    "context": lambda sample: sample.get("context") or "",
    "options": lambda sample: format_options(sample.get("choices") or ()),
    "ocr_tokens": lambda sample: ", ".join((sample.get("ocr_tokens") or ())[:MAX_OCR_TOKENS]),
    "history": lambda sample: " ".join(_turns(sample)),
}
SAMPLE_KEYS = tuple((name, "choices" if name == "options" else name) for name in FIELDS)  # and what they are made of

INTRODUCTIONS = {"context": "Context: {}", "ocr_tokens": "OCR tokens: {}.", "history": "Dialog history: {} \n"}


@dataclasses.dataclass(frozen=True)
class Template:
    """A wording with `{question}`, `{options}`, `{context}`, `{ocr_tokens}`, `{history}` or `{answer}` in their places.

    Context, OCR tokens and history that it does not place are put in front. Braces that are no field are doubled.

    Raises:
        ValueError: another field, or a single brace.
    """

    text: str
    short: bool = False  # asks for a short answer
    bare: bool = False  # what is put in front is not introduced by words of ours, and has a line of its own

    def __post_init__(self) -> None:
        _ = self.parts  # a wrong template is refused where it is written

    @functools.cached_property
    def parts(self) -> tuple[tuple[str, str], ...]:
        """(text, field after it) in order; the field is "" at the end."""
        try:
            parsed = list(string.Formatter().parse(self.text))
        except ValueError as error:
            raise ValueError(f"template {self.text!r}: {error}; write a brace that is no field twice") from error
        for _, name, form, conversion in parsed:
            if name is not None and (form or conversion or (name not in FIELDS and name != "answer")):
                written = name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
                known = ", ".join((*FIELDS, "answer"))
                raise ValueError(f"template {self.text!r}: {{{written}}} is no field, expected one of {known}")
        return tuple((literal, name or "") for literal, name, _, _ in parsed)

    @functools.cached_property
    def fields(self) -> frozenset[str]:
        """The fields that it places."""
        return frozenset(name for _, name in self.parts if name)


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
    "multiple_choice": (
        Template("Question: {question} Options: {options}. Answer:"),
        Template("{question} Choose one: {options}."),
        Template("{question} Which of these is right? {options}"),
        Template("Pick the answer that the image supports. {question} {options}"),
        Template("Question: {question} Choices: {options}. The right choice is"),
        Template("Look at the image and choose. {question} {options} Answer:"),
        Template("{question} One of these answers it: {options}. Which one?"),
        Template("Here is a question with its possible answers. {question} {options} Your choice:"),
        Template("{options} These are the possible answers to: {question} Name the correct one."),
        Template("Select the best answer from the list. Question: {question} List: {options}."),
        Template("Question: {question} Options: {options}. Short answer:", short=True),
        Template("{question} {options} Answer in a few words, out of the list.", short=True),
        Template("Q: {question} Options: {options}. Brief A:", short=True),
    ),
    "vqg": (  # the answer goes in and the question comes out
        Template('The answer is "{answer}". What is the question?'),
        Template('Ask something about the image that "{answer}" answers.'),
        Template("Write a question about this picture that has this answer: {answer}"),
        Template("Answer: {answer} Question:"),
        Template('Which question about the photo would one answer with "{answer}"?'),
        Template('Someone looked at this image and replied "{answer}". What had they been asked?'),
        Template('From the picture and the answer "{answer}", recover the question.'),
        Template('Make up a question that fits the image and has the answer "{answer}".'),
        Template('"{answer}" answers a question about what is shown. State that question.'),
        Template('Turn the answer "{answer}" into a question about this picture:'),
        Template("Find the question to this answer: {answer}"),
    ),
    "dialog": (
        Template("{question}"),
        Template("Question: {question} Answer:"),
        Template("The next question about the picture: {question}"),
        Template("Reply to this question about the image. {question}"),
        Template("You are asked about this photo: {question} Your reply:"),
        Template("Question: {question} Short answer:", short=True),
        Template("{question} Reply in a few words.", short=True),
        Template("The talk so far: {history} Next question: {question} Answer:"),
        Template("These questions about the image were answered before: {history} Now answer this one: {question}"),
        Template("A conversation about the picture: {history} {question}"),
        Template("Keep in mind what was said. {history} Then reply: {question}"),
        Template("{history} \n {question}"),
        Template("Earlier: {history} \n Now: {question} Short answer:", short=True),
    ),
    "chat": (Template("{question}", bare=True),),  # LLaVA's questions are instructions already
}

# The paper's two formats without instructions (Fig. 4): what goes in is what the sample brings along, and nothing else.
PLAIN_TEMPLATES: dict[str, Template] = {
    "vqa": Template("{question}", bare=True),
    "caption": Template("", bare=True),
    "true_false": Template("{question}", bare=True),
    "multiple_choice": Template("{question} {options}", bare=True),
    "vqg": Template("{answer}", bare=True),
    "dialog": Template("{question}", bare=True),
    "chat": Template("{question}", bare=True),
}

# How the second of them calls a task. "Visual question answering" is the paper's, the others are ours. Tasks that only
# held-out datasets have share it, since a name never seen in training would tell the model nothing.
TASK_NAMES: dict[str, str] = {
    "vqa": "Visual question answering",
    "caption": "Image captioning",
    "true_false": "Visual question answering",
    "multiple_choice": "Visual question answering",
    "vqg": "Visual question generation",
    "dialog": "Visual question answering",
    "chat": "Visual conversation",
}


def draw(count: int, purpose: str, seed: int, epoch: int, sample_id: str) -> int:
    """A number from 0 to `count` - 1, the same in every process; another `purpose` gives an independent draw."""
    key = f"{purpose}\x1f{seed}\x1f{epoch}\x1f{sample_id}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") % count


def choose_template(
    templates: Sequence[Template], sample: Mapping[str, Any], response: str, seed: int, epoch: int, sample_id: str
) -> Template:
    """The template of a sample in an epoch, uniform among those that suit it.

    One suits when the sample has something for each field that it places and, if it asks for a short answer, when the
    response is short.

    Raises:
        ValueError: none suits; says why.
    """
    has = {"answer"}
    has.update([name for name, key in SAMPLE_KEYS if sample.get(key)])
    long = len(response.split()) > SHORT_WORDS
    suitable = [template for template in templates if template.fields <= has and not (long and template.short)]
    if not suitable:
        placing = [template for template in templates if template.fields <= has]
        if placing:
            raise ValueError(f"{sample_id}: no template for a long answer, and {response[:40]!r} is one")
        lacking = sorted(min((template.fields - has for template in templates), key=len))
        raise ValueError(
            f"{sample_id}: no template suits, as the sample has no {' and no '.join(lacking)}; context, ocr_tokens and "
            "history need no place in a template, as they are put in front of it where a sample has them"
        )
    return suitable[draw(len(suitable), "template", seed, epoch, sample_id)]


_template_of = functools.lru_cache(maxsize=256)(Template)


def most_frequent(answers: Sequence[str]) -> str:
    """The answer given most often; of equals, the one that comes first."""
    counts = collections.Counter(answers)
    return max(counts, key=counts.__getitem__)


def format_instruction(template: Template | str, sample: Mapping[str, Any], answer: str | None = None) -> str:
    """The instruction: what the sample brings along, in front of the template or in the places that it has for it.

    What goes in front is introduced in the words of the paper's prompts ("Context: ... OCR tokens: ... Dialog history:
    ..."), or with a bare template by nothing. Choices are listed only where `{options}` says so: in other prompts they
    are candidates to rank.

    Args:
        template: a template, or its text.
        sample: a sample of the row schema. Its texts are set in as they are, braces included.
        answer: what `{answer}` stands for; None: the most frequent of the sample's. Other templates look at no answer.

    Raises:
        ValueError: a text that is no template, or more choices than letters.
    """
    if isinstance(template, str):
        template = _template_of(template)
    pieces = []
    for literal, name in template.parts:
        pieces.append(literal)
        if name == "answer":
            pieces.append(most_frequent(sample["answers"] or [""]) if answer is None else answer)
        elif name:
            pieces.append(FIELDS[name](sample))
    text = "".join(pieces)
    before = [name for name in INTRODUCTIONS if sample.get(name) and name not in template.fields]
    if not before:
        return text
    if template.bare:
        lines = [line for name in before for line in (_turns(sample) if name == "history" else [FIELDS[name](sample)])]
        return "\n".join([*lines, text] if text else lines)
    return " ".join([*(INTRODUCTIONS[name].format(FIELDS[name](sample)) for name in before), text])
