"""TRL's trainers: SFTTrainer and DPOTrainer train the bridge as ours does."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from instructblip import (
    InstructBLIPCollator,
    InstructBLIPForConditionalGeneration,
    InstructBLIPPreferenceCollator,
)
from instructblip.training import InstructBLIPTrainer, InstructBLIPTrainingArguments

QUESTIONS = ("what is the color of this cat ?", "is there a dog ?", "what is in the picture ?", "how red is this ?")
ANSWERS = ("red", "no", "a green dog", "one two three four")
QUIET = dict(report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no", bf16=False, max_steps=1)
QUIET |= dict(per_device_train_batch_size=4, learning_rate=1e-2, logging_steps=1)


@pytest.fixture
def new_model(tiny_model, processor):
    def make(kind="llama"):
        made = processor(kind)
        torch.manual_seed(0)
        model = tiny_model(kind, image_token_index=made.image_token_id, text={"vocab_size": len(made.tokenizer) + 3})
        model.freeze_backbones()
        return model

    return make


class Logs(TrainerCallback):
    """What is logged, unrounded."""

    def __init__(self):
        self.rows = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.rows.append(dict(logs))

    def values(self, key):
        return [row[key] for row in self.rows if key in row]


def rows(images, **columns):
    return Dataset.from_dict({"image": images[:4], **columns})


def our_first_loss(model, processor, images, tmp_path):
    logs = Logs()
    samples = [
        {"image": image, "instruction": question, "response": answer}
        for image, question, answer in zip(images, QUESTIONS, ANSWERS, strict=False)
    ]
    args = InstructBLIPTrainingArguments(str(tmp_path / "ours"), warmup_steps=0, **QUIET)
    InstructBLIPTrainer(model, args, train_dataset=samples, processing_class=processor, callbacks=[logs]).train()
    return logs.values("loss")[0]


def moved_by(trainer):
    model = trainer.model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer.train()
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


@pytest.mark.parametrize("conversational", [False, True])
def test_sft_with_our_collator_has_our_first_loss_and_moves_the_bridge_alone(
    conversational, new_model, processor, tiny_images, tmp_path
):
    prompts, completions = list(QUESTIONS), list(ANSWERS)
    if conversational:
        prompts = [[{"role": "user", "content": text}] for text in prompts]
        completions = [[{"role": "assistant", "content": text}] for text in completions]
    logs, model = Logs(), new_model()
    trainer = SFTTrainer(
        model, SFTConfig(str(tmp_path / "sft"), **QUIET), InstructBLIPCollator(processor()),
        rows(tiny_images, prompt=prompts, completion=completions), processing_class=processor(), callbacks=[logs],
    )  # fmt: skip
    moved = moved_by(trainer)
    assert logs.values("loss")[0] == pytest.approx(
        our_first_loss(new_model(), processor(), tiny_images, tmp_path), rel=1e-5
    )
    bridge = set(model.bridge_state_dict())
    assert {"query_tokens", "language_projection.weight", "vision_model.post_layernorm.weight"} <= moved <= bridge
    assert set(trainer.model.state_dict()) == set(new_model().state_dict())


def test_sft_with_trls_own_collator_has_our_first_loss_where_the_rows_hold_every_token(
    new_model, processor, tiny_images, tmp_path
):
    """Without BOS; TRL adds no end token to rows with images, so the rows have one, and the space before an answer."""
    logs, model, made = Logs(), new_model("gpt2"), processor("gpt2")
    completions = [f" {answer}{made.tokenizer.eos_token}" for answer in ANSWERS]
    trainer = SFTTrainer(
        model, SFTConfig(str(tmp_path / "sft"), **QUIET), callbacks=[logs], processing_class=made,
        train_dataset=rows(tiny_images, prompt=list(QUESTIONS), completion=completions),
    )  # fmt: skip
    moved = moved_by(trainer)
    expected = our_first_loss(new_model("gpt2"), processor("gpt2"), tiny_images, tmp_path)
    assert logs.values("loss")[0] == pytest.approx(expected, rel=1e-5)
    assert moved <= set(model.bridge_state_dict())


def test_sft_trains_adapters_with_the_bridge(tiny_model, processor, tiny_images, tmp_path):
    tiny_model("llama", image_token_index=processor().image_token_id).save_pretrained(tmp_path / "model")
    model = InstructBLIPForConditionalGeneration.from_pretrained(tmp_path / "model")
    trainer = SFTTrainer(
        model, SFTConfig(str(tmp_path / "sft"), **QUIET), InstructBLIPCollator(processor()),
        rows(tiny_images, prompt=list(QUESTIONS), completion=list(ANSWERS)), processing_class=processor(),
        peft_config=LoraConfig(r=2, **model.lora_targets("language_model")),
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(tmp_path / "adapters"))
    loaded = InstructBLIPForConditionalGeneration.from_pretrained(tmp_path / "adapters")
    tensors = {name.removeprefix("base_model.model."): p for name, p in trainer.model.named_parameters()}
    assert {name for name, p in loaded.named_parameters() if not torch.equal(p, tensors[name])} == set()
    assert not torch.equal(loaded.queries.weight, loaded.query_tokens)


def test_sft_trains_on_rows_without_images_among_others(new_model, processor, tiny_images, tmp_path):
    data = Dataset.from_dict(
        {"images": [[], [tiny_images[0]]] * 2, "prompt": list(QUESTIONS), "completion": list(ANSWERS)}
    )
    logs = Logs()
    options = {**QUIET, "per_device_train_batch_size": 1, "max_steps": 4}
    SFTTrainer(
        new_model(), SFTConfig(str(tmp_path / "sft"), **options), InstructBLIPCollator(processor()), data,
        processing_class=processor(), callbacks=[logs],
    ).train()  # fmt: skip
    assert len(logs.values("loss")) == 4


def test_an_encoder_decoder_is_refused_with_the_way_to_train_it(new_model, processor, tiny_images, tmp_path):
    trainer = SFTTrainer(
        new_model("t5"), SFTConfig(str(tmp_path), **QUIET), InstructBLIPCollator(processor("t5")),
        rows(tiny_images, prompt=list(QUESTIONS), completion=list(ANSWERS)), processing_class=processor("t5"),
    )  # fmt: skip
    with pytest.raises(ValueError, match="t5 is an encoder-decoder: train it with InstructBLIPTrainer"):
        trainer.train()


def test_texts_with_the_answer_in_them_are_warned_about(new_model, processor, tiny_images, tmp_path, caplog):
    messages = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for question, answer in zip(QUESTIONS, ANSWERS, strict=True)
    ]
    SFTTrainer(
        new_model(), SFTConfig(str(tmp_path), **QUIET), train_dataset=rows(tiny_images, messages=messages),
        processing_class=processor(),
    ).train()  # fmt: skip
    assert "use rows of `prompt` and `completion`" in caplog.text


# ---- DPO


@pytest.fixture
def preferences(tiny_images):
    worse = ("blue", "yes", "a red cat", "two")
    return rows(tiny_images, prompt=list(QUESTIONS), chosen=list(ANSWERS), rejected=list(worse))


def log_probability(model, processor, image, prompt, answer):
    """Of an answer with its end token: a plain forward of one row."""
    batch = processor(images=image, text=prompt, answers=answer)
    labels = batch.pop("labels")
    with torch.no_grad():
        logits = model.eval()(**batch).logits[:, :-1].log_softmax(-1)
    learned = labels[:, 1:] != -100
    return logits.gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0][learned].sum()


def test_dpo_raises_the_margin_by_the_bridge_alone_against_the_bridge_it_began_with(
    new_model, processor, preferences, tmp_path
):
    logs, model, made = Logs(), new_model(), processor()
    references = []

    class Trainer(DPOTrainer):
        def compute_loss(self, model, inputs, **kwargs):
            references.append(torch.stack(self.compute_ref_log_probs(model, inputs)))
            return super().compute_loss(model, inputs, **kwargs)

    config = DPOConfig(str(tmp_path / "dpo"), **{**QUIET, "max_steps": 8, "learning_rate": 1e-3}, beta=0.1)
    trainer = Trainer(
        model, args=config, data_collator=InstructBLIPPreferenceCollator(made), train_dataset=preferences,
        processing_class=made, peft_config=LoraConfig(**model.lora_targets()), callbacks=[logs],
    )  # fmt: skip
    assert trainer.ref_model is None
    moved = moved_by(trainer)
    margins = logs.values("rewards/margins")
    assert margins[0] == pytest.approx(0, abs=1e-6)
    assert margins[-1] > 0.05
    assert margins[-1] == max(margins)
    assert all(".modules_to_save.default." in name for name in moved)
    assert any("queries" in name for name in moved)

    fresh = new_model()
    expected = torch.tensor(
        [
            [log_probability(fresh, made, row["image"], row["prompt"], row[key]) for row in preferences]
            for key in ("chosen", "rejected")
        ]
    )
    assert len(references) == 8
    for found in references:  # shuffled differently each epoch
        torch.testing.assert_close(found.sort(dim=1).values, expected.sort(dim=1).values, rtol=1e-4, atol=1e-4)
