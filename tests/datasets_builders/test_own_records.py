import pytest

from instructblip.datasets_builders.own_records import KEYS, Reading, read_record

SOURCES_OF_OTHERS = (
    "url width height image_url image_width image_id question_id question_type answer_type answer_confidence source "
    "split category dataset model lang topic title hint lecture metadata relevance_ratings caption_id text_id level"
).split()


def read(record, default_id="7", **reading):
    columns = tuple(reading.pop("columns", {}).items())
    return read_record(record, Reading(columns, **reading), default_id, "mine")


def sample(record, **reading):
    (example,) = read(record, **reading)
    return example.sample


def question(**other):
    return {"image": "a.jpg", "question": "How many dogs?", **other}


def talk(*texts, **other):
    speakers = ("human", "gpt") * len(texts)
    turns = [{"from": speaker, "value": text} for speaker, text in zip(speakers, texts, strict=False)]
    return {"id": "x1", "image": "a.jpg", "conversations": turns, **other}


# ---- Questions, instructions, captions


@pytest.mark.parametrize(("answer", "learned"), [("two", "two"), (2, "2"), (0.5, "0.5"), (" two ", "two")])
def test_an_answer_is_a_text_or_a_number(answer, learned):
    assert sample(question(answer=answer))["answers"] == [learned]


def test_a_question_brings_its_answers_and_what_belongs_to_it():
    made = sample(
        question(
            id=12,
            answers=["two", "2", "two"],
            context="A park.",
            ocr_tokens=["STOP", 7],
            history=[["What is this?", "a park"], {"question": "Where?", "answer": "here"}],
        )
    )
    assert made["id"] == "mine/12"
    assert made["answers"] == ["two", "2", "two"]
    assert (made["context"], made["ocr_tokens"]) == ("A park.", ["STOP", "7"])
    assert made["history"] == [
        {"question": "What is this?", "answer": "a park"},
        {"question": "Where?", "answer": "here"},
    ]
    assert made["tags"] == ["task=vqa"]


@pytest.mark.parametrize(
    "record", [question(answer=None), question(answers=[]), question(choices=["a", "b"], label=None)]
)
def test_null_says_that_the_answer_is_not_known(record):
    assert sample(record)["answers"] == []


@pytest.mark.parametrize(
    "told",
    [
        {"answer": "blue"},
        {"answer": "B"},
        {"answer": "(b)"},
        {"label": 1},
        {"label": "1"},
        {"label": "b"},
        {"label": 1, "answer": "blue"},
    ],
)
def test_a_choice_is_named_by_its_text_its_letter_or_its_number(told):
    made = sample(question(choices=["red", "blue"], **told))
    assert (made["choices"], made["label"], made["answers"]) == (["red", "blue"], 1, ["blue"])
    assert made["tags"] == ["task=multiple_choice"]


def test_a_choice_that_is_a_letter_is_meant_before_the_letter():
    assert sample(question(choices=["B", "A"], answer="A"))["label"] == 1


def test_an_instruction_and_its_response_are_kept_as_they_are():
    made = sample({"image": "a.jpg", "instruction": "Say {it}.", "response": "it"})
    assert (made["question"], made["answers"], made["tags"]) == ("Say {it}.", ["it"], ["task=chat"])


@pytest.mark.parametrize("told", [{"caption": "a dog"}, {"captions": ["a dog"]}, {"text": "a dog"}])
def test_a_caption_answers_no_question(told):
    made = sample({"file_name": "a.jpg", **told})
    assert (made["question"], made["answers"], made["tags"]) == ("", ["a dog"], ["task=caption"])


