import gzip
import json

import pytest

from instructblip.datasets_builders import load
from instructblip.datasets_builders.official_files import BadRowError
from instructblip.datasets_builders.schema import tag
from instructblip.datasets_builders.table import TABLE
from instructblip.datasets_builders.vqa_files import Question, answers_file, first_image, read_vqa, ten_answers

QUESTIONS = "v2_OpenEnded_mscoco_train2014_questions.json"
ANNOTATIONS = "v2_mscoco_train2014_annotations.json"


def question(number, image_id=458752, text="What is this photo taken looking through?", **other):
    return {"image_id": image_id, "question": text, "question_id": number, **other}


def annotation(number, image_id=458752, answers=("net",) * 9 + ("netting",), **other):
    rated = [
        {"answer": answer, "answer_confidence": "yes", "answer_id": place}
        for place, answer in enumerate(answers, start=1)
    ]
    types = {"question_type": "what is this", "answer_type": "other", "multiple_choice_answer": answers[0]}
    return {**types, "answers": rated, "image_id": image_id, "question_id": number, **other}


def write(folder, questions, annotations=None, names=(QUESTIONS, ANNOTATIONS)):
    """Questions and annotations with the fields that visualqa.org documents, written by hand."""
    info = {"info": {"version": "2.0"}, "license": {}, "data_type": "mscoco", "data_subtype": "train2014"}
    folder.mkdir(parents=True, exist_ok=True)
    for name, key, rows in zip(names, ("questions", "annotations"), (questions, annotations), strict=True):
        if rows is not None:
            opened = gzip.open if name.endswith(".gz") else open
            with opened(folder / name, "wt") as file:
                json.dump({**info, key: rows}, file)


def read(folder):
    return list(read_vqa(str(folder / QUESTIONS), {"answer_type": "kind"}))


def test_answers_are_joined_to_their_questions_whatever_their_order(tmp_path):
    write(tmp_path, [question(1), question(2, 9, " Why? ")], [annotation(2, 9, ("a",) * 10), annotation(1)])
    first, second = read(tmp_path)
    assert first == Question(1, 1, 458752, question(1)["question"], ["net"] * 9 + ["netting"], ["kind=other"])
    assert (second.row, second.question_id, second.image_id, second.text) == (2, 2, 9, "Why?")
    assert second.answers == ["a"] * 10


def test_questions_alone_have_no_answers(tmp_path):
    write(tmp_path, [question(1)])
    assert [item.answers for item in read(tmp_path)] == [[]]


@pytest.mark.parametrize(
    ("questions", "annotations"),
    [
        (QUESTIONS, ANNOTATIONS),
        (f"{QUESTIONS}.gz", ANNOTATIONS),
        (QUESTIONS, f"{ANNOTATIONS}.gz"),
        (f"Questions/{QUESTIONS}", f"Annotations/{ANNOTATIONS}"),
        ("val_questions_vqa_format.json", "val_annotations_vqa_format.json"),
        ("OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json"),
    ],
)
def test_the_answers_of_a_file_are_found_by_its_name(tmp_path, questions, annotations):
    for name in (questions, annotations):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert answers_file(str(tmp_path / questions)) == str(tmp_path / annotations)
    (tmp_path / annotations).unlink()
    assert answers_file(str(tmp_path / questions)) is None


@pytest.mark.parametrize(
    ("questions", "annotations", "message"),
    [
        (
            [question(1), question(7)],
            [annotation(1)],
            r"_questions\.json, row 2: question 7 has no annotation in .*_annot",
        ),
        (
            [question(1)],
            [annotation(1), annotation(7)],
            r"_annotations\.json, row 2: question 7 is not in .*_questions",
        ),
        ([question(1)], [annotation(1), annotation(1)], r"_annotations\.json, row 2: question 1 again, first in row 1"),
        (
            [question(1)],
            [annotation(1, 9)],
            r"_questions\.json, row 1: question 1 is about image 458752, but about 9 in",
        ),
        ([question("1")], [annotation(1)], r"_questions\.json, row 1: 'question_id' should be int, is str '1'"),
        (
            [question(1, 2.5)],
            [annotation(1)],
            r"_questions\.json, row 1: 'image_id' should be int or str, is float 2.5",
        ),
        ([question(1, text=" ")], [annotation(1)], r"_questions\.json, row 1: 'question' is blank"),
        ([question(1)], [{}], r"_annotations\.json, row 1: 'question_id' is missing"),
        ([question(1)], [3], r"_annotations\.json, row 1: expected an object with 'question_id', found int 3"),
        ([question(1)], [annotation(1, answer_type=None)], r"row 1: 'answer_type' should be str, is NoneType None"),
        ([question(1)], [annotation(1, answers=["a"] * 9)], r"_annotations\.json, row 1: 'answers' has 9 items"),
    ],
)
def test_questions_and_annotations_that_do_not_fit_are_named(tmp_path, questions, annotations, message):
    write(tmp_path, questions, annotations)
    errors = [item for item in read(tmp_path) if isinstance(item, BadRowError)]
    with pytest.raises(BadRowError, match=message):
        raise errors[0]


