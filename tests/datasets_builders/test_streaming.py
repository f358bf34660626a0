import collections
import io
import itertools
import json

import datasets
import numpy as np
import pytest
import torch
from datasets.distributed import split_dataset_by_node
from PIL import Image
from torch.utils.data import DataLoader
from transformers import CLIPImageProcessor

from instructblip import InstructBLIPProcessor
from instructblip.datasets_builders.instructions import InstructionDataset, InstructionFormat
from instructblip.datasets_builders.mixture import InstructionMixture
from instructblip.datasets_builders.schema import make_sample, row_features
from instructblip.datasets_builders.streaming import stream_mixture
from instructblip.training import InstructBLIPTrainer, InstructBLIPTrainingArguments

SHARES = {"a": 0.5, "b": 0.2, "c": 0.3}
SIZES = {"a": 100, "b": 7, "c": 69}  # items


def png(shade):
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (shade, shade, shade)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def table(name, rows, questions=1, frames=0, answers=("it",)):
    """Rows with samples "name/row/number"; the picture of row i has the shade i, or is a clip of `frames` such."""
    made = [
        {
            **({"images": [png(row)] * frames} if frames else {"image": png(row)}),
            "image_id": f"{name}/{row}",
            "samples": [make_sample(f"{name}/{row}/{number}", "What?", list(answers)) for number in range(questions)],
        }
        for row in range(rows)
    ]
    return datasets.Dataset.from_list(made, features=row_features(several_images=frames > 0))


SOURCES = {
    "a": table("a", 50, 2).to_iterable_dataset(num_shards=4),
    "b": table("b", 7).to_iterable_dataset(num_shards=1),
    "c": table("c", 23, 3).to_iterable_dataset(num_shards=2),
}


def mix(sources=SOURCES, probabilities=SHARES, **options):
    """A stream of the three sources without images, in blocks of 8 rows."""
    formats = {name: InstructionFormat.of(name, task="vqa") for name in sources}
    options = {"formats": formats, "block_rows": 8, "with_images": False, **options}
    return stream_mixture(sources, probabilities, **options)


def take(stream, count):
    return list(itertools.islice(stream, count))


def ids(items):
    return [item["id"] for item in items]


def of(name, items):
    return [item["id"] for item in items if item["dataset"] == name]


@pytest.fixture(scope="module")
def reference():
    return take(mix(), 700)


# Order


@pytest.mark.parametrize("name", SHARES)
def test_an_exhausted_source_starts_again_at_once_in_another_order(name, reference):
    own, size = of(name, reference), SIZES[name]
    passes = [own[start : start + size] for start in range(0, len(own) - size + 1, size)]
    assert len(passes) >= 2
    assert all(sorted(one) == sorted(passes[0]) for one in passes)
    assert all(len(set(one)) == size for one in passes)
    assert len({tuple(one) for one in passes}) == len(passes)


def test_shares_are_the_probabilities_however_small_a_source_is():
    counts = collections.Counter(item["dataset"] for item in take(mix(), 5000))
    for name, share in SHARES.items():
        assert abs(counts[name] - 5000 * share) < 4 * (5000 * share * (1 - share)) ** 0.5


def test_every_pass_draws_templates_anew(reference):
    wordings = collections.defaultdict(set)
    for item in reference:
        wordings[item["id"]].add(item["instruction"])
    assert all(len(wordings[f"b/{row}/0"]) > 3 for row in range(7))


def test_the_first_pass_has_the_draws_of_the_map_style_dataset(reference):
    dataset = InstructionDataset(table("c", 23, 3), "c", task="vqa", with_images=False)
    expected = {dataset.text(index)["id"]: dataset.text(index)["instruction"] for index in range(len(dataset))}
    first = [item for item in reference if item["dataset"] == "c"][:69]
    assert {item["id"]: item["instruction"] for item in first} == expected


