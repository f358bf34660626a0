"""Train the tiny language models to follow instructions about scenes in words:

    python examples/miniature/pretrain_language.py decoder_only --output outputs/miniature/llama

A run that was interrupted goes on from its last checkpoint when the command is given again. The result is a
transformers folder, `<output>/model`, with its tokenizer; `--check` measures how often the answers are right.
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from texts import PAD, lesson, make_tokenizers
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

WIDTH, INNER, HEADS = 192, 512, 6
MOST_TOKENS = 192  # of a row: attention over longer ones takes most of the time
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

    Args:
        count: lessons of the whole run.
        seed: a negative one for lessons that no run has seen.
    """

    def __init__(self, count: int, seed: int):
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[str, list[tuple[str, str]]]:
        rng = random.Random(f"{self.seed}/{index}")
        grown = 1 + int(6 * index / (0.25 * self.count))  # one thing more every twenty-fourth of the run
        return lesson(rng, most_things=min(5, grown))


class Collator:
    """Lessons as token ids, as the bridge will put them: the scene, then instruction and response, again and again.

    A decoder-only model learns every word but the scene's; an encoder-decoder gets one instruction in a row, or several
    to answer one after the other, which teaches it more at a time.
    """

    def __init__(self, kind: str, tokenizer: PreTrainedTokenizerFast):
        self.kind, self.tokenizer = kind, tokenizer

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def __call__(self, lessons: Sequence[tuple[str, list[tuple[str, str]]]]) -> dict[str, torch.Tensor]:
        decoder_only = self.kind == "decoder_only"
        rows = [self.decoder_only(*each) if decoder_only else self.encoder_decoder(*each) for each in lessons]
        inputs, labels = ([torch.tensor(row[part]) for row in rows] for part in (0, 1))
        input_ids = pad_sequence(inputs, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        return {
            "input_ids": input_ids,
            "attention_mask": (input_ids != self.tokenizer.pad_token_id).long(),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        }

    def decoder_only(self, scene: str, pairs: list[tuple[str, str]]) -> tuple[list[int], list[int]]:
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        ids = self.ids(scene)
        labels = [IGNORED] * len(ids)
        for instruction, response in pairs:
            words = [bos, *self.ids(instruction), *self.ids(response), eos]
            if len(ids) + len(words) > MOST_TOKENS and len(ids) > len(self.ids(scene)):
                break
            ids += words
            labels += [IGNORED, *words[1:]]
        return ids, labels

    def encoder_decoder(self, scene: str, pairs: list[tuple[str, str]]) -> tuple[list[int], list[int]]:
        eos = self.tokenizer.eos_token_id
        ids, labels = self.ids(scene), []
        for instruction, response in pairs:
            words = [*self.ids(instruction), eos]
            if labels and len(ids) + len(words) > MOST_TOKENS:
                break
            ids += words
            labels += [*self.ids(response), eos]
        return ids, labels


@torch.inference_mode()
def accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, kind: str, count: int) -> dict[str, float]:
    """Share of right answers, by the first words of the question, to single instructions of unseen lessons."""
    collator = Collator(kind, tokenizer)
    right: dict[str, list[bool]] = {}
    asked: list[tuple[list[int], str, str]] = []
    for index in range(count):
        scene, pairs = lesson(random.Random(f"-1/{index}"), pairs=4)
        for instruction, response in pairs:
            ids = collator.ids(scene)
            if kind == "decoder_only":
                ids += [tokenizer.bos_token_id, *collator.ids(instruction)]
            else:
                ids += [*collator.ids(instruction), tokenizer.eos_token_id]
            asked.append((ids, instruction, response))
    asked.sort(key=lambda each: len(each[0]))
    for start in range(0, len(asked), 64):
        batch = asked[start : start + 64]
        inputs = tokenizer.pad({"input_ids": [ids for ids, _, _ in batch]}, padding_side="left", return_tensors="pt")
        made = model.generate(**inputs, max_new_tokens=40, do_sample=False)
        if kind == "decoder_only":
            made = made[:, inputs["input_ids"].shape[1] :]
        answers = tokenizer.batch_decode(made, skip_special_tokens=True)
        for answer, (_, instruction, response) in zip(answers, batch, strict=True):
            expected = tokenizer.decode(collator.ids(response))
            form = "short" if len(response.split()) <= 3 else "sentence"
            right.setdefault(form, []).append(answer == expected)
            for word in ("color", "shape", "where", "how many", "is there", "fruit", "hateful", "made of", "true"):
                if word in instruction and form == "short":
                    right.setdefault(word, []).append(answer == expected)
    return {form: sum(scores) / len(scores) for form, scores in sorted(right.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=("decoder_only", "encoder_decoder"))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--batch_size", type=int, default=32, help="lessons of twelve instructions in a step")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="only measure the model that is there")
    args = parser.parse_args()
    set_seed(args.seed)
    make_tokenizers(args.output / "tokenizers")
    tokenizer: Any = AutoTokenizer.from_pretrained(args.output / "tokenizers" / args.kind)
    assert tokenizer.pad_token == PAD
    if not args.check:
        arguments = TrainingArguments(
            str(args.output / "run"),
            max_steps=args.steps,
            per_device_train_batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=200,
            adam_beta2=0.98,
            weight_decay=0.05,
            max_grad_norm=1.0,
            logging_steps=50,
            save_steps=250,
            save_total_limit=1,
            train_sampling_strategy="sequential",
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=False,
            dataloader_num_workers=1,
            report_to="none",
            seed=args.seed,
        )
        lessons = Lessons(args.steps * args.batch_size, args.seed)
        trainer = Trainer(
            new_model(args.kind, tokenizer),
            arguments,
            data_collator=Collator(args.kind, tokenizer),
            train_dataset=lessons,
        )
        trainer.train(
            resume_from_checkpoint=get_last_checkpoint(arguments.output_dir) if args.output.exists() else None
        )
        trainer.model.save_pretrained(args.output / "model")
        tokenizer.save_pretrained(args.output / "model")
    folder = args.output / "model"
    if not folder.exists():
        folder = Path(get_last_checkpoint(str(args.output / "run")))
    model_class = LlamaForCausalLM if args.kind == "decoder_only" else T5ForConditionalGeneration
    for form, share in accuracy(model_class.from_pretrained(folder).eval(), tokenizer, args.kind, 200).items():
        print(f"{form:12} {share:6.1%}")


if __name__ == "__main__":
    main()
