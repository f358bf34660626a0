"""The page: it stands alone, says what it should, and shows hostile texts as texts."""

import re
import xml.etree.ElementTree as ET

import pytest
from html_page import Page
from PIL import Image

from instructblip.eval_tasks.report_page import dot_plot, render_page, scale
from instructblip.eval_tasks.report_samples import Answer, Shown
from instructblip.eval_tasks.report_tables import Cell, Column, Row, Table

HOSTILE = '</p></svg></style><script>alert(1)</script><img src=x onerror="alert(2)"> \u202e & <a href="//evil">'
ALLOWED = set(
    "html head meta title style body header h1 h2 p table thead tbody tr th td div span sup ol ul li dl dt dd figure "
    "figcaption svg line circle text g i details summary small article img b".split()
)


def page_of(text, pictures=()):
    """A page in which every text that is not ours is `text`."""
    cell = Cell("50.0", "40.0\u201360.0", (1,))
    main = Table(
        "Main", "model", ["GQA"], [Row(text, [cell], "measured"), Row(text, [None], "published", text)], [text]
    )
    other = Table("Other", "task", [text], [Row(text, [cell], "score")], [text])
    answers = [Answer(text, text, ((text, 0.75), (text, 0.25)), 1.0), Answer("org/second", "", (), 0.0)]
    shown = Shown(text, "best", text, text, answers, list(pictures), text)
    plots = [(Column(text, "task", "accuracy", text), [(text, "ours", 50.0, (40.0, 60.0)), (text, text, 55.0, None)])]
    return render_page(text, [text], main, [other], [(text, text)], [text], plots, {text: [shown]}, [(text, text)])


def test_hostile_texts_are_shown_and_nothing_else_happens():
    page = Page(page_of(HOSTILE))
    assert {tag for tag, _ in page.tags} <= ALLOWED - {"img"}
    for tag, attributes in page.tags:
        assert not {name for name in attributes if name.startswith("on") or name in ("href", "srcdoc")}, tag
    assert page.text.count(HOSTILE) >= 15
    assert "default-src 'none'" in page_of(HOSTILE)


def test_nothing_is_fetched_and_pictures_are_small_jpegs_inside():
    photo = Image.effect_noise((1200, 900), 60).convert("RGB")
    text = page_of("harmless", [photo, photo.resize((30, 20))])
    pictures = [attributes for tag, attributes in Page(text).tags if tag == "img"]
    assert len(pictures) == 2
    assert all(attributes["src"].startswith("data:image/jpeg;base64,") for attributes in pictures)
    assert len(text) < 200_000
    assert not re.search(r"https?://|url\(|@import|<script|<link", text)


def test_a_right_and_a_wrong_answer_look_different():
    page = page_of("harmless")
    assert page.index('class="answer-of right"') < page.index('class="answer-of wrong"')
    assert "harmless 75% · harmless 25%" in page
    assert "(nothing)" in page


def test_a_table_marks_what_was_measured_and_gives_intervals_and_notes():
    page = page_of("harmless")
    assert '<tr class="measured">' in page
    assert '<tr class="published first">' in page
    assert '50.0<sup>1</sup><span class="interval">40.0\u201360.0</span>' in page


def test_the_plot_puts_scores_where_they_belong():
    rows = [
        ("low", "ours", 40.0, (35.0, 47.0)),
        ("high", "blip", 80.0, None),
        ("a/very-long-name" * 4, "blip", 60.0, None),
    ]
    root = ET.fromstring(dot_plot(rows))
    low, high, middle = (float(circle.get("cx")) for circle in root.iter("circle"))
    assert middle == pytest.approx((low + high) / 2, abs=0.1)
    (interval,) = [line for line in root.iter("line") if line.get("class") == "interval"]
    assert float(interval.get("x1")) < low < float(interval.get("x2"))
    width = float(root.get("viewBox").split()[2])
    assert all(0 <= float(text.get("x")) <= width for text in root.iter("text"))
    assert max(len(text.text) for text in root.iter("text")) <= 26


@pytest.mark.parametrize(
    ("low", "high"), [(0, 100), (98.4, 123.1), (50.0, 50.0), (0.0, 0.0), (9.2, 25.6), (-3.0, 240.0), (44.9, 48.5)]
)
def test_a_scale_is_round_and_holds_all(low, high):
    ticks = scale(low, high)
    assert ticks[0] <= low
    assert high <= ticks[-1]
    assert 3 <= len(ticks) <= 6
    assert all(len(f"{tick:g}") <= 5 for tick in ticks)
