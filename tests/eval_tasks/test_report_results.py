"""Reading what lm-eval's own tracker wrote."""

import json
import shutil

import pytest

from instructblip.eval_tasks.report_results import read_models, read_samples


@pytest.fixture
def copied(logged, tmp_path):
    """The results in a folder of this test's own."""
    return shutil.copytree(logged.folder, tmp_path / "runs")


def results_of(folder, name):
    """The results file of a model, and its content."""
    for file in sorted(folder.rglob("results_*.json")):
        content = json.loads(file.read_text())
        if content["config"]["model_name"] == name:
            return file, content
    raise AssertionError(name)


def rewritten(file, content, written=None, **changes):
    """The results with changes, beside the others or as a run written at another time."""
    content = {**content, **changes}
    target = file.with_name(f"results_{written}.json") if written else file
    target.write_text(json.dumps(content))
    return target


def test_models_and_their_tasks_are_found_in_subfolders(logged):
    first, second = sorted(read_models([logged.folder]), key=lambda model: model.name)
    assert (first.label, second.label) == ("org/first", "org/second")
    assert list(first.runs) == sorted(logged.tasks, key=list(first.runs).index)
    assert set(first.runs) == set(logged.tasks)
    assert set(second.runs) == {"instructblip_gqa", "instructblip_nocaps"}
    assert second.settings["length_normalize"] is True
    run = first.runs["instructblip_gqa"]
    assert run.scores == {"accuracy": 0.5}
    assert (run.documents, run.all_documents, run.is_partial) == (4, 4, False)
    assert second.runs["instructblip_gqa"].is_partial
    assert first.runs["instructblip_hateful_memes"].first_metric == "auroc"  # in the task's file; accuracy in results


def test_a_file_and_its_folder_name_one_run(logged):
    file, _ = results_of(logged.folder, "org/first")
    (model,) = read_models([file, file, file.parent])
    assert all(not others for others in model.others.values())


def test_the_newest_complete_run_counts(copied):
    file, content = results_of(copied, "org/first")
    content["results"]["instructblip_gqa"]["accuracy,none"] = 0.75
    rewritten(file, content, "2030-01-01T00-00-00.0", date=content["date"] + 60)
    content["results"]["instructblip_gqa"]["accuracy,none"] = 1.0
    counts = {task: {"original": 9, "effective": 1} for task in content["n-samples"]}
    rewritten(file, content, "2030-01-02T00-00-00.0", date=content["date"] + 120, **{"n-samples": counts})
    model = next(model for model in read_models([copied]) if model.name == "org/first")
    assert model.runs["instructblip_gqa"].scores["accuracy"] == 0.75
    assert [run.scores["accuracy"] for run in model.others["instructblip_gqa"]] == [0.5, 1.0]


def test_one_checkpoint_with_other_settings_is_another_row(copied):
    file, content = results_of(copied, "org/first")
    rewritten(file, content, "2030-01-01T00-00-00.0", config={**content["config"], "model_dtype": "torch.bfloat16"})
    labels = {model.label for model in read_models([copied])}
    assert {"org/first (model_dtype float32)", "org/first (model_dtype bfloat16)", "org/second"} == labels


def test_how_fast_a_run_was_does_not_make_it_another_model(copied):
    file, content = results_of(copied, "org/first")
    config = {**content["config"], "batch_size": 64, "device": "cuda:3", "random_seed": 7}
    rewritten(file, content, "2030-01-01T00-00-00.0", config=config)
    assert len(read_models([copied])) == 2


def test_folders_are_called_by_their_last_part_unless_two_share_it(copied):
    file, content = results_of(copied, "org/first")
    config = content["config"]
    rewritten(file, content, config={**config, "model_name": "/data/one/release"})
    assert {model.label for model in read_models([copied])} == {"release", "org/second"}
    rewritten(file, content, "2030-01-01T00-00-00.0", config={**config, "model_name": "/data/two/release"})
    assert {model.label for model in read_models([copied])} == {"/data/one/release", "/data/two/release", "org/second"}


def test_what_is_no_result_is_refused_by_name(copied, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such file or folder"):
        read_models([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty: no results of lm-eval in it"):
        read_models([tmp_path / "empty"])
    file, content = results_of(copied, "org/first")
    del content["n-samples"]
    rewritten(file, content)
    with pytest.raises(ValueError, match=rf"{file.name} is not a results file of lm-eval: KeyError 'n-samples'"):
        read_models([file])
    file.write_text("{")
    with pytest.raises(ValueError, match="is not a results file of lm-eval"):
        read_models([file])


def test_samples_hold_the_values_of_every_metric_and_are_read_again_by_line(logged):
    model = next(model for model in read_models([logged.folder]) if model.name == "org/first")
    samples = read_samples(model.runs["instructblip_gqa"])
    assert samples.values == {"accuracy": [1.0, 0.0, 1.0, 0.0]}
    assert samples.names == ["gqa/20130", "gqa/20132", "gqa/20131", "gqa/20133"]  # two pictures, two questions each
    assert [samples.line(place)["doc_id"] for place in (3, 0)] == [3, 0]
    dialog = read_samples(model.runs["instructblip_visdial"])
    assert len(dialog.values["mrr"]) == 20
    assert sum(value is not None for value in dialog.values["ndcg"]) == 2


def test_samples_of_several_processes_are_in_the_order_of_one(copied):
    run = next(model for model in read_models([copied]) if model.name == "org/first").runs["instructblip_gqa"]
    ordered = read_samples(run)
    lines = run.samples_file.read_text().splitlines(keepends=True)
    run.samples_file.write_text("".join([*lines[::2], *lines[1::2]]))  # as two processes leave them
    samples = read_samples(run)
    assert (samples.values, samples.names) == (ordered.values, ordered.names)
    assert [samples.line(place)["doc_id"] for place in range(4)] == [0, 1, 2, 3]


def test_samples_that_are_missing_broken_or_of_another_run(copied):
    model = next(model for model in read_models([copied]) if model.name == "org/first")
    run = model.runs["instructblip_gqa"]
    lines = run.samples_file.read_text().splitlines()
    run.samples_file.write_text("\n".join(lines[:3]) + "\n")
    with pytest.raises(ValueError, match="holds 3 documents and results_.* counts 4: they are not of one run"):
        read_samples(run)
    run.samples_file.write_text("\n".join([*lines[:3], lines[3][:50]]))
    with pytest.raises(ValueError, match="line 4: not a sample of lm-eval"):
        read_samples(run)
    run.samples_file.unlink()
    assert read_samples(run) is None
