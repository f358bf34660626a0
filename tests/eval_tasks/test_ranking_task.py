import json

import numpy as np
import pytest
from lm_eval.tasks._yaml_loader import load_yaml

from instructblip.eval_tasks import TASK_FOLDER, task_manager
from instructblip.eval_tasks.ranking_task import RankCandidatesTask, answer_vocabulary


def test_spellings_of_one_answer_are_one_candidate_the_most_frequent():
    answers = ["yes", "Yes.", "yes", "No", "no", "the left lobe", "Left lobe", "left lobe", ""]
    assert answer_vocabulary(answers) == ["Left lobe", "No", "yes"]  # equally frequent: alphabetically first


def test_the_most_frequent_answers_are_counted_over_their_spellings():
    answers = ["yes", "Yes.", "yes", "no", "no", "red", "red", "blue"]
    assert answer_vocabulary(answers, 2) == ["no", "yes"]  # as frequent as red, and alphabetically first


def test_no_answers_to_rank_is_an_error():
    with pytest.raises(ValueError, match="no training answers to rank"):
        answer_vocabulary(["", " "])


def load(data_root):
    return task_manager(data_root=str(data_root)).load(["instructblip_vqa_rad_ranked"])["tasks"][
        "instructblip_vqa_rad_ranked"
    ]


def test_candidates_are_the_training_answers_as_the_model_learned_them(data_root):
    assert list(load(data_root).candidates) == [
        "two dog",
        "blue",
        "no",
        "red",
        "yes",
    ]  # lower case; "two dog" sorts as "2 dog"


def test_a_document_is_one_request_with_a_reference(data_root):
    task = load(data_root)
    task.build_all_requests(limit=None, rank=0, world_size=1)
    assert len(task.instances) == 10
    assert all(request.request_type == "rank_candidates" for request in task.instances)
    assert all(request.args[1] is task.candidates for request in task.instances)
    assert all(request.args[2]["visual"][0].startswith("row:") for request in task.instances)


def test_data_without_a_training_split_cannot_be_ranked(data_root):
    (data_root / "vqa_rad/trainset.json").unlink()
    with pytest.raises(FileNotFoundError, match="vqa_rad: no annotation file for train"):
        load(data_root)


def made(data_root, **changes):
    """The task with other keys in its YAML."""
    cfg = {**load_yaml(TASK_FOLDER / "vqa_rad_ranked.yaml"), **changes}
    cfg["metadata"] = {**cfg["metadata"], "data_root": str(data_root)}
    return RankCandidatesTask(cfg)


def test_a_task_without_a_training_split_cannot_rank_its_answers(data_root):
    with pytest.raises(
        ValueError, match="instructblip_vqa_rad_ranked ranks training answers, .* no split 'validation'"
    ):
        made(data_root, training_split="validation")


def test_the_most_frequent_answers_can_be_all_that_is_ranked(data_root):
    # yes and no three times each, red, two dog and blue twice: of equally frequent ones the alphabetically first
    assert list(made(data_root, num_candidates=3).candidates) == ["two dog", "no", "yes"]
    assert len(made(data_root, num_candidates=100).candidates) == 5


@pytest.mark.parametrize("change", [{"num_candidates": 0}, {"num_candidates": "3"}])
def test_a_number_of_candidates_that_is_none_is_refused(data_root, change):
    with pytest.raises(ValueError, match="instructblip_vqa_rad_ranked: num_candidates .* expected a positive number"):
        made(data_root, **change)


def test_documents_with_candidates_of_their_own_have_no_number_of_them(data_root):
    with pytest.raises(ValueError, match="without doc_to_choice"):
        made(data_root, doc_to_choice=["yes", "no"], num_candidates=2)


def test_a_document_without_candidates_is_named(data_root):
    task = made(data_root, doc_to_choice=["yes", "no"])
    task.config.doc_to_choice = "choices"  # empty in this data set
    with pytest.raises(ValueError, match="document vqa_rad/101 has no candidates to rank"):
        task.construct_requests(task.eval_docs[0], "prompt")


def answered(task, scores):
    """The task with one document's scores, after lm-eval's step between model and metrics."""
    request = task.construct_requests(task.eval_docs[0], "prompt")
    request.resps.append(np.array(scores, dtype=np.float32))
    task._instances = [request]
    task.apply_filters()
    return request


def test_metrics_of_training_answers_get_the_likeliest_and_the_first_of_equals(data_root):
    request = answered(made(data_root), [-3, -1, -2, -1, -9])  # two dog, blue, no, red, yes
    assert request.filtered_resps["none"] == "blue"


@pytest.mark.filterwarnings("ignore:log-likelihoods that are NaN")
@pytest.mark.parametrize("scores", [[-1, -2, float("nan"), -3, -4], [float("-inf")] * 5])
def test_scores_that_rank_nothing_pick_no_training_answer(data_root, scores):
    assert answered(made(data_root), scores).filtered_resps["none"] == ""


def test_metrics_of_own_candidates_get_every_score_in_their_order(data_root):
    request = answered(made(data_root, doc_to_choice=["yes", "no", "red"]), [-2.5, -0.5, -1])
    assert request.filtered_resps["none"] == [-2.5, -0.5, -1.0]
    assert all(type(score) is float for score in request.filtered_resps["none"])


def test_scoring_walks_over_the_documents_of_the_requests(data_root):
    task = made(data_root)
    for limit, rank, expected in ((None, 0, list(range(10))), (5, 0, [0, 2, 4]), (5, 1, [1, 3])):
        part = {"limit": limit, "rank": rank, "world_size": 1 if limit is None else 2}
        task.build_all_requests(**part)
        walked = list(task.doc_iterator(**part))
        assert [number for number, _ in walked] == expected
        assert all(doc is request.doc for (_, doc), request in zip(walked, task.instances, strict=True))
        assert [doc["id"] for _, doc in walked] == [task.eval_docs[number]["id"] for number in expected]


def test_samples_name_the_likeliest_five(data_root):
    request = answered(made(data_root, doc_to_choice=list("abcdefg")), [-7, -6, -1, -2, -3, -4, -5])
    assert request.resps == [[("c", -1.0), ("d", -2.0), ("e", -3.0), ("f", -4.0), ("g", -5.0)]]


def test_answers_that_only_the_test_set_has_are_no_candidates(data_root):
    path = data_root / "vqa_rad/testset.json"
    records = json.loads(path.read_text())
    records[0]["answer"] = "unheard of"
    path.write_text(json.dumps(records))
    assert "unheard of" not in load(data_root).candidates
