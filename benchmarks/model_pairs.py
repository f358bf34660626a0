"""transformers' InstructBLIP and ours, with the very same weights, at the sizes that the benchmark runs."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, InstructBlipConfig, InstructBlipForConditionalGeneration

from instructblip import InstructBLIPConfig, InstructBLIPForConditionalGeneration
from instructblip.modeling.onednn_linear import use_onednn

NUM_QUERY_TOKENS = 32

VISION: dict[str, dict[str, Any]] = {
    "tiny": dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=28),
    "toy": dict(hidden_size=384, intermediate_size=1536, num_hidden_layers=12, num_attention_heads=6, image_size=224),
    "xl": dict(),  # the released EVA ViT-g
    "xxl": dict(),
}
QFORMER: dict[str, dict[str, Any]] = {
    "tiny": dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=1000),
    "toy": dict(hidden_size=256, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=4, vocab_size=30523),
    "xl": dict(vocab_size=30523),
    "xxl": dict(vocab_size=30523),
}
_LLAMA = dict(vocab_size=32000, pad_token_id=0, bos_token_id=1, eos_token_id=2, max_position_embeddings=2048)
_T5 = dict(
    vocab_size=32128, feed_forward_proj="gated-gelu", tie_word_embeddings=False, d_kv=64, decoder_start_token_id=0
)
LANGUAGE: dict[tuple[str, str], dict[str, Any]] = {
    ("llama", "tiny"): dict(
        _LLAMA, vocab_size=1000, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    ),
    ("llama", "toy"): dict(_LLAMA, hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8),
    ("llama", "xl"): dict(_LLAMA, vocab_size=32001),  # Vicuna-7B
    ("llama", "xxl"): dict(  # Vicuna-13B
        _LLAMA,
        vocab_size=32001,
        hidden_size=5120,
        intermediate_size=13824,
        num_hidden_layers=40,
        num_attention_heads=40,
        num_key_value_heads=40,
    ),
    ("t5", "tiny"): dict(_T5, vocab_size=1000, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4),
    ("t5", "toy"): dict(_T5, d_model=512, d_ff=1024, num_layers=8, num_heads=6),
    ("t5", "xl"): dict(_T5, d_model=2048, d_ff=5120, num_layers=24, num_heads=32),  # FlanT5-XL
    ("t5", "xxl"): dict(_T5, d_model=4096, d_ff=10240, num_layers=24, num_heads=64),  # FlanT5-XXL
}
SIZES = tuple(VISION)
LANGUAGES = ("llama", "t5")


@dataclass
class Setting:
    """What a run is made of; the same for both models."""

    language: str
    size: str = "toy"
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    training: bool = True
    compile: str | None = None  # mode of `torch.compile`, for contestants of their own

    def autocast(self) -> AbstractContextManager:
        """While training, the bridge stays in float32 and computes in `dtype`, for both models."""
        if self.dtype == torch.float32 or not self.training:
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, dtype=self.dtype)

    def synchronize(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()


@dataclass
class ModelPair:
    """Both models; they hold the same frozen tensors, and equal copies of the trained ones.

    The compiled ones are the same models, or None. The tuned peer is the peer, sharing all tensors, with the linear
    layers that ours has where torch's are slow (`instructblip.modeling.onednn_linear`).
    """

    setting: Setting
    peer: InstructBlipForConditionalGeneration
    ours: InstructBLIPForConditionalGeneration
    tuned_peer: InstructBlipForConditionalGeneration = field(init=False)
    compiled_peer: Any = field(init=False, default=None)
    compiled_ours: Any = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.tuned_peer = copy.deepcopy(self.peer, {id(tensor): tensor for tensor in self.peer.parameters()})
        use_onednn(self.tuned_peer)
        if self.setting.compile is not None:
            torch.compiler.reset()
            self.compiled_peer = torch.compile(self.peer, mode=self.setting.compile)
            self.compiled_ours = torch.compile(self.ours, mode=self.setting.compile)


def configs(setting: Setting) -> tuple[InstructBlipConfig, InstructBLIPConfig]:
    """The same configuration for transformers' class and for ours."""

    def parts() -> dict[str, Any]:
        language = LANGUAGE[setting.language, setting.size]
        # Weights that are not near zero, so that a difference between the two models shows in their results.
        vision = AutoConfig.for_model(
            "instructblip_vision_model", **{"initializer_range": 0.02, **VISION[setting.size]}
        )
        return {
            "vision_config": vision,
            "qformer_config": {**QFORMER[setting.size], "encoder_hidden_size": vision.hidden_size},
            "text_config": AutoConfig.for_model(setting.language, **language),
            "num_query_tokens": NUM_QUERY_TOKENS,
            "image_token_index": language["vocab_size"] - 1,
        }

    return InstructBlipConfig(**parts()), InstructBLIPConfig(**parts())


def new_peer(setting: Setting) -> InstructBlipForConditionalGeneration:
    """transformers' model with random weights from a fixed seed, its backbones frozen."""
    torch.manual_seed(0)
    with torch.device(setting.device):
        peer = InstructBlipForConditionalGeneration._from_config(configs(setting)[0], dtype=setting.dtype)
        nn.init.normal_(peer.query_tokens, std=0.02)  # its own start is 0, which has no direction
        nn.init.normal_(peer.vision_model.embeddings.position_embedding, std=0.02)
        nn.init.normal_(peer.vision_model.embeddings.class_embedding, std=0.02)
    return peer


def ours_like(peer: InstructBlipForConditionalGeneration, setting: Setting) -> InstructBLIPForConditionalGeneration:
    """Our model holding the peer's tensors; those that train are copied, so that each model has its own gradients."""
    with torch.device(setting.device):
        ours = InstructBLIPForConditionalGeneration._from_config(configs(setting)[1], dtype=setting.dtype)
    ours.load_state_dict(peer.state_dict(), assign=True)
    ours.tie_weights()
    for module in ours.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.detach(), requires_grad=True))
    for _, parameter in ours.named_bridge_parameters():
        parameter.data = parameter.data.clone()
    return ours


def prepare(model: nn.Module, setting: Setting, bridge: set[str]) -> None:
    """Train mode with frozen backbones and a float32 bridge, or eval mode in one dtype."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(setting.training and name in bridge)
        if setting.training and name in bridge:
            parameter.data = parameter.data.float()
    model.train(setting.training)


def new_pair(setting: Setting) -> ModelPair:
    """Both models, ready to train or to answer."""
    peer = new_peer(setting)
    ours = ours_like(peer, setting)
    bridge = {name for name, _ in ours.named_bridge_parameters()}
    if setting.training:
        ours.freeze_backbones()
    for model in (peer, ours):
        prepare(model, setting, bridge)
    return ModelPair(setting, peer, ours)
