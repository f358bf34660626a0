"""The benchmark's command runs and reads the same number of rows in all ways; nothing here looks at a time."""

import json

import pytest


@pytest.fixture
def mixture():
    import mixture

    return mixture


@pytest.fixture
def options(mixture):
    return mixture._parse(["--rows=128", "--places=20000", "--reads=50"])


def test_both_read_the_same_number_of_formatted_or_plain_rows(mixture, options, tmp_path):
    mixture._write_parquet(tmp_path, options.rows)
    for work, name, rows in (
        ("Text, 1 worker", "peer", 384),
        ("Text, 1 worker", "ours", 384),
        ("Images, 2 workers", "peer", 128),
        ("Images of 3 sources, 2 workers", "ours", 128),
    ):
        measured = mixture._measure_stream(name, work, tmp_path, options)
        assert measured["rows"] == rows
        assert measured["mib"] > measured["over_mib"]


def test_both_indices_have_about_the_places_that_were_asked_for(mixture, options, tmp_path):
    for name in ("peer", "ours"):
        measured = mixture._measure_index(name, "index", tmp_path, options)
        assert abs(measured["set_up"]["rows"] - 20_000) < 1_000
        assert measured["in_order"]["rows"] == measured["anywhere"]["rows"] == 50


def test_the_table_has_a_line_for_every_work_and_way(mixture):
    run = {"rows": 10, "wall": 2.0, "cpu": 1.0, "mib": 50, "over_mib": 5}
    slow = {**run, "wall": 3.0, "cpu": 2.0}
    rows = {"Text": {"peer": [run, run], "ours": [slow, slow]}}
    lines = mixture._as_markdown({"machine": {"cores": 2}, "rows": rows}).splitlines()
    assert lines[-2] == "| Text | peer | 5 | - | - | 50 | 5 |"
    assert lines[-1] == "| Text | ours | 3 | 1.50x [1.50..1.50] | 2.00x [2.00..2.00] | 50 | 5 |"


def test_what_one_process_measures_is_json(mixture, options, tmp_path, capsys):
    mixture.main(["--places=20000", "--reads=5", "--one", "ours", "index", str(tmp_path)])
    assert json.loads(capsys.readouterr().out)["set_up"]["rows"] == 20_000
