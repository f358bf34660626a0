"""Rows that time answering: image to 20 new tokens, greedy and with five beams."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from batches import new_batch
from comparisons import Comparison, ResultsDifferError, Row, contestants
from model_pairs import ModelPair

NEW_TOKENS = 20
PROMPT_TOKENS = 64


def prepare(pair: ModelPair, rows: int, num_beams: int) -> Comparison:
    batch = new_batch(pair.setting, [(PROMPT_TOKENS, 0)] * rows)
    forced: dict[str, Any] = {
        "num_beams": num_beams,
        "do_sample": False,
        "min_new_tokens": NEW_TOKENS,
        "max_new_tokens": NEW_TOKENS,
    }
    peer = partial(pair.peer.generate, **batch.for_peer(), **forced)
    ours = partial(pair.ours.generate, **batch.for_ours(), **forced)
    # A static cache lets transformers compile the decoding step, which it does on a GPU only.
    static = {"cache_implementation": "static"} if pair.setting.device.startswith("cuda") else {}
    tuned = partial(pair.tuned_peer.generate, **batch.for_peer(), **forced, **static)
    return Comparison(
        contestants(peer, tuned, ours),
        partial(check, pair, peer, ours),
    )


def check(pair: ModelPair, peer: Any, ours: Any) -> str:
    expected, found = peer()[:, -NEW_TOKENS:], ours()
    same = int((expected == found).all(dim=1).sum())
    if same < len(found) and pair.setting.dtype == torch.float32:
        raise ResultsDifferError(f"{same} of {len(found)} rows have the same tokens")
    return f"{same} of {len(found)} rows have the same tokens"


ROWS = [
    Row(
        f"{'greedy' if num_beams == 1 else 'beam5'}-{rows}",
        f"{'Greedy' if num_beams == 1 else 'Beam 5'}, {NEW_TOKENS} new tokens, batch {rows}",
        apart=False,
        training=False,
        prepare=partial(prepare, rows=rows, num_beams=num_beams),
    )
    for num_beams in (1, 5)
    for rows in (1, 8)
]
