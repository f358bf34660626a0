"""Two small pretrained backbones for the demo, made from the VQA-RAD *training* questions and their images.

No pretrained weights are downloaded, so the demo pretrains its own, in miniature, as their large relatives are:

- `pretrain_language_model`: a LLaMA of a million parameters that answers questions from notes. A row is a few notes, a
  question and an answer that is one of the notes: not the answer that the training set gives, but one that was given to
  some question with the same beginning. So it learns to speak, and to go by what it is told; what is true of which
  image it cannot know, and the bridge has to tell it.
- `pretrain_vision_tower`: a SigLIP that tells which question and answer belongs to which image. Its text half is thrown
  away, as EVA-CLIP's was for InstructBLIP.

Both are saved as transformers folders and stay frozen from then on.
"""

import collections
import math
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import (
    BertTokenizerFast,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

PROMPT = "Question: {question} Short answer:"  # the paper's for visual question answering, and that of the evaluation
IMAGE_SIZE, PATCH_SIZE, WIDTH = 112, 16, 128


def train_tokenizers(texts: list[str], folder: Path) -> tuple[PreTrainedTokenizerFast, BertTokenizerFast]:
    """Byte-level BPE for the language model and words for the Q-Former, both in lower case."""
    specials = ["<pad>", "<s>", "</s>"]
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=1800, special_tokens=specials, initial_alphabet=alphabet)
    )
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    language = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left"
    )

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(qformer_vocabulary(texts)) + "\n", encoding="utf-8")
    return language, BertTokenizerFast(str(folder / "vocab.txt"))


def qformer_vocabulary(texts: list[str], size: int = 1800) -> list[str]:
    """The most frequent words, and every character to spell the others with.

    Not trained: `WordPieceTrainer` breaks ties in no fixed order, so no two runs would have the same pieces.
    """
    normalizer, splitter = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    words = collections.Counter(
        word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))
    )
    characters = sorted({character for word in words for character in word})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{each}" for each in characters)]
    frequent = sorted((word for word in words if len(word) > 1), key=lambda word: (-words[word], word))
    return pieces + frequent[: size - len(pieces)]


def batches(count: int, size: int, epochs: int, doing: str) -> Iterator[tuple[float, list[int]]]:
    """(share of the run done, indices of a batch), every epoch in another order, with a progress bar."""
    steps = count // size
    progress = tqdm(total=epochs * steps, desc=doing, unit="step")
    for _ in range(epochs):
        order = random.sample(range(count), count)
        for step in range(steps):
            yield progress.n / progress.total, order[step * size : (step + 1) * size]
            progress.update()
    progress.close()


def learn(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, loss: torch.Tensor, done: float, peak: float
) -> None:
    """One step; the learning rate rises for a tenth of the run and falls to zero."""
    for group in optimizer.param_groups:
        group["lr"] = peak * min(done / 0.1 + 0.01, (1 - done) / 0.9)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def pretrain_language_model(
    pairs: list[tuple[str, str]], tokenizer: PreTrainedTokenizerFast, folder: Path, epochs: int = 12
) -> None:
    """Answer questions from notes; in a quarter of the rows from none.

    Args:
        pairs: (question, answer).
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 1,  # and the image token
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.1)
    answers = collections.defaultdict(list)
    for question, answer in pairs:
        answers[beginning(question)].append(answer)
    for done, batch in batches(len(pairs), 64, epochs, "pretraining the language model"):
        rows, learned = [], []
        for question, _ in [pairs[number] for number in batch]:
            answer = random.choice(answers[beginning(question)])
            notes = [answer, *(other for _, other in random.sample(pairs, 3))] if random.random() < 0.75 else []
            random.shuffle(notes)
            told = tokenizer.encode(". ".join(notes), add_special_tokens=False)
            said = tokenizer.encode(PROMPT.format(question=question))
            said += [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]
            rows.append(torch.tensor(told + said))
            learned.append(torch.tensor([-100] * len(told) + said))
        ids = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
        labels = pad_sequence(learned, batch_first=True, padding_value=-100)
        loss = model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long(), labels=labels).loss
        learn(model, optimizer, loss, done, peak=3e-3)
    print(f"language model: {model.num_parameters():,} parameters, last loss {loss:.2f}")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def beginning(question: str) -> str:
    """The first two words, which say what kind of answer is expected."""
    return " ".join(question.lower().split()[:2])


def pretrain_vision_tower(
    questions: dict[str, list[tuple[str, str]]],
    pixels: dict[str, torch.Tensor],
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    epochs: int = 120,
) -> None:
    """Tell which question and answer belongs to which image.

    Args:
        questions: image name -> its (question, answer) pairs.
        pixels: image name -> (3, height, width), as the image processor makes them.
    """
    shape = {"hidden_size": WIDTH, "intermediate_size": 3 * WIDTH, "num_hidden_layers": 4, "num_attention_heads": 4}
    model = SiglipModel(
        SiglipConfig(
            vision_config={**shape, "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE},
            text_config={
                **shape,
                "num_hidden_layers": 2,
                "vocab_size": len(tokenizer),
                "max_position_embeddings": 32,
                "projection_size": WIDTH,
                "pad_token_id": tokenizer.pad_token_id,
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
            },
        )
    ).train()
    model.logit_scale.data.fill_(math.log(10))  # its own start is random
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.1)
    names = list(questions)
    for done, batch in batches(len(names), 52, epochs, "pretraining the vision tower"):
        texts = [" ".join(random.choice(questions[names[number]])) for number in batch]
        ids = tokenizer(texts, padding="max_length", truncation=True, max_length=32, return_tensors="pt")["input_ids"]
        output = model(input_ids=ids, pixel_values=torch.stack([pixels[names[number]] for number in batch]))
        loss = -torch.nn.functional.log_softmax(output.logits_per_image, dim=1).diagonal().mean()
        learn(model, optimizer, loss, done, peak=1e-3)
    print(f"vision tower: {model.vision_model.num_parameters():,} parameters, last loss {loss:.2f}")
    model.vision_model.save_pretrained(folder)
    image_processor().save_pretrained(folder)


def image_processor() -> SiglipImageProcessorPil:
    return SiglipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
