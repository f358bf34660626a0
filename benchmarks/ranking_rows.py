"""Rows that time ranking: log-likelihoods of 16, 100 or 1000 candidate answers to one question about one image.

The peer has no call for this. As documented, each candidate is a row of a plain forward, image included, in batches.
Tuned, it is what LAVIS does, and a little more: vision tower and Q-Former (and T5's encoder) once, logits of the
candidates' columns only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from batches import Batch, candidate_answers, new_batch
from comparisons import Comparison, ResultsDifferError, Row, tolerance
from generation_rows import PROMPT_TOKENS
from model_pairs import ModelPair
from timing import Contestant
from transformers.modeling_outputs import BaseModelOutput

BATCH = 32  # candidates of one forward of the peer
SAMPLE = 64  # of 1000 candidates, the peer scores this many; its time is scaled


def prepare(pair: ModelPair, kind: str) -> Comparison:
    batch = new_batch(pair.setting, [(PROMPT_TOKENS, 0)])
    answers = candidate_answers(pair.setting, kind)
    by_length = sorted(range(len(answers)), key=lambda number: len(answers[number]))  # so that batches pad little
    count = min(len(answers), SAMPLE) if len(answers) > 100 else len(answers)
    # Evenly spread, so that every length has its share.
    places = [int((place + 0.5) * len(answers) / count) for place in range(count)]
    encoder_decoder = pair.ours.config.is_encoder_decoder
    end = [pair.ours.config.text_config.eos_token_id] if encoder_decoder else []
    every = [answers[number] + end for number in by_length]
    batches = _batches([every[place] for place in places])

    full = _FullForward(pair, batch)
    once = _EncoderDecoderOnce(pair, batch) if encoder_decoder else _DecoderOnce(pair, batch)
    peer = partial(_score_all, full.score, batches)
    tuned = partial(_score_all, once.score, batches)
    ours = partial(pair.ours.score_candidates, answers, **batch.for_ours())
    scale = len(answers) / count
    named = [
        Contestant("peer", [(peer, scale)]),
        Contestant("peer again", [(peer, scale)]),
        Contestant("peer tuned", [(once.begin, 1.0), (tuned, scale)]),
        Contestant("ours", [(ours, 1.0)]),
    ]
    note = "" if scale == 1 else f"peer timed on {count} candidates and scaled to {len(answers)}"
    tuned_on_all = partial(_score_all, once.score, _batches(every))
    return Comparison(named, partial(check, pair, peer, once, tuned_on_all, ours, by_length, places), note)


def _batches(candidates: list[list[int]]) -> list[list[list[int]]]:
    return [candidates[start : start + BATCH] for start in range(0, len(candidates), BATCH)]


@torch.no_grad()
def _score_all(score: Callable[[list[list[int]]], torch.Tensor], batches: list[list[list[int]]]) -> torch.Tensor:
    return torch.cat([score(candidates) for candidates in batches])


def check(
    pair: ModelPair,
    peer: Callable,
    once: Any,
    tuned_on_all: Callable,
    ours: Callable,
    by_length: list[int],
    places: list[int],
) -> str:
    """Scores agree, and so does the order of all pairs of candidates that are further apart than rounding.

    Args:
        by_length: all candidates in the order in which the tuned peer scores them.
        places: which of these the peer scores.
    """
    once.begin()
    expected, tuned, found = peer().double(), tuned_on_all().double(), ours()[0, by_length].double()
    sampled = tuned[places], found[places]
    worst = max(*(_difference(pair, expected, scores) for scores in sampled), _difference(pair, tuned, found))
    return f"scores {worst:.0e} nats, same order"


def _difference(pair: ModelPair, expected: torch.Tensor, found: torch.Tensor) -> float:
    """The largest difference between two (candidates,) scores, if it is rounding and their order is the same."""
    allowed = tolerance(pair) * float(expected.abs().max())
    difference = float((found - expected).abs().max())
    apart = (expected[:, None] - expected[None]) > 2 * allowed
    if difference > allowed or ((found[:, None] - found[None])[apart] <= 0).any():
        raise ResultsDifferError(f"candidate scores differ by {difference:.1e} nats")
    return difference


def _pad(candidates: list[list[int]], device: str) -> torch.Tensor:
    """(candidates, longest) ids, -100 after each candidate."""
    rows = [torch.tensor(ids) for ids in candidates]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100).to(device)


def _sum_log_probabilities(logits: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """(candidates,) sums over (candidates, longest, vocabulary) logits, one for each token of the answers."""
    scores = logits.float().log_softmax(dim=-1).gather(2, answers.clamp(min=0)[..., None])[..., 0]
    return scores.masked_fill(answers == -100, 0.0).sum(dim=1)


class _FullForward:
    """One row of a whole forward per candidate."""

    def __init__(self, pair: ModelPair, batch: Batch):
        self.pair, self.inputs = pair, batch.for_peer()

    def score(self, candidates: list[list[int]]) -> torch.Tensor:
        answers = _pad(candidates, self.pair.setting.device)
        inputs = {name: value.expand(len(candidates), *value.shape[1:]) for name, value in self.inputs.items()}
        if self.pair.ours.config.is_encoder_decoder:
            logits = self.pair.peer(**inputs, decoder_input_ids=_shifted(answers), use_cache=False).logits
            return _sum_log_probabilities(logits, answers)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], answers.clamp(min=0)], dim=1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], (answers != -100).long()], dim=1)
        logits = self.pair.peer(**inputs, use_cache=False).logits
        return _sum_log_probabilities(logits[:, -answers.shape[1] - 1 : -1], answers)


def _shifted(answers: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(answers.clamp(min=0)[:, :-1], (1, 0))  # T5 starts with its pad token, 0


class _DecoderOnce:
    """Vision tower and Q-Former once, then the language model on image, prompt and candidate."""

    def __init__(self, pair: ModelPair, batch: Batch):
        self.pair, self.inputs = pair, batch.for_peer()

    @torch.no_grad()
    def begin(self) -> None:
        """What is run once, however many candidates there are: the prompt's embeddings."""
        peer, inputs = self.pair.tuned_peer, self.inputs
        names = ("pixel_values", "qformer_input_ids", "qformer_attention_mask")
        features = peer.get_image_features(**{name: inputs[name] for name in names}).pooler_output
        embeds = peer.get_input_embeddings()(inputs["input_ids"])
        places = peer.get_placeholder_mask(inputs["input_ids"], inputs_embeds=embeds)
        self.embeds = embeds.masked_scatter(places, features.to(embeds.dtype))

    def score(self, candidates: list[list[int]]) -> torch.Tensor:
        answers = _pad(candidates, self.pair.setting.device)
        embedded = self.pair.tuned_peer.get_input_embeddings()(answers.clamp(min=0))
        prompt = self.embeds.expand(len(candidates), -1, -1)
        mask = torch.cat([answers.new_ones(prompt.shape[:2]), (answers != -100).long()], dim=1)
        logits = self.pair.tuned_peer.language_model(
            inputs_embeds=torch.cat([prompt, embedded], dim=1),
            attention_mask=mask,
            logits_to_keep=answers.shape[1] + 1,
            use_cache=False,
        ).logits
        return _sum_log_probabilities(logits[:, :-1], answers)


class _EncoderDecoderOnce(_DecoderOnce):
    """Vision tower, Q-Former and encoder once, then the decoder on each candidate."""

    @torch.no_grad()
    def begin(self) -> None:
        super().begin()
        encoder = self.pair.tuned_peer.language_model.get_encoder()
        self.encoded = encoder(
            inputs_embeds=self.embeds, attention_mask=self.inputs["attention_mask"]
        ).last_hidden_state

    def score(self, candidates: list[list[int]]) -> torch.Tensor:
        answers = _pad(candidates, self.pair.setting.device)
        logits = self.pair.tuned_peer.language_model(
            encoder_outputs=BaseModelOutput(last_hidden_state=self.encoded.expand(len(candidates), -1, -1)),
            attention_mask=self.inputs["attention_mask"].expand(len(candidates), -1),
            decoder_input_ids=_shifted(answers),
            use_cache=False,
        ).logits
        return _sum_log_probabilities(logits, answers)


TITLES = {"16": "16 candidates", "100": "100 candidates with shared beginnings", "1000": "1000-answer vocabulary"}
ROWS = [
    Row(f"rank-{kind}", f"Ranking, {title}", apart=False, training=False, prepare=partial(prepare, kind=kind))
    for kind, title in TITLES.items()
]
