import inspect
import json
import os

import pytest
import torch
from safetensors.torch import load_file
from transformers import DynamicCache, TrainerCallback, TrainingArguments

from instructblip import InstructBLIPForConditionalGeneration
from instructblip.training import InstructBLIPTrainer, InstructBLIPTrainingArguments
from instructblip.training.evaluation import without_answers
from instructblip.training.muon import MuonAndAdamW

KINDS = ("t5", "llama")
QUESTIONS = ("what is the color of this cat ?", "is there a dog ?", "what is in the picture ?", "how red is this ?")
ANSWERS = ("red", "no", "a green dog", "one two three four")


@pytest.fixture
def train(tiny_model, processor, tiny_images, tmp_path):
    """A factory of trainers on eight samples: `train("t5", max_steps=2, ...)`."""

    def make(
        kind, model=None, folder="run", samples=8, compute_metrics=None, callbacks=None, dataset=None, **arguments
    ):
        torch.manual_seed(0)
        made = processor(kind)
        if model is None:
            model = tiny_model(kind, image_token_index=made.image_token_id)
        rows = [
            {"image": tiny_images[i], "instruction": QUESTIONS[i % 4], "response": ANSWERS[i % 4]}
            for i in range(samples)
        ]
        defaults = dict(
            per_device_train_batch_size=4, learning_rate=1e-2, warmup_steps=0, logging_steps=1, save_strategy="no",
            report_to="none", use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        return InstructBLIPTrainer(
            model=model,
            args=InstructBLIPTrainingArguments(str(tmp_path / folder), **{**defaults, **arguments}),
            train_dataset=rows if dataset is None else dataset,
            eval_dataset=rows,
            processing_class=made,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
        )

    return make


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


class Losses(TrainerCallback):
    """Every logged loss, unrounded."""

    def __init__(self):
        self.values = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in (logs or {}):
            self.values.append((state.global_step, logs["loss"]))


@pytest.mark.parametrize("kind", KINDS)
def test_all_of_the_bridge_trains_and_nothing_else(train, kind):
    trainer = train(kind, max_steps=2)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    bridge = set(trainer.model.bridge_state_dict())
    unread = {id(p) for p in trainer.model.qformer.unread_parameters(True)}
    unread = {name for name, p in trainer.model.named_parameters() if id(p) in unread}
    trainer.train()
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved - bridge == set()
    # A key bias shifts all of a query's scores alike.
    assert {name for name in bridge - moved - unread if not name.endswith("key.bias")} == set()
    assert all(p.grad is None for name, p in trainer.model.named_parameters() if name not in bridge)


@pytest.mark.parametrize("kind", KINDS)
def test_accumulating_four_batches_is_one_batch_of_four(train, kind):
    """Answers of 1 to 4 words: a mean of means would differ."""
    whole = train(kind, folder="whole", samples=4, max_steps=3, per_device_train_batch_size=4)
    parts = train(
        kind, folder="parts", samples=4, max_steps=3, per_device_train_batch_size=1, gradient_accumulation_steps=4
    )
    whole.train()
    parts.train()
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-4)
    for (name, ours), (_, theirs) in zip(
        whole.model.named_bridge_parameters(), parts.model.named_bridge_parameters(), strict=True
    ):
        if not name.endswith("key.bias"):  # its gradient is rounding noise, which Adam blows up
            torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-3, msg=name)


class Epochs(torch.utils.data.Dataset):
    """Samples whose answer depends on the epoch, as drawn instructions do."""

    def __init__(self, images):
        self.images, self.epoch = images, 0

    def __len__(self):
        return 8

    def __getitem__(self, item):
        return {"image": self.images[item], "instruction": QUESTIONS[item % 4], "response": ANSWERS[self.epoch % 4]}

    def set_epoch(self, epoch):
        self.epoch = epoch


