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
from pretraining import keep, options, parse, pretrain, report
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
from transformers.models.t5.modeling_t5 import T5Attention
from world import COLORS, SHAPES

from instructblip.training.muon import MuonAndAdamW

CLASSES = {"decoder_only": LlamaForCausalLM, "encoder_decoder": T5ForConditionalGeneration}
WIDTH, INNER, HEADS = 192, 512, 4
MOST_TOKENS = 192  # of a decoder's row, which answers each instruction where it ends
PAIRS = {"decoder_only": 12, "encoder_decoder": 4}  # instructions of a lesson
SORTED_BATCHES = 8  # of an encoder-decoder's rows are sorted together by their length
NEARNESS, FAR = 0.7, 8  # what T5's scores begin to lose with each word of distance, and up to how many words
WORDING = 0.46  # of the lessons teach how instructions are worded
AT_ONCE = 0.5  # of the lessons have the words of a thing at once
CHECKED = 1200  # unseen lessons in which answers are counted
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
    model = T5ForConditionalGeneration(
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
    for attention in attentions(model):
        if attention.has_relative_attention_bias:
            bias = attention.relative_attention_bias.weight
            bias.data = near_places(len(bias), attention.is_decoder)
    return model


def near_places(buckets: int, is_decoder: bool) -> torch.Tensor:
    """The scores by place that T5's attention begins with: heads look near, at what is before, behind, and anywhere.

    T5 begins with scores near 0 and learns them so slowly that, after 2,000 steps, it still took a scene for a bag of
    words.

    Args:
        buckets: of distances. The first half of an encoder's are of what is before, the others of what is behind.

    Returns:
        shape [buckets, heads].
    """
    away = torch.arange(buckets if is_decoder else buckets // 2).clamp(max=FAR)
    without_itself = (away - 1) % (FAR + 1)
    never, anywhere = torch.full_like(away, FAR), torch.zeros_like(away)
    before = torch.stack([away, without_itself, never, anywhere])
    behind = torch.stack([away, never, without_itself, anywhere])
    return -NEARNESS * (before if is_decoder else torch.cat([before, behind], 1)).T


def scale_attention(model: T5ForConditionalGeneration) -> None:
    """Let T5 train with attention scores that are scaled by the root of their width, as all others have them.

    As T5 has them, Muon's steps gave gradients with norms of 5 to 12, and things were never found.
    """
    for attention in attentions(model):
        attention.scaling = attention.key_value_proj_dim**-0.5
        attention.q.weight.data /= attention.scaling


def unscale_attention(model: T5ForConditionalGeneration) -> None:
    """Undo `scale_attention`: the same model as T5 has it."""
    for attention in attentions(model):
        attention.q.weight.data *= attention.scaling
        attention.scaling = 1.0


def attentions(model: torch.nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, T5Attention)]


class Lessons(torch.utils.data.Dataset):
    """Lesson `i` follows from the seed and `i` alone; the first are about one thing, later ones about up to five.

    The first ones teach a decoder-only model how instructions are worded as well, the others responses alone: else it
    would go on with an instruction that might have been longer, in place of following it.

    Args:
        count: lessons of the whole run.
        seed: a negative one for lessons that no run has seen.
        pairs: instructions of a lesson.
        drill: share of the run in whose lessons there is nothing but what comes hardest, finding things and applying
            texts. In the first half of them the words of a thing come at once: so things are found first.
        grown: the model knows the words already: lessons have up to five things from the first on, and teach responses.
    """

    def __init__(self, count: int, seed: int, pairs: int, drill: float = 0.2, grown: bool = False):
        self.count, self.seed, self.pairs, self.drill, self.grown = count, seed, pairs, drill, grown

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[str, list[Pair], bool]:
        rng = random.Random(f"{self.seed}/{index}")
        share = index / self.count
        things = 5 if self.grown else min(5, 1 + int(24 * share))  # one more every twenty-fourth of the run
        drill = share < self.drill
        at_once = rng.random() < AT_ONCE or (2 * share < self.drill and not self.grown)
        scene, pairs = lesson(rng, things, self.pairs, drill, at_once)
        return scene, pairs, share < WORDING and not self.grown


class OneByOne(torch.utils.data.Dataset):
    """Every instruction with the scene on its own, as an encoder-decoder learns, among others of about its length.

    Args:
        group: so many are sorted; what follows one another then makes batches with little padding.
    """

    def __init__(self, lessons: Lessons, group: int):
        self.lessons, self.group = lessons, group
        self.number, self.rows = -1, []  # the group that was made last: rows are taken in their order

    def __len__(self) -> int:
        return len(self.lessons)

    def __getitem__(self, index: int) -> tuple[str, list[Pair], bool]:
        number, place = divmod(index, self.group)
        if number != self.number:
            self.number, self.rows = number, self.make_rows(number)
        return self.rows[place]

    def make_rows(self, number: int) -> list[tuple[str, list[Pair], bool]]:
        rows: list[tuple[str, list[Pair], bool]] = []
        index = number * self.group
        while len(rows) < self.group:
            scene, pairs, _ = self.lessons[index]
            rows += [(scene, [pair], False) for pair in pairs]
            index += 1
        return sorted(rows[: self.group], key=lambda row: len(row[0].split()) + len(row[1][0].instruction.split()))


class Collator:
    """Lessons as token ids, as the bridge will put them: the scene, then instruction and response, again and again.

    A decoder-only model learns the responses, or every word but the scene's; an encoder-decoder has one instruction.

    A position holds one word, or several at once: `input_ids` has shape [rows, positions, words].
    """

    def __init__(self, kind: str, tokenizer: PreTrainedTokenizerFast):
        self.kind, self.tokenizer = kind, tokenizer

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def scene(self, text: str) -> list[list[int]]:
        """The words of each position."""
        if "+" in text:
            return [self.ids(part.replace("+", " ")) for part in text.split()]
        return [[word] for word in self.ids(text)]

    def __call__(self, lessons: Sequence[tuple[str, list[Pair], bool]]) -> dict[str, torch.Tensor]:
        make = self.decoder_only if self.kind == "decoder_only" else self.encoder_decoder
        rows = [make(*each) for each in lessons]
        return {**self.inputs([row[0] for row in rows]), "labels": padded([row[1] for row in rows], IGNORED)}

    def inputs(self, rows: list[list[list[int]]], left: bool = False) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask` of rows of positions of words."""
        most = max(len(words) for row in rows for words in row)
        pad = self.tokenizer.pad_token_id
        numbers = [[words + [pad] * (most - len(words)) for words in row] for row in rows]
        input_ids = padded(numbers, [pad] * most, left)
        return {"input_ids": input_ids, "attention_mask": (input_ids[..., 0] != pad).long()}

    def decoder_only(self, scene: str, pairs: list[Pair], wording: bool) -> tuple[list[list[int]], list[int]]:
        eos = self.tokenizer.eos_token_id
        row = self.scene(scene)
        before, labels = len(row), [IGNORED] * len(row)
        for instruction, response, _ in pairs:
            asked, said = self.asked(instruction), [*self.ids(response), eos]
            if len(row) + len(asked) + len(said) > MOST_TOKENS and len(row) > before:
                break
            row += [*asked, *([word] for word in said)]
            labels += [IGNORED, *(word if wording else IGNORED for (word,) in asked[1:]), *said]
        return row, labels

    def encoder_decoder(self, scene: str, pairs: list[Pair], _: bool) -> tuple[list[list[int]], list[int]]:
        (pair,) = pairs
        row = [*self.scene(scene), *self.asked(pair.instruction)]
        return row, [*self.ids(pair.response), self.tokenizer.eos_token_id]

    def asked(self, instruction: str) -> list[list[int]]:
        """An instruction as the package's processor has it: after a beginning, or with an end."""
        words = [[word] for word in self.ids(instruction)]
        if self.kind == "decoder_only":
            return [[self.tokenizer.bos_token_id], *words]
        return [*words, [self.tokenizer.eos_token_id]]


def padded(rows: list[list], value: Any, left: bool = False) -> torch.Tensor:
    """Rows of one length, a multiple of 16: a run with every length took more and more memory."""
    longest = max(map(len, rows))
    length = longest + -longest % 16
    rests = [[value] * (length - len(row)) for row in rows]
    return torch.tensor([rest + row if left else row + rest for row, rest in zip(rows, rests, strict=True)])


def embed(model: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
    """One embedding a position, as long as a word's: the sum of its words' by the root of their number.

    Args:
        input_ids: [rows, positions, words].
    """
    there = (input_ids != model.config.pad_token_id).unsqueeze(-1)
    summed = (model.get_input_embeddings()(input_ids) * there).sum(2)
    return summed / there.sum(2).clamp(min=1).sqrt()


def take_words_at_once(model: PreTrainedModel) -> None:
    """Let the model take `input_ids` of several words a position."""

    def forward(module: torch.nn.Module, args: tuple, inputs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return args, {"inputs_embeds": embed(model, inputs.pop("input_ids")), **inputs}

    model.register_forward_pre_hook(forward, with_kwargs=True)


@torch.inference_mode()
def accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, kind: str, count: int, at_once: bool = False
) -> dict[str, float]:
    """Share of right answers to single instructions of unseen lessons, by their form.

    A caption is right when it names the color and shape of all things in their order; other answers when they are word
    for word as expected. For questions that are to be made up, where many would do, that says too little.

    Args:
        at_once: the words of a thing come at once.
    """
    collator = Collator(kind, tokenizer)
    right: dict[str, list[bool]] = {}
    asked: list[tuple[list[list[int]], Pair]] = []
    for index in range(count):
        scene, pairs = lesson(random.Random(f"-1/{index}"), pairs=4, at_once=at_once)
        asked += [([*collator.scene(scene), *collator.asked(pair.instruction)], pair) for pair in pairs]
    asked.sort(key=lambda each: len(each[0]))
    for start in range(0, len(asked), 64):
        batch = asked[start : start + 64]
        inputs = collator.inputs([row for row, _ in batch], left=True)
        inputs["inputs_embeds"] = embed(model, inputs.pop("input_ids"))
        longest = max(len(collator.ids(pair.response)) for _, pair in batch)
        made = model.generate(**inputs, max_new_tokens=longest + 1, do_sample=False)
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
    parser.add_argument("kind", choices=CLASSES)
    parser.add_argument(
        "--drill", type=float, default=0.2, help="share of the run in which only what comes hardest is learned"
    )
    parser.add_argument("--start", type=Path, help="folder of a model to go on with, in place of random weights")
    args = parse(parser)
    set_seed(args.seed)
    make_tokenizers(args.output / "tokenizers")
    tokenizer: Any = AutoTokenizer.from_pretrained(args.output / "tokenizers" / args.kind)
    model_class = CLASSES[args.kind]
    folder, seq2seq = args.output / "model", args.kind == "encoder_decoder"
    if not args.check:
        start = args.start and model_class.from_pretrained(args.start, dtype=torch.float32)
        model = start or new_model(args.kind, tokenizer)
        model.set_attn_implementation("eager")  # on a CPU two thirds of the time of torch's fused attention
        count = args.steps * args.batch_size
        lessons = Lessons(count, args.seed, PAIRS[args.kind], args.drill, grown=args.start is not None)
        rows = OneByOne(lessons, SORTED_BATCHES * args.batch_size) if seq2seq else lessons
        if seq2seq:
            scale_attention(model)
        take_words_at_once(model)
        optimizer = MuonAndAdamW(model, args.learning_rate, weight_decay=0.05, betas=(0.9, 0.98))
        pretrain(model, args, rows, Collator(args.kind, tokenizer), optimizer)
        if seq2seq:
            unscale_attention(model)
        keep(model, tokenizer, folder)
    model = model_class.from_pretrained(folder, dtype=torch.float32).eval()
    report("right answers to unseen lessons", accuracy(model, tokenizer, args.kind, CHECKED))
    report("with the words of each thing at once", accuracy(model, tokenizer, args.kind, CHECKED, at_once=True))


if __name__ == "__main__":
    main()
