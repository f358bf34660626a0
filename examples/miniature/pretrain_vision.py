"""Train the tiny image encoder to tell what is at each place of a picture, what is written, and where it was taken:

    python examples/miniature/pretrain_vision.py --output outputs/miniature/vision

EVA-CLIP learned from captions; this one learns from the scenes themselves, which takes far less. The heads are thrown
away. A run that was interrupted goes on from its last checkpoint when the command is given again. `--check` fits linear
probes on the frozen features of the encoder and measures them on pictures that it has not seen.
"""

import random
from collections.abc import Sequence

import torch
from drawing import SIZE, draw
from pretraining import keep, options, parse, pretrain, report
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import SiglipImageProcessorPil, SiglipVisionConfig, SiglipVisionModel, set_seed
from world import COLORS, GROUNDS, PATTERNS, PLACES, SHAPES, SIZES, WRITTEN, Scene, new_scene

PATCH, WIDTH = 16, 160
ACROSS = SIZE // PATCH  # patches in a row of the picture
VALUES = {"shape": ("none", *SHAPES), "color": COLORS, "pattern": PATTERNS, "size": SIZES}
WORDS = ("", *WRITTEN)
IGNORED = -100


def image_processor() -> SiglipImageProcessorPil:
    return SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE}, image_mean=[0.5] * 3, image_std=[0.25] * 3)


def new_encoder() -> SiglipVisionModel:
    encoder = SiglipVisionModel(
        SiglipVisionConfig(
            image_size=SIZE,
            patch_size=PATCH,
            hidden_size=WIDTH,
            intermediate_size=3 * WIDTH,
            num_hidden_layers=5,
            num_attention_heads=5,
            vision_use_head=False,
        )
    )
    # As large as what the patches show: with the usual start the features hardly tell where they are from.
    torch.nn.init.normal_(encoder.embeddings.position_embedding.weight)
    return encoder


def random_scene(rng: random.Random) -> Scene:
    """A scene of up to nine things, with words in it as often as not."""
    words = [WRITTEN if rng.random() < 0.25 else () for _ in range(2)]
    return new_scene(rng, fewest=1, most=9, top_words=words[0], bottom_words=words[1])


def truth(scene: Scene) -> dict[str, list[int]]:
    """Class numbers: of each attribute nine, by place; of the words two, above and below; of the ground one.

    Each patch is asked for its place as well: what a bridge is to say of a thing, it has to find there.
    """
    classes = {name: [0 if name == "shape" else IGNORED] * len(PLACES) for name in VALUES}
    for thing in scene.things:
        for name, values in VALUES.items():
            classes[name][thing.place] = values.index(getattr(thing, name))
    written = [WORDS.index(scene.top_word), WORDS.index(scene.bottom_word)]
    for row, word in zip((0, 6), written, strict=True):
        if word:
            classes["shape"][row : row + 3] = [IGNORED] * 3
    of_patches = [3 * (row // 2) + column // 2 for row in range(ACROSS) for column in range(ACROSS)]
    return classes | {"word": written, "ground": [GROUNDS.index(scene.ground)], "place": of_patches}


class Pictures(torch.utils.data.Dataset):
    """Picture `i` follows from the seed and `i` alone."""

    def __init__(self, count: int, seed: int):
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        rng = random.Random(f"{self.seed}/{index}")
        scene = random_scene(rng)
        return {"picture": draw(scene, rng.getrandbits(32)), **truth(scene)}


def collate(rows: Sequence[dict]) -> dict[str, torch.Tensor]:
    pixels = image_processor()([row["picture"] for row in rows], return_tensors="pt")["pixel_values"]
    return {"pixel_values": pixels} | {
        name: torch.tensor([row[name] for row in rows]) for name in rows[0] if name != "picture"
    }


class Reader(nn.Module):
    """The encoder with a linear head for each thing to tell."""

    def __init__(self, encoder: SiglipVisionModel):
        super().__init__()
        self.encoder = encoder
        sizes = {name: len(values) for name, values in VALUES.items()}
        sizes |= {"word": len(WORDS), "ground": len(GROUNDS), "place": len(PLACES)}
        per = {"word": ACROSS * ACROSS // 3, "ground": 1, "place": 1}  # patches a head reads side by side; 4 in a place
        self.heads = nn.ModuleDict({name: nn.Linear(WIDTH * per.get(name, 4), size) for name, size in sizes.items()})

    def logits(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        """(batch, patch, width) -> name: (batch, places, classes)."""
        batch = len(features)
        grid = features.view(batch, 3, 2, 3, 2, WIDTH)  # (batch, row, patch row, column, patch column, width)
        places = grid.permute(0, 1, 3, 2, 4, 5).reshape(batch, 9, 4 * WIDTH)
        rows = features.view(batch, 3, -1)[:, ::2]  # above and below
        read = {"word": rows, "ground": features.mean(1, keepdim=True), "place": features}
        return {name: head(read.get(name, places)) for name, head in self.heads.items()}

    def forward(self, pixel_values: torch.Tensor, **labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.logits(self.encoder(pixel_values).last_hidden_state)
        losses = [
            cross_entropy(logits[name].flatten(0, 1).float(), labels[name].flatten(), ignore_index=IGNORED)
            for name in logits
        ]
        return {"loss": torch.stack(losses).sum()}


@torch.inference_mode()
def accuracy(reader: Reader, count: int, seed: int = -1) -> dict[str, float]:
    """Share of right classes on pictures that no training has seen."""
    right: dict[str, list[torch.Tensor]] = {}
    for start in range(0, count, 100):
        pictures = Pictures(count, seed)
        batch = collate([pictures[start + place] for place in range(100)])
        logits = reader.logits(reader.encoder(batch["pixel_values"]).last_hidden_state)
        for name, scores in logits.items():
            asked = batch[name] != IGNORED
            right.setdefault(name, []).append((scores.argmax(-1) == batch[name])[asked].float())
            if name == "word":
                right.setdefault("word, where there is one", []).append(
                    (scores.argmax(-1) == batch[name])[batch[name] > 0].float()
                )
    return {name: torch.cat(hits).mean().item() for name, hits in right.items()}


def fit_probes(encoder: SiglipVisionModel, count: int = 8000) -> Reader:
    """New linear heads on the frozen encoder."""
    probes, pictures = Reader(encoder), Pictures(count, -2)
    batches = [collate([pictures[start + place] for place in range(200)]) for start in range(0, count, 200)]
    with torch.no_grad():
        features = [encoder(batch["pixel_values"]).last_hidden_state for batch in batches]
    optimizer = torch.optim.AdamW(probes.heads.parameters(), 3e-3, weight_decay=0.01)
    for epoch in range(20):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - epoch / 20)
        for seen, batch in zip(features, batches, strict=True):
            logits = probes.logits(seen)
            loss = sum(
                cross_entropy(logits[name].flatten(0, 1), batch[name].flatten(), ignore_index=IGNORED)
                for name in logits
            )
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return probes


def main() -> None:
    args = parse(options(__doc__.splitlines()[0], steps=2000, batch_size=64))
    set_seed(args.seed)
    if not args.check:
        reader = Reader(new_encoder())
        pretrain(reader, args, Pictures(args.steps * args.batch_size, args.seed), collate)
        report("heads", accuracy(reader.eval(), 1000))
        keep(reader.encoder, image_processor(), args.output / "model")
    encoder = SiglipVisionModel.from_pretrained(args.output / "model", dtype=torch.float32).eval()
    report("linear probes", accuracy(fit_probes(encoder), 1000))


if __name__ == "__main__":
    main()