@pytest.mark.parametrize(("kind", "muon"), [("t5", False), ("llama", False), ("llama", True)])
def test_a_resumed_run_gives_the_losses_of_an_unbroken_one_bit_for_bit(
    train, kind, muon, tiny_model, tiny_images, processor
):
    def model():
        torch.manual_seed(0)
        made = tiny_model(kind, image_token_index=processor(kind).image_token_id)
        for module in made.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.2  # so that the random state matters
        return made

    options = dict(max_steps=7, per_device_train_batch_size=2, save_strategy="steps", save_steps=5, muon=muon)
    unbroken, resumed = Losses(), Losses()
    train(kind, model(), callbacks=[unbroken], dataset=Epochs(tiny_images), **options).train()
    again = train(kind, model(), callbacks=[resumed], dataset=Epochs(tiny_images), **options)
    again.train(resume_from_checkpoint=os.path.join(again.args.output_dir, "checkpoint-5"))
    assert isinstance(again.optimizer.optimizer, MuonAndAdamW) is muon
    assert [step for step, _ in resumed.values] == [6, 7]
    assert resumed.values == unbroken.values[5:]


def test_threads_of_a_cpu_add_in_one_order_while_training_and_as_before_afterwards(train):
    seen = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append(torch.are_deterministic_algorithms_enabled())

    trainer = train("t5", max_steps=2)
    trainer.add_callback(Look())
    filling = torch.utils.deterministic.fill_uninitialized_memory
    trainer.train()
    assert seen == [True, True]
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory is filling


def test_a_checkpoint_holds_the_bridge_and_the_optimizer_only(train):
    trainer = train("llama", max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    folder = os.path.join(trainer.args.output_dir, "checkpoint-1")
    tensors = load_file(os.path.join(folder, "model.safetensors"))
    bridge = trainer.model.bridge_state_dict()
    assert set(tensors) == set(bridge)
    assert all(torch.equal(tensors[name], bridge[name]) for name in bridge)
    state = torch.load(os.path.join(folder, "optimizer.pt"), weights_only=True)["state"]
    trained = [p.numel() for p in trainer.model.parameters() if p.requires_grad]
    assert sorted(entry["exp_avg"].numel() for entry in state.values()) == sorted(trained)
    numbers = sum(tensor.numel() for entry in state.values() for tensor in entry.values() if tensor.dim())
    assert numbers == 2 * sum(trained)  # so a checkpoint is three times the bridge
    assert {"scheduler.pt", "rng_state.pth", "trainer_state.json", "tokenizer.json"} <= set(os.listdir(folder))


def test_a_checkpoint_without_known_backbones_says_so_when_loaded_as_a_model(train):
    trainer = train("llama", max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    with pytest.raises(ValueError, match="must name its `vision` and `language` backbones"):
        InstructBLIPForConditionalGeneration.from_pretrained(os.path.join(trainer.args.output_dir, "checkpoint-1"))


def test_a_checkpoint_of_another_bridge_is_refused(train, tiny_model, processor):
    trainer = train("llama", max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    other = tiny_model("llama", image_token_index=processor("llama").image_token_id, vision="clip_vision_model")
    with pytest.raises(ValueError, match="does not belong to this model"):
        train("llama", other).train(resume_from_checkpoint=os.path.join(trainer.args.output_dir, "checkpoint-1"))


def test_save_model_writes_the_whole_model_where_its_backbones_come_from_nowhere(train, tmp_path):
    trainer = train("t5", max_steps=1)
    trainer.save_model(str(tmp_path / "whole"))
    loaded = InstructBLIPForConditionalGeneration.from_pretrained(tmp_path / "whole")
    for name, tensor in trainer.model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=0, atol=0, msg=name)


def test_save_model_writes_the_bridge_where_the_backbones_are_known(train, tiny_model, processor, tmp_path):
    made = processor("llama")
    tiny_model("llama", image_token_index=made.image_token_id).save_pretrained(tmp_path / "whole")
    model = InstructBLIPForConditionalGeneration.from_pretrained(tmp_path / "whole")
    trainer = train("llama", model, max_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "release"))
    assert json.loads((tmp_path / "release" / "config.json").read_text())["bridge_only"] is True
    assert set(load_file(tmp_path / "release" / "model.safetensors")) == set(model.bridge_state_dict())
    loaded = InstructBLIPForConditionalGeneration.from_pretrained(tmp_path / "release")
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluate_gives_loss_and_metrics(train, kind):
    shapes = []

    def exactness(prediction):
        logits, labels = prediction.predictions, prediction.label_ids
        shapes.append((logits.shape[:2], labels.shape))
        return {"finite": float((logits[labels != -100] == logits[labels != -100]).mean())}

    metrics = train(kind, compute_metrics=exactness).evaluate()
    assert metrics["eval_finite"] == 1.0
    assert shapes[0][0] == shapes[0][1]
    assert metrics["eval_loss"] == pytest.approx(train(kind).evaluate()["eval_loss"], rel=1e-5)


def test_evaluating_the_loss_alone_computes_no_vocabulary_logits(train):
    trainer = train("llama")
    asked = []
    trainer.model.register_forward_pre_hook(
        lambda _, args, kwargs: asked.append(kwargs.get("skip_logits")), with_kwargs=True
    )
    trainer.evaluate()
    assert asked == [True]


@pytest.mark.parametrize("kind", KINDS)
def test_no_kv_cache_is_built_while_training(train, monkeypatch, kind):
    """Of no use there; it would hold the keys and values of all layers until the backward pass."""
    trainer = train(kind, max_steps=1)
    built, build = [], DynamicCache.__init__
    monkeypatch.setattr(DynamicCache, "__init__", lambda *args, **kwargs: (built.append(1), build(*args, **kwargs))[1])
    trainer.train()
    assert not built
    inputs = next(iter(trainer.get_train_dataloader()))
    trainer.model.generate(**without_answers(inputs, kind == "t5"), max_new_tokens=2)
    assert built  # where there is one, it is seen here


@pytest.mark.parametrize("keep", [True, False])
def test_dropout_inside_the_frozen_language_model_is_a_switch(train, keep):
    trainer = train("llama", max_steps=1, language_model_dropout=keep)
    modes = []
    trainer.model.language_model.register_forward_pre_hook(
        lambda *_: modes.append((trainer.model.language_model.training, trainer.model.vision_model.training))
    )
    trainer.train()
    assert modes == [(keep, False)]
    assert trainer.model.qformer.training


def test_one_dimensional_tensors_and_biases_do_not_decay(train):
    trainer = train("t5")
    decayed, spared = trainer.create_optimizer().param_groups
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.05, 0.0)
    assert "query_tokens" in {names[id(p)] for p in decayed["params"]}
    assert all(p.dim() == 1 for p in spared["params"])
    assert {names[id(p)] for p in decayed["params"] + spared["params"]} == {
        name for name, p in trainer.model.named_bridge_parameters() if p.requires_grad
    }


