"""A small world: scenes of coloured shapes on a grid of nine places, with written words, and short films of them.

Everything that a picture shows is in its `Scene`, so that every caption, question and answer follows from it
(`skills.py`), and so does the picture (`drawing.py`). Scenes are drawn from a `random.Random`, so a seed gives the same
ones everywhere.
"""

import dataclasses
import random
from collections.abc import Iterable

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "moon")
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
PATTERNS = ("plain", "striped", "dotted")
SIZES = ("small", "large")
GROUNDS = ("meadow", "sea", "desert", "night")
PLACES = ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")
TOP_ROW, BOTTOM_ROW = (0, 1, 2), (6, 7, 8)
MOST_THINGS = 5

NAMES = ("anna", "ben", "carl", "dora", "emil", "frida", "gus", "hanna")
SIGNS = ("bakery", "bank", "cafe", "cinema", "exit", "hotel", "museum", "open", "park", "school", "station", "stop")
TITLES = ("dreams", "friends", "gold", "home", "magic", "roads", "secrets", "storms", "thieves", "winter")
FEELINGS = ("hate", "love")
DIGITS = tuple(str(number) for number in range(10))
WRITTEN = (*NAMES, *SIGNS, *TITLES, *FEELINGS, *SHAPES, *DIGITS)  # every word that can stand in a picture

CHANGES = ("moves left", "moves right", "moves up", "moves down", "grows", "shrinks", "vanishes", "appears")
FRAMES = 4


@dataclasses.dataclass(frozen=True)
class Thing:
    """One shape at one of the nine places."""

    shape: str
    color: str
    pattern: str
    size: str
    place: int  # index into PLACES

    @property
    def row(self) -> int:
        return self.place // 3

    @property
    def column(self) -> int:
        return self.place % 3


@dataclasses.dataclass(frozen=True)
class Scene:
    """What a picture shows. Words take a whole row, at the top or at the bottom, where there are no things then."""

    things: tuple[Thing, ...]  # in the order of their places
    ground: str
    top_word: str = ""
    bottom_word: str = ""

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(word for word in (self.top_word, self.bottom_word) if word)


@dataclasses.dataclass(frozen=True)
class Clip:
    """A film in which one thing does one thing; `subject` is as it is first, or once it has appeared."""

    frames: tuple[Scene, ...]
    subject: Thing
    change: str  # one of CHANGES


def new_scene(
    rng: random.Random,
    shapes: Iterable[str] = SHAPES,
    fewest: int = 1,
    most: int = MOST_THINGS,
    grounds: Iterable[str] = GROUNDS,
    top_words: Iterable[str] = (),
    bottom_words: Iterable[str] = (),
) -> Scene:
    """A scene drawn at random; every attribute is drawn on its own, so that none tells of another.

    Args:
        fewest, most: how many things, each number equally often.
        top_words, bottom_words: one of them stands in that row; none: no word there.
    """
    shapes, top_words, bottom_words = list(shapes), list(top_words), list(bottom_words)
    free = [
        place
        for place in range(len(PLACES))
        if not (top_words and place in TOP_ROW) and not (bottom_words and place in BOTTOM_ROW)
    ]
    count = rng.randint(fewest, min(most, len(free)))
    things = [
        Thing(rng.choice(shapes), rng.choice(COLORS), rng.choice(PATTERNS), rng.choice(SIZES), place)
        for place in sorted(rng.sample(free, count))
    ]
    ground = rng.choice(list(grounds))
    top = rng.choice(top_words) if top_words else ""
    bottom = rng.choice(bottom_words) if bottom_words else ""
    return Scene(tuple(things), ground, top, bottom)


STEPS = {"moves left": (0, -1), "moves right": (0, 1), "moves up": (-1, 0), "moves down": (1, 0)}  # (rows, columns)


def new_clip(rng: random.Random, change: str = "") -> Clip:
    """A film of one to three things, of which one changes.

    Args:
        change: one of CHANGES; none: any, each equally often.
    """
    change = change or rng.choice(CHANGES)
    while True:
        scene = new_scene(rng, fewest=1, most=3)
        subject = rng.choice(scene.things)
        others = tuple(thing for thing in scene.things if thing is not subject)
        if change in STEPS:
            rows, columns = STEPS[change]
            row, column = subject.row + 2 * rows, subject.column + 2 * columns
            path = [subject.place + step * (3 * rows + columns) for step in range(3)]
            if not (0 <= row < 3 and 0 <= column < 3) or {thing.place for thing in others} & set(path):
                continue
            stages = [dataclasses.replace(subject, place=place) for place in (path[0], path[1], path[1], path[2])]
        elif change in ("grows", "shrinks"):
            before, after = SIZES if change == "grows" else SIZES[::-1]
            subject = dataclasses.replace(subject, size=before)
            stages = [dataclasses.replace(subject, size=size) for size in (before, before, after, after)]
        else:
            shown = (True, True, False, False) if change == "vanishes" else (False, False, True, True)
            stages = [subject if visible else None for visible in shown]
        frames = [
            dataclasses.replace(scene, things=in_order([*others, *([stage] if stage else [])])) for stage in stages
        ]
        return Clip(tuple(frames), subject, change)


def in_order(things: Iterable[Thing]) -> tuple[Thing, ...]:
    """Things by their places, as `Scene` has them."""
    return tuple(sorted(things, key=lambda thing: thing.place))


def facts(scene: Scene) -> list[tuple[str, list[str]]]:
    """The whole truth about a scene: where something is, and its words."""
    found = [(PLACES[each.place], [each.size, each.color, each.pattern, each.shape]) for each in scene.things]
    if scene.top_word:
        found.append(("written above", [scene.top_word]))
    if scene.bottom_word:
        found.append(("written below", [scene.bottom_word]))
    return [*found, ("ground", [scene.ground])]


def describe(scene: Scene, rng: random.Random | None = None) -> str:
    """The whole truth about a scene in one line: what the language models learn to answer from.

    Args:
        rng: puts the words of each thing in another order. What is learned from that goes by the words and not by
            where they stand, which a bridge would have to get right.
    """
    told = facts(scene)
    if rng is not None:
        for _, words in told:
            rng.shuffle(words)
    return " ; ".join(f"{where} : {' '.join(words)}" for where, words in told)


def describe_at_once(scene: Scene, everywhere: bool, rng: random.Random | None = None) -> str:
    """The whole truth with the words of a thing joined by "+": they are to be read as one, as a query token is.

    Args:
        everywhere: tell what is at the places without a thing as well: the ground.
        rng: puts things in another order.
    """
    told = facts(scene)
    if everywhere:
        there = dict(told)
        told = [(name, there.get(name, [scene.ground])) for name in PLACES] + told[len(scene.things) :]
    if rng is not None:
        rng.shuffle(told)
    return " ".join("+".join([*where.split(), *words]) for where, words in told)


def describe_clip(clip: Clip, rng: random.Random | None = None) -> str:
    """The frames of a film, one after the other."""
    return " | ".join(describe(frame, rng) for frame in clip.frames)
