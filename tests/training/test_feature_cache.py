import functools
import json
import multiprocessing
import os
import shutil
from pathlib import Path

import datasets
import distributed_training
import numpy as np
import pytest
import several_processes
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import CLIPImageProcessor, TrainerCallback

from instructblip import (
    InstructBLIPCollator,
    InstructBLIPForConditionalGeneration,
    InstructBLIPProcessor,
    InstructBLIPStage1Collator,
)
from instructblip.datasets_builders import InstructionDataset, InstructionMixture, load_own
from instructblip.training import InstructBLIPTrainer, InstructBLIPTrainingArguments
from instructblip.training.encode_ahead import RowsOfProcess, encode_images
from instructblip.training.feature_cache import FeatureCache, encoder, leave_images_encoded
from instructblip.training.feature_store import FeatureStore

QUESTIONS = ("what is the color ?", "is there a dog ?")


@pytest.fixture
def processor(t5_tokenizer, qformer_tokenizer):
    images = CLIPImageProcessor(size={"height": 28, "width": 28}, do_center_crop=False)
    return InstructBLIPProcessor(
        images, t5_tokenizer, qformer_tokenizer, num_query_tokens=4, qformer_max_length=32, is_encoder_decoder=True
    )


@pytest.fixture
def model(tiny_model, processor):
    return tiny_model("t5", image_token_index=processor.image_token_id).requires_grad_(False)


@pytest.fixture
def photos(tiny_images, tmp_path):
    """Paths of eight pictures."""
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(tiny_images):
        image.save(tmp_path / "photos" / f"{number}.png")
    return [str(tmp_path / "photos" / f"{number}.png") for number in range(8)]


@pytest.fixture
def samples(photos):
    """Two questions about each picture, some samples of text alone and one of two pictures."""
    rows = [
        {"image": photo, "instruction": question, "response": answer, "id": f"{number}/{answer}"}
        for number, photo in enumerate(photos)
        for question, answer in zip(QUESTIONS, ("red", "no"), strict=True)
    ]
    rows.insert(3, {"image": None, "instruction": "is there a photo ?", "response": "no"})
    rows.insert(7, {"images": photos[:2], "instruction": "<image> <image> is there a dog ?", "response": "yes"})
    return rows


@pytest.fixture
def cache(model, processor, tmp_path):
    """A factory of float32 caches in one folder."""

    def make(**options):
        return FeatureCache(tmp_path / "cache", options.pop("model", model), processor, "float32", **options)

    return make


def counting_encoder(model):
    """The model's tower, and a list of the images that it encoded each time."""
    counts = []
    encode = encoder(model, lambda: torch.autocast("cpu", enabled=False))

    def counted(pixels):
        counts.append(len(pixels))
        return encode(pixels)

    return counted, counts


def collate_and_complete(cache, processor, samples, encode):
    return cache.complete(cache.collator(InstructBLIPCollator(processor))(samples), encode)


# ---- the store


def shards(folder):
    return sorted(folder.glob("**/*.safetensors"))


def test_what_was_put_is_got_by_another_store_after_a_flush(tmp_path):
    tensors = {f"image{number}": torch.randn(3, 4).to(torch.bfloat16) for number in range(10)}
    writer, reader = FeatureStore(tmp_path), FeatureStore(tmp_path)
    assert reader.get("image3") is None
    for name, tensor in tensors.items():
        writer.put(name, tensor)
    assert torch.equal(writer.get("image3"), tensors["image3"])  # not written yet
    writer.flush()
    for name, tensor in tensors.items():
        assert torch.equal(reader.get(name), tensor)
    assert reader.get("another") is None
    assert len(reader) == 10


def test_a_full_shard_is_written_by_itself_so_that_memory_is_bounded(tmp_path):
    store = FeatureStore(tmp_path, shard_bytes=100)
    for number in range(9):
        store.put(str(number), torch.zeros(10))  # 40 bytes
    assert len(shards(tmp_path)) == 3
    assert len(FeatureStore(tmp_path)) == 9


