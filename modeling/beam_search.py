"""Deterministic beam search over prompts that the beams of a row share.

It returns the ids of transformers' own beam search and runs as the `custom_generate` of transformers' `generate`, which
keeps preparing arguments, logits processors and stopping criteria. Two things are less work: the prompt is run once per
row with its last token (or an encoder-decoder's start token), which transformers' search runs once per beam; and a step
calls the language model with nothing but the new tokens, a mask that all beams of a row share, and the cache.
benchmarks/README.md has what that is worth.

`GenerationAndRankingMixin.generate` uses it for plain beam search only. What asks for more (sampling, scores or other
outputs, streamers, stop strings, time limits, guidance, models that several processes run in step) goes to
transformers' own search.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.cache_utils import Cache

from .packing import positions_from_mask
from .shared_prefix import share_prompt, share_source

NEVER = -1.0e9  # the score of what must not be chosen, as in transformers


class BeamSteps(Protocol):
    """A language model that has read the prompts: next-token logits, of each row first and of each beam then."""

    cache: Cache

    def first(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(rows, vocabulary) logits from `input_ids` (rows * beams, started), equal for the beams of a row."""

    def next(self, tokens: torch.Tensor) -> torch.Tensor:
        """(rows * beams, vocabulary) logits after `tokens` (rows * beams, 1)."""


