"""LAVIS restated from its tensors alone: small state dicts under its names, and what its models make of them."""

import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

HEADS, QUERIES, IMAGE_TOKEN = 4, 4, 79
# fmt: off
VISION = {
    "model_type": "instructblip_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": HEADS, "image_size": 28, "patch_size": 7,
}
QFORMER = {
    "vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": HEADS, "intermediate_size": 32,
    "max_position_embeddings": 64,
}
T5 = {
    "model_type": "t5", "d_model": 40, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 80,
    "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu", "tie_word_embeddings": False,
    "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
}
LLAMA = {
    "model_type": "llama", "hidden_size": 40, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 96,
    "num_attention_heads": 4, "max_position_embeddings": 128, "pad_token_id": 78, "bos_token_id": 2, "eos_token_id": 2,
}
# fmt: on
LAVIS_ROWS = {"t5": 80, "llama": 79}  # LAVIS' LLaMA has a pad token after its 78, but no image token
FROZEN = ("visual_encoder.", "t5_model.", "llm_model.")


def linear(state, name, in_features, out_features, bias=True):
    state[f"{name}.weight"] = torch.randn(out_features, in_features) * 0.2
    if bias:
        state[f"{name}.bias"] = torch.randn(out_features) * 0.2


def layer_norm(state, name, size):
    state[f"{name}.weight"] = 1 + torch.randn(size) * 0.2
    state[f"{name}.bias"] = torch.randn(size) * 0.2


def lavis_vision_state(prefix="visual_encoder.", blocks=2, side=4):
    """Small activations, so that an eps of 1e-6 where LAVIS has 1e-5 shows."""
    state = {f"{prefix}cls_token": torch.randn(1, 1, 32), f"{prefix}pos_embed": torch.randn(1, 1 + side**2, 32)}
    state[f"{prefix}patch_embed.proj.weight"] = torch.randn(32, 3, 7, 7)
    state[f"{prefix}patch_embed.proj.bias"] = torch.randn(32)
    for block in range(blocks):
        name = f"{prefix}blocks.{block}"
        layer_norm(state, f"{name}.norm1", 32)
        layer_norm(state, f"{name}.norm2", 32)
        linear(state, f"{name}.attn.qkv", 32, 96, bias=False)
        state[f"{name}.attn.q_bias"], state[f"{name}.attn.v_bias"] = torch.randn(32), torch.randn(32)
        linear(state, f"{name}.attn.proj", 32, 32)
        linear(state, f"{name}.mlp.fc1", 32, 48)
        linear(state, f"{name}.mlp.fc2", 48, 32)
    quiet = ("cls_token", "pos_embed", "patch_embed.proj", "attn.proj", "mlp.fc2")
    return {key: value * 0.01 if any(word in key for word in quiet) else value for key, value in state.items()}


def lavis_qformer_state(text=True):
    state = {"query_tokens": torch.randn(1, QUERIES, 24)}
    layer_norm(state, "ln_vision", 32)
    layer_norm(state, "Qformer.bert.embeddings.LayerNorm", 24)
    if text:
        state["Qformer.bert.embeddings.word_embeddings.weight"] = torch.randn(60, 24)
        state["Qformer.bert.embeddings.position_embeddings.weight"] = torch.randn(64, 24)
    state["Qformer.bert.embeddings.position_ids"] = torch.arange(64)[None]
    for layer in range(4):
        name = f"Qformer.bert.encoder.layer.{layer}"
        for attention, keys in (("attention", 24), ("crossattention", 32)) if layer % 2 == 0 else (("attention", 24),):
            linear(state, f"{name}.{attention}.self.query", 24, 24)
            linear(state, f"{name}.{attention}.self.key", keys, 24)
            linear(state, f"{name}.{attention}.self.value", keys, 24)
            linear(state, f"{name}.{attention}.output.dense", 24, 24)
            layer_norm(state, f"{name}.{attention}.output.LayerNorm", 24)
        for suffix in ("", "_query") if text else ("_query",):
            linear(state, f"{name}.intermediate{suffix}.dense", 24, 32)
            linear(state, f"{name}.output{suffix}.dense", 32, 24)
            layer_norm(state, f"{name}.output{suffix}.LayerNorm", 24)
    return state


def lavis_language_model(language):
    """The language model as LAVIS has it: T5 with a head that is not its embedding, LLaMA with one extra token."""
    config = AutoConfig.for_model(**{**(T5 if language == "t5" else LLAMA), "vocab_size": LAVIS_ROWS[language]})
    auto_class = AutoModelForSeq2SeqLM if language == "t5" else AutoModelForCausalLM
    model = auto_class.from_config(config).eval()
    if language == "t5":
        model.lm_head.weight = torch.nn.Parameter(torch.empty(80, 40))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.2)
    return model


