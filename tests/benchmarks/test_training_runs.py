"""The benchmark's command runs and its check of equal losses can fail; nothing here looks at a time."""

import argparse
import json

import pytest


@pytest.fixture
def training_runs():
    import training_runs

    return training_runs


def test_both_trainers_do_the_same_work_and_a_run_is_resumed(training_runs, tmp_path, capsys):
    output = tmp_path / "runs.json"
    options = ["--size=tiny", "--repetitions=1", "--steps=2", f"--output={output}"]
    training_runs.main(["--rows", "llama-mixed", "t5-shared", "resumed", *options])
    report = json.loads(output.read_text())
    assert len(report["rows"]) == 2
    for row in report["rows"]:
        assert list(row["seconds"]) == ["peer", "peer again", "peer tuned", "ours", "ours cached"]
    assert len(report["resumed"]["resumed"]) == 1
    printed = capsys.readouterr().out
    assert "A/A" in printed
    assert "A resumed step takes" in printed


def runs_of(training_runs, tmp_path, name):
    from model_pairs import Setting, new_pair

    work = training_runs.WORKS[name]
    options = argparse.Namespace(steps=2, untimed=1, clock="cpu", workers=0, compile=None)
    return training_runs.Runs(new_pair(Setting(work.language, "tiny")), work, tmp_path, options)


@pytest.mark.parametrize(("name", "padded", "real"), [("llama-mixed", 1296, 534), ("llama-vqa", 464, 425)])
def test_batches_have_the_stated_lengths(training_runs, tmp_path, name, padded, real):
    runs = runs_of(training_runs, tmp_path, name)
    mask = runs.collator(runs.samples[:8])["attention_mask"]
    assert (mask.numel(), int(mask.sum())) == (padded, real)


def test_different_losses_stop_the_run(training_runs, tmp_path):
    runs = runs_of(training_runs, tmp_path, "llama-vqa")
    runs.pair.ours.language_projection.weight.data.mul_(10)
    with pytest.raises(RuntimeError, match="the losses of peer, peer again, peer tuned, ours, ours cached differ"):
        runs.check()