@pytest.mark.parametrize(
    ("record", "images"),
    [
        (question(answer="a"), ("a.jpg",)),
        ({"file_name": "a.jpg", "caption": "a"}, ("a.jpg",)),
        (question(answer="a", image=None), ()),
        ({"images": ["a.jpg", "b.jpg"], "question": "Which?", "answer": "a"}, ("a.jpg", "b.jpg")),
        ({"images": ["a.jpg"], "image": None, "question": "Which?", "answer": "a"}, ("a.jpg",)),
        ({"image": ["a.jpg", "b.jpg"], "question": "Which?", "answer": "a"}, ("a.jpg", "b.jpg")),
    ],
)
def test_what_a_record_shows(record, images):
    assert [example.images for example in read(record)] == [images]


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        (["a"], "expected an object, found a list of 1"),
        (
            {"image": "a.jpg", "foo": 1},
            r"no known form: found an object with 'image', 'foo'.\nThe forms that can be read",
        ),
        (question(), "'answer' is missing: found an object with 'image', 'question'"),
        (
            question(reponse="a"),
            "'reponse' is not read: if it is 'response', rename it or pass columns={'response': 'reponse'}",
        ),
        (question(anwser="a"), "'anwser' is not read: if it is 'answer'"),
        (
            question(gold_answer="a"),
            r"'answer' is missing: .*If 'gold_answer' is meant, pass columns=\{'answer': 'gold_answer'\}",
        ),
        (question(response="a"), r"'instruction' is missing: .*pass columns=\{'instruction': 'question'\}"),
        (question(answer="a", options=["a", "b"]), "'options' is not read: if it is 'choices'"),
        ({"question": "a", "answer": "b"}, "'image' is missing"),
        ({"img": "a.jpg", "question": "a", "answer": "b"}, r"'img' is not read: if it is 'image'"),
        (question(answer=True), "'answer' is true: write the word that is to be learned"),
        (question(answer=float("nan")), "'answer' is nan: write null where there is none"),
        (question(answer=["a"]), "'answer' is a list: several answers go into 'answers'"),
        (question(answer={"text": "a"}), "'answer' should be str, is an object with 'text'"),
        (question(answer=" "), "'answer' is blank"),
        (question(answer="\ud800"), "'answer' is not valid text"),
        (question(answers="a"), "'answers' should be a list of texts, is str 'a'"),
        (question(answers=["a", None]), r"'answers\[1\]' should be str"),
        (question(answer="a", answers=["a"]), "'answer' and 'answers': give one of them"),
        (question(answer="a", id=[1]), "'id' should be str or int"),
        (question(choices=["a", "b"]), "'answer' or 'label' is missing"),
        (question(choices=["a"], answer="a"), "'choices' should be two or more different texts"),
        (question(choices=["a", "a"], answer="a"), "'choices' should be two or more different texts"),
        (
            question(choices=["x", "y"], answer="z"),
            r"'answer' is str 'z': none of the choices \['x', 'y'\] and no letter up to b",
        ),
        (question(choices=["x", "y"], label=2), "'label' is 2: expected 0 to 1"),
        (question(choices=["x", "y"], label=0, answer="y"), "'answer' says 'y' and 'label' says 'x'"),
        (question(answer="a", label=1), "'label' without 'choices' says nothing"),
        (question(answer="a", history=["b"]), r"'history\[0\]' should have question and answer"),
        (question(answer="a", history="b"), "'history' should be a list of rounds"),
        (question(answer="a", image=""), "'image' is blank; write null"),
        (question(answer="a", images=["b.jpg"]), "'image' and 'images': give one of them"),
        ({"images": "a.jpg", "caption": "a"}, "'images' should be a list, is str 'a.jpg'; one image goes into 'image'"),
        ({"images": ["a.jpg", ""], "caption": "a"}, r"'images\[1\]' is empty"),
        (question(answer="an <image>"), "an answer has <image> in it"),
        ({"image": "a.jpg", "question": "<image> or <image>?", "answer": "a"}, "2 <image> for 1 images"),
    ],
)
def test_what_cannot_be_read_says_so(record, complaint):
    with pytest.raises(ValueError, match=complaint):
        read(record)


# ---- Names


def test_columns_say_what_fields_are_called():
    record = {
        "pic": "a.jpg",
        "qa": {"q": "Why?"},
        "notes": [{"said": "a", "by": 1}, {"said": "b", "by": 2}],
        "answer": 3,
    }
    made = sample(record, columns={"image": "pic", "question": "qa.q", "answers": "notes.said", "answer": None})
    assert (made["question"], made["answers"]) == ("Why?", ["a", "b"])


def test_a_column_that_is_not_there_is_named():
    with pytest.raises(
        ValueError, match="'pic', named in columns for 'image', is missing: found an object with 'image'"
    ):
        read(question(answer="a"), columns={"image": "pic"})
    with pytest.raises(ValueError, match="columns: no field 'anwser' .did you mean 'answer'"):
        Reading((("anwser", "a"),))


def test_keys_of_ones_own_are_passed_over():
    assert not set(SOURCES_OF_OTHERS) & set(KEYS)
    assert sample(question(answer="a", **dict.fromkeys(SOURCES_OF_OTHERS, "x")))["answers"] == ["a"]
    assert sample(question(answer="a", labels=[1]), columns={"label": None})["answers"] == ["a"]


