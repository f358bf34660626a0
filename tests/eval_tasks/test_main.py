"""The command line; `test_harness.py` has what lm-eval does with it."""

import logging
from argparse import Namespace

import pytest

from instructblip.eval_tasks import InstructBLIPEvalModel, ask, report
from instructblip.eval_tasks.__main__ import main, with_our_tasks
from instructblip.eval_tasks.task_data import load_rows


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
    assert "usage: instructblip-eval " in shown
    assert "instructblip-eval report results --output report\n" in shown
    assert "lm-eval run" not in shown
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


@pytest.fixture
def execute(monkeypatch):
    """Makes lm-eval's command line do something else."""
    from lm_eval._cli import HarnessCLI

    return lambda action: monkeypatch.setattr(HarnessCLI, "execute", lambda command_line, arguments: action())


RUN = ["run", "--tasks", "instructblip_gqa"]


def unknown_task():
    from lm_eval.config.evaluate_config import EvaluatorConfig

    EvaluatorConfig(tasks=["instructblip_gqqa"]).process_tasks()


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: load_rows("gqa"), "instructblip-eval: where is gqa? Pass `--metadata data_root=FOLDER`"),
        (lambda: load_rows("gqa", data_root="/no/where"), "instructblip-eval: gqa: data_root /no/where is neither"),
        (lambda: InstructBLIPEvalModel("/no/model"), "instructblip-eval: /no/model cannot be loaded: "),
        (
            lambda: InstructBLIPEvalModel("/no/model", dtype="float99"),
            "instructblip-eval: /no/model cannot be loaded: dtype 'float99': expected auto, float32, ",
        ),
        (lambda: InstructBLIPEvalModel.create_from_arg_obj({}), "instructblip-eval: no model: pass --model_args pretr"),
        (
            lambda: InstructBLIPEvalModel.create_from_arg_obj({"pretrained": "x", "pretrainde": "y"}),
            "instructblip-eval: --model_args: pretrainde is unknown, expected some of pretrained, processor, ",
        ),
        (unknown_task, "instructblip-eval: Tasks not found: instructblip_gqqa"),
    ],
)
def test_what_a_user_got_wrong_in_a_run_is_one_sentence(execute, capsys, monkeypatch, action, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    execute(action)
    with pytest.raises(SystemExit) as exit:
        main(RUN)
    assert exit.value.code == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(message)


def test_where_an_error_was_found_is_shown_on_request(execute, caplog, monkeypatch):
    monkeypatch.setenv("LMEVAL_LOG_LEVEL", "DEBUG")
    monkeypatch.setattr(logging.getLogger("lm_eval"), "handlers", [caplog.handler])
    execute(lambda: load_rows("gqa"))
    with pytest.raises(SystemExit):
        main(RUN)
    assert "in load_rows" in caplog.text
    logging.getLogger("lm_eval").setLevel(logging.INFO)


def test_what_a_library_or_the_users_own_task_raises_keeps_its_traceback(execute):
    execute(lambda: int("three"))
    with pytest.raises(ValueError, match="invalid literal"):
        main(RUN)


def test_lm_evals_advice_that_is_not_for_our_users_is_not_shown(execute, caplog, monkeypatch):
    warn = logging.getLogger("lm_eval.api.task").warning

    def advise():
        warn("instructblip_gqa: Custom kwargs can be passed to `--metadata` in console")
        warn("something else")

    execute(advise)
    monkeypatch.setattr(logging.getLogger("lm_eval"), "handlers", [caplog.handler])
    monkeypatch.setattr(logging.getLogger("lm_eval"), "propagate", False)
    main(RUN)
    assert [record.getMessage() for record in caplog.records] == ["something else"]


@pytest.mark.parametrize(("limit", "refused"), [(1, True), (1.0, True), (2, False), (0.5, False), (None, False)])
def test_fewer_questions_than_processes_are_refused_before_anything_is_loaded(monkeypatch, capsys, limit, refused):
    monkeypatch.setenv("WORLD_SIZE", "2")
    run = Namespace(command="run", model=None, include_path=None, config=None, limit=limit)
    if not refused:
        with_our_tasks(run)
        return
    with pytest.raises(SystemExit):
        with_our_tasks(run)
    assert "--limit 1 with 2 processes: each needs a question" in capsys.readouterr().err
