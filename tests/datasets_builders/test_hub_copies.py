import pytest

from instructblip.datasets_builders.hub_copies import HubCopy, evaluate, read_hub_copies
from instructblip.datasets_builders.table import TABLE

COLUMNS = {
    "image": "image",
    "image_id": "coco/{image_id:012d}",
    "id": "vqav2/{question_id}",
    "answers": "answers.answer",
}
RECORD = {
    "image_id": 391895,
    "question_id": 3,
    "name": "COCO_val2014_000000391895.jpg",
    "answers": [{"answer": "yes"}, {"answer": "no"}],
    "old": {"answer": ["yes", "no"]},
    "images": ["a", "b"],
    "nothing": None,
}


def make_copy(**changes):
    return HubCopy.read(
        "specs/x.yaml: hub.0", {"repo": "org/x", "splits": {"train": "train"}, "columns": COLUMNS, **changes}
    )


def make_sample(record, **columns):
    (part,) = make_copy(columns={**COLUMNS, **columns}).records({**RECORD, **record}, 1, "train")
    return make_copy(columns={**COLUMNS, **columns}).sample(part)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("image_id", 391895),
        ("answers.answer", ["yes", "no"]),
        ("old.answer", ["yes", "no"]),
        ("images.1", "b"),
        ("nothing.inside", None),
        ("coco/{image_id:012d}", "coco/000000391895"),
        (["images.0", "name"], ["a", RECORD["name"]]),
        ({"value": ["false", "true"]}, ["false", "true"]),
        ({"from": "name", "pattern": r"_(\d{12})\.", "format": "coco/{}"}, "coco/000000391895"),
        ({"from": "question_id", "pattern": "(.)"}, "3"),
    ],
)
def test_an_expression_gives_what_the_row_holds(expression, value):
    assert evaluate(expression, RECORD) == value


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("answer", "no column 'answer': found an object with 'image_id'"),
        ("images.2", "column 'images.2': a list of 2 has no item 2"),
        ("name.part", "no column 'name.part': found str"),
        ("coco/{nothing}", "column 'nothing' should be text or a whole number, is NoneType"),
        ("coco/{name:012d}", "column 'name' is str 'COCO_val2014"),
        ({"from": "name", "pattern": r"train_(\d+)"}, "does not fit"),
        ({"from": "images", "pattern": "(.)"}, "should be text, is a list of 2"),
    ],
)
def test_a_row_that_does_not_fit_is_told(expression, message):
    with pytest.raises(ValueError, match=message):
        evaluate(expression, RECORD)


def test_a_format_reaches_no_attribute_of_a_value():
    with pytest.raises(ValueError, match="no column 'name.__class__'"):
        evaluate("{name.__class__}", RECORD)


def test_a_sample_has_the_fields_of_the_columns():
    sample = make_sample({"turn": [{"question": "Who ?", "answer": "me"}]}, tags={"kind": "name"}, history="turn")
    assert sample["id"] == "vqav2/3"
    assert sample["answers"] == ["yes", "no"]
    assert sample["history"] == [{"question": "Who ?", "answer": "me"}]
    assert sample["tags"] == ["kind=COCO_val2014_000000391895.jpg"]


@pytest.mark.parametrize("label", [1, " no "])
def test_a_label_is_a_number_or_a_choice_and_is_the_answer_where_none_is_mapped(label):
    columns = {name: COLUMNS[name] for name in ("image", "image_id", "id")}
    copy = make_copy(columns={**columns, "choices": {"value": ["yes", "no"]}, "label": "label"})
    sample = copy.sample({**RECORD, "label": label})
    assert (sample["label"], sample["answers"]) == (1, ["no"])
    assert copy.sample({**RECORD, "label": None})["answers"] == []
    with pytest.raises(ValueError, match="'label' should be one of 2 choices or its number, is int 2"):
        copy.sample({**RECORD, "label": 2})


def test_choices_in_one_text_come_apart():
    copy = make_copy(columns={**COLUMNS, "choices": "text"}, split_on={"choices": ","})
    assert copy.sample({**RECORD, "text": "left one, right one"})["choices"] == ["left one", "right one"]


def test_answers_that_are_not_given_away_are_none():
    assert make_sample({"answers": None})["answers"] == []
    assert make_sample({"answers": [{"answer": None}]})["answers"] == []
    assert make_sample({"count": 3}, answers="count")["answers"] == ["3"]


def test_blank_answers_and_words_are_left_out_as_from_official_files():
    assert make_sample({"answers": [{"answer": "two"}, {"answer": ""}]})["answers"] == ["two"]
    assert make_sample({"words": ["", "STOP", " "]}, ocr_tokens="words")["ocr_tokens"] == ["STOP"]
    assert make_sample({"words": [" "]}, ocr_tokens="words")["ocr_tokens"] == []


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"answers": [{"answer": " "}]}, r"'answers\[0\]' is blank"),
        ({"answers": [{"answer": 1.5}]}, r"'answers\[0\]' should be text, is float 1.5"),
        ({"answers": [{"answer": ["x"]}]}, r"'answers\[0\]' should be text, is a list of 1"),
        ({"answers": ["x"]}, "no column 'answer': found str 'x'"),
        ({"question_id": None}, "column 'question_id' should be text or a whole number"),
    ],
)
def test_hostile_values_are_told_by_their_field(record, message):
    with pytest.raises(ValueError, match=message):
        make_sample(record)