@pytest.mark.parametrize("kind", KINDS)
def test_with_bf16_the_frozen_weights_are_bfloat16_and_the_trained_ones_float32(train, kind):
    trainer = train(kind, bf16=True, max_steps=2)
    bridge = trainer.model.bridge_state_dict()
    assert {p.dtype for p in bridge.values()} == {torch.float32}
    assert {p.dtype for name, p in trainer.model.named_parameters() if name not in bridge} == {torch.bfloat16}
    before = {name: tensor.clone() for name, tensor in bridge.items()}
    trainer.train()
    assert all(torch.isfinite(torch.tensor(losses(trainer))))
    assert not torch.equal(before["query_tokens"], trainer.model.query_tokens)


def test_a_bridge_loaded_in_bfloat16_trains_in_float32(train, tiny_model, processor):
    model = tiny_model("llama", image_token_index=processor("llama").image_token_id).to(torch.bfloat16)
    trainer = train("llama", model, max_steps=1, learning_rate=1e-5)
    trainer.train()
    assert model.query_tokens.dtype == torch.float32
    assert model.language_model.dtype == torch.bfloat16


def test_a_quantized_language_model_needs_no_adapters(train, tiny_model, processor):
    model = tiny_model("llama", image_token_index=processor("llama").image_token_id)
    model.is_quantized = True
    train("llama", model=model, max_steps=1).train()
    assert model.is_quantized


def test_a_warm_up_longer_than_the_run_is_pointed_out(train, caplog):
    train("llama", max_steps=2, warmup_steps=1000).train()
    assert "never reaches 0.01. Lower warmup_steps" in caplog.text


def test_wrong_parts_are_refused(tiny_model, processor, tmp_path):
    args = InstructBLIPTrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(TypeError, match="not a Linear"):
        InstructBLIPTrainer(torch.nn.Linear(1, 1), args)
    with pytest.raises(ValueError, match="processing_class"):
        InstructBLIPTrainer(tiny_model("t5"), args)
    with pytest.raises(ValueError, match="do not belong together"):
        InstructBLIPTrainer(tiny_model("t5"), args, processing_class=processor("llama"))


