import json
import math
import shutil
from collections import Counter, defaultdict
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructblip.eval_tasks.cider import cider, cider_per_caption, tokenize_captions, tokenize_ptb

WORDS = st.lists(st.sampled_from(["a", "dog", "runs", "red", "on", "grass"]), max_size=7).map(" ".join)
CORPUS = st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=3)), min_size=1, max_size=5)


def plain_cider(hypotheses, references):
    """The definition, caption by caption: tf-idf of n-grams, clipped cosine, Gaussian over the difference in length."""

    def ngrams(text):
        words = text.split()
        return Counter(tuple(words[i : i + n]) for n in range(1, 5) for i in range(len(words) - n + 1))

    documents = defaultdict(int)
    for texts in references:
        for gram in set().union(*[ngrams(text) for text in texts]):
            documents[gram] += 1

    def vector(text, n):
        idf = {gram: math.log(len(references)) - math.log(max(1, documents[gram])) for gram in ngrams(text)}
        return {gram: count * idf[gram] for gram, count in ngrams(text).items() if len(gram) == n}

    def norm(weights):
        return math.sqrt(sum(weight**2 for weight in weights.values()))

    def bigrams(text):
        return max(len(text.split()) - 1, 0)

    scores = []
    for hypothesis, texts in zip(hypotheses, references, strict=True):
        total = 0.0
        for text in texts:
            penalty = math.exp(-((bigrams(hypothesis) - bigrams(text)) ** 2) / 72)
            for n in range(1, 5):
                mine, theirs = vector(hypothesis, n), vector(text, n)
                overlap = sum(min(mine[gram], theirs[gram]) * theirs[gram] for gram in mine if gram in theirs)
                if norm(mine) * norm(theirs):
                    total += penalty * overlap / (norm(mine) * norm(theirs))
        scores.append(total / 4 / len(texts) * 10)
    return scores


@pytest.fixture
def coco(real_data):
    """References by image id, in the order of their annotation ids, and the toolkit's example captions."""
    folder = real_data / "coco_caption_eval"
    references = defaultdict(list)
    for record in sorted(
        json.loads((folder / "captions_val2017.json").read_text())["annotations"], key=lambda r: r["id"]
    ):
        references[record["image_id"]].append(record["caption"])
    example = json.loads((folder / "captions_val2014_fakecap_results.json").read_text())
    captions = {record["image_id"]: record["caption"] for record in example if record["image_id"] in references}
    return references, captions, json.loads((folder / "reference_scores.json").read_text())


def test_the_toolkits_values_on_real_captions_are_met(coco):
    references, captions, expected = coco
    records = [{"id": image, "caption": text, "references": references[image]} for image, text in captions.items()]
    assert len(records) == 126
    assert cider(records) == pytest.approx(expected["fakecap_val2014_on_val2017_images"]["CIDEr"], abs=1e-12)
    people = [{"id": i, "caption": references[i][0], "references": references[i][1:]} for i in sorted(references)[:500]]
    assert cider(people) == pytest.approx(expected["human_first_vs_rest_500"]["CIDEr"], abs=1e-12)
    for example in expected["tokenizer_examples"]:
        assert tokenize_captions(example["raw"]) == example["tokenized"]


def test_tokens_of_real_captions_equal_the_java_programs(coco, java_tokenizer):
    references, captions, _ = coco
    texts = [*captions.values(), *(text for image in sorted(references)[:800] for text in references[image])]
    assert tokenize_captions(texts) == java_tokenizer(texts)


def test_every_caption_scores_as_with_pycocoevalcap(coco):
    scorer = pytest.importorskip("pycocoevalcap.cider.cider", reason="needs pycocoevalcap")
    references, captions, _ = coco
    gts = {image: tokenize_captions(references[image]) for image in captions}
    res = {image: tokenize_captions([text]) for image, text in captions.items()}
    _, theirs = scorer.Cider().compute_score(gts, res)
    ours = cider_per_caption(list(captions.values()), [references[image] for image in captions])
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


@pytest.fixture
def java_tokenizer():
    pytest.importorskip("pycocoevalcap", reason="needs pycocoevalcap")
    if shutil.which("java") is None:
        pytest.skip("needs java")
    return tokenize_ptb


