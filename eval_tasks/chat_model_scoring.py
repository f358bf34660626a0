"""Log-likelihoods of candidate answers under any vision-language model of transformers.

A decoder-only model runs prompt and pictures once and keeps their keys and values; candidates then run after copies of
them. An encoder-decoder of BLIP-2's build runs its encoder once. What fits neither runs whole, once per candidate.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_outputs import BaseModelOutput

Candidates = Sequence[Sequence[tuple[int, ...]]]  # per prompt, per candidate: token ids

MAX_ROWS = 64  # candidates of one forward
MAX_POSITIONS = 16384  # prompt and candidate tokens of one forward, which bounds the copies of keys and values


def is_encoder_decoder(model: Any) -> bool:
    return bool(getattr(language_model_of(model).config, "is_encoder_decoder", False))


def language_model_of(model: Any) -> Any:
    """The language model that BLIP-2 and InstructBLIP hold whole; else the model itself, which runs as one."""
    inner = getattr(model, "language_model", None)
    return model if inner is None or inner.get_output_embeddings() is None else inner


def score_candidates(model: Any, inputs: Mapping[str, torch.Tensor], candidates: Candidates) -> list[torch.Tensor]:
    """Score candidates as continuations of their prompts.

    Args:
        inputs: of the model's forward, padded on the left for decoder-only models and on the right for others.

    Returns:
        Per prompt (candidates,) log-likelihoods in nats, float32.
    """
    if is_encoder_decoder(model):
        if language_model_of(model) is model:
            return score_after_whole_prompts(model, inputs, candidates)
        return _score_after_encoder(model, inputs, candidates)
    positions = _positions(model, inputs)
    outputs = model(**inputs, position_ids=positions, use_cache=True, **_last_logits(model, 1))
    cache = _inner(outputs).get("past_key_values")
    if not isinstance(cache, DynamicCache) or not all(
        type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers
    ):
        return score_after_whole_prompts(model, inputs, candidates)
    first = outputs.logits[:, -1].float().log_softmax(dim=-1)  # (prompts, vocabulary)
    del outputs
    return _score_after_cache(model, cache, inputs["attention_mask"], positions, first, candidates)


def _score_after_cache(
    model: Any,
    cache: DynamicCache,
    mask: torch.Tensor,
    positions: torch.Tensor,
    first: torch.Tensor,
    candidates: Candidates,
) -> list[torch.Tensor]:
    """Run candidates after copies of their prompts' keys and values.

    Args:
        mask: (prompts, width), padded on the left.
        positions: (..., prompts, width)
        first: (prompts, vocabulary) log-probabilities of a candidate's first token.
    """
    scores = [first[row, [ids[0] for ids in of_row]] for row, of_row in enumerate(candidates)]
    # A candidate's last token is never an input, so candidates that differ in it alone run together.
    groups: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for row, of_row in enumerate(candidates):
        for number, ids in enumerate(of_row):
            if len(ids) > 1:
                groups.setdefault((row, ids[:-1]), []).append(number)
    todo = sorted(groups, key=lambda group: -len(group[1]))
    step = language_model_of(model)
    while todo:
        longest = len(todo[0][1])
        size = min(MAX_ROWS, max(1, MAX_POSITIONS // (mask.shape[1] + longest)))
        chunk, todo = todo[:size], todo[size:]
        rows = torch.tensor([row for row, _ in chunk], device=mask.device)
        tokens = pad_sequence([torch.tensor(ids) for _, ids in chunk], batch_first=True).to(mask.device)
        # The prompt's last token is text, whose position is the same in every dimension of M-RoPE.
        following = positions[..., rows, -1:] + 1 + torch.arange(longest, device=mask.device)
        logits = step(
            input_ids=tokens,
            attention_mask=torch.cat([mask[rows], torch.ones_like(tokens, dtype=mask.dtype)], dim=1),
            position_ids=following,
            past_key_values=_rows_of(cache, rows),
            use_cache=True,
        ).logits.float()
        normalizer = logits.logsumexp(dim=-1)
        for place, (row, ids) in enumerate(chunk):
            steps = torch.arange(len(ids), device=mask.device)
            after = torch.tensor([candidates[row][number][1:] for number in groups[row, ids]], device=mask.device)
            sums = (logits[place, steps, after] - normalizer[place, steps]).sum(dim=-1)  # (candidates of this group,)
            scores[row][groups[row, ids]] += sums
    return scores


def _score_after_encoder(model: Any, inputs: Mapping[str, torch.Tensor], candidates: Candidates) -> list[torch.Tensor]:
    """Run pictures and encoder once, and the decoder per candidate."""
    language_model, mask = language_model_of(model), inputs["attention_mask"]
    start = _decoder_start(model)
    begun = torch.full((len(mask), 1), start, device=mask.device)
    encoded = _inner(model(**inputs, decoder_input_ids=begun, use_cache=False)).encoder_last_hidden_state
    scores = [torch.zeros(len(of_row), device=mask.device) for of_row in candidates]
    todo = [(row, number) for row, of_row in enumerate(candidates) for number in range(len(of_row))]
    todo.sort(key=lambda pair: -len(candidates[pair[0]][pair[1]]))
    while todo:
        size = min(MAX_ROWS, max(1, MAX_POSITIONS // (mask.shape[1] + len(candidates[todo[0][0]][todo[0][1]]))))
        chunk, todo = todo[:size], todo[size:]
        rows = torch.tensor([row for row, _ in chunk], device=mask.device)
        ids = [torch.tensor(candidates[row][number], device=mask.device) for row, number in chunk]
        logits = language_model(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded[rows]),
            attention_mask=mask[rows],
            decoder_input_ids=_shifted(ids, start),
            use_cache=False,
        ).logits
        for (row, number), score in zip(chunk, _sums(logits, ids), strict=True):
            scores[row][number] = score
    return scores


def score_after_whole_prompts(
    model: Any, inputs: Mapping[str, torch.Tensor], candidates: Candidates
) -> list[torch.Tensor]:
    """Run everything once per candidate: for each number, that candidate of all prompts together."""
    mask = inputs["attention_mask"]
    scores = [torch.zeros(len(of_row), device=mask.device) for of_row in candidates]
    for number in range(max(map(len, candidates))):
        # A prompt with fewer candidates runs its first again, as pictures cannot be told apart by prompt.
        chosen = [of_row[number if number < len(of_row) else 0] for of_row in candidates]
        ids = [torch.tensor(one, device=mask.device) for one in chosen]
        longest = max(map(len, chosen))
        if is_encoder_decoder(model):
            logits = model(**inputs, decoder_input_ids=_shifted(ids, _decoder_start(model)), use_cache=False).logits
        else:
            whole = _appended(inputs, pad_sequence(ids, batch_first=True))
            positions = _positions(model, whole)
            options = {"position_ids": positions, "use_cache": False, **_last_logits(model, longest + 1)}
            logits = model(**whole, **options).logits[:, -longest - 1 : -1]
        for row, score in enumerate(_sums(logits, ids)):
            if number < len(candidates[row]):
                scores[row][number] = score
    return scores


def _appended(inputs: Mapping[str, torch.Tensor], tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Inputs with tokens after the prompts."""
    whole = dict(inputs)
    for name in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            new = tokens if name == "input_ids" else torch.full_like(tokens, int(name == "attention_mask"))
            whole[name] = torch.cat([inputs[name], new.to(inputs[name].dtype)], dim=1)
    return whole


