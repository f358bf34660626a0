"""Both model classes answer the benchmark's questions alike, and answers that differ stop it; no time is looked at."""

import json

import pytest


@pytest.fixture
def evaluation():
    import evaluation

    return evaluation


@pytest.fixture
def loaded(evaluation, tmp_path):
    evaluation.save_llava(tmp_path / "llava", "tiny")
    peer = evaluation.HFMultimodalLM(str(tmp_path / "llava"), device="cpu", dtype="float32", batch_size=2)
    return peer, evaluation.InstructBLIPEvalModel(peer.model, peer.processor, batch_size=2)


def test_both_answer_alike_through_lm_eval(evaluation, tmp_path, capsys):
    rows = ["vqav2-greedy-model", "vizwiz-greedy-logged"]
    output = tmp_path / "evaluation.json"
    options = ["--size=tiny", "--documents=4", "--batch_size=4", "--repetitions=1", "--threads=1", f"--output={output}"]
    evaluation.main(["--rows", *rows, *options])
    report = json.loads(output.read_text())
    assert [row["name"] for row in report["rows"]] == rows
    assert all(row["same"] == row["documents"] == 4 for row in report["rows"])
    assert all(len(times) == 1 for row in report["rows"] for times in row["seconds"].values())
    assert "4 of 4" in capsys.readouterr().out


def test_five_questions_share_a_picture(evaluation, tmp_path):
    rows = evaluation.write_questions(tmp_path / "pictures", 7, 5)
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["0.jpg", "1.jpg"]
    assert [image.size for image in rows["image"]] == [(640, 480)] * 7
    assert rows[0]["image"].tobytes() == rows[4]["image"].tobytes() != rows[5]["image"].tobytes()


def test_answers_follow_from_picture_and_question(evaluation, loaded, tmp_path):
    rows = evaluation.write_questions(tmp_path / "pictures", 4, 2)
    answers = evaluation.Work(*loaded, rows, "vqav2-greedy-model").contestants()["ours"]()
    assert len(set(answers)) == 4
    assert all(len(answer.split()) == evaluation.NEW_TOKENS for answer in answers)


def test_different_answers_stop_the_run(evaluation, loaded, tmp_path):
    work = evaluation.Work(*loaded, evaluation.write_questions(tmp_path / "pictures", 2, 1), "vizwiz-greedy-model")
    work.contestants = lambda: {
        "peer": lambda: ["a", "b"],
        "peer again": lambda: ["a", "b"],
        "ours": lambda: ["a", "c"],
    }
    with pytest.raises(evaluation.ResultsDifferError, match="1 of 2 answers"):
        evaluation._time_row("vizwiz-greedy-model", work, evaluation._parse(["--repetitions=1"]))


def test_a_row_that_does_not_exist_is_named(evaluation):
    with pytest.raises(SystemExit, match="no row is called nothing"):
        evaluation.main(["--rows", "nothing"])
