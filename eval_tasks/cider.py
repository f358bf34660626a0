"""CIDEr-D, the score of captions: own code, equal to pycocoevalcap's `Cider` on the same tokens.

A caption is compared with its references by n-grams of one to four words, each weighted by how rare it is among the
references of all images: scores depend on the whole corpus, so those of `--limit` runs compare with nothing.

`tokenize_captions` needs no Java. It gives the tokens of the COCO toolkit for all 26,014 captions of COCO's val2017 and
of the toolkit's example; `tokenize_ptb` runs the toolkit's own tokenizer, where it is asked for.
"""

from __future__ import annotations

import importlib.util
import math
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

Tokenize = Callable[[Sequence[str]], list[str]]  # captions -> their tokens, with blanks between

LONGEST = 4  # words of an n-gram
SIGMA = 6.0  # of the Gaussian over differences in length

# ---- tokens: what Stanford's PTBTokenizer 3.4.1 makes of captions with -lowerCase, less the toolkit's punctuation

SPELLINGS = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201b", "'"),
        **dict.fromkeys("\u201c\u201d\xab\xbb", '"'),
        **dict.fromkeys("\u2013\u2014", " -- "),
        "\u2026": " ... ",
        "\xbd": "1/2",
        "\xbc": "1/4",
        "\xbe": "3/4",
        "\xa3": "#",
        "\u20ac": "$",
        "\xad": "",
    }
)
BRACKETS = {
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
}  # in lower case they stay
REMOVED = frozenset({"'", "`", '"', ".", "?", "!", ",", ":", "-", ";"})
ABBREVIATIONS = """
    adm al ala alex apr ariz assn atty attys aug ave bancorp bhd blvd brig bros calif capt cf cie cmdr co col colo
    comdr conn corp cos cpl ct dak dec dept det dr drs elec esq est etc ext feb fla fri ft ga gen gov govs hon inc
    ind intl invt jan jos jr jul jun kan kans ky lieut lt ltd maj mar messrs mfg mich minn mo mon mont mr mrs ms mt
    natl neb nev nov oct okla penn pfc plc pres prof profs pty pvt rd rep reps rev rt sen sens sep sept seq sgt spc
    sq sr st ste supt supts sys tel tenn thu thurs tue tues univ va vs vt wed wis wisc wm wyo
""".split()
ABBREVIATED_STATES = "Ark Del Ill Mass Miss Ore Tex Wash".split()  # words besides, in lower case
# After a letter and a period these begin a sentence: "plan B. Then it", but "George W. Bush".
SENTENCE_STARTERS = """
    A About According After An As At But He Her Here However If In It Last Many More Now Once One Other Our She Since So
    Some Such That The Their Then There These They This We What When While Yet You
""".split()

_LETTER = r"[^\W\d_\xb2\xb3\xb9]"
_SIGN = r"[^\W_\xb2\xb3\xb9]"  # a letter or digit; raised 2, 3 and 1 stand alone
_END = rf"(?!{_SIGN})"
_TOKEN = re.compile(
    rf"""
    </?[a-z!?][^<>]*>
  | (?:https?://|www\.)[^\s"<>|()]*[^\s"<>|().!?,-]
  | [\w.+-]+@(?:[\w-]+\.)+[a-z]+
  | (?:{"|".join(ABBREVIATIONS)}|(?-i:{"|".join(ABBREVIATED_STATES)}))\.{_END}
  | {_LETTER}(?:\.{_LETTER})+{_END}\.?                                   # u.s. t.v.
  | {_LETTER}\.(?=\s+{_SIGN})(?!\s+(?-i:{"|".join(SENTENCE_STARTERS)})\s)
  | nos?\.(?=\s?\d)
  | 'n' | '(?:s|m|d|re|ll|ve){_END} | n't{_END} | '[2-9]0s | 'em{_END}
  | [a-z0-9]+(?:-[a-z]+){{0,2}}(?:/[a-z0-9]+(?:-[a-z]+){{0,2}}){{1,2}}     # black/white, 3/4
  | {_LETTER}+?(?=n't{_END})                                             # do n't
  | (?:can(?=not{_END})|gon(?=na{_END})|wan(?=na{_END})|got(?=ta{_END})|lem(?=me{_END})|gim(?=me{_END}))
  | '?t(?=(?:is|was){_END}) | c'mon{_END} | y'(?=all{_END})
  | (?-i:[A-Z]+(?:&[A-Z]+)+){_END}                                       # R&B
  | [-+]?\d*(?:[.,]\d+)+(?:-{_SIGN}+)+                                   # 3.5-inch
  | [-+]?\d*(?:[.,:]\d+)+ | [-+]\d+{_END}                               # 1,000 10:30 -5
  | {_LETTER}+(?:[.?!]{_LETTER}+)+                                       # a blank forgotten: street.The
  | {_LETTER}*[aeiouy]'[aeiou]{_LETTER}*                                 # ma'am
  | (?:[dol]'(?!(?:s|m|d|re|ll|ve){_END}))?{_SIGN}+(?:-(?:[dol]')?{_SIGN}+)*
  | [!?]{{2,}} | \#[a-z]\w* | @[a-z]\w* | \*+ | _+
  | [^\s\U00010000-\U0010FFFF]
    """,
    re.VERBOSE | re.IGNORECASE,
)


def tokenize_captions(texts: Sequence[str]) -> list[str]:
    """Lower-case tokens with blanks between, without punctuation: "A man's T-shirt." gives "a man 's t-shirt"."""
    return [" ".join(_tokens(text)) for text in texts]


def _tokens(text: str) -> Iterator[str]:
    for token in _TOKEN.findall(text.translate(SPELLINGS)):
        if token not in REMOVED:
            yield BRACKETS.get(token) or token.lower()


def tokenize_ptb(texts: Sequence[str]) -> list[str]:
    """The same by the COCO toolkit's own tokenizer, which is a Java program.

    Raises:
        ModuleNotFoundError: pycocoevalcap is not installed.
        FileNotFoundError: there is no `java`.
        RuntimeError: the program did not give a line for each caption.
    """
    if importlib.util.find_spec("pycocoevalcap") is None:
        raise ModuleNotFoundError("the exact caption tokenizer is in pycocoevalcap: `pip install pycocoevalcap`")
    if shutil.which("java") is None:
        raise FileNotFoundError(
            "the exact caption tokenizer of pycocoevalcap runs on Java, and there is no `java` in PATH"
        )
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    # One line each: a line end inside a caption would shift all later ones. Empty lines get lost, so they are "." here.
    lines = {place: [{"caption": " ".join(text.split()) or "."}] for place, text in enumerate(texts)}
    tokenized = PTBTokenizer().tokenize(lines) if lines else {}
    if len(tokenized) != len(texts):
        raise RuntimeError(
            f"pycocoevalcap's tokenizer gave {len(tokenized)} lines for {len(texts)} captions: see Java's message"
        )
    return [tokenized[place][0] for place in range(len(texts))]


# ---- scores


def cider(records: Iterable[Mapping[str, Any]], tokenize: Tokenize = tokenize_captions) -> float:
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
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], tokenize: Tokenize = tokenize_captions
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
    # The toolkit counts bigrams: the same difference, but for empty captions, which score nothing.
    penalty = np.exp(-((lengths[owners] - lengths[first_reference:]) ** 2) / (2 * SIGMA**2))
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


def _ngrams(words: np.ndarray, lengths: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
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
    return np.divide(overlap, product, out=np.zeros(len(product)), where=product > 0)
