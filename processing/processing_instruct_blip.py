"""Processor of InstructBLIP: prompts, images, videos and answers to model inputs."""

import os
from collections.abc import Sequence
from typing import Any, TypedDict

import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, TextKwargs
from transformers.tokenization_utils_base import AddedToken, PreTrainedTokenizerBase
from transformers.utils import logging

from .chat_template import CHAT_TEMPLATE
from .image_loading import is_image_source
from .text_layout import (
    IMAGE_POSITION,
    Prompt,
    drop_beginning,
    pad_row,
    padded_length,
    resolve_prompt,
    token_positions,
)
from .video_frames import is_video_source
from .visual_inputs import UniqueEmbeddings, UniqueImages, index_rows, is_embedding, split_into_rows

logger = logging.get_logger(__name__)

IGNORED = -100  # label of a position that is not learned
UNLIMITED = 10**6  # tokenizers without a length limit say 1e30

# Text options of transformers that would change the rows in ways this layout does not have.
UNSUPPORTED = (
    "is_split_into_words",
    "return_overflowing_tokens",
    "return_special_tokens_mask",
    "return_length",
    "return_mm_token_type_ids",
    "stride",
    "sanitize_control_tokens",
    "text_pair",
    "text_target",
    "text_pair_target",
)


class InstructBLIPTextKwargs(TextKwargs, total=False):
    """Text options of the processor; see `InstructBLIPProcessor.__call__`."""

    answer_max_length: int | None


class InstructBLIPVideosKwargs(TypedDict, total=False):
    """Video options: `do_sample_frames=False` keeps every frame."""

    do_sample_frames: bool | None


class InstructBLIPProcessorKwargs(ProcessingKwargs, total=False):
    text_kwargs: InstructBLIPTextKwargs  # type: ignore[misc]  # narrowed, as transformers' own processors do
    videos_kwargs: InstructBLIPVideosKwargs  # type: ignore[misc]