def test_rows_are_shuffled_within_a_block_and_shards_with_one_another():
    source = table("a", 64).to_iterable_dataset(num_shards=4)
    rows = [int(item["id"].split("/")[1]) for item in take(mix({"a": source}, {"a": 1.0}), 128)]
    for one in (rows[:64], rows[64:]):
        blocks = [one[start : start + 8] for start in range(0, 64, 8)]
        assert all(max(block) - min(block) == 7 for block in blocks)
        assert all(block != sorted(block) for block in blocks)
        assert [block[0] // 16 for block in blocks] != sorted(block[0] // 16 for block in blocks)


def test_a_block_goes_over_the_end_of_a_small_shard():
    source = table("a", 60).to_iterable_dataset(num_shards=30)  # two rows each
    rows = [int(item["id"].split("/")[1]) for item in take(mix({"a": source}, {"a": 1.0}), 60)]
    assert sum(first // 2 == second // 2 for first, second in itertools.pairwise(rows)) < 15


def test_a_stream_gives_the_same_items_each_time(reference):
    stream = mix()
    assert take(stream, 50) == take(stream, 50) == reference[:50]


def test_seeds_and_epochs_differ(reference):
    stream = mix()
    stream.set_epoch(1)
    first = take(stream, 50)
    assert ids(first) != ids(reference[:50])
    assert ids(take(mix(seed=1), 50)) != ids(reference[:50])
    stream.set_epoch(0)
    assert take(stream, 50) == reference[:50]
    stream.set_epoch(1)
    assert take(stream, 50) == first


def test_items_of_a_row_can_be_kept_together():
    items = take(mix({"c": SOURCES["c"]}, {"c": 1.0}, keep_images_together=True, with_images=True), 69)
    rows = [item["image_id"] for item in items]
    assert [len(list(group)) for _, group in itertools.groupby(rows)] == [3] * 23
    assert rows[::3] != sorted(rows[::3])
    assert items[0]["image"] is items[2]["image"]
    assert items[0]["image"] is not items[3]["image"]


# Resuming


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 9, 13, 50, 99, 100, 137, 256, 400])
@pytest.mark.parametrize("options", [{}, {"keep_images_together": True, "epoch": 2}], ids=["", "together, epoch 2"])
def test_a_stream_goes_on_with_the_next_item(cut, options):
    def new():
        stream = mix(**{name: value for name, value in options.items() if name != "epoch"})
        stream.set_epoch(options.get("epoch", 0))
        return stream

    expected = take(new(), cut + 40)
    stream = new()
    for _ in zip(range(cut), stream, strict=False):
        pass
    state = json.loads(json.dumps(stream.state_dict()))
    resumed = new()
    resumed.load_state_dict(state)
    assert take(resumed, 40) == expected[cut:]


def test_every_item_of_two_passes_can_be_the_last_before_a_stop():
    stream = mix({"b": SOURCES["b"], "c": SOURCES["c"]}, {"b": 0.5, "c": 0.5}, block_rows=5)
    states, items = [], []
    for item in itertools.islice(stream, 150):
        items.append(item["id"])
        states.append(stream.state_dict())
    for number, state in enumerate(states[:-3]):
        stream.load_state_dict(state)
        assert ids(take(stream, 3)) == items[number + 1 : number + 4]


def test_parquet_files_are_gone_on_with_inside_a_row_group(tmp_path):
    for number in range(3):
        table(f"p{number}", 40).to_parquet(tmp_path / f"{number}.parquet", batch_size=16)

    def new():
        files = sorted(map(str, tmp_path.glob("*.parquet")))
        source = datasets.load_dataset(
            "parquet", data_files=files, split="train", streaming=True, cache_dir=str(tmp_path / "cache")
        )
        return mix({"p": source}, {"p": 1.0}, block_rows=6)

    stream, states = new(), []
    expected = []
    for item in itertools.islice(stream, 200):
        expected.append(item["id"])
        states.append(stream.state_dict())
    assert sorted(expected[:120]) == sorted(f"p{file}/{row}/0" for file in range(3) for row in range(40))
    for cut in (0, 5, 11, 17, 39, 63, 118, 119, 120, 150):
        resumed = new()
        resumed.load_state_dict(states[cut])
        assert ids(take(resumed, 20)) == expected[cut + 1 : cut + 21]


