"""The command line; `test_harness.py` has what lm-eval does with it."""

from argparse import Namespace

import pytest

from instructblip.eval_tasks import ask, report
from instructblip.eval_tasks.__main__ import main, with_our_tasks


@pytest.mark.parametrize(("name", "module"), [("report", report), ("ask", ask)])
def test_our_commands_get_the_arguments_that_follow_their_name(monkeypatch, name, module):
    given = []
    monkeypatch.setattr(module, "main", given.append)
    main([name, "a", "--b"])
    assert given == [["a", "--b"]]


@pytest.mark.parametrize(
    ("trouble", "status", "message"),
    [
        (FileNotFoundError("there is no\nphoto.jpg"), 2, "instructblip-eval ask: there is no photo.jpg\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_is_wrong_is_one_sentence_and_no_traceback(monkeypatch, capsys, trouble, status, message):
    def wrong(argv):
        raise trouble

    monkeypatch.setattr(ask, "main", wrong)
    with pytest.raises(SystemExit) as exit:
        main(["ask"])
    assert exit.value.code == status
    assert capsys.readouterr().err == message


def test_help_names_lm_evals_commands_and_ours(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--help"])
    assert exit.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"\n    {name} " in shown for name in ("run", "ls", "report", "ask"))
    for name in ("report", "ask"):
        with pytest.raises(SystemExit):
            main([name, "--help"])
        assert f"usage: instructblip-eval {name} " in capsys.readouterr().out


def test_lm_evals_cache_is_refused_before_anything_is_loaded(capsys):
    run = Namespace(command="run", model=None, include_path=None, config=None, use_cache="theirs")
    with pytest.raises(SystemExit) as exit:
        with_our_tasks(run)
    assert exit.value.code == 2
    assert "use --model_args ...,result_cache=FOLDER" in capsys.readouterr().err
    run.model = "hf"
    assert with_our_tasks(run).use_cache == "theirs"
