"""The whole of InstructBLIP in small, in minutes on a CPU: `python examples/miniature/demo.py`.

1. Draw the 26 datasets, once as they are and once with nothing in their pictures.
2. Tune the bridge on the instructions of the 13 held-in datasets, from a release of stage 2; and in the same way a
   blind one, on the empty pictures.
3. Evaluate both, and the release of stage 2 (BLIP-2 in small), on the 13 held-out tasks, and on held-in ones.
4. Load the tuned release, look at what its queries attend to, and chat with it about a picture.
5. Write `<output>/index.html`.

Training and evaluation are commands of the package, shown when they begin and run in processes of their own. A demo
that was interrupted goes on with the step it was in.
"""

import argparse
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import skills
import steps
from attention import PROMPT, load_with_attention, looks_at
from demo_page import MEANS, NAMES, Chat, Contents, Looked, Row, draw_samples, look, measured_row, write_page
from drawing import draw
from world import Scene, Thing, new_scene

from instructblip import InstructBLIPForConditionalGeneration, InstructBLIPProcessor
from instructblip.eval_tasks.ask import Conversation
from instructblip.eval_tasks.lm_eval_model import InstructBLIPEvalModel

TASKS = "instructblip_heldout,instructblip_heldin"
LOOKED_AT = Scene(
    (
        Thing("star", "red", "plain", "large", 0),
        Thing("heart", "blue", "striped", "small", 2),
        Thing("circle", "yellow", "dotted", "large", 7),
    ),
    "meadow",
)
QUESTIONS = ("what color is the star?", "what color is the heart?", "what pattern does the circle have?")


def table(rows: list[Row]) -> str:
    """The results as text, a line each benchmark."""
    width = max(len(row.label) for row in rows) + 2
    lines = [f"{'':32}" + "".join(f"{row.label:>{width}}" for row in rows)]
    for name in [*NAMES, *MEANS, *(column.name for column in steps.HELD_IN)]:
        lines.append(f"{name:32}" + "".join(f"{row.value(name):{width}.1f}" for row in rows))
    return "\n".join(lines)


def chat(release: Path, seed: int) -> Chat:
    """Ask the release about a new picture, turn by turn."""
    rng = random.Random(f"{seed}/chat")
    scene = new_scene(rng, fewest=4)
    picture, rounds = draw(scene, seed), skills.dialogue(scene, rng, 5)
    assert rounds is not None  # there are things to ask about
    driver = InstructBLIPEvalModel(str(release), dtype="float32").driver
    conversation = Conversation(str(release), "InstructBLIP in small")
    print("\na chat about a new picture")
    for each in rounds:
        answer = conversation.ask(driver, each.question, [picture], {"max_new_tokens": 32, "do_sample": False})
        print(f"  {each.question:40} {answer:16} {'' if answer == each.answer else f'(it is {each.answer})'}")
    return Chat(picture, conversation.turns)


def attention(
    model: InstructBLIPForConditionalGeneration, processor: InstructBLIPProcessor
) -> tuple[str, list[Looked]]:
    """What the queries look at, measured and shown."""
    found = looks_at(model, processor)
    words = (
        "Light is where the queries look, in the Q-Former's last layer that sees the picture. Asked for the color of a "
        f"thing, over 200 new pictures, they give its place {found['asked about']:.0%} of their attention, and "
        f"{found['other']:.0%} when asked for another thing's; a place by lot would get {found['chance']:.0%}. Between "
        f"the two questions {found['change']:.0%} of the attention moves."
    )
    print(f"\n{words}")
    return words, [look(model, processor, draw(LOOKED_AT), [PROMPT.format(question) for question in QUESTIONS])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("outputs/miniature"))
    parser.add_argument("--kind", choices=steps.KINDS, default=steps.KINDS[0], help="of the language model")
    parser.add_argument("--stage2", type=Path, help="release to start from; default: backbones/stage2_<kind>")
    parser.add_argument("--steps", type=int, help="of instruction tuning, in place of the recipe's")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the datasets, relative to the usual one")
    parser.add_argument("--seed", type=int, default=0, help="of the instruction tuning")
    args = parser.parse_args()
    started = time.time()
    output = args.output.resolve()
    try:
        stage2 = args.stage2.resolve(strict=True) if args.stage2 else steps.stage2(args.kind)
    except FileNotFoundError as error:
        parser.error(str(error))
    data = steps.draw(output / "data", scale=args.scale)
    blank = steps.draw(output / "blank", scale=args.scale, blank=True)
    results = output / "results"
    results.mkdir(exist_ok=True)
    tuning = {"model": stage2, "max_steps": args.steps, "seed": args.seed}

    def others() -> None:
        blind = steps.train("instruct", blank, output / "blind", log=output / "blind.log", **tuning)
        steps.evaluate(blind, blank, results / "blind", TASKS, log=output / "blind_evaluation.log")
        steps.evaluate(stage2, data, results / "stage2", TASKS, log=output / "stage2_evaluation.log")

    with ThreadPoolExecutor(1) as beside:
        done = beside.submit(others)
        tuned = steps.train("instruct", data, output / "instructblip", **tuning)
        steps.evaluate(tuned, data, results / "instructblip", TASKS)
        done.result()

    rows = [
        Row("chance", steps.chance(results / "blind")),
        measured_row("blind", results / "blind", "blind"),
        measured_row("BLIP-2 in small", results / "stage2", "blip"),
        measured_row("InstructBLIP in small", results / "instructblip", "ours"),
    ]
    print(f"\n{table(rows)}")
    words, looked = attention(*load_with_attention(tuned))
    shown = {"InstructBLIP in small": results / "instructblip", "BLIP-2 in small": results / "stage2"}
    contents = Contents(
        title="InstructBLIP in small",
        introduction=INTRODUCTION,
        rows=rows,
        samples=draw_samples(shown, data),
        attention_words=words,
        attention=looked,
        chat=chat(tuned, args.seed),
        notes=[*NOTES, f"It took {(time.time() - started) / 60:.1f} minutes."],
        commands=steps.COMMANDS,
    )
    write_page(output / "index.html", contents)
    print(f"\n{(time.time() - started) / 60:.1f} minutes; see {output / 'index.html'}")


INTRODUCTION = (
    "InstructBLIP puts a small trained bridge, the instruction-aware Q-Former, between a frozen image encoder and a "
    "frozen language model, and tunes that bridge on the instructions of 13 datasets so that it answers 13 others "
    "zero-shot. Here all of it is small enough for a laptop, in a world of drawn shapes whose truth is known, with the "
    "paper's 26 datasets in their official layouts.",
    "Held out is what the paper held out: relations between things, counting with choices, films, a text that must be "
    "applied to the picture, memes, dialogue, and captions of shapes that no training caption names.",
)
NOTES = (
    "The encoder, the language models, the BERT that the Q-Former starts as and the bridges after stages 1 and 2 were "
    "trained beforehand, on this world only, and come with the repository; examples/miniature/README.md says how. Only "
    "the instruction tuning was run for this page.",
    "Chance: a guess among the choices, or always the answer that scores most; of captions, the same one for all "
    "pictures. Blind: the same bridge tuned in the same way on pictures with nothing in them, and evaluated on such. "
    "BLIP-2 in small: the bridge before the instruction tuning.",
    "CIDEr is several times as large here as for photographs, since captions have few words, and weighs much in the "
    "mean.",
)


if __name__ == "__main__":
    main()