@settings(max_examples=100, deadline=None)
@given(CORPUS)
def test_scores_equal_the_definition_written_plainly(corpus):
    hypotheses, references = zip(*corpus, strict=True)
    ours = cider_per_caption(hypotheses, references, tokenize=list)
    np.testing.assert_allclose(ours, plain_cider(hypotheses, references), atol=1e-9)


def test_a_caption_that_says_what_people_say_scores_ten_before_the_corpus_mean():
    # Two images without a word in common: every n-gram weighs log 2, and each n-gram length has cosine 1.
    captions = ["a red bus stops here", "two dogs run on grass"]
    assert cider_per_caption(captions, [[text] for text in captions]) == pytest.approx([10.0, 10.0])


def test_the_order_of_the_records_does_not_matter():
    records = [
        {"id": n, "caption": text, "references": [f"{text} {n} x", f"some {text}"]}
        for n, text in enumerate(["a red bus", "two dogs", "grass and a dog", "the bus"])
    ]
    assert cider(records) == cider(records[::-1]) > 0


def test_line_ends_inside_captions_shift_nothing():
    captions, references = ["a red\r\nbus", "two\rdogs \u2028 run"], [["a red bus"], ["two dogs run"]]
    plain = cider_per_caption(["a red bus", "two dogs run"], references)
    np.testing.assert_array_equal(cider_per_caption(captions, references), plain)


def test_line_ends_and_empty_captions_do_not_shift_the_java_programs_lines(java_tokenizer):
    assert java_tokenizer(["A red\r\nbus.", "", "it's \x0b(new)", ""]) == ["a red bus", "", "it 's -lrb- new -rrb-", ""]
    assert java_tokenizer([]) == []


def test_empty_captions_and_a_single_image_score_nothing():
    assert cider_per_caption(["", "a dog"], [["a cat"], ["the bird"]])[0] == 0.0
    assert cider([{"id": 1, "caption": "a dog", "references": ["a dog"]}]) == 0.0  # log(1 image / 1) weighs nothing
    assert cider_per_caption(["", ""], [[""], [""]]).tolist() == [0.0, 0.0]


SPLIT = [
    ("A man's T-shirt, close-up!", "a man 's t-shirt close-up"),
    ("Don't they can't won't cannot gonna", "do n't they ca n't wo n't can not gon na"),
    ("“Curly” it\u2019s 'single' \"double\"", "curly it 's single double"),
    ("On St. Mark's Ave. in the U.S. at 5 p.m.", "on st. mark 's ave. in the u.s. at 5 p.m."),
    ("George W. Bush and plan B. Then it", "george w. bush and plan b then it"),
    ("a car wash. The Wash. river", "a car wash the wash. river"),  # the state is written large
    ("5% of $1,000.50 at 10:30am -5 1/2", "5 % of $ 1,000.50 at 10:30 am -5 1/2"),
    ("a 3.5-inch 10:30-ish -5", "a 3.5-inch 10:30 ish -5"),
    ("black/white (red) [x]", "black/white -lrb- red -rrb- -lsb- x -rsb-"),
    ("a street.The end... yes -- no; a\u2013b", "a street.the end yes no a b"),
    ("O'Brien ma'am hors d'oeuvres y'all", "o'brien ma'am hors d'oeuvres y' all"),
    ("R&B café ½ #1", "r&b café 1/2 # 1"),
    ("", ""),
    (" . ", ""),
]


@pytest.mark.parametrize(("text", "tokens"), SPLIT)
def test_captions_are_split_like_the_penn_treebank(text, tokens):
    assert tokenize_captions([text]) == [tokens]


def test_the_java_program_splits_so(java_tokenizer):
    texts, tokens = zip(*SPLIT, strict=True)
    assert java_tokenizer(texts) == list(tokens)


def test_the_exact_tokenizer_says_what_it_misses(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install pycocoevalcap"):
        tokenize_ptb(["a dog"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: ModuleType(name))
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="no `java` in PATH"):
        tokenize_ptb(["a dog"])


def test_records_that_cannot_be_scored_are_named():
    with pytest.raises(ValueError, match="two captions of 'a/1'"):
        cider([{"id": "a/1", "caption": "x", "references": ["y"]}] * 2)
    with pytest.raises(ValueError, match="'a/2' has no references"):
        cider([{"id": "a/2", "caption": "x", "references": []}])
    with pytest.raises(ValueError, match="0 captions"):
        cider([])
    with pytest.raises(ValueError, match="2 captions, references of 1 images"):
        cider_per_caption(["x", "y"], [["x"]])
