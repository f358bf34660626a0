"""Train the tiny language models to follow instructions about scenes in words:

    python examples/miniature/pretrain_language.py decoder_only --output outputs/miniature/llama

A run that was interrupted goes on from its last checkpoint when the command is given again. The result is a
transformers folder, `<output>/model`, with its tokenizer; `--check` measures how often the answers are right.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pretraining import keep, options, pretrain, report
from texts import Pair, lesson, make_tokenizers
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint
from world import COLORS, SHAPES

from instructblip.training.muon import MuonAndAdamW

WIDTH, INNER, HEADS = 192, 512, 4
# Of a row. A decoder answers each instruction where it ends; an encoder-decoder has to find the one whose turn it is.
MOST_TOKENS = {"decoder_only": 192, "encoder_decoder": 96}
WORDING = 0.46  # of the lessons teach how instructions are worded
IGNORED = -100


def new_model(kind: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A model with random weights."""
    ids: dict[str, Any] = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    if kind == "decoder_only":
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=WIDTH,
                intermediate_size=INNER,
                num_hidden_layers=5,
                num_attention_heads=HEADS,
                max_position_embeddings=512,
                tie_word_embeddings=True,
                bos_token_id=tokenizer.bos_token_id,
                **ids,
            )
        )
    start: dict[str, Any] = {"tie_word_embeddings": True, "decoder_start_token_id": tokenizer.pad_token_id}
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=WIDTH,
            d_ff=INNER,
            d_kv=WIDTH // HEADS,
            num_heads=HEADS,
            num_layers=4,
            num_decoder_layers=2,
            feed_forward_proj="gated-gelu",
            relative_attention_num_buckets=64,
            relative_attention_max_distance=256,
            dropout_rate=0.0,
            **start,
            **ids,
        )
    )


class Lessons(torch.utils.data.Dataset):
    """Lesson `i` follows from the seed and `i` alone; the first are about one thing, later ones about up to five.

    The first ones teach a decoder-only model how instructions are worded as well, the others responses alone: else it
    would go on with an instruction that might have been longer, in place of following it.

    Args:
        count: lessons of the whole run.
        seed: a negative one for lessons that no run has seen.
        drill: shares of the run between which lessons are about finding things and nothing else.
        grown: the model knows the words already: lessons have up to five things from the first on, and teach responses.
    """

    def __init__(self, count: int, seed: int, drill: tuple[float, float] = (0.2, 0.35), grown: bool = False):
        self.count, self.seed, self.drill, self.grown = count, seed, drill, grown

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[str, list[Pair], bool]:
        rng = random.Random(f"{self.seed}/{index}")
        share = index / self.count
        things = 5 if self.grown else min(5, 1 + int(24 * share))  # one more every twenty-fourth of the run
        drill = self.drill[0] <= share < self.drill[1]
        return *lesson(rng, things, drill=drill), share < WORDING and not self.grown


class Collator:
    """Lessons as token ids, as the bridge will put them: the scene, then instruction and response, again and again.

    A decoder-only model learns the responses, or every word but the scene's; an encoder-decoder gets one instruction in
    a row, or several to answer one after the other, which teaches it more at a time.
    """

    def __init__(self, kind: str, tokenizer: PreTrainedTokenizerFast):
        self.kind, self.tokenizer, self.most = kind, tokenizer, MOST_TOKENS[kind]

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def __call__(self, lessons: Sequence[tuple[str, list[Pair], bool]]) -> dict[str, torch.Tensor]:
        decoder_only = self.kind == "decoder_only"
        rows = [self.decoder_only(*each) if decoder_only else self.encoder_decoder(*each) for each in lessons]
        input_ids = padded([row[0] for row in rows], self.tokenizer.pad_token_id)
        return {
            "input_ids": input_ids,
            "attention_mask": (input_ids != self.tokenizer.pad_token_id).long(),
            "labels": padded([row[1] for row in rows], IGNORED),
        }

    def decoder_only(self, scene: str, pairs: list[Pair], wording: bool) -> tuple[list[int], list[int]]:
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        ids = self.ids(scene)
        labels = [IGNORED] * len(ids)
        for instruction, response, _ in pairs:
            asked, said = self.ids(instruction), [*self.ids(response), eos]
            if len(ids) + 1 + len(asked) + len(said) > self.most and len(ids) > len(self.ids(scene)):
                break
            ids += [bos, *asked, *said]
            labels += [IGNORED, *(asked if wording else [IGNORED] * len(asked)), *said]
        return ids, labels

    def encoder_decoder(self, scene: str, pairs: list[Pair], wording: bool) -> tuple[list[int], list[int]]:
        eos = self.tokenizer.eos_token_id
        ids, labels = self.ids(scene), []
        for instruction, response, _ in pairs:
            words = [*self.ids(instruction), eos]
            if labels and len(ids) + len(words) > self.most:
                break
            ids += words
            labels += [*self.ids(response), eos]
        return ids, labels


