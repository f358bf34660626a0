"""Questions, captions and dialogues about scenes, with the answers that follow from the scenes.

A skill is a function `(scene, rng) -> Exchange | None`: None where the scene has nothing to ask it about. The kind of
answer is drawn first (yes or no, a number, a color) and a question that has it is looked for, as far as the scene
allows, so that the question tells little about its answer; what it does tell, a model that sees no picture measures.
"""

import dataclasses
import random
from collections.abc import Callable, Sequence

from world import (
    CHANGES,
    COLORS,
    GROUNDS,
    PATTERNS,
    PLACES,
    SHAPES,
    SIZES,
    STEPS,
    Clip,
    Scene,
    Thing,
)


@dataclasses.dataclass(frozen=True)
class Exchange:
    """A question and its answer; `choices` where one is to be picked, `context` where a text has to be read first."""

    question: str
    answer: str
    choices: tuple[str, ...] = ()
    context: str = ""
    synonyms: tuple[str, ...] = ()  # other answers that are as good


Skill = Callable[[Scene, random.Random], Exchange | None]

# What everybody knows. The language models learn it as text; no picture shows it.
FRUIT = {"red": "cherry", "green": "lime", "blue": "plum", "yellow": "lemon", "purple": "grape", "orange": "peach",
         "white": "coconut", "black": "olive"}  # fmt: skip
CORNERS = {"circle": "0", "triangle": "3", "square": "4", "star": "5", "cross": "12", "heart": "1", "ring": "0",
           "moon": "2"}  # fmt: skip
ANIMAL = {"meadow": "cow", "sea": "fish", "desert": "camel", "night": "owl"}
TOOL = {"meadow": "boots", "sea": "boat", "desert": "hat", "night": "lamp"}
GENRE = {"meadow": "nature", "sea": "travel", "desert": "adventure", "night": "mystery"}
LIKENESS = {"circle": "ball", "square": "box", "triangle": "roof", "star": "badge", "heart": "gift", "cross": "flag",
            "ring": "wheel", "moon": "banana"}  # fmt: skip
MATERIALS = ("glass", "gold", "iron", "paper", "stone", "wood")

PLURAL = {shape: shape + ("es" if shape.endswith("ss") else "s") for shape in SHAPES}


def place_phrase(place: int) -> str:
    """ "at the top left", "in the middle", "on the left": how one says that a thing is there."""
    name = PLACES[place]
    return {"left": "on the left", "right": "on the right", "middle": "in the middle"}.get(name, f"at the {name}")


def refer(thing: Thing, scene: Scene, rng: random.Random) -> str | None:
    """Words that only this thing of the scene answers to: "circle", "red circle", "striped thing", "large star" ..."""
    others = [other for other in scene.things if other is not thing]
    ways = [
        (thing.shape, [other for other in others if other.shape == thing.shape]),
        (f"{thing.color} thing", [other for other in others if other.color == thing.color]),
        (f"{thing.pattern} thing", [other for other in others if other.pattern == thing.pattern]),
        (f"{thing.size} thing", [other for other in others if other.size == thing.size]),
        (
            f"{thing.color} {thing.shape}",
            [other for other in others if (other.color, other.shape) == (thing.color, thing.shape)],
        ),
        (
            f"{thing.size} {thing.shape}",
            [other for other in others if (other.size, other.shape) == (thing.size, thing.shape)],
        ),
    ]
    unique = [words for words, same in ways if not same]
    return rng.choice(unique) if unique else None


def refer_without(thing: Thing, scene: Scene, attribute: str, rng: random.Random) -> str | None:
    """As `refer`, with words that do not tell the attribute that is asked for."""
    for _ in range(8):
        words = refer(thing, scene, rng)
        if words is not None and getattr(thing, attribute) not in words.split():
            return words
    return None


def any_thing(scene: Scene, rng: random.Random) -> Thing | None:
    return rng.choice(scene.things) if scene.things else None


def shuffled_choices(answer: str, pool: Sequence[str], count: int, rng: random.Random) -> tuple[str, ...]:
    """The answer among wrong ones from the pool, in random order."""
    wrong = rng.sample([each for each in pool if each != answer], count - 1)
    choices = [answer, *wrong]
    rng.shuffle(choices)
    return tuple(choices)


# Looking: VQAv2, and what the others build on


def attribute(scene: Scene, rng: random.Random) -> Exchange | None:
    """Color, shape, pattern or size of one thing."""
    thing = any_thing(scene, rng)
    which = rng.choice(("color", "shape", "pattern", "size"))
    words = thing and refer_without(thing, scene, which, rng)
    if not thing or not words:
        return None
    question = {
        "color": f"what color is the {words}?",
        "shape": f"what shape is the {words}?",
        "pattern": f"what pattern does the {words} have?",
        "size": f"is the {words} small or large?",
    }[which]
    return Exchange(question, getattr(thing, which))


