"""`instructblip-eval ask`: one picture, several models side by side, turn by turn.

    instructblip-eval ask --models Salesforce/instructblip-flan-t5-xl Salesforce/blip2-flan-t5-xl \\
        --image photo.jpg "What is in the picture?" "What colour is it?" --html answers.html

Without questions it reads them line by line. Each model sees its own earlier answers: InstructBLIP as part of the
prompt (`processing/chat_template.py`), others as earlier turns of their chat template.
"""

from __future__ import annotations

import argparse
import base64
import gc
import html
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from instructblip.datasets_builders.preview import html_page, thumbnail
from instructblip.eval_tasks.driver import Driver, Prompt
from instructblip.eval_tasks.whole_files import write_whole
from instructblip.processing.image_loading import open_image

NOTHING = "(nothing)"  # shown for an empty answer
OWN_STYLE = """
.shown { max-width: 44rem; margin-top: 1.2rem; }
.question { margin: 1.6rem 0 0.7rem; font-weight: 600; white-space: pre-wrap; overflow-wrap: anywhere; }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: 1rem; }
.answers article { margin: 0; padding: 0.9rem 1.1rem; }
.answers article > .note { padding: 0; }
.answers p { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
"""


@dataclass
class Conversation:
    """What one model was asked about the pictures, and what it said."""

    model: str
    label: str  # its short name
    turns: list[tuple[str, str]] = field(default_factory=list)

    def ask(self, driver: Driver, question: str, images: Sequence[Image.Image], settings: dict[str, Any]) -> str:
        """Ask the next question; the model sees the earlier ones with its own answers.

        Args:
            settings: arguments of transformers' `generate`.
        """
        prompt = Prompt(question, list(images), history=self.turns)
        inputs = driver.inputs([prompt], dict(zip(prompt.image_keys, images, strict=True)))
        answer = driver.generate(inputs, settings)[0].strip()
        self.turns.append((question, answer))
        return answer


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: arguments after `ask`. Default: those of the process.

    Raises:
        ValueError, OSError: a picture or a model cannot be read.
    """
    options = _parser().parse_args(argv)
    for name in options.models:
        if any(map(str.isspace, name)) and not os.path.isdir(name):
            raise ValueError(f"{name!r} is neither a folder nor a Hub id: write questions after --image, or after --")
    images = [open_image(place, "picture") for place in options.image]
    console = Console()
    labels = [os.path.basename(name.rstrip("/")) for name in options.models]
    if len(set(labels)) < len(labels):
        labels = options.models
    conversations = [Conversation(name, label) for name, label in zip(options.models, labels, strict=True)]
    if options.questions:
        ask_all(conversations, options.questions, images, options)
        for turn in range(len(options.questions)):
            console.print(side_by_side(conversations, turn))
        _write(options.html, conversations, images)
        return
    drivers = [load(name, options) for name in options.models]
    for turn, question in enumerate(_typed()):
        for conversation, driver in zip(conversations, drivers, strict=True):
            _seed(options)
            conversation.ask(driver, question, images, _settings(options))
        console.print(side_by_side(conversations, turn))
        _write(options.html, conversations, images)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="instructblip-eval ask",
        description="Ask one or many models about a picture, turn by turn.",
        epilog="Settings are LAVIS's for InstructBLIP, for every model.",
    )
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help="default: read them line by line")
    parser.add_argument("--models", nargs="+", required=True, metavar="MODEL", help="folders or Hub ids")
    parser.add_argument(
        "--image", action="append", default=[], metavar="IMAGE", help="file or URL; repeat it for several, in order"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write the conversations to a page")
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16, ... (default: as saved)")
    parser.add_argument("--device", help="default: the GPU, where there is one")
    parser.add_argument("--trust_remote_code", action="store_true", help="run modelling code of the release")
    parser.add_argument("--num_beams", type=int, default=5, help="default %(default)s")
    parser.add_argument("--max_new_tokens", type=int, default=256, help="default %(default)s")
    parser.add_argument("--length_penalty", type=float, default=1.0, help="above 0 for longer answers (default 1)")
    parser.add_argument("--repetition_penalty", type=float, default=1.5, help="default %(default)s")
    parser.add_argument("--temperature", type=float, default=0.0, help="sample, above 0 (default: do not)")
    parser.add_argument("--top_p", type=float, default=0.9, help="share of the likeliest that is sampled (default 0.9)")
    parser.add_argument("--seed", type=int, default=0, help="of sampling (default 0)")
    return parser


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    settings: dict[str, Any] = {
        name: getattr(options, name) for name in ("num_beams", "max_new_tokens", "repetition_penalty")
    }
    if options.num_beams > 1:
        settings["length_penalty"] = options.length_penalty
    if options.temperature > 0:
        return {**settings, "do_sample": True, "temperature": options.temperature, "top_p": options.top_p}
    return {**settings, "do_sample": False}


def load(name: str, options: argparse.Namespace) -> Driver:
    """Load a model as evaluation does.

    Raises:
        ValueError: it cannot be loaded; names it.
    """
    from instructblip.eval_tasks.lm_eval_model import InstructBLIPEvalModel

    return InstructBLIPEvalModel(
        name, dtype=options.dtype, device=options.device, trust_remote_code=options.trust_remote_code
    ).driver


def ask_all(
    conversations: Iterable[Conversation],
    questions: Sequence[str],
    images: Sequence[Image.Image],
    options: argparse.Namespace,
) -> None:
    """Ask each model all questions; one model is in memory at a time."""
    for conversation in conversations:
        driver: Driver | None = load(conversation.model, options)
        _seed(options)
        for question in questions:
            conversation.ask(driver, question, images, _settings(options))
        driver = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _seed(options: argparse.Namespace) -> None:
    torch.manual_seed(options.seed)


def _typed() -> Iterator[str]:
    """Lines of the terminal or of a pipe, until they end or Ctrl-C."""
    try:
        while True:
            line = input("> " if sys.stdin.isatty() else "").strip()
            if line:
                yield line
    except (EOFError, KeyboardInterrupt):
        return


def side_by_side(conversations: Sequence[Conversation], turn: int) -> Table:
    """The answers of a turn, a column each model."""
    table = Table(title=_plain(conversations[0].turns[turn][0]), title_justify="left", expand=True)
    for conversation in conversations:
        table.add_column(_plain(conversation.label), ratio=1, overflow="fold")
    table.add_row(*(_plain(conversation.turns[turn][1] or NOTHING) for conversation in conversations))
    return table


def _plain(text: str) -> Text:
    """No markup of rich, and no codes that a terminal would obey."""
    return Text("".join(letter if letter.isprintable() or letter == "\n" else " " for letter in text))


def _write(file: Path | None, conversations: Sequence[Conversation], images: Sequence[Image.Image]) -> None:
    if file is not None:
        write_whole(file, render_page(conversations, images))


def render_page(conversations: Sequence[Conversation], images: Sequence[Image.Image]) -> str:
    """A page that stands alone: small pictures inside, no script, nothing to fetch."""
    tags = [
        f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(thumbnail(image, "picture")).decode("ascii")}">'
        for image in images
    ]
    kind = "pictures several" if len(tags) > 1 else "pictures"
    pictures = f'<article class="shown"><div class="{kind}">{"".join(tags)}</div></article>'
    turns = []
    for turn, (question, _) in enumerate(conversations[0].turns):
        answers = "".join(
            f'<article><p class="note">{html.escape(conversation.model)}</p>'
            f'<p dir="auto">{html.escape(conversation.turns[turn][1] or NOTHING)}</p></article>'
            for conversation in conversations
        )
        turns.append(
            f'<p class="question" dir="auto">{html.escape(question)}</p>\n<div class="answers">{answers}</div>'
        )
    title = "Asked about a picture"
    header = f"<header><h1>{title}</h1></header>"
    return html_page(title, "\n".join([header, *([pictures] if tags else []), *turns]), OWN_STYLE)
