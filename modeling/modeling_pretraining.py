"""Stage 1 of BLIP-2: a Q-Former learns to read a frozen vision tower from pictures and captions (Li et al., 2023).

Three losses are added. Contrast (ITC): queries and caption, which do not see each other, must be most alike for the
right pair of the batch. Matching (ITM): queries that do see the caption tell the right one from a wrong one. Generation
(ITG): the caption is predicted word by word from what the queries know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import BertForPreTraining
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.utils import ModelOutput, logging

from .backbones import HUB_ARGUMENTS, BackbonesMixin, describe_vision
from .configuration_instruct_blip import InstructBLIPConfig, InstructBLIPQFormerConfig
from .gather_ranks import gather_numbers, gather_rows, gather_text, rank_and_size
from .modeling_instruct_blip import InstructBLIPPreTrainedModel
from .modeling_qformer import InstructBLIPQFormerModel
from .onednn_linear import linear
from .stage_weights import bert_sizes, copy_bert
from .vision_tower import VisionTowerMixin

logger = logging.get_logger(__name__)

LABEL_SMOOTHING = 0.1  # of contrast and generation, as in LAVIS
INITIAL_TEMPERATURE = 0.07


@dataclass
class InstructBLIPPreTrainingOutput(ModelOutput):
    """What [`InstructBLIPForPreTraining`] returns.

    Attributes:
        loss: scalar, the sum of the three. On several processes each process has its own rows' share of the batch's
            loss times the number of processes: the mean over processes is the loss of the whole batch, and so is the
            gradient that DistributedDataParallel averages.
        loss_itc, loss_itm, loss_itg: contrast, matching and generation.
        image_features: (rows, query, image_text_hidden), of length 1 each.
        text_features: (rows, image_text_hidden), of length 1 each.
    """

    loss: torch.Tensor | None = None
    loss_itc: torch.Tensor | None = None
    loss_itm: torch.Tensor | None = None
    loss_itg: torch.Tensor | None = None
    image_features: torch.Tensor | None = None
    text_features: torch.Tensor | None = None


@dataclass
class GlobalBatch:
    """What a process knows of all processes' rows.

    Attributes:
        rows, images, tokens: number on each process of rows, of unique images and of words to generate.
        length: of the longest row of captions.
        row_image: (rows of all,) number of each row's image among those of all processes.
        image_ids: (rows of all,) rows with the same id show the same picture.
        own: this process' rows among them.
    """

    rows: list[int]
    images: list[int]
    tokens: list[int]
    length: int
    row_image: torch.Tensor
    image_ids: torch.Tensor
    own: slice

    def mean(self, total: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """A sum over this process' part, so scaled that the mean over processes is the mean over the batch."""
        return total * (len(counts) / max(sum(counts), 1))


