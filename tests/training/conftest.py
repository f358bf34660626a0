import pytest
from transformers import CLIPImageProcessor

from instructblip import InstructBLIPProcessor


@pytest.fixture
def processor(t5_tokenizer, llama_tokenizer, gpt2_tokenizer, qformer_tokenizer):
    """A factory: the processor that belongs to `tiny_model(kind)`."""
    tokenizers = {"t5": t5_tokenizer, "llama": llama_tokenizer, "gpt2": gpt2_tokenizer}

    def make(kind="llama"):
        images = CLIPImageProcessor(size={"height": 28, "width": 28}, do_center_crop=False)
        options = dict(num_query_tokens=4, qformer_max_length=32, is_encoder_decoder=kind == "t5")
        return InstructBLIPProcessor(images, tokenizers[kind], qformer_tokenizer, **options)

    return make
