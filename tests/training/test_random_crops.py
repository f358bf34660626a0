"""Random crops: which they are, and that a run draws them anew in each epoch and again when it is resumed."""

import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from instructblip.training import InstructBLIPTrainer, InstructBLIPTrainingArguments
from instructblip.training.random_crops import RandomCropCollator, image_digest, random_crop


@pytest.fixture
def photos(tmp_path):
    """Paths of four pictures of 60 x 40."""
    generator = np.random.default_rng(0)
    paths = [str(tmp_path / f"{number}.png") for number in range(4)]
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    return paths


def ask(image, **more):
    return {"image": image, "instruction": "is there a dog ?", "response": "no", **more}


def test_a_crop_has_at_least_half_of_the_area_and_the_proportions_of_lavis():
    image = Image.new("RGB", (60, 40))
    generator = np.random.default_rng(0)
    sizes = [random_crop(image, generator, "it").size for _ in range(500)]
    assert all(0.48 * 2400 <= wide * high <= 2400 for wide, high in sizes)
    assert all(0.72 <= wide / high <= 1.4 or (wide, high) == image.size for wide, high in sizes)
    assert len(set(sizes)) > 100
    assert random_crop(Image.new("RGB", (400, 2)), generator, "it").size == (400, 2)


def test_half_of_the_crops_are_mirrored_and_all_are_cut_of_the_image():
    row = np.arange(60, dtype=np.uint8)
    image = Image.fromarray(np.tile(row, (40, 1)))
    generator = np.random.default_rng(0)
    directions = Counter()
    for _ in range(400):
        crop = np.asarray(random_crop(image, generator, "it"))[0].astype(int)
        assert set(np.diff(crop)) in ({1}, {-1})  # columns that stood side by side, in one order or the other
        directions[int(crop[1] - crop[0])] += 1
    assert 160 < directions[-1] < 240


def test_an_array_is_refused_by_its_name():
    with pytest.raises(ValueError, match="image 0 of sample 3 is a ndarray, and random crops are cut of PIL images"):
        random_crop(np.zeros((4, 4, 3)), np.random.default_rng(0), "image 0 of sample 3")


def test_pixels_are_told_apart_by_content_shape_and_palette():
    array = np.zeros((4, 4, 3), np.uint8)
    palette = Image.fromarray(array).convert("P")
    digests = {
        image_digest(array),
        image_digest(array.reshape(4, 3, 4)),
        image_digest(array.astype(np.float32)),
        image_digest(Image.fromarray(array)),
        image_digest(palette),
    }
    assert len(digests) == 5
    assert image_digest(Image.fromarray(array)) == image_digest(Image.fromarray(array.copy()))


def test_epochs_draw_anew_and_all_samples_of_an_image_share_the_crop(photos):
    collate = RandomCropCollator(list, seed=1)
    rows = [ask(photos[0]), ask(photos[0], image_id="x"), {**ask(None), "images": [photos[1], photos[0]]}, ask(None)]
    first = collate(rows)
    assert first[0]["image"] is first[1]["image"] is first[2]["images"][1]
    assert first[3] == rows[3]
    seen = [first[0]["image"].tobytes()]
    for epoch in range(1, 6):
        collate.set_epoch(epoch)
        seen.append(collate(rows)[0]["image"].tobytes())
    assert len(set(seen)) == 6
    collate.set_epoch(0)
    assert collate(rows[1:])[0]["image"].tobytes() == seen[0]
    assert RandomCropCollator(list, seed=2)(rows)[0]["image"].tobytes() != seen[0]
    assert collate.for_evaluation()(rows) == rows


def test_a_list_under_image_is_cropped_and_frames_of_a_clip_are_cut_alike(tmp_path):
    columns = Image.fromarray(np.tile(np.arange(60, dtype=np.uint8), (40, 1)))
    frames = [columns.point(lambda value, n=n: value + n) for n in range(4)]  # each pixel tells where it was, and n

    def offsets(row):
        (sample,) = RandomCropCollator(list)([row])
        crops = sample["image"] if isinstance(row["image"], list) else sample["images"]
        first = np.asarray(crops[0]).astype(int)
        return {tuple(np.unique(np.asarray(crop).astype(int) - first)) if crop.size == crops[0].size else "other"
                for crop in crops}  # fmt: skip

    assert offsets({"image": frames, "image_id": "clip"}) == {(0,), (1,), (2,), (3,)}
    assert "other" in offsets({"image": None, "images": frames})


