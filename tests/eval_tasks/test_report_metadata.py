"""Results as the Hub's model-index."""

import dataclasses
from operator import attrgetter

import pytest
from huggingface_hub import ModelCard

from instructblip.datasets_builders.table import TABLE
from instructblip.eval_tasks import report
from instructblip.eval_tasks.report_metadata import eval_results
from instructblip.eval_tasks.report_results import read_models
from instructblip.eval_tasks.report_tables import Score, measure


@pytest.fixture(scope="module")
def measured(logged):
    model = next(model for model in read_models([logged.folder]) if model.name == "org/first")
    return {task: measure(model, task) for task in model.runs}


def test_the_first_score_of_each_task_is_told_with_its_dataset_and_split(measured):
    results = {result.metric_args["lm_eval_task"]: result for result in eval_results(measured)}
    assert set(results) == set(measured)
    gqa = results["instructblip_gqa"]
    assert (gqa.task_type, gqa.dataset_type, gqa.dataset_name) == ("visual-question-answering", "lmms-lab/GQA", "GQA")
    assert (gqa.dataset_split, gqa.metric_type, gqa.metric_value) == ("testdev", "accuracy", 50.0)
    assert gqa.metric_args["documents"] == 4
    assert gqa.metric_args["interval_95"] == [0.0, 100.0]
    assert results["instructblip_nocaps"].task_type == "image-to-text"
    assert results["instructblip_hateful_memes"].metric_type == "roc_auc"
    assert results["instructblip_pope_random"].dataset_config == "random"
    assert results["instructblip_vqa_rad_ranked"].metric_name == "accuracy, vqa_rad_ranked"


def test_every_dataset_has_a_type(measured):
    run = measured["instructblip_gqa"].run
    for name in TABLE:
        config = {**run.config, "dataset_kwargs": {"dataset": name}}
        of_task = dataclasses.replace(measured["instructblip_gqa"], run=dataclasses.replace(run, config=config))
        (result,) = eval_results({"instructblip_gqa": of_task})
        assert result.dataset_type
        assert result.task_type in ("image-to-text", "visual-question-answering", "video-text-to-text")


def test_what_cannot_be_published_is_left_out(measured):
    of_task = measured["instructblip_gqa"]
    partial = dataclasses.replace(of_task, run=dataclasses.replace(of_task.run, documents=2))
    nothing = dataclasses.replace(of_task, scores={"accuracy": Score(None)})
    assert eval_results({"instructblip_gqa": partial}) == []
    assert eval_results({"instructblip_gqa": nothing}) == []
    assert eval_results({"their_gqa": of_task}) == []


def test_the_hubs_own_loader_reads_it_back(measured, logged, tmp_path):
    first = next(path for path in logged.folder.rglob("results_*.json") if '"org/first"' in path.read_text())
    written = report.write_report([first], tmp_path, samples=0, model_index=True)
    assert [path.name for path in written] == ["report.md", "report.json", "report.html", "model-index.yaml"]
    card = ModelCard(f"---\n{(tmp_path / 'model-index.yaml').read_text()}---\n\n# first\n")
    assert card.data.model_name == "first"
    names = attrgetter("dataset_name", "metric_name")
    assert sorted(card.data.eval_results, key=names) == sorted(eval_results(measured), key=names)


def test_results_fit_into_the_card_of_a_release(logged, tmp_path):
    from instructblip.release import write_model_card

    first = next(path for path in logged.folder.rglob("results_*.json") if '"org/first"' in path.read_text())
    results = report.card_results(first)
    card = write_model_card(tmp_path, "org/release", results=results)
    assert "| GQA | testdev | accuracy | 50.0 |" in card.content
    assert len(ModelCard.load(tmp_path / "README.md").data.eval_results) == len(results)


def test_a_card_is_of_one_model(logged):
    with pytest.raises(ValueError, match=r"results of 2 models \(org/\w+, org/\w+\): pass those of one"):
        report.card_results(logged.folder)
