"""CIDEr-D, the score of captions: own code, equal to pycocoevalcap's `Cider` on the same tokens.

A caption is compared with its references by n-grams of one to four words, each weighted by how rare it is among the
references of all images: scores depend on the whole corpus, so those of `--limit` runs compare with nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Tokenize = Callable[[Sequence[str]], list[str]]  # captions -> their tokens, with blanks between

LONGEST = 4  # words of an n-gram
SIGMA = 6.0  # of the Gaussian over differences in length


def tokenize(texts: Sequence[str]) -> list[str]:
    return [" ".join(re.findall(r"[a-z0-9'-]+", text.lower())) for text in texts]


def cider(records: Iterable[Mapping[str, Any]], tokenize: Tokenize = tokenize) -> float:
    """CIDEr-D of a corpus, where 1.0 is what papers write as 100.

    Args:
        records: of each image `id`, `caption` and its `references`, in any order.
        tokenize: `tokenize_ptb` for the exact tokens of the COCO toolkit.

    Raises:
        ValueError: there is no record, two have one id, or one has no references.
    """
    records = list(records)
    seen: set[Any] = set()
    for record in records:
        if record["id"] in seen:
            raise ValueError(f"two captions of {record['id']!r}: an image has one, or its words count twice")
        seen.add(record["id"])
        if not record["references"]:
            raise ValueError(f"{record['id']!r} has no references: CIDEr needs one at least")
    scores = cider_per_caption([r["caption"] for r in records], [r["references"] for r in records], tokenize)
    return math.fsum(scores) / len(scores)


def cider_per_caption(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], tokenize: Tokenize = tokenize
) -> np.ndarray:
    """CIDEr-D of each caption, with the document frequencies of all of these references.

    Args:
        hypotheses: one caption of each image.
        references: the captions of the same images by people, at least one each.
        tokenize: called once with all captions, their blanks and line ends collapsed.

    Returns:
        (captions,) float64

    Raises:
        ValueError: there are no captions, or an image has no references, or the numbers differ.
    """
    if len(hypotheses) != len(references) or not hypotheses or not all(references):
        counts = f"{len(hypotheses)} captions, references of {sum(map(bool, references))} images"
        raise ValueError(f"{counts}: CIDEr needs at least one reference for each caption, and one caption")
    owners = np.repeat(np.arange(len(references)), [len(texts) for texts in references])  # image of each reference
    captions = [*hypotheses, *(text for texts in references for text in texts)]
    tokenized = tokenize([" ".join(text.split()) for text in captions])
    words, lengths = _word_ids(tokenized)
    first_reference = len(hypotheses)
    image_of = np.concatenate([np.arange(first_reference), owners])
    totals = np.zeros(len(owners))  # of each reference, summed over the lengths of n-grams
    spans = np.maximum(lengths - 1, 0)  # the toolkit takes the number of bigrams for the length
    penalty = np.exp(-((spans[owners] - spans[first_reference:]) ** 2) / (2 * SIGMA**2))
    for grams, captions_of in _ngrams(words, lengths):
        totals += penalty * _similarity(grams, captions_of, image_of, first_reference)
    per_image = np.bincount(owners, totals) / np.bincount(owners)
    return per_image / LONGEST * 10


def _word_ids(tokenized: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """All words, one caption after the other, as (words,) numbers from 0, and (captions,) lengths."""
    ids: dict[str, int] = {}
    split = [text.split() for text in tokenized]
    words = [ids.setdefault(word, len(ids)) for text in split for word in text]
    return np.array(words, dtype=np.int64), np.array([len(text) for text in split])


def _ngrams(words: np.ndarray, lengths: np.ndarray) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """For n = 1 to 4: (n-grams,) numbers from 0, and (n-grams,) captions that they stand in."""
    captions = np.repeat(np.arange(len(lengths)), lengths)
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(words))  # words from here to the end of the caption
    grams, starts = words, np.arange(len(words))
    num_words = words.max(initial=0) + 1
    for n in range(1, LONGEST + 1):
        if n > 1:
            fits = left[starts] >= n
            starts = starts[fits]
            _, grams = np.unique(grams[fits] * num_words + words[starts + n - 1], return_inverse=True)
        yield grams, captions[starts]


def _similarity(grams: np.ndarray, captions: np.ndarray, image_of: np.ndarray, first_reference: int) -> np.ndarray:
    """(references,): how like its image's hypothesis each is, by n-grams of one length, before the penalty."""
    num_grams = grams.max(initial=0) + 1
    cells, counts = np.unique(captions * num_grams + grams, return_counts=True)  # of each caption its different n-grams
    caption, gram = np.divmod(cells, num_grams)
    image = image_of[caption]
    of_reference = caption >= first_reference
    seen_in = np.unique(image[of_reference] * num_grams + gram[of_reference])
    frequency = np.bincount(seen_in % num_grams, minlength=num_grams)  # images whose references have the n-gram
    weights = counts * (math.log(first_reference) - np.log(np.maximum(frequency, 1)))[gram]
    norms = np.sqrt(np.bincount(caption, weights**2, minlength=len(image_of)))

    mine = cells[~of_reference]  # sorted, and the caption is the image
    if not len(mine):
        return np.zeros(len(image_of) - first_reference)
    wanted = (image * num_grams + gram)[of_reference]
    place = np.minimum(np.searchsorted(mine, wanted), len(mine) - 1)
    found = mine[place] == wanted
    theirs = weights[of_reference]
    clipped = np.where(found, np.minimum(weights[~of_reference][place], theirs) * theirs, 0.0)
    overlap = np.bincount(caption[of_reference] - first_reference, clipped, minlength=len(image_of) - first_reference)
    product = norms[image_of[first_reference:]] * norms[first_reference:]
    return np.divide(overlap, product, out=np.zeros_like(overlap), where=product > 0)
