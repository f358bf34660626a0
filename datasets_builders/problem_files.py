"""What IconQA and ScienceQA share: problems keyed by id in one file, and which split has which in another.

problems.json      {"399": {"question": ..., "choices": [...], "answer": 1, ...}, ...}
pid_splits.json    {"train": ["1", "2", ...], ...}
"""

import os
from collections.abc import Iterator
from typing import Any

from .official_files import BadRowError, describe, read_json_list, read_json_members

SPLITS = {"train": "train", "validation": "val", "test": "test"}  # ours -> as folders and lists are named


def splits_file(problems: str) -> str:
    """Where the lists of ids lie: beside the problems."""
    return os.path.join(os.path.dirname(problems), "pid_splits.json")


def read_problems(file: str, key: str) -> Iterator[tuple[int, str, Any] | BadRowError]:
    """(row, id, problem) of each problem in the list `key` of pid_splits.json, in the order of the problems.

    An entry of that list that is no id, or one without a problem, becomes a `BadRowError`.

    Raises:
        ValueError: pid_splits.json is not there, or has no such list.
    """
    lists = splits_file(file)
    if not os.path.isfile(lists):
        raise ValueError(f"{lists} is missing: it says which problems of {file} belong to which split")
    wanted: dict[str, int] = {}
    for row, problem_id in enumerate(read_json_list(lists, key), start=1):
        if not isinstance(problem_id, str):
            yield BadRowError(lists, row, f"in {key!r}: expected an id, found {describe(problem_id)}")
        elif problem_id in wanted:
            yield BadRowError(lists, row, f"in {key!r}: id {problem_id!r} again, first in row {wanted[problem_id]}")
        else:
            wanted[problem_id] = row
    found = set()
    for row, problem_id, problem in read_json_members(file):
        if problem_id in wanted:
            found.add(problem_id)
            yield row, problem_id, problem
    for problem_id, row in wanted.items():
        if problem_id not in found:
            yield BadRowError(lists, row, f"in {key!r}: problem {problem_id!r} is not in {os.path.basename(file)}")
