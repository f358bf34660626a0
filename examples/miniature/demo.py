"""The whole of InstructBLIP in small, in minutes on a CPU: `python examples/miniature/demo.py`.

1. Draw the 26 datasets, once as they are and once with nothing in their pictures.
2. Instruction-tune the bridge on the 13 held-in datasets, from the shipped release of stage 2; and a blind one, the same
   way, on empty pictures.
3. Evaluate both, and the release of stage 2 (BLIP-2 in small), on the 13 held-out tasks.
4. Load the tuned release in a new process and chat with it about a picture.
5. Write `<output>/index.html`.

Every step is a command of the package, shown before it runs. A demo that was interrupted goes on with the step it was in.
"""

import argparse
import time
from pathlib import Path

import steps
from steps import HELD_OUT, Scores

BACKBONES = steps.HERE / "backbones"
KINDS = ("decoder_only", "encoder_decoder")


def table(rows: dict[str, Scores]) -> str:
    """The results as text, a line each benchmark."""
    width = max(map(len, rows))
    lines = [" " * 12 + "".join(f"{name:>{width + 2}}" for name in rows)]
    for benchmark in [column.name for column in HELD_OUT]:
        lines.append(f"{benchmark:12}" + "".join(f"{scores[benchmark]:{width + 2}.1f}" for scores in rows.values()))
    lines.append(f"{'mean':12}" + "".join(f"{steps.mean(scores):{width + 2}.1f}" for scores in rows.values()))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("outputs/miniature"))
    parser.add_argument("--kind", choices=KINDS, default=KINDS[0], help="of the language model")
    parser.add_argument("--steps", type=int, default=1200, help="of instruction tuning")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the datasets, relative to the usual one")
    parser.add_argument("--seed", type=int, default=0, help="of the instruction tuning")
    args = parser.parse_args()
    started = time.time()
    output = args.output.resolve()
    stage2 = BACKBONES / f"stage2_{args.kind}"

    data = steps.draw(output / "data", scale=args.scale)
    blank = steps.draw(output / "blank", scale=args.scale, blank=True)
    tuning = {"model": stage2, "max_steps": args.steps, "seed": args.seed}
    tuned = steps.train("instruct", data, output / "instructblip", **tuning)
    blind = steps.train("instruct", blank, output / "blind", **tuning)
    results = {
        "blind": steps.evaluate(blind, blank, output / "results" / "blind"),
        "BLIP-2 in small": steps.evaluate(stage2, data, output / "results" / "blip2"),
        "InstructBLIP in small": steps.evaluate(tuned, data, output / "results" / "instructblip"),
    }
    rows = {"chance": steps.chance(results["blind"])}
    rows |= {name: steps.held_out_scores(folder) for name, folder in results.items()}
    print(f"\n{table(rows)}\n\n{(time.time() - started) / 60:.1f} minutes; see {output / 'index.html'}")


if __name__ == "__main__":
    main()
