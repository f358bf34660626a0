"""Tiny random models of other families, with processors made in memory."""

from __future__ import annotations

from tokenizers import AddedToken
from transformers import AutoConfig, AutoModelForImageTextToText, Blip2Processor, InstructBlipProcessor
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.llava.processing_llava import LlavaProcessor
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor

VISION = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=28, patch_size=7
)
LLAMA = dict(
    model_type="llama", hidden_size=40, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
OPT = dict(
    model_type="opt", hidden_size=40, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
    dropout=0.0, word_embed_proj_dim=40, max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
T5 = dict(
    model_type="t5", d_model=40, d_kv=8, d_ff=64, num_layers=2, num_decoder_layers=2, num_heads=4,
    feed_forward_proj="gated-gelu", dropout_rate=0.0, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
)  # fmt: skip
QFORMER = dict(
    vocab_size=80, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
    max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, encoder_hidden_size=32,
)  # fmt: skip
# As LLaVA-1.5's: no space after "ASSISTANT:" in the prompt, and one before an answer.
LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image> ' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
# As Qwen's: the answer begins its line.
QWEN_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
IDEFICS_TEMPLATE = "<s>" + LLAVA_TEMPLATE


def _with_tokens(tokenizer, *tokens):
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken(token, normalized=False, special=True) for token in tokens]}
    )
    return tokenizer


def _model(name, **config):
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(name, **config)).eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter.dim() > 1 and not (".language_model." in f".{parameter_name}" and "t5" in str(config)):
            parameter.data.mul_(3)  # 0.02 gives near-uniform attention and logits, which would hide mistakes
    return model


def _blip(name, text, tokenizer, qformer_tokenizer=None):
    image_processor = BlipImageProcessorPil(size={"height": 28, "width": 28})
    if qformer_tokenizer is None:
        processor = Blip2Processor(image_processor, tokenizer, num_query_tokens=4)
    else:
        processor = InstructBlipProcessor(image_processor, tokenizer, qformer_tokenizer, num_query_tokens=4)
    model = _model(
        name, vision_config={**VISION, "initializer_range": 0.02}, qformer_config=QFORMER, num_query_tokens=4,
        text_config={**text, "vocab_size": len(tokenizer)},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    model.query_tokens.data.normal_()
    return model, processor


def blip_2_opt(tokenizers):
    return _blip("blip-2", OPT, tokenizers("llama"))


def blip_2_t5(tokenizers):
    return _blip("blip-2", T5, tokenizers("t5"))


def instructblip_llama(tokenizers):
    return _blip("instructblip", LLAMA, tokenizers("llama"), tokenizers("qformer"))


def instructblip_t5(tokenizers):
    return _blip("instructblip", T5, tokenizers("t5"), tokenizers("qformer"))


def llava(tokenizers, chat_template=LLAVA_TEMPLATE, **text):
    tokenizer = _with_tokens(tokenizers("llama"), "<image>")
    crop = {"height": 28, "width": 28}
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=crop),
        tokenizer, patch_size=7, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=chat_template,
    )  # fmt: skip
    model = _model(
        "llava", vision_config={"model_type": "clip_vision_model", **VISION},
        text_config={**LLAMA, "vocab_size": len(tokenizer), **text},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), vision_feature_layer=-2,
    )  # fmt: skip
    return model, processor


def llava_next(tokenizers):
    tokenizer = _with_tokens(tokenizers("llama"), "<image>")
    pinpoints = [[28, 56], [56, 28]]
    processor = LlavaNextProcessor(
        LlavaNextImageProcessorPil(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=pinpoints
        ),
        tokenizer, patch_size=7, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )  # fmt: skip
    model = _model(
        "llava_next", vision_config={"model_type": "clip_vision_model", **VISION},
        text_config={**LLAMA, "vocab_size": len(tokenizer)},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), image_grid_pinpoints=pinpoints,
    )  # fmt: skip
    return model, processor


def idefics3(tokenizers, name="idefics3"):
    rows = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    tokenizer = _with_tokens(tokenizers("llama"), "<image>", "<fake_token_around_image>", "<global-img>", *rows)
    processor = Idefics3Processor(
        Idefics3ImageProcessorPil(size={"longest_edge": 56}, max_image_size={"longest_edge": 28}),
        tokenizer, image_seq_len=4, chat_template=IDEFICS_TEMPLATE,
    )  # fmt: skip
    model = _model(
        name, vision_config=VISION,
        text_config={**LLAMA, "vocab_size": len(tokenizer)}, scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    return model, processor


def smolvlm(tokenizers):
    """With the processor of its parent, as its own needs torchvision for videos."""
    return idefics3(tokenizers, "smolvlm")


class PicturesOnlyProcessor(Qwen2VLProcessor):
    """Takes None for the video processor, which needs torchvision."""

    def check_argument_for_proper_class(self, argument_name, argument):
        if argument_name != "video_processor":
            super().check_argument_for_proper_class(argument_name, argument)


QWEN_VISION = {
    "qwen2_vl": dict(depth=2, embed_dim=32, hidden_size=40, num_heads=4, patch_size=7, mlp_ratio=2),
    "qwen2_5_vl": dict(
        depth=2, hidden_size=32, out_hidden_size=40, intermediate_size=48, num_heads=4, patch_size=7, window_size=28,
        fullatt_block_indexes=[1],
    ),
}  # fmt: skip


def qwen2_5_vl(tokenizers):
    return qwen2_vl(tokenizers, "qwen2_5_vl")


def qwen2_vl(tokenizers, name="qwen2_vl"):
    tokenizer = tokenizers("gpt2")
    specials = "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
    _with_tokens(tokenizer, *specials)
    ids = dict(zip(specials, tokenizer.convert_tokens_to_ids(specials), strict=True))
    image_processor = Qwen2VLImageProcessorPil(
        patch_size=7, merge_size=2, min_pixels=14 * 14, max_pixels=14 * 14 * 16, temporal_patch_size=2
    )
    processor = PicturesOnlyProcessor(image_processor, tokenizer, None, chat_template=QWEN_TEMPLATE)
    model = _model(
        name,
        vision_config=QWEN_VISION[name],
        text_config=dict(
            hidden_size=40, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=len(tokenizer), max_position_embeddings=512, bos_token_id=None, eos_token_id=0, pad_token_id=1,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 2, 2]},
        ),
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
    )  # fmt: skip
    model.generation_config.eos_token_id = [ids["<|im_end|>"], 0]
    return model, processor