class DecoderSteps:
    """Of a decoder-only language model, whose prompts are embeddings padded on the left."""

    def __init__(self, language_model: nn.Module, embeds: torch.Tensor, mask: torch.Tensor, num_beams: int):
        """`embeds` (rows, prompt, hidden) and `mask` (rows, prompt) are run here, once per row."""
        self.language_model = language_model
        prefill = language_model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions_from_mask(mask),
            use_cache=True,
            logits_to_keep=1,
        )
        self.logits = prefill.logits[:, -1]
        self.cache = share_prompt(prefill.past_key_values)
        self.positions = mask.sum(dim=1, dtype=torch.long).repeat_interleave(num_beams)[:, None]  # of the next token
        self.mask = None if bool(mask.all()) else mask.bool()[:, None, None]  # (rows, 1, 1, prompt)

    def first(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.logits

    def next(self, tokens: torch.Tensor) -> torch.Tensor:
        if self.mask is not None:
            self.mask = nn.functional.pad(self.mask, (0, 1), value=True)
        output = self.language_model(
            input_ids=tokens,
            attention_mask=self.mask,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.positions = self.positions + 1
        return output.logits[:, -1]


class EncoderDecoderSteps:
    """Of a T5, whose encoder has read the prompts."""

    def __init__(self, language_model: nn.Module, encoded: Any, mask: torch.Tensor, num_beams: int):
        """`encoded` is the encoder's output for (rows, source) prompts with `mask`."""
        self.language_model, self.encoded, self.num_beams = language_model, encoded, num_beams
        self.cache = share_source(language_model.get_submodule("decoder"), encoded.last_hidden_state)
        self.mask = None if bool(mask.all()) else mask.bool()[:, None, None]  # (rows, 1, 1, source)

    def first(self, input_ids: torch.Tensor) -> torch.Tensor:
        logits = self.next(input_ids[:: self.num_beams])
        self.cache.self_attention_cache.batch_repeat_interleave(self.num_beams)
        return logits

    def next(self, tokens: torch.Tensor) -> torch.Tensor:
        output = self.language_model(
            decoder_input_ids=tokens,
            encoder_outputs=self.encoded,  # its keys and values are in the cache
            attention_mask=self.mask,
            past_key_values=self.cache,
            use_cache=True,
        )
        return output.logits[:, -1]


def search_beams(
    model: nn.Module,
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    beam_steps: BeamSteps,
    **model_kwargs: Any,
) -> torch.Tensor:
    """Beam search, called by transformers' `generate(custom_generate=search_beams, beam_steps=...)`.

    Args:
        input_ids: (rows * beams, started) ids that the answers begin with; none for a decoder-only language model.
        beam_steps: the language model after the prompts.
        The other arguments are what transformers prepared; `model` and `model_kwargs` are not needed.

    Returns:
        (rows * num_return_sequences, started + longest answer) ids, best first in each row.
    """
    num_beams = generation_config.num_beams
    rows, started = len(input_ids) // num_beams, input_ids.shape[1]
    device = input_ids.device
    ids = input_ids.view(rows, num_beams, started)
    finished = FinishedBeams(ids, generation_config)
    # Every beam of a row starts alike, so only the first may continue.
    scores = torch.full((rows, num_beams), NEVER, device=device)
    scores[:, 0] = 0.0
    row_offsets = torch.arange(rows, device=device)[:, None] * num_beams
    # Enough that as many beams as before are left to continue when the best ones all end.
    ends = generation_config._eos_token_tensor
    num_candidates = max(2, 1 + (0 if ends is None else len(ends))) * num_beams

    logits = beam_steps.first(input_ids).repeat_interleave(num_beams, dim=0)
    while True:
        log_probs = logits.to(device, torch.float32).log_softmax(dim=-1)
        log_probs = logits_processor(ids.flatten(0, 1), log_probs).view(rows, num_beams, -1)
        vocabulary = log_probs.shape[-1]
        candidate_scores, flat = (log_probs + scores[:, :, None]).flatten(1).topk(num_candidates)
        beams, tokens = flat // vocabulary, flat % vocabulary
        candidates = torch.cat([_of_beams(ids, beams), tokens[:, :, None]], dim=-1)  # (rows, candidates, length)
        ended = stopping_criteria(candidates.flatten(0, 1), None).view(rows, num_candidates)

        scores, chosen = (candidate_scores + ended * NEVER).topk(num_beams)
        ids = _of_beams(candidates, chosen)
        finished.add(candidates, candidate_scores, ended)
        if finished.are_final(scores, ids.shape[-1], ended):
            return finished.best()
        beam_steps.cache.reorder_cache((beams.gather(1, chosen) + row_offsets).flatten())
        logits = beam_steps.next(ids[:, :, -1:].flatten(0, 1))


class FinishedBeams:
    """The best ended answers of each row so far, as many as there are beams; at first, placeholders."""

    def __init__(self, ids: torch.Tensor, config: GenerationConfig):
        """`ids` (rows, beams, started) are what every answer begins with."""
        rows, self.num_beams, self.started = ids.shape
        self.config = config
        self.ids = ids
        self.scores = torch.full((rows, self.num_beams), NEVER, device=ids.device)
        self.lengths = torch.zeros_like(self.scores, dtype=torch.long)  # of the answers
        self.ended = torch.zeros_like(self.scores, dtype=torch.bool)
        self.improvable = torch.ones_like(self.ended[:, :1])  # whether a row's running beams may still enter
        pad, ends = config._pad_token_tensor, config._eos_token_tensor
        # As in transformers, where padding with the token 0 means padding with the end token.
        self.fill = -1 if ends is None else int(pad if pad is not None and pad else ends[0])

    def add(self, candidates: torch.Tensor, scores: torch.Tensor, ended: torch.Tensor) -> None:
        """Take in what ended among the best of (rows, candidates, length), as many as there are beams."""
        length = candidates.shape[-1] - self.started
        ended = ended.clone()
        ended[:, self.num_beams :] = False  # the others only wait to continue
        scores = scores / length**self.config.length_penalty + ~self.improvable * NEVER + ~ended * NEVER
        if self.config.early_stopping is True:
            scores = scores + self.ended.all(dim=1, keepdim=True) * NEVER
        known = nn.functional.pad(self.ids, (0, candidates.shape[-1] - self.ids.shape[-1]), value=self.fill)
        self.scores, kept = torch.cat([self.scores, scores], dim=1).topk(self.num_beams)
        self.ids = _of_beams(torch.cat([known, candidates], dim=1), kept)
        self.ended = torch.cat([self.ended, ended], dim=1).gather(1, kept)
        self.lengths = torch.cat([self.lengths, torch.full_like(ended, length, dtype=torch.long)], dim=1).gather(
            1, kept
        )

    def are_final(self, running: torch.Tensor, length: int, ended: torch.Tensor) -> bool:
        """Whether the search is over.

        Args:
            running: (rows, beams) scores of the beams that continue.
            length: of their ids.
            ended: (rows, candidates) what ended in this step.
        """
        config = self.config
        if config.early_stopping == "never" and config.length_penalty > 0.0:
            length = config.max_length  # the length at which a running beam would score best
        reachable = running[:, :1] / (length - self.started) ** config.length_penalty
        to_beat = torch.where(self.ended, self.scores.amin(dim=1, keepdim=True), NEVER)
        self.improvable = self.improvable & (reachable > to_beat).any(dim=1, keepdim=True)
        final = ~self.improvable.any() | ended.all()
        if config.early_stopping is True:
            final = final | self.ended.all()
        return bool(final)

    def best(self) -> torch.Tensor:
        """(rows * num_return_sequences, started + longest answer) ids."""
        returned = self.config.num_return_sequences
        longest = self.started + int(self.lengths[:, :returned].max())
        return self.ids[:, :returned, :longest].flatten(0, 1)


def _of_beams(ids: torch.Tensor, beams: torch.Tensor) -> torch.Tensor:
    """(rows, chosen, length) ids of `beams` (rows, chosen) from `ids` (rows, beams, length)."""
    return ids.gather(1, beams[:, :, None].expand(-1, -1, ids.shape[-1]))