def test_the_epoch_of_a_sample_counts_before_that_of_the_run(photos):
    """Passes over the sources of a stream end when they end, within an epoch of the run that has no end."""
    collate = RandomCropCollator(list)
    first, second = (collate([ask(photos[0], epoch=number)])[0]["image"].tobytes() for number in (0, 1))
    assert first != second
    assert collate([ask(photos[0], epoch=None)])[0]["image"].tobytes() == first
    collate.set_epoch(1)
    assert collate([ask(photos[0], epoch=0)])[0]["image"].tobytes() == first
    assert collate([ask(photos[0])])[0]["image"].tobytes() == second


def test_a_worker_that_is_told_of_no_epoch_draws_that_of_the_training_process(photos):
    """Persistent workers hold a copy of the collator."""
    collate = RandomCropCollator(list)
    loader = torch.utils.data.DataLoader(
        [ask(photos[0])], num_workers=1, persistent_workers=True, collate_fn=collate, multiprocessing_context="fork"
    )
    (before,) = next(iter(loader))
    collate.set_epoch(1)
    (after,) = next(iter(loader))
    assert before["image"].tobytes() != after["image"].tobytes() == collate([ask(photos[0])])[0]["image"].tobytes()
    assert pickle.loads(pickle.dumps(collate)).seed == 0


@pytest.mark.parametrize("missing", ["nowhere.png", {"bytes": None}, {"bytes": None, "path": None}])
def test_an_image_that_cannot_be_read_is_named_with_its_sample(photos, missing):
    with pytest.raises(ValueError, match=r"image 0 of sample 1 \(id 'q'\)"):
        RandomCropCollator(list)([ask(photos[0]), ask(missing, id="q")])


@pytest.fixture
def run(tiny_model, processor, photos, tmp_path):
    """A factory: train, and return the losses and the pixels that the tower saw, in training and in evaluation."""

    def make(resume=None, folder="run", **options):
        torch.manual_seed(0)
        made = processor("llama")
        model = tiny_model("llama", image_token_index=made.image_token_id)
        pixels = {True: [], False: []}
        model.vision_model.register_forward_pre_hook(
            lambda _, args, kwargs: pixels[model.training].append(kwargs["pixel_values"].clone()), with_kwargs=True
        )
        arguments = dict(
            num_train_epochs=2, per_device_train_batch_size=2, learning_rate=1e-2, warmup_steps=0, logging_steps=1,
            save_steps=1, report_to="none", use_cpu=True, disable_tqdm=True, random_crops=True,
        )  # fmt: skip
        trainer = InstructBLIPTrainer(
            model,
            InstructBLIPTrainingArguments(str(tmp_path / folder), **{**arguments, **options}),
            train_dataset=[ask(photo, image_id=photo) for photo in photos],
            eval_dataset=[ask(photo) for photo in photos],
            processing_class=made,
        )
        trainer.train(resume_from_checkpoint=resume)
        trainer.evaluate()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return losses, torch.cat(pixels[True]), torch.cat(pixels[False]), made

    return make


def test_a_run_crops_in_training_only_and_a_resumed_one_draws_the_same(run, photos, tmp_path):
    losses, trained, evaluated, processor = run()
    plain = processor(images=[Image.open(photo) for photo in photos])["pixel_values"]
    assert torch.equal(evaluated, plain)
    assert len(trained) == 8
    assert len(torch.unique(torch.cat([trained, plain]), dim=0)) == 12  # all crops differ from each other
    again, resumed, _, _ = run(resume=str(tmp_path / "run" / "checkpoint-3"))
    assert again == losses
    assert torch.equal(resumed, trained[6:])


def test_crops_and_a_feature_cache_are_refused_together(tmp_path):
    with pytest.raises(ValueError, match="set feature_cache_views"):
        InstructBLIPTrainingArguments(str(tmp_path), random_crops=True, feature_cache=str(tmp_path), use_cpu=True)
