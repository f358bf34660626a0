"""Pictures of scenes, drawn with Pillow: 96 x 96 pixels, a cell of 32 x 32 for each of the nine places."""

import math
import random
from collections.abc import Callable

from PIL import Image, ImageChops, ImageDraw, ImageFont
from world import Scene, Thing

SIZE = 96
CELL = SIZE // 3
RADIUS = {"small": 7, "large": 13}
JITTER = 2  # pixels by which a thing is off the middle of its cell, at most
SCALE = 4  # drawn larger and scaled down, so that edges are smooth
RGB = {
    "red": (214, 39, 40),
    "green": (34, 139, 34),
    "blue": (31, 84, 214),
    "yellow": (250, 218, 40),
    "purple": (140, 50, 170),
    "orange": (255, 135, 20),
    "white": (250, 250, 250),
    "black": (25, 25, 25),
}
GROUND_RGB = {
    "meadow": (178, 222, 160),
    "sea": (160, 205, 235),
    "desert": (236, 214, 168),
    "night": (90, 90, 120),
}
Outline = Callable[[ImageDraw.ImageDraw, float, float, float, int], None]


def polygon(points: list[tuple[float, float]]) -> Outline:
    """A shape from its corners, in units of its radius."""

    def draw(canvas: ImageDraw.ImageDraw, x: float, y: float, radius: float, fill: int) -> None:
        canvas.polygon([(x + radius * across, y + radius * down) for across, down in points], fill=fill)

    return draw


def draw_circle(canvas: ImageDraw.ImageDraw, x: float, y: float, radius: float, fill: int) -> None:
    canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


def draw_ring(canvas: ImageDraw.ImageDraw, x: float, y: float, radius: float, fill: int) -> None:
    draw_circle(canvas, x, y, radius, fill)
    draw_circle(canvas, x, y, radius * 0.5, 0)


def draw_moon(canvas: ImageDraw.ImageDraw, x: float, y: float, radius: float, fill: int) -> None:
    draw_circle(canvas, x, y, radius, fill)
    draw_circle(canvas, x + radius * 0.55, y - radius * 0.25, radius * 0.8, 0)


def draw_heart(canvas: ImageDraw.ImageDraw, x: float, y: float, radius: float, fill: int) -> None:
    for side in (-1, 1):
        draw_circle(canvas, x + side * radius * 0.48, y - radius * 0.38, radius * 0.52, fill)
    corners = [(-0.96, -0.18), (0.96, -0.18), (0.0, 1.0)]
    canvas.polygon([(x + radius * across, y + radius * down) for across, down in corners], fill=fill)


def star_points() -> list[tuple[float, float]]:
    reach = (1.05, 0.45)
    turns = [(reach[corner % 2], math.pi * (corner / 5 - 0.5)) for corner in range(10)]
    return [(radius * math.cos(turn), radius * math.sin(turn)) for radius, turn in turns]


ARM = 0.33
OUTLINES: dict[str, Outline] = {
    "circle": draw_circle,
    "square": polygon([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]),
    "triangle": polygon([(0.0, -1.0), (1.0, 0.85), (-1.0, 0.85)]),
    "star": polygon(star_points()),
    "heart": draw_heart,
    "cross": polygon(
        [(-ARM, -1), (ARM, -1), (ARM, -ARM), (1, -ARM), (1, ARM), (ARM, ARM),
         (ARM, 1), (-ARM, 1), (-ARM, ARM), (-1, ARM), (-1, -ARM), (-ARM, -ARM)]
    ),
    "ring": draw_ring,
    "moon": draw_moon,
}  # fmt: skip


def draw(scene: Scene, seed: int = 0) -> Image.Image:
    """The picture of a scene; `seed` moves the things a little within their places.

    Returns:
        RGB, `SIZE` x `SIZE`.
    """
    rng = random.Random(seed)
    picture = Image.new("RGB", (SIZE * SCALE, SIZE * SCALE), GROUND_RGB[scene.ground])
    for thing in scene.things:
        draw_thing(picture, thing, rng)
    picture = picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    for word, top in ((scene.top_word, 0), (scene.bottom_word, SIZE - CELL)):
        if word:
            draw_word(picture, word, top)
    return picture


def draw_thing(picture: Image.Image, thing: Thing, rng: random.Random) -> None:
    """Paint a thing into its cell, in place."""
    cell = (CELL * SCALE, CELL * SCALE)
    x, y = ((CELL / 2 + rng.uniform(-JITTER, JITTER)) * SCALE for _ in cell)
    radius = RADIUS[thing.size] * SCALE
    shape, edge = Image.new("L", cell), Image.new("L", cell)
    OUTLINES[thing.shape](ImageDraw.Draw(shape), x, y, radius, 255)
    OUTLINES[thing.shape](ImageDraw.Draw(edge), x, y, radius + 1.2 * SCALE, 255)
    corner = (thing.column * CELL * SCALE, thing.row * CELL * SCALE)
    picture.paste((60, 60, 60), corner, ImageChops.subtract(edge, shape))
    color = RGB[thing.color]
    picture.paste(color, corner, shape)
    marks = ImageChops.multiply(shape, pattern_marks(thing.pattern, cell, x, y))
    toward = 0 if sum(color) > 300 else 255  # not black or white: striped white and striped black would look alike
    picture.paste(tuple(round(0.5 * (value + toward)) for value in color), corner, marks)


def pattern_marks(pattern: str, size: tuple[int, int], x: float, y: float) -> Image.Image:
    """Where stripes or dots are painted over a thing at (x, y)."""
    marks = Image.new("L", size)
    canvas = ImageDraw.Draw(marks)
    reach = int(RADIUS["large"] * SCALE * 1.1)
    if pattern == "striped":
        for down in range(-reach, reach, 5 * SCALE):
            canvas.rectangle((x - reach, y + down, x + reach, y + down + 1.8 * SCALE), fill=255)
    elif pattern == "dotted":
        for down in range(-reach, reach + 1, 6 * SCALE):
            for across in range(-reach, reach + 1, 6 * SCALE):
                dot = 1.3 * SCALE
                left, top = x + across - dot, y + down - dot
                canvas.ellipse((left, top, left + 2 * dot, top + 2 * dot), fill=255)
    return marks


def draw_word(picture: Image.Image, word: str, top: int) -> None:
    """A board with a word, across a whole row."""
    canvas = ImageDraw.Draw(picture)
    canvas.rectangle((3, top + 4, SIZE - 4, top + CELL - 5), fill=(245, 245, 240), outline=(40, 40, 40))
    canvas.text((SIZE / 2, top + CELL / 2), word, fill=(20, 20, 20), anchor="mm", font=ImageFont.load_default(20))