# ---- Turns


def test_each_turn_of_a_talk_is_a_sample_with_the_turns_before_it():
    first, second = read(talk("<image>\nWhat is this?", "a cat", "Where is it?", "on a mat"))
    assert first.sample["question"] == "What is this?"
    assert (first.sample["answers"], first.sample["history"]) == (["a cat"], [])
    assert second.sample["history"] == [{"question": "What is this?", "answer": "a cat"}]
    assert [first.sample["id"], second.sample["id"]] == ["mine/7/1", "mine/7/2"]  # LLaVA repeats its ids
    assert first.sample["tags"] == ["task=chat", "id=x1"]
    assert first.images == second.images == ("a.jpg",)
    assert [example.sample["history"] for example in read(talk("a", "b", "c", "d"), history=False)] == [[], []]


def test_a_talk_may_show_nothing():
    record = talk("What is this?", "a cat")
    del record["image"]
    assert read(record)[0].images == ()


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("<image>\nWhat is this?", "What is this?"),
        ("What is this?\n<image>", "What is this?"),
        ("Look at <image> and say.", "Look at <image> and say."),
    ],
)
def test_the_mark_of_a_single_image_goes_from_the_ends_of_the_text(text, asked):
    assert read(talk(text, "a"))[0].sample["question"] == asked


def test_a_turn_shows_the_images_marked_so_far():
    record = talk("<image>\nWhat is this?", "a", "And <image>?", "b", image=["a.jpg", "b.jpg"])
    first, second = read(record)
    assert (first.images, second.images) == (("a.jpg",), ("a.jpg", "b.jpg"))
    assert second.sample["question"] == "And <image>?"
    assert second.sample["history"][0]["question"].count("<image>") == 1


def test_messages_may_be_in_parts_and_begin_with_a_system_prompt():
    parts = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    spoken = [("system", "Be brief."), ("user", parts), ("assistant", [{"type": "text", "text": "a cat"}])]
    record = {"images": ["a.jpg"], "messages": [{"role": role, "content": content} for role, content in spoken]}
    assert sample(record)["question"] == "Be brief.\n<image>\nWhat is this?"
    assert sample(record)["answers"] == ["a cat"]


@pytest.mark.parametrize(
    "texts",
    [
        [{"user": "a?", "assistant": "b", "source": "vqa"}, {"user": "c?", "assistant": "d", "source": "vqa"}],
        {"user": ["a?", "c?"], "assistant": ["b", "d"], "source": ["vqa", "vqa"]},
    ],
)
def test_texts_are_questions_of_their_own_unless_told(texts):
    first, second = read({"images": ["a.jpg"], "texts": texts})
    assert (first.sample["question"], second.sample["question"]) == ("a?", "c?")
    assert second.sample["history"] == []
    assert second.sample["tags"] == ["task=chat", "source=vqa"]
    assert read({"images": ["a.jpg"], "texts": texts}, history=True)[1].sample["history"]


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        (talk(), "'conversations' should be a list of messages"),
        (talk("a"), "'conversations' ends with a question"),
        (talk("a", " "), r"'conversations\[1\].value' is blank"),
        (talk("a", 5), r"'conversations\[1\].value' should be str, is int 5"),
        (talk("<image>", "a"), "round 1 of 'conversations' asks nothing but <image>"),
        (talk("<image><image> a", "b"), "2 <image> in 'conversations' for 1 images"),
        (talk("a", "<image>"), "an answer in 'conversations' has <image>"),
        (
            {"conversations": [{"from": "gpt", "value": "a"}]},
            r"'conversations\[0\]' is from str 'gpt', expected human or user",
        ),
        ({"conversations": [{"who": "gpt", "value": "a"}]}, r"'conversations\[0\]' should have from and value"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "expected parts of type text and image"),
        ({"images": [], "texts": []}, "'texts' should be a list of rounds"),
        ({"images": ["a"], "texts": [{"user": "a"}]}, r"'texts\[0\]' should have user and assistant"),
        ({"images": ["a"], "texts": [{"user": "a", "assistant": ""}]}, r"'texts\[0\].assistant' is blank"),
    ],
)
def test_a_talk_that_cannot_be_read_says_where(record, complaint):
    with pytest.raises(ValueError, match=complaint):
        read(record)
