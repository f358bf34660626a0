"""The scripts of `benchmarks/` import each other by name, as where they are run."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
