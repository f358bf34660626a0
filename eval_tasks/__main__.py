"""`instructblip-eval`: lm-eval's command line with our model class and tasks.

    instructblip-eval --model_args pretrained=Salesforce/instructblip-flan-t5-xl,dtype=bfloat16 \\
        --tasks instructblip_vqa_rad,instructblip_vqa_rad_ranked --metadata data_root=/data --batch_size 16

Every option, and `instructblip-eval ls tasks`, is lm-eval's; `--model` is `instructblip` unless it says otherwise. Two
commands are ours: `instructblip-eval report` puts results into a table and a page, `instructblip-eval ask` asks models
about a picture of one's own.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from instructblip.eval_tasks import TASK_FOLDER
from instructblip.user_errors import raised_by

if TYPE_CHECKING:
    from lm_eval._cli import HarnessCLI

OUR_COMMANDS = {
    "report": "results of one or many models as a table, a page and JSON",
    "ask": "ask one or many models about a picture, turn by turn",
}
QUICK_START = """
quick start:
  instructblip-eval --model_args pretrained=Salesforce/instructblip-flan-t5-xl --tasks instructblip_vqa_rad \\
      --metadata data_root=FOLDER --batch_size 16 --output_path results --log_samples
  instructblip-eval report results --output report
  instructblip-eval ask --models Salesforce/instructblip-flan-t5-xl --image photo.jpg "What is this?"

Without a command it is `run`, whose options `instructblip-eval run --help` lists.
"""
USE_ERROR = 2  # exit status, as argparse has it


def main(argv: Sequence[str] | None = None) -> None:
    """Run lm-eval's command line, or a command of ours.

    Args:
        argv: arguments without the program's name. Default: those of the process.

    Raises:
        SystemExit: arguments or files are wrong; says what in one sentence.
    """
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in OUR_COMMANDS:
        run_our_command(argv[0], argv[1:])
    else:
        run_lm_eval(argv)


def run_our_command(name: str, argv: Sequence[str]) -> None:
    """Run `eval_tasks/NAME.py`, which lm-eval does not know."""
    command = importlib.import_module(f"instructblip.eval_tasks.{name}")
    try:
        command.main(argv)
    except (ValueError, OSError) as error:
        _refuse(f"instructblip-eval {name}: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        sys.exit(130)


def run_lm_eval(argv: Sequence[str]) -> None:
    """Run lm-eval's command line with our model class and tasks."""
    import torch.distributed
    from lm_eval._cli import HarnessCLI
    from lm_eval.utils import setup_logging

    import instructblip.eval_tasks.lm_eval_model  # noqa: F401  registers `instructblip`

    setup_logging()
    for name in ("lm_eval.evaluator", "lm_eval.api.task"):
        logging.getLogger(name).addFilter(_is_for_our_users)
    program = sys.argv
    sys.argv = ["instructblip-eval", *argv]  # lm-eval reads it, and adds `run`
    try:
        command_line = HarnessCLI()
        _describe(command_line)
        command_line.execute(with_our_tasks(command_line.parse_args()))
    except (ValueError, OSError) as error:
        if not raised_by(error, ("instructblip.", "lm_eval.")):  # but by a library or a task of the user's
            raise
        logging.getLogger("lm_eval").debug("where it was raised:", exc_info=True)  # for LMEVAL_LOG_LEVEL=DEBUG
        _refuse(f"instructblip-eval: {' '.join(str(error).split())}")
    finally:
        sys.argv = program
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # a process that ends with the group's threads running may abort


def with_our_tasks(arguments: Namespace) -> Namespace:
    """Add our task folder, before the user's own, and our model class where none is named."""
    if arguments.command not in ("run", "ls", "list", "validate"):
        return arguments
    from lm_eval.config.evaluate_config import EvaluatorConfig

    file = getattr(arguments, "config", None)
    settings = EvaluatorConfig.load_yaml_config(file) if file else {}
    theirs = arguments.include_path or settings.get("include_path") or []
    arguments.include_path = [str(TASK_FOLDER), *([theirs] if isinstance(theirs, str) else theirs)]
    if arguments.command == "run" and arguments.model is None and "model" not in settings:
        arguments.model = "instructblip"
    if arguments.command == "run" and arguments.model == "instructblip" and getattr(arguments, "use_cache", None):
        _refuse("instructblip-eval: --use_cache does not tell models apart: use --model_args ...,result_cache=FOLDER")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if arguments.command == "run" and 1 <= (getattr(arguments, "limit", None) or 0) < processes:
        _refuse(
            f"instructblip-eval: --limit {arguments.limit:g} with {processes} processes: each needs a question of each "
            "task at least"
        )
    return arguments


def _describe(command_line: HarnessCLI) -> None:
    """Make --help speak of this program and its commands, which have been dealt with."""
    for name, purpose in OUR_COMMANDS.items():
        command_line._subparsers.add_parser(name, help=purpose)
    command_line._parser.prog = "instructblip-eval"
    command_line._parser.description = "lm-eval's command line with InstructBLIP's tasks and two more commands"
    command_line._parser.epilog = QUICK_START


def _refuse(sentence: str) -> NoReturn:
    print(sentence, file=sys.stderr)
    sys.exit(USE_ERROR)


def _is_for_our_users(record: logging.LogRecord) -> bool:
    """Not two pieces of lm-eval's advice: for "inst", which "instructblip" has, a chat template, which ours do not use;
    and for each of our tasks that --metadata may be passed, with keys that are not ours.
    """
    advice = ("chat template is not applied", "Custom kwargs can be passed to `--metadata`")
    return not any(words in record.getMessage() for words in advice)


if __name__ == "__main__":
    main()
