import json

import pytest

from instructblip.datasets_builders import load
from instructblip.datasets_builders.official_files import BadRowError, read_json
from instructblip.datasets_builders.schema import tag

GLOVE, ORANGE = 458752, 262146


def asked(number, image_id, text):
    return {"image_id": image_id, "question": text, "question_id": number}


def answered(number, image_id, answers, kind="other"):
    rated = [{"answer": text, "answer_confidence": "yes", "answer_id": place + 1} for place, text in enumerate(answers)]
    types = {"question_type": "what", "answer_type": kind, "multiple_choice_answer": answers[0]}
    return {**types, "answers": rated, "image_id": image_id, "question_id": number}


def write(folder, name, key, rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps({"info": {"version": "2.0"}, "data_type": "mscoco", key: rows}))


@pytest.fixture
def vqav2_folder(tmp_path, picture):
    """Three training and two test questions; the official layout, written by hand from visualqa.org's description."""
    picture(tmp_path / "train2014" / f"COCO_train2014_{GLOVE:012d}.jpg")
    picture(tmp_path / "train2014" / f"COCO_train2014_{ORANGE:012d}.jpg")
    picture(tmp_path / "test2015" / "COCO_test2015_000000262144.jpg")
    questions = [asked(458752000, GLOVE, "What position is he playing?"), asked(262146000, ORANGE, "Is it ripe?")]
    questions.append(asked(458752001, GLOVE, "What color is the glove?"))
    annotations = [
        answered(458752000, GLOVE, ["pitcher"] * 9 + ["catcher"]),
        answered(262146000, ORANGE, ["yes"] * 10, "yes/no"),
        answered(458752001, GLOVE, ["orange"] * 10),
    ]
    write(tmp_path, "v2_OpenEnded_mscoco_train2014_questions.json", "questions", questions)
    write(tmp_path, "v2_mscoco_train2014_annotations.json", "annotations", annotations)
    test = [asked(262144000, 262144, "Is the ball flying?"), asked(262144001, 262144, "What sport?")]
    write(tmp_path, "v2_OpenEnded_mscoco_test2015_questions.json", "questions", test)
    write(tmp_path, "v2_OpenEnded_mscoco_test-dev2015_questions.json", "questions", test[:1])
    return tmp_path


def test_questions_about_one_photograph_share_its_row(vqav2_folder, cache):
    rows = load("vqav2", vqav2_folder, split="train", cache_dir=cache)
    assert rows["image_id"] == ["coco/000000458752", "coco/000000262146"]
    first, second = rows[0]["samples"]
    assert [first["id"], second["id"]] == ["vqav2/458752000", "vqav2/458752001"]
    assert first["question"] == "What position is he playing?"
    assert first["answers"] == ["pitcher"] * 9 + ["catcher"]
    [third] = rows[1]["samples"]
    assert (tag(third, "question_type"), tag(third, "answer_type")) == ("what", "yes/no")
    assert rows[0]["image"].size == (12, 8)


def test_test_questions_have_no_answers_and_ids_are_unique_over_splits(vqav2_folder, cache):
    test = load("vqav2", vqav2_folder, split="test", cache_dir=cache)
    assert [sample["answers"] for sample in test[0]["samples"]] == [[], []]
    assert test[0]["samples"][0]["id"] == "vqav2/262144000"
    dev = load("vqav2", vqav2_folder, split="test_dev", cache_dir=cache)
    assert [sample["id"] for sample in dev[0]["samples"]] == ["vqav2/test_dev/262144000"]
    assert dev["image_id"] == test["image_id"] == ["coco/000000262144"]


def test_the_files_of_both_zips_may_lie_in_folders_of_their_own(vqav2_folder, cache):
    for name, folder in (("questions", "Questions"), ("annotations", "Annotations")):
        (vqav2_folder / folder).mkdir()
        for path in vqav2_folder.glob(f"v2_*_{name}.json"):
            path.rename(vqav2_folder / folder / path.name)
    rows = load("vqav2", vqav2_folder, split="train", cache_dir=cache)
    assert rows[1]["samples"][0]["answers"] == ["yes"] * 10


@pytest.mark.parametrize(
    ("image_id", "message"),
    [
        (7, r"row 1: image 'COCO_train2014_000000000007.jpg' is not in .*train2014, .*val2017"),
        ("7", r"row 1: 'image_id' should be a COCO id, is '7'"),
    ],
)
def test_an_unknown_image_is_named_or_skipped(vqav2_folder, cache, image_id, message):
    for name, key in (
        ("v2_OpenEnded_mscoco_train2014_questions", "questions"),
        ("v2_mscoco_train2014_annotations", "annotations"),
    ):
        path = vqav2_folder / f"{name}.json"
        content = read_json(str(path))
        content[key][0]["image_id"] = image_id
        path.write_text(json.dumps(content))
    with pytest.raises(BadRowError, match=rf"_questions\.json, {message}"):
        load("vqav2", vqav2_folder, split="train", cache_dir=cache)
    assert len(load("vqav2", vqav2_folder, split="train", cache_dir=cache, on_bad="skip")) == 2


@pytest.mark.parametrize(
    ("part", "split", "coco", "images", "questions"),
    [("valid", "validation", "val2014", 8260, 8977), ("test", "test", "test2015", 2878, 2962)],
)
def test_the_real_subset_has_its_exact_counts(real_data, tmp_path, cache, part, split, coco, images, questions):
    official = real_data / "vqav2_subset"
    asked_in = official / f"vqa_questions_{part}.json.gz"
    (tmp_path / f"v2_OpenEnded_mscoco_{coco}_questions.json.gz").symlink_to(asked_in)
    (tmp_path / f"v2_mscoco_{coco}_annotations.json.gz").symlink_to(official / f"vqa_annotatons_{part}.json.gz")
    (tmp_path / coco).mkdir()
    for record in read_json(str(asked_in))["questions"]:
        (tmp_path / coco / f"COCO_{coco}_{record['image_id']:012d}.jpg").touch()  # the photographs are not at hand
    rows = load("vqav2", tmp_path, split=split, cache_dir=cache, verify_images=False)
    samples = [sample for row in rows["samples"] for sample in row]
    assert (len(rows), len(samples)) == (images, questions)
    assert all(len(sample["answers"]) == 10 for sample in samples)


def test_real_questions_on_real_photographs_of_the_2017_folders(real_data, tmp_path, cache):
    mini = real_data / "coco_mini"
    (tmp_path / "v2_OpenEnded_mscoco_train2014_questions.json").symlink_to(
        mini / "vqav2_questions_on_these_images.json"
    )
    (tmp_path / "v2_mscoco_train2014_annotations.json").symlink_to(mini / "vqav2_annotations_on_these_images.json")
    folders = (str(mini / "train2017"), str(mini / "val2017"))
    rows = load("vqav2", tmp_path, split="train", cache_dir=cache, image_dirs=folders)
    assert sum(map(len, rows["samples"])) == 8
    assert all(row["image"].size[0] > 100 for row in rows)
