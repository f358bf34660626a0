import itertools
import json
import sys
import types

import numpy as np
import pytest
import torch
from datasets import Dataset

from instructblip.datasets_builders import InstructionDataset, InstructionFormat, stream_mixture
from instructblip.datasets_builders.mixture import InstructionMixture
from instructblip.datasets_builders.schema import make_sample, row_features
from instructblip.training import InstructBLIPTrainer, InstructBLIPTrainingArguments
from instructblip.training.console import lines
from instructblip.training.evaluation import exact_match, row_sums, without_answers
from instructblip.training.homogeneous import HomogeneousSampler
from instructblip.training.streams import StreamBatches

KINDS = ("t5", "llama")
QUESTIONS = ("what is the color of this cat ?", "is there a dog ?", "what is in the picture ?", "how red is this ?")
ANSWERS = ("red", "no", "a green dog", "one two three four")


@pytest.fixture
def samples(tiny_images):
    """Eight samples, of two datasets in turn, with answers of one to four words."""
    return [
        {
            "image": tiny_images[i],
            "instruction": QUESTIONS[i % 4],
            "response": ANSWERS[i % 4],
            "id": str(i),
            "dataset": ("even", "odd")[i % 2],
        }
        for i in range(8)
    ]


@pytest.fixture
def make_trainer(tiny_model, processor, samples, tmp_path):
    """A factory of trainers: `make_trainer("t5", max_steps=2, scorer=...)`."""

    def make(kind, data=None, evaluated=None, scorer=None, compute_metrics=None, callbacks=None, **arguments):
        torch.manual_seed(0)
        made = processor(kind)
        model = tiny_model(kind, image_token_index=made.image_token_id)
        defaults = dict(
            per_device_train_batch_size=4, learning_rate=1e-2, warmup_steps=0, logging_steps=1, save_strategy="no",
            report_to="none", use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        return InstructBLIPTrainer(
            model=model,
            args=InstructBLIPTrainingArguments(str(tmp_path / "run"), **{**defaults, **arguments}),
            train_dataset=samples if data is None else data,
            eval_dataset=samples if evaluated is None else evaluated,
            processing_class=made,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            scorer=scorer,
        )

    return make


def alone(trainer, sample):
    """(summed loss, hits, tokens) of one sample, from the logits of a plain forward."""
    batch = trainer.data_collator([sample])
    labels = batch["labels"][0]
    inputs = {key: value for key, value in batch.items() if key not in ("id", "dataset")}
    with torch.no_grad():
        logits = trainer.model.eval()(**inputs, skip_logits=False).logits[0].float()
    if not trainer.model.config.is_encoder_decoder:
        logits, labels = logits[:-1], labels[1:]
    logits, labels = logits[labels != -100], labels[labels != -100]
    return np.array(
        [
            float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum")),
            float((logits.argmax(-1) == labels).sum()),
            len(labels),
        ]
    )


# ---- loss and token accuracy


def test_tokens_are_summed_by_row():
    sums = row_sums(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([True, False, True]), torch.tensor([2, 0, 1]))
    assert sums.tolist() == [[3.0, 1.0, 2.0], [0.0, 0.0, 0.0], [4.0, 1.0, 1.0]]


@pytest.mark.parametrize("kind", KINDS)
def test_each_dataset_has_its_own_loss_and_accuracy(make_trainer, samples, kind):
    batches = dict(per_device_train_batch_size=2, gradient_accumulation_steps=2)
    trainer = make_trainer(kind, learning_rate=0.0, max_steps=2, logging_steps=2, **batches)
    expected = {"even": np.zeros(3), "odd": np.zeros(3)}
    for sample in samples:
        expected[sample["dataset"]] += alone(trainer, sample)
    trainer.train()  # all eight samples, in batches of two with other padding
    logs = trainer.state.log_history[0]
    for name, (loss, hits, tokens) in expected.items():
        assert logs[f"loss/{name}"] == pytest.approx(loss / tokens, rel=1e-4)
        assert logs[f"token_accuracy/{name}"] == pytest.approx(hits / tokens)
    _, hits, tokens = sum(expected.values())
    assert logs["token_accuracy"] == pytest.approx(hits / tokens)


def test_a_log_counts_nothing_of_the_log_before(make_trainer, samples):
    trainer = make_trainer("llama", data=samples[:4], learning_rate=0.0, max_steps=2)
    trainer.train()
    first, second = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert first["loss/odd"] == pytest.approx(second["loss/odd"], rel=1e-4)


def test_one_dataset_alone_is_not_reported_apart(make_trainer, samples):
    trainer = make_trainer("llama", data=[{**sample, "dataset": "one"} for sample in samples], max_steps=1)
    trainer.train()
    assert "token_accuracy" in trainer.state.log_history[0]
    assert not any("/" in key for key in trainer.state.log_history[0])


def test_samples_without_a_dataset_are_trained_on_all_the_same(make_trainer, samples):
    bare = [{key: sample[key] for key in ("image", "instruction", "response")} for sample in samples]
    trainer = make_trainer("t5", data=bare, max_steps=1)
    trainer.train()
    assert 0 <= trainer.state.log_history[0]["token_accuracy"] <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_evaluated_loss_is_the_mean_over_all_answer_tokens(make_trainer, samples, kind):
    """Batches of 3, 3 and 2 with answers of 1 to 4 words: the mean of batch means differs."""
    trainer = make_trainer(kind, per_device_eval_batch_size=3)
    loss, hits, tokens = sum(alone(trainer, sample) for sample in samples)
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(loss / tokens, rel=1e-5)
    assert metrics["eval_token_accuracy"] == pytest.approx(hits / tokens)


# ---- generated answers


@pytest.mark.parametrize("kind", KINDS)
def test_the_answers_scored_are_those_of_generate(make_trainer, processor, samples, kind):
    seen = []

    def scorer(answers, asked):
        seen.append((answers, [sample["id"] for sample in asked]))
        return {"words": 2.5, "other": 1.0}

    trainer = make_trainer(
        kind, scorer=scorer, predict_with_generate=True, generation_max_new_tokens=3, per_device_eval_batch_size=3
    )
    metrics = trainer.evaluate()
    made = processor(kind)
    inputs = made(images=[s["image"] for s in samples], text=[s["instruction"] for s in samples])
    ids = trainer.model.generate(**inputs, max_new_tokens=3, num_beams=1)
    expected = [text.strip() for text in made.tokenizer.batch_decode(ids, skip_special_tokens=True)]
    assert any(expected)
    assert seen == [(expected, [sample["id"] for sample in samples])]
    assert (metrics["eval_words"], metrics["eval_other"], metrics["eval_score"]) == (2.5, 1.0, 2.5)
    assert metrics["eval_loss"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_compute_metrics_gets_the_ids_of_new_tokens(make_trainer, kind):
    shapes = []

    def compute_metrics(prediction):
        shapes.append((prediction.predictions.shape, prediction.label_ids.shape[0]))
        return {"found": 1.0}

    trainer = make_trainer(
        kind, compute_metrics=compute_metrics, predict_with_generate=True, generation_max_new_tokens=2
    )
    metrics = trainer.evaluate()
    ((rows, longest), labelled) = shapes[0]
    assert rows == labelled == 8
    assert longest <= 2
    assert metrics["eval_found"] == 1.0
    assert "eval_score" not in metrics


def test_a_prompt_holds_nothing_of_the_answer():
    inputs = {
        "input_ids": torch.tensor([[5, 6, 7, 2, 0], [5, 8, 9, 3, 2]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]),
        "labels": torch.tensor([[-100, -100, 7, 2, -100], [-100, -100, -100, 3, 2]]),
        "dataset": ["a", "b"],
    }
    prompt = without_answers(inputs, is_encoder_decoder=False)
    assert prompt["input_ids"].tolist() == [[5, 6, 7], [5, 8, 9]]
    assert prompt["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert set(prompt) == {"input_ids", "attention_mask"}


def test_exact_match_looks_at_case_and_outer_blanks_only():
    asked = [{"response": " Red"}, {"response": "two"}, {"response": "no"}]
    assert exact_match(["red", "2", "no"], asked) == {"exact_match": pytest.approx(2 / 3)}


@pytest.fixture
def rows(tiny_images):
    """A factory of map-style rows in the schema, one question each."""

    def make(name, count):
        made = [
            {
                "image": tiny_images[i % 8],
                "image_id": f"{name}/{i}",
                "samples": [make_sample(f"{name}/{i}", QUESTIONS[i % 4], [ANSWERS[i % 4], "yes"])],
            }
            for i in range(count)
        ]
        return InstructionDataset(Dataset.from_list(made, features=row_features()), name, task="vqa")

    return make


def test_a_scorer_sees_what_the_row_schema_has(make_trainer, rows):
    seen = []

    def scorer(answers, asked):
        seen.extend((sample["dataset"], sample["id"], tuple(sample["answers"])) for sample in asked)
        return {}

    metrics = make_trainer("llama", evaluated=rows("mine", 3), scorer=scorer, predict_with_generate=True).evaluate()
    assert seen == [("mine", f"mine/{i}", (ANSWERS[i], "yes")) for i in range(3)]
    assert "eval_score" not in metrics


def test_the_score_of_a_mixture_is_the_mean_of_those_that_have_one(make_trainer, rows):
    def scorer(answers, asked):
        return {"a": {"accuracy": 0.25}, "b": {"accuracy": 0.75}, "c": {}}[asked[0]["dataset"]]

    evaluated = {name: rows(name, 2) for name in "abc"}
    trainer = make_trainer("t5", evaluated=evaluated, scorer=scorer, predict_with_generate=True)
    metrics = trainer.evaluate()
    assert metrics["eval_score"] == 0.5
    assert metrics["eval_loss"] == pytest.approx(np.mean([metrics[f"eval_{name}_loss"] for name in "abc"]))
    assert (metrics["eval_a_score"], metrics["eval_b_accuracy"]) == (0.25, 0.75)
    assert trainer.state.log_history[-1]["eval_score"] == 0.5


def test_the_best_checkpoint_is_the_model_in_the_end(make_trainer, rows):
    scores = iter((0.1, 0.9, 0.3))
    bridges = []

    def scorer(answers, asked):
        bridges.append(trainer.model.query_tokens.detach().clone())
        return {"accuracy": next(scores)}

    trainer = make_trainer(
        "llama", data=rows("mine", 4), evaluated={"mine": rows("mine", 2)}, scorer=scorer, predict_with_generate=True,
        max_steps=3, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, save_total_limit=1,
        load_best_model_at_end=True, metric_for_best_model="score",
    )  # fmt: skip
    trainer.train()
    assert trainer.state.best_global_step == 2
    assert torch.equal(trainer.model.query_tokens, bridges[1])
    assert not torch.equal(bridges[1], bridges[2])


# ---- batches of one dataset


def test_batches_are_of_one_dataset_and_keep_the_shares(rows):
    mixture = InstructionMixture({"a": rows("a", 30), "b": rows("b", 10)}, {"a": 0.6, "b": 0.4}, length=400)
    sampler = HomogeneousSampler(mixture, 4, seed=0)
    order = list(sampler)
    names = [[mixture.locate(place)[0] for place in order[start : start + 4]] for start in range(0, 400, 4)]
    assert len(order) == len(sampler) == 400
    assert all(len(set(batch)) == 1 for batch in names)
    share = sum(batch[0] == "a" for batch in names) / len(names)
    assert share == pytest.approx(np.mean(mixture.sources() == 0), abs=0.01)
    assert len(set(order)) >= 394  # at most one batch of each was filled up
    assert names != sorted(names)


def test_every_epoch_has_as_many_batches_in_another_order_that_can_be_drawn_again(rows):
    mixture = InstructionMixture({name: rows(name, 7) for name in "abc"}, length=50)
    sampler = HomogeneousSampler(mixture, 4, seed=0)
    orders = []
    for epoch in (0, 1, 0):
        mixture.set_epoch(epoch)
        orders.append(list(sampler))
    assert [len(order) for order in orders] == [48, 48, 48]
    assert orders[0] == orders[2] != orders[1]


def test_a_dataset_with_less_than_a_batch_fills_it_with_its_own(rows):
    mixture = InstructionMixture({"a": rows("a", 3), "b": rows("b", 1)}, {"a": 0.7, "b": 0.3}, length=8)
    order = list(HomogeneousSampler(mixture, 8, seed=0))
    assert len(order) == 8
    assert len({mixture.locate(place)[0] for place in order}) == 1


def test_homogeneous_batches_are_a_switch(make_trainer, rows):
    mixture = InstructionMixture({"a": rows("a", 8), "b": rows("b", 8)}, length=32)
    for switch, most in ((True, 1), (False, 2)):
        loader = make_trainer("llama", data=mixture, homogeneous_batches=switch).get_train_dataloader()
        assert max(len(set(batch["dataset"])) for batch in loader) == most


def test_homogeneous_batches_of_something_else_are_refused(make_trainer, samples):
    with pytest.raises(TypeError, match="homogeneous_batches with a list: an InstructionMixture was expected"):
        make_trainer("llama", homogeneous_batches=True).get_train_dataloader()


def batches_of(stream, count, workers=0, batch_size=4, position=None):
    """Datasets and ids of so many homogeneous batches of a stream, and where it is then."""
    read = StreamBatches(
        stream, list, batch_size, workers, homogeneous=True, multiprocessing_context=workers and "fork"
    )
    if position is not None:
        read.go_on(json.loads(json.dumps(position)), skipped=0)
    given = [[(sample["dataset"], sample["id"]) for sample in batch] for batch in itertools.islice(read, count)]
    return given, read.position()


@pytest.fixture
def stream(rows):
    """Makes the same stream anew."""

    def make(with_images=False, **probabilities):
        shares = probabilities or {"a": 0.7, "b": 0.2, "c": 0.1}
        sources = {name: rows(name, 24).rows.to_iterable_dataset(num_shards=2) for name in shares}
        formats = {name: InstructionFormat.of(name, task="vqa") for name in shares}
        return stream_mixture(sources, shares, formats, block_rows=4, with_images=with_images)

    return make


def test_batches_of_a_stream_are_of_one_dataset_and_keep_the_shares(stream):
    batches, position = batches_of(stream(), 250)
    assert all(len(batch) == 4 and len({name for name, _ in batch}) == 1 for batch in batches)
    names = [batch[0][0] for batch in batches]
    assert [names.count(name) / 250 for name in "abc"] == pytest.approx([0.7, 0.2, 0.1], abs=0.07)
    order = [id for batch in batches for name, id in batch if name == "c"]
    assert [len(set(order[start : start + 24])) for start in range(0, len(order) - 23, 24)] == [24] * (len(order) // 24)
    assert len(position["parts"][0]["waiting"]) <= 3 * 3


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_one_dataset_go_on_with_the_samples_that_waited(stream, workers):
    expected, _ = batches_of(stream(), 14, workers)
    waited = 0
    for after in (1, 6, 7) if workers else range(14):
        _, position = batches_of(stream(), after, workers)
        assert batches_of(stream(), 14 - after, workers, position=position)[0] == expected[after:], after
        waited += sum(len(part["waiting"]) for part in position["parts"] if part)
    assert waited


def test_going_on_twice_is_as_going_on_once(stream):
    expected, _ = batches_of(stream(), 12)
    _, position = batches_of(stream(), 4)
    _, position = batches_of(stream(), 3, position=position)
    assert batches_of(stream(), 5, position=position)[0] == expected[7:]


def test_no_batch_of_a_stream_waits_for_a_rare_dataset(stream):
    batches, position = batches_of(stream(a=0.999, b=0.001), 20)
    assert {name for batch in batches for name, _ in batch} == {"a"}
    assert position["parts"][0]["read"] <= 80 + 6


def test_homogeneous_batches_of_a_stream_are_a_switch(make_trainer, stream):
    for switch, most in ((True, 1), (False, 2)):
        trainer = make_trainer("llama", data=stream(True, a=0.5, b=0.5), homogeneous_batches=switch, max_steps=9)
        batches = itertools.islice(trainer.get_train_dataloader(), 9)
        assert max(len(set(batch["dataset"])) for batch in batches) == most


def test_streams_that_cannot_have_homogeneous_batches_are_refused(make_trainer, rows, samples):
    unnamed = Dataset.from_list([{"id": "s0", "instruction": "a ?", "response": "b"}] * 8).to_iterable_dataset()
    with pytest.raises(ValueError, match="a stream whose sample s0 has no `dataset`"):
        next(iter(make_trainer("llama", data=unnamed, homogeneous_batches=True, max_steps=1).get_train_dataloader()))
    shuffled = make_trainer("llama", data=unnamed.shuffle(buffer_size=2), homogeneous_batches=True, max_steps=1)
    with pytest.raises(ValueError, match="homogeneous_batches with a stream that cannot say where it is"):
        shuffled.get_train_dataloader()


# ---- trackers and console


@pytest.fixture
def curves(monkeypatch):
    """What transformers' callback for TensorBoard writes: name -> (step, value), with a writer in its place."""
    written = {}

    class Writer:
        def __init__(self, log_dir):
            pass

        def add_scalar(self, name, value, step):
            written.setdefault(name, []).append((step, value))

        def __getattr__(self, name):
            return lambda *args, **kwargs: None

    package = types.ModuleType("torch.utils.tensorboard")
    package.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", package)
    monkeypatch.setattr("transformers.integrations.integration_utils.is_tensorboard_available", lambda: True)
    return written


def test_a_tracker_gets_the_values_of_each_dataset_and_the_scores(make_trainer, samples, curves):
    trainer = make_trainer(
        "llama", evaluated={"even": samples[::2], "odd": samples[1::2]}, report_to="tensorboard", max_steps=2,
        predict_with_generate=True, generation_max_new_tokens=2, eval_strategy="steps", eval_steps=1,
    )  # fmt: skip
    trainer.train()
    names = [f"train/{what}{of}" for what in ("loss", "token_accuracy") for of in ("", "/even", "/odd")]
    names += [f"eval/{what}" for what in ("loss", "token_accuracy", "score")]
    names += [f"eval/{of}_{what}" for of in ("even", "odd") for what in ("loss", "token_accuracy", "exact_match")]
    for name in names:
        assert [step for step, _ in curves.get(name, ())] == [1, 2], name
        assert all(isinstance(value, float) for _, value in curves[name]), name
    assert curves["train/loss/even"][0] != curves["train/loss/odd"][0]
    scores = [entry["eval_score"] for entry in trainer.state.log_history if "eval_score" in entry]
    assert [value for _, value in curves["eval/score"]] == scores


def test_the_console_has_a_line_for_each_dataset():
    logs = {
        "loss": 1.23456,
        "loss/vqav2": 1.0,
        "token_accuracy/vqav2": 0.5,
        "loss/okvqa": 2.0,
        "epoch": 0.125,
        "eval_runtime": 1.0,
    }
    assert lines({**logs, "eval_runtime": 1.0}, 20, 100).splitlines() == [
        "step 20/100  epoch 0.125  loss 1.235",
        "    vqav2  loss 1  token_accuracy 0.5",
        "    okvqa  loss 2",
    ]


@pytest.mark.parametrize("bars", [True, False])
def test_the_console_shows_the_log_and_no_dict(make_trainer, capsys, bars):
    make_trainer("llama", max_steps=1, disable_tqdm=not bars).train()
    captured = capsys.readouterr()
    text = captured.out + captured.err
    assert "step 1/1" in text
    assert "    even  loss" in text
    assert "{'loss'" not in text
