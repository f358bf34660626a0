"""A language model in float8: near to what it was, with no gradient but the bridge's, and nothing kept twice."""

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from instructblip import InstructBLIPCollator
from instructblip.training import InstructBLIPTrainer, InstructBLIPTrainingArguments, float8, hold_in_float8
from instructblip.training.float8 import FLOAT8, LARGEST, Float8Linear

WIDE = {
    "llama": dict(hidden_size=48, intermediate_size=64, num_attention_heads=4, num_key_value_heads=4),
    "t5": dict(d_model=48, d_kv=16, d_ff=64, num_heads=4),
}


@pytest.fixture
def wide_model(tiny_model, processor):
    """A factory: a model whose matrices have sides that are multiples of 16."""

    def make(language):
        torch.manual_seed(0)
        model = tiny_model(language, text=WIDE[language], image_token_index=processor(language).image_token_id)
        model.freeze_backbones()
        return model.eval()

    return make


@pytest.fixture
def samples(tiny_images):
    answers = ("red", "a green dog", "no", "one two three four")
    return [
        {"image": image, "instruction": "what is in this picture ?", "response": answer}
        for image, answer in zip(tiny_images, answers, strict=False)
    ]


@pytest.fixture(params=[False, True], ids=["rounded weights", "float8 products"])
def in_float8(request, monkeypatch):
    """Whether products are computed in float8, which CPUs can do as GPUs do."""
    monkeypatch.setattr(float8, "multiplies_float8", lambda hidden: request.param)
    return request.param


def test_a_weight_has_one_scale_for_each_output_and_rounds_to_a_sixteenth():
    linear = nn.Linear(32, 16, bias=False)
    linear.weight.data *= torch.logspace(-6, 6, 16)[:, None]
    held = Float8Linear(linear)
    held.to(torch.bfloat16)  # changes nothing
    assert (held.weight.dtype, held.weight.shape, held.scale.shape) == (torch.int8, (16, 32), (16, 1))
    scale = held.scale.view(torch.float32)
    back = held.weight.view(FLOAT8).float() * scale
    largest = linear.weight.abs().amax(dim=1, keepdim=True)
    assert torch.allclose(scale * LARGEST, largest)
    assert ((back - linear.weight).abs() <= linear.weight.abs() / 16 + largest / 2**15).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_and_gradients_are_near_those_of_the_layer(in_float8, dtype):
    linear = nn.Linear(128, 64).to(dtype).requires_grad_(False)
    held = Float8Linear(linear)
    hidden = torch.randn(3, 5, 128, dtype=dtype, requires_grad=True)
    expected, found = linear(hidden), held(hidden)
    weights = torch.randn_like(expected)
    (wanted,) = torch.autograd.grad(expected, hidden, weights)
    (gradient,) = torch.autograd.grad(found, hidden, weights)
    assert found.dtype == gradient.dtype == dtype
    for one, other in ((found, expected), (gradient, wanted)):
        assert 0 < (one - other).float().norm() / other.float().norm() < 0.05


def test_rows_of_zeros_stay_zeros(in_float8):
    linear = nn.Linear(32, 16, bias=False).requires_grad_(False)
    linear.weight[3] = 0
    hidden = torch.zeros(2, 32, requires_grad=True)
    output = Float8Linear(linear)(hidden)
    output.sum().backward()
    assert not output.any()
    assert hidden.grad.isfinite().all()


@pytest.mark.parametrize("language", ["llama", "t5"])
def test_a_model_gives_about_the_same_loss_and_gradients(in_float8, language, wide_model, processor, samples):
    model = wide_model(language)
    inputs = InstructBLIPCollator(processor(language))(samples)
    expected = model(**inputs, skip_logits=True).loss
    expected.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    hold_in_float8(model)
    assert isinstance(model.get_output_embeddings(), nn.Linear)
    held = [name for name, module in model.named_modules() if isinstance(module, Float8Linear)]
    assert held
    assert all(name.startswith("language_model.") for name in held)
    loss = model(**inputs, skip_logits=True).loss
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=0.02)
    found = torch.cat([model.get_parameter(name).grad.flatten() for name in wanted])
    assert nn.functional.cosine_similarity(found, torch.cat([g.flatten() for g in wanted.values()]), dim=0) > 0.9


def test_what_is_kept_for_the_backward_pass_is_the_weight_itself():
    held = Float8Linear(nn.Linear(256, 256, bias=False).requires_grad_(False))
    own = {held.weight.untyped_storage().data_ptr(), held.scale.untyped_storage().data_ptr()}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.untyped_storage().data_ptr()), lambda _: None
    ):
        held(torch.randn(4, 256, requires_grad=True))
    assert set(kept) == own


def test_under_autocast_products_have_its_precision():
    held = Float8Linear(nn.Linear(32, 16).requires_grad_(False))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert held(torch.randn(2, 32)).dtype == torch.bfloat16


def test_few_tokens_are_multiplied_in_the_precision_of_the_input(monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))

    def asked(tokens):
        stand_in = SimpleNamespace(device=torch.device("cuda"), shape=torch.Size([1, tokens, 8]))
        return float8.multiplies_float8(stand_in)

    assert (asked(257), asked(256)) == (True, False)
    assert not float8.multiplies_float8(torch.zeros(300, 8))


def test_adapters_are_refused(wide_model):
    model = wide_model("llama")
    get_peft_model(model, LoraConfig(r=16, **model.lora_targets("language_model")))
    with pytest.raises(ValueError, match="adapters, which float8 would freeze"):
        hold_in_float8(model)


def test_a_language_model_without_linear_layers_is_refused(tiny_model):
    with pytest.raises(ValueError, match=r"\(gpt2\) has no linear layers"):
        hold_in_float8(tiny_model("gpt2"))


@pytest.mark.parametrize("language", ["llama", "t5"])
def test_the_bridge_trains_resumes_and_is_saved_alone(language, wide_model, processor, samples, tmp_path):
    def train(resume=None):
        model = wide_model(language)
        hold_in_float8(model)
        held = {name: p.clone() for name, p in model.language_model.named_parameters()}
        arguments = InstructBLIPTrainingArguments(
            str(tmp_path / "run"), max_steps=4, per_device_train_batch_size=2, learning_rate=1e-2, warmup_steps=0,
            logging_steps=1, save_steps=2, report_to="none", use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        trainer = InstructBLIPTrainer(model, arguments, train_dataset=samples, processing_class=processor(language))
        trainer.train(resume_from_checkpoint=resume)
        assert all(torch.equal(p, held[name]) for name, p in model.language_model.named_parameters())
        return trainer, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    trainer, losses = train()
    assert losses[-1] < losses[0]
    assert train(resume=str(tmp_path / "run" / "checkpoint-2"))[1] == losses
    with pytest.raises(ValueError, match="a language model in float8 is not saved: save with bridge_only=True"):
        trainer.model.save_pretrained(tmp_path / "whole")
    answer = trainer.model.generate(
        **processor(language)(samples[0]["image"], samples[0]["instruction"]), max_new_tokens=3, num_beams=2
    )
    assert answer.shape[0] == 1