def place(scene: Scene, rng: random.Random) -> Exchange | None:
    thing = any_thing(scene, rng)
    words = thing and refer(thing, scene, rng)
    return Exchange(f"where is the {words}?", PLACES[thing.place]) if thing and words else None


def at_place(scene: Scene, rng: random.Random) -> Exchange | None:
    thing = any_thing(scene, rng)
    if not thing:
        return None
    which, asked = rng.choice((("shape", "what is"), ("color", "what color is the thing")))
    return Exchange(f"{asked} {place_phrase(thing.place)}?", getattr(thing, which))


def count(scene: Scene, rng: random.Random) -> Exchange | None:
    """How many there are of a kind: all, of a color or of a shape; the number is drawn first."""
    wanted = rng.randint(0, 3)
    kinds = [("things", len(scene.things))]
    kinds += [(f"{color} things", sum(each.color == color for each in scene.things)) for color in COLORS]
    kinds += [(PLURAL[shape], sum(each.shape == shape for each in scene.things)) for shape in SHAPES]
    fitting = [(words, number) for words, number in kinds if number == wanted]
    words, number = rng.choice(fitting or kinds)
    return Exchange(f"how many {words} are there?", str(number))


def exists(scene: Scene, rng: random.Random) -> Exchange | None:
    """Is there such a thing? Yes and no are equally likely; a no misses by as little as it can."""
    yes = rng.random() < 0.5
    thing = any_thing(scene, rng)
    if not thing:
        return None
    color, shape = thing.color, thing.shape
    if not yes:
        if rng.random() < 0.5:
            color = rng.choice(COLORS)
        else:
            shape = rng.choice(SHAPES)
    there = any((each.color, each.shape) == (color, shape) for each in scene.things)
    article = "an" if color[0] in "aeiou" else "a"
    return Exchange(f"is there {article} {color} {shape}?", "yes" if there else "no")


def ground(scene: Scene, rng: random.Random) -> Exchange | None:
    return Exchange("what is in the background?", scene.ground)


LOOKING: tuple[Skill, ...] = (attribute, attribute, place, at_place, count, exists, ground)


# Knowing: OKVQA, A-OKVQA


def knowledge(scene: Scene, rng: random.Random) -> Exchange | None:
    """What one sees, and what one knows of it: fruit of a color, corners of a shape, animals of a ground."""
    thing = any_thing(scene, rng)
    words = thing and refer_without(thing, scene, "color", rng)
    ways: list[Exchange] = [Exchange("which animal lives here?", ANIMAL[scene.ground])]
    if thing and words:
        ways.append(Exchange(f"which fruit has the color of the {words}?", FRUIT[thing.color]))
    words = thing and refer_without(thing, scene, "shape", rng)
    if thing and words:
        ways.append(Exchange(f"how many corners does the {words} have?", CORNERS[thing.shape]))
    return rng.choice(ways)


def everyday(scene: Scene, rng: random.Random) -> Exchange | None:
    """The same with other knowledge and four choices."""
    thing = any_thing(scene, rng)
    words = thing and refer_without(thing, scene, "shape", rng)
    if thing and words and rng.random() < 0.7:
        answer, pool = LIKENESS[thing.shape], tuple(LIKENESS.values())
        question = f"what does the {words} look like?"
    else:
        answer, pool = TOOL[scene.ground], tuple(TOOL.values())
        question = "what should one bring to this place?"
    return Exchange(question, answer, shuffled_choices(answer, pool, 4, rng))


# Reading: OCR-VQA (book covers), TextVQA (signs)


def cover(scene: Scene, rng: random.Random) -> Exchange | None:
    """A book: its title stands above, its author below, and what it is about shows in the background."""
    if not (scene.top_word and scene.bottom_word):
        return None
    genre = GENRE[scene.ground]
    asked = genre if rng.random() < 0.5 else rng.choice([each for each in GENRE.values() if each != genre])
    return rng.choice(
        (
            Exchange("what is the title of this book?", scene.top_word),
            Exchange("who wrote this book?", scene.bottom_word),
            Exchange("what kind of book is this?", genre),
            Exchange(f"is this a book about {asked}?", "yes" if asked == genre else "no"),
        )
    )


def sign(scene: Scene, rng: random.Random) -> Exchange | None:
    """What is written, and what a written word stands beside."""
    if not scene.words:
        return None
    if len(scene.words) == 2:
        above = rng.random() < 0.5
        asked = "above" if above else "below"
        return Exchange(f"what is written {asked}?", scene.top_word if above else scene.bottom_word)
    return Exchange(rng.choice(("what does the sign say?", "what is written here?")), scene.words[0])


# Reasoning: GQA, VSR, IconQA


