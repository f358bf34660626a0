"""`instructblip-eval report`, from lm-eval's files to the report's."""

import json
import shutil

import datasets
import pytest
from logged_results import answering, log_evaluation

from instructblip.eval_tasks import report, report_tables
from instructblip.eval_tasks.__main__ import main

HOSTILE = "<script>alert(1)</script> | **bold** \n | & \u202e"


@pytest.fixture(autouse=True)
def _datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def test_the_command_writes_table_page_numbers_and_metadata(logged, tmp_path, capsys):
    output = tmp_path / "new" / "report"
    command = ["report", str(logged.folder), "--output", str(output), "--data_root", str(logged.data_root)]
    main([*command, "--model_index", "--samples", "2"])
    names = {path.name for path in output.iterdir()}
    assert {"report.md", "report.json", "report.html"} <= names
    (index,) = names - {"report.md", "report.json", "report.html"}  # org/second has only partial runs
    assert index.endswith("org-first.yaml")
    assert capsys.readouterr().out.count("wrote ") == 4
    markdown, page = (output / "report.md").read_text(), (output / "report.html").read_text()
    for text in ("org/first", "Flamingo-3B", "60.6", "123.1", "(--limit)"):
        assert text in page
    assert "| **org/first** |" in markdown
    assert "1. Only 2 of 4 documents (--limit): CIDEr" in markdown
    assert page.count('<img alt=""') == 2 * len(logged.tasks)


def test_numbers_are_those_of_lm_eval(logged, tmp_path):
    report.write_report([logged.folder], tmp_path, samples=0)
    numbers = json.loads((tmp_path / "report.json").read_text())
    for file in logged.folder.rglob("results_*.json"):
        results = json.loads(file.read_text())
        (model,) = [model for model in numbers["models"] if model["name"] == results["config"]["model_name"]]
        for task, values in results["results"].items():
            told = model["tasks"][task]
            assert told["version"] == str(results["versions"][task])
            assert told["documents"] == results["n-samples"][task]["effective"]
            assert told["commit"] == results["git_hash"]
            assert told["lm-eval"] == results["lm_eval_version"]
            for metric, score in told["scores"].items():
                value = values[f"{metric},none"]
                assert score["value"] == (value if value == value else None)  # NaN: no domain in two documents
    assert numbers["published"][0]["scores"][1] == 60.6
    assert numbers["confidence"] == 0.95


