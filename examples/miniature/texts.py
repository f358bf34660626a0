"""Instructions and responses about scenes in words, which the language models learn from, and the words themselves.

The wordings are the package's own: its instruction templates, and the paper's prompts of the tasks it evaluates.
"""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import skills
from skills import Exchange
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertTokenizerFast, PreTrainedTokenizerFast
from world import (
    FEELINGS,
    NAMES,
    SHAPES,
    SIGNS,
    TITLES,
    Scene,
    describe,
    describe_at_once,
    describe_clip,
    new_clip,
    new_scene,
)

from instructblip.datasets_builders.instructions import InstructionFormat
from instructblip.datasets_builders.schema import make_sample
from instructblip.datasets_builders.table import TABLE
from instructblip.datasets_builders.templates import PLAIN_TEMPLATES, TEMPLATES, Template

PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"
PROMPTS = {
    task: sorted({Template(spec.prompt) for spec in TABLE.values() if spec.task == task}, key=lambda each: each.text)
    for task in TEMPLATES
}


class Pair(NamedTuple):
    """What a model is told and what it should say."""

    instruction: str
    response: str
    form: str = ""  # the function that made it


def word_instruction(exchange: Exchange, task: str, rng: random.Random, **extra) -> Pair:
    """An exchange as instruction and response, in a wording of the task drawn at random."""
    sample = make_sample(
        id=str(rng.random()),
        question=exchange.question,
        answers=[exchange.answer],
        choices=list(exchange.choices),
        label=exchange.choices.index(exchange.answer) if exchange.choices else -1,
        context=exchange.context,
        **extra,
    )
    templates = list(TEMPLATES[task]) + 3 * PROMPTS[task]
    item = InstructionFormat.of("texts", task=task, templates=templates).item(sample, "")
    return Pair(item["instruction"], item["response"])


def captions(scene: Scene, rng: random.Random) -> Pair:
    caption = skills.reading_caption(scene, rng) if scene.words else skills.caption(scene, rng, rng.choice((0.3, 0.5)))
    ocr = list(scene.words) if rng.random() < 0.5 else []
    return word_instruction(Exchange("", caption), "caption", rng, ocr_tokens=ocr)


def about(skill: skills.Skill, task: str) -> Callable[[Scene, random.Random], Pair | None]:
    def pair(scene: Scene, rng: random.Random) -> Pair | None:
        exchange = skill(scene, rng)
        return exchange and word_instruction(exchange, task, rng)

    pair.__name__ = skill.__name__
    return pair


def reading(scene: Scene, rng: random.Random) -> Pair | None:
    exchange = skills.sign(scene, rng)
    return exchange and word_instruction(exchange, "vqa", rng, ocr_tokens=list(scene.words))


def looking(scene: Scene, rng: random.Random) -> Pair | None:
    exchange = rng.choice(skills.LOOKING)(scene, rng)
    return exchange and word_instruction(exchange, "vqa", rng)


def finding(scene: Scene, rng: random.Random) -> Pair | None:
    """A thing is found by one attribute and asked for another: what language models learn last, and must see most."""
    exchange = rng.choice((skills.attribute, skills.attribute, skills.place, skills.at_place))(scene, rng)
    return exchange and word_instruction(exchange, "vqa", rng)


def applying(scene: Scene, rng: random.Random) -> Pair | None:
    """A text tells what is asked for, by what the question says or by what the scene shows."""
    exchange = skills.science(scene, rng, told=rng.random() < 0.5)
    return exchange and word_instruction(exchange, "multiple_choice", rng)


def without_choices(scene: Scene, rng: random.Random) -> Pair | None:
    exchange = rng.choice((skills.everyday, skills.icons, skills.science))(scene, rng)
    return exchange and word_instruction(
        Exchange(exchange.question, exchange.answer, context=exchange.context), "vqa", rng
    )


def asking(scene: Scene, rng: random.Random) -> Pair | None:
    exchange = rng.choice((*skills.LOOKING, skills.knowledge, skills.everyday))(scene, rng)
    return exchange and word_instruction(Exchange(exchange.question, exchange.answer), "vqg", rng)


def chatting(scene: Scene, rng: random.Random) -> Pair | None:
    if rng.random() < 0.5:
        exchange = skills.reason(scene, rng)
    else:
        exchange = Exchange("describe the picture in detail.", skills.detail(scene, rng))
    return exchange and word_instruction(exchange, "chat", rng)


def talking(scene: Scene, rng: random.Random) -> Pair | None:
    rounds = skills.dialogue(scene, rng, rng.randint(1, 6))
    if rounds is None:
        return None
    history = [{"question": each.question, "answer": each.answer} for each in rounds[:-1]]
    told = rng.random() < 0.5
    last = Exchange(rounds[-1].question, rounds[-1].answer, context=skills.caption(scene, rng, 0.0) if told else "")
    return word_instruction(last, "dialog", rng, history=history)


