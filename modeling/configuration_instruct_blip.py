"""Configuration of InstructBLIP: a frozen vision tower, a Q-Former and a frozen language model."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


class InstructBLIPQFormerConfig(PreTrainedConfig):
    """Shape of the Q-Former: BERT-base, with cross-attention to the image in every second layer (paper, section 2.2).

    Args:
        cross_attention_frequency: a layer whose index is a multiple of this attends to the image.
        encoder_hidden_size: width of the image features that the queries attend to; set from the vision tower.
    """

    model_type: ClassVar[str] = "instruct_blip_qformer"
    base_config_key: ClassVar[str] = "qformer_config"

    vocab_size: int = 30523  # bert-base-uncased and [DEC]
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    cross_attention_frequency: int = 2
    encoder_hidden_size: int = 1408


class InstructBLIPConfig(PreTrainedConfig):
    """Configuration of [`InstructBLIPForConditionalGeneration`]; reads `Salesforce/instructblip-*` configs as well.

    The sub-configs may be objects or dicts with a `model_type`. The defaults are the released vision tower
    (EVA ViT-g/14, 39 blocks), the released Q-Former and transformers' default T5.

    Args:
        vision_config: any config that `AutoModel` builds into an image encoder.
        qformer_config: an [`InstructBLIPQFormerConfig`].
        text_config: any config that `AutoModelForCausalLM` or `AutoModelForSeq2SeqLM` builds.
        num_query_tokens: query tokens, and so language-model positions, per image.
        image_token_index: id of the placeholder token in the language model's vocabulary; `image_token_id` is the same.
        qformer_text_input: whether the Q-Former reads the instruction. False is BLIP-2, and the paper's ablation
            (Table 2).
        post_layernorm_eps: eps of the LayerNorm after the vision tower. None keeps the tower's own, as the official
            `Salesforce/instructblip-*` folders do (1e-6); LAVIS computed and trained with 1e-5.
        image_text_hidden_size: width in which [`InstructBLIPForPreTraining`] compares images with texts.
        backbones: where a bridge-only release finds its frozen parts: `{"vision": {...}, "language": {...}}`, each with
            `repo`, `revision` and, for weights inside a larger checkpoint, `prefix`.
        bridge_only: set in the config of a bridge-only release: its weights file has no backbones.

    Raises:
        ValueError: the language model is not one that transformers can build, or a size is not positive.
    """

    model_type: ClassVar[str] = "instruct_blip"
    attribute_map: ClassVar[dict[str, str]] = {"image_token_id": "image_token_index"}
    sub_configs_defaults: ClassVar[dict[str, Any]] = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="instructblip_vision_model"),
        "qformer_config": InstructBLIPQFormerConfig,
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="t5"),
    }
    # Trainer.evaluate gathers every other output over ranks; these are nested or large.
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "past_key_values",
        "encoder_last_hidden_state",
        "image_features",
        "token_losses",
        "token_hits",
    ]

    vision_config: dict | PreTrainedConfig | None = None
    qformer_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    num_query_tokens: int = 32
    image_token_index: int | None = None
    qformer_text_input: bool = True
    initializer_range: float = 0.02
    post_layernorm_eps: float | None = None
    image_text_hidden_size: int = 256
    backbones: dict | None = None
    bridge_only: bool = False
    pad_token_id: int | None = None  # the language model's, where Seq2SeqTrainer looks for it

    def __post_init__(self, **kwargs: Any):
        super().__post_init__(**kwargs)
        if self.num_query_tokens < 1:
            raise ValueError(f"num_query_tokens is {self.num_query_tokens}: an image needs at least one query token")
        self.qformer_config.encoder_hidden_size = self.vision_config.hidden_size
        self.is_encoder_decoder = self.text_config.is_encoder_decoder
        if self.pad_token_id is None:
            self.pad_token_id = getattr(self.text_config, "pad_token_id", None)

    @classmethod
    def from_backbones(cls, vision_id: str, llm_id: str, **kwargs: Any) -> InstructBLIPConfig:
        """A config for a new pair of backbones, of which it reads the configs and the tokenizer only.

        Args:
            vision_id, llm_id: as for [`InstructBLIPForConditionalGeneration.from_backbones`].
            kwargs: fields of this config, `vision_revision`, `llm_revision`, and `token`, `cache_dir`, ...
        """
        from .backbones import describe_backbones  # which imports this module

        return describe_backbones(vision_id, llm_id, **kwargs)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict[str, Any], dict[str, Any]]:
        """transformers' loader; an official config, whose `model_type` is `instructblip`, becomes one of ours."""
        config, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config.get("model_type") == "instructblip":
            config["model_type"] = cls.model_type
            config.get("qformer_config", {})["model_type"] = InstructBLIPQFormerConfig.model_type
        return config, kwargs
