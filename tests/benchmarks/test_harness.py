"""The benchmark's files are read by the real builders, and its runs do the work that they say; no time is looked at."""

import datasets
import pytest


@pytest.fixture
def harness(monkeypatch):
    import harness

    from instructblip.eval_tasks import lm_eval_model

    # A run is a process of its own, and leaves these as it likes.
    monkeypatch.setattr(lm_eval_model, "read_image", lm_eval_model.read_image)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", datasets.config.HF_DATASETS_CACHE)
    monkeypatch.setattr(harness, "ANSWERS", 1_500)
    monkeypatch.setattr(harness, "TRAINING_ANSWERS", 200)
    return harness


def test_a_run_asks_every_round_and_decodes_every_picture_once(harness, tmp_path):
    harness._write_visdial(tmp_path / "visdial", 30)
    options = harness._parse(["--part=10"])
    assert harness._measure("visdial", "build", tmp_path, options)["documents"] == 30
    measured = harness._measure("visdial", "samples", tmp_path, options)
    assert (measured["documents"], measured["decoded"]) == (30, 3)
    assert measured["mib"] >= measured["before"]
    part, peer = (harness._measure("visdial", way, tmp_path, options) for way in ("part", "peer"))
    assert part["documents"] == peer["documents"] == 10
    assert peer["written_mb"] > 5 * part["written_mb"]


def test_clips_have_four_frames(harness, tmp_path):
    harness._write_msrvtt(tmp_path / "msrvtt_qa", 6)
    measured = harness._measure("msrvtt_qa", "scores", tmp_path, harness._parse([]))
    assert (measured["documents"], measured["decoded"]) == (6, 24)


def test_the_table_has_a_line_for_every_run(harness):
    run = {"wall": 4.0, "cpu": 2.0, "before": 100.0, "mib": 150.0, "documents": 1000, "decoded": 10, "written_mb": 1.0}
    runs = {"build": [{key: run[key] for key in ("wall", "cpu", "before", "mib", "documents")}], "scores": [run]}
    runs |= {"samples": [{**run, "cpu": 3.0}], "part": [run], "peer": [{**run, "cpu": 6.0, "written_mb": 9.0}]}
    lines = harness._as_markdown({"machine": {"cores": 2}, "rows": {"visdial": runs}}).splitlines()
    assert "| visdial | evaluated | 1,000 | 4.0 | 2.0 | 2.00 | 150 | 50 | 10 |" in lines
    assert "visdial: lm-eval's form takes 3.00x [3.00..3.00] of the CPU time, and writes 9 MB instead of 1." in lines
    assert "visdial: logging and writing samples costs 1.00 ms of CPU time a document." in lines
