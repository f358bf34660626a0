"""Tiny configurations, tokenizers and images that every test may use; nothing here touches the network."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, BertTokenizerFast, PreTrainedTokenizerFast

REAL = Path(__file__).parents[2] / "shared" / "data"

torch.set_num_threads(1)  # tensors are tiny: threads would only wait for each other

WORDS = (
    "what is the color of this cat dog red blue green yes no a photo short answer question image left right one two "
    "three four is there context options true false description in picture ? . : , ( ) b c d"
).split()


@pytest.fixture
def real_data():
    """The official files, kept beside the checkout; tests that need them are skipped elsewhere."""
    if not REAL.is_dir():
        pytest.skip(f"no real files in {REAL}")
    return REAL


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def _word_tokenizer(specials, template):
    vocab = {token: index for index, token in enumerate([*specials, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(token, vocab[token]) for token in specials]
    )
    return tokenizer


@pytest.fixture
def t5_tokenizer():
    """Words; adds </s> at the end, as T5's does."""
    backend = _word_tokenizer(["<pad>", "</s>", "<unk>"], "$A </s>")
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture
def llama_tokenizer():
    """Words; adds <s> in front and pads on the left, as LLaMA's does."""
    backend = _word_tokenizer(["<pad>", "<s>", "</s>", "<unk>"], "<s> $A")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
    )


@pytest.fixture
def gpt2_tokenizer():
    """Byte-level BPE without BOS, as GPT-2's and Qwen's."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|pad|>")


@pytest.fixture
def qformer_tokenizer(tmp_path_factory):
    vocab = tmp_path_factory.mktemp("bert") / "vocab.txt"
    vocab.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    return BertTokenizerFast(str(vocab), bos_token="[DEC]", truncation_side="left")


VISION = {
    "instructblip_vision_model": dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=28, patch_size=7
    ),
    "siglip_vision_model": dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=28, patch_size=7
    ),
    "clip_vision_model": dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=28, patch_size=7
    ),
    "dinov2": dict(
        hidden_size=32, mlp_ratio=2, num_hidden_layers=2, num_attention_heads=4, image_size=28, patch_size=7
    ),
}
LANGUAGE = {
    "t5": dict(
        d_model=40, d_kv=8, d_ff=64, num_layers=2, num_decoder_layers=2, num_heads=4, vocab_size=80,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, dropout_rate=0.0, decoder_start_token_id=0,
        pad_token_id=0, eos_token_id=1,
    ),
    "llama": dict(
        hidden_size=40, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=80, max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    ),
    "qwen2": dict(
        hidden_size=40, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=80, max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    ),
    "gpt2": dict(
        n_embd=40, n_layer=2, n_head=4, vocab_size=80, n_positions=256, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    ),
    "opt": dict(
        hidden_size=40, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=80, dropout=0.0,
        word_embed_proj_dim=40, max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    ),
}  # fmt: skip
IMAGE_TOKEN = 79


@pytest.fixture
def tiny_config():
    """A factory of tiny configs: `tiny_config("llama", vision="siglip_vision_model", num_query_tokens=4)`.

    `text` and `qformer` are dicts of fields that differ from the usual tiny language model and Q-Former.
    """
    from instructblip import InstructBLIPConfig

    def make(language="t5", vision="instructblip_vision_model", text=None, qformer=None, **kwargs):
        vision_config = AutoConfig.for_model(vision, initializer_range=0.02, **VISION[vision])
        qformer_config = dict(
            vocab_size=80, hidden_size=24, num_hidden_layers=4, num_attention_heads=4, intermediate_size=32,
            max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        ) | (qformer or {})  # fmt: skip
        kwargs = {"num_query_tokens": 4, "image_token_index": IMAGE_TOKEN, **kwargs}
        return InstructBLIPConfig(
            vision_config=vision_config,
            qformer_config=qformer_config,
            text_config=AutoConfig.for_model(language, **{**LANGUAGE.get(language, {}), **(text or {})}),
            **kwargs,
        )

    return make


@pytest.fixture
def tiny_model(tiny_config):
    """A factory of tiny models in eval mode with weights large enough for every part to matter."""
    from instructblip import InstructBLIPForConditionalGeneration

    def make(language="t5", **kwargs):
        model = InstructBLIPForConditionalGeneration(tiny_config(language, **kwargs)).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1 and not (language == "t5" and name.startswith("language_model.")):
                    parameter.mul_(3)  # 0.02 gives near-uniform attention and logits, which would hide mistakes
            if language == "t5":  # starts with large weights, and logits whose rounding alone is above 1e-5
                model.language_model.shared.weight.mul_(0.3)
        return model

    return make


@pytest.fixture
def tiny_images():
    """Eight different 28-pixel RGB pictures."""
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (28, 28, 3), dtype=np.uint8)) for _ in range(8)]
