"""Stages 1 and 2 in small, between the frozen backbones that are here:

    python examples/miniature/pretrain_bridge.py decoder_only --output outputs/miniature/bridge

Six times the usual number of captioned pictures are drawn, other ones than the demo's. What comes out is BLIP-2 in
small, where instruction tuning starts.
"""

import argparse
from pathlib import Path

import steps
import torch
from pretraining import keep

from instructblip import InstructBLIPForConditionalGeneration, InstructBLIPProcessor

# In place of the recipe's values. T5 learns slower: by the recipe it ends with two and a half times the decoder's loss.
STAGE2 = {
    "decoder_only": {},
    "encoder_decoder": {
        "learning_rate": 4e-3,
        "per_device_train_batch_size": 32,
        "max_steps": 3000,
        "warmup_steps": 200,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=steps.KINDS, help="of the language model")
    parser.add_argument("--output", type=Path, required=True, help="folder; stages that it holds are not run again")
    parser.add_argument("--scale", type=float, default=6.0, help="how many pictures, relative to the usual number")
    parser.add_argument("--steps", type=int, help="of each stage, in place of the recipes'")
    parser.add_argument("--num_query_tokens", type=int, help="in place of the recipe's")
    args = parser.parse_args()
    output = args.output.resolve()
    captions = steps.draw(output / "captions", ["coco_caption", "capfilt"], seed=1, scale=args.scale)
    stage1 = steps.train(
        "stage1", captions, output / "stage1", max_steps=args.steps, num_query_tokens=args.num_query_tokens
    )
    options = {"stage1": stage1, "language_model": f"{steps.BACKBONES}/{args.kind}", **STAGE2[args.kind]}
    if args.steps is not None:
        options["max_steps"] = args.steps
    stage2 = steps.train("stage2", captions, output / args.kind, **options)
    model = InstructBLIPForConditionalGeneration.from_pretrained(stage2, dtype=torch.float16)
    kept = output / args.kind / "model"
    keep(model, InstructBLIPProcessor.from_pretrained(stage2), kept, bridge_only=True)
    for code in kept.glob("*.py"):  # a release brings the package's code for those who lack it; here it would lie twice
        code.unlink()


if __name__ == "__main__":
    main()