def test_a_bad_annotation_is_counted_once(tmp_path):
    write(tmp_path, [question(1), question(2)], [annotation(1, answers=[" "] * 10), annotation(2)])
    bad, good = read(tmp_path)
    assert str(bad).endswith("annotations.json, row 1: 'answers' holds only blank answers")
    assert good.question_id == 2


@pytest.mark.parametrize(
    ("value", "key", "message"),
    [
        ("net", "", "'answers' should be list, is str 'net'"),
        (["net"] * 11, "", "'answers' has 11 items: expected 10"),
        (["net"] * 9 + [3], "", r"'answers\[9\]' should be str, is int 3"),
        (
            [{"answer": "net"}] * 9 + ["net"],
            "answer",
            r"in 'answers\[9\]': expected an object with 'answer', found str",
        ),
        ([{"answer": "net"}] * 9 + [{"answer": 3}], "answer", r"in 'answers\[9\]': 'answer' should be str, is int 3"),
    ],
)
def test_bad_answers_are_named(value, key, message):
    with pytest.raises(ValueError, match=message):
        ten_answers({"answers": value}, "answers", key)


def test_an_annotator_may_have_written_nothing():
    assert ten_answers({"answers": ["", " a "] + ["b"] * 8}, "answers") == ["a"] + ["b"] * 8


def test_an_image_may_have_either_name(tmp_path, picture):
    picture(tmp_path / "2.jpg")
    assert first_image([str(tmp_path)], "1.jpg", "2.jpg") == str(tmp_path / "2.jpg")
    with pytest.raises(ValueError, match=r"image '1.jpg' is not in"):
        first_image([str(tmp_path)], "1.jpg", "3.jpg")


@pytest.fixture
def okvqa_folder(tmp_path, picture):
    """Three questions about two photographs; the official layout, with the fields of its documented rows, by hand."""
    picture(tmp_path / "train2014" / "COCO_train2014_000000051606.jpg")
    picture(tmp_path / "train2014" / "COCO_train2014_000000081721.jpg")
    stemmed = annotation(516065, 51606, ["pony tail"] * 4 + ["braid"] * 6, question_type="four")
    for answer in stemmed["answers"]:
        answer["raw_answer"] = answer["answer"] + "s"
    write(
        tmp_path,
        [question(516065, 51606), question(817215, 81721), question(516066, 51606)],
        [stemmed, annotation(817215, 81721), annotation(516066, 51606)],
        ("OpenEnded_mscoco_train2014_questions.json", "mscoco_train2014_annotations.json"),
    )
    return tmp_path


def test_okvqa_gives_stemmed_answers_by_photograph(okvqa_folder, cache):
    rows = load("okvqa", okvqa_folder, split="train", cache_dir=cache)
    assert rows["image_id"] == ["coco/000000051606", "coco/000000081721"]
    first, third = rows[0]["samples"]
    assert [first["id"], third["id"]] == ["okvqa/516065", "okvqa/516066"]
    assert first["answers"] == ["pony tail"] * 4 + ["braid"] * 6
    assert (tag(first, "question_type"), tag(first, "answer_type")) == ("four", "other")
    assert (first["choices"], first["label"], first["ocr_tokens"]) == ([], -1, [])


def test_a_training_split_without_its_annotations_is_an_error(okvqa_folder, cache):
    (okvqa_folder / "mscoco_train2014_annotations.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"train2014_questions\.json: the file with its answers is not beside"):
        load("okvqa", okvqa_folder, split="train", cache_dir=cache)


def test_changed_answers_give_a_new_cache_entry(okvqa_folder, cache):
    before = load("okvqa", okvqa_folder, split="train", cache_dir=cache)
    path = okvqa_folder / "mscoco_train2014_annotations.json"
    path.write_text(path.read_text().replace("braid", "plait"))
    after = load("okvqa", okvqa_folder, split="train", cache_dir=cache)
    assert before[0]["samples"][0]["answers"][-1] == "braid"
    assert after[0]["samples"][0]["answers"][-1] == "plait"


@pytest.mark.parametrize("name", ["vqav2", "okvqa", "aokvqa"])
def test_question_generation_has_the_same_rows_and_size(name):
    spec = TABLE[f"vqg_{name}"]
    assert spec.source is TABLE[name]
    assert spec.sampling_size == TABLE[name].sampling_size


def test_question_generation_reads_the_files_of_its_answers(okvqa_folder, cache):
    rows = load("vqg_okvqa", okvqa_folder, split="train", cache_dir=cache)
    assert rows[:] == load("okvqa", okvqa_folder, split="train", cache_dir=cache)[:]
