"""The numbers of the report, and the published ones beside them."""

import dataclasses
import importlib.resources
import re

import pytest
import yaml

from instructblip.eval_tasks import TASK_FOLDER
from instructblip.eval_tasks.report_results import read_models
from instructblip.eval_tasks.report_tables import (
    Score,
    as_markdown,
    comparison_notes,
    escape_markdown,
    main_table,
    measure,
    other_tables,
    read_published,
    shown,
)

TEXT = importlib.resources.files("instructblip.eval_tasks").joinpath("published.yaml").read_text("utf-8")
COLUMNS = "NoCaps Flickr30K GQA VSR IconQA TextVQA VisDial HM VizWiz SciQA MSVD MSRVTT iVQA".split()
TABLE_1 = """
    Flamingo-3B               -     60.6 -    -    -    30.1 -    53.7 28.9 -    27.5 11.0 32.7
    Flamingo-9B               -     61.5 -    -    -    31.8 -    57.0 28.8 -    30.2 13.7 35.2
    Flamingo-80B              -     67.2 -    -    -    35.0 -    46.4 31.6 -    35.6 17.4 40.7
    BLIP-2_(FlanT5-XL)        104.5 76.1 44.0 60.5 45.5 43.1 45.7 53.0 29.8 54.9 33.7 16.2 40.4
    BLIP-2_(FlanT5-XXL)       98.4  73.7 44.6 68.2 45.4 44.1 46.9 52.0 29.4 64.5 34.4 17.4 45.8
    BLIP-2_(Vicuna-7B)        107.5 74.9 38.6 50.0 39.7 40.1 44.9 50.6 25.3 53.8 18.3 9.2  27.5
    BLIP-2_(Vicuna-13B)       103.9 71.6 41.0 50.9 40.6 42.5 45.1 53.7 19.6 61.0 20.3 10.3 23.5
    InstructBLIP_(FlanT5-XL)  119.9 84.5 48.4 64.8 50.0 46.6 46.6 56.6 32.7 70.4 43.4 25.0 53.1
    InstructBLIP_(FlanT5-XXL) 120.0 83.5 47.9 65.6 51.2 46.6 48.5 54.1 30.9 70.6 44.3 25.6 53.8
    InstructBLIP_(Vicuna-7B)  123.1 82.4 49.2 54.3 43.1 50.1 45.2 59.6 34.5 60.5 41.8 22.1 52.2
    InstructBLIP_(Vicuna-13B) 121.9 82.8 49.5 52.1 44.8 50.7 45.4 57.5 33.4 63.1 41.2 24.8 51.0
"""  # InstructBLIP, Table 1


@pytest.fixture(scope="module")
def models(logged):
    found = sorted(read_models([logged.folder]), key=lambda model: model.name)
    return [(model, {task: measure(model, task) for task in model.runs}) for model in found]


def test_published_scores_are_those_of_the_paper():
    published = read_published()
    assert [column.name for column in published.columns] == COLUMNS
    rows = [line.split() for line in TABLE_1.strip().splitlines()]
    assert [row.model for row in published.rows] == [name.replace("_", " ") for name, *_ in rows]
    for row, (_, *scores) in zip(published.rows, rows, strict=True):
        assert row.scores == tuple(None if score == "-" else float(score) for score in scores)


def test_published_scores_agree_with_what_the_paper_says_of_them():
    row = {row.model: dict(zip(COLUMNS, row.scores, strict=True)) for row in read_published().rows}
    best, before = row["InstructBLIP (FlanT5-XXL)"]["MSRVTT"], row["Flamingo-80B"]["MSRVTT"]
    assert round(100 * (best / before - 1), 1) == 47.1  # "up to 47.1 % over the previous best", on MSRVTT-QA


def test_every_column_is_a_task_with_its_metric_first():
    for column in read_published().columns:
        file = TASK_FOLDER / f"{column.task.removeprefix('instructblip_')}.yaml"
        metrics = []
        while file:  # an included file says what this one leaves out
            text = file.read_text()
            metrics = re.findall(r"^  - \{metric: (\w+)", text, re.MULTILINE)
            included = re.search(r"^include: \[?([^\]\n]+)", text, re.MULTILINE)
            file = TASK_FOLDER / included[1].split(", ")[-1] if included and not metrics else None
        assert metrics[0] == column.metric, column


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entries: entries["rows"][0].pop("source"), r"a row has the keys \['model', 'scores'\]"),
        (lambda entries: entries["rows"][0]["scores"].pop(), "Flamingo-3B: 12 scores for 13 columns"),
        (lambda entries: entries["rows"][1]["scores"].__setitem__(1, "61.5"), "Flamingo-9B: '61.5' is neither"),
        (lambda entries: entries["rows"][1]["scores"].__setitem__(1, 61), "Flamingo-9B: 61 is neither a number with"),
        (
            lambda entries: entries["rows"][0].update(source="memory"),
            "source 'memory' is none of flamingo, instructblip",
        ),
        (lambda entries: entries["columns"][0].update(unit="%"), "a column has the keys"),
        (lambda entries: entries.update(extra=1), "published.yaml has the keys"),
    ],
)
def test_a_published_row_that_is_not_whole_is_refused(change, message):
    entries = yaml.safe_load(TEXT)
    change(entries)
    with pytest.raises(ValueError, match=message):
        read_published(yaml.safe_dump(entries))


def test_scores_of_all_kinds_have_intervals_that_hold_them(models):
    measured = models[0][1]
    seen = set()
    for task, of_task in measured.items():
        for metric, score in of_task.scores.items():
            if score.value is not None:
                low, high = score.interval
                assert low - 1e-12 <= score.value <= high + 1e-12, (task, metric)
                seen.add(metric)
    assert {"cider", "accuracy", "auroc", "mrr", "mean_rank", "ndcg", "f1", "vqa_accuracy"} <= seen


