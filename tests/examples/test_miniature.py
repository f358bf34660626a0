"""The small world: what its questions say is true of its pictures, and the package reads its datasets."""

import collections
import random

import datasets
import drawing
import pytest
import skills
import world
import write_datasets

from instructblip.datasets_builders import InstructionDataset, load
from instructblip.datasets_builders.table import TABLE

PAPER = sorted(name for name, spec in TABLE.items() if spec.role in ("held_in", "held_out"))
SPLITS = {"gqa": "testdev", "hateful_memes": "dev_seen"} | dict.fromkeys(
    ("nocaps", "textvqa", "visdial", "vizwiz"), "validation"
)


def thing(shape="circle", color="red", pattern="plain", size="small", place=4):
    return world.Thing(shape, color, pattern, size, place)


@pytest.fixture
def rng():
    return random.Random(0)


def test_a_scene_is_the_same_for_the_same_seed_and_its_things_are_in_order():
    for seed in range(20):
        scene = world.new_scene(random.Random(seed))
        assert scene == world.new_scene(random.Random(seed))
        assert [each.place for each in scene.things] == sorted({each.place for each in scene.things})


def test_words_keep_their_row_free_of_things(rng):
    for _ in range(50):
        scene = world.new_scene(rng, top_words=world.TITLES, bottom_words=world.NAMES, most=9)
        assert {each.row for each in scene.things} == {1}


def test_words_that_refer_to_a_thing_fit_no_other_one(rng):
    for _ in range(300):
        scene = world.new_scene(rng, fewest=2)
        chosen = rng.choice(scene.things)
        words = skills.refer(chosen, scene, rng)
        if words is None:
            continue
        fitting = [
            each
            for each in scene.things
            if all(word in ("thing", each.shape, each.color, each.pattern, each.size) for word in words.split())
        ]
        assert fitting == [chosen], words


def test_a_question_about_an_attribute_does_not_name_it(rng):
    for _ in range(300):
        exchange = skills.attribute(world.new_scene(rng), rng)
        if exchange and "small or large" not in exchange.question:
            assert exchange.answer not in exchange.question.split()


def test_relations_by_hand(rng):
    scene = world.Scene((thing("star", "blue", place=3), thing("ring", "red", place=5)), "sea")
    said = {skills.relation_statement(scene, rng) for _ in range(3000)}
    answers = {exchange.question: exchange.answer for exchange in said if exchange}
    assert answers["the star is left of the ring."] == "true"
    assert answers["the star is right of the ring."] == "false"
    assert answers["the ring is above the star."] == "false"  # they are in one row


def test_counts_and_existence_by_hand(rng):
    scene = world.Scene((thing("star", "red", place=0), thing("star", "blue", place=1), thing(place=2)), "sea")
    counted = {exchange.question: exchange.answer for exchange in (skills.count(scene, rng) for _ in range(2000))}
    assert counted["how many stars are there?"] == "2"
    assert counted["how many red things are there?"] == "2"
    assert counted["how many moons are there?"] == "0"
    there = {
        exchange.question: exchange.answer for exchange in (skills.exists(scene, rng) for _ in range(300)) if exchange
    }
    assert there["is there a red star?"] == "yes"
    assert there["is there a blue circle?"] == "no"


def test_a_meme_is_hateful_when_it_hates_what_is_shown(rng):
    def hateful(feeling, shape):
        return skills.meme(world.Scene((thing("star"),), "sea", feeling, shape), rng).answer

    assert (hateful("hate", "star"), hateful("love", "star"), hateful("hate", "moon")) == ("yes", "no", "no")


def test_a_film_shows_what_it_says():
    for change in world.CHANGES:
        clip = world.new_clip(random.Random(1), change)
        assert (len(clip.frames), clip.change) == (world.FRAMES, change)
        first, last = clip.frames[0].things, clip.frames[-1].things
        if change == "moves left":
            assert clip.subject in first
            assert any(each.column == clip.subject.column - 2 for each in last)
        if change == "vanishes":
            assert len(last) == len(first) - 1
        assert clip.frames[0] != clip.frames[-1]


def test_yes_and_no_are_about_equally_frequent(rng):
    answers = collections.Counter()
    for _ in range(2000):
        exchange = skills.relation_statement(world.new_scene(rng, fewest=2), rng)
        answers[exchange and exchange.answer] += 1
    assert 0.4 < answers["true"] / (answers["true"] + answers["false"]) < 0.6


def test_scenes_that_differ_look_different(rng):
    base = thing("square", "blue", "striped", "large", 4)
    pictures = {
        drawing.draw(world.Scene((world.Thing(**{**vars(base), **other}),), "sea")).tobytes()
        for other in (
            {},
            {"shape": "heart"},
            {"color": "green"},
            {"pattern": "dotted"},
            {"size": "small"},
            {"place": 5},
        )
    }
    assert len(pictures) == 6


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("miniature")
    write_datasets.write_datasets(root / "data", scale=0.03)
    datasets.config.HF_DATASETS_CACHE = str(root / "cache")
    return root / "data"


@pytest.mark.parametrize("name", PAPER)
def test_the_package_reads_each_of_the_26_datasets(root, name):
    spec = TABLE[name]
    folder = root / ("llava_instruct" if name.startswith("llava") else spec.source.name)
    split = "train" if spec.role == "held_in" else SPLITS.get(name, "test")
    items = InstructionDataset(load(name, str(folder), split=split), name, with_images=False)
    assert len(items) >= 4
    assert all(items[place]["response"] for place in range(len(items)))


def test_there_are_thirteen_of_each_kind():
    roles = collections.Counter(TABLE[name].role for name in PAPER)
    assert roles == {"held_in": 13, "held_out": 13}
