import datasets
import numpy as np
import pytest
from torch.utils.data import DataLoader

from instructblip.datasets_builders import InstructionDataset, InstructionMixture
from instructblip.datasets_builders.schema import make_sample, row_features
from instructblip.training.image_sampler import ImageSampler


def samples_of(counts):
    """A list of samples: `counts[i]` of image i."""
    return [{"image_id": f"image {image}"} for image, count in enumerate(counts) for _ in range(count)]


def batches(sampler):
    items = list(sampler)
    return [items[start : start + sampler.batch_size] for start in range(0, len(items), sampler.batch_size)]


def images_per_batch(dataset, sampler):
    return [len({dataset[item]["image_id"] for item in batch}) for batch in batches(sampler)]


def test_every_item_comes_once_an_epoch():
    dataset = samples_of([1, 2, 3, 7, 1, 12, 5] * 9)
    sampler = ImageSampler(dataset, batch_size=8, images_together=3)
    assert sorted(sampler) == list(range(len(dataset)))
    assert len(sampler) == len(dataset)


def test_four_questions_of_an_image_make_a_batch_of_eight_show_two_images():
    dataset = samples_of([4] * 40)
    assert images_per_batch(dataset, ImageSampler(dataset, 8, 4)) == [2] * 20
    assert np.mean(images_per_batch(dataset, ImageSampler(dataset, 8, 1))) > 7


def test_groups_that_do_not_divide_a_batch_are_hardly_ever_cut():
    """Groups of 3 in batches of 8 leave room for 2, which images with one or two questions fill."""
    dataset = samples_of([3] * 100 + [1, 2] * 60)
    batch_of = {}
    for number, batch in enumerate(batches(ImageSampler(dataset, 8, 3))):
        batch_of.update(dict.fromkeys(batch, number))
    cut = [image for image in range(100) if len({batch_of[3 * image + question] for question in range(3)}) > 1]
    assert len(cut) <= 3


def test_groups_that_fit_nowhere_are_cut_rather_than_kept_to_the_end():
    dataset = samples_of([3] * 400)
    sampler = ImageSampler(dataset, 4, 3)
    assert sorted(sampler) == list(range(1200))
    assert np.mean(images_per_batch(dataset, sampler)) < 2.5


def test_no_more_than_images_together_of_an_image_are_put_together():
    dataset = samples_of([16] * 30)
    most = [max(np.bincount(np.array(batch) // 16)) for batch in batches(ImageSampler(dataset, 8, 2))]
    assert np.mean(most) < 3  # by chance two groups of an image may meet
    assert min(most) == 2


def test_the_order_is_decided_by_seed_and_epoch():
    dataset = samples_of([3] * 20)

    def order(seed, epoch):
        sampler = ImageSampler(dataset, 4, 3, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def rows_of(prefix, images, questions):
    rows = [
        {
            "image_id": f"{prefix}/{image}",
            "samples": [make_sample(f"{prefix}/{image}/{number}", "what ?", ["yes"]) for number in range(questions)],
        }
        for image in range(images)
    ]
    schema = datasets.Features({name: feature for name, feature in row_features().items() if name != "image"})
    return datasets.Dataset.from_list(rows, features=schema)


def instructions(prefix, images=10, questions=4):
    return InstructionDataset(rows_of(prefix, images, questions), prefix, task="vqa", with_images=False)


def test_an_instruction_dataset_is_grouped_by_its_rows():
    dataset = instructions("coco")
    assert images_per_batch(dataset, ImageSampler(dataset, 8, 4)) == [2] * 5


def test_a_mixture_is_grouped_across_datasets_that_share_images_and_epochs_differ():
    """Two datasets ask four questions each about the same ten images; a third has images of its own."""
    parts = {"a": instructions("coco"), "b": instructions("coco"), "c": instructions("other")}
    mixture = InstructionMixture(parts, dict(a=0.4, b=0.4, c=0.2), length=100)
    sampler = ImageSampler(mixture, 10, 5)
    first = list(sampler)
    assert sorted(first) == list(range(100))
    assert np.mean(images_per_batch(mixture, sampler)) < 4
    mixture.set_epoch(1)
    assert np.mean(images_per_batch(mixture, sampler)) < 4
    assert list(sampler) != first


@pytest.mark.parametrize("epoch", [0, 3])
def test_all_items_of_a_mixture_at_once_are_those_that_it_locates(epoch):
    parts = {"a": instructions("a", images=7), "b": instructions("b", images=1, questions=1)}
    mixture = InstructionMixture(parts, dict(a=0.8, b=0.2), length=300)
    mixture.set_epoch(epoch)
    mixture.sources()
    assert mixture.order.items().tolist() == [mixture.locate(place)[1] for place in range(300)]


def test_processes_that_take_batches_in_turn_share_the_epoch_out():
    from accelerate.data_loader import BatchSamplerShard

    dataset = samples_of([4] * 16)
    found = []
    for rank in range(2):
        loader = DataLoader(dataset, 8, sampler=ImageSampler(dataset, 8, 4), collate_fn=list)
        found += [item for batch in BatchSamplerShard(loader.batch_sampler, 2, rank) for item in batch]
    assert sorted(found) == list(range(64))


def test_samples_without_id_are_known_by_their_path():
    dataset = [{"image": f"{number // 4}.jpg"} for number in range(32)] + [{"image": None}] * 8
    batch = next(iter(batches(ImageSampler(dataset[:32], 8, 4))))
    assert len({item // 4 for item in batch}) == 2
    assert sorted(ImageSampler(dataset, 8, 4)) == list(range(40))


def test_what_does_not_say_its_images_is_refused():
    with pytest.raises(TypeError, match="columns question: it must say which image each item shows"):
        ImageSampler(datasets.Dataset.from_dict({"question": ["?"] * 8}), 4, 2)
    with pytest.raises(TypeError, match="keep_images_together=True"):
        ImageSampler(datasets.Dataset.from_dict({"question": ["?"]}).to_iterable_dataset(), 4, 2)
    with pytest.raises(ValueError, match="images_together=5 in batches of 4: expected 1 to 4"):
        ImageSampler(samples_of([8]), 4, 5)
