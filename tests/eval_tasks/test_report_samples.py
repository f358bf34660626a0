"""Which documents the report shows, and what is told about them."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
from PIL import Image

from instructblip.eval_tasks.report_results import Samples, read_models
from instructblip.eval_tasks.report_samples import answer_of, document_scores, shown_documents, truth_of
from instructblip.eval_tasks.report_tables import measure


@pytest.fixture(scope="module")
def models(logged):
    found = sorted(read_models([logged.folder]), key=lambda model: model.name)
    return [(model, {task: measure(model, task) for task in model.runs}) for model in found]


def test_half_are_the_best_and_half_the_worst_of_the_first_model(models):
    shown = shown_documents(models, "instructblip_gqa", "accuracy", 4)
    assert [document.kind for document in shown] == ["best", "best", "worst", "worst"]
    assert [document.answers[0].score for document in shown] == [1.0, 1.0, 0.0, 0.0]
    assert {document.name for document in shown} == {f"gqa/2013{number}" for number in range(4)}
    assert [len(shown_documents(models, "instructblip_gqa", "accuracy", count)) for count in (0, 3, 100)] == [0, 3, 4]


def test_documents_of_one_score_are_drawn_by_the_seed(models):
    model, measured = models[0]
    task = measured["instructblip_visdial"]
    flat = dataclasses.replace(task, samples=dataclasses.replace(task.samples, values={"mrr": [0.5] * 20}))

    def drawn(seed):
        shown = shown_documents([(model, {"instructblip_visdial": flat})], "instructblip_visdial", "mrr", 3, seed)
        assert {document.kind for document in shown} == {"any"}
        return [document.name for document in shown]

    assert drawn(0) == drawn(0)
    assert len({tuple(drawn(seed)) for seed in range(6)}) > 1


def test_all_models_answer_the_same_documents(models):
    shown = shown_documents(models, "instructblip_gqa", "accuracy", 4)
    answers = {document.name: [(answer.model, answer.text) for answer in document.answers] for document in shown}
    assert answers["gqa/20130"] == [("org/first", "red"), ("org/second", "nothing")]
    asked_of_second = [name for name, of_document in answers.items() if len(of_document) == 2]
    assert sorted(asked_of_second) == ["gqa/20130", "gqa/20132"]  # --limit 2


def test_prompt_truth_and_ranking_are_told(models):
    (document, *_) = shown_documents(models, "instructblip_vsr", "accuracy", 5)
    assert document.prompt.startswith("Based on the image, is this statement true or false?")
    (answer,) = document.answers
    assert answer.text == answer.shares[0][0]
    assert answer.text in ("yes", "true", "no", "false")
    assert sum(share for _, share in answer.shares) == pytest.approx(1.0, abs=1e-6)  # the stub is sure of itself
    (dialog,) = shown_documents(models, "instructblip_visdial", "mrr", 1)
    samples = models[0][1]["instructblip_visdial"].samples
    document = samples.line(samples.names.index(dialog.name))["doc"]
    assert dialog.truth == document["choices"][document["label"]]


def test_captions_are_scored_one_by_one():
    records = [
        {"id": 1, "caption": "a red cat on a mat", "references": ["a red cat on a mat"]},
        {"id": 2, "caption": "nothing", "references": ["two dogs in the snow"]},
        None,  # another domain
    ]
    assert document_scores(_measured({"cider": records}), "cider") == [pytest.approx(10.0), 0.0, None]


def _measured(values):
    """A stand-in for what was measured of a task."""
    return SimpleNamespace(samples=Samples(Path("samples.jsonl"), values, ["a", "b", "c"], [0, 10, 20]))


def test_memes_are_the_best_by_accuracy_where_the_score_is_of_all_together(models):
    measured = models[0][1]["instructblip_hateful_memes"]
    assert document_scores(measured, "auroc") == measured.samples.values["accuracy"]


def test_a_document_without_a_score_of_its_own_has_none():
    assert document_scores(_measured({"f1": [[1, 1], [0, 1], [1, 0]]}), "f1") == [None, None, None]


def test_pictures_are_found_by_document_in_data_loaded_anew(models, logged):
    data = {"data_root": str(logged.data_root)}
    for task, count in (("instructblip_gqa", 4), ("instructblip_pope_random", 2), ("instructblip_vqa_rad_ranked", 2)):
        shown = shown_documents(models, task, "accuracy", count, data=data)
        assert len(shown) == count
        for document in shown:
            assert not document.trouble
            assert [picture.size for picture in document.pictures] == [(36, 28)]
    (first,) = [d for d in shown_documents(models, "instructblip_gqa", "accuracy", 4, data=data) if d.name[-1] == "0"]
    expected = Image.open(logged.data_root / "gqa/images/n0.jpg").convert("RGB")
    assert first.pictures[0].tobytes() == expected.tobytes()


def test_references_in_the_samples_are_not_followed(models, logged, tmp_path):
    """A samples file may come from anywhere, and may name any file of this machine."""
    secret = tmp_path / "secret.png"
    Image.new("RGB", (5, 5)).save(secret)
    run = models[0][1]["instructblip_gqa"].run
    lines = [json.loads(line) for line in run.samples_file.read_text().splitlines()]
    for line in lines:
        line["doc"]["images"] = line["arguments"]["gen_args_0"]["arg_2"]["visual"] = [str(secret)]
    moved = dataclasses.replace(run, file=tmp_path / run.file.name)
    moved.samples_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    model = dataclasses.replace(models[0][0], runs={run.task: moved}, others={run.task: []})
    for data in (None, {"data_root": str(logged.data_root)}):
        shown = shown_documents([(model, {run.task: measure(model, run.task)})], run.task, "accuracy", 4, data=data)
        assert all(picture.size != (5, 5) for document in shown for picture in document.pictures)


def test_data_without_the_dataset_or_the_document_is_told_and_does_not_stop_the_report(models, tmp_path, logged):
    (document, *_) = shown_documents(models, "instructblip_gqa", "accuracy", 2, data={"data_root": str(tmp_path)})
    assert document.trouble.startswith("no pictures of gqa: ")
    assert document.pictures == []
    for folder in ("images", "testdev_balanced_questions.json"):
        source = logged.data_root / "gqa" / folder
        (tmp_path / "gqa").mkdir(exist_ok=True)
        (tmp_path / "gqa" / folder).symlink_to(source)
    questions = json.loads((tmp_path / "gqa/testdev_balanced_questions.json").read_text())
    (tmp_path / "gqa/testdev_balanced_questions.json").unlink()
    other = {f"9{key}": value for key, value in questions.items()}
    (tmp_path / "gqa/testdev_balanced_questions.json").write_text(json.dumps(other))
    (document, *_) = shown_documents(models, "instructblip_gqa", "accuracy", 2, data={"data_root": str(tmp_path)})
    assert document.trouble == f"{document.name} is not in this data"


def test_answers_of_lm_evals_own_choices_and_of_broken_scores(models):
    run = models[0][1]["instructblip_vsr"].run
    arguments = {"gen_args_0": {"arg_0": "?", "arg_1": " cat"}, "gen_args_1": {"arg_0": "?", "arg_1": " dog"}}
    logged = {"doc": {}, "arguments": arguments, "filtered_resps": [["-2.0", "False"], ["-1.0", "False"]]}
    text, shares = answer_of(run, logged)
    assert text == " dog"
    assert [round(share, 3) for _, share in shares] == [0.731, 0.269]
    broken = {"doc": {}, "arguments": {}, "filtered_resps": [["nan", "-1.0", "-2.0", "-3.0"]]}
    assert answer_of(run, broken) == ("(no usable score)", ())
    more = {"doc": {}, "arguments": {}, "filtered_resps": [["-1.0", "-2.0"]]}  # the task now has four
    assert answer_of(run, more)[0] == "candidate 0"


@pytest.mark.parametrize(
    ("document", "truth"),
    [
        ({"choices": ["cat", "dog"], "label": 1, "answers": ["dog"]}, "dog"),
        ({"choices": [], "label": 0, "answers": ["blue", "navy", "blue"]}, "blue (2) · navy"),
        ({"answers": list("abcdefgh")}, "a · b · c · d · e · f and 2 more"),
        ({"label": 1}, "the target"),
        ("no document", "the target"),
    ],
)
def test_the_truth_is_the_right_choice_or_who_said_what(document, truth):
    assert truth_of({"doc": document, "target": "the target"}) == truth


@pytest.fixture(autouse=True)
def _datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