def test_what_follows_a_mixture_resumes_with_it(reference):
    stream = mix().map(lambda item: {"length": len(item["response"])}).take(60)
    for _ in zip(range(25), stream, strict=False):
        pass
    state = stream.state_dict()
    stream.load_state_dict(state)
    assert ids(stream) == ids(reference[25:60])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stateful_loader_resumes(workers):
    stateful_dataloader = pytest.importorskip("torchdata.stateful_dataloader")

    def new():
        return stateful_dataloader.StatefulDataLoader(mix(), batch_size=4, num_workers=workers, collate_fn=list)

    expected = [ids(batch) for batch in itertools.islice(new(), 30)]
    loader = new()
    for _ in zip(range(11), loader, strict=False):
        pass
    state = loader.state_dict()
    resumed = new()
    resumed.load_state_dict(state)
    assert [ids(batch) for batch in itertools.islice(resumed, 19)] == expected[11:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "its seed is 0, here it is 1"),
        ({"block_rows": 9}, "its block_rows is 8, here it is 9"),
        ({"probabilities": {"a": 0.4, "b": 0.3, "c": 0.3}}, "its probabilities is"),
        ({"sources": {**SOURCES, "b": SOURCES["a"]}}, r"its sources is \[\['a', 4\], \['b', 1\]"),
    ],
)
def test_a_state_of_another_mixture_is_refused(change, message):
    stream = mix()
    take(stream, 5)
    other = mix(**change)
    other.load_state_dict(stream.state_dict())
    with pytest.raises(ValueError, match=f"the loaded state is of another mixture.*{message}"):
        next(iter(other))


# Ranks and workers


def first_passes(name, parts):
    """What each part gives of a source before it starts again."""
    passes = []
    for items in parts:
        own = of(name, items)
        again = next((end for end in range(len(own)) if own[end] in own[:end]), len(own))
        passes.append(own[:again])
    return passes


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_ranks_share_the_rows_of_each_pass(world_size):
    ranks = [split_dataset_by_node(mix(), rank, world_size) for rank in range(world_size)]
    parts = [take(rank, 250) for rank in ranks]
    for name, size in SIZES.items():
        passes = first_passes(name, parts)
        together = list(itertools.chain(*passes))
        assert len(together) == len(set(together)) == size
        assert max(map(len, passes)) - min(map(len, passes)) <= {"a": 4, "b": 1, "c": 3}[name]
    sources = [[item["dataset"] for item in part] for part in parts]
    assert sources[0] != sources[1]


def test_shards_as_accelerate_asks_for_them_share_the_rows():
    parts = [take(mix().shard(num_shards=2, index=rank), 250) for rank in range(2)]
    for name, size in SIZES.items():
        together = list(itertools.chain(*first_passes(name, parts)))
        assert len(together) == len(set(together)) == size


def test_ranks_resume():
    rank = split_dataset_by_node(mix(), 1, 3)
    expected = take(rank, 200)
    take(rank, 90)
    resumed = split_dataset_by_node(mix(), 1, 3)
    resumed.load_state_dict(rank.state_dict())
    assert take(resumed, 110) == expected[90:]


def test_a_world_that_does_not_divide_gets_every_item_once(reference):
    ranks = [split_dataset_by_node(mix(), rank, 11) for rank in range(11)]
    assert [item for step in zip(*(take(rank, 5) for rank in ranks), strict=True) for item in step] == reference[:55]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_of_ranks_share_the_rows_of_each_pass(workers):
    parts = collections.defaultdict(list)
    for rank in range(2):
        stream = split_dataset_by_node(mix(), rank, 2)
        loader = DataLoader(stream, batch_size=10, num_workers=workers, collate_fn=list)
        for number, batch in enumerate(itertools.islice(loader, 20 * workers)):
            parts[rank, number % workers] += batch
    for name, size in SIZES.items():
        together = list(itertools.chain(*first_passes(name, parts.values())))
        assert len(together) == len(set(together)) == size


