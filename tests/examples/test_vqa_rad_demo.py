import importlib.util
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "vqa_rad"


@pytest.fixture(scope="module")
def demo():
    pytest.importorskip("lm_eval")
    sys.path.insert(0, str(FOLDER))  # as when the script runs
    try:
        spec = importlib.util.spec_from_file_location("vqa_rad_demo", FOLDER / "demo.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(FOLDER))


def test_the_baselines_without_images_are_those_of_the_data(demo):
    always_no, most_frequent = demo.baselines()
    assert (round(always_no.accuracy, 3), round(always_no.closed, 3), always_no.open) == (0.295, 0.489, 0.0)
    assert round(most_frequent.accuracy, 3) == 0.330


def test_pretraining_reads_no_test_question(demo):
    pairs = [(name, *pair) for name, pairs in demo.read_questions("train").items() for pair in pairs]
    assert len(pairs) == len(json.loads((FOLDER / "data" / "trainset.json").read_text())) == 3064


def test_exchanging_images_leaves_none_where_it_was_and_changes_nothing_else(demo, tmp_path):
    folder = demo.exchange_images(tmp_path / "exchanged", seed=0)
    before = json.loads((FOLDER / "data" / "testset.json").read_text())
    after = json.loads((folder / "testset.json").read_text())
    assert all(old["image_name"] != new["image_name"] for old, new in zip(before, after, strict=True))
    assert {record["image_name"] for record in before} == {record["image_name"] for record in after}
    for record in before + after:
        del record["image_name"]
    assert before == after


def test_the_page_holds_pictures_numbers_and_escaped_text(demo, tmp_path):
    image = next((FOLDER / "data" / "images").glob("*.jpg"))
    cards = [
        demo.Card(image, "is <this> axial?", "yes", "yes", True),
        demo.Card(image, "what organ?", "brain", "liver", False),
    ]
    rows = [demo.Row("always no", 0.295, 0.489, 0.0), demo.Row("tuned", 0.5, 0.6, 0.25, main=True)]
    demo.write_page(tmp_path / "index.html", rows, cards, ["One & two"], ["Three"])
    html = (tmp_path / "index.html").read_text()
    assert html.count("data:image/jpeg;base64,") == 2
    assert "<b>" not in html
    assert "is &lt;this&gt; axial?" in html
    assert "29.5%" in html
    assert "right answer: brain" in html
    assert "right answer: yes" not in html
    assert "2 test questions, 1 answered right" in html