def padded(rows: list[list[int]], value: int) -> torch.Tensor:
    """Rows of one length, a multiple of 16: a run with every length took more and more memory."""
    longest = max(map(len, rows))
    length = longest + -longest % 16
    return torch.tensor([row + [value] * (length - len(row)) for row in rows])


@torch.inference_mode()
def accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, kind: str, count: int) -> dict[str, float]:
    """Share of right answers to single instructions of unseen lessons, by their form.

    A caption is right when it names the color and shape of all things in their order; other answers when they are word
    for word as expected. For questions that are to be made up, where many would do, that says too little.
    """
    collator = Collator(kind, tokenizer)
    right: dict[str, list[bool]] = {}
    asked: list[tuple[list[int], Pair]] = []
    for index in range(count):
        scene, pairs = lesson(random.Random(f"-1/{index}"), pairs=4)
        for pair in pairs:
            ids = collator.ids(scene)
            if kind == "decoder_only":
                ids += [tokenizer.bos_token_id, *collator.ids(pair.instruction)]
            else:
                ids += [*collator.ids(pair.instruction), tokenizer.eos_token_id]
            asked.append((ids, pair))
    asked.sort(key=lambda each: len(each[0]))
    for start in range(0, len(asked), 64):
        batch = asked[start : start + 64]
        inputs = tokenizer.pad({"input_ids": [ids for ids, _ in batch]}, padding_side="left", return_tensors="pt")
        made = model.generate(**inputs, max_new_tokens=60, do_sample=False)
        if kind == "decoder_only":
            made = made[:, inputs["input_ids"].shape[1] :]
        for answer, (_, pair) in zip(tokenizer.batch_decode(made, skip_special_tokens=True), batch, strict=True):
            expected = tokenizer.decode(collator.ids(pair.response))
            if pair.form == "captions":
                answer, expected = named_things(answer), named_things(expected)
            right.setdefault(pair.form, []).append(answer == expected)
    return {form: sum(scores) / len(scores) for form, scores in sorted(right.items())}


def named_things(caption: str) -> list[str]:
    """Colors and shapes in the order in which a caption has them."""
    return [word for word in caption.replace(",", " ").replace(".", " ").split() if word in (*COLORS, *SHAPES)]


def main() -> None:
    parser = options(__doc__.splitlines()[0], steps=6000, batch_size=32, learning_rate=2e-3)
    parser.add_argument("kind", choices=("decoder_only", "encoder_decoder"))
    parser.add_argument(
        "--drill",
        type=float,
        nargs=2,
        default=(0.2, 0.35),
        help="shares of the run between which things are found and nothing else",
    )
    parser.add_argument("--start", type=Path, help="folder of a model to go on with, in place of random weights")
    args = parser.parse_args()
    set_seed(args.seed)
    make_tokenizers(args.output / "tokenizers")
    tokenizer: Any = AutoTokenizer.from_pretrained(args.output / "tokenizers" / args.kind)
    model_class = LlamaForCausalLM if args.kind == "decoder_only" else T5ForConditionalGeneration
    if not args.check:
        model = (
            model_class.from_pretrained(args.start, dtype=torch.float32)
            if args.start
            else new_model(args.kind, tokenizer)
        )
        model.set_attn_implementation("eager")  # on a CPU two thirds of the time of torch's fused attention
        lessons = Lessons(args.steps * args.batch_size, args.seed, args.drill, grown=args.start is not None)
        optimizer = MuonAndAdamW(model, args.learning_rate, weight_decay=0.05, betas=(0.9, 0.98))
        pretrain(model, args, lessons, Collator(args.kind, tokenizer), optimizer)
        keep(model, tokenizer, args.output / "model")
    folder = args.output / "model"
    if not folder.exists():
        folder = Path(get_last_checkpoint(str(args.output / "run")))
    model = model_class.from_pretrained(folder, dtype=torch.float32).eval()
    report("right answers to unseen lessons", accuracy(model, tokenizer, args.kind, 400))


if __name__ == "__main__":
    main()