def test_the_defaults_are_the_papers():
    args = InstructBLIPTrainingArguments("x", use_cpu=True)
    assert (args.learning_rate, args.warmup_steps, args.lr_scheduler_type) == (1e-5, 1000, "cosine")
    assert (args.adam_beta1, args.adam_beta2, args.weight_decay, args.max_grad_norm) == (0.9, 0.999, 0.05, 0.0)
    assert (args.bf16, args.language_model_dropout) == (False, True)
    assert "language_model_dropout" in inspect.signature(InstructBLIPTrainingArguments).parameters


@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_run_has_the_same_losses_from_few_graphs(train, tiny_images, kind):
    """Five batches of other lengths, one of them with one image."""
    rows = [
        {"image": tiny_images[image], "instruction": " ".join(["red"] * words), "response": " ".join(["blue"] * words)}
        for image, words in ((0, 3), (0, 3), (0, 9), (1, 1), (2, 2), (2, 4), (3, 17), (4, 5), (5, 1), (6, 1))
    ]
    runs = []
    for compiled in ({}, {"torch_compile": True, "torch_compile_backend": "eager"}):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        trainer = train(kind, dataset=rows, max_steps=5, per_device_train_batch_size=2, **compiled)
        trainer.train()
        runs.append(losses(trainer))
    assert runs[1] == pytest.approx(runs[0], rel=1e-5)
    assert not torch._dynamo.utils.counters["graph_break"]
    assert 1 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4


def test_one_process_uses_one_of_several_gpus_and_says_so(monkeypatch, tmp_path, caplog):
    """torch's DataParallel would give half of the rows to each, and half of the images, which others may show."""
    monkeypatch.setattr(TrainingArguments, "__post_init__", lambda self: setattr(self, "_n_gpu", 4))
    monkeypatch.setattr(TrainingArguments, "_setup_devices", torch.device("cpu"))
    args = InstructBLIPTrainingArguments(str(tmp_path))
    assert args.n_gpu == 1
    assert "this process sees 4 GPUs and trains on the first" in caplog.text


def test_batches_go_to_the_device_without_waiting_for_it(train, monkeypatch):
    trainer = train("llama")
    moves = []
    move = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: tensor.dtype == torch.long)
    monkeypatch.setattr(torch.Tensor, "to", lambda *args, **how: (moves.append((args[0], how)), move(*args, **how))[1])
    batch = {"input_ids": torch.zeros(2, dtype=torch.long), "image_embeds": torch.zeros(3), "sizes": {"uses": 1}}
    assert trainer._prepare_input(batch)["sizes"] == {"uses": 1}
    assert any(how.get("non_blocking") for tensor, how in moves if tensor is batch["input_ids"])
    assert not any(how.get("non_blocking") for tensor, how in moves if tensor is batch["image_embeds"])


@pytest.mark.parametrize("accelerator", [True, False])
def test_memory_is_pinned_and_moved_from_without_waiting_where_there_is_a_device(tmp_path, monkeypatch, accelerator):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator)
    args = InstructBLIPTrainingArguments(str(tmp_path), bf16=False)
    assert args.dataloader_pin_memory == args.accelerator_config.non_blocking == accelerator
    unpinned = InstructBLIPTrainingArguments(str(tmp_path), bf16=False, dataloader_pin_memory=False)
    assert not unpinned.accelerator_config.non_blocking  # of which transformers would warn


@pytest.mark.parametrize("use_cpu", [True, False])
def test_nothing_is_warned_about_pinned_memory_on_a_cpu(train, caplog, recwarn, monkeypatch, use_cpu):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    next(iter(train("llama", use_cpu=use_cpu, bf16=False).get_train_dataloader()))
    assert "pin_memory" not in caplog.text
    assert not [warning for warning in recwarn if "pin_memory" in str(warning.message)]


def test_cuda_graphs_do_not_go_with_accumulated_gradients(tmp_path):
    options = dict(torch_compile=True, torch_compile_mode="reduce-overhead", use_cpu=True)
    assert InstructBLIPTrainingArguments(str(tmp_path), **options).torch_compile
    with pytest.raises(ValueError, match="'reduce-overhead' records CUDA graphs.*gradient_accumulation_steps to 1"):
        InstructBLIPTrainingArguments(str(tmp_path), gradient_accumulation_steps=2, **options)
