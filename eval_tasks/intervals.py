"""How sure a score is: percentile bootstrap over documents.

Works on the per-document values that lm-eval logs in its samples, before or after their round trip through JSON.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from instructblip.eval_tasks.cider import cider_per_caption
from instructblip.eval_tasks.metrics import label_and_score

DRAWS_AT_ONCE = 2**20  # 72,821 documents 1,000 times would be 580 MB of indices

Statistic = Callable[[np.ndarray], np.ndarray]  # (resamples, documents) indices -> (resamples,) scores


def metric_interval(
    metric_name: str, values: Sequence[Any], confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Confidence interval of a task's score: the quantiles of the scores of resampled sets of documents.

    Documents are drawn with replacement, as many as there are; those without the score (None) are left out before. What
    is averaged over documents is averaged again; AUROC, precision, recall and F1 are computed anew for each resample,
    AUROC for those that have both labels. CIDEr keeps the document frequencies of the whole corpus, so its interval is
    that of the mean over captions: with those of a resample, where captions repeat, it would be another score.

    Args:
        metric_name: as the task has it. "auroc", "precision", "recall", "f1" and those that begin with "cider" have
            values of their own (see `metrics`), all others numbers.
        values: one of each document.
        seed: equal seeds give equal intervals.

    Returns:
        (low, high), both NaN where no document has the score, or AUROC's documents have one label only.

    Raises:
        ValueError: `confidence` is not between 0 and 1, or the values are not those of this metric.
    """
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(
            f"confidence {confidence} with {resamples} resamples: give one between 0 and 1, and at least one"
        )
    scored = [value for value in values if value is not None]
    if not scored:
        return math.nan, math.nan
    statistic = _statistic(metric_name, scored)
    rng = np.random.default_rng(seed)
    scores = np.concatenate([statistic(draws) for draws in _draws(rng, len(scored), resamples)])
    scores = scores[~np.isnan(scores)]
    if not len(scores):
        return math.nan, math.nan
    low, high = np.quantile(scores, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _draws(rng: np.random.Generator, documents: int, resamples: int) -> Iterator[np.ndarray]:
    """Indices of documents, a few (resamples, documents) at a time; the sizes of the parts do not change the draws."""
    at_once = max(1, DRAWS_AT_ONCE // documents)
    for start in range(0, resamples, at_once):
        yield rng.integers(0, documents, (min(at_once, resamples - start), documents))


def _statistic(metric_name: str, values: Sequence[Any]) -> Statistic:
    try:
        if metric_name.startswith("cider"):
            captions, references = [value["caption"] for value in values], [value["references"] for value in values]
            return _mean(cider_per_caption(captions, references))
        if metric_name == "auroc":
            return _auroc(*label_and_score(values))
        if metric_name in ("precision", "recall", "f1"):
            said, true = np.array(values, dtype=np.int64).reshape(len(values), 2).T == 1
            return {"precision": _precision, "recall": _recall, "f1": _f1}[metric_name](said, true)
        return _mean(np.array(values, dtype=np.float64).reshape(len(values)))
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise ValueError(
            f"{metric_name} has values such as {values[0]!r}, which are not per-document values of it"
        ) from error


def _mean(scores: np.ndarray) -> Statistic:
    return lambda draws: scores[draws].mean(axis=1)


def _auroc(labels: np.ndarray, scores: np.ndarray) -> Statistic:
    """Both (documents,). A pair of equal scores counts half, as in `metrics.auroc`."""
    _, group = np.unique(scores, return_inverse=True)  # 0: the lowest score
    groups = group.max() + 1
    cell = group * 2 + labels  # of each document

    def of_resamples(draws: np.ndarray) -> np.ndarray:
        offsets = np.arange(len(draws))[:, None] * groups * 2
        counts = np.bincount((cell[draws] + offsets).ravel(), minlength=len(draws) * groups * 2)
        negatives, positives = np.moveaxis(counts.reshape(len(draws), groups, 2), 2, 0)  # (resamples, groups) each
        below = np.cumsum(negatives, axis=1) - negatives / 2
        pairs = (negatives.sum(axis=1) * positives.sum(axis=1)).astype(np.float64)
        pairs[pairs == 0] = math.nan
        return (positives * below).sum(axis=1) / pairs

    return of_resamples


def _precision(said: np.ndarray, true: np.ndarray) -> Statistic:
    return lambda draws: _share((said & true)[draws].sum(axis=1), said[draws].sum(axis=1))


def _recall(said: np.ndarray, true: np.ndarray) -> Statistic:
    return _precision(true, said)


def _f1(said: np.ndarray, true: np.ndarray) -> Statistic:
    return lambda draws: _share(2 * (said & true)[draws].sum(axis=1), said[draws].sum(axis=1) + true[draws].sum(axis=1))


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """0 where the whole is 0, as in `metrics`."""
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
