"""InstructBLIP: frozen vision tower, trained instruction-aware Q-Former, frozen language model (Dai et al., 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from itertools import chain
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GenerationMixin,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.instructblip.modeling_instructblip import InstructBlipVisionEmbeddings
from transformers.utils import logging

from .adapters import AdaptersMixin, QueryTokens
from .answer_loss import answer_loss
from .backbones import BackbonesMixin
from .configuration_instruct_blip import InstructBLIPConfig
from .generation_instruct_blip import GenerationAndRankingMixin
from .headless import Headless
from .image_uses import find_uses
from .input_checks import check_ids, check_labels, check_length, check_placeholders
from .lean_blocks import make_lean, own_precision
from .modeling_qformer import InstructBLIPQFormerModel
from .onednn_linear import use_onednn
from .outputs_instruct_blip import InstructBLIPImageFeatures, InstructBLIPOutput
from .packing import (
    PLAIN_ENCODERS,
    align,
    has_plain_attention,
    hook_head,
    last_feed_forward_at,
    logits_at,
    next_labels,
    pack_rows,
    places_of,
    positions_from_mask,
    takes_position_ids,
)
from .vision_tower import VisionTowerMixin

logger = logging.get_logger(__name__)


class InstructBLIPPreTrainedModel(PreTrainedModel):
    config: InstructBLIPConfig
    config_class = InstructBLIPConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_attention_backend = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True
    _no_split_modules = ["InstructBLIPQFormerLayer", "InstructBLIPQFormerEmbeddings", "InstructBlipEncoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]

    @classmethod
    def is_custom_code(cls) -> bool:
        """Not in the sense of transformers, which would give weights that a checkpoint lacks the start of any layer,
        and not that of their own kind: T5's attention would begin thirty times too large."""
        return False

    def post_init(self) -> None:
        super().post_init()
        use_onednn(self)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, InstructBLIPForConditionalGeneration):
            # transformers' zeros make the first gradient of the queries a billion times larger than any other.
            init.normal_(module.query_tokens, mean=0.0, std=self.config.initializer_range)
        elif isinstance(module, InstructBlipVisionEmbeddings):
            # The tower's own 1e-10 makes all images alike.
            init.trunc_normal_(module.position_embedding, mean=0.0, std=self.config.initializer_range)
            init.trunc_normal_(module.class_embedding, mean=0.0, std=self.config.initializer_range)


