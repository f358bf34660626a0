import pytest
import torch

from instructblip import InstructBLIPConfig, InstructBLIPForConditionalGeneration
from instructblip.modeling.convert_lavis import VARIANTS
from instructblip.training import memory

GB = 1e9


@pytest.fixture(scope="module")
def counted():
    """The four released variants with 16 samples of 32 + 64 + 16 language-model tokens."""
    batch = memory.Batch(rows=16)
    return {name: memory.sizes(InstructBLIPConfig(**variant.config), batch) for name, variant in VARIANTS.items()}


def test_parameters_are_those_of_the_released_models(counted):
    assert {name: round((size.vision + size.language) / GB, 2) for name, size in counted.items()} == {
        "flan-t5-xl": 3.77,
        "flan-t5-xxl": 11.99,
        "vicuna-7b": 7.72,
        "vicuna-13b": 14.0,
    }
    assert {round(size.bridge / 1e6) for size in counted.values()} == {187, 189, 190}


def test_what_the_language_model_keeps_is_what_its_layers_multiply(counted):
    """Per token and layer of LLaMA, in bfloat16: query, key, value, output of the attention, gate and up; and what
    enters two norms. A frozen linear layer keeps nothing."""
    width, inner, layers, tokens = 4096, 11008, 32, 16 * 112
    layer = 4 * 2 * width + 2 * 2 * inner + 2 * 2 * width
    logits = 16 * 16 * 32064 * 10
    config = InstructBLIPConfig(**VARIANTS["vicuna-7b"].config)
    with torch.device("meta"):
        model = InstructBLIPForConditionalGeneration(config)
    model.freeze_backbones()
    model.language_model.to(torch.bfloat16)
    kept, checkpointed = memory.language_bytes(model.train(), memory.Batch(rows=16))
    assert kept == pytest.approx(layers * tokens * layer + logits, rel=0.02)
    assert checkpointed == pytest.approx(layers * tokens * 2 * width + kept / layers, rel=0.01)


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_what_is_counted_on_the_meta_device_is_what_a_real_step_keeps(tiny_model, kind):
    batch = memory.Batch(rows=4, prompt=12, answer=4)

    def kept(device):
        model = tiny_model(kind).to(device)
        model.freeze_backbones()
        model.language_model.to(torch.bfloat16)
        return memory.language_bytes(model.train(), batch)[0]

    assert kept("meta") == kept("cpu")


def test_operations_are_two_per_weight_and_token(counted):
    size = counted["vicuna-7b"]
    assert size.language_forward == pytest.approx(2 * 16 * 112 * (6.74e9 - 2 * 32064 * 4096), rel=0.01)
    vision = size.forward - size.language_forward - size.bridge_forward
    assert vision == pytest.approx(2 * 16 * 257 * 0.986e9, rel=0.01)


def plan(found, name):
    return next(one for one in found if one.name == name)


def test_13b_fits_on_eight_24_gb_gpus_sharded_and_not_whole():
    size = memory.sizes(InstructBLIPConfig(**VARIANTS["vicuna-13b"].config), memory.Batch(rows=4))
    found = memory.plans(size, gpus=8, tflops=125, link=12)
    assert plan(found, "DDP").total > 24 * memory.GIB
    sharded = plan(found, "FSDP2")
    assert sharded.frozen == pytest.approx(2 * 14.0e9 / 8, rel=0.01)
    assert sharded.trained == pytest.approx(16 * 189.6e6 / 8, rel=0.01)
    assert memory.choose(found, gib=24) == sharded
    assert memory.command(sharded, 8) == (
        "accelerate launch --config_file examples/accelerate/fsdp2.yaml --num_processes 8 examples/train.py "
        "--config RECIPE.yaml"
    )


def test_fewer_bits_are_taken_where_nothing_exact_fits(counted):
    found = memory.plans(counted["vicuna-13b"], gpus=1, tflops=125, link=12)
    chosen = memory.choose(found, gib=24)
    assert not chosen.exact
    assert all(one.total > 24 * memory.GIB for one in found if one.exact)
    assert memory.choose(found, gib=4) is None


def test_checkpointing_is_slower_and_keeps_less(counted):
    found = memory.plans(counted["flan-t5-xl"], gpus=1, tflops=990, link=12)
    plain, checkpointed = plan(found, "one GPU"), plan(found, "one GPU, checkpointing")
    assert checkpointed.activations < 0.4 * plain.activations
    assert checkpointed.seconds > plain.seconds


def test_the_command_reads_a_config_folder_and_needs_no_network(tiny_config, tmp_path, capsys):
    tiny_config("llama").save_pretrained(tmp_path)
    memory.main(["--model", str(tmp_path), "--gpus", "2", "--gib", "8"])
    printed = capsys.readouterr().out
    assert "computed, not measured" in printed
    assert "Take DDP:" in printed
    memory.main(["--model", "flan-t5-xl", "--gib", "4"])
    assert "None fits" in capsys.readouterr().out


def test_a_number_that_makes_no_sense_is_refused(capsys):
    with pytest.raises(SystemExit):
        memory.main(["--model", "vicuna-7b", "--gpus", "0"])
    assert "--gpus 0: expected more than 0" in capsys.readouterr().err
