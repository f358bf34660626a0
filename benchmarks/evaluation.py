"""Answers of a vision-language model through our lm-eval class and through lm-eval's own `hf-multimodal`.

    python benchmarks/evaluation.py --output outputs/evaluation.json

Both hold the very same random LLaVA and processor, and get the same questions about the same JPEG files, with the same
chat template, settings and batch size, and must answer alike. Seconds are those of the model class alone, with decoded
pictures in its requests, and of a whole `lm_eval.simple_evaluate`, with and without `log_samples`, where each side has
its own form of task: pictures in the documents, and references to them.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets
import lm_eval
import numpy as np
import torch
import transformers
from comparisons import ResultsDifferError
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.models.hf_vlms import HFMultimodalLM
from lm_eval.tasks import TaskManager
from model_pairs import LANGUAGE, VISION
from PIL import Image
from timing import CLOCKS, Contestant, Ratio, alternate
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from instructblip.eval_tasks.images import keep_rows
from instructblip.eval_tasks.lm_eval_model import InstructBLIPEvalModel

NEW_TOKENS = 10  # LAVIS's limit for short answers; exactly as many are generated
SIDE, PATCH = 112, 14  # 64 image tokens
SPECIALS = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}{% for part in message['content'] %}"
    "{{ '<image> ' if part['type'] == 'image' else part['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
DATA = {"vqav2": ("5 questions a picture", 5), "vizwiz": ("a picture each", 1)}
WAYS = {"model": "model class alone", "evaluate": "whole evaluation", "logged": "whole evaluation, samples logged"}
BEAMS = {"greedy": ("greedy", 1), "beam5": ("5 beams", 5)}
ROW_NAMES = [f"{data}-{beams}-{way}" for data in DATA for beams in BEAMS for way in WAYS]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    arguments = _parse(argv)
    names = [name for name in ROW_NAMES if any(fnmatch.fnmatch(name, pattern) for pattern in arguments.rows)]
    if not names:
        raise SystemExit(f"no row is called {' or '.join(arguments.rows)}: the rows are {', '.join(ROW_NAMES)}")
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    report: dict[str, Any] = {"machine": _machine(arguments), "rows": []}
    with tempfile.TemporaryDirectory() as folder:
        save_llava(Path(folder) / "llava", arguments.size)
        peer = HFMultimodalLM(f"{folder}/llava", device="cpu", dtype="float32", batch_size=arguments.batch_size)
        ours = InstructBLIPEvalModel(peer.model, peer.processor, batch_size=arguments.batch_size)
        for data, (_, questions) in DATA.items():
            rows = write_questions(Path(folder) / data, arguments.documents, questions)
            for name in (name for name in names if name.startswith(f"{data}-")):
                print(name, file=sys.stderr, flush=True)
                report["rows"].append(_time_row(name, Work(peer, ours, rows, name), arguments))
    print(_as_markdown(report))
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    return report


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=["*"], help=f"names or patterns of: {', '.join(ROW_NAMES)}")
    parser.add_argument("--size", choices=["tiny", "toy"], default="toy", help="tiny: next to no model")
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: the process' CPU time")
    parser.add_argument("--output", type=Path, help="also write everything as JSON")
    return parser.parse_args(argv)


def save_llava(folder: Path, size: str) -> None:
    """A random LLaVA and its processor, as hf-multimodal loads them; every token is a word."""
    words = [*SPECIALS, *(f"w{number}" for number in range(len(SPECIALS), LANGUAGE["llama", size]["vocab_size"]))]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    named = {f"{token.strip('<>')}_token": token for token in ("<pad>", "<unk>")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", **named)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    vision = {"model_type": "clip_vision_model", **VISION[size], "image_size": SIDE, "patch_size": PATCH}
    text = {"model_type": "llama", **LANGUAGE["llama", size]}
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=4))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(2)  # 0.02 makes all tokens nearly as likely, so that rounding would choose
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def write_questions(folder: Path, documents: int, questions: int) -> datasets.Dataset:
    """Questions of 6 to 12 words about JPEG files of 640 x 480, `questions` of them about each.

    Encoding one as PNG, as lm-eval does to log it, takes as long as for a photo.

    Returns:
        Rows of `question`, `answer` and `image`.
    """
    random = np.random.default_rng(0)
    lengths = random.integers(6, 13, documents).tolist()
    texts = [" ".join(f"w{word}" for word in random.integers(len(SPECIALS), 1000, length)) for length in lengths]
    folder.mkdir()
    for number in range(-(-documents // questions)):
        colours = Image.fromarray(random.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        colours.resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg")
    images = [str(folder / f"{number // questions}.jpg") for number in range(documents)]
    rows = datasets.Dataset.from_dict({"question": texts, "answer": ["w7"] * documents, "image": images})
    return rows.cast_column("image", datasets.Image())


@dataclass
class Work:
    """What a row asks of both model classes.

    Attributes:
        rows: see `write_questions`.
        name: of the row: data, beams and way.
    """

    peer: HFMultimodalLM
    ours: InstructBLIPEvalModel
    rows: datasets.Dataset
    name: str

    @property
    def settings(self) -> dict[str, Any]:
        beams = BEAMS[self.name.split("-")[1]][1]
        lengths = {"min_new_tokens": NEW_TOKENS, "max_gen_toks": NEW_TOKENS}
        return {"num_beams": beams, "do_sample": False, "until": [], **lengths}

    def contestants(self) -> dict[str, Callable[[], list[str]]]:
        """Ways to get the answers, by name."""
        way = self.name.split("-")[2]
        if way == "model":
            pictures = self._pictures()
            chat = [{"role": "user", "content": f"<image>{question}"} for question in self.rows["question"]]
            prompts = [self.peer.apply_chat_template([turn]) for turn in chat]
            peer = partial(self.peer.generate_until, self._requests(prompts, pictures), disable_tqdm=True)
            ours = partial(self.ours.generate_until, self._requests(self.rows["question"], pictures))
            return {"peer": peer, "peer again": peer, "ours": ours}
        references = keep_rows(self.rows)
        light = self.rows.remove_columns("image").add_column("images", references)
        # As lm-eval's own tasks with pictures; tuned, it does not read all documents as examples that nobody asked for.
        plain = self._task(self.rows, "<image>{{question}}", ["image"])
        no_examples = {"num_fewshot": 0, "fewshot_config": {"samples": []}}
        our_task = {**self._task(light, "{{question}}", "images"), **no_examples}
        log, manager = way == "logged", TaskManager(include_defaults=False)
        run = partial(_evaluate, manager=manager, log_samples=log)
        peer = partial(run, self.peer, plain, apply_chat_template=True)
        tuned = partial(run, self.peer, {**plain, **no_examples}, apply_chat_template=True)
        return {"peer": peer, "peer again": peer, "peer tuned": tuned, "ours": partial(run, self.ours, our_task)}

    def _pictures(self) -> list[Image.Image]:
        """Decoded, one for each question; questions about one picture share the object."""
        paths = [cell["path"] for cell in self.rows.cast_column("image", datasets.Image(decode=False))["image"]]
        opened = {path: Image.open(path).convert("RGB") for path in set(paths)}
        return [opened[path] for path in paths]

    def _requests(self, prompts: list[str], pictures: list[Image.Image]) -> list[Instance]:
        return [
            Instance("generate_until", {}, (prompt, dict(self.settings), {"visual": [picture]}), number)
            for number, (prompt, picture) in enumerate(zip(prompts, pictures, strict=True))
        ]

    def _task(self, rows: datasets.Dataset, prompt: str, pictures: Any) -> dict[str, Any]:
        return {
            "task": "pictures",
            "custom_dataset": lambda **_: datasets.DatasetDict({"test": rows}),
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_text": prompt,
            "doc_to_image": pictures,
            "doc_to_target": "answer",
            "target_delimiter": "",
            "generation_kwargs": self.settings,
            "process_results": lambda doc, results: {"accuracy": float(results[0] == doc["answer"])},
            "metric_list": [{"metric": "accuracy", "aggregation": "mean", "higher_is_better": True}],
        }


def _evaluate(lm: Any, task: dict[str, Any], manager: TaskManager, **options: Any) -> list[str]:
    answers: list[str] = []
    generate = type(lm).generate_until

    def keep(requests: list[Instance]) -> list[str]:
        answers.extend(generate(lm, requests))
        return answers

    lm.generate_until = keep
    try:
        # Seconds of asking the system for its versions, however many documents there are.
        with patch.object(evaluator, "add_env_info"):
            evaluator.simple_evaluate(lm, tasks=[dict(task)], task_manager=manager, bootstrap_iters=0, **options)
    finally:
        del lm.generate_until
    return answers


def _time_row(name: str, work: Work, arguments: argparse.Namespace) -> dict[str, Any]:
    answers: dict[str, list[str]] = {}

    def keep(contestant: str, run: Callable[[], list[str]]) -> None:
        found = [answer.strip() for answer in run()]
        if len(found) != len(work.rows) or answers.setdefault(contestant, found) != found:
            raise ResultsDifferError(f"{name}: {contestant} answers the same questions in another way")

    runs = work.contestants()
    contestants = [Contestant(which, [(partial(keep, which, run), 1.0)]) for which, run in runs.items()]
    seconds = alternate(contestants, arguments.repetitions, arguments.clock, lambda: None)
    same = sum(a == b for a, b in zip(answers["peer"], answers["ours"], strict=True))
    if same < 0.99 * len(work.rows):  # rounding depends on a batch's padding, and batches differ
        raise ResultsDifferError(f"{name}: {same} of {len(work.rows)} answers are the same")
    ratios = {which: Ratio.of(seconds["peer"], taken) for which, taken in seconds.items() if which != "peer"}
    print("  " + ", ".join(f"{which} {ratio}" for which, ratio in ratios.items()), file=sys.stderr, flush=True)
    values = {which: vars(ratio) for which, ratio in ratios.items()}
    return {"name": name, "seconds": seconds, "ratios": values, "same": same, "documents": len(work.rows)}


def _as_markdown(report: dict[str, Any]) -> str:
    lines = [
        f"Machine: {', '.join(f'{name} {value}' for name, value in report['machine'].items())}.",
        "",
        "| Questions | Run | Peer, ms each | Ours, ms each | Peer again (A/A) | Peer tuned | Ours | Same answers |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        data, beams, way = row["name"].split("-")
        each = [1000 * float(np.median(row["seconds"][which])) / row["documents"] for which in ("peer", "ours")]
        ratios = [
            str(Ratio(**row["ratios"][which])) if which in row["ratios"] else "-"
            for which in ("peer again", "peer tuned", "ours")
        ]
        cells = [f"{row['documents']}, {DATA[data][0]}, {BEAMS[beams][0]}", WAYS[way], *(f"{ms:.1f}" for ms in each)]
        lines.append("| " + " | ".join([*cells, *ratios, f"{row['same']} of {row['documents']}"]) + " |")
    return "\n".join(lines)


def _machine(arguments: argparse.Namespace) -> dict[str, Any]:
    named = ("threads", "size", "batch_size", "clock", "repetitions")
    versions = {"lm_eval": lm_eval.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    load = f"{os.getloadavg()[0]:.1f}"
    options = {name: getattr(arguments, name) for name in named}
    return {"cores": os.cpu_count(), "load": load, "python": platform.python_version(), **versions, **options}


if __name__ == "__main__":
    main()