def _positions(model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Positions (..., prompts, width) as the model's `generate` has them; Qwen-VL's have a dimension more."""
    return model._prepare_position_ids_for_generation(inputs["input_ids"], dict(inputs))


def _rows_of(cache: DynamicCache, rows: torch.Tensor) -> DynamicCache:
    """A cache of the given rows, repeated or not; the old one stays as it is."""
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    chosen.batch_select_indices(rows)
    return chosen


def _inner(outputs: Any) -> Any:
    """The language model's outputs, which BLIP-2 and InstructBLIP keep inside their own."""
    return outputs.get("language_model_outputs") or outputs


def _last_logits(model: Any, count: int) -> dict[str, int]:
    """The argument that has logits computed for the last `count` positions only, where there is one."""
    known = "logits_to_keep" in inspect.signature(language_model_of(model).forward).parameters
    return {"logits_to_keep": count} if known else {}


def _decoder_start(model: Any) -> int:
    language_model = language_model_of(model)
    start = language_model.config.decoder_start_token_id
    return language_model.generation_config.decoder_start_token_id if start is None else start


def _shifted(ids: list[torch.Tensor], start: int) -> torch.Tensor:
    """(candidates, longest) decoder inputs: the start token, then all tokens but the last."""
    return pad_sequence([torch.cat([one.new_tensor([start]), one[:-1]]) for one in ids], batch_first=True)


def _sums(logits: torch.Tensor, ids: list[torch.Tensor]) -> list[torch.Tensor]:
    """Sums of the log-probabilities of tokens; the logits (candidates, longest, vocabulary) are those before them."""
    logits = logits.float()
    normalizer = logits.logsumexp(dim=-1)
    steps = [torch.arange(len(one), device=logits.device) for one in ids]
    return [
        (logits[row, step, one] - normalizer[row, step]).sum()
        for row, (step, one) in enumerate(zip(steps, ids, strict=True))
    ]
