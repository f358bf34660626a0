"""Train the tiny BERT that the Q-Former starts as, on instructions and responses with masked words:

    python examples/miniature/pretrain_bert.py --output outputs/miniature/bert

It sees no scene: it learns how instructions and captions are worded, as BERT knew English before BLIP-2 began.
"""

import random
from typing import Any

import torch
from pretraining import keep, options, parse, pretrain, report
from texts import lesson, make_tokenizers
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, DataCollatorForLanguageModeling, set_seed

from instructblip.training.muon import MuonAndAdamW

LONGEST = 96  # tokens of an instruction and its response; [DEC] or a history may make it so long


class Sentences(torch.utils.data.Dataset):
    """An instruction with its response; number `i` follows from the seed and `i` alone."""

    def __init__(self, count: int, seed: int, tokenizer: Any):
        self.count, self.seed, self.tokenizer = count, seed, tokenizer

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        _, (pair,) = lesson(random.Random(f"{self.seed}/{index}"), pairs=1)
        return self.tokenizer(f"{pair.instruction} {pair.response}", truncation=True, max_length=LONGEST)


@torch.inference_mode()
def accuracy(model: BertForMaskedLM, tokenizer: Any, count: int = 2000) -> float:
    """Share of masked words of unseen sentences that the model names; what only the scene tells it cannot know."""
    torch.manual_seed(0)
    collate = DataCollatorForLanguageModeling(tokenizer)
    sentences = Sentences(count, -1, tokenizer)
    right = []
    for start in range(0, count, 100):
        batch = collate([sentences[index] for index in range(start, min(start + 100, count))])
        masked = batch["labels"] >= 0
        guesses = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.argmax(-1)
        right.append((guesses == batch["labels"])[masked])
    return torch.cat(right).float().mean().item()


def main() -> None:
    args = parse(options(__doc__.splitlines()[0], steps=1500, batch_size=128, learning_rate=2e-3))
    set_seed(args.seed)
    make_tokenizers(args.output / "tokenizers")
    tokenizer: Any = AutoTokenizer.from_pretrained(args.output / "tokenizers" / "qformer")
    if not args.check:
        model = BertForMaskedLM(
            BertConfig(
                vocab_size=len(tokenizer),
                hidden_size=128,
                num_hidden_layers=6,
                num_attention_heads=4,
                intermediate_size=256,
                max_position_embeddings=160,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        )
        model.set_attn_implementation("eager")
        sentences = Sentences(args.steps * args.batch_size, args.seed, tokenizer)
        optimizer = MuonAndAdamW(model, args.learning_rate, weight_decay=0.05, betas=(0.9, 0.98))
        pretrain(model, args, sentences, DataCollatorForLanguageModeling(tokenizer), optimizer)
        keep(model, tokenizer, args.output / "model")
    model = BertForMaskedLM.from_pretrained(args.output / "model", dtype=torch.float32).eval()
    report("right words in place of masks", {"masked words": accuracy(model, tokenizer)})


if __name__ == "__main__":
    main()
