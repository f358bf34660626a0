"""The whole demo of the small world in a reduced form, and what it says one reaches without a picture."""

import sys

import demo
import pretrain_bridge
import pytest
import steps

from instructblip.eval_tasks.report import measure_models


def asked(*answers, **others):
    return {"id": str(len(answers)), "answers": list(answers), "choices": [], "label": -1, **others}


def test_chance_by_hand():
    questions = [asked("red"), asked("red", "crimson"), asked("blue"), asked("two")]
    assert steps.guess("accuracy", questions) == 0.5
    assert steps.guess("vqa_accuracy", questions) == 0.5
    assert steps.guess("accuracy", [asked(label=1), asked(label=0), asked(label=0)]) == pytest.approx(2 / 3)
    two, four = asked(choices=["a", "b"]), asked(choices=["a", "b", "c", "d"])
    assert steps.guess("accuracy", [two, four]) == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert steps.guess("mrr", [two]) == pytest.approx((1 + 1 / 2) / 2)
    assert steps.guess("auroc", questions) == 0.5


def test_all_stages_and_the_demo_in_small(tmp_path, monkeypatch, capsys):
    small, bridge = ["--steps", "2", "--scale", "0.03"], tmp_path / "bridge"
    monkeypatch.setattr(sys, "argv", ["pretrain_bridge.py", "decoder_only", "--output", str(bridge), *small])
    pretrain_bridge.main()
    stage2 = bridge / "decoder_only" / "model"
    assert not list(stage2.glob("*.py"))
    monkeypatch.setattr(sys, "argv", ["demo.py", "--output", str(tmp_path), "--stage2", str(stage2), *small])
    demo.main()
    said = capsys.readouterr().out
    columns = (*steps.HELD_OUT, *steps.HELD_IN)
    assert all(column.name in said for column in columns)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert all(f"{place}" in page for place in ("InstructBLIP in small", "BLIP-2 in small", "blind", "chance"))
    for name in ("instructblip", "blind", "stage2"):
        ((_, measured),) = measure_models([tmp_path / "results" / name])
        assert {column.task for column in columns} <= set(measured)
    commands = len(steps.COMMANDS)
    demo.main()  # goes on where it was: nothing is trained or evaluated again
    assert len(steps.COMMANDS) == commands


def test_a_missing_stage_2_is_one_sentence(tmp_path, monkeypatch, capsys):
    missing = ["--stage2", str(tmp_path / "none"), "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["demo.py", *missing])
    with pytest.raises(SystemExit):
        demo.main()
    assert "No such file or directory: " in capsys.readouterr().err