def test_a_source_with_fewer_rows_than_parts_goes_whole_to_those_that_would_get_none():
    source = table("b", 3).to_iterable_dataset()
    parts = [take(split_dataset_by_node(mix({"b": source}, {"b": 1.0}), rank, 4), 12) for rank in range(4)]
    passes = first_passes("b", parts)
    assert [len(one) for one in passes] == [1, 1, 1, 3]
    assert len(set(itertools.chain(*passes[:3]))) == 3
    resumed = split_dataset_by_node(mix({"b": source}, {"b": 1.0}), 3, 4)
    take(resumed, 4)
    resumed.load_state_dict(resumed.state_dict())
    assert take(resumed, 8) == parts[3][4:]


def test_a_part_whose_shards_have_no_answer_takes_the_whole_source():
    rows = datasets.concatenate_datasets([table("b", 3, answers=()), table("c", 3)])
    source = rows.to_iterable_dataset(num_shards=2)
    parts = [take(split_dataset_by_node(mix({"b": source}, {"b": 1.0}), rank, 2), 6) for rank in range(2)]
    assert [set(ids(part)) for part in parts] == [{"c/0/0", "c/1/0", "c/2/0"}] * 2


def test_persistent_workers_hear_of_a_new_epoch():
    stream = mix()
    loader = DataLoader(stream.take(40), batch_size=10, num_workers=2, collate_fn=list, persistent_workers=True)
    assert len(list(loader)) == 4
    stream = mix()
    loader = DataLoader(stream, batch_size=10, num_workers=1, collate_fn=list, persistent_workers=True)
    first = next(iter(loader))
    stream.set_epoch(1)
    second = next(iter(loader))
    stream.set_epoch(0)
    assert first != second
    assert next(iter(loader)) == first


# Items


def test_videos_have_images_and_pictures_have_an_image():
    sources = {"clip": table("clip", 5, frames=3).to_iterable_dataset(), "c": SOURCES["c"]}
    items = take(mix(sources, {"clip": 0.5, "c": 0.5}, with_images=True), 60)
    assert {item["dataset"] for item in items} == {"clip", "c"}
    for item in items:
        shade = int(item["id"].split("/")[1])
        pictures = item["images"] if item["dataset"] == "clip" else [item["image"]]
        assert {"image", "images"} & item.keys() == {"images" if item["dataset"] == "clip" else "image"}
        assert len(pictures) == (3 if item["dataset"] == "clip" else 1)
        assert all(np.array(picture).mean() == shade for picture in pictures)


def test_items_have_the_fields_of_the_format_and_the_name_of_the_source(reference):
    fields = {"id", "image_id", "dataset", "epoch", "template", "instruction", "response"}
    assert reference[0].keys() == fields
    renamed = {"other": SOURCES["b"]}
    (item,) = take(mix(renamed, {"other": 1.0}, formats={"other": InstructionFormat.of("b", task="vqa")}), 1)
    assert item["dataset"] == "other"


def test_images_that_are_not_to_be_decoded_are_left_as_they_are():
    source = table("b", 2).to_iterable_dataset().cast_column("image", datasets.Image(decode=False))
    (item,) = take(mix({"b": source}, {"b": 1.0}, with_images=True), 1)
    assert item["image"]["bytes"].startswith(b"\x89PNG")


def test_a_generator_of_rows_is_a_source():
    def rows(shards):
        for shard in shards:
            yield from table(f"g{shard}", 5).cast_column("image", datasets.Image(decode=False))

    source = datasets.IterableDataset.from_generator(rows, gen_kwargs={"shards": [0, 1]}, features=row_features())
    stream = mix({"g": source}, {"g": 1.0}, with_images=True)
    expected = take(stream, 30)
    assert len(set(ids(expected[:10]))) == 10
    assert expected[0]["image"].size == (6, 4)
    take(stream, 13)
    stream.load_state_dict(stream.state_dict())
    assert ids(take(stream, 17)) == ids(expected[13:])


def test_a_broken_image_is_named():
    broken = table("b", 2).cast_column("image", datasets.Image(decode=False))
    broken = broken.map(lambda row: {"image": {"bytes": row["image"]["bytes"][:40], "path": None}})
    source = broken.cast_column("image", datasets.Image()).to_iterable_dataset()
    with pytest.raises(OSError, match="b/[01]/0: image b/[01] cannot be read: "):
        take(mix({"b": source}, {"b": 1.0}, with_images=True), 1)


