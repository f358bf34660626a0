import collections
import dataclasses
import itertools
import pickle

import datasets
import numpy as np
import pytest
from torch.utils.data import DataLoader

from instructblip.datasets_builders.instructions import InstructionDataset
from instructblip.datasets_builders.mixture import (
    InstructionMixture,
    MixtureOrder,
    paper_probabilities,
    sampling_probabilities,
)
from instructblip.datasets_builders.schema import make_sample, row_features
from instructblip.datasets_builders.table import TABLE

PAPER = {  # training examples of the held-in datasets, and their shares under the square-root rule
    "capfilt": (13_873_136, 0.457),
    "ocr_vqa": (798_245, 0.110),
    "coco_caption": (566_747, 0.092),
    "vqav2": (443_757, 0.082),
    "vqg_vqav2": (443_757, 0.082),
    "textcaps": (109_765, 0.041),
    "llava_reasoning": (77_000, 0.034),
    "llava_conversation": (58_000, 0.030),
    "llava_detail": (23_000, 0.019),
    "aokvqa": (17_056, 0.016),
    "vqg_aokvqa": (17_056, 0.016),
    "okvqa": (9_009, 0.012),
    "vqg_okvqa": (9_009, 0.012),
}


def instructions(name, images, questions=1, **options):
    """`images` rows without pixels, each with `questions` samples called "name/row/number"."""
    rows = [
        {
            "image": None,
            "image_id": f"{name}/{row}",
            "samples": [make_sample(f"{name}/{row}/{number}", "What?", ["it"]) for number in range(questions)],
        }
        for row in range(images)
    ]
    table = datasets.Dataset.from_list(rows, features=row_features())
    return InstructionDataset(table, name, task="vqa", with_images=False, **options)


def order_of(sizes, probabilities, length, seed=0):
    return MixtureOrder(sizes, np.array(probabilities), length, seed)


def places(order, epochs):
    for epoch in range(epochs):
        order.start_epoch(epoch)
        for place in range(order.length):
            yield order.locate(place)


# Probabilities


def test_the_papers_shares_follow_from_its_sizes():
    shares = sampling_probabilities({name: size for name, (size, _) in PAPER.items()})
    assert {name: round(share, 3) for name, share in shares.items()} == {name: p for name, (_, p) in PAPER.items()}
    assert list(shares) == list(PAPER)
    assert sum(shares.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1 / 6, 2 / 6, 3 / 6]),
        ({"rule": "uniform"}, [1 / 3, 1 / 3, 1 / 3]),
        ({"rule": "proportional"}, [1 / 14, 4 / 14, 9 / 14]),
        ({"rule": "temperature"}, [1 / 6, 2 / 6, 3 / 6]),
        ({"rule": "temperature", "temperature": 1}, [1 / 14, 4 / 14, 9 / 14]),
        ({"rule": "temperature", "temperature": 0.5}, [1 / 98, 16 / 98, 81 / 98]),
        ({"factors": {"b": 0.5, "c": 2}}, [1 / 8, 1 / 8, 6 / 8]),
    ],
)
def test_rules_and_factors(options, expected):
    assert list(sampling_probabilities({"a": 1, "b": 4, "c": 9}, **options).values()) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ({}, {}, "no datasets"),
        ({"a": 0}, {}, "'a' has size 0: expected more than 0"),
        ({"a": float("nan")}, {}, "'a' has size nan"),
        ({"a": 1}, {"factors": {"a": 0}}, "'a' has factor 0"),
        ({"a": 1}, {"factors": {"b": 1}}, "a factor for 'b', which is no dataset here: there are a"),
        ({"a": 1}, {"rule": "cubic"}, "rule 'cubic': expected sqrt, uniform, proportional, temperature"),
        ({"a": 1}, {"rule": "temperature", "temperature": 0}, "temperature 0: expected more than 0"),
    ],
)
def test_a_wrong_size_factor_or_rule_is_named(sizes, options, message):
    with pytest.raises(ValueError, match=message):
        sampling_probabilities(sizes, **options)


def test_the_table_gives_the_papers_shares():
    assert {name: round(share, 3) for name, share in paper_probabilities().items()} == {
        name: share for name, (_, share) in PAPER.items()
    }


