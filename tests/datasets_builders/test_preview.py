import base64
import io
import re

import numpy as np
import pytest
from html_page import Page
from PIL import Image

from instructblip.datasets_builders import InstructionDataset, load
from instructblip.datasets_builders.__main__ import main
from instructblip.datasets_builders.mixture import InstructionMixture
from instructblip.datasets_builders.preview import (
    Lengths,
    describe_statistics,
    drawn,
    preview,
    statistics,
    thumbnail,
)

HOSTILE = '"><script>alert(1)</script><img src=https://evil.example/x onerror=alert(1)> & \u202e \ud800'


def item(instruction="What is it?", response="a dog", **other):
    return {"image": Image.new("RGB", (20, 10), "red"), "instruction": instruction, "response": response, **other}


def page_of(dataset, tmp_path, **options):
    preview(dataset, tmp_path / "page.html", **options)
    return (tmp_path / "page.html").read_text("utf-8")


def pictures(page):
    return [
        Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"data:image/jpeg;base64,([^\"]+)", page)
    ]


def test_a_page_shows_picture_instruction_response_dataset_and_template(vqa_rad_folder, cache, tmp_path):
    dataset = InstructionDataset(load("vqa_rad", vqa_rad_folder, split="train", cache_dir=cache), "vqa_rad")
    page = page_of(dataset, tmp_path, count=3)
    assert page.count("<article>") == 3
    assert len(pictures(page)) == 3
    text = Page(page).text
    for index in drawn(len(dataset), 3, 0):
        item = dataset.text(index)
        assert all(item[part] in text for part in ("instruction", "response", "dataset", "template"))


def test_a_mixture_is_described_by_dataset(vqa_rad_folder, cache, tmp_path, capsys):
    rows = load("vqa_rad", vqa_rad_folder, cache_dir=cache)
    parts = {split: InstructionDataset(rows[split], split, task="vqa") for split in ("train", "test")}
    found = preview(InstructionMixture(parts), tmp_path / "page.html")
    assert list(found) == ["all", "test", "train"]
    assert found["all"].items == found["test"].items + found["train"].items
    assert capsys.readouterr().out.startswith("all: items counted: 82; unanswered: 0.0%")


def test_hostile_text_stays_text(tmp_path):
    page = page_of([item(HOSTILE, HOSTILE, dataset=HOSTILE, template=HOSTILE, id=HOSTILE)], tmp_path)
    found = Page(page)
    assert found.text.count("<script>alert(1)</script>") >= 5
    names = {tag for tag, _ in found.tags}
    assert not names & {"script", "iframe", "object", "link", "form", "base", "svg"}
    for tag, attributes in found.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert all(
            attributes[name].startswith("data:image/jpeg;base64,") for name in ("src", "href") if name in attributes
        )
        if tag != "meta":
            assert "evil" not in "".join(filter(None, attributes.values()))
    assert "default-src 'none'" in page


def test_every_kind_of_image_is_shown(tmp_path):
    items = [
        item(image=np.full((6, 8, 3), 200, np.uint8)),
        item(image=np.full((3, 6, 8), 0.5)),
        item(image=Image.new("RGBA", (8, 6), (200, 200, 200, 0))),
        item(image=Image.new("I;16", (8, 6))),
        item(image=Image.new("P", (900, 600))),
        item(image=None),
        {**item(images=[Image.new("L", (8, 6), 9)] * 11), "image": None},
    ]
    page = page_of(items, tmp_path)
    shown = pictures(page)
    assert len(shown) == 5 + 8
    assert [picture.size for picture in shown[:5]] == [(8, 6)] * 4 + [(400, 267)]
    assert shown[2].getpixel((0, 0)) == (200, 200, 200)  # what is behind transparency, which is what a model sees
    assert abs(shown[1].getpixel((0, 0))[0] - 127) < 3
    assert "and 3 more" in page
    assert "no image" in page


def test_a_broken_image_is_shown_as_such(tmp_path, vqa_rad_folder, cache):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    assert "bad.jpg) is not an image" in page_of([item(image=str(tmp_path / "bad.jpg"))], tmp_path)
    rows = load("vqa_rad", vqa_rad_folder, split="train", cache_dir=cache)
    for path in (vqa_rad_folder / "images").iterdir():
        path.unlink()
    assert "cannot be read" in page_of(InstructionDataset(rows, "vqa_rad"), tmp_path, count=2)