def test_at_its_limit_the_store_warns_once_and_keeps_what_it_has(tmp_path, caplog):
    store = FeatureStore(tmp_path, max_bytes=2000, shard_bytes=400)
    for number in range(50):
        store.put(str(number), torch.zeros(100))
    assert sum(path.stat().st_size for path in shards(tmp_path)) <= 2000
    assert caplog.text.count("its limit is 2e-06 GB") == 1
    assert torch.equal(store.get("0"), torch.zeros(100))
    assert store.get("49") is None


def test_the_limit_counts_all_caches_of_a_folder(tmp_path):
    FeatureStore(tmp_path / "a", limited=tmp_path).put("x", torch.zeros(1000))
    first = FeatureStore(tmp_path / "a", limited=tmp_path)
    first.put("x", torch.zeros(1000))
    first.flush()
    second = FeatureStore(tmp_path / "b", max_bytes=5000, limited=tmp_path)
    second.put("y", torch.zeros(1000))
    second.flush()
    assert second.stopped
    assert len(shards(tmp_path)) == 1


def test_a_damaged_record_is_named_and_counts_as_missing_and_may_be_written_anew(tmp_path, caplog):
    store = FeatureStore(tmp_path)
    store.put("cat", torch.ones(50))
    store.put("dog", torch.zeros(50))
    store.flush()
    (shard,) = shards(tmp_path)
    content = shard.read_bytes()
    one = torch.ones(1).numpy().tobytes()
    place = content.index(one * 50)
    shard.write_bytes(content[:place] + one[:3] + b"\x40" + content[place + 4 :])
    reader = FeatureStore(tmp_path)
    assert reader.get("cat") is None
    assert f"{shard}: the record of image cat is damaged" in caplog.text
    assert torch.equal(reader.get("dog"), torch.zeros(50))
    assert list(reader.damaged()) == [(shard, "cat")]
    reader.put("cat", torch.ones(50))
    reader.flush()
    assert torch.equal(FeatureStore(tmp_path).get("cat"), torch.ones(50))


def test_a_shard_that_was_cut_off_is_named_and_left_out(tmp_path, caplog):
    store = FeatureStore(tmp_path)
    store.put("cat", torch.ones(50))
    store.flush()
    (shard,) = shards(tmp_path)
    shard.write_bytes(shard.read_bytes()[:-10])
    assert FeatureStore(tmp_path).get("cat") is None
    assert f"{shard} is damaged" in caplog.text