RELATIONS: dict[str, Callable[[Thing, Thing], bool]] = {
    "left of": lambda one, two: one.column < two.column,
    "right of": lambda one, two: one.column > two.column,
    "above": lambda one, two: one.row < two.row,
    "below": lambda one, two: one.row > two.row,
}


def two_things(scene: Scene, rng: random.Random) -> tuple[Thing, str, Thing, str] | None:
    """Two things and words for each."""
    if len(scene.things) < 2:
        return None
    one, two = rng.sample(scene.things, 2)
    first, second = refer(one, scene, rng), refer(two, scene, rng)
    return (one, first, two, second) if first and second else None


def relation_statement(scene: Scene, rng: random.Random) -> Exchange | None:
    """A statement about where two things are, or how they compare; true and false are equally likely."""
    pair = two_things(scene, rng)
    if not pair:
        return None
    one, first, two, second = pair
    true = rng.random() < 0.5
    facts = {f"the {first} is {name} the {second}.": holds(one, two) for name, holds in RELATIONS.items()}
    if one.color not in first and two.color not in second:
        facts[f"the {first} has the same color as the {second}."] = one.color == two.color
    if one.size not in first and two.size not in second:
        facts[f"the {first} is larger than the {second}."] = one.size == "large" and two.size == "small"
    fitting = [statement for statement, holds in facts.items() if holds is true]
    return Exchange(rng.choice(fitting), "true" if true else "false") if fitting else None


def compositional(scene: Scene, rng: random.Random) -> Exchange | None:
    """Two steps: find a thing by another one and tell something of it, or compare two."""
    pair = two_things(scene, rng)
    if not pair:
        return None
    one, first, two, second = pair
    ways = []
    for name, holds in RELATIONS.items():
        beyond = [each for each in scene.things if each is not two and holds(each, two)]
        if len(beyond) == 1:
            which = rng.choice(("color", "shape", "pattern"))
            asked = "thing" if which == "shape" else rng.choice(("thing", beyond[0].shape))
            ways.append(Exchange(f"what {which} is the {asked} {name} the {second}?", getattr(beyond[0], which)))
    if one.color not in first and two.color not in second:
        same = "yes" if one.color == two.color else "no"
        ways.append(Exchange(f"do the {first} and the {second} have the same color?", same))
    horizontal = [name for name in ("left of", "right of") if one.column != two.column]
    vertical = [name for name in ("above", "below") if one.row != two.row]
    for names in (horizontal, vertical):
        if names:
            name = rng.choice(names)
            answer = "yes" if RELATIONS[name](one, two) else "no"
            ways.append(Exchange(f"is the {first} {name} the {second}?", answer))
    return rng.choice(ways) if ways else None


def icons(scene: Scene, rng: random.Random) -> Exchange | None:
    """Counting and comparing as in a school book, with choices."""
    numbers = {shape: sum(each.shape == shape for each in scene.things) for shape in SHAPES}
    shown = [shape for shape in SHAPES if numbers[shape]]
    if len(shown) < 2:
        return None
    most = max(numbers.values())
    leaders = [shape for shape in shown if numbers[shape] == most]
    ways = []
    if len(leaders) == 1:
        choices = shuffled_choices(leaders[0], shown, min(3, len(shown)), rng)
        ways.append(Exchange("which shape is there most of?", leaders[0], choices))
    one, two = rng.sample(shown, 2)
    comparison = "more" if numbers[one] > numbers[two] else "fewer" if numbers[one] < numbers[two] else "equally many"
    asked = f"are there more {PLURAL[one]} than {PLURAL[two]}, fewer, or equally many?"
    ways.append(Exchange(asked, comparison, ("more", "fewer", "equally many")))
    total = numbers[one] + numbers[two]
    choices = shuffled_choices(str(total), tuple("12345"), 4, rng)
    ways.append(Exchange(f"how many {PLURAL[one]} and {PLURAL[two]} are there together?", str(total), choices))
    return rng.choice(ways)


def science(scene: Scene, rng: random.Random, told: bool = False) -> Exchange | None:
    """A text says what things of each pattern are made of; the picture says which pattern it is.

    Args:
        told: the question says which pattern it is, so that the text is enough.
    """
    thing = any_thing(scene, rng)
    words = thing and (f"{thing.pattern} thing" if told else refer_without(thing, scene, "pattern", rng))
    if not thing or not words:
        return None
    made_of = dict(zip(PATTERNS, rng.sample(MATERIALS, len(PATTERNS)), strict=True))
    context = " ".join(f"every {pattern} thing is made of {made_of[pattern]}." for pattern in PATTERNS)
    answer = made_of[thing.pattern]
    choices = shuffled_choices(answer, tuple(made_of.values()), 3, rng)
    return Exchange(f"what is the {words} made of?", answer, choices, context)