def test_the_draw_is_the_same_every_time_and_another_by_seed():
    assert drawn(1000, 5, 0) == drawn(1000, 5, 0)
    assert drawn(1000, 5, 0) != drawn(1000, 5, 1)
    assert drawn(3, 5, 0) == [0, 1, 2]


def test_statistics_are_those_of_the_texts():
    items = [item("one two three", answer) for answer in ("yes", "yes", "no way", "")]
    (about,) = statistics(items).values()
    assert about.instruction == Lengths(mean=3.0, median=3, ninety=3, ninety_nine=3, longest=3)
    assert about.response == Lengths(mean=1.0, median=1, ninety=2, ninety_nine=2, longest=2)
    assert about.frequent == (("yes", 0.5), ("no way", 0.25))
    assert (about.different, about.unanswered, about.unit) == (2, 0.25, "words")
    assert "different responses: 2; most frequent: 'yes' 50.0%" in describe_statistics({"data": about})


def test_a_tokenizer_counts_tokens():
    def letters(texts, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [list(text) for text in texts]}

    (about,) = statistics([item("abc", "de")], tokenizer=letters).values()
    assert (about.instruction.longest, about.response.longest, about.unit) == (3, 2, "tokens")


def test_samples_without_answers_are_counted(vqa_rad_folder, cache):
    def unanswer(row, number):
        return {"samples": [{**sample, "answers": [] if number == 0 else ["a"]} for sample in row["samples"]]}

    rows = load("vqa_rad", vqa_rad_folder, split="train", cache_dir=cache).select(range(4))
    (about,) = statistics(InstructionDataset(rows.map(unanswer, with_indices=True), "vqa_rad")).values()
    assert (about.items, about.unanswered) == (6, 2 / 8)


def test_what_cannot_be_shown_says_so(tmp_path):
    with pytest.raises(ValueError, match="the dataset has no item to look at"):
        preview([], tmp_path / "page.html")
    with pytest.raises(ValueError, match="item 1 has no text under 'response': found 'image', 'instruction'"):
        preview([item(), {"image": None, "instruction": "a"}], tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    page = page_of([item()], tmp_path)
    monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        preview([item("other")], tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text("utf-8") == page
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def look(tmp_path, *arguments):
    assert main(["preview", *arguments, "--out", str(tmp_path / "page.html")]) == 0
    return Page((tmp_path / "page.html").read_text("utf-8")).text


@pytest.fixture
def own_file(tmp_path, picture, monkeypatch, cache):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)
    picture(tmp_path / "a.jpg")
    path = tmp_path / "mine.jsonl"
    path.write_text('{"image": "a.jpg", "instruction": "Say it.", "response": "it"}\n')
    return path


def test_the_command_mixes_what_it_names(tmp_path, vqa_rad_folder, own_file, capsys):
    text = look(tmp_path, f"vqa_rad={vqa_rad_folder}", str(own_file), "--rows", "3", "--count", "100")
    assert "Say it." in text
    assert "vqa_rad" in text
    assert "7 of 7 items" in text  # three images with two questions each, and one of the own
    assert capsys.readouterr().out.endswith(f"wrote {tmp_path / 'page.html'}\n")


def test_the_command_names_ones_own_data(tmp_path, own_file, capsys):
    assert look(tmp_path, f"called={own_file}").strip().startswith("called")
    assert main(["preview", str(own_file), str(own_file)]) == 1
    assert "give each a name of its own, NAME=PLACE" in capsys.readouterr().err


def test_a_thumbnail_is_small():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (2000, 1000, 3), np.uint8))
    assert Image.open(io.BytesIO(thumbnail(noise, "noise"))).size == (200, 400)


def test_the_command_shows_what_was_built(tmp_path, vqa_rad_folder, own_file):
    words = ["build", "vqa_rad", "--data-dir", str(vqa_rad_folder), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert "4 of 80 items" in look(tmp_path, f"vqa_rad={tmp_path / 'out'}", "--count", "4")


def test_the_command_takes_other_names_of_fields(tmp_path, own_file, capsys):
    own_file.write_text('{"image": "a.jpg", "instruction": "Say it.", "said": "it", "id": 3}\n')
    assert "Say it." in look(tmp_path, str(own_file), "--columns", "response=said", "id=")
    with pytest.raises(SystemExit):
        main(["preview", str(own_file), "--columns", "response"])
    assert "'response': expected OURS=THEIRS" in capsys.readouterr().err