def test_without_data_the_page_has_texts_only(logged, tmp_path):
    report.write_report([logged.folder], tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<img" not in page
    assert "Question: is there a dog ? Short answer:" in page


def test_tasks_outside_the_papers_table_make_a_report_without_it(stub_lm, logged, tmp_path):
    lm = answering(stub_lm(), lambda place, doc: doc["answers"][0])
    log_evaluation(
        lm, tmp_path / "runs", logged.data_root, ["instructblip_vqa_rad"], name="org/third", log_samples=False
    )
    report.write_report([tmp_path / "runs"], tmp_path / "report", model_index=True)
    markdown = (tmp_path / "report/report.md").read_text()
    assert "Flamingo" not in markdown
    assert "| vqa\\_rad · accuracy | 100.0 [1] |" in markdown
    assert "1. No interval: the documents were not logged (--log\\_samples)." in markdown
    assert "value: 100.0" in (tmp_path / "report/model-index.yaml").read_text()


def test_predictions_without_scores_are_shown(stub_lm, logged, tmp_path):
    lm = answering(stub_lm(), lambda place, doc: "a red answer")
    log_evaluation(lm, tmp_path / "runs", logged.data_root, ["instructblip_gqa"], name="org/third", predict_only=True)
    report.write_report([tmp_path / "runs"], tmp_path / "report", model_index=True)
    page = (tmp_path / "report/report.html").read_text()
    assert page.count("a red answer") == 4
    assert page.count('<span class="kind any">') == 4
    assert not (tmp_path / "report/model-index.yaml").exists()


def test_hostile_samples_and_names_stay_text(logged, tmp_path):
    runs = shutil.copytree(logged.folder, tmp_path / "runs")
    for file in runs.rglob("results_*.json"):
        file.write_text(file.read_text().replace('"org/first"', json.dumps(f"org/{HOSTILE}")))
    for file in runs.rglob("samples_*.jsonl"):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        for number, line in enumerate(lines):
            line["doc"].update(id=f"{number}{HOSTILE}", answers=[HOSTILE], label=-1)
            line["arguments"]["gen_args_0"]["arg_0"] = HOSTILE + "\ud800"  # no character: half of a pair
            if isinstance(line["filtered_resps"][0], str):
                line["filtered_resps"] = [HOSTILE]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report.write_report([runs], tmp_path / "report", data={"data_root": str(logged.data_root)}, model_index=True)
    page = (tmp_path / "report/report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    markdown = (tmp_path / "report/report.md").read_text()
    assert "<script" not in markdown.replace("\\<script", "")
    json.loads((tmp_path / "report/report.json").read_text())


def test_ptb_scores_have_a_name_of_their_own(logged, tmp_path, monkeypatch):
    asked = []

    def upper_case(texts):
        asked.extend(texts)
        return [text.upper() for text in texts]  # stands in for the Java program

    monkeypatch.setattr(report_tables, "tokenize_ptb", upper_case)
    report.write_report([logged.folder], tmp_path / "with", samples=0, ptb=True, model_index=True)
    report.write_report([logged.folder], tmp_path / "without", samples=0)
    with_ptb, without = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("with", "without"))
    scores = with_ptb["models"][0]["tasks"]["instructblip_nocaps"]["scores"]
    own = without["models"][0]["tasks"]["instructblip_nocaps"]["scores"]
    assert {name: score for name, score in scores.items() if not name.endswith(" (PTB)")} == own
    assert set(scores) - set(own) == {f"{name} (PTB)" for name in own if own[name]["value"] is not None}
    assert "a red cat" in asked
    assert "| nocaps · cider (PTB) |" in (tmp_path / "with/report.md").read_text()
    assert "(PTB)" in next((tmp_path / "with").glob("model-index*")).read_text()


@pytest.mark.parametrize(
    ("trouble", "raised"),
    [
        (FileNotFoundError("there is no `java` in PATH"), FileNotFoundError),
        (ModuleNotFoundError("there is no pycocoevalcap"), ValueError),  # which the command line tells in a sentence
    ],
)
def test_ptb_without_its_software_leaves_no_report(logged, tmp_path, monkeypatch, trouble, raised):
    def missing(texts):
        raise trouble

    monkeypatch.setattr(report_tables, "tokenize_ptb", missing)
    with pytest.raises(raised, match=f"^{trouble}$"):
        report.main([str(logged.folder), "--output", str(tmp_path / "report"), "--ptb"])
    assert not (tmp_path / "report").exists()


def test_what_cannot_be_read_is_named_and_leaves_an_earlier_report_alone(logged, tmp_path):
    report.write_report([logged.folder], tmp_path / "report", samples=0)
    before = {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()}
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such file or folder$"):
        report.main([str(logged.folder), str(tmp_path / "nowhere"), "--output", str(tmp_path / "report")])
    assert {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()} == before


def test_a_model_index_without_anything_to_publish_is_told(logged, tmp_path, capsys):
    second = next(file for file in logged.folder.rglob("results_*.json") if '"org/second"' in file.read_text())
    report.main([str(second), "--output", str(tmp_path / "report"), "--model_index"])
    assert "no model-index: no task of ours was run on all of its documents" in capsys.readouterr().out
    assert len(list((tmp_path / "report").iterdir())) == 3


def test_a_negative_number_of_samples_is_refused(capsys):
    with pytest.raises(SystemExit):
        report.main(["results", "--output", "report", "--samples", "-1"])
    assert "'-1': expected 0 or more" in capsys.readouterr().err


def test_the_same_results_make_the_same_report(logged, tmp_path):
    for name in ("one", "two"):
        report.write_report([logged.folder], tmp_path / name, data={"data_root": str(logged.data_root)})
    for file in ("report.md", "report.json", "report.html"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
