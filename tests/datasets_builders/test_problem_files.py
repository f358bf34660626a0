import json

import pytest

from instructblip.datasets_builders.official_files import BadRowError
from instructblip.datasets_builders.problem_files import read_problems


@pytest.fixture
def problems(tmp_path):
    """problems(lists): writes three problems and these lists of ids."""

    def write(lists):
        (tmp_path / "problems.json").write_text(json.dumps({"7": "seven", "2": "two", "9": "nine"}))
        (tmp_path / "pid_splits.json").write_text(json.dumps(lists))
        return str(tmp_path / "problems.json")

    return write


def test_problems_of_a_split_come_in_the_order_of_the_problems(problems):
    file = problems({"val": ["2", "7"], "test": ["9"]})
    assert list(read_problems(file, "val")) == [(1, "7", "seven"), (2, "2", "two")]
    assert list(read_problems(file, "test")) == [(3, "9", "nine")]


@pytest.mark.parametrize(
    ("ids", "row", "message"),
    [
        (["2", "5"], 2, "in 'val': problem '5' is not in problems.json"),
        (["2", "7", "2"], 3, "in 'val': id '2' again, first in row 1"),
        ([2, "7"], 1, "in 'val': expected an id, found int 2"),
    ],
)
def test_a_bad_entry_of_a_list_is_named(problems, ids, row, message):
    (error,) = (item for item in read_problems(problems({"val": ids}), "val") if isinstance(item, BadRowError))
    assert error.file.endswith("pid_splits.json")
    assert (error.row, error.reason) == (row, message)


def test_a_missing_list_is_named(problems, tmp_path):
    file = problems({"train": []})
    with pytest.raises(ValueError, match=r"pid_splits\.json: expected an object with 'val', found an object with 't"):
        list(read_problems(file, "val"))
    (tmp_path / "pid_splits.json").unlink()
    with pytest.raises(ValueError, match=r"pid_splits\.json is missing: it says which problems of .*problems\.json"):
        list(read_problems(file, "val"))
