import contextlib
import functools
import importlib.util
import io
import json
import re
import shutil
import sys
from html import escape
from pathlib import Path
from types import SimpleNamespace

import datasets
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


def write_part(folder):
    """52 images, a batch of the vision tower's pretraining; two training questions about each, and 26 for the test."""
    (folder / "images").mkdir(parents=True)
    tests = json.loads((FOLDER / "data" / "testset.json").read_text())
    names = list(dict.fromkeys(record["image_name"] for record in tests))[:52]
    for name in names:
        shutil.copy(FOLDER / "data" / "images" / name, folder / "images")
    for split, asked, count in (("train", names, 2), ("test", names[:26], 1)):
        records = json.loads((FOLDER / "data" / f"{split}set.json").read_text())
        about = [[record for record in records if record["image_name"] == name][:count] for name in asked]
        (folder / f"{split}set.json").write_text(json.dumps([record for few in about for record in few]))


@pytest.fixture(scope="module")
def small_run(demo, tmp_path_factory):
    """What the demo prints, asks and leaves behind on a part of the data, with just enough epochs to say something."""
    folder, printed, cards = tmp_path_factory.mktemp("demo"), io.StringIO(), []
    write_part(folder / "data")
    ask_release = demo.ask_release
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / "cache"))
        patch.setattr(demo, "DATA", folder / "data")
        for name, epochs in (("pretrain_language_model", 20), ("pretrain_vision_tower", 1)):
            patch.setattr(demo, name, functools.partial(getattr(demo, name), epochs=epochs))
        patch.setattr(demo, "ask_release", lambda *asked: cards.extend(ask_release(*asked)) or cards)
        patch.setattr(sys, "argv", ["demo.py", "--output", str(folder / "out"), "--epochs", "4"])
        demo.main()
    return SimpleNamespace(output=folder / "out", printed=printed.getvalue(), cards=cards)


def test_the_whole_demo_ends_with_a_table_of_every_row_and_the_seconds_of_tuning(small_run):
    head, *rows, tuning = small_run.printed.partition("\nVQA-RAD test accuracy")[2].splitlines()[:8]
    assert head.split() == ["all", "CLOSED", "OPEN"]
    assert re.fullmatch(r"tuning the bridge took +\d+\.\d s", tuning)
    names, numbers = zip(*((row[:58].rstrip(), row[58:].split()) for row in rows), strict=True)
    assert names == (
        'no image: always "no"',
        "no image: most frequent training answer to the question",
        "tuned bridge, generation, images exchanged at random",
        "tuned bridge, generation, the right images",
        "tuned bridge, ranking, images exchanged at random",
        "tuned bridge, ranking, the right images",
    )
    assert numbers[0] == ["15.4%", "22.2%", "0.0%"]  # 4 of 26 questions, which are 4 of 18 CLOSED ones
    assert all(0 <= float(number.rstrip("%")) <= 100 for row in numbers for number in row)


def test_the_release_answers_the_same_in_the_new_process_and_in_this_one(demo, small_run):
    ask = importlib.import_module("ask")
    images, questions = [card.image for card in small_run.cards], [card.question for card in small_run.cards]
    answers = ask.answer(str(small_run.output / "release"), images, questions)
    assert [card.answer for card in small_run.cards] == answers
    assert any(answers)


def test_the_page_of_the_whole_demo_shows_every_picture_asked_about(small_run):
    html = (small_run.output / "index.html").read_text()
    right = sum(card.right for card in small_run.cards)
    assert f"24 test questions, {right} answered right" in html
    assert html.count("data:image/jpeg;base64,") == len(small_run.cards) == 24
    assert html.count("<tr") == 7  # the head and six rows
    assert all(escape(card.question) in html for card in small_run.cards)
