import json
import math
import tracemalloc

import numpy as np
import pytest

from instructblip.eval_tasks import intervals, metrics
from instructblip.eval_tasks.cider import cider_per_caption
from instructblip.eval_tasks.intervals import metric_interval


def naive_interval(aggregate, values, resamples=300, seed=0):
    """The same draws, one resample at a time, each scored by the task's own aggregation."""
    rng = np.random.default_rng(seed)
    scores = []
    for _ in range(resamples):
        scores.append(aggregate([values[i] for i in rng.integers(0, len(values), len(values))]))
    return tuple(np.nanquantile(scores, [0.025, 0.975]))


def mean(values):
    return sum(values) / len(values)


@pytest.fixture
def pairs():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 60)
    scores = np.round(rng.normal(size=60) + labels, 1)  # some are equal
    return [[int(label), float(score)] for label, score in zip(labels, scores, strict=True)]


@pytest.fixture
def yes_no():
    rng = np.random.default_rng(2)
    return rng.integers(0, 2, (50, 2)).tolist()


@pytest.mark.parametrize("part", [2**20, 100])
def test_intervals_equal_those_of_single_resamples(pairs, yes_no, part, monkeypatch):
    monkeypatch.setattr(intervals, "DRAWS_AT_ONCE", part)  # the sizes of the parts make no difference
    numbers = [score for _, score in pairs]
    assert metric_interval("mrr", numbers, resamples=300) == pytest.approx(naive_interval(mean, numbers))
    assert metric_interval("auroc", pairs, resamples=300) == pytest.approx(naive_interval(metrics.auroc, pairs))
    for name in ("precision", "recall", "f1"):
        expected = naive_interval(getattr(metrics, name), yes_no)
        assert metric_interval(name, yes_no, resamples=300) == pytest.approx(expected)


def test_the_interval_of_a_share_is_the_binomials():
    stats = pytest.importorskip("scipy.stats")
    values = [1.0] * 300 + [0.0] * 700
    low, high = metric_interval("accuracy", values, resamples=20_000)
    assert (low, high) == pytest.approx(np.array(stats.binom.interval(0.95, 1000, 0.3)) / 1000, abs=0.0015)
    narrow = metric_interval("accuracy", values, confidence=0.5, resamples=20_000)
    assert narrow == pytest.approx(np.array(stats.binom.interval(0.5, 1000, 0.3)) / 1000, abs=0.0015)


def test_ciders_interval_is_that_of_the_captions_scores_in_the_whole_corpus():
    words = "a dog runs on red grass two cats sit by the bus".split()
    rng = np.random.default_rng(3)
    texts = [" ".join(rng.choice(words, 5)) for _ in range(90)]
    records = [{"id": n, "caption": texts[n], "references": texts[30 + 2 * n : 32 + 2 * n]} for n in range(30)]
    scores = cider_per_caption([r["caption"] for r in records], [r["references"] for r in records])
    expected = naive_interval(mean, list(scores))
    assert metric_interval("cider", records, resamples=300) == pytest.approx(expected)
    in_domain = [*records, None, None]
    assert metric_interval("cider_in_domain", in_domain, resamples=300) == pytest.approx(expected)
    assert expected[0] < metrics.cider(records) < expected[1]


def test_values_survive_json(pairs, yes_no):
    for name, values in (("auroc", [tuple(pair) for pair in pairs]), ("f1", [tuple(pair) for pair in yes_no])):
        logged = json.loads(json.dumps(values))
        assert metric_interval(name, logged, resamples=50) == metric_interval(name, values, resamples=50)


def test_the_seed_decides():
    values = np.random.default_rng(0).random(40).tolist()
    assert metric_interval("accuracy", values, seed=1) == metric_interval("accuracy", values, seed=1)
    assert metric_interval("accuracy", values, seed=1) != metric_interval("accuracy", values, seed=2)


def test_documents_without_the_score_are_left_out():
    values = [0.25, 0.5, 1.0, 0.0]
    assert metric_interval("ndcg", [None, *values, None]) == metric_interval("ndcg", values)
    assert all(math.isnan(bound) for bound in metric_interval("ndcg", [None, None]))


def test_auroc_of_one_label_has_no_interval_and_few_of_another_use_what_there_is():
    assert all(math.isnan(bound) for bound in metric_interval("auroc", [[1, 0.5], [1, 0.7]]))
    few = [[0, 0.0], [0, 0.1], [1, 0.2]]  # a third of the resamples lacks a label
    assert metric_interval("auroc", few) == (1.0, 1.0)


def test_many_documents_need_little_memory():
    values = np.random.default_rng(0).random(72_821).tolist()  # MSRVTT-QA
    tracemalloc.start()
    low, high = metric_interval("accuracy", values, resamples=100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6  # all at once: 58 MB of indices and 58 MB of scores, and for 1,000 resamples ten times that
    assert high - low == pytest.approx(2 * 1.96 * np.std(values) / math.sqrt(len(values)), rel=0.3)


@pytest.mark.parametrize(
    ("name", "values"),
    [("accuracy", [{"id": 1}]), ("cider", [0.5]), ("auroc", [0.5]), ("f1", [0.5]), ("f1", [[1, 0, 1]])],
)
def test_values_of_another_metric_are_refused_by_name(name, values):
    with pytest.raises(ValueError, match=f"^{name} has values such as"):
        metric_interval(name, values)


def test_a_confidence_in_percent_is_refused():
    with pytest.raises(ValueError, match="confidence 95 with 1000 resamples"):
        metric_interval("accuracy", [1.0], confidence=95)
