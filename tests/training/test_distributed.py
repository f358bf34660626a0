"""Runs on two processes against runs on one: the same losses and the same bridge, however the weights are held."""

import functools
import json
import os

import distributed_training
import numpy as np
import pytest
import several_processes
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, CLIPImageProcessor

from instructblip import InstructBLIPProcessor

KINDS = ("t5", "llama")
FULL_PRECISION = {"ACCELERATE_MIXED_PRECISION": "no"}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture
def model_folder(tiny_model, t5_tokenizer, llama_tokenizer, qformer_tokenizer, places):
    """model_folder("t5"): the folder of a model with its processor; T5's head is not tied, as in Flan-T5."""

    def make(kind):
        folder = places / kind
        if not folder.exists():
            tokenizer = t5_tokenizer if kind == "t5" else llama_tokenizer
            images = CLIPImageProcessor(size={"height": 28, "width": 28}, do_center_crop=False)
            processor = InstructBLIPProcessor(
                images, tokenizer, qformer_tokenizer, num_query_tokens=4, qformer_max_length=32,
                is_encoder_decoder=kind == "t5",
            )  # fmt: skip
            model = tiny_model(kind, image_token_index=processor.image_token_id)
            if kind == "t5":
                head = model.language_model.lm_head
                head.weight = type(head.weight)(1.1 * head.weight.detach().flip(0))
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
        return str(folder)

    return make


@pytest.fixture
def train(model_folder, places):
    """train("llama", "name", processes=2, max_steps=3): what each process returns of a run in a folder of that name."""

    def run(kind, name, processes=2, environment=None, function=distributed_training.train, **arguments):
        places_of_it = {"model_folder": model_folder(kind), "folder": str(places / f"{kind}-{name}")}
        call = functools.partial(function, **{**places_of_it, **arguments})
        return several_processes.run(call, processes_count=processes, environment=environment)

    return run


def fsdp2(**changed):
    return {**several_processes.launcher_environment("fsdp2.yaml"), **FULL_PRECISION, **changed}


def zero3():
    """How `train` runs with DeepSpeed."""
    return {
        "environment": {**several_processes.launcher_environment("zero3.yaml"), **FULL_PRECISION},
        "deepspeed": True,
    }