class InstructBLIPProcessor(ProcessorMixin):
    """Image processor, language-model tokenizer and Q-Former tokenizer in one.

    Args:
        image_processor: any image processor that returns `pixel_values`.
        tokenizer: of the language model; `<image>` is added to it if it has no image token.
        qformer_tokenizer: of the Q-Former, BERT-like: it needs [CLS] and [SEP].
        num_query_tokens: image tokens per image, as in the model's config.
        qformer_max_length: tokens of Q-Former text, [CLS] and [SEP] included; longer text loses its beginning.
        is_encoder_decoder: whether the language model is T5-like. None asks the tokenizer.
        num_frames: frames taken of a video.
        chat_template: Jinja; None is ours.

    Raises:
        ValueError: a tokenizer lacks a token that the layout needs, or a size is not positive.
    """

    valid_processor_kwargs = InstructBLIPProcessorKwargs  # type: ignore[assignment]
    text_kwargs = InstructBLIPTextKwargs(padding=True, return_tensors="pt")
    qformer_tokenizer: PreTrainedTokenizerBase
    video_placeholder = "<video>"  # no token: it stands for one image token a frame

    def __init__(
        self,
        image_processor: BaseImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        qformer_tokenizer: PreTrainedTokenizerBase,
        num_query_tokens: int = 32,
        qformer_max_length: int = 128,
        is_encoder_decoder: bool | None = None,
        num_frames: int = 4,
        chat_template: str | dict[str, str] | None = None,
    ):
        for name, value in (("num_query_tokens", num_query_tokens), ("num_frames", num_frames)):
            if value is None or value < 1:
                raise ValueError(f"{name} is {value}: it must be at least 1")
        if qformer_max_length < 3:
            raise ValueError(f"qformer_max_length is {qformer_max_length}: [CLS], [SEP] and one token need 3")
        super().__init__(
            image_processor,
            tokenizer,
            qformer_tokenizer,
            chat_template=CHAT_TEMPLATE if chat_template is None else chat_template,
        )
        for role in ("cls_token", "sep_token"):
            if getattr(qformer_tokenizer, f"{role}_id") is None:
                raise ValueError(
                    f"the Q-Former tokenizer ({type(qformer_tokenizer).__name__}) has no {role}: "
                    "use BERT's, as in the qformer_tokenizer folder of Salesforce/instructblip-*"
                )
        self.num_query_tokens = num_query_tokens
        self.qformer_max_length = qformer_max_length
        self.num_frames = num_frames
        self.is_encoder_decoder = _ends_texts(tokenizer) if is_encoder_decoder is None else is_encoder_decoder
        self.image_token, self.image_token_id = _image_token(tokenizer)
        self._space_before_answer: bool | None = None  # found out when the first answer comes

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        answers: str | Sequence[str] | None = None,
        qformer_text: str | Sequence[str] | None = None,
        image_embeds: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Turn prompts and what they show into model inputs.

        An image stands for `num_query_tokens` image tokens. They come first, before the BOS token, where the released
        checkpoints saw them, if the prompt names no place or begins with `<image>`; another `<image>` stays where it
        is. `<video>` stands for one image per frame.

        Args:
            images: one image, for every prompt; a list with one entry per prompt (None: text only; a list: several
                images). An image is a PIL image, array, path, URL, base64, bytes or `{"bytes", "path"}`. One that
                several prompts use (same object, path or bytes) enters `pixel_values` once.
            text: a prompt or a list of prompts. Without, only `pixel_values` come back, one per image given.
            videos: like images; a video is a path, bytes, a (frames, ...) array or a list of frames.
            answers: one per prompt. Decoder-only: appended to the prompt with the end token, and learned.
                Encoder-decoder: becomes the labels, with the end token.
            qformer_text: what the Q-Former reads instead of the prompt, one per prompt.
            image_embeds: instead of images: (patches, hidden) tensors from `model.encode_images`.
            max_length: text tokens kept of a prompt, special tokens included and image tokens not; longer prompts lose
                their beginning. None keeps everything. With `padding="max_length"` it is the length of the whole row.
            answer_max_length: tokens kept of an answer, the end token included; longer answers lose their end.
            padding: True or "longest" (default), "max_length" or False.
            padding_side: default "left" for decoder-only prompts without answers (generation), else "right". The
                Q-Former's text is always padded on the right.
            pad_to_multiple_of: of prompts, Q-Former text and labels.
            add_special_tokens: False leaves out the BOS token; the Q-Former's text always has its own.
            num_frames: frames per video in this call.
            do_sample_frames: False keeps every frame of a video.
            return_tensors: "pt" (default), "np" or None.

        Returns:
            input_ids, attention_mask (rows, seq); qformer_input_ids, qformer_attention_mask (rows, q_len);
            pixel_values (images, 3, H, W) or image_embeds (images, patches, hidden), each image once, and image_index
            (rows, most_images_of_a_row) that ties them to rows, -1 for none; all three only if there are images;
            labels if there are answers, -100 where nothing is learned.

        Raises:
            ValueError: counts of prompts, images, placeholders or answers disagree; an image or video cannot be read; a
                decoder-only prompt exceeds the tokenizer's `model_max_length` and no max_length was given.
        """
        num_frames = kwargs.pop("num_frames", None)
        merged = self._merge_kwargs(tokenizer_init_kwargs=self._init_kwargs(), **kwargs)
        options = merged["text_kwargs"]
        for name in UNSUPPORTED:
            if options.get(name):
                raise ValueError(f"{name}={options[name]!r} is not supported by {type(self).__name__}")
        return_tensors = options.get("return_tensors")
        num_frames = num_frames or merged["videos_kwargs"].get("num_frames") or self.num_frames
        if not merged["videos_kwargs"].get("do_sample_frames", True):
            num_frames = None
        if image_embeds is not None and (images is not None or videos is not None):
            raise ValueError("image_embeds stands in for images and videos: pass one or the other")

        if text is None:
            if images is None:
                raise ValueError("pass text, images or both")
            if answers is not None or qformer_text is not None:
                raise ValueError("answers and qformer_text belong to prompts: pass text as well")
            pixel_values = self._pixels_alone(images, merged["images_kwargs"], return_tensors)
            return BatchFeature({"pixel_values": pixel_values}, tensor_type=return_tensors)

        prompts, pixels, embeds = self._prompts(_texts(text), images, videos, image_embeds, num_frames)
        if answers is None and pixels.images and _is_trl_with_whole_texts(options) and not self.is_encoder_decoder:
            logger.warning_once(
                "These prompts look like TRL's rows of `messages`, with the answers in them. The Q-Former would read "
                "those, and learn to pass them on: use rows of `prompt` and `completion`"
            )
        data: dict[str, Any] = self._text_inputs(prompts, answers, options)
        qformer_texts = [prompt.qformer_text for prompt in prompts]
        if qformer_text is not None:
            qformer_texts = _texts(qformer_text, len(prompts), "Q-Former texts")
        data.update(self._qformer_inputs(qformer_texts, options))
        if pixels.images:
            data["pixel_values"] = self._pixel_values(pixels.images, merged["images_kwargs"], return_tensors)
        if embeds.embeds:
            data["image_embeds"] = torch.stack(embeds.embeds)
        if pixels.images or embeds.embeds:
            data["image_index"] = index_rows([prompt.images for prompt in prompts])
        return BatchFeature(data, tensor_type=return_tensors)

    @property
    def model_input_names(self) -> list[str]:
        return [
            "input_ids",
            "attention_mask",
            "qformer_input_ids",
            "qformer_attention_mask",
            "pixel_values",
            "image_index",
        ]

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Save as transformers does, without the marks that saving its code leaves on the objects (`auto_map`)."""
        files = super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        for part in (self, self.image_processor):
            vars(part).pop("auto_map", None)
        return files

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        output["image_processor"].pop("auto_map", None)  # it names the processor, which is no image processor
        return output

    def encode_answers(self, answers: Sequence[str]) -> list[list[int]]:
        """Tokens of answers as they continue a prompt: without BOS and end token.

        Some tokenizers keep a space with the word after it and add none in front (byte-level BPE: GPT-2, Qwen, Llama 3;
        also Gemma). They are given one here, so that "Answer:" and "yes" become the tokens of "Answer: yes".

        Raises:
            ValueError: an answer contains the image placeholder.
        """
        for row, answer in enumerate(answers):
            if not isinstance(answer, str):
                raise ValueError(f"answer {row} is a {type(answer).__name__}, not a string: {answer!r}")
            if self.image_token in answer:
                raise ValueError(f"answer {row} contains the placeholder {self.image_token}: only prompts show images")
        if not answers:
            return []
        if self._space_before_answer is None:
            first, second = self.tokenizer(["a", "b"], add_special_tokens=False)["input_ids"]
            self._space_before_answer = self.tokenizer.decode([*first, *second]).strip() == "ab"
        if self._space_before_answer:
            answers = [answer if answer[:1].isspace() else f" {answer}" for answer in answers]
        return self.tokenizer(list(answers), add_special_tokens=False, return_attention_mask=False, verbose=False)[
            "input_ids"
        ]

    def check_compatible(self, config: Any) -> None:
        """Refuse a model that would read this processor's ids as something else.

        Args:
            config: an `InstructBLIPConfig`.

        Raises:
            ValueError: naming every difference.
        """
        problems = [
            f"{name} is {ours} here and {theirs} in the model"
            for name, ours, theirs in (
                ("image_token_id", self.image_token_id, config.image_token_id),
                ("num_query_tokens", self.num_query_tokens, config.num_query_tokens),
                ("is_encoder_decoder", self.is_encoder_decoder, config.is_encoder_decoder),
            )
            if ours != theirs
        ]
        vocabulary = len(self.tokenizer)
        if self.image_token_id == vocabulary - 1:
            vocabulary -= 1  # the model never looks up an image token's embedding
        for name, ours, theirs in (
            ("language model", vocabulary, config.text_config.vocab_size),
            ("Q-Former", len(self.qformer_tokenizer), config.qformer_config.vocab_size),
        ):
            if ours > theirs:
                problems.append(f"the {name}'s tokenizer has {ours} tokens but the model only {theirs}")
        if self.qformer_max_length > config.qformer_config.max_position_embeddings:
            problems.append(
                f"qformer_max_length is {self.qformer_max_length} but the Q-Former has only "
                f"{config.qformer_config.max_position_embeddings} positions"
            )
        if problems:
            raise ValueError(f"processor and model do not belong together: {'; '.join(problems)}")

    def _init_kwargs(self) -> dict[str, Any]:
        """What the tokenizer was made with, but for its padding side, which follows from the task here."""
        return {name: value for name, value in self.tokenizer.init_kwargs.items() if name != "padding_side"}

    def _prompts(
        self, texts: list[str], images: Any, videos: Any, image_embeds: Any, num_frames: int | None
    ) -> tuple[list[Prompt], UniqueImages, UniqueEmbeddings]:
        pixels, embeds = UniqueImages(), UniqueEmbeddings()
        if image_embeds is None:
            image_rows = split_into_rows(images, len(texts), is_image_source, "image")
        else:
            image_rows = split_into_rows(image_embeds, len(texts), is_embedding, "image embedding")
        add = pixels.add if image_embeds is None else embeds.add
        video_rows = split_into_rows(videos, len(texts), is_video_source, "video")
        prompts = []
        for row, text in enumerate(texts):
            name = f"sample {row}"
            shown = [[add(image, f"image {i} of {name}")] for i, image in enumerate(image_rows[row])]
            clips = [
                pixels.add_video(video, num_frames, f"video {i} of {name}") for i, video in enumerate(video_rows[row])
            ]
            prompts.append(resolve_prompt(text, shown, clips, self.image_token, self.video_placeholder, name))
        return prompts, pixels, embeds

    def _pixels_alone(self, images: Any, options: dict[str, Any], return_tensors: Any) -> Any:
        """Pixels of images without prompts, one for one: nothing says which are the same."""
        rows = split_into_rows(images, 1 if is_image_source(images) else len(images), is_image_source, "image")
        pixels = UniqueImages()
        numbers = [
            pixels.add(image, f"image {i} of sample {row}")
            for row, found in enumerate(rows)
            for i, image in enumerate(found)
        ]
        return self._pixel_values([pixels.images[number] for number in numbers], options, return_tensors)

    def _pixel_values(self, images: list[Any], options: dict[str, Any], return_tensors: Any) -> Any:
        return self.image_processor(images, **{**options, "return_tensors": return_tensors})["pixel_values"]

    def _text_inputs(
        self, prompts: list[Prompt], answers: str | Sequence[str] | None, options: dict[str, Any]
    ) -> dict[str, list]:
        """input_ids, attention_mask, labels and offset_mapping as lists of rows, padded as asked for."""
        with_offsets = bool(options.get("return_offsets_mapping"))
        encoded = self.tokenizer(
            [prompt.text for prompt in prompts],
            add_special_tokens=options.get("add_special_tokens") is not False,
            return_attention_mask=False,
            return_offsets_mapping=with_offsets,
            verbose=False,
        )
        positions = self._truncated(prompts, encoded["input_ids"], options)
        ids = [
            [self.image_token_id if position == IMAGE_POSITION else tokens[position] for position in row]
            for row, tokens in zip(positions, encoded["input_ids"], strict=True)
        ]
        labels = None
        if answers is not None:
            learned = self._learned_tokens(_texts(answers, len(prompts), "answers"), options.get("answer_max_length"))
            if self.is_encoder_decoder:
                labels = learned
            else:
                labels = [[IGNORED] * len(row) + answer for row, answer in zip(ids, learned, strict=True)]
                ids = [row + answer for row, answer in zip(ids, learned, strict=True)]
        self._check_context(prompts, ids, options)

        side = options.get("padding_side") or ("right" if self.is_encoder_decoder or answers is not None else "left")
        length = self._row_length(ids, labels, options)
        pad_id = self.tokenizer.pad_token_id
        pad_id = (self.tokenizer.eos_token_id or 0) if pad_id is None else pad_id  # masked, so any id will do
        data = {
            "input_ids": [pad_row(row, length, pad_id, side) for row in ids],
            "attention_mask": [pad_row([1] * len(row), length, 0, side) for row in ids],
        }
        if with_offsets:
            offsets = [
                _offsets(row, spans, prompt.removed) + [(0, 0)] * (len(tokens) - len(row))
                for row, spans, prompt, tokens in zip(positions, encoded["offset_mapping"], prompts, ids, strict=True)
            ]
            data["offset_mapping"] = [pad_row(row, length, (0, 0), side) for row in offsets]
        if labels is not None:
            if self.is_encoder_decoder:
                side, length = "right", padded_length(labels, options.get("pad_to_multiple_of"))
            data["labels"] = [pad_row(row, length, IGNORED, side) for row in labels]
        return data

    def _truncated(self, prompts: list[Prompt], encoded: list[list[int]], options: dict[str, Any]) -> list[list[int]]:
        """Token positions of every row, without the beginning of text that is too long."""
        max_length, whole_row = self._max_length(options)
        rows, prefix = [], None
        for number, (prompt, tokens) in enumerate(zip(prompts, encoded, strict=True)):
            row = token_positions(prompt, tokens, self.image_token_id, self.num_query_tokens)
            if max_length is not None and options.get("truncation") not in (False, "do_not_truncate"):
                image_tokens = len(prompt.images) * self.num_query_tokens
                max_text = max_length - image_tokens if whole_row else max_length
                if max_text < 1:
                    raise ValueError(
                        f"sample {number} has {image_tokens} image tokens, which leaves no room for text in a row of "
                        f"max_length={max_length}"
                    )
                if len(tokens) - len(prompt.inline) > max_text:
                    prefix = self._prefix_length(options) if prefix is None else prefix
                    row = drop_beginning(row, max_text, prefix)
            rows.append(row)
        return rows

    def _max_length(self, options: dict[str, Any]) -> tuple[int | None, bool]:
        """(limit, whether image tokens count); the tokenizer's own limit where the call implies one but gives none."""
        max_length = options.get("max_length")
        whole_row = options.get("padding") == "max_length"
        if max_length is None and (whole_row or options.get("truncation") not in (None, False, "do_not_truncate")):
            if self.tokenizer.model_max_length < UNLIMITED:
                return self.tokenizer.model_max_length, True
            if whole_row:
                raise ValueError('padding="max_length" needs max_length: this tokenizer has no limit of its own')
        return max_length, whole_row

    def _prefix_length(self, options: dict[str, Any]) -> int:
        """How many special tokens the tokenizer puts in front of a text."""
        if options.get("add_special_tokens") is False:
            return 0
        mask = self.tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
        return mask.index(0)

    def _learned_tokens(self, answers: list[str], max_length: int | None) -> list[list[int]]:
        """Tokens of answers, cut on the right, each with the end token."""
        end = self.tokenizer.eos_token_id
        if end is None:
            raise ValueError("the tokenizer has no end token (eos_token): a model cannot learn to end its answers")
        keep = None if max_length is None else max_length - 1
        return [[*tokens[:keep], end] for tokens in self.encode_answers(answers)]

    def _check_context(self, prompts: list[Prompt], rows: list[list[int]], options: dict[str, Any]) -> None:
        """T5's limit is the length it was trained with; a decoder-only model's is what its positions allow."""
        limit = self.tokenizer.model_max_length
        if self.is_encoder_decoder or options.get("max_length") is not None or limit >= UNLIMITED:
            return
        for number, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
            if len(row) > limit:
                raise ValueError(
                    f"sample {number} is {len(row)} tokens long, {len(prompt.images) * self.num_query_tokens} of them "
                    f"image tokens, but the language model takes {limit}: pass max_length= to keep the prompt's end"
                )

    def _row_length(self, ids: list[list[int]], labels: list[list[int]] | None, options: dict[str, Any]) -> int:
        """Length to pad rows to; 0 leaves them as they are."""
        padding, multiple = options.get("padding"), options.get("pad_to_multiple_of")
        if padding in (None, False, "do_not_pad"):
            return 0
        length = self._max_length(options)[0] if padding == "max_length" else None
        if length is None:
            return padded_length(ids, multiple)
        if labels is not None and not self.is_encoder_decoder:
            length += options.get("answer_max_length") or 0
        for number, row in enumerate(ids):
            if len(row) > length:
                raise ValueError(f"sample {number} is {len(row)} tokens long and does not fit into a row of {length}")
        return padded_length([range(length)], multiple)

    def _qformer_inputs(self, texts: list[str], options: dict[str, Any]) -> dict[str, list[list[int]]]:
        """[CLS] text [SEP], padded on the right and cut on the left, whatever the language model's side asks for."""
        tokenizer, limit = self.qformer_tokenizer, self.qformer_max_length
        encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        if any(len(tokens) > limit - 2 for tokens in encoded):
            logger.warning_once(
                f"A text is longer than the {limit} tokens that the Q-Former reads: its beginning is left out there."
            )
        rows = [
            [tokenizer.cls_token_id, *tokens[max(0, len(tokens) - limit + 2) :], tokenizer.sep_token_id]
            for tokens in encoded
        ]
        padding = options.get("padding")
        length = 0
        if padding == "max_length":
            length = limit
        elif padding not in (None, False, "do_not_pad"):
            length = min(limit, padded_length(rows, options.get("pad_to_multiple_of")))
        return {
            "qformer_input_ids": [pad_row(row, length, tokenizer.pad_token_id or 0, "right") for row in rows],
            "qformer_attention_mask": [pad_row([1] * len(row), length, 0, "right") for row in rows],
        }