def test_a_source_without_answers_is_named():
    sources = {"a": SOURCES["a"], "b": table("b", 5, answers=()).to_iterable_dataset()}
    with pytest.raises(ValueError, match="source 'b' gives no item: it has no row, or no sample with an answer"):
        take(mix(sources, {"a": 0.5, "b": 0.5}), 20)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sources": {}}, ValueError, "no sources"),
        ({"sources": {"a": table("a", 2)}}, TypeError, "source 'a' is a Dataset: expected a datasets.IterableDataset"),
        ({"sources": {"a": SOURCES["a"].map(dict)}}, ValueError, "source 'a' does not say its features"),
        (
            {"sources": {"a": SOURCES["a"].remove_columns("image")}, "with_images": True},
            ValueError,
            "source 'a' has columns image_id, samples: expected image or images, image_id and samples",
        ),
        ({"probabilities": {"a": 1.0}}, ValueError, "'b' is without a probability"),
        ({"probabilities": None}, ValueError, "the paper trains on no dataset called 'a': pass probabilities"),
        ({"formats": {"d": None}}, ValueError, "a format for 'd', which is no source: the sources are a, b, c"),
        ({"block_rows": 0}, ValueError, "block_rows=0: expected 1 or more"),
        ({"seed": -1}, ValueError, "seed=-1: expected 0 or more"),
    ],
)
def test_what_does_not_fit_is_named(options, error, message):
    if "sources" in options and "probabilities" not in options:
        options = {**options, "probabilities": {name: 1 / len(options["sources"]) for name in options["sources"]}}
    with pytest.raises(error, match=message):
        mix(**options)


# Training


@pytest.fixture
def train(tiny_model, t5_tokenizer, qformer_tokenizer, tmp_path):
    """train(dataset, folder, resume): the losses of six steps with the tiny model, and the items that were collated."""

    def make(dataset, folder, resume=None):
        processor = InstructBLIPProcessor(
            CLIPImageProcessor(size={"height": 28, "width": 28}, do_center_crop=False), t5_tokenizer,
            qformer_tokenizer, num_query_tokens=4, qformer_max_length=32, is_encoder_decoder=True,
        )  # fmt: skip
        arguments = InstructBLIPTrainingArguments(
            str(tmp_path / folder), per_device_train_batch_size=4, max_steps=6, warmup_steps=0, logging_steps=1,
            learning_rate=1e-2, save_steps=3, report_to="none", use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        torch.manual_seed(0)  # the frozen weights are not in a checkpoint
        trainer = InstructBLIPTrainer(
            model=tiny_model("t5", image_token_index=processor.image_token_id),
            args=arguments,
            train_dataset=dataset,
            processing_class=processor,
        )
        collate, seen = trainer.data_collator, []

        def noting(items):
            seen.extend(item["id"] for item in items)
            return collate(items)

        trainer.data_collator = noting
        trainer.train(resume_from_checkpoint=resume and str(tmp_path / resume))
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], seen

    return make


def test_the_trainer_trains_on_a_stream_of_pictures_and_clips_and_resumes(train):
    sources = {"clip": table("clip", 5, frames=2).to_iterable_dataset(), "c": SOURCES["c"]}

    def new():
        return mix(sources, {"clip": 0.5, "c": 0.5}, with_images=True)

    losses, seen = train(new(), "whole")
    assert np.isfinite([float(loss) for loss in losses]).all()
    assert seen[:24] == ids(take(new(), 24))
    assert train(new(), "resumed", resume="whole/checkpoint-3")[0] == losses


def test_the_trainer_trains_on_a_map_style_mixture_and_resumes_in_its_second_epoch(train):
    def new():
        parts = {name: InstructionDataset(table(name, 4), name, task="vqa") for name in ("a", "b")}
        return InstructionMixture(parts, length=8)  # two steps

    losses, seen = train(new(), "whole")
    assert len(seen) == 24
    resumed, again = train(new(), "resumed", resume="whole/checkpoint-3")
    assert resumed == losses
    assert again == seen[12:]
