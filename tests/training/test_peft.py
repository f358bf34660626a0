"""Adapters of PEFT beside the bridge: trained, saved and loaded with it in one go."""

import copy
import os
import pickle

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, TrainerCallback

from instructblip import InstructBLIPForConditionalGeneration
from instructblip.training import InstructBLIPTrainer, InstructBLIPTrainingArguments

KINDS = ("t5", "llama")
PARTS = [("language_model",), ("qformer",), ("language_model", "qformer"), ()]
ROWS = [
    {"instruction": "what is the color of this cat ?", "response": "red"},
    {"instruction": "is there a dog ?", "response": "no"},
    {"instruction": "what is in the picture ?", "response": "a green dog"},
    {"instruction": "how red is this ?", "response": "one two three four"},
]


@pytest.fixture
def saved_model(tiny_model, processor, tmp_path):
    """A factory of tiny models that were loaded from a folder, so that adapters can name it."""

    def make(kind, **kwargs):
        folder = tmp_path / kind
        if not folder.exists():
            tiny_model(kind, image_token_index=processor(kind).image_token_id, **kwargs).save_pretrained(folder)
        return InstructBLIPForConditionalGeneration.from_pretrained(folder)

    return make


@pytest.fixture
def train(processor, tiny_images, tmp_path):
    """A factory of trainers on four samples: `train("t5", model, max_steps=2, ...)`."""

    def make(kind, model, callbacks=None, folder="run", **arguments):
        torch.manual_seed(0)
        rows = [{"image": image, **row} for image, row in zip(tiny_images, ROWS, strict=False)]
        defaults = dict(
            per_device_train_batch_size=2, learning_rate=1e-2, warmup_steps=0, logging_steps=1, save_strategy="no",
            report_to="none", use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        return InstructBLIPTrainer(
            model,
            InstructBLIPTrainingArguments(str(tmp_path / folder), **{**defaults, **arguments}),
            train_dataset=rows,
            eval_dataset=rows,
            processing_class=processor(kind),
            callbacks=callbacks,
        )

    return make


def adapted(model, *parts, **options):
    return get_peft_model(model, LoraConfig(r=2, **model.lora_targets(*parts, **options)))


def logits(model, processor, kind, images):
    batch = processor(kind)(images=images[:2], text=["what is this ?", "is there a dog ?"], answers=["red", "no"])
    with torch.no_grad():
        return model.eval()(**batch).logits


def part_of(name):
    """The part of the model that a parameter of a PeftModel belongs to."""
    name = name.removeprefix("base_model.model.")
    return "norm" if "post_layernorm" in name or "ln_vision" in name else name.partition(".")[0]


@pytest.mark.parametrize("parts", PARTS, ids="+".join)
@pytest.mark.parametrize("kind", KINDS)
def test_adapters_train_with_the_bridge_and_load_with_it_in_one_call(
    kind, parts, saved_model, train, processor, tiny_images, tmp_path
):
    model = adapted(saved_model(kind), *parts)
    trainer = train(kind, model, max_steps=2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer.train()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {part_of(name) for name in moved} == {"queries", "qformer", "language_projection", "norm", *parts}
    for name in moved:
        assert ("lora_" in name) == (part_of(name) in parts), name
        assert "lora_" in name or ".modules_to_save.default." in name, name
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name in trained - moved if "key.bias" not in name and "lora_A" not in name} == set()

    trainer.save_model(str(tmp_path / "adapters"))
    tensors = {name.removeprefix("base_model.model."): p for name, p in model.named_parameters()}
    expected = logits(model, processor, kind, tiny_images)
    for loader in (InstructBLIPForConditionalGeneration, AutoModelForImageTextToText):
        loaded = loader.from_pretrained(tmp_path / "adapters")
        assert isinstance(loaded, InstructBLIPForConditionalGeneration)
        assert {name for name, p in loaded.named_parameters() if not torch.equal(p, tensors.pop(name))} == set()
        assert tensors == {}
        tensors = {name.removeprefix("base_model.model."): p for name, p in model.named_parameters()}
        torch.testing.assert_close(logits(loaded, processor, kind, tiny_images), expected, rtol=1e-4, atol=1e-4)
    wrapped = PeftModel.from_pretrained(saved_model(kind), tmp_path / "adapters")
    torch.testing.assert_close(logits(wrapped, processor, kind, tiny_images), expected, rtol=1e-4, atol=1e-4)


class Losses(TrainerCallback):
    """Every logged loss, unrounded."""

    def __init__(self):
        self.values = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in (logs or {}):
            self.values.append((state.global_step, logs["loss"]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_with_adapters_gives_the_losses_of_an_unbroken_one(kind, saved_model, train):
    options = dict(max_steps=5, save_strategy="steps", save_steps=3)
    parts = ("language_model", "qformer")
    unbroken, resumed = Losses(), Losses()
    torch.manual_seed(0)
    train(kind, adapted(saved_model(kind), *parts), [unbroken], **options).train()
    torch.manual_seed(1)  # other adapters to begin with
    again = train(kind, adapted(saved_model(kind), *parts), [resumed], **options)
    folder = os.path.join(again.args.output_dir, "checkpoint-3")
    assert "model.safetensors" not in os.listdir(folder)
    again.train(resume_from_checkpoint=folder)
    assert [step for step, _ in resumed.values] == [4, 5]
    assert resumed.values == unbroken.values[3:]


def test_an_adapter_folder_holds_the_query_tokens_and_no_frozen_weight(saved_model, tmp_path):
    model = adapted(saved_model("llama"), "language_model")
    with torch.no_grad():
        model.get_base_model().queries.weight.add_(1.0)
    model.save_pretrained(tmp_path / "adapters")
    tensors = load_file(tmp_path / "adapters" / "adapter_model.safetensors")
    before = saved_model("llama").query_tokens
    torch.testing.assert_close(tensors["base_model.model.queries.weight"], before + 1.0)
    assert {part_of(name) for name in tensors if "lora_" not in name} == {
        "queries", "qformer", "language_projection", "norm",
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_merged_adapters_make_a_plain_model_with_the_official_keys(kind, saved_model, processor, tiny_images, tmp_path):
    fresh = saved_model(kind)
    model = adapted(saved_model(kind), "language_model")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02)
    expected = logits(model, processor, kind, tiny_images)
    merged = model.merge_and_unload()
    assert set(merged.state_dict()) == set(fresh.state_dict())
    with pytest.raises(ValueError, match="merged into the language model"):
        merged.save_pretrained(tmp_path / "merged", bridge_only=True)
    torch.testing.assert_close(merged.query_tokens, fresh.query_tokens + 0.02)
    merged.save_pretrained(tmp_path / "merged")
    loaded = InstructBLIPForConditionalGeneration.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(loaded, processor, kind, tiny_images), expected, rtol=1e-3, atol=1e-3)


def test_the_bridge_alone_merges_into_a_bridge_release(saved_model, processor, tiny_images, tmp_path):
    model = adapted(saved_model("llama"))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02)
    expected = logits(model, processor, "llama", tiny_images)
    model.merge_and_unload().save_pretrained(tmp_path / "release", bridge_only=True)
    loaded = InstructBLIPForConditionalGeneration.from_pretrained(tmp_path / "release")
    torch.testing.assert_close(logits(loaded, processor, "llama", tiny_images), expected, rtol=1e-4, atol=1e-4)


def test_a_bridge_release_refuses_adapters(saved_model, tmp_path):
    model = adapted(saved_model("llama"), "language_model")
    with pytest.raises(ValueError, match="adapters.*save_pretrained"):
        model.get_base_model().save_pretrained(tmp_path, bridge_only=True)


def test_adapters_of_a_bridge_release_load_over_it(saved_model, train, processor, tiny_images, tmp_path):
    saved_model("llama").save_pretrained(tmp_path / "release", bridge_only=True)
    model = adapted(InstructBLIPForConditionalGeneration.from_pretrained(tmp_path / "release"), "language_model")
    trainer = train("llama", model, max_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "adapters"))
    for loader in (InstructBLIPForConditionalGeneration, AutoModelForImageTextToText):
        loaded = loader.from_pretrained(tmp_path / "adapters")
        torch.testing.assert_close(
            logits(loaded, processor, "llama", tiny_images), logits(model, processor, "llama", tiny_images),
            rtol=1e-4, atol=1e-4,
        )  # fmt: skip


