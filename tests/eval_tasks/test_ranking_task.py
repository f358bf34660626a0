import json

import pytest

from instructblip.eval_tasks import task_manager
from instructblip.eval_tasks.ranking_task import answer_vocabulary


def test_spellings_of_one_answer_are_one_candidate_the_most_frequent():
    answers = ["yes", "Yes.", "yes", "No", "no", "the left lobe", "Left lobe", "left lobe", ""]
    assert answer_vocabulary(answers) == ["Left lobe", "No", "yes"]  # equally frequent: alphabetically first


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
    with pytest.raises(ValueError, match="instructblip_vqa_rad_ranked ranks training answers, but .* no split 'train'"):
        load(data_root)


def test_answers_that_only_the_test_set_has_are_no_candidates(data_root):
    path = data_root / "vqa_rad/testset.json"
    records = json.loads(path.read_text())
    records[0]["answer"] = "unheard of"
    path.write_text(json.dumps(records))
    assert "unheard of" not in load(data_root).candidates
