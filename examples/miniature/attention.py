"""Where the queries look: the Q-Former's cross-attention as maps over a picture, under one question or another.

model, processor = load_with_attention(release)
maps = attention_maps(model, processor, [picture, picture], ["What color is the star?", "What is on the left?"])
draw_map(picture, maps[0].mean(axis=0)).save("star.png")
"""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from drawing import draw
from PIL import Image
from tqdm import tqdm
from world import PLACES, Scene, Thing, new_scene

from instructblip import InstructBLIPForConditionalGeneration, InstructBLIPProcessor

PROMPT = "Question: {} Short answer:"  # paper, appendix E
DIM = 0.25  # what is left of the light where nothing is looked at
GLOW = (255, 214, 120)
GAP = 4  # pixels between the maps of a sheet


def load_with_attention(release: str | Path) -> tuple[InstructBLIPForConditionalGeneration, InstructBLIPProcessor]:
    """A release that can tell its attention: the faster implementations never hold the weights."""
    options = {"attn_implementation": "eager", "dtype": torch.float32}
    model = InstructBLIPForConditionalGeneration.from_pretrained(release, **options).eval()
    return model, InstructBLIPProcessor.from_pretrained(release)


@torch.inference_mode()
def attention_maps(
    model: InstructBLIPForConditionalGeneration,
    processor: InstructBLIPProcessor,
    pictures: Sequence[Image.Image],
    instructions: Sequence[str],
) -> np.ndarray:
    """How each query shares out its attention over the patches of a picture, in the last layer that sees the picture.

    By then they have read the instruction in every layer before, and little is left to be done between what they take
    from the picture there and what the language model gets. In the first such layer they have read it once only, so
    that an average over layers would water down what the instruction does. Heads are averaged.

    Args:
        model: with eager attention, see `load_with_attention`.
        pictures, instructions: as many of the one as of the other. The image processor must not crop.

    Returns:
        (pairs, query, rows, columns); each query's map sums to 1. `maps.mean(axis=1)` is what all queries together
        look at.

    Raises:
        ValueError: the model's attention is of another implementation, which does not tell it.
    """
    if (attention := model.qformer.config._attn_implementation) != "eager":
        raise ValueError(f"the Q-Former's attention is {attention!r}: load the release with load_with_attention")
    inputs = processor(images=list(pictures), text=list(instructions))
    names = ("pixel_values", "image_index", "qformer_input_ids", "qformer_attention_mask")
    given = {name: inputs[name].to(model.device) for name in names if name in inputs}
    weights = model.get_image_features(**given, output_attentions=True).qformer_cross_attentions[-1]
    vision = model.config.vision_config
    across = vision.image_size // vision.patch_size
    weights = weights.float().mean(dim=1)[..., -across * across :]  # a class token, if the tower has one, is in front
    weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights.unflatten(-1, (across, across)).cpu().numpy()


def change(maps: np.ndarray) -> float:
    """By how much what the queries together look at depends on the instruction.

    Args:
        maps: (instructions, query, rows, columns) of one picture.

    Returns:
        share of the attention that goes elsewhere under another instruction, on average over pairs of them: 0 where
        the instruction changes nothing, 1 where no patch is looked at under two of them.
    """
    means = maps.mean(axis=1)
    moved = [np.abs(a - b).sum() / 2 for place, a in enumerate(means) for b in means[:place]]
    return float(np.mean(moved))


def share_of(attention: np.ndarray, thing: Thing) -> float:
    """Share of a map (rows, columns) that lies on the place of a thing, one ninth of the picture.

    Raises:
        ValueError: patches and places do not align.
    """
    rows, columns = attention.shape
    if rows % 3 or columns % 3:
        raise ValueError(f"{rows} x {columns} patches cannot be shared out to 3 x 3 places")
    height, width = rows // 3, columns // 3
    top, left = thing.row * height, thing.column * width
    return float(attention[top : top + height, left : left + width].sum())


def looks_at(
    model: InstructBLIPForConditionalGeneration, processor: InstructBLIPProcessor, count: int = 200, seed: int = 0
) -> dict[str, float]:
    """Whether the queries look at what they are asked about, over new pictures.

    Two things of each picture are asked for their color, by their shape.

    Returns:
        mean share of attention on the thing when "asked about", and on the same when the "other" is; the share of a
        place that is drawn by lot ("chance"); and by how much the two questions "change" the map.
    """
    rng = random.Random(f"{seed}/attention")
    asked, other, changes = [], [], []
    for number in tqdm(range(count), desc="looking at the attention", unit="picture"):
        scene = _scene_of_different_shapes(rng)
        things = rng.sample(scene.things, 2)
        picture = draw(scene, number)
        questions = [PROMPT.format(f"what color is the {thing.shape}?") for thing in things]
        maps = attention_maps(model, processor, [picture, picture], questions)
        means = maps.mean(axis=1)
        asked += [share_of(means[place], things[place]) for place in (0, 1)]
        other += [share_of(means[place], things[1 - place]) for place in (0, 1)]
        changes.append(change(maps))
    return {
        "asked about": float(np.mean(asked)),
        "other": float(np.mean(other)),
        "chance": 1 / len(PLACES),
        "change": float(np.mean(changes)),
    }


def _scene_of_different_shapes(rng: random.Random) -> Scene:
    while True:
        scene = new_scene(rng, fewest=2)
        if len({thing.shape for thing in scene.things}) == len(scene.things):
            return scene


def draw_map(picture: Image.Image, attention: np.ndarray, side: int = 192) -> Image.Image:
    """A picture lit where it is looked at: its colors stay to be seen, as a map in false colors would hide them.

    Args:
        attention: (rows, columns); its largest value is full light.
        side: longer side of the result, in pixels.
    """
    size = tuple(round(length * side / max(picture.size)) for length in picture.size)
    pixels = np.asarray(picture.convert("RGB").resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
    light = Image.fromarray((attention / attention.max()).astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    light = np.clip(np.asarray(light), 0, 1)[..., None]
    lit = pixels * (DIM + (1 - DIM) * light)
    glow = 0.28 * light**2
    return Image.fromarray(np.round(lit * (1 - glow) + glow * np.array(GLOW, dtype=np.float32)).astype(np.uint8))


def draw_sheet(picture: Image.Image, maps: np.ndarray, columns: int = 4, side: int = 72) -> Image.Image:
    """The maps (query, rows, columns) of all queries, each drawn over the picture, in rows of `columns`."""
    tiles = [draw_map(picture, each, side) for each in maps]
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    width, height = tiles[0].size
    sheet = Image.new("RGBA", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP))
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (number % columns * (width + GAP), number // columns * (height + GAP)))
    return sheet