def test_some_of_the_papers_datasets_keep_their_ratio():
    shares = paper_probabilities(["okvqa", "vqav2"])
    assert list(shares) == ["okvqa", "vqav2"]
    assert shares["vqav2"] / shares["okvqa"] == pytest.approx((443_757 / 9_009) ** 0.5)


def test_a_factor_of_the_table_counts(monkeypatch):
    halved = dataclasses.replace(TABLE["okvqa"], sampling_factor=0.5)
    monkeypatch.setitem(TABLE, "okvqa", halved)
    shares = paper_probabilities(["okvqa", "vqg_okvqa"])  # of equal size
    assert shares == pytest.approx({"okvqa": 1 / 3, "vqg_okvqa": 2 / 3})


def test_a_dataset_that_the_paper_does_not_train_on_has_no_share_in_it():
    with pytest.raises(ValueError, match="the paper trains on no dataset called 'vsr': pass probabilities"):
        paper_probabilities(["vsr"])


# Order


def test_sources_come_as_often_as_their_probabilities_say():
    order = order_of([10, 1000, 10], [0.5, 0.3, 0.2], 10_000)
    counts = collections.Counter(source for source, _, _ in places(order, 1))
    for source, probability in enumerate([0.5, 0.3, 0.2]):
        deviation = (10_000 * probability * (1 - probability)) ** 0.5
        assert abs(counts[source] - 10_000 * probability) < 4 * deviation


def test_neighbours_are_drawn_independently():
    order = order_of([10, 10], [0.5, 0.5], 10_000)
    sources = [source for source, _, _ in places(order, 1)]
    same = sum(a == b for a, b in itertools.pairwise(sources))
    assert abs(same - 5000) < 4 * 50


def test_a_small_source_is_repeated_in_passes_that_each_hold_every_item_once():
    order = order_of([7, 1000], [0.5, 0.5], 200)
    small = [(item, number) for source, item, number in places(order, 3) if source == 0]
    assert len(small) > 250
    passes = [small[start : start + 7] for start in range(0, len(small) - 6, 7)]
    for number, one in enumerate(passes):
        assert sorted(one) == [(item, number) for item in range(7)]
    assert len({tuple(item for item, _ in one) for one in passes}) > 30  # each in an order of its own


def test_a_large_source_goes_on_in_the_next_epoch_where_it_stopped():
    order = order_of([1000, 5], [0.5, 0.5], 400)
    seen = [item for source, item, _ in places(order, 4) if source == 0]
    assert 700 < len(seen) < 1000
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("size", [1, 2, 3, 63, 64, 65, 1000])
def test_a_pass_is_a_permutation(size):
    order = order_of([size], [1.0], 1)
    assert sorted(order.item(0, 5, position) for position in range(size)) == list(range(size))


def test_all_orders_of_a_pass_are_about_as_likely():
    order = order_of([3], [1.0], 1)
    orders = collections.Counter(tuple(order.item(0, number, i) for i in range(3)) for number in range(3000))
    assert len(orders) == 6
    assert all(abs(count - 500) < 5 * 500**0.5 for count in orders.values())


def test_any_place_of_any_epoch_is_found_without_those_before():
    order = order_of([7, 5000], [0.3, 0.7], 5000)
    expected = list(places(order, 3))[10_000:]
    fresh = order_of([7, 5000], [0.3, 0.7], 5000)
    fresh.start_epoch(2)
    assert [fresh.locate(place) for place in (4999, 0, 2048, 2047)] == [expected[i] for i in (4999, 0, 2048, 2047)]


def test_seeds_differ():
    first, second = (list(places(order_of([50, 50], [0.5, 0.5], 100, seed), 1)) for seed in (0, 1))
    assert first != second


def test_three_hundred_sources_fit():
    order = order_of([2] * 300, [1 / 300] * 300, 3000)
    assert len({source for source, _, _ in places(order, 1)}) == 300


# Mixture


@pytest.fixture
def mixture():
    return InstructionMixture({"vqa": instructions("vqa", 40, 5), "small": instructions("small", 3)}, length=300)


def test_items_say_which_dataset_they_are_from(mixture):
    for index in range(len(mixture)):
        name, _, _ = mixture.locate(index)
        item = mixture[index]
        assert item["dataset"] == name
        assert item["id"].startswith(name)
        assert item["response"] == "it"


