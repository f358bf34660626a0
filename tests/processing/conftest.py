"""Processors on tiny tokenizers, with four query tokens an image and 28-pixel images."""

import pytest
from transformers import BlipImageProcessorPil

from instructblip import InstructBLIPProcessor


@pytest.fixture
def make_processor(llama_tokenizer, t5_tokenizer, gpt2_tokenizer, qformer_tokenizer):
    """A factory: `make_processor("llama", qformer_max_length=8)`."""
    tokenizers = {"llama": llama_tokenizer, "t5": t5_tokenizer, "gpt2": gpt2_tokenizer}

    def make(language="llama", **kwargs):
        kwargs = {"num_query_tokens": 4, "is_encoder_decoder": language == "t5", **kwargs}
        image_processor = BlipImageProcessorPil(size={"height": 28, "width": 28})
        return InstructBLIPProcessor(image_processor, tokenizers[language], qformer_tokenizer, **kwargs)

    return make


@pytest.fixture
def processor(make_processor):
    return make_processor("llama")


@pytest.fixture
def words():
    """Ids of space-separated tokens: `words(processor, "<s> what is")`."""

    def ids(processor, text):
        return processor.tokenizer.convert_tokens_to_ids(text.split())

    return ids
