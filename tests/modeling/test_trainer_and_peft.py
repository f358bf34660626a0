"""The model under transformers' Trainer and under PEFT."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments

KINDS = ["t5", "llama"]


def samples(make_batch, mixed_rows, language, labels=True):
    """One feature a row; each is already padded alike, so that stacking makes a batch."""
    batch = make_batch(mixed_rows, language, labels=labels)
    features = []
    for number in range(len(mixed_rows)):
        feature = {key: batch[key][number] for key in batch if key not in ("pixel_values", "image_index")}
        index = batch["image_index"][number]
        feature["pictures"] = batch["pixel_values"][index[index >= 0]]
        features.append(feature)
    return features


def collate(features):
    batch = {key: torch.stack([f[key] for f in features]) for key in features[0] if key != "pictures"}
    batch["pixel_values"] = torch.cat([feature["pictures"] for feature in features])
    index, used = torch.full((len(features), 3), -1), 0
    for row, feature in enumerate(features):
        index[row, : len(feature["pictures"])] = torch.arange(used, used + len(feature["pictures"]))
        used += len(feature["pictures"])
    return {**batch, "image_index": index}


def arguments(folder, kind=TrainingArguments, **kwargs):
    return kind(
        output_dir=folder, report_to=[], remove_unused_columns=False, use_cpu=True, disable_tqdm=True, seed=0,
        save_strategy="no", **kwargs,
    )  # fmt: skip


@pytest.mark.parametrize("language", KINDS)
def test_trainer_accumulates_four_rows_to_a_batch_of_four(language, tiny_model, make_batch, mixed_rows, tmp_path):
    """transformers' own T5 returns four times the loss here."""
    results = []
    for batch_size, steps in ((4, 1), (1, 4)):
        torch.manual_seed(0)
        model = tiny_model(language)
        model.freeze_backbones()
        trainer = Trainer(
            model,
            arguments(tmp_path, per_device_train_batch_size=batch_size, gradient_accumulation_steps=steps,
                      max_steps=2, logging_steps=1, learning_rate=1e-2, max_grad_norm=1e9),
            train_dataset=samples(make_batch, mixed_rows[:4], language), data_collator=collate,
        )  # fmt: skip
        trainer.train()
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        results.append(([entry["loss"] for entry in logs], [entry["grad_norm"] for entry in logs]))
    for one, other in zip(*results, strict=True):
        assert one == pytest.approx(other, rel=1e-3)
    assert 0 < results[0][0][1] < results[0][0][0] < 60


@pytest.mark.parametrize("language", KINDS)
def test_trainer_evaluates_with_compute_metrics(language, tiny_model, make_batch, mixed_rows, tmp_path):
    seen = []

    def metrics(prediction):
        seen.append(prediction)
        return {"rows": len(prediction.label_ids)}

    model = tiny_model(language)
    trainer = Trainer(
        model, arguments(tmp_path, per_device_eval_batch_size=2), data_collator=collate, compute_metrics=metrics,
        eval_dataset=samples(make_batch, mixed_rows, language),
    )  # fmt: skip
    result = trainer.evaluate()
    assert result["eval_rows"] == 5
    assert 0 < result["eval_loss"] < 60
    predictions = seen[0].predictions
    assert predictions.shape == (*seen[0].label_ids.shape, 80)  # the logits, and nothing else


@pytest.mark.parametrize("language", KINDS)
def test_seq2seq_trainer_predicts_new_tokens(language, tiny_model, make_batch, mixed_rows, tmp_path):
    model = tiny_model(language)
    features = samples(make_batch, mixed_rows, language, labels=False)
    trainer = Seq2SeqTrainer(
        model,
        arguments(tmp_path, Seq2SeqTrainingArguments, per_device_eval_batch_size=5, predict_with_generate=True,
                  generation_max_length=40, generation_num_beams=2),
        data_collator=collate,
    )  # fmt: skip
    predictions = trainer.predict(features, max_new_tokens=4).predictions
    expected = model.generate(**collate(features), max_new_tokens=4, num_beams=2)
    assert predictions[:, : expected.shape[1]].tolist() == expected.tolist()


# ---- PEFT


def lora(language, **kwargs):
    names = ["q", "v"] if language == "t5" else ["q_proj", "v_proj"]
    return LoraConfig(r=2, target_modules=rf"language_model\..*\.({'|'.join(names)})", lora_dropout=0.0, **kwargs)


@pytest.mark.parametrize("language", KINDS)
def test_lora_around_the_whole_model(language, tiny_model, make_batch, mixed_rows, tmp_path):
    fresh = tiny_model(language)
    model = get_peft_model(copy.deepcopy(fresh), lora(language, modules_to_save=["language_projection"]))
    batch = make_batch(mixed_rows, language, labels=True)
    loss = model.train()(**batch).loss
    loss.backward()
    trained = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert any("lora_B" in name for name in trained)
    assert any("language_projection" in name for name in trained)
    assert not any("vision_model" in name for name in trained)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1)
    model.eval()
    prompt = make_batch(mixed_rows, language)
    expected = model(**batch).logits
    for settings in ({}, {"num_beams": 3}):
        assert model.generate(**prompt, max_new_tokens=3, **settings).shape[0] == 5
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(fresh, tmp_path).eval()
    torch.testing.assert_close(loaded(**batch).logits, expected)


@pytest.mark.parametrize("language", KINDS)
def test_lora_inside_the_language_model(language, tiny_model, make_batch, mixed_rows):
    """Bridge and adapters train together; packing, ranking and shared prompts go through PEFT's wrapper."""
    model = tiny_model(language)
    batch = make_batch(mixed_rows, language, "left", labels=True)
    prompt = make_batch(mixed_rows, language, "left")
    expected = model(**batch).logits
    answers = model.generate(**prompt, max_new_tokens=3, num_beams=3)
    scores = model.score_candidates([[20], [20, 21], [22, 23]], **prompt)
    names = ["q", "v"] if language == "t5" else ["q_proj", "v_proj"]
    task = "SEQ_2_SEQ_LM" if language == "t5" else "CAUSAL_LM"
    model.freeze_backbones()
    model.language_model = get_peft_model(
        model.language_model, LoraConfig(r=2, target_modules=names, task_type=task, lora_dropout=0.0)
    )
    model.eval()
    torch.testing.assert_close(model(**batch).logits, expected)  # new adapters change nothing
    assert model.generate(**prompt, max_new_tokens=3, num_beams=3).tolist() == answers.tolist()
    torch.testing.assert_close(model.score_candidates([[20], [20, 21], [22, 23]], **prompt), scores)
    output = model.train()(**batch)
    output.loss.backward()
    trained = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert any("lora_B" in name for name in trained)
    assert any(name.startswith("qformer") for name in trained)
    assert not model.vision_model.training