def test_a_full_disk_stops_the_writing_and_not_the_run(tmp_path, caplog, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("instructblip.training.feature_store.save_file", full)
    store = FeatureStore(tmp_path)
    store.put("cat", torch.ones(5))
    store.flush()
    assert store.stopped
    assert "cannot be written: [Errno 28] No space left on device" in caplog.text


def test_what_a_killed_writer_left_is_removed_when_it_is_old(tmp_path):
    for name in ("old.safetensors.unfinished", "new.safetensors.unfinished"):
        (tmp_path / name).write_bytes(b"x")
    os.utime(tmp_path / "old.safetensors.unfinished", (0, 0))
    FeatureStore(tmp_path)
    assert os.listdir(tmp_path) == ["new.safetensors.unfinished"]


def _write_and_read(folder, process):
    store = FeatureStore(folder, shard_bytes=2000)
    for round_ in range(3):
        for number in range(40):
            name = str(number if round_ else (number + 13 * process) % 40)
            found = store.get(name)
            if found is None:
                store.put(name, torch.full((100,), float(name)))
            elif not torch.equal(found, torch.full((100,), float(name))):
                os._exit(1)
    store.flush()
    os._exit(0)


def test_processes_that_write_the_same_images_at_once_damage_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_write_and_read, args=(tmp_path, number)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    store = FeatureStore(tmp_path)
    assert all(torch.equal(store.get(str(number)), torch.full((100,), float(number))) for number in range(40))
    assert not list(store.damaged())


# ---- the cache


def test_a_batch_from_the_cache_is_the_batch_without_it(cache, model, processor, samples):
    """Once some of the images are cached, and once all."""
    encode, counts = counting_encoder(model)
    plain = InstructBLIPCollator(processor)(samples)
    expected = model.encode_images(plain.pop("pixel_values")).last_hidden_state
    filled = cache()
    collate_and_complete(filled, processor, samples[:7], encode)
    for _ in range(2):
        batch = collate_and_complete(filled, processor, samples, encode)
        torch.testing.assert_close(batch.pop("image_embeds"), expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(dict(batch), dict(plain), rtol=0, atol=0)
    assert counts == [3, 5]


def test_an_image_is_encoded_once_whatever_form_it_comes_in_and_whatever_it_is_called(cache, model, processor, photos):
    content = Path(photos[0]).read_bytes()
    forms = [photos[0], content, {"bytes": content, "path": "other.png"}, {"bytes": None, "path": photos[0]}]
    rows = [
        {"image": form, "image_id": number, "instruction": "is there a dog ?", "response": "no"}
        for number, form in enumerate(forms)
    ]
    encode, counts = counting_encoder(model)
    batch = collate_and_complete(cache(), processor, rows, encode)
    assert counts == [1]
    assert all(torch.equal(features, batch["image_embeds"][0]) for features in batch["image_embeds"])


def test_images_of_one_name_and_different_content_are_told_apart(cache, model, processor, photos, tmp_path):
    encode, counts = counting_encoder(model)
    kept = cache()
    row = {"image": str(tmp_path / "same.png"), "instruction": "is there a dog ?", "response": "no"}
    found = []
    for photo in photos[:2]:
        shutil.copy(photo, row["image"])
        found.append(collate_and_complete(kept, processor, [row], encode)["image_embeds"])
    assert counts == [1, 1]
    assert not torch.equal(*found)


def test_a_worker_that_looked_too_early_costs_nothing(cache, model, processor, samples):
    """Batches that were collated before the images of an earlier one were added."""
    encode, counts = counting_encoder(model)
    kept = cache()
    collate = kept.collator(InstructBLIPCollator(processor))
    early = [collate(samples[:4]), collate(samples[:4])]
    first, second = (kept.complete(batch, encode)["image_embeds"] for batch in early)
    assert counts == [2]
    assert torch.equal(first, second)


def test_tower_transform_and_dtype_have_caches_of_their_own(cache, tiny_model, processor, model, tmp_path, caplog):
    folders = [cache().folder]
    assert cache().folder == folders[0]
    assert not caplog.text
    torch.manual_seed(7)
    folders.append(cache(model=tiny_model("t5").requires_grad_(False)).folder)
    assert "of another tower" in caplog.text
    folders.append(cache(model=tiny_model("t5", vision="siglip_vision_model").requires_grad_(False)).folder)
    folders.append(FeatureCache(tmp_path / "cache", model, processor).folder)
    processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    folders.append(cache().folder)
    assert "of another image_processor" in caplog.text
    assert len(set(folders)) == 5
    about = json.loads((folders[-1] / "about.json").read_text())
    assert about["image_processor"]["image_mean"] == [0.1, 0.2, 0.3]


def test_training_the_bridge_keeps_the_cache_and_another_tower_weight_does_not(cache, model):
    before = cache().folder
    model.vision_layernorm.weight.data.mul_(2)
    assert cache().folder == before
    model.vision_model.encoder.layers[1].mlp.fc1.weight.data[0, 0] += 1e-3
    assert cache().folder != before


def test_a_tower_that_trains_is_refused(cache, model):
    model.vision_model.encoder.layers[0].requires_grad_(True)
    with pytest.raises(ValueError, match=r"12 tensors of this one train, such as encoder.layers.0"):
        cache()


def test_an_image_that_cannot_be_read_is_named_with_its_sample(cache, model, processor, samples, tmp_path):
    encode, _ = counting_encoder(model)
    (tmp_path / "broken.png").write_bytes(b"no image")
    for path, message in (("gone.png", "does not exist"), ("broken.png", "is not an image")):
        wrong = [samples[0], {**samples[1], "image": str(tmp_path / path)}]
        with pytest.raises(ValueError, match=rf"image 0 of sample 1 \(id '0/no'\).*{path}.*{message}"):
            collate_and_complete(cache(), processor, wrong, encode)


def test_features_of_ones_own_pass_through(cache, model, processor, tiny_images):
    features = model.encode_images(processor(images=tiny_images[:1])["pixel_values"]).last_hidden_state
    row = {"image_embeds": features[0], "instruction": "is there a dog ?", "response": "no"}
    batch = collate_and_complete(cache(), processor, [row], None)
    assert torch.equal(batch["image_embeds"], features)


def test_stage_1_tells_pictures_without_id_apart_by_their_content(cache, model, processor, photos):
    collate = cache().collator(InstructBLIPStage1Collator(processor))
    rows = [{"image": photo, "caption": "a photo"} for photo in [photos[0], photos[1], photos[0]]]
    first, second, again = collate(rows)["image_ids"].tolist()
    assert first == again != second
    assert collate(rows[1:2])["image_ids"].tolist() == [second]  # on another process, say


def test_what_is_missing_where_nothing_can_be_encoded_is_an_error_that_says_what_to_run(cache, processor, samples):
    with pytest.raises(RuntimeError, match="2 images of a batch are not in the feature cache.*with encode_images"):
        collate_and_complete(cache(), processor, samples[:4], None)


def test_views_take_turns_and_evaluations_see_the_image_itself(cache, model, processor, tmp_path):
    large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    row = {"image": large, "instruction": "is there a dog ?", "response": "no"}
    encode, counts = counting_encoder(model)
    kept = cache(views=3)
    collate = kept.collator(InstructBLIPCollator(processor))
    found = []
    for epoch in range(6):
        collate.set_epoch(epoch)
        found.append(kept.complete(collate([row]), encode)["image_embeds"])
    assert counts == [1, 1, 1]
    assert all(torch.equal(found[epoch], found[epoch + 3]) for epoch in range(3))
    plain = model.encode_images(processor(images=[large])["pixel_values"]).last_hidden_state
    assert sum(torch.allclose(features, plain, atol=1e-6) for features in found[:3]) == 1
    collate.set_epoch(1)
    torch.testing.assert_close(kept.complete(collate.for_evaluation()([row]), encode)["image_embeds"], plain)


def test_views_follow_a_samples_own_pass_as_an_endless_stream_has_no_epochs(cache, model, processor, tmp_path):
    large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    row = {"image": large, "instruction": "is there a dog ?", "response": "no"}
    encode, counts = counting_encoder(model)
    kept = cache(views=3)
    collate = kept.collator(InstructBLIPCollator(processor))
    batch = kept.complete(collate([{**row, "epoch": epoch} for epoch in (0, 1, 2, 3)]), encode)
    assert counts == [3]
    assert batch["image_index"].flatten().tolist() == [0, 1, 2, 0]
    first = batch["image_embeds"]
    assert len(torch.unique(first, dim=0)) == 3
    collate.set_epoch(1)
    again = kept.complete(collate([{**row, "epoch": 2}, row]), encode)
    torch.testing.assert_close(again["image_embeds"], first[[2, 1]], atol=1e-2, rtol=1e-2)


def test_workers_look_up_what_the_training_process_has_written(cache, model, processor, samples):
    encode, counts = counting_encoder(model)
    kept = cache()
    loader = DataLoader(samples, 9, num_workers=1, collate_fn=kept.collator(InstructBLIPCollator(processor)))
    for _ in range(2):
        for batch in loader:
            kept.complete(batch, encode)
        kept.store.flush()
    assert sum(counts) == 8


# ---- the trainer


class Losses(TrainerCallback):
    """Every logged loss, unrounded."""

    def __init__(self):
        self.values = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.values += [logs[name] for name in ("loss", "eval_loss") if name in (logs or {})]


@pytest.fixture
def train(tiny_model, processor, samples, tmp_path):
    """A factory: train a new copy of one model and return (losses, images that the tower encoded)."""

    def run(dataset=None, resume=None, **options):
        torch.manual_seed(0)
        model = tiny_model("t5", image_token_index=processor.image_token_id)
        encoded = []
        model.vision_model.register_forward_hook(lambda _, __, output: encoded.append(len(output[0])))
        defaults = dict(
            num_train_epochs=2, per_device_train_batch_size=5, learning_rate=1e-2, warmup_steps=0, logging_steps=1,
            save_strategy="no", eval_strategy="epoch", report_to="none", use_cpu=True, disable_tqdm=True, bf16=False,
        )  # fmt: skip
        losses = Losses()
        trainer = InstructBLIPTrainer(
            model,
            InstructBLIPTrainingArguments(str(tmp_path / "run"), **{**defaults, **options}),
            train_dataset=samples if dataset is None else dataset,
            eval_dataset=samples[:6],
            processing_class=processor,
            callbacks=[losses],
        )
        trainer.train(resume_from_checkpoint=resume)
        return losses.values, encoded

    return run


def test_a_cached_run_gives_the_losses_of_an_uncached_one(train, tmp_path):
    options = {"feature_cache": str(tmp_path / "cache"), "feature_cache_dtype": "float32"}
    plain, _ = train()
    cold, encoded = train(**options)
    warm, none = train(predict_with_generate=True, dataloader_num_workers=1, **options)
    assert cold == pytest.approx(plain, abs=1e-6, rel=1e-6)
    assert warm == cold
    assert sum(encoded) == 8
    assert none == []


def test_bfloat16_features_give_about_the_same_losses_and_the_same_whether_found_or_not(train, tmp_path):
    plain, _ = train()
    cold, encoded = train(feature_cache=str(tmp_path / "cache"))
    warm, none = train(feature_cache=str(tmp_path / "cache"))
    assert cold == pytest.approx(plain, rel=2e-2)
    assert warm == cold
    assert (sum(encoded), none) == (8, [])


def test_a_cache_at_its_limit_gives_the_same_losses(train, tmp_path):
    options = {"feature_cache": str(tmp_path / "cache"), "feature_cache_dtype": "float32"}
    plain, _ = train()
    full, encoded = train(feature_cache_gb=1e-9, **options)
    assert full == pytest.approx(plain, abs=1e-6, rel=1e-6)
    assert sum(encoded) > 16  # what is collected for the first shard is used until it cannot be written


def test_a_damaged_cache_is_repaired_by_the_next_run(train, tmp_path, caplog):
    options = {"feature_cache": str(tmp_path / "cache"), "feature_cache_dtype": "float32"}
    good, _ = train(**options)
    (shard,) = shards(tmp_path / "cache")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 0x40
    shard.write_bytes(bytes(content))
    again, encoded = train(**options)
    assert again == pytest.approx(good, abs=1e-6, rel=1e-6)
    assert sum(encoded) == 1
    assert f"{shard}: the record of image" in caplog.text
    assert train(**options)[1] == []


def test_with_images_together_fewer_images_are_encoded(train):
    options = dict(num_train_epochs=1, eval_strategy="no", per_device_train_batch_size=6)
    assert sum(train(images_together=2, **options)[1]) < sum(train(**options)[1])


def test_a_resumed_run_has_the_order_of_an_unbroken_one(train, tmp_path):
    options = dict(images_together=2, eval_strategy="no", save_strategy="steps", save_steps=5, max_steps=8)
    whole, _ = train(**options)
    assert train(resume=str(tmp_path / "run" / "checkpoint-5"), **options)[0] == whole[5:]


def test_two_orders_at_once_are_refused(train):
    with pytest.raises(ValueError, match="each decide the order"):
        train(images_together=2, train_sampling_strategy="sequential")


def test_another_collator_is_refused(model, processor, samples, tmp_path):
    args = InstructBLIPTrainingArguments(str(tmp_path), use_cpu=True, report_to="none", feature_cache=str(tmp_path))
    with pytest.raises(TypeError, match="needs an InstructBLIPCollator"):
        InstructBLIPTrainer(model, args, data_collator=list, train_dataset=samples, processing_class=processor)


# ---- encoding before training


@pytest.fixture
def saved(model, processor, tmp_path):
    """A model and its processor in a folder."""
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def own_data(photos, tmp_path):
    """Two questions about each of eight pictures."""
    lines = [
        {"image": f"photos/{number}.png", "question": question, "answer": "no"}
        for number in range(8)
        for question in QUESTIONS
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return InstructionDataset(load_own(str(tmp_path / "train.jsonl")), "own", task="vqa")


@pytest.fixture
def arguments(tmp_path):
    def make(**options):
        cache = str(tmp_path / "cache")
        defaults = dict(use_cpu=True, report_to="none", feature_cache=cache, disable_tqdm=True, save_strategy="no")
        return InstructBLIPTrainingArguments(str(tmp_path / "run"), **{**defaults, **options})

    return make


def test_images_encoded_before_are_all_found_in_training(saved, own_data, arguments, capsys):
    encode_images(saved, [own_data], arguments())
    assert "8 images, 8 of them new" in capsys.readouterr().out
    encode_images(saved, [own_data], arguments(dataloader_num_workers=1))
    assert "8 images, 0 of them new" in capsys.readouterr().out
    model = InstructBLIPForConditionalGeneration.from_pretrained(saved)
    encoded = []
    model.vision_model.register_forward_hook(lambda *_: encoded.append(1))
    args = arguments(max_steps=2, per_device_train_batch_size=4, warmup_steps=0)
    processor = InstructBLIPProcessor.from_pretrained(saved)
    InstructBLIPTrainer(model, args, train_dataset=own_data, processing_class=processor).train()
    assert encoded == []


def test_a_bridge_release_names_the_tower_that_encodes(saved, own_data, arguments, tmp_path, capsys):
    model = InstructBLIPForConditionalGeneration.from_pretrained(saved)
    model.save_pretrained(tmp_path / "bridge", bridge_only=True)
    InstructBLIPProcessor.from_pretrained(saved).save_pretrained(tmp_path / "bridge")
    for folder, new in ((saved, 8), (str(tmp_path / "bridge"), 0)):
        encode_images(folder, [own_data], arguments())
        assert f"8 images, {new} of them new" in capsys.readouterr().out


def test_all_views_of_all_parts_of_a_mixture_are_encoded(saved, own_data, photos, arguments, capsys):
    """The mixture's images are in its two parts, and once more in a list."""
    mixture = InstructionMixture({"a": own_data, "b": own_data})
    args = arguments(feature_cache_views=3, per_device_eval_batch_size=4)
    cache = encode_images(saved, [mixture, [{"image": photo} for photo in photos]], args)
    assert "72 images, 24 of them new" in capsys.readouterr().out
    assert len(cache.store) == 24


def test_processes_share_the_rows_out(photos):
    rows = _rows(photos)
    parts = [RowsOfProcess([rows, rows], rank, 3) for rank in range(3)]
    found = [part[item][0] for part in parts for item in range(len(part))]
    assert sorted(found) == sorted(rows["image_id"][:] * 2)


def test_what_cannot_be_encoded_before_says_so(saved, own_data, photos, arguments, tmp_path):
    with pytest.raises(ValueError, match="feature_cache is not set"):
        encode_images(saved, [own_data], arguments(feature_cache=None))
    with pytest.raises(TypeError, match="images of a IterableDataset cannot be encoded before training"):
        encode_images(saved, [_rows(photos).to_iterable_dataset()], arguments())
    Path(photos[3]).write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"image 0 of 3.png \(.*photos/3.png\) is not an image"):
        encode_images(saved, [_rows(photos)], arguments())


def _rows(photos):
    columns = {"image": photos, "image_id": [os.path.basename(photo) for photo in photos]}
    return leave_images_encoded(datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image()))


def test_a_dataset_that_leaves_images_encoded_opens_none(photos):
    rows = _rows(photos)
    assert rows[0]["image"] == {"bytes": None, "path": photos[0]}


# ---- several processes


def test_two_processes_fill_one_cache_and_sharded_ones_read_it(saved, tmp_path):
    def run(name, **options):
        options = dict(feature_cache_dtype="float32", **options)
        call = functools.partial(distributed_training.train, saved, str(tmp_path / name), **options)
        environment = several_processes.launcher_environment("fsdp2.yaml") if options.get("sharded") else {}
        return several_processes.run(call, environment={**environment, "ACCELERATE_MIXED_PRECISION": "no"})[0]["losses"]

    cache = str(tmp_path / "cache")
    plain = run("plain")
    assert run("filled", feature_cache=cache) == pytest.approx(plain, abs=1e-6)
    assert run("sharded", feature_cache=cache, sharded=True) == pytest.approx(plain, abs=1e-5)
    with pytest.raises(AssertionError, match="2 images of a batch are not in the feature cache.*with encode_images"):
        run("empty", feature_cache=str(tmp_path / "empty"), sharded=True)