def test_adapters_of_an_unsaved_model_say_so_when_loaded(tiny_model, tmp_path):
    model = adapted(tiny_model("llama"), "language_model")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="does not say of which model"):
        InstructBLIPForConditionalGeneration.from_pretrained(tmp_path)
    assert isinstance(PeftModel.from_pretrained(tiny_model("llama"), tmp_path), PeftModel)


def test_disabled_adapters_leave_the_bridge_as_it_was(saved_model, processor, tiny_images):
    model = adapted(saved_model("llama"), "language_model")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    plain = logits(saved_model("llama"), processor, "llama", tiny_images)
    assert (logits(model, processor, "llama", tiny_images) - plain).abs().max() > 0.1
    with model.disable_adapter():
        torch.testing.assert_close(logits(model, processor, "llama", tiny_images), plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_targets_are_the_linear_layers_that_something_reads(kind, tiny_model):
    model = tiny_model(kind)
    targets = model.lora_targets("language_model", "qformer")["target_modules"]
    last = "qformer.encoder.layer.3."
    assert all(isinstance(model.get_submodule(name), torch.nn.Linear) for name in targets)
    assert last + "intermediate_query.dense" in targets
    assert last + "intermediate.dense" not in targets
    assert "language_model.lm_head" not in targets
    text = [name for name in targets if name.startswith("language_model.")]
    assert len(text) == (2 * 7 + 2 * 11 if kind == "t5" else 3 * 7)
    adapted_model = get_peft_model(model, LoraConfig(r=2, target_modules=targets))
    assert not any("vision_model" in name for name, p in adapted_model.named_parameters() if p.requires_grad)


def test_adapters_alone_leave_the_bridge_frozen(saved_model, train):
    model = adapted(saved_model("llama"), "language_model", train_bridge=False)
    trainer = train("llama", model, max_steps=1)
    trainer.train()
    assert {name for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name} == set()


def test_what_cannot_be_adapted_is_refused(tiny_model):
    with pytest.raises(ValueError, match=r"\['vision_model'\] cannot be adapted"):
        tiny_model("llama").lora_targets("vision_model")
    with pytest.raises(ValueError, match="nothing to train"):
        tiny_model("llama").lora_targets(train_bridge=False)


def test_the_trainer_refuses_adapters_inside_the_model(saved_model, train):
    model = saved_model("llama")
    model.add_adapter(LoraConfig(r=2, **model.lora_targets("language_model")))
    with pytest.raises(ValueError, match="put them around it with get_peft_model"):
        train("llama", model)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_model_hands_out_its_own_query_tokens(copied, tiny_model):
    model = tiny_model("llama")
    other = copied(model)
    with torch.no_grad():
        other.query_tokens.add_(1.0)
    queries = adapted(other).get_base_model().queries
    torch.testing.assert_close(queries.weight, model.query_tokens + 1.0)
    again = copied(other)
    with torch.no_grad():
        queries.weight.add_(1.0)
    torch.testing.assert_close(again.queries.weight, model.query_tokens + 1.0)


def test_lora_dropout_stays_on_where_the_language_models_own_is_off(saved_model, train):
    model = saved_model("llama")
    config = LoraConfig(r=2, lora_dropout=0.5, **model.lora_targets("language_model"))
    trainer = train("llama", get_peft_model(model, config), max_steps=1, language_model_dropout=False)
    modes = set()
    layer = model.language_model.model.layers[0].self_attn.q_proj
    layer.register_forward_pre_hook(lambda *_: modes.add((layer.training, layer.lora_dropout.training)))
    trainer.train()
    assert modes == {(False, True)}


@pytest.mark.parametrize("kind", KINDS)
def test_with_bf16_adapters_and_bridge_are_float32(kind, saved_model, train):
    model = adapted(saved_model(kind).to(torch.bfloat16), "language_model")
    trainer = train(kind, model, max_steps=1, bf16=True)
    trainer.train()
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert model.get_base_model().vision_model.dtype == torch.bfloat16


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("bridge_only", [False, True])
def test_adapters_train_in_a_quantized_language_model(bridge_only, bits, saved_model, train, tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    saved_model("llama").save_pretrained(tmp_path / "release", bridge_only=bridge_only)
    settings = {4: dict(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32), 8: dict(load_in_8bit=True)}
    config = BitsAndBytesConfig(**settings[bits])
    model = InstructBLIPForConditionalGeneration.from_pretrained(tmp_path / "release", quantization_config=config)
    model = adapted(model, "language_model")
    assert f"{bits}bit" in type(model.get_base_model().language_model.model.layers[0].self_attn.q_proj).__name__
    trainer = train("llama", model, max_steps=2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer.train()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {part_of(name) for name in moved} == {"queries", "qformer", "language_projection", "norm", "language_model"}
    trainer.save_model(str(tmp_path / "adapters"))
    loaded = InstructBLIPForConditionalGeneration.from_pretrained(tmp_path / "adapters", quantization_config=config)
    tensors = dict(loaded.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(tensors[name.removeprefix("base_model.model.")].float(), parameter)