def meme(scene: Scene, rng: random.Random) -> Exchange | None:
    """Hateful is who hates what the picture shows; loving it, or hating what is not shown, is not."""
    if not (scene.top_word and scene.bottom_word):
        return None
    shown = any(each.shape == scene.bottom_word for each in scene.things)
    text = f"i {scene.top_word} every {scene.bottom_word}"
    return Exchange("is it hateful?", "yes" if scene.top_word == "hate" and shown else "no", context=text)


# Films


def happening(clip: Clip, rng: random.Random) -> Exchange | None:
    """What happens, to what, and which way."""
    words = refer(clip.subject, clip.frames[0 if clip.change != "appears" else -1], rng)
    ways = []
    if words and words.split()[0] not in SIZES:  # a size may change
        others = {"grows": "gets larger", "shrinks": "gets smaller", "vanishes": "goes away", "appears": "comes in"}
        synonyms = (others[clip.change],) if clip.change in others else ()
        ways.append(Exchange(f"what happens to the {words}?", clip.change, synonyms=synonyms))
        if clip.change in STEPS:
            ways.append(Exchange(f"which way does the {words} move?", clip.change.split()[1]))
    does = clip.change.split()[0]
    ways.append(Exchange(f"what {does}?", clip.subject.shape))
    ways.append(Exchange(f"what color is the thing that {does}?", clip.subject.color))
    return rng.choice(ways)


# Captions


def name_thing(thing: Thing, rng: random.Random, detail: float) -> str:
    """ "a red circle", or with more of its attributes; `detail`: the chance of each to be told."""
    words = [value for value in (thing.size, thing.pattern) if value != "plain" and rng.random() < detail]
    words += [thing.color, thing.shape]
    if rng.random() < detail:
        words.append(place_phrase(thing.place))
    return f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}"


def caption(scene: Scene, rng: random.Random, detail: float = 0.3) -> str:
    """A sentence about all things, in one of several wordings."""
    named = [name_thing(thing, rng, detail) for thing in scene.things]
    joined = f"{', '.join(named[:-1])} and {named[-1]}" if len(named) > 1 else (named or ["nothing"])[0]
    where = {"meadow": "on a meadow", "sea": "at sea", "desert": "in the desert", "night": "at night"}[scene.ground]
    return rng.choice((f"{joined} {where}.", f"there is {joined} {where}.", f"{where} there is {joined}."))


def reading_caption(scene: Scene, rng: random.Random) -> str:
    """A caption that says what is written."""
    plain = caption(scene, rng, 0.0).removesuffix(".")
    words = " and ".join(scene.words)
    return rng.choice((f"{plain} and the word {words}.", f"a sign that says {words} with {plain}."))


def detail(scene: Scene, rng: random.Random) -> str:
    """A long description: every thing with its place."""
    sentences = []
    for thing in scene.things:
        words = f"{thing.size} {thing.color} {thing.pattern} {thing.shape}"
        sentences.append(f"{place_phrase(thing.place)} there is a {words}.")
    return " ".join([*sentences, f"the background is a {scene.ground}."])


def reason(scene: Scene, rng: random.Random) -> Exchange | None:
    """A question whose answer says why."""
    thing = any_thing(scene, rng)
    words = thing and refer_without(thing, scene, "color", rng)
    if not thing or not words:
        return None
    fruit = FRUIT[thing.color]
    answer = f"the {words} is {thing.color}, and a {fruit} is {thing.color}, so it could be a {fruit}."
    return Exchange(f"which fruit could the {words} be, and why?", answer)


def dialogue(scene: Scene, rng: random.Random, rounds: int = 10) -> list[Exchange] | None:
    """Rounds of short questions about one scene; later ones say "it" for the thing asked about last."""
    exchanges: list[Exchange] = []
    last: Thing | None = None
    while len(exchanges) < rounds:
        if last is not None and rng.random() < 0.5:
            which = rng.choice(("color", "pattern", "size", "place"))
            asked = {"color": "what color is it?", "pattern": "what pattern does it have?",
                     "size": "is it small or large?", "place": "where is it?"}[which]  # fmt: skip
            exchanges.append(Exchange(asked, PLACES[last.place] if which == "place" else getattr(last, which)))
            continue
        exchange = rng.choice((exists, count, at_place))(scene, rng)
        if exchange is None:
            return None
        exchanges.append(exchange)
        last = None
        if exchange.question.startswith("what is ") and exchange.answer in SHAPES:
            last = next(each for each in scene.things if f"{place_phrase(each.place)}?" in exchange.question)
    return exchanges


DIALOGUE_ANSWERS = ("yes", "no", *"012345", *COLORS, *SHAPES, *PATTERNS, *SIZES, *PLACES, *GROUNDS, *CHANGES,
                    *FRUIT.values(), *ANIMAL.values(), *TOOL.values(), *LIKENESS.values(), *MATERIALS)  # fmt: skip