def same(one, other, tolerance=1e-6):
    """Losses and bridges are equal, but for key biases, whose gradients are rounding noise."""
    assert other["losses"] == pytest.approx(one["losses"], abs=2e-6 + tolerance)
    for name, tensor in one["bridge"].items():
        if not name.endswith("key.bias"):
            np.testing.assert_allclose(other["bridge"][name], tensor, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_sharded_or_not_train_as_one_with_twice_the_batch(train, kind):
    """Two batches are accumulated, and answers have 1 to 4 words: a mean of means would differ."""
    (one,) = train(kind, "one", processes=1, per_device_train_batch_size=8)
    for name, options in (("ddp", {}), ("fsdp2", {"sharded": True, "environment": fsdp2()})):
        for result in train(kind, name, gradient_accumulation_steps=2, **options):
            assert result["sharded"] == (name == "fsdp2")
            same(one, result)


@pytest.mark.parametrize(("kind", "way"), [("t5", "ddp"), ("llama", "fsdp2")])
def test_compiled_processes_train_as_one_that_is_not(train, kind, way):
    how = {"sharded": True, "environment": fsdp2()} if way == "fsdp2" else {}
    (one,) = train(kind, "one-plain", processes=1, per_device_train_batch_size=4)
    for result in train(kind, f"{way}-compiled", torch_compile=True, torch_compile_backend="eager", **how):
        same(one, result)


@pytest.mark.parametrize(("kind", "way"), [("t5", "fsdp2"), ("llama", "ddp"), ("llama", "fsdp2"), ("llama", "zero3")])
def test_adapters_train_on_two_processes_as_on_one(train, places, kind, way):
    """In the language model and beside the whole bridge; they go on from a checkpoint, and load with the model."""
    how = {}
    if way == "fsdp2":
        how = {"sharded": True, "environment": fsdp2()}
    elif way == "zero3":
        pytest.importorskip("deepspeed")
        how = zero3()
    options = dict(adapted=("language_model",), max_steps=4, save_strategy="steps", save_steps=2, release=("adapters",))
    (one,) = train(kind, f"lora-one-{way}", processes=1, per_device_train_batch_size=4, **options)
    assert any("lora_B" in name for name in one["bridge"])
    folder = places / f"{kind}-lora-{way}"
    for result in train(kind, f"lora-{way}", **how, **options):
        assert result["sharded"] == (way == "fsdp2")
        same(one, result)
    resumed = train(kind, f"lora-{way}", **how, **options, resume=str(folder / "checkpoint-2"))[0]
    same({**one, "losses": one["losses"][2:]}, resumed)
    loaded = AutoModelForImageTextToText.from_pretrained(folder / "adapters").state_dict()
    for name, tensor in one["bridge"].items():
        np.testing.assert_allclose(loaded[name.removeprefix("base_model.model.")], tensor, rtol=0, atol=1e-6)


def test_muon_trains_on_two_processes_as_on_one_and_refuses_shards(train):
    (one,) = train("t5", "muon-one", processes=1, max_steps=3, per_device_train_batch_size=4, muon=True)
    for two in train("t5", "muon-ddp", max_steps=3, per_device_train_batch_size=2, muon=True):
        same(one, two, tolerance=1e-3)  # Muon computes in bfloat16
    with pytest.raises(Exception, match="FSDP and DeepSpeed"):
        train("t5", "muon-shards", sharded=True, muon=True, environment=fsdp2())


def test_text_only_batches_keep_no_process_waiting(train):
    """The first process sees no image in its first batch, the second one does."""
    rows = distributed_training.Rows(without_image=(0, 1, 6, 7))
    (one,) = train("llama", "text", processes=1, per_device_train_batch_size=4, dataset=rows)
    for options in ({}, {"sharded": True, "environment": fsdp2()}):
        for result in train("llama", "text", dataset=rows, **options):
            same(one, result)


def test_sharded_parts_keep_their_precision_and_compute_in_bfloat16(train):
    """Frozen bfloat16 beside trained float32, checkpointed layers or not: the same as without shards."""
    environment = fsdp2(ACCELERATE_MIXED_PRECISION="bf16", FSDP_CPU_RAM_EFFICIENT_LOADING="false")
    whole = train("llama", "bf16", bf16=True)[0]
    sharded = train("llama", "bf16", bf16=True, sharded=True, environment=environment, activation_checkpointing=True)[0]
    assert whole["dtypes"] == sharded["dtypes"] == {"bridge": ["torch.float32"], "frozen": ["torch.bfloat16"]}
    same(whole, sharded)


def test_a_checkpoint_of_one_way_resumes_in_every_other(train, places):
    kind = "llama"
    ways = {"ddp": {}, "fsdp2": {"sharded": True, "environment": fsdp2()}}
    options = dict(max_steps=4, save_strategy="steps", save_steps=2)
    for way, how in ways.items():
        unbroken = train(kind, f"from-{way}", **how, **options)
        checkpoint = places / f"{kind}-from-{way}" / "checkpoint-2"
        bridge = load_file(checkpoint / "model.safetensors")
        assert set(bridge) == set(unbroken[0]["bridge"])
        assert not [name for name in os.listdir(checkpoint) if "fsdp" in name.lower()]
        for other, where in ways.items():
            resumed = train(kind, f"from-{way}", **where, **options, resume=str(checkpoint))
            for before, after in zip(unbroken, resumed, strict=True):
                assert after["ids"] == before["ids"][2:]
                same({**before, "losses": before["losses"][2:]}, after, tolerance=0 if way == other else 1e-6)


def test_zero_3_trains_saves_and_resumes(train, places):
    """From a whole model, and from a bridge release, whose backbones are read in parts."""
    pytest.importorskip("deepspeed")
    options = dict(max_steps=4, save_strategy="steps", save_steps=2)
    sharded = zero3()
    (one,) = train("llama", "zero-one", processes=1, per_device_train_batch_size=4, **options)
    unbroken = train("llama", "zero", **sharded, **options)
    same(one, unbroken[0])
    checkpoint = places / "llama-zero" / "checkpoint-2"
    assert set(load_file(checkpoint / "model.safetensors")) == set(one["bridge"])
    resumed = train("llama", "zero", **sharded, **options, resume=str(checkpoint))[0]
    same({**unbroken[0], "losses": unbroken[0]["losses"][2:]}, resumed, tolerance=0)
    released = dict(max_steps=1, model_folder=str(checkpoint))
    (one,) = train("llama", "zero-one", processes=1, per_device_train_batch_size=4, **released)
    same(one, train("llama", "zero", **sharded, **released)[0])


def test_a_sharded_model_is_released_whole_and_as_a_bridge(train, places):
    """Written by the first process alone, under the classes that those who load them have."""
    results = train("t5", "release", sharded=True, environment=fsdp2(), release=("bridge", "full"))
    for kind in ("bridge", "full"):
        folder = places / "t5-release" / kind
        config = json.loads((folder / "config.json").read_text())
        assert config["architectures"] == ["InstructBLIPForConditionalGeneration"]
        assert "FSDP" not in json.dumps(config.get("auto_map", {}))
        assert not [name for name in os.listdir(folder) if "fsdp" in name.lower() or name.endswith(".bin")]
        loaded = AutoModelForImageTextToText.from_pretrained(folder)
        frozen = load_file(places / "t5" / "model.safetensors")
        for name, tensor in loaded.state_dict().items():
            expected = results[0]["bridge"].get(name)
            expected = (
                frozen.get(name, frozen["language_model.shared.weight"]).numpy() if expected is None else expected
            )
            np.testing.assert_array_equal(tensor.numpy(), expected, err_msg=name)


def test_evaluation_and_generation_work_on_shards(train):
    """The answers of the two processes end at different lengths."""
    options = dict(function=distributed_training.evaluate, predict_with_generate=True)
    (one,) = train("llama", "eval", processes=1, per_device_train_batch_size=4, **options)
    for metrics in train("llama", "eval", **options, sharded=True, environment=fsdp2()):
        for name in ("eval_loss", "eval_token_accuracy", "eval_exact_match"):
            assert metrics[name] == pytest.approx(one[name], abs=1e-5)


def test_each_place_of_a_mixture_is_read_by_one_process(train):
    options = dict(function=distributed_training.read, data="map")
    (one,) = train("llama", "map", processes=1, per_device_train_batch_size=4, **options)
    first, second = train("llama", "map", **options)
    assert len(one) == 20
    assert len(first) == len(second) == 10
    assert sorted(first + second) == sorted(one)


def test_each_sample_of_a_stream_is_read_by_one_process(train):
    first, second = train("llama", "stream", function=distributed_training.read, data="stream")
    assert len(first) == len(second) == 10
    assert not set(first) & set(second)
    assert {name for name, _ in first} == {name for name, _ in second} == {"a", "b"}


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "zero3"])
def test_a_launch_config_is_read_by_accelerate(name):
    from accelerate.commands.config.config_args import load_config_from_file

    file = several_processes.CONFIGS / f"{name}.yaml"
    config = load_config_from_file(str(file))
    assert config.num_processes == 8
    assert config.mixed_precision == "bf16"
    assert set(yaml.safe_load(file.read_text())) <= set(vars(config))