class InstructBLIPLanguageModelingHead(nn.Module):
    """BERT's head: the word embeddings are its output weights."""

    def __init__(self, config: InstructBLIPQFormerConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """(..., hidden) and the word embeddings (vocabulary, hidden) -> (..., vocabulary) logits."""
        return linear(self.LayerNorm(self.activation(self.dense(hidden))), words, self.bias)


class InstructBLIPForPreTraining(VisionTowerMixin, BackbonesMixin, InstructBLIPPreTrainedModel):
    """Vision tower, Q-Former and the heads of stage 1; there is no language model yet.

    `start_from_stage1` in `modeling/stage_weights.py` carries the result into a generative model. `config.text_config`
    is not read.
    """

    bridge_modules = (
        "query_tokens",
        "qformer",
        "lm_head",
        "vision_projection",
        "text_projection",
        "itm_head",
        "temperature",
    )
    frozen_parts = ("vision",)
    has_adapters = language_model_changed = False  # nothing here is adapted
    accepts_loss_kwargs = False  # the Trainer divides by its gradient accumulation

    def __init__(self, config: InstructBLIPConfig):
        super().__init__(config)
        qformer = config.qformer_config
        self.build_vision_tower(config)
        self.query_tokens = nn.Parameter(torch.empty(1, config.num_query_tokens, qformer.hidden_size))
        self.qformer = InstructBLIPQFormerModel._from_config(qformer)
        self.lm_head = InstructBLIPLanguageModelingHead(qformer)
        self.vision_projection = nn.Linear(qformer.hidden_size, config.image_text_hidden_size)
        self.text_projection = nn.Linear(qformer.hidden_size, config.image_text_hidden_size)
        self.itm_head = nn.Linear(qformer.hidden_size, 2)
        self.temperature = nn.Parameter(torch.empty(1))
        self.post_init()
        self._no_split_modules -= {"InstructBLIPQFormerEmbeddings"}  # FSDP would keep them from the head

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, InstructBLIPForPreTraining):
            init.normal_(module.query_tokens, mean=0.0, std=self.config.initializer_range)
            init.constant_(module.temperature, INITIAL_TEMPERATURE)
        elif isinstance(module, InstructBLIPLanguageModelingHead):
            init.zeros_(module.bias)

    # ---- where weights come from

    @classmethod
    def from_backbones(
        cls,
        vision_id: str,
        bert_id: str | None = "google-bert/bert-base-uncased",
        vision_revision: str | None = None,
        bert_revision: str | None = None,
        config: InstructBLIPConfig | None = None,
        num_query_tokens: int = 32,
        **kwargs: Any,
    ) -> InstructBLIPForPreTraining:
        """A model with a pretrained, frozen vision tower and a Q-Former that starts as a BERT.

        Args:
            vision_id: Hub id or folder of an image encoder, or of a checkpoint that contains one.
            bert_id: Hub id or folder of a BERT, which gives the Q-Former its size unless `config` does. None starts at
                random.
            vision_revision, bert_revision: branch, tag or commit.
            config: default: the tower's, BERT's sizes and one word more, [DEC].
            num_query_tokens: query tokens per image, where no `config` says how many.
            kwargs: for the tower's `from_pretrained`: `dtype`, `attn_implementation`, `token`, `cache_dir`, ...
        """
        hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
        bert = None
        if bert_id is not None:
            bert = BertForPreTraining.from_pretrained(bert_id, revision=bert_revision, **hub)
        if config is None:
            vision, where = describe_vision(vision_id, vision_revision, **hub)
            qformer = {} if bert is None else bert_sizes(bert.config)
            config = InstructBLIPConfig(
                vision_config=vision,
                qformer_config=qformer,
                num_query_tokens=num_query_tokens,
                backbones={"vision": where},
            )
        model = cls._assemble(config, None, **kwargs)
        if bert is not None:
            copy_bert(model, bert)
        return model

    @property
    def known_backbones(self) -> dict[str, Any] | None:
        known = super().known_backbones
        return None if known is None else {part: known[part] for part in self.frozen_parts}

    # ---- what trains

    def freeze_unread(self) -> None:
        """Nothing to freeze: stage 1 reads the whole Q-Former."""

    def freeze_backbones(self, language_model_dropout: bool = True) -> None:
        """Train everything but the vision tower, which is in eval mode from now on.

        Args:
            language_model_dropout: without effect; there is no language model.
        """
        self.requires_grad_(False)
        for _, parameter in self.named_bridge_parameters():
            parameter.requires_grad_(True)
        self._tower_in_eval = True
        self.train(self.training)

    def train(self, mode: bool = True) -> InstructBLIPForPreTraining:
        super().train(mode)
        if getattr(self, "_tower_in_eval", False):
            self.vision_model.eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        return self.qformer.get_input_embeddings()

    # ---- the passes through the Q-Former

    def get_image_features(
        self, pixel_values: torch.Tensor | None = None, image_embeds: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What a caption is compared with: (images, query, image_text_hidden), each of length 1.

        The similarity of an image and a text is the largest over its queries.

        Args:
            pixel_values: (images, 3, height, width), or `image_embeds` (images, patches, vision_hidden).
        """
        states = self._image_states(pixel_values, image_embeds)
        queries = self.qformer(self._queries(states, len(states)), states).last_hidden_state
        return unit_length(self.vision_projection(queries))

    def get_text_features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """What images are compared with: (rows, image_text_hidden), each of length 1.

        Args:
            input_ids, attention_mask: (rows, length) captions that begin with [CLS].
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        text = self.qformer(None, None, input_ids, mask, text_output=True).last_hidden_state
        rows = torch.arange(len(text), device=text.device)
        return unit_length(self.text_projection(text[rows, first_token(mask)]))

    def get_matching_logits(
        self, image_states: torch.Tensor, image_index: torch.Tensor, input_ids: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Whether captions belong to images: (rows, 2) logits of no and yes, the mean over the queries.

        Args:
            image_states: (images, patches, vision_hidden), behind the vision LayerNorm.
            image_index: (rows,) the image that each caption is held against.
            input_ids, mask: (rows, length) captions.
        """
        queries = self.qformer(
            self._queries(image_states, len(input_ids)), image_states, input_ids, mask, image_index=image_index
        ).last_hidden_state
        return self.itm_head(queries).float().mean(dim=1)

    def _image_states(self, pixel_values: torch.Tensor | None, image_embeds: torch.Tensor | None) -> torch.Tensor:
        if (pixel_values is None) == (image_embeds is None):
            raise ValueError("pass either pixel_values or image_embeds")
        if image_embeds is None:
            image_embeds = self.encode_images(pixel_values).last_hidden_state
        return self.normed_images(image_embeds)

    def _queries(self, image_states: torch.Tensor, uses: int) -> torch.Tensor:
        return self.query_tokens.expand(uses, -1, -1).to(image_states.device)

    # ---- the losses

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        image_ids: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        return_loss: bool = True,
        return_dict: bool | None = None,
    ) -> InstructBLIPPreTrainingOutput | tuple:
        """The losses of stage 1 over the rows of all processes.

        Args:
            pixel_values: (images, 3, height, width) the batch's unique images.
            input_ids, attention_mask: (rows, length) captions: [CLS], words, [SEP].
            image_index: (rows,) or (rows, 1) which image each caption belongs to; None: row i to image i.
            image_ids: (rows,) 64-bit numbers: rows of any process with the same one show the same picture, so none of
                their captions is wrong for it. Default: only rows of the same image of this process do.
            image_embeds: (images, patches, vision_hidden) from `encode_images`, in place of `pixel_values`.
            return_loss: without, features only.

        Raises:
            ValueError: rows and images do not fit, or an argument is missing.
        """
        if input_ids is None:
            raise ValueError("input_ids is missing: stage 1 compares images with their captions")
        states = self._image_states(pixel_values, image_embeds)
        ids = input_ids.to(states.device)
        mask = torch.ones_like(ids) if attention_mask is None else attention_mask.to(states.device)
        index = self._image_of_each_row(image_index, len(states), len(ids)).to(states.device)

        # One pass for two losses: no query sees the caption, so the queries are what they are without it, and the
        # caption reads their keys and values. [DEC] in the place of [CLS] tells that it is to be generated.
        start = torch.arange(ids.shape[1], device=ids.device) == first_token(mask)[:, None]
        decoded = self.qformer(
            self._queries(states, len(ids)),
            states,
            ids.masked_fill(start, self.config.qformer_config.vocab_size - 1),
            mask,
            image_index=index,
            text_output=True,
            causal_text=True,
        ).last_hidden_state
        queries, generated = decoded.split([self.config.num_query_tokens, ids.shape[1]], dim=1)
        output = InstructBLIPPreTrainingOutput(
            image_features=unit_length(self.vision_projection(queries)),
            text_features=self.get_text_features(ids, mask),
        )
        if return_loss:
            learned = (mask[:, 1:] & mask[:, :-1]).bool()
            batch = self._global_batch(states, ids, index, image_ids, learned)
            output.loss_itc, image_to_text, text_to_image = self._contrast(output, batch)
            output.loss_itm = self._match(states, ids, mask, image_to_text, text_to_image, batch)
            output.loss_itg = self._generate(generated[:, :-1][learned], ids[:, 1:][learned], batch)
            output.loss = output.loss_itc + output.loss_itm + output.loss_itg
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    def _image_of_each_row(self, image_index: torch.Tensor | None, images: int, rows: int) -> torch.Tensor:
        if image_index is None:
            if rows != images:
                raise ValueError(f"{images} images for {rows} captions: pass image_index to say which belong together")
            return torch.arange(rows)
        if image_index.numel() != rows or len(image_index) != rows:
            raise ValueError(f"image_index is {tuple(image_index.shape)} for {rows} captions: each has one image")
        index = image_index.flatten()
        wrong = (index < 0) | (index >= images)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise ValueError(f"caption {row} belongs to image {int(index[row])}, but there are {images} images")
        return index

    def _global_batch(
        self,
        states: torch.Tensor,
        ids: torch.Tensor,
        index: torch.Tensor,
        image_ids: torch.Tensor | None,
        learned: torch.Tensor,
    ) -> GlobalBatch:
        numbers = gather_numbers([len(ids), len(states), int(learned.sum()), ids.shape[1]], states.device)
        rows, images, tokens, lengths = map(list, zip(*numbers, strict=True))
        rank, _ = rank_and_size()
        row_image = index + sum(images[:rank])
        image_ids = row_image if image_ids is None else image_ids.flatten().to(states.device)
        if len(image_ids) != len(ids):
            raise ValueError(f"{len(image_ids)} image_ids for {len(ids)} captions: pass one per caption")
        both = gather_rows(torch.stack([row_image, image_ids], dim=1), rows)
        own = slice(sum(rows[:rank]), sum(rows[: rank + 1]))
        return GlobalBatch(rows, images, tokens, max(lengths), both[:, 0], both[:, 1], own)

    def _contrast(
        self, features: InstructBLIPPreTrainingOutput, batch: GlobalBatch
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """ITC, and the similarities of this process' images to all texts and of its texts to all images, without grad.

        As on several processes of LAVIS, the other side of each comparison is a constant, whichever process has it:
        images learn from the loss of finding their text, texts from that of finding their image.
        """
        images, texts = features.image_features, features.text_features
        all_images, all_texts = gather_rows(images, batch.rows), gather_rows(texts, batch.rows)
        with torch.autocast(images.device.type, enabled=False):
            temperature = self.temperature.float()
            image_to_text = similarity(images, all_texts) / temperature
            text_to_image = similarity(all_images, texts).T / temperature
        same = batch.image_ids[batch.own, None] == batch.image_ids
        targets = same / same.sum(dim=1, keepdim=True)
        targets = (1 - LABEL_SMOOTHING) * targets + LABEL_SMOOTHING / same.shape[1]
        both = torch.stack([image_to_text, text_to_image])
        loss = batch.mean(-(targets * both.log_softmax(dim=-1)).sum() / 2, batch.rows)
        return loss, image_to_text.detach(), text_to_image.detach()

    def _match(
        self,
        states: torch.Tensor,
        ids: torch.Tensor,
        mask: torch.Tensor,
        image_to_text: torch.Tensor,
        text_to_image: torch.Tensor,
        batch: GlobalBatch,
    ) -> torch.Tensor:
        """ITM over three groups: the pairs as they are, each text with a wrong image, each image with a wrong text."""
        own = batch.row_image[batch.own]
        same = batch.image_ids[batch.own, None] == batch.image_ids
        all_ids, all_mask = gather_text(ids, mask, batch.rows, batch.length)
        all_states = gather_rows(states, batch.images, with_grad=True)
        rows = [torch.arange(len(batch.row_image), device=ids.device)[batch.own]]
        images = [own]
        # If all rows of all processes show one picture there is nothing wrong to choose.
        if (batch.image_ids != batch.image_ids[0]).any():
            rows += [rows[0], draw_negatives(image_to_text, same)]
            images += [batch.row_image[draw_negatives(text_to_image, same)], own]
        else:
            logger.warning_once("a batch with a single picture has no wrong captions to match: ITM learns nothing")
        text, image = torch.cat(rows), torch.cat(images)
        used, image = image.unique(return_inverse=True)  # keys and values once, of the chosen images only
        logits = self.get_matching_logits(all_states[used], image, all_ids[text], all_mask[text])
        labels = torch.zeros_like(text)
        labels[: len(own)] = 1
        total = functional.cross_entropy(logits, labels, reduction="sum")
        return batch.mean(total, [count * len(rows) for count in batch.rows])

    def _generate(self, hidden: torch.Tensor, targets: torch.Tensor, batch: GlobalBatch) -> torch.Tensor:
        """ITG: (tokens, hidden) before each of the words `targets` (tokens,)."""
        logits = self.lm_head(hidden, self.get_input_embeddings().weight)
        total = functional.cross_entropy(logits.float(), targets, reduction="sum", label_smoothing=LABEL_SMOOTHING)
        return batch.mean(total, batch.tokens)


def first_token(mask: torch.Tensor) -> torch.Tensor:
    """(rows,) the first real position of (rows, length), whichever side is padded."""
    return mask.int().argmax(dim=1)


def unit_length(features: torch.Tensor) -> torch.Tensor:
    return functional.normalize(features.float(), dim=-1)


def similarity(images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """(images, query, width) and (texts, width) -> (images, texts), the best query's."""
    return torch.einsum("iqw,tw->itq", images, texts).amax(dim=-1)


@torch.no_grad()
def draw_negatives(scores: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """For each row of (rows, candidates) one candidate that is not the same picture, likelier the higher its score."""
    return torch.multinomial(scores.masked_fill(same, float("-inf")).softmax(dim=1), 1)[:, 0]
