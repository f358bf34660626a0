"""Scores of single documents and of whole tasks: pure functions, without randomness and without lm-eval.

lm-eval calls a `process_results(doc, results)` once per document and aggregates what it returns. Every document returns
every key (None where a score does not apply): over several processes lm-eval takes the keys from the first one.

`results` holds one thing: of a task that generates, or picks from all training answers, the answer; of a task that
ranks a document's own candidates, the list of their log-likelihoods. Of equally likely candidates the first one is the
prediction. A list with a NaN, or without any finite number, predicts nothing: that counts as wrong, with a warning.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from instructblip.eval_tasks.answers import (
    exact_match,
    three_people_accuracy,
    two_people_accuracy,
    vqa_accuracy,
    vqa_accuracy_lavis,
    vqa_accuracy_official,
)
from instructblip.eval_tasks.cider import cider as corpus_cider

Document = Mapping[str, Any]  # a sample of the row schema
Scores = dict[str, float | None]

TRUE_FALSE = ("yes", "true", "no", "false")  # the verbalisers of the paper's binary tasks, in the order ranked
YES_NO = ("yes", "no")
DOMAINS = ("in-domain", "near-domain", "out-domain")  # of NoCaps: how many of its objects COCO's captions know
DIALOG_SCORES = ("mrr", "recall_at_1", "recall_at_5", "recall_at_10", "mean_rank", "ndcg")

# ---- answers that were generated, or picked from the training answers


def answer_accuracy(doc: Document, results: Sequence[str]) -> Scores:
    """Whether the answer is one of the true ones, both normalised as in the VQA evaluation (GQA, OCR-VQA, videos)."""
    return {"accuracy": exact_match(results[0], doc["answers"]) if doc["answers"] else None}


def closed_and_open_accuracy(doc: Document, results: Sequence[str]) -> Scores:
    """VQA-RAD: exact match, over all questions and by answer type.

    Args:
        doc: a question with `answers` and the tag "answer_type=CLOSED" or "answer_type=OPEN".
        results: the predicted answer.
    """
    score = exact_match(results[0], doc["answers"])
    closed = "answer_type=CLOSED" in doc["tags"]
    return {
        "accuracy": score,
        "accuracy_closed": score if closed else None,
        "accuracy_open": None if closed else score,
    }


def soft_accuracy(doc: Document, results: Sequence[str]) -> Scores:
    """VQA accuracy as EvalAI, the official script and LAVIS have it; None without answers, as test sets are."""
    forms = {
        "vqa_accuracy": vqa_accuracy,
        "vqa_accuracy_official": vqa_accuracy_official,
        "vqa_accuracy_lavis": vqa_accuracy_lavis,
    }
    return {name: form(results[0], doc["answers"]) if doc["answers"] else None for name, form in forms.items()}


def direct_answer_accuracy(doc: Document, results: Sequence[str]) -> Scores:
    """A-OKVQA: the official min(1, n / 3) on the texts as they are, and VQA accuracy, which forgives "Dog." for "dog".

    None for questions tagged too difficult for direct answers, which the official script leaves out.
    """
    if not doc["answers"] or "difficult_direct_answer=true" in doc["tags"]:
        return {"accuracy": None, "vqa_accuracy": None}
    return {
        "accuracy": three_people_accuracy(results[0], doc["answers"]),
        "vqa_accuracy": vqa_accuracy(results[0], doc["answers"]),
    }


def ivqa_accuracy(doc: Document, results: Sequence[str]) -> Scores:
    """iVQA: an answer that two of the five people gave is right, that of one half right."""
    return {"accuracy": two_people_accuracy(results[0], doc["answers"]) if doc["answers"] else None}


# ---- captions


def caption_score(doc: Document, results: Sequence[str]) -> dict[str, Any]:
    """What CIDEr needs of a caption; it is computed over all of them (`cider`)."""
    return {"cider": {"id": doc["id"], "caption": results[0], "references": list(doc["answers"])}}


def nocaps_scores(doc: Document, results: Sequence[str]) -> dict[str, Any]:
    """As `caption_score`, over all and by domain: each domain is a corpus of its own, as on the official server."""
    record = caption_score(doc, results)["cider"]
    of_domain = {
        f"cider_{name.replace('-', '_')}": record if f"domain={name}" in doc["tags"] else None for name in DOMAINS
    }
    return {"cider": record, **of_domain}


# ---- candidates that were ranked


def choice_accuracy(doc: Document, results: Sequence[Sequence[float]]) -> Scores:
    """Whether the likeliest choice is the right one; None where the label is not known (-1)."""
    if doc["label"] < 0:
        return {"accuracy": None}
    return {"accuracy": float(likeliest(results[0]) == doc["label"])}


def true_false_accuracy(doc: Document, results: Sequence[Sequence[float]]) -> Scores:
    """Whether the likeliest of `yes, true, no, false` says what the label says.

    Args:
        doc: a statement with `label`: 1 (true), 0, or -1 (not known: None).
        results: the log-likelihoods of `TRUE_FALSE`.
    """
    scores = _checked(results[0], TRUE_FALSE)
    if doc["label"] < 0:
        return {"accuracy": None}
    first = likeliest(scores)
    return {"accuracy": float(first is not None and (first < 2) == bool(doc["label"]))}


def hateful_memes_scores(doc: Document, results: Sequence[Sequence[float]]) -> dict[str, Any]:
    """HatefulMemes: the score of a meme is log(P(yes) + P(true)) - log(P(no) + P(false)), and from 0 on it is hateful.

    Args:
        doc: a meme with `label`: 1 (hateful), 0, or -1 (not known: None).
        results: the log-likelihoods of `TRUE_FALSE`.

    Returns:
        `accuracy`, and `auroc`: (label, score), NaN where there is no score.
    """
    yes, true, no, false = _checked(results[0], TRUE_FALSE)
    if doc["label"] < 0:
        return {"accuracy": None, "auroc": None}
    if likeliest(results[0]) is None:
        return {"accuracy": 0.0, "auroc": (int(doc["label"]), math.nan)}
    score = float(np.logaddexp(yes, true) - np.logaddexp(no, false))
    return {"accuracy": float((score >= 0) == bool(doc["label"])), "auroc": (int(doc["label"]), score)}


def yes_no_counts(doc: Document, results: Sequence[Sequence[float]]) -> dict[str, Any]:
    """POPE: what was said and what is true; precision, recall and F1 are of "yes", over all documents.

    Args:
        doc: a question with `label`, 1 (yes) or 0.
        results: the log-likelihoods of `YES_NO`.

    Returns:
        `accuracy`; `precision`, `recall` and `f1`: (said yes, is yes); `yes_share`: 1.0 where yes was said.

    Raises:
        ValueError: the label is not known (-1), without which none of these is.
    """
    if doc["label"] < 0:
        raise ValueError(f"{doc['id']} has no label: POPE's metrics need 1 (yes) or 0")
    first = likeliest(_checked(results[0], YES_NO))
    is_yes = doc["label"] == 1
    said_yes = first == 0 if first is not None else not is_yes
    pair = (int(said_yes), int(is_yes))
    counts = {"precision": pair, "recall": pair, "f1": pair}
    return {"accuracy": float(said_yes == is_yes), **counts, "yes_share": float(said_yes)}


def dialog_ranks(doc: Document, results: Sequence[Sequence[float]]) -> Scores:
    """Visual Dialog: the place of the right answer among the options.

    An option as likely as the right one counts half a place, so that a model that finds all 100 equally likely gets
    place 50.5. NDCG is as in the challenge's evaluation: linear gain, over as many places as options are relevant.
    It takes the dense annotation in the tag "relevance=3:0.4 17:1.0" (option:relevance, the others 0), and is None
    without that tag, or where nothing is relevant. Options that are equally likely share their mean relevance.

    Scores that rank nothing (see above) put the right answer last.

    Args:
        doc: a round with `label`, the right option; -1: not known, then only NDCG is given.
        results: the log-likelihoods of the options.
    """
    scores = np.asarray(results[0], dtype=np.float64)
    usable = likeliest(results[0]) is not None
    values: Scores = dict.fromkeys(DIALOG_SCORES)
    if doc["label"] >= 0:
        own = scores[doc["label"]]
        place = 1 + np.sum(scores > own) + (np.sum(scores == own) - 1) / 2 if usable else len(scores)
        values |= {"mrr": float(1 / place), "mean_rank": float(place)}
        values |= {f"recall_at_{most}": float(place <= most) for most in (1, 5, 10)}
    relevance = _relevance(doc, len(scores))
    if relevance is not None and relevance.any():
        values["ndcg"] = _ndcg(scores, relevance) if usable else 0.0
    return values


def _relevance(doc: Document, num_options: int) -> np.ndarray | None:
    """(options,), from the tag, or None."""
    text = next((tag.partition("=")[2] for tag in doc["tags"] if tag.startswith("relevance=")), None)
    if text is None:
        return None
    relevance = np.zeros(num_options)
    try:
        for pair in text.split():
            option, value = pair.split(":")
            relevance[int(option)] = float(value)
    except (ValueError, IndexError) as error:
        raise ValueError(
            f"{doc.get('id')}: the tag relevance={text!r} is not OPTION:VALUE ... for {num_options} options"
        ) from error
    return relevance


def _ndcg(scores: np.ndarray, relevance: np.ndarray) -> float:
    """Both (options,); gain over the best possible one."""
    _, group = np.unique(-scores, return_inverse=True)  # 0: the likeliest
    gains = (np.bincount(group, relevance) / np.bincount(group))[np.sort(group)]  # by place
    places = np.count_nonzero(relevance)
    discounts = 1 / np.log2(np.arange(2, places + 2))
    return float(gains[:places] @ discounts / (np.sort(relevance)[::-1][:places] @ discounts))


def _checked(scores: Sequence[float], candidates: Sequence[str]) -> Sequence[float]:
    if len(scores) != len(candidates):
        raise ValueError(f"{len(scores)} log-likelihoods: this metric needs doc_to_choice to be {list(candidates)}")
    return scores


def likeliest(scores: Sequence[float]) -> int | None:
    """Index of the highest, of several the first; None where the scores rank nothing."""
    values = np.asarray(scores, dtype=np.float64)
    if np.isnan(values).any() or not np.isfinite(values).any() or values.max() == np.inf:
        warnings.warn(
            "log-likelihoods that are NaN or infinite count as a wrong answer: overflow in the model?", stacklevel=2
        )
        return None
    return int(values.argmax())


# ---- aggregations


def mean_of_scored(scores: Iterable[float | None]) -> float:
    """Mean of the documents that have this score; NaN if none has."""
    scored = [score for score in scores if score is not None]
    return math.fsum(scored) / len(scored) if scored else math.nan


def auroc(pairs: Iterable[Sequence[float] | None]) -> float:
    """Area under the ROC curve of (label, score) pairs: how often a 1 scores above a 0; a tie counts half.

    A score of NaN is put where it does most harm, below all others for a 1 and above them for a 0. NaN with a warning
    where all labels are the same, as in a small `--limit`.
    """
    labels, scores = label_and_score(pairs)
    if len(np.unique(labels)) < 2:
        warnings.warn(f"{len(labels)} documents with one label: the AUROC needs both, so it is NaN", stacklevel=2)
        return math.nan
    from sklearn.metrics import roc_auc_score  # takes seconds to import

    return float(roc_auc_score(labels, scores))


def label_and_score(pairs: Iterable[Sequence[float] | None]) -> tuple[np.ndarray, np.ndarray]:
    """Pairs as two arrays, both int64: labels, and scores by their rank, where NaN is as bad as can be.

    Pairs that are None are left out.
    """
    known = [pair for pair in pairs if pair is not None]
    labels = np.array([pair[0] for pair in known], dtype=np.int64)
    scores = np.array([pair[1] for pair in known], dtype=np.float64)
    missing = np.isnan(scores)
    ranks = np.full(len(scores), -1)
    ranks[~missing] = np.unique(scores[~missing], return_inverse=True)[1]
    ranks[missing & (labels == 0)] = len(scores)
    return labels, ranks


def cider(records: Iterable[Mapping[str, Any] | None]) -> float:
    """CIDEr-D of the records of `caption_score`, 1.0 being the paper's 100; NaN if there are none."""
    known = [record for record in records if record is not None]
    return corpus_cider(known) if known else math.nan


def precision(pairs: Iterable[Sequence[int]]) -> float:
    """The share of what was said to be yes that is; 0 where yes was never said."""
    counts = _counts(pairs)
    return _share(counts[1, 1], counts[1].sum())


def recall(pairs: Iterable[Sequence[int]]) -> float:
    """The share of what is yes that was said to be; 0 where nothing is."""
    counts = _counts(pairs)
    return _share(counts[1, 1], counts[:, 1].sum())


def f1(pairs: Iterable[Sequence[int]]) -> float:
    """Harmonic mean of precision and recall; 0 where both are."""
    counts = _counts(pairs)
    return _share(2 * counts[1, 1], counts[1].sum() + counts[:, 1].sum())


def _counts(pairs: Iterable[Sequence[int]]) -> np.ndarray:
    """(said yes, is yes) -> how many, as (2, 2)."""
    counts = np.zeros((2, 2), dtype=np.int64)
    for said, true in pairs:
        counts[said, true] += 1
    return counts


def _share(part: int, whole: int) -> float:
    return float(part / whole) if whole else 0.0