# What is asked about a scene, with how often, by whether words stand in it.
PLAIN = (
    (finding, 10), (looking, 8), (captions, 2), (asking, 1), (chatting, 1), (talking, 1), (without_choices, 1),
    (about(skills.knowledge, "vqa"), 2), (about(skills.everyday, "multiple_choice"), 1),
    (about(skills.relation_statement, "true_false"), 3), (about(skills.compositional, "vqa"), 3),
    (about(skills.icons, "multiple_choice"), 1), (about(skills.science, "multiple_choice"), 2), (applying, 2),
)  # fmt: skip
BOOK = ((about(skills.cover, "vqa"), 4), (reading, 2), (captions, 1))
SIGN = ((reading, 3), (captions, 1), (looking, 3))
MEME = ((about(skills.meme, "vqa"), 4), (reading, 1), (looking, 3))
KINDS: dict[str, tuple[dict, tuple]] = {
    "plain": ({}, PLAIN),
    "sign": ({"bottom_words": SIGNS}, SIGN),
    "signs": ({"top_words": SIGNS, "bottom_words": SIGNS}, SIGN),
    "book": ({"top_words": TITLES, "bottom_words": NAMES, "most": 2}, BOOK),
    "meme": ({"top_words": FEELINGS, "bottom_words": SHAPES, "most": 3}, MEME),
    "drill": ({}, ((finding, 1), (applying, 1))),
}


def lesson(
    rng: random.Random, most_things: int = 5, pairs: int = 12, drill: bool = False, at_once: bool = False
) -> tuple[str, list[Pair]]:
    """A scene or film in words and what can be said about it.

    Args:
        most_things: scenes have so many things at most; lessons start with one.
        pairs: how many instructions.
        drill: nothing but finding things and applying texts to them.
        at_once: the words of a thing are to be read as one, as `describe_at_once` says.
    """
    kind = "drill" if drill else rng.choices(("plain", "sign", "signs", "book", "meme", "film"), (12, 1, 2, 2, 2, 3))[0]
    order = rng if rng.random() < 0.5 else None
    everywhere = rng.random() < 0.5
    said: list[Pair] = []
    if kind == "film":
        clip = new_clip(rng)
        while len(said) < (pairs + 1) // 2:
            exchange = skills.happening(clip, rng)
            if exchange:
                said.append(word_instruction(exchange, "vqa", rng)._replace(form="happening"))
        if at_once:
            return " ".join(describe_at_once(frame, everywhere) for frame in clip.frames), said
        return describe_clip(clip, order), said
    options, ways = KINDS[kind]
    scene = new_scene(rng, **({"most": most_things} | options | {"most": min(most_things, options.get("most", 5))}))
    functions, weights = zip(*ways, strict=True)
    while len(said) < pairs:
        function = rng.choices(functions, weights)[0]
        pair = function(scene, rng)
        if pair:
            said.append(pair._replace(form=function.__name__))
    return describe_at_once(scene, everywhere, order) if at_once else describe(scene, order), said


def vocabulary() -> list[str]:
    """Every word and mark that a lesson, a template or a prompt can hold, in alphabetical order."""
    splitter, normalizer = pre_tokenizers.BertPreTokenizer(), normalizers.Lowercase()
    words: set[str] = set()
    for text in all_texts():
        words.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    return sorted(words)


def all_texts(lessons: int = 3000) -> Iterator[str]:
    """Texts that together hold all words."""
    rng = random.Random(0)
    for _ in range(lessons):
        scene, pairs = lesson(rng)
        yield scene
        for instruction, response, _ in pairs:
            yield f"{instruction} {response}"
    for templates in (*TEMPLATES.values(), *PROMPTS.values(), PLAIN_TEMPLATES.values()):
        for template in templates:
            yield template.text
    yield " ".join(
        (*skills.DIALOGUE_ANSWERS, *FEELINGS, *NAMES, *SIGNS, *TITLES, *(f"({letter})" for letter in "abcdefgh"))
    )


def make_tokenizers(folder: Path) -> None:
    """Write `language` and `qformer_tokenizer` into the folder: whole words for both."""
    words = vocabulary()
    entries = {word: number for number, word in enumerate([PAD, BOS, EOS, UNK, *words])}
    tokenizer = Tokenizer(models.WordLevel(entries, unk_token=UNK))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = {"pad_token": PAD, "eos_token": EOS, "unk_token": UNK}
    for kind, template in (("decoder_only", f"{BOS} $A"), ("encoder_decoder", f"$A {EOS}")):
        token = template.replace("$A", "").strip()
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[(token, entries[token])]
        )
        more = {"bos_token": BOS, "padding_side": "left"} if kind == "decoder_only" else {}
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, **more).save_pretrained(folder / kind)
    (folder / "qformer").mkdir(parents=True, exist_ok=True)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "qformer" / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    BertTokenizerFast(str(folder / "qformer" / "vocab.txt")).save_pretrained(folder / "qformer")
