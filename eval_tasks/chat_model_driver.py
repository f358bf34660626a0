"""Other models of `AutoModelForImageTextToText` behind the interface of `driver.py`: BLIP-2, LLaVA, Qwen-VL, ..."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, LogitsProcessor, LogitsProcessorList, RepetitionPenaltyLogitsProcessor

from instructblip.eval_tasks.chat_model_scoring import is_encoder_decoder, language_model_of, score_candidates
from instructblip.eval_tasks.driver import Prompt

Batch = list[tuple[list[int], BatchFeature]]  # (places of prompts in the batch, their inputs)


class ChatModelDriver:
    """A vision-language model of transformers and its processor.

    A prompt becomes the user's turn of the processor's chat template, pictures first; `Prompt.history` becomes earlier
    turns. Without a chat template the model gets the plain prompt, after one placeholder per picture where its
    processor wants them in the text.

    Args:
        model: on its device, in eval mode.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model
        self.processor = processor
        self.has_chat_template = getattr(processor, "chat_template", None) is not None
        self.prompt_form = "chat template" if self.has_chat_template else "plain prompt"
        # BLIP-2 and InstructBLIP: the processor puts placeholders before the text, for one picture a prompt.
        self._one_picture = hasattr(processor, "num_query_tokens")
        if self._one_picture and processor.num_query_tokens is None:
            raise ValueError(
                f"{type(processor).__name__} has num_query_tokens=None, so that the model would not see pictures: set "
                f"it to {model.config.num_query_tokens}"
            )
        self._answer_context: tuple[str, str] | None = None
        self._tokenizing = threading.Lock()  # a tokenizer that pads in one thread must not decode in another

    @property
    def is_encoder_decoder(self) -> bool:
        return is_encoder_decoder(self.model)

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Whether the model can take these prompts.

        Raises:
            ValueError: it takes one picture a prompt, and one has another number.
        """
        for prompt in prompts:
            if self._one_picture and (count := len(prompt.image_keys)) != 1:
                raise ValueError(
                    f"{type(self.model).__name__} takes one picture a prompt, and {prompt.text!r} has "
                    f"{count or 'none'}: leave out tasks with such prompts, as those on videos are"
                )

    def inputs(self, prompts: Sequence[Prompt], images: Mapping[Hashable, Image.Image]) -> Batch:
        """Inputs of prompts with equally many pictures; processors do not take others together.

        Raises:
            ValueError: see `check`.
        """
        self.check(prompts)
        places: dict[int, list[int]] = {}
        for place, prompt in enumerate(prompts):
            places.setdefault(len(prompt.image_keys), []).append(place)
        with self._tokenizing:
            return [(group, self._features([prompts[place] for place in group], images)) for group in places.values()]

    def _features(self, prompts: Sequence[Prompt], images: Mapping[Hashable, Image.Image]) -> BatchFeature:
        texts = [self._text(prompt) for prompt in prompts]
        pictures: list[Any] = [[images[key] for key in prompt.image_keys] for prompt in prompts]
        if self._one_picture:
            pictures = [picture for row in pictures for picture in row]
        text_options = {"padding": False, "truncation": False}
        start = self.processor.tokenizer.bos_token
        if self.has_chat_template and start is not None and texts[0].startswith(start):
            text_options["add_special_tokens"] = False  # the template has them
        features = self.processor(
            images=pictures if any(pictures) else None,
            text=texts,
            text_kwargs=text_options,
            images_kwargs={"return_tensors": "pt"},
        )
        return self._padded(features)

    def _text(self, prompt: Prompt) -> str:
        """A prompt as the processor takes it."""
        if not self.has_chat_template:
            placeholder = getattr(self.processor, "image_token", None)
            pictures = "" if self._one_picture or placeholder is None else placeholder * len(prompt.references)
            turns = [f"{question} {answer}" for question, answer in prompt.history]
            return pictures + "\n".join([*turns, prompt.text])
        messages = []
        for question, answer in prompt.history:
            messages += [_turn("user", question), _turn("assistant", answer)]
        messages.append(_turn("user", prompt.text))
        messages[0]["content"] = [{"type": "image"} for _ in prompt.references] + messages[0]["content"]
        return self.processor.apply_chat_template(messages, add_generation_prompt=True)

    def _padded(self, features: Mapping[str, Any]) -> BatchFeature:
        """Tensors of rows of tokens.

        Padded here because processors put BLIP-2's placeholders before the padding, and pad InstructBLIP's Q-Former,
        whose positions are absolute, on the language model's side.
        """
        side = "right" if self.is_encoder_decoder else "left"  # generation continues from the last column
        tokenizer = self.processor.tokenizer
        lengths = [len(row) for row in features["input_ids"]]
        tensors: dict[str, torch.Tensor] = {}
        for name, value in features.items():
            if name.startswith("qformer_"):
                rows_side, pad = "right", 0
            elif not isinstance(value, torch.Tensor) and [np.size(row) for row in value] == lengths:
                rows_side, pad = side, 0
                if name == "input_ids":
                    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
            else:
                tensors[name] = torch.as_tensor(np.asarray(value)) if not isinstance(value, torch.Tensor) else value
                continue
            rows = [torch.as_tensor(row) for row in value]
            tensors[name] = pad_sequence(rows, batch_first=True, padding_value=pad, padding_side=rows_side)
        if "attention_mask" not in tensors:
            ones = [torch.ones(length, dtype=torch.long) for length in lengths]
            tensors["attention_mask"] = pad_sequence(ones, batch_first=True, padding_side=side)
        return BatchFeature(tensors)

    @torch.inference_mode()
    def generate(self, inputs: Batch, settings: dict[str, Any]) -> list[str]:
        """New text, one a prompt.

        A `repetition_penalty` among `settings` is for repeated new tokens, not for those of the prompt, as with our
        model.
        """
        answers: dict[int, str] = {}
        settings = dict(settings)
        penalty = None if self.is_encoder_decoder else settings.pop("repetition_penalty", None)
        if penalty is not None:
            settings["repetition_penalty"] = 1.0  # instead of the model's own
        for places, features in inputs:
            new_tokens = NewTokens(penalty)
            features = features.to(self.model.device, dtype=self.model.dtype)
            tokens = self.model.generate(**features, logits_processor=LogitsProcessorList([new_tokens]), **settings)
            with self._tokenizing:
                texts = self.processor.batch_decode(tokens[:, new_tokens.start :], skip_special_tokens=True)
            answers.update(zip(places, texts, strict=True))
        return [answers[place] for place in range(len(answers))]

    def encode_candidates(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of candidates as the assistant's turn begins with them."""
        with self._tokenizing:
            tokenizer = self.processor.tokenizer
            alone = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
            if self.is_encoder_decoder:
                return tokenizer(list(texts), **alone)["input_ids"]
            prompt, lead = self._before_answers()
            before = tokenizer(prompt, **alone)["input_ids"]
            together = tokenizer([f"{prompt}{lead}{text}" for text in texts], **alone)["input_ids"]
            ids = [row[len(before) :] if row[: len(before)] == before else None for row in together]
            if None in ids:  # the prompt's last token grows with the answer, which it does not while generating
                ids = tokenizer(list(texts), **alone)["input_ids"]
            return ids

    def _before_answers(self) -> tuple[str, str]:
        """A prompt, and what the template puts between a prompt and the assistant's answer (a space or nothing)."""
        if not self.has_chat_template:
            return "Answer:", " "
        if self._answer_context is None:
            question, answer = _turn("user", "a"), "answer"
            prompt = self.processor.apply_chat_template([question], add_generation_prompt=True)
            whole = self.processor.apply_chat_template([question, _turn("assistant", answer)])
            place = whole.find(answer, len(prompt)) if whole.startswith(prompt) else -1
            self._answer_context = prompt, whole[len(prompt) : place] if place >= 0 else ""
        return self._answer_context

    @torch.inference_mode()
    def score(
        self,
        inputs: Batch,
        candidates: list[list[list[int]]],
        add_end_token: bool | None,
        length_normalize: bool,
    ) -> np.ndarray:
        """Log-likelihoods of candidates as the assistant's turn; see `Driver.score`.

        Raises:
            ValueError: a candidate has no tokens, or there is no end token to add.
        """
        for row in candidates:
            if not all(row):
                raise ValueError("a candidate has no tokens: candidates must not be empty")
        end = self._end_token() if (self.is_encoder_decoder if add_end_token is None else add_end_token) else []
        scores = np.full((len(candidates), max(map(len, candidates))), -np.inf, dtype=np.float32)
        for places, features in inputs:
            rows = [[(*ids, *end) for ids in candidates[place]] for place in places]
            features = features.to(self.model.device, dtype=self.model.dtype)
            for place, row, of_row in zip(places, rows, score_candidates(self.model, features, rows), strict=True):
                lengths = [len(ids) for ids in row] if length_normalize else 1
                scores[place, : len(row)] = of_row.cpu().numpy() / np.asarray(lengths, dtype=np.float32)
        return scores

    def _end_token(self) -> list[int]:
        end = language_model_of(self.model).generation_config.eos_token_id
        end = self.processor.tokenizer.eos_token_id if end is None else end
        if end is None:
            raise ValueError("add_end_token needs an end token: set generation_config.eos_token_id")
        return [end[0] if isinstance(end, (list, tuple)) else end]


class NewTokens(LogitsProcessor):
    """Notes where new tokens begin: some models return the prompt before them and some do not.

    Args:
        repetition_penalty: of new tokens that were generated before.
    """

    def __init__(self, repetition_penalty: float | None = None) -> None:
        self.start = 0
        self._repetition_penalty = repetition_penalty
        self._penalty: RepetitionPenaltyLogitsProcessor | None = None
        self._started = False

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if not self._started:
            self.start, self._started = input_ids.shape[1], True
            if self._repetition_penalty not in (None, 1.0):
                penalty = float(self._repetition_penalty)
                self._penalty = RepetitionPenaltyLogitsProcessor(penalty, prompt_ignore_length=self.start)
        return scores if self._penalty is None else self._penalty(input_ids, scores)


def _turn(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}