def test_each_makes_several_samples_of_a_row():
    copy = make_copy(
        columns={
            "image": "images.0",
            "image_id": "x/{n}",
            "id": "x/{n}/{_item}",
            "question": "texts.user",
            "answers": "texts.a",
        },
        each="texts",
    )
    record = {"n": 1, "texts": [{"user": "Why ?", "a": "so"}, {"user": "Who ?", "a": "me"}]}
    samples = [copy.sample(part) for part in copy.records(record, 1, "train")]
    assert [(sample["id"], sample["question"], sample["answers"]) for sample in samples] == [
        ("x/1/0", "Why ?", ["so"]),
        ("x/1/1", "Who ?", ["me"]),
    ]
    copy = make_copy(each=["q", "a"])
    with pytest.raises(ValueError, match="expected as many of each, found 2 q and 1 a"):
        list(copy.records({"q": ["x", "y"], "a": ["z"]}, 1, "train"))
    with pytest.raises(ValueError, match="column 'q' should be a list, is str 'x'"):
        list(copy.records({"q": "x", "a": ["z"]}, 1, "train"))


def test_rows_of_another_kind_do_not_belong():
    copy = make_copy(where={"kind": ["a", "b"], "lang": "en"})
    assert copy.belongs({"kind": "b", "lang": "en"})
    assert not copy.belongs({"kind": "c", "lang": "en"})


def test_only_columns_that_are_read_are_asked_for():
    copy = make_copy(
        where={"kind": "a"}, columns={**COLUMNS, "id": "{_split}/{_row}", "tags": {"x": ["one", {"value": 2}]}}
    )
    assert copy.text_columns == ["answers", "image_id", "kind", "one"]
    assert copy.image_column == "image"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colums": {}}, "hub.0: no key 'colums': there are repo, splits, columns"),
        ({"repo": 3}, "hub.0.repo: expected text, found int 3"),
        ({"splits": {}}, "hub.0.splits: expected at least one split"),
        ({"columns": {**COLUMNS, "answer": "x"}}, "hub.0.columns: no field 'answer': there are id, question"),
        ({"columns": {"image": "image", "id": "id"}}, "expected id, image_id, and one of image, images, image_file"),
        ({"columns": {**COLUMNS, "images": "images"}}, "one of image, images, image_file"),
        ({"columns": {**COLUMNS, "image": "{image}"}}, "columns.image: expected the name of a column"),
        ({"columns": {name: COLUMNS[name] for name in ("image", "image_id", "id")}}, "expected answers, or label"),
        ({"columns": {**COLUMNS, "question": 3}}, "columns.question: expected a column or an expression, found int 3"),
        ({"columns": {**COLUMNS, "question": {"from": "x"}}}, "columns.question: expected value, or from, pattern"),
        ({"columns": {**COLUMNS, "question": {"from": "x", "pattern": "x"}}}, "'x' should have one group"),
        ({"columns": {**COLUMNS, "question": "{}"}}, "should name a column in each pair of braces"),
        ({"columns": {**COLUMNS, "question": "{x!r}"}}, "without '!'"),
        ({"split_on": {"question": ","}}, "split_on: 'question' is no list under columns"),
        ({"image_rows": {"config": "images"}}, "hub.0.image_rows: id is missing"),
    ],
)
def test_a_description_that_means_nothing_is_refused(changes, message):
    with pytest.raises(ValueError, match="specs/x.yaml: .*" + message):
        make_copy(**changes)


def test_messages_name_the_file_of_the_table():
    with pytest.raises(ValueError, match=r"specs/vsr.yaml: hub.0: splits is missing"):
        read_hub_copies("vsr", [{"repo": "org/x", "columns": COLUMNS}])
    with pytest.raises(ValueError, match=r"specs/vsr.yaml: hub should be a list, is str 'org/x'"):
        read_hub_copies("vsr", "org/x")


def test_a_copy_of_vsr_means_what_the_official_file_means():
    record = {"image": "000000372029.jpg", "caption": "The dog is on the surfboard.", "label": 1, "relation": "on"}
    copy = TABLE["vsr"].hub[0]
    (part,) = copy.records(record, 7, "train")
    assert copy.image_id(part) == "coco/000000372029"
    assert copy.image_file(part) == "000000372029.jpg"
    assert copy.sample(part) == {
        "id": "vsr/zeroshot/train/7",
        "question": "The dog is on the surfboard.",
        "answers": ["true"],
        "choices": ["false", "true"],
        "label": 1,
        "tags": ["relation=on"],
    }


def test_karpathys_copy_finds_its_images_below_the_folder_of_both_parts():
    record = {
        "filepath": "val2014",
        "filename": "COCO_val2014_000000000042.jpg",
        "cocoid": 42,
        "sentences": ["A shoe."],
    }
    copy = TABLE["coco_caption"].hub[0]
    (part,) = copy.records(record, 1, "train")
    assert copy.image_file(part) == "val2014/COCO_val2014_000000000042.jpg"
    assert (copy.image_id(part), copy.sample(part)["answers"]) == ("coco/000000000042", ["A shoe."])
