"""The tasks through lm-eval, from documents to the table of results."""

import json
import sys
from functools import partial

import datasets
import lm_eval.tasks
import pytest
from PIL import Image

from instructblip.eval_tasks import lm_eval_model
from instructblip.eval_tasks.__main__ import main

TASKS = ("instructblip_vqa_rad", "instructblip_vqa_rad_ranked")


@pytest.fixture
def vsr_root(tmp_path, tiny_images):
    """Six statements about three pictures in VSR's official layout."""
    folder = tmp_path / "vsr"
    (folder / "images").mkdir(parents=True)
    (folder / "splits/zeroshot").mkdir(parents=True)
    lines = []
    for number in range(6):
        name = f"{number % 3:012d}.jpg"
        tiny_images[number % 3].save(folder / "images" / name)
        lines.append(
            {"image": name, "caption": f"the cat is left {number} .", "label": number % 2, "relation": "left of"}
        )
    (folder / "splits/zeroshot/test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def scores(results):
    return {
        task: {name: value for name, value in values.items() if name.startswith("acc") and "stderr" not in name}
        for task, values in results["results"].items()
    }


@pytest.mark.parametrize("language", ["t5", "llama"])
def test_generation_and_ranking_run_end_to_end(tiny_lm, evaluate, language):
    results = evaluate(tiny_lm(language, batch_size=4), *TASKS)
    for task in TASKS:
        values = results["results"][task]
        assert values["sample_len"] == 10
        closed, opened = values["accuracy_closed,none"], values["accuracy_open,none"]
        assert values["accuracy,none"] == pytest.approx((5 * closed + 5 * opened) / 10)
    ranked = results["samples"]["instructblip_vqa_rad_ranked"]
    assert all(sample["filtered_resps"][0] in ("yes", "no", "red", "two dog", "blue") for sample in ranked)


def answers(results):
    return {
        task: [(sample["doc_id"], sample["filtered_resps"]) for sample in results["samples"][task]] for task in TASKS
    }


@pytest.mark.parametrize("language", ["t5", "llama"])
def test_results_do_not_depend_on_the_batch_size(tiny_lm, evaluate, language):
    one, four = tiny_lm(language, batch_size=1), tiny_lm(language, batch_size=4)
    four.model.load_state_dict(one.model.state_dict())
    first, second = evaluate(one, *TASKS), evaluate(four, *TASKS)
    assert answers(first) == answers(second)
    assert scores(first) == scores(second)


def test_results_without_repetition_penalty_do_not_depend_on_the_batch_size(tiny_lm, evaluate):
    one, four = tiny_lm("llama", batch_size=1), tiny_lm("llama", batch_size=4)
    four.model.load_state_dict(one.model.state_dict())
    penalty = {"repetition_penalty": 1.0}
    assert answers(evaluate(one, *TASKS, gen_kwargs=penalty)) == answers(evaluate(four, *TASKS, gen_kwargs=penalty))


def test_the_answers_of_a_model_are_compared_normalised_and_counted_by_type(stub_lm, evaluate, data_root, monkeypatch):
    lm = stub_lm()
    monkeypatch.setattr(lm, "generate_until", lambda requests: ["The YES."] * len(requests))
    values = evaluate(lm, "instructblip_vqa_rad")["results"]["instructblip_vqa_rad"]
    records = json.loads((data_root / "vqa_rad/testset.json").read_text())
    assert [record["answer"] for record in records].count("yes") == 3  # of 5 closed and 5 open questions
    assert values["accuracy,none"] == 0.3
    assert values["accuracy_closed,none"] == 0.6
    assert values["accuracy_open,none"] == 0.0


def test_statements_are_ranked_among_four_words(stub_lm, vsr_root):
    from instructblip.eval_tasks import task_manager

    lm = stub_lm(batch_size=3)
    results = lm_eval.simple_evaluate(
        lm, tasks=["instructblip_vsr"], task_manager=task_manager(data_root=str(vsr_root)), bootstrap_iters=0
    )
    assert [rows for _, rows, _ in lm.model.calls] == [3, 3]
    samples = results["samples"]["instructblip_vsr"]
    prompt = 'Based on the image, is this statement true or false? "the cat is left 0 ." Answer:'
    text, candidates, _ = samples[0]["arguments"][0]
    assert (text, list(candidates)) == (prompt, ["yes", "true", "no", "false"])
    by_hand = [
        (max(range(4), key=lambda i, s=sample: s["filtered_resps"][0][i]) < 2) == bool(sample["doc"]["label"])
        for sample in samples
    ]
    assert results["results"]["instructblip_vsr"]["accuracy,none"] == sum(by_hand) / 6


def test_no_picture_is_decoded_but_for_its_batch_and_none_is_encoded(stub_lm, evaluate, monkeypatch):
    decoded, read = [], lm_eval_model.read_image
    evaluate(stub_lm(), "instructblip_vqa_rad", limit=1)  # builds the data set, which looks at every picture
    monkeypatch.setattr(lm_eval_model, "read_image", lambda reference: decoded.append(reference) or read(reference))
    monkeypatch.setattr(datasets.Image, "decode_example", lambda *args, **kwargs: pytest.fail("decoded by datasets"))
    monkeypatch.setattr(Image.Image, "save", lambda *args, **kwargs: pytest.fail("encoded"))
    results = evaluate(stub_lm(batch_size=2), "instructblip_vqa_rad", log_samples=True)
    assert len(decoded) == len(set(decoded)) == 4  # 10 questions about 4 pictures
    assert len(results["samples"]["instructblip_vqa_rad"]) == 10


def test_logged_samples_are_small_json(stub_lm, evaluate):
    from lm_eval.utils import handle_non_serializable

    results = evaluate(stub_lm(batch_size=4), *TASKS)
    for task in TASKS:
        line = json.dumps(results["samples"][task][0], default=handle_non_serializable)
        assert len(line) < 3000
        assert '"row:' in line
    assert "CandidateList(5 candidates" in line


def test_no_split_is_read_for_few_shot_examples(data_root):
    from instructblip.eval_tasks import task_manager

    tasks = task_manager(data_root=str(data_root)).load(list(TASKS))["tasks"]
    assert all(list(task.fewshot_docs()) == [] for task in tasks.values())


def test_predictions_alone_can_be_asked_for(stub_lm, evaluate):
    results = evaluate(stub_lm(batch_size=4), *TASKS, predict_only=True)
    assert len(results["samples"]["instructblip_vqa_rad_ranked"]) == 10


@pytest.fixture
def release(tiny_lm, tmp_path):
    lm = tiny_lm("t5")
    lm.model.save_pretrained(tmp_path / "release")
    lm.processor.save_pretrained(tmp_path / "release")
    return tmp_path / "release"


def arguments(release, data_root, output):
    return [
        "--model_args", f"pretrained={release},dtype=float32",
        "--tasks", ",".join(TASKS),
        "--metadata", f"data_root={data_root}",
        "--batch_size", "4",
        "--output_path", str(output),
        "--log_samples",
    ]  # fmt: skip


def written(folder):
    return json.loads(next(folder.glob("**/results_*.json")).read_text())


def test_the_command_line_runs_our_tasks_with_our_model(release, data_root, tmp_path, capsys, caplog, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["something", "else"])
    own_tasks_only = partial(
        lm_eval.tasks.TaskManager, include_defaults=False
    )  # lm-eval's own take ten seconds to list
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", own_tasks_only)
    main(arguments(release, data_root, tmp_path / "results"))
    assert "instructblip_vqa_rad_ranked" in capsys.readouterr().out
    assert "chat template" not in caplog.text
    assert sys.argv == ["something", "else"]
    results = written(tmp_path / "results")
    assert results["config"]["model"] == "instructblip"
    assert set(results["results"]) == set(TASKS)
    samples = next((tmp_path / "results").glob("**/samples_instructblip_vqa_rad_ranked_*.jsonl"))
    assert len(samples.read_text().splitlines()) == 10


def test_the_users_own_task_folder_and_config_file_stay(tmp_path, capsys):
    from argparse import Namespace

    from instructblip.eval_tasks import TASK_FOLDER
    from instructblip.eval_tasks.__main__ import with_our_tasks

    config = tmp_path / "run.yaml"
    config.write_text("model: hf\ninclude_path: theirs\n")
    run = with_our_tasks(Namespace(command="run", model=None, include_path=None, config=str(config)))
    assert run.include_path == [str(TASK_FOLDER), "theirs"]
    assert run.model is None  # the file's `hf`
    run = with_our_tasks(Namespace(command="run", model=None, include_path="mine", config=None))
    assert (run.include_path, run.model) == ([str(TASK_FOLDER), "mine"], "instructblip")