class InstructBLIPForConditionalGeneration(
    AdaptersMixin,
    VisionTowerMixin,
    BackbonesMixin,
    GenerationAndRankingMixin,
    InstructBLIPPreTrainedModel,
    GenerationMixin,
):
    """The whole generative model; its state dict has the keys of `Salesforce/instructblip-*`."""

    # What trains, and so what a bridge-only release holds (paper, section 2.3; LAVIS also trains the vision LayerNorm).
    bridge_modules = ("query_tokens", "qformer", "language_projection")

    def __init__(self, config: InstructBLIPConfig):
        super().__init__(config)
        self.build_vision_tower(config)
        self.query_tokens = nn.Parameter(torch.empty(1, config.num_query_tokens, config.qformer_config.hidden_size))
        self.queries = QueryTokens(self)
        self.qformer = InstructBLIPQFormerModel._from_config(config.qformer_config)
        self.language_projection = nn.Linear(config.qformer_config.hidden_size, config.text_config.hidden_size)
        auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        self.language_model = auto_class.from_config(config.text_config)
        make_lean(self.language_model)
        hook_head(self.language_model)
        self.post_init()
        self.freeze_unread()

    # ---- parts

    @property
    def base_model(self) -> Headless:
        """The model up to its language model's last hidden state, for TRL's trainers."""
        return Headless(self)

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.language_model.set_output_embeddings(new_embeddings)
        hook_head(self.language_model)

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        if modality == "image":
            return self.vision_model
        return self.language_model.get_encoder() if self.config.is_encoder_decoder else self

    def get_decoder(self) -> nn.Module:
        return self.language_model.get_decoder()

    def freeze_unread(self) -> None:
        """Freeze Q-Former parameters that no output depends on, whose gradients DistributedDataParallel would await."""
        for parameter in self.qformer.unread_parameters(self.config.qformer_text_input):
            parameter.requires_grad_(False)

    def freeze_backbones(self, language_model_dropout: bool = True) -> None:
        """Train nothing but the bridge (paper, section 2.3).

        Args:
            language_model_dropout: whether dropout inside the frozen language model stays on while training, as in
                LAVIS for T5. The vision tower is always in eval mode.
        """
        self.requires_grad_(False)
        for _, parameter in self.named_bridge_parameters():
            parameter.requires_grad_(True)
        self.freeze_unread()
        self.keep_in_eval(language_model_dropout)

    def keep_in_eval(self, language_model_dropout: bool = True) -> None:
        """Keep the vision tower, and without `language_model_dropout` the language model, in eval mode from now on."""
        self._modules_in_eval = (
            [self.vision_model] if language_model_dropout else [self.vision_model, self.language_model]
        )
        self.train(self.training)

    def train(self, mode: bool = True) -> InstructBLIPForConditionalGeneration:
        super().train(mode)
        for module in getattr(self, "_modules_in_eval", []):
            module.eval()
            for adapted in module.modules():
                if hasattr(adapted, "lora_dropout"):
                    adapted.lora_dropout.train(mode)
        return self

    # ---- images

    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        qformer_input_ids: torch.Tensor | None = None,
        qformer_attention_mask: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        num_uses: int | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> InstructBLIPImageFeatures | tuple:
        """What the language model reads of each image under each instruction.

        Args:
            pixel_values: (images, 3, height, width) unique images, or (rows, frames, 3, height, width).
            qformer_input_ids: (rows, length) instructions; needed unless `config.qformer_text_input` is False.
            qformer_attention_mask: (rows, length).
            image_embeds: (images, patches, vision_hidden) from `encode_images`, in place of `pixel_values`.
            image_index: (rows, most images of a row) image of each use, -1 for none; None: row i shows image i.
            num_uses: how many uses `image_index` has, where the caller knows (see `sizes` of `forward`).

        Returns:
            [`InstructBLIPImageFeatures`]; `pooler_output` is (uses, query, llm_hidden), uses in row order.

        Raises:
            ValueError: neither or both kinds of image, no instruction, or rows and images that do not match.
        """
        if (pixel_values is None) == (image_embeds is None):
            raise ValueError("pass either pixel_values or image_embeds")
        if pixel_values is not None and pixel_values.dim() == 5:
            rows, frames = pixel_values.shape[:2]
            if image_index is None:
                image_index = torch.arange(rows * frames, device=pixel_values.device).view(rows, frames)
            pixel_values = pixel_values.flatten(0, 1)
        if self.config.qformer_text_input and qformer_input_ids is None:
            raise ValueError(
                "qformer_input_ids is missing: the Q-Former reads an instruction, which a processor makes of text= "
                '(text="" is an empty one)'
            )
        asked = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        asked = {key: value for key, value in asked.items() if value}

        vision = BaseModelOutput(last_hidden_state=image_embeds)
        if image_embeds is None:
            vision = self.encode_images(pixel_values, **asked)
        elif image_embeds.shape[-1] != self.config.vision_config.hidden_size:
            raise ValueError(
                f"image_embeds are {image_embeds.shape[-1]} wide and the vision tower is "
                f"{self.config.vision_config.hidden_size}: encode the images with this model's own"
            )
        image_states = self.normed_images(vision.last_hidden_state)

        use_rows, use_images = find_uses(image_index, len(image_states), qformer_input_ids, num_uses)
        num_uses = len(image_states) if use_images is None else len(use_images)
        text = {}
        if self.config.qformer_text_input:
            check_ids(qformer_input_ids, self.config.qformer_config.vocab_size, "Q-Former", num_uses is not None)
            text = {"input_ids": qformer_input_ids, "attention_mask": qformer_attention_mask}
            text = {key: None if value is None else value.to(image_states.device) for key, value in text.items()}
            if use_rows is not None:
                text = {key: None if value is None else value[use_rows] for key, value in text.items()}
        queries = self.qformer(
            self.queries(self.query_tokens).expand(num_uses, -1, -1).to(image_states.device),
            image_embeds=image_states,
            image_index=use_images,
            **text,
            **asked,
        )
        features = InstructBLIPImageFeatures(
            last_hidden_state=image_states,
            pooler_output=self.language_projection(queries.last_hidden_state),
            hidden_states=vision.get("hidden_states"),
            attentions=vision.get("attentions"),
            qformer_attentions=queries.get("attentions"),
            qformer_cross_attentions=queries.get("cross_attentions"),
        )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return features if return_dict else features.to_tuple()

    def _merge(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        image_index: torch.Tensor | None,
        features: torch.Tensor | None,
        sizes_known: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Text embeddings with image features in the placeholders' places, the mask, and where the placeholders are."""
        embed = self.get_input_embeddings()
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass either input_ids or inputs_embeds")
        image_token = self.config.image_token_id
        if image_token is None and features is not None:
            raise ValueError(
                "config.image_token_id is None, as in checkpoints saved before placeholders existed: set it to "
                "processor.image_token_id and call resize_token_embeddings(len(processor.tokenizer))"
            )
        if inputs_embeds is None:
            is_image = input_ids == image_token if image_token is not None else torch.zeros_like(input_ids).bool()
            # A placeholder's own embedding is never read, and its id may lie beyond the vocabulary.
            input_ids = input_ids.masked_fill(is_image, 0)
            check_ids(input_ids, embed.num_embeddings, "language model", sizes_known)
            inputs_embeds = embed(input_ids)
        elif image_token is None or image_token >= embed.num_embeddings:
            if features is not None:
                raise ValueError(
                    "inputs_embeds cannot hold placeholders, because image_token_id is not in the language model's "
                    "vocabulary: pass input_ids"
                )
            is_image = inputs_embeds.new_zeros(inputs_embeds.shape[:2], dtype=torch.bool)
        else:
            is_image = (inputs_embeds == embed(torch.tensor(image_token, device=inputs_embeds.device))).all(dim=-1)
        if attention_mask is None:
            attention_mask = torch.ones(inputs_embeds.shape[:2], dtype=torch.long, device=inputs_embeds.device)
        check_placeholders(is_image, features, image_index, self.config.num_query_tokens, sizes_known)
        if features is not None:
            # Not masked_scatter, whose backward pass waits for the device.
            features = features.to(device=inputs_embeds.device, dtype=inputs_embeds.dtype).flatten(0, 1)
            is_image = is_image.to(inputs_embeds.device)
            slots = (is_image.flatten().cumsum(dim=0) - 1).clamp(min=0, max=len(features) - 1)
            shown = features.index_select(0, slots).view_as(inputs_embeds)
            inputs_embeds = torch.where(is_image[..., None], shown, inputs_embeds)
        return inputs_embeds, attention_mask, is_image

    def _prompt(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        qformer_input_ids: torch.Tensor | None = None,
        qformer_attention_mask: torch.Tensor | None = None,
        sizes: Mapping[str, int] | None = None,
        **asked,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, InstructBLIPImageFeatures | None]:
        """Embeddings of text and images, (rows, seq, hidden), the mask, the placeholders' places, and the features."""
        features = None
        sizes = sizes or {}
        if sizes:
            unused = sizes["uses"] == 0
        else:
            unused = image_index is not None and not torch.compiler.is_compiling() and not (image_index >= 0).any()
        if (pixel_values is not None or image_embeds is not None) and not unused:
            features = self.get_image_features(
                pixel_values=pixel_values,
                image_embeds=image_embeds,
                image_index=image_index,
                qformer_input_ids=qformer_input_ids,
                qformer_attention_mask=qformer_attention_mask,
                num_uses=sizes.get("uses"),
                **asked,
            )
            if image_index is None and pixel_values is not None and pixel_values.dim() == 5:
                image_index = torch.zeros(pixel_values.shape[:2], dtype=torch.long, device=pixel_values.device)
        # All processes gather sharded layers in one order, backward too: here, and with a gradient for what comes next.
        nothing = self._no_image() if features is None and self.is_sharded else None
        pooled = None if features is None else features.pooler_output
        embeds, mask, is_image = self._merge(
            input_ids, attention_mask, inputs_embeds, image_index, pooled, sizes_known=bool(sizes)
        )
        embeds = embeds if nothing is None else embeds + nothing.to(embeds.dtype)
        if not self.config.is_encoder_decoder:
            check_length(mask, self.config.text_config)
        elif self.language_model.dtype == torch.float16:
            logger.warning_once("T5 overflows in float16: load the model with dtype=torch.bfloat16")
        return embeds, mask, is_image, features

    # ---- training and scoring

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        qformer_input_ids: torch.Tensor | None = None,
        qformer_attention_mask: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        skip_logits: bool | None = None,
        sizes: Mapping[str, int] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> InstructBLIPOutput | tuple:
        """Loss and logits for prompts about images.

        Args:
            input_ids: (rows, seq) prompt, and for a decoder-only language model also the answer. `num_query_tokens`
                consecutive `image_token_id`s stand for one use of an image.
            attention_mask: (rows, seq); padding may be anywhere, positions count real tokens.
            pixel_values: (images, 3, height, width) the batch's unique images, or (rows, frames, 3, height, width).
            qformer_input_ids, qformer_attention_mask: (rows, length) the instruction, never the answer.
            image_index: (rows, most images of a row) which image each use shows, -1 for none.
            image_embeds: (images, patches, vision_hidden) from `encode_images`, in place of `pixel_values`.
            inputs_embeds: (rows, seq, llm_hidden) in place of `input_ids`.
            labels: -100 where nothing is learned; (rows, seq) like `input_ids` for a decoder-only model, (rows, target)
                for an encoder-decoder.
            decoder_input_ids, decoder_attention_mask: (rows, target), encoder-decoder only; default: shifted labels.
            num_items_in_batch: the loss is the sum over supervised positions divided by this (Trainer's gradient
                accumulation); default: their number in this batch, which gives the mean.
            skip_logits: compute vocabulary logits at supervised positions only and return none. Default: while training
                with labels.
            sizes: how many real `tokens`, `supervised` labels and `uses` of images the batch has, or more than that, as
                `InstructBLIPCollator` counts them; and if `tokens` is exact, how many the `longest` row has. No shape
                then depends on what is on the device, so that padding is left out of what `torch.compile` compiles,
                too; and while T5 or a decoder without padding trains, the host never waits for the device. Rows that
                do not fit their images are found by an assertion there.

        Raises:
            ValueError: placeholders and images do not match, an argument is missing, or a prompt is too long.
        """
        asked = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        asked = {key: value for key, value in asked.items() if value}
        if kwargs.get("shift_labels") is not None:
            raise ValueError(
                "shift_labels is not supported: pass labels, which the model shifts (sequences stay whole)"
            )
        past = kwargs.get("past_key_values")
        embeds, mask, is_image, features = self._prompt(
            input_ids,
            attention_mask[:, -input_ids.shape[1] :]
            if past is not None and attention_mask is not None
            else attention_mask,
            inputs_embeds,
            pixel_values,
            image_embeds,
            image_index,
            qformer_input_ids,
            qformer_attention_mask,
            sizes,
            **asked,
        )
        if skip_logits is None:
            skip_logits = self.training and labels is not None
        # What compiles has shapes that the host knows.
        sizes = sizes or {}
        skip_logits = skip_logits and labels is not None and (bool(sizes) or not torch.compiler.is_compiling())
        kwargs = {**kwargs, **asked}
        if self.config.is_encoder_decoder:
            outputs, (loss, token_losses, token_hits) = self._encoder_decoder(
                embeds,
                mask,
                labels,
                decoder_input_ids,
                decoder_attention_mask,
                num_items_in_batch,
                skip_logits,
                sizes,
                kwargs,
            )
        else:
            outputs, (loss, token_losses, token_hits) = self._decoder_only(
                embeds, mask, is_image, labels, num_items_in_batch, skip_logits, sizes, attention_mask, kwargs
            )
        if features is None:
            features = InstructBLIPImageFeatures()
            if loss is not None and self.training and torch.is_grad_enabled() and not self.is_sharded:
                loss = loss + self._no_image()
        output = InstructBLIPOutput(
            loss=loss,
            logits=None if skip_logits else outputs.logits,
            token_losses=token_losses,
            token_hits=token_hits,
            image_features=features.pooler_output,
            vision_attentions=features.attentions,
            qformer_attentions=features.qformer_attentions,
            qformer_cross_attentions=features.qformer_cross_attentions,
            **{key: value for key, value in outputs.items() if key not in ("loss", "logits")},
        )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    @property
    def is_sharded(self) -> bool:
        """Whether processes share the weights (FSDP2, ZeRO-3), and so have to run all layers together."""
        return any(hasattr(parameter, "full_tensor") or hasattr(parameter, "ds_id") for parameter in self.parameters())

    def _no_image(self) -> torch.Tensor:
        """Zero that depends on the bridge, so that a batch without images has zero gradients for it and not none.

        Without it such a batch cannot be trained on alone, and processes whose batches have images would wait for it.
        Where these share the tower's weights as well (FSDP2, ZeRO-3), it runs too.
        """
        norm = self.vision_layernorm.weight
        text = torch.zeros(1, 1, dtype=torch.long, device=norm.device) if self.config.qformer_text_input else None
        vision = self.config.vision_config
        if self.is_sharded:
            side: Any = vision.image_size
            size = (side, side) if isinstance(side, int) else side
            image = {"pixel_values": torch.zeros(1, 3, *size, device=norm.device)}
        else:
            image = {"image_embeds": torch.zeros(1, 1, vision.hidden_size, device=norm.device)}
        features = self.get_image_features(**image, qformer_input_ids=text)
        return 0.0 * features.pooler_output.float().sum()

    def _decoder_only(self, embeds, mask, is_image, labels, num_items_in_batch, skip_logits, sizes, full_mask, kwargs):
        """Run a decoder-only language model; returns its output and `answer_loss` (Nones without labels)."""
        if labels is not None:
            check_labels(labels, embeds)
            # A placeholder is never an answer.
            labels = labels.to(embeds.device).masked_fill(is_image.to(embeds.device), -100)
            self._check_label_ids(labels, bool(sizes))
        attention = self.language_model.config._attn_implementation
        if skip_logits and attention in ("sdpa", "eager") and has_plain_attention(self.language_model):
            known = sizes.get("tokens"), sizes.get("longest")
            packed = pack_rows(embeds, mask.to(embeds.device), labels, attention == "eager", *known)
            learned = places_of(packed.labels != -100, sizes.get("supervised"))
            prune = None if "output_hidden_states" in kwargs or torch.compiler.is_compiling() else learned
            pruned = last_feed_forward_at(self.language_model, prune, packed.labels.shape[1])
            with logits_at(self.language_model, learned), pruned, self._precision(embeds):
                outputs = self.language_model(
                    inputs_embeds=packed.inputs_embeds,
                    attention_mask=packed.attention_mask,
                    position_ids=packed.position_ids,
                    **{**kwargs, "use_cache": False},
                )
            return outputs, answer_loss(outputs.logits, packed.labels, learned, num_items_in_batch)
        if labels is not None:
            labels = next_labels(labels, mask.to(labels.device))
            kwargs.setdefault("use_cache", False)
        if "position_ids" not in kwargs and takes_position_ids(self.language_model):
            counted = mask if full_mask is None else full_mask
            kwargs["position_ids"] = positions_from_mask(counted)[:, -embeds.shape[1] :]
        learned = None if labels is None else places_of(labels != -100, sizes.get("supervised"))
        with logits_at(self.language_model, learned if skip_logits else None), self._precision(embeds):
            outputs = self.language_model(
                inputs_embeds=embeds, attention_mask=mask if full_mask is None else full_mask, **kwargs
            )
        if labels is None:
            return outputs, (None, None, None)
        return outputs, answer_loss(outputs.logits, labels, learned, num_items_in_batch)

    def _encoder_decoder(
        self, embeds, mask, labels, decoder_ids, decoder_mask, num_items_in_batch, skip_logits, sizes, kwargs
    ):
        """Run an encoder-decoder; returns its output and `answer_loss` (Nones without labels)."""
        mask, embeds = align(mask.to(embeds.device), "right", embeds)
        if labels is not None:
            self._check_label_ids(labels, bool(sizes))
            labels = labels.to(embeds.device)
            kwargs.setdefault("use_cache", False)
            if decoder_ids is None and kwargs.get("decoder_inputs_embeds") is None:
                decoder_ids = self._shift_right(labels)
            check_labels(labels, kwargs.get("decoder_inputs_embeds") if decoder_ids is None else decoder_ids)
        if decoder_ids is None and kwargs.get("decoder_inputs_embeds") is None:
            raise ValueError("an encoder-decoder language model needs labels or decoder_input_ids")
        learned = None if labels is None else places_of(labels != -100, sizes.get("supervised"))
        config = self.language_model.config
        if sizes and config.model_type in PLAIN_ENCODERS and config._attn_implementation in ("sdpa", "eager"):
            # transformers takes a mask of four dimensions as it is; of others it looks whether they mask anything.
            mask = create_bidirectional_mask(config, embeds, mask, allow_is_bidirectional_skip=False)[:, :, :1]
        with logits_at(self.language_model, learned if skip_logits else None), self._precision(embeds):
            outputs = self.language_model(
                inputs_embeds=embeds,
                attention_mask=mask,
                decoder_input_ids=decoder_ids,
                decoder_attention_mask=decoder_mask,
                **kwargs,
            )
        if labels is None:
            return outputs, (None, None, None)
        return outputs, answer_loss(outputs.logits, labels, learned, num_items_in_batch)

    def _check_label_ids(self, labels: torch.Tensor, sizes_known: bool) -> None:
        vocabulary = self.get_input_embeddings().num_embeddings
        check_ids(labels, vocabulary, "language model", sizes_known, ignored=-100)

    def _precision(self, embeds: torch.Tensor) -> AbstractContextManager:
        return own_precision(chain((embeds,), self.language_model.parameters()), embeds.device)

    def _shift_right(self, labels: torch.Tensor) -> torch.Tensor:
        """Decoder inputs for `labels` (rows, target): the start token, then all labels but the last."""
        config = self.language_model.config
        start = getattr(config, "decoder_start_token_id", None)
        start = self.language_model.generation_config.decoder_start_token_id if start is None else start
        if start is None:
            raise ValueError("the language model's config has no decoder_start_token_id: set it (0 for T5)")
        ids = torch.cat([labels.new_full((len(labels), 1), start), labels[:, :-1]], dim=1)
        return ids.masked_fill(ids == -100, config.pad_token_id or 0)