def lavis_language_state(model, language):
    prefix = "t5_model." if language == "t5" else "llm_model."
    state = {prefix + key: value.clone() for key, value in model.state_dict().items()}
    if language == "llama":
        state["llm_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(5)
    return state


def lavis_stage1_heads():
    state = {"temp": torch.tensor(0.07), "Qformer.cls.predictions.bias": torch.zeros(60)}
    for head, size in (
        ("vision_proj", 16),
        ("text_proj", 16),
        ("itm_head", 2),
        ("Qformer.cls.predictions.decoder", 60),
    ):
        linear(state, head, 24, size)
    return state


def lavis_projection(language):
    state = {}
    linear(state, "t5_proj" if language == "t5" else "llm_proj", 24, 40)
    return state


def attend(query, key, value, mask=None):
    """Softmax attention over (batch, length, hidden) in HEADS heads."""
    query, key, value = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (query, key, value))
    scores = query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)
    if mask is not None:
        scores = scores - 10000 * (1 - mask[:, None, None].float())
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


def apply_linear(state, name, x):
    return functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def apply_norm(state, name, x, eps):
    return functional.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def run_lavis_vision(state, pixel_values):
    """EVA: biases for q and v only, eps 1e-6 inside and 1e-5 after."""
    patches = functional.conv2d(
        pixel_values, state["visual_encoder.patch_embed.proj.weight"], state["visual_encoder.patch_embed.proj.bias"], 7
    )
    x = patches.flatten(2).transpose(1, 2)
    x = torch.cat([state["visual_encoder.cls_token"].expand(len(x), -1, -1), x], 1) + state["visual_encoder.pos_embed"]
    for block in range(2):
        name = f"visual_encoder.blocks.{block}"
        normed = apply_norm(state, f"{name}.norm1", x, 1e-6)
        query, key, value = (normed @ state[f"{name}.attn.qkv.weight"].T).chunk(3, dim=-1)
        query, value = query + state[f"{name}.attn.q_bias"], value + state[f"{name}.attn.v_bias"]
        x = x + apply_linear(state, f"{name}.attn.proj", attend(query, key, value))
        hidden = functional.gelu(apply_linear(state, f"{name}.mlp.fc1", apply_norm(state, f"{name}.norm2", x, 1e-6)))
        x = x + apply_linear(state, f"{name}.mlp.fc2", hidden)
    return apply_norm(state, "ln_vision", x, 1e-5)


def run_lavis_qformer(state, image, ids, mask):
    """BERT over (queries, text); in even layers the queries look at the image; a feed-forward of their own."""
    bert = "Qformer.bert.embeddings"
    text = state[f"{bert}.word_embeddings.weight"][ids] + state[f"{bert}.position_embeddings.weight"][: ids.shape[1]]
    x = torch.cat([state["query_tokens"].expand(len(ids), -1, -1), text], dim=1)
    x = apply_norm(state, f"{bert}.LayerNorm", x, 1e-12)
    mask = torch.cat([mask.new_ones(len(mask), QUERIES), mask], dim=1)

    def attention(name, x, keys, mask):
        query, key, value = (
            apply_linear(state, f"{name}.self.{part}", source)
            for part, source in (("query", x), ("key", keys), ("value", keys))
        )
        output = apply_linear(state, f"{name}.output.dense", attend(query, key, value, mask))
        return apply_norm(state, f"{name}.output.LayerNorm", output + x, 1e-12)

    def feed_forward(name, suffix, x):
        hidden = functional.gelu(apply_linear(state, f"{name}.intermediate{suffix}.dense", x))
        output = apply_linear(state, f"{name}.output{suffix}.dense", hidden)
        return apply_norm(state, f"{name}.output{suffix}.LayerNorm", output + x, 1e-12)

    for layer in range(4):
        name = f"Qformer.bert.encoder.layer.{layer}"
        x = attention(f"{name}.attention", x, x, mask)
        queries, text = x[:, :QUERIES], x[:, QUERIES:]
        if layer % 2 == 0:
            queries = attention(f"{name}.crossattention", queries, image, None)
        x = torch.cat([feed_forward(name, "_query", queries), feed_forward(name, "", text)], dim=1)
    return x[:, :QUERIES]


@torch.no_grad()
def run_lavis(state, language_model, inputs, labels=None):
    """Logits of LAVIS: projected queries in front of the prompt's embeddings."""
    image = run_lavis_vision(state, inputs["pixel_values"])
    queries = run_lavis_qformer(state, image, inputs["qformer_input_ids"], inputs["qformer_attention_mask"])
    projection = "t5_proj" if "t5_proj.weight" in state else "llm_proj"
    prompt = language_model.get_input_embeddings()(inputs["input_ids"][:, QUERIES:])
    embeds = torch.cat([apply_linear(state, projection, queries), prompt], dim=1)
    return language_model(inputs_embeds=embeds, labels=labels if projection == "t5_proj" else None).logits