def _is_trl_with_whole_texts(options: dict[str, Any]) -> bool:
    """Whether the options are those of TRL's collator for texts that hold prompt and answer."""
    return options.get("padding_side") == "right" and options.get("add_special_tokens") is False


def _texts(text: str | Sequence[str], count: int | None = None, kind: str = "prompts") -> list[str]:
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, (list, tuple)) or not all(isinstance(entry, str) for entry in texts):
        raise ValueError(f"{kind} must be a string or a list of strings")
    if not texts:
        raise ValueError(f"the list of {kind} is empty")
    if count is not None and len(texts) != count:
        raise ValueError(f"{len(texts)} {kind} for {count} prompts: pass one per prompt")
    return list(texts)


def _offsets(row: list[int], spans: list[tuple[int, int]], removed: int) -> list[tuple[int, int]]:
    """Character spans in the prompt as it was given; (0, 0) for image and special tokens."""
    return [
        (0, 0) if position == IMAGE_POSITION or spans[position][0] == spans[position][1]
        else (spans[position][0] + removed, spans[position][1] + removed)
        for position in row
    ]  # fmt: skip


def _image_token(tokenizer: PreTrainedTokenizerBase) -> tuple[str, int]:
    """The tokenizer's image token and its id; `<image>` is added if there is none."""
    token = getattr(tokenizer, "image_token", None)
    if token is None:
        token = "<image>"
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=True)], special_tokens=True)
    token = str(token)
    image_token_id = tokenizer.convert_tokens_to_ids(token)
    if not isinstance(image_token_id, int) or image_token_id == tokenizer.unk_token_id:
        raise ValueError(f"the tokenizer ({type(tokenizer).__name__}) does not know the image token {token}")
    return token, image_token_id


def _ends_texts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether texts get an end token, as an encoder's do; a decoder-only model would take it for the end of its answer.

    Official processor folders do not say what kind of language model they are for. Nor does the tokenizer's class:
    AutoTokenizer gives `Salesforce/instructblip-flan-t5-*` a generic one.
    """
    return tokenizer.eos_token_id is not None and tokenizer("a")["input_ids"][-1:] == [tokenizer.eos_token_id]