def test_square_root_sampling_is_the_default(mixture):
    assert mixture.probabilities == sampling_probabilities({"vqa": 200, "small": 3})


def test_an_epoch_is_as_long_as_all_datasets_together_by_default():
    sources = {"a": instructions("a", 4, 5), "b": instructions("b", 3)}
    assert len(InstructionMixture(sources)) == 23
    assert len(InstructionMixture(sources, length=7)) == 7
    assert len(list(InstructionMixture(sources, length=7))) == 7


def test_every_pass_over_a_dataset_draws_templates_anew(mixture):
    drawn = collections.defaultdict(set)
    for index in range(len(mixture)):
        text = mixture.text(index)
        drawn[text["id"]].add(text["instruction"])
    assert all(len(drawn[f"small/{row}/0"]) > 3 for row in range(3))


def test_an_item_can_be_made_again_from_its_dataset_and_pass(mixture):
    source = instructions("small", 3)
    index = next(i for i in range(300) if mixture.locate(i)[0] == "small" and mixture.locate(i)[2] == 4)
    _, item, _ = mixture.locate(index)
    source.set_epoch(4)
    assert source.text(item) == mixture.text(index)


def ids(mixture):
    return [mixture.text(index)["id"] for index in range(len(mixture))]


def test_epochs_differ_and_can_be_returned_to(mixture):
    first = ids(mixture)
    mixture.set_epoch(1)
    assert ids(mixture) != first
    mixture.set_epoch(0)
    assert ids(mixture) == first


def test_negative_indices_and_the_end(mixture):
    assert mixture.text(-1) == mixture.text(299)
    with pytest.raises(IndexError, match="item 300 of 300"):
        mixture[300]
    with pytest.raises(IndexError, match="item -301 of 300"):
        mixture[-301]


def test_a_pickled_mixture_is_small_and_the_same():
    large = InstructionMixture({"a": instructions("a", 3)}, length=1_000_000)
    large.set_epoch(2)
    first = large.text(5)
    pickled = pickle.dumps(large.order)
    assert len(pickled) < 1000
    assert pickle.loads(pickle.dumps(large)).text(5) == first


def test_workers_read_the_same_items_and_hear_of_a_new_epoch(mixture):
    loader = DataLoader(mixture, batch_size=50, num_workers=2, collate_fn=list, persistent_workers=True)
    for epoch in (0, 1):
        mixture.set_epoch(epoch)
        assert [item for batch in loader for item in batch] == [mixture[index] for index in range(300)]


def test_samplers_of_ranks_share_an_epoch_out(mixture):
    from torch.utils.data import DistributedSampler

    indices = [list(DistributedSampler(mixture, num_replicas=3, rank=rank, shuffle=False)) for rank in range(3)]
    assert sorted(itertools.chain(*indices)) == list(range(300))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"datasets": {}}, ValueError, "no datasets"),
        ({"datasets": {"a": [1, 2]}}, TypeError, "dataset 'a' is a list: expected an InstructionDataset"),
        ({"probabilities": {"a": 1.0}}, ValueError, "'b' is without a probability"),
        ({"probabilities": {"a": 0.5, "b": 0.4, "c": 0.1}}, ValueError, "'c' is no dataset here"),
        ({"probabilities": {"a": 0.5, "b": 0.4}}, ValueError, "expected positive numbers that add up to 1"),
        ({"probabilities": {"a": 1.0, "b": 0.0}}, ValueError, "expected positive numbers that add up to 1"),
        ({"length": 0}, ValueError, "length=0: expected 1 or more"),
        ({"seed": -1}, ValueError, "seed=-1: expected 0 or more"),
    ],
)
def test_what_does_not_fit_is_named(change, error, message):
    made = {"datasets": {"a": instructions("a", 2), "b": instructions("b", 2)}, **change}
    with pytest.raises(error, match=message):
        InstructionMixture(**made)


def test_a_dataset_without_items_is_named():
    with pytest.raises(ValueError, match="dataset 'a' has no item: leave it out"):
        InstructionMixture({"a": instructions("a", 2, questions=0)})
