import collections
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from instructblip.datasets_builders import load
from instructblip.datasets_builders.official_files import BadRowError
from instructblip.datasets_builders.schema import tag
from instructblip.datasets_builders.table import TABLE, Counts

EXAMPLE = Path(__file__).parents[2] / "examples" / "vqa_rad"


def write(folder, records):
    (folder / "testset.json").write_text(json.dumps(records))


def samples(rows):
    return [sample for row in rows["samples"] for sample in row]


def test_the_official_fields_reach_the_sample(vqa_rad_folder, cache, record):
    write(vqa_rad_folder, [record(1, "synpic0", "How many?", 4, answer_type="OPEN ", question_type="PRES, COUNT")])
    (sample,) = load("vqa_rad", vqa_rad_folder, split="test", cache_dir=cache)[0]["samples"]
    assert sample["answers"] == ["4"]  # ten answers of the official file are numbers
    assert sample["tags"] == ["answer_type=OPEN", "question_type=PRES, COUNT", "organ=HEAD", "phrase=freeform"]
    assert sample["choices"] == []
    assert sample["label"] == -1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": None}, "'question' should be str, is NoneType None"),
        ({"question": "  "}, "'question' is blank"),
        ({"answer": True}, "'answer' should be str or int, is bool True"),
        ({"answer": "\ud800"}, "'answer' is not valid text"),
        ({"qid": "1"}, "'qid' should be int, is str '1'"),
        ({"image_name": "absent.jpg"}, "image 'absent.jpg' is not in .*images"),
        ({"image_name": "../images/synpic0.jpg"}, "image .* is not a name inside the image folder"),
        ({"image_name": "synpic0\0.jpg"}, "image .* is not in"),
    ],
)
def test_a_bad_row_is_named_with_file_row_and_field(vqa_rad_folder, cache, record, change, message):
    write(vqa_rad_folder, [record(1, "synpic0"), {**record(2, "synpic0"), **change}])
    with pytest.raises(BadRowError, match=rf"testset\.json, row 2: {message}"):
        load("vqa_rad", vqa_rad_folder, split="test", cache_dir=cache)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"qid": 1},\n]', r"testset\.json, line 2, column 1: not JSON"),
        (b"\xff\xfe", r"testset\.json: not a JSON file"),
        (b'{"a": []}', r"testset\.json: expected a list, found an object with 'a'"),
    ],
)
def test_a_file_of_another_format_is_named(vqa_rad_folder, cache, content, message):
    (vqa_rad_folder / "testset.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load("vqa_rad", vqa_rad_folder, split="test", cache_dir=cache, on_bad="skip")


def test_the_shipped_copy_is_complete(cache):
    rows = load("vqa_rad", EXAMPLE / "data", cache_dir=cache)
    for split, expected in TABLE["vqa_rad"].counts.items():
        part = rows[split.removeprefix("default/")]
        answers = sum(len(sample["answers"]) for sample in samples(part))
        assert Counts(len(part), len(samples(part)), answers) == expected
    assert len(list((EXAMPLE / "data" / "images").iterdir())) == 315
    assert sum(path.stat().st_size for path in (EXAMPLE / "data").rglob("*")) < 4_000_000


def test_the_shipped_copy_reads_as_the_official_files(real_data, cache):
    shipped = load("vqa_rad", EXAMPLE / "data", cache_dir=cache)
    official = load("vqa_rad", real_data / "vqa_rad", cache_dir=cache, verify_images=False)
    for split in ("train", "test"):
        assert shipped[split]["image_id"] == official[split]["image_id"]
        assert shipped[split]["samples"] == official[split]["samples"]
    small, large = shipped["test"][0]["image"], official["test"][0]["image"]
    assert max(small.size) == 224
    assert small.width / small.height == pytest.approx(large.width / large.height, abs=0.01)


def test_preparing_again_gives_the_shipped_files(real_data, tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("prepare_data", EXAMPLE / "prepare_data.py")
    prepare_data = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(prepare_data)
    official = tmp_path / "official"
    (official / "images").mkdir(parents=True)
    for name in ("trainset.json", "testset.json", "images/synpic100132.jpg"):
        (official / name).symlink_to(real_data / "vqa_rad" / name)
    monkeypatch.setattr("sys.argv", ["prepare_data.py", str(official), str(tmp_path / "made")])
    prepare_data.main()
    folders = (tmp_path / "made", EXAMPLE / "data")
    for name in ("trainset.json", "testset.json"):
        made, shipped = ((folder / name).read_bytes() for folder in folders)
        assert made == shipped
    # Pixels, not bytes: another build of Pillow may pack the same picture in another way.
    made, shipped = (np.asarray(Image.open(folder / "images/synpic100132.jpg"), dtype=int) for folder in folders)
    assert np.abs(made - shipped).max() <= 2


def test_the_two_baselines_that_need_no_image(cache):
    """Answers compare after strip and lower-case; questions by their text as it stands. Of equally frequent answers the
    one that the training file gives first counts."""

    def normal(answer):
        return answer.strip().lower()

    rows = load("vqa_rad", EXAMPLE / "data", cache_dir=cache)
    train, test = samples(rows["train"]), samples(rows["test"])
    truth = [normal(sample["answers"][0]) for sample in test]
    closed = [tag(sample, "answer_type") == "CLOSED" for sample in test]
    assert sum(answer == "no" for answer in truth) == 133  # 29.5 % of 451
    assert sum(answer == "no" for answer, is_closed in zip(truth, closed, strict=True) if is_closed) == 133
    assert sum(closed) == 272  # so 48.9 % of CLOSED

    given = collections.defaultdict(collections.Counter)
    for sample in sorted(train, key=lambda sample: int(sample["id"].split("/")[1])):
        given[sample["question"]][normal(sample["answers"][0])] += 1
    given = {question: answers.most_common(1)[0][0] for question, answers in given.items()}
    guesses = [given.get(sample["question"], "no") for sample in test]
    assert sum(guess == answer for guess, answer in zip(guesses, truth, strict=True)) == 149  # 33.0 % of 451