def test_the_main_table_has_models_above_the_published_rows(models):
    table = main_table(models, read_published())
    assert [row.label for row in table.rows[:3]] == ["org/first", "org/second", "Flamingo-3B"]
    assert [row.kind for row in table.rows] == ["measured"] * 2 + ["published"] * 11
    gqa = table.rows[0].cells[COLUMNS.index("GQA")]
    assert (gqa.text, gqa.interval, gqa.notes) == ("50.0", "0.0\u2013100.0", ())
    assert table.rows[0].cells[COLUMNS.index("IconQA")] is None
    assert table.rows[2].cells[1].text == "60.6"


def test_partial_runs_are_marked_and_cider_says_why_it_cannot_be_compared(models):
    table = main_table(models, read_published())
    nocaps, _, gqa = table.rows[1].cells[:3]
    assert table.notes[nocaps.notes[0] - 1].startswith("Only 2 of 4 documents (--limit): CIDEr weighs words")
    assert table.notes[gqa.notes[0] - 1] == "Only 2 of 4 documents (--limit)."
    assert not any(cell.notes for cell in table.rows[0].cells if cell)


def test_without_samples_there_is_no_interval_and_the_table_says_so(models):
    model, measured = models[0]
    run = measured["instructblip_gqa"].run
    elsewhere = dataclasses.replace(run, file=run.file.with_name("results_2030-01-01T00-00-00.0.json"))
    bare = measure(dataclasses.replace(model, runs={run.task: elsewhere}), run.task)
    assert bare.scores == {"accuracy": Score(0.5, None)}
    table = main_table([(model, {run.task: bare})], read_published())
    assert table.rows[0].cells[2].interval == ""
    assert table.notes == ["No interval: the documents were not logged (--log_samples)."]


def test_runs_that_disagree_are_told(models):
    model, measured = models[0]
    run = measured["instructblip_gqa"].run

    def remarks(**changes):
        other = dataclasses.replace(run, **changes)
        return measure(dataclasses.replace(model, others={**model.others, run.task: [other]}), run.task).remarks

    assert remarks(date=run.date - 60) == ()
    assert (
        "which disagree: that of 1970-01-01 00:00 UTC found accuracy 25.0 on 4 documents."
        in (remarks(date=0.0, scores={"accuracy": 0.25})[0])
    )
    assert remarks(date=0.0, version="0.9")[0].startswith(f"Task version {run.version}; a run of 1970")
    later = remarks(date=run.date + 60, documents=2)[0]
    assert "A later run (" in later
    assert "had only 2 documents and does not count" in later


def test_all_other_scores_are_in_tables_by_role(models):
    tables = {table.title.partition(":")[0]: table for table in other_tables(models, read_published())}
    rows = {row.label: row.cells[0].text for table in tables.values() for row in table.rows}
    assert set(tables) == {"Held out", "Held in", "Beyond the paper"}
    assert tables["Held in"].columns == ["org/first"]  # the other model was asked nothing of it
    assert "hateful_memes · accuracy" in rows
    assert "hateful_memes · auroc" not in rows
    assert rows["textvqa · vqa_accuracy_official"] == f"{100 * _score(models, 'textvqa', 'vqa_accuracy_official'):.1f}"
    assert rows["visdial · mean_rank"] == f"{_score(models, 'visdial', 'mean_rank'):#.4g}"


def _score(models, task, metric):
    return models[0][1][f"instructblip_{task}"].scores[metric].value


def test_a_task_of_others_keeps_its_unit_and_has_an_interval_only_if_it_is_a_mean(models, tmp_path):
    model, measured = models[0]
    ours = measured["instructblip_gqa"].run
    run = dataclasses.replace(ours, task="their_gqa", file=tmp_path / ours.file.name)
    run.samples_file.write_bytes(ours.samples_file.read_bytes())
    theirs = measure(dataclasses.replace(model, runs={run.task: run}, others={run.task: []}), run.task)
    (table,) = other_tables([(model, {run.task: theirs})], read_published())
    assert table.title.startswith("Other tasks")
    assert (table.rows[0].label, table.rows[0].cells[0].text) == ("their_gqa · accuracy", "0.5000")
    assert theirs.scores["accuracy"].interval == (0.0, 1.0)
    median = dataclasses.replace(run, scores={"accuracy": 0.1})
    not_mean = measure(dataclasses.replace(model, runs={run.task: median}, others={run.task: []}), run.task)
    assert not_mean.scores["accuracy"].interval is None


def test_notes_on_the_paper_are_of_the_columns_that_were_measured(models):
    notes = dict(comparison_notes(models, read_published()))
    assert list(notes) == ["NoCaps", "GQA", "VSR", "TextVQA", "VisDial", "HM"]
    assert notes["GQA"].endswith("(testdev, 4 questions)")
    assert "dev_seen" in notes["HM"]


def test_markdown_shows_texts_of_others_as_they_are(models):
    assert escape_markdown("a|b\n<img src=x> [c](d) **e** `f` &amp;") == (
        r"a\|b \<img src=x\> \[c\](d) \*\*e\*\* \`f\` \&amp;"
    )
    model, measured = models[0]
    hostile = dataclasses.replace(model, label="x | y\n| z | <script>")
    lines = as_markdown(main_table([(hostile, measured)], read_published())).splitlines()
    assert lines[2].startswith(r"| **x \| y \| z \| \<script\>** | ")
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines if line} == {15}


def test_a_score_that_is_not_a_number_is_a_dash():
    assert shown(None) == "\u2013"
    assert (shown(0.4836), shown(12.0, is_percent=False)) == ("48.4", "12.00")
