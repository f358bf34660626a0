import pickle

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_samples import quick, samples, short, usable_samples
from torch.utils.data import DataLoader

from instructblip.datasets_builders import InstructionDataset, load
from instructblip.datasets_builders.instructions import InstructionFormat
from instructblip.datasets_builders.schema import make_sample, row_features
from instructblip.datasets_builders.table import TABLE
from instructblip.datasets_builders.templates import PLAIN_TEMPLATES, TEMPLATES, Template, format_options
from instructblip.processing.chat_template import join_history

STYLES = ("natural", "plain", "tagged")


@pytest.fixture
def rows(vqa_rad_folder, cache):
    return load("vqa_rad", vqa_rad_folder, split="train", cache_dir=cache)


def rows_of(samples, images, several_images=False):
    """One row for each list of samples."""
    visual = "images" if several_images else "image"
    columns = {visual: images, "image_id": [f"x/{number}" for number in range(len(samples))], "samples": samples}
    return datasets.Dataset.from_dict(columns, features=row_features(several_images))


@pytest.fixture
def answered(tmp_path, picture):
    """answered(*answers): rows with one sample each, that has those answers."""

    def build(*answers):
        path = str(picture(tmp_path / "a.png"))
        return rows_of([[make_sample(f"s/{n}", "Q?", list(a))] for n, a in enumerate(answers)], [path] * len(answers))

    return build


def listed(examples):
    return examples


def row_of(*samples):
    return {"image_id": "x/0", "samples": list(samples)}


def worded(sample, **options):
    """Instruction and response of one sample."""
    item = InstructionFormat.of("mine", **options).items(row_of(sample))[0]
    return item["instruction"], item["response"]


def test_an_item_is_a_sample_with_its_image(rows):
    dataset = InstructionDataset(rows, "vqa_rad")
    assert len(dataset) == 80
    item = dataset[7]  # the second question of the fourth image
    assert (item["id"], item["image_id"], item["dataset"]) == ("vqa_rad/43", "vqa_rad/synpic3", "vqa_rad")
    assert "Question 43?" in item["instruction"]
    assert item["response"] == "no"  # "No" in the file
    assert item["image"].getpixel((0, 0)) == (15, 15, 15)
    assert dataset.sample(7)["answers"] == ["No"]
    assert dataset[-1]["id"] == "vqa_rad/79"
    with pytest.raises(IndexError, match="item 80 of 80"):
        dataset[80]


def test_text_opens_no_image(vqa_rad_folder, rows):
    for path in (vqa_rad_folder / "images").iterdir():
        path.unlink()
    dataset = InstructionDataset(rows, "vqa_rad")
    assert dataset.text(7)["response"] == "no"
    assert len(dataset.column("instruction")) == 80
    assert dataset.text(7)["template"] in {template.text for template in TEMPLATES["vqa"]}
    assert "image" not in InstructionDataset(rows, "vqa_rad", with_images=False)[7]
    with pytest.raises(OSError, match="vqa_rad/43: image vqa_rad/synpic3 cannot be read"):
        dataset[7]


def test_an_epoch_words_anew_and_can_be_had_again(rows):
    dataset = InstructionDataset(rows, "vqa_rad", seed=3)
    first = dataset.column("instruction")
    dataset.set_epoch(1)
    second = dataset.column("instruction")
    assert sum(a != b for a, b in zip(first, second, strict=True)) > 60  # 12 of 13 draws differ
    dataset.set_epoch(0)
    assert dataset.column("instruction") == first
    assert InstructionDataset(rows, "vqa_rad", seed=3).column("instruction") == first
    assert InstructionDataset(rows, "vqa_rad", seed=4).column("instruction") != first


def test_order_of_rows_changes_no_wording(rows):
    plain = InstructionDataset(rows, "vqa_rad", with_images=False)
    by_id = {plain.text(item)["id"]: plain.text(item) for item in range(len(plain))}
    shuffled = InstructionDataset(rows.shuffle(seed=0).select(range(5, 30)), "vqa_rad")
    assert len(shuffled) == 50
    for item in range(50):
        example = shuffled[item]
        shade = 5 * int(example["image_id"].removeprefix("vqa_rad/synpic"))
        assert example.pop("image").getpixel((0, 0)) == (shade, shade, shade)
        assert example == by_id[example["id"]]


def test_workers_give_what_one_process_gives_and_follow_the_epoch(rows):
    dataset = InstructionDataset(rows, "vqa_rad")
    loader = DataLoader(dataset, batch_size=8, num_workers=2, persistent_workers=True, collate_fn=listed)
    for epoch in range(2):
        dataset.set_epoch(epoch)
        got = [example for batch in loader for example in batch]
        assert [example["instruction"] for example in got] == dataset.column("instruction")
        assert got[7]["image"].getpixel((0, 0)) == (15, 15, 15)


def test_a_pickled_dataset_gives_the_same_and_sends_no_rows(rows):
    dataset = InstructionDataset(rows, "vqa_rad")
    dataset.set_epoch(2)
    pickled = pickle.dumps(dataset)
    copy = pickle.loads(pickled)
    assert copy.epoch == 2
    assert copy.column("instruction") == dataset.column("instruction")
    assert copy[7]["image"].size == (12, 8)
    assert b"Question 43?" not in pickled


def test_the_most_frequent_answer_is_the_response_and_of_equals_the_first(answered):
    dataset = InstructionDataset(answered(["b", "a", "a"], ["b", "a"]), "mine", task="vqa")
    assert dataset.column("response") == ["a", "b"]


def test_blank_answers_count_as_none(answered):
    rows = answered(["", " ", "b"], ["\x1c", "\u2028"], ["", ""], ["c ", " "])
    dataset = InstructionDataset(rows, "mine", task="vqa", answer_policy="all")
    assert dataset.column("response") == ["b", "c"]
    assert dataset.column("id") == ["s/0#0", "s/3#0"]
    assert dataset.unanswered == 2
    assert InstructionDataset(rows, "mine", task="vqa").column("response") == ["b", "c"]


def test_spelling_counts_unless_the_table_says_otherwise(answered):
    rows = answered(["b", "A", "b", "a", "a "])
    assert InstructionDataset(rows, "mine", task="vqa").column("response") == ["b"]
    assert InstructionDataset(rows, "mine", task="vqa", lowercase_answers=True).column("response") == ["a"]


def test_sampled_answers_come_as_often_as_annotators_gave_them(answered):
    dataset = InstructionDataset(answered(["a", "b", "a", "a"]), "mine", task="vqa", answer_policy="sampled")
    drawn = []
    for epoch in range(2000):
        dataset.set_epoch(epoch)
        drawn.append(dataset.text(0)["response"])
    assert 1400 < drawn.count("a") < 1600  # 1,500 expected, standard deviation 19
    assert drawn.count("a") + drawn.count("b") == 2000


def test_all_answers_are_items_of_their_own(answered):
    dataset = InstructionDataset(answered(["a", "b"], [], ["c"]), "mine", task="caption", answer_policy="all")
    assert dataset.column("response") == ["a", "b", "c"]
    assert dataset.column("id") == ["s/0#0", "s/0#1", "s/2#0"]
    assert dataset.column("image_id") == ["x/0", "x/0", "x/2"]


def test_samples_without_an_answer_are_counted(answered):
    dataset = InstructionDataset(answered([], ["a"], []), "mine", task="vqa")
    assert dataset.column("id") == ["s/1"]
    assert dataset.unanswered == 2


def test_rows_without_samples_shift_nothing(tmp_path, picture):
    paths = [str(picture(tmp_path / f"{shade}.png", shade)) for shade in (10, 20, 30)]
    samples = [[make_sample("s/0", "Q?", ["a"])], [], [make_sample("s/2", "Q?", ["c"])]]
    dataset = InstructionDataset(rows_of(samples, paths), "mine", task="vqa")
    assert [dataset[item]["image"].getpixel((0, 0))[0] for item in range(2)] == [10, 30]
    assert dataset.column("image_id") == ["x/0", "x/2"]


def test_rows_with_several_images_keep_their_order(tmp_path, picture):
    paths = [str(picture(tmp_path / f"{shade}.png", shade)) for shade in (30, 10, 20)]
    rows = rows_of([[make_sample("s/0", "Q?", ["a"])]], [paths], several_images=True)
    item = InstructionDataset(rows, "mine", task="vqa")[0]
    assert [image.getpixel((0, 0))[0] for image in item["images"]] == [30, 10, 20]


def test_one_template_is_a_fixed_prompt(rows):
    dataset = InstructionDataset(rows, "vqa_rad", templates=[Template("Question: {question} Short answer:")])
    assert dataset.text(0)["instruction"] == "Question: Question 0? Short answer:"


def test_the_response_to_a_choice_is_its_text():
    sample = make_sample("s", "Which?", ["ride", "bus", "ride"], choices=["bus", "Cab ride"], label=1)
    instruction, response = worded(sample, task="multiple_choice", lowercase_answers=True)
    assert response == "Cab ride"
    assert "(a) bus (b) Cab ride" in instruction
    assert worded(sample, task="vqa")[1] == "ride"
    assert worded({**sample, "label": -1}, task="multiple_choice")[1] == "ride"
    with pytest.raises(ValueError, match="s: label 2 of 2 choices"):
        worded({**sample, "label": 2}, task="multiple_choice")


def test_question_generation_takes_the_answer_in_and_gives_the_question():
    sample = make_sample("s", " Where are they going? ", ["to a ball", "out", "out"])
    instruction, response = worded(sample, task="vqg")
    assert "out" in instruction
    assert "going" not in instruction
    assert response == "Where are they going?"
    items = InstructionFormat.of("mine", task="vqg", answer_policy="all", style="plain").items(row_of(sample))
    assert [item["instruction"] for item in items] == ["to a ball", "out", "out"]
    with pytest.raises(ValueError, match="s: the question is blank, and it is the response"):
        worded({**sample, "question": " "}, task="vqg")


def test_a_conversation_reads_as_the_processor_writes_it():
    history = [{"question": "What is this?", "answer": "a photo"}, {"question": "Of what?", "answer": "a cat"}]
    sample = make_sample(
        "s", "What colour is it?\nLook closely.", ["A long answer, as chats have them."], history=history
    )
    instruction, response = worded(sample, task="chat")
    assert instruction == join_history(history, "What colour is it?\nLook closely.")
    assert response == "A long answer, as chats have them."
    assert worded({**sample, "history": []}, task="chat")[0] == "What colour is it?\nLook closely."


@pytest.mark.parametrize(
    ("name", "plain", "tagged"),
    [
        ("vqav2", "What?", f"[Visual question answering:{TABLE['vqav2'].title}] What?"),
        ("vqg_vqav2", "cat", f"[Visual question generation:{TABLE['vqg_vqav2'].title}] cat"),
        ("coco_caption", "", f"[Image captioning:{TABLE['coco_caption'].title}]"),
        ("gqa", "What?", "[Visual question answering] What?"),
        ("iconqa", "What? (a) cat (b) dog", "[Visual question answering] What? (a) cat (b) dog"),
        ("nocaps", "", "[Image captioning]"),
        ("mine", "What?", "[Visual question answering:mine] What?"),
    ],
)
def test_the_ablations_give_the_input_alone_and_with_a_tag(name, plain, tagged):
    """The example of the paper is [Visual question answering:VQAv2]; held-out datasets are not named."""
    sample = make_sample("s", "What?", ["cat"], choices=["cat", "dog"], label=0)
    task = "vqa" if name == "mine" else None
    for style, instruction in (("plain", plain), ("tagged", tagged)):
        item = InstructionFormat.of(name, style=style, task=task).items(row_of(sample))[0]
        assert item["instruction"] == instruction
        assert item["response"] == ("What?" if "vqg" in name else "cat")


def test_a_name_with_braces_is_no_template():
    sample = make_sample("s", "What?", ["cat"])
    tagged = worded(sample, task="vqa", style="tagged")[0]
    assert tagged == "[Visual question answering:mine] What?"
    item = InstructionFormat.of("{question}", task="vqa", style="tagged").items(row_of(sample))[0]
    assert item["instruction"] == "[Visual question answering:{question}] What?"


def test_a_sample_that_no_template_suits_is_named():
    with pytest.raises(ValueError, match="s/1: no template suits, as the sample has no question"):
        worded(make_sample("s/1", "", ["a"]), task="vqa")
    with pytest.raises(ValueError, match="s/1: no template suits, as the sample has no options"):
        worded(make_sample("s/1", "Why?", ["a"]), task="multiple_choice")
    read = Template("OCR tokens: {ocr_tokens}. Question: {question}")
    with pytest.raises(ValueError, match="no ocr_tokens; context, ocr_tokens and history need no place"):
        worded(make_sample("s/1", "Why?", ["a"]), templates=[read])


def test_a_template_that_gives_the_response_away_is_refused():
    with pytest.raises(ValueError, match=r"template 'A: {answer}' has {answer}, the response of task 'vqa'"):
        InstructionFormat.of("vqav2", templates=[Template("A: {answer}")])
    with pytest.raises(ValueError, match=r"has {question}, the response of task 'vqg'"):
        InstructionFormat.of("vqg_vqav2", templates=[Template("{question}")])


@given(usable_samples, short, st.integers(0, 25), st.integers(0, 3), st.sampled_from(STYLES))
@quick
def test_no_response_shows_in_its_instruction(sample, other, label, epoch, style):
    """The instruction is the same whatever the answer is (for question generation, whatever the question)."""
    label %= len(sample["choices"])
    for task in TEMPLATES:
        form = InstructionFormat.of("mine", task=task, style=style)
        changed = {"question": other} if task == "vqg" else {"answers": [other], "label": label}
        first, second = (form.items(row_of(each), epoch)[0] for each in (sample, {**sample, **changed}))
        assert first["instruction"] == second["instruction"]
        assert second["response"] == (sample["choices"][label] if task == "multiple_choice" else other.strip())
        if task == "multiple_choice":
            assert format_options(sample["choices"]) in second["instruction"]


@given(st.lists(usable_samples, min_size=1, max_size=4), st.integers(0, 1 << 40), st.randoms())
@quick
def test_draws_depend_on_seed_epoch_and_id_alone(asked, epoch, order):
    for number, sample in enumerate(asked):
        sample["id"] = str(number)
    shuffled = order.sample(asked, len(asked))
    for task in TEMPLATES:
        form = InstructionFormat.of("mine", seed=7, task=task, answer_policy="sampled")
        items = {item["id"]: item for item in form.items(row_of(*asked), epoch)}
        copy = pickle.loads(pickle.dumps(form))
        assert copy == form
        for sample in shuffled:
            assert copy.items(row_of(sample), epoch) == [items[sample["id"]]]


@given(
    st.lists(st.lists(samples(question=short, choices=short), max_size=3), min_size=1, max_size=4), st.integers(0, 3)
)
@settings(parent=quick, max_examples=25)
def test_a_dataset_has_the_items_of_its_rows(sampled, epoch):
    """Found once through Arrow and once through Python: blank answers, labels and empty rows alike."""
    names = [f"x/{number}" for number in range(len(sampled))]
    features = {name: kind for name, kind in row_features().items() if name != "image"}
    columns = {"image_id": names, "samples": sampled}
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    for policy in ("most_frequent", "sampled", "all"):
        for task in ("vqa", "multiple_choice"):
            form = InstructionFormat.of("mine", task=task, answer_policy=policy, templates=[Template("{question}")])
            dataset = InstructionDataset(rows, "mine", format=form, with_images=False)
            expected = [item for row in rows for item in form.items(row, epoch)]
            assert [dataset.text(item, epoch) for item in range(len(dataset))] == expected
            silent = sum(not form.answers(sample) for samples in sampled for sample in samples)
            assert dataset.unanswered == silent


def test_another_epoch_may_be_read_without_setting_it(rows):
    dataset = InstructionDataset(rows, "vqa_rad")
    items = [dataset.text(item, epoch=3) for item in range(80)]
    assert dataset.item(7, epoch=3)["image"].getpixel((0, 0)) == (15, 15, 15)
    assert dataset.epoch == 0
    dataset.set_epoch(3)
    assert [dataset.text(item) for item in range(80)] == items


@pytest.mark.parametrize("style", ["plain", "tagged"])
def test_a_dataset_takes_a_style_or_a_format(rows, style):
    first = InstructionDataset(rows, "vqa_rad", style=style, seed=2)
    form = InstructionFormat.of("vqa_rad", style=style, seed=2)
    assert first.format == form == InstructionDataset(rows, "vqa_rad", format=form).format
    assert first.text(0)["template"].endswith(PLAIN_TEMPLATES["vqa"].text)
    assert first.text(7)["response"] == "no"  # in lower case still
    with pytest.raises(ValueError, match="format is of 'vqa_rad', for 'mine'"):
        InstructionDataset(rows, "mine", format=form)
    with pytest.raises(ValueError, match="make it of that name, with all options in it"):
        InstructionDataset(rows, "vqa_rad", format=form, seed=3)


def test_streamed_rows_give_the_items_of_the_dataset(rows):
    form = InstructionFormat.of("vqa_rad", seed=1)
    streamed = [item for row in rows.remove_columns("image").to_iterable_dataset() for item in form.items(row, epoch=2)]
    dataset = InstructionDataset(rows, "vqa_rad", seed=1)
    assert streamed == [dataset.text(item, epoch=2) for item in range(len(dataset))]


def test_wrong_use_is_named(rows, vqa_rad_folder, cache):
    with pytest.raises(ValueError, match="'mine', task '': pass templates=, or a task out of vqa, caption"):
        InstructionDataset(rows, "mine")
    with pytest.raises(ValueError, match="answer_policy 'first': expected most_frequent"):
        InstructionDataset(rows, "vqa_rad", answer_policy="first")
    with pytest.raises(ValueError, match="rows with columns image_id, samples: expected image or images"):
        InstructionDataset(rows.remove_columns("image"), "vqa_rad")
    with pytest.raises(TypeError, match="rows is a DatasetDict: expected one split"):
        InstructionDataset(load("vqa_rad", vqa_rad_folder, cache_dir=cache), "vqa_rad")
    with pytest.raises(ValueError, match="style 'bare': expected natural, plain, tagged"):
        InstructionDataset(rows, "vqa_rad", style="bare")
    with pytest.raises(ValueError, match="templates with style='plain': they belong to the natural style"):
        InstructionDataset(rows, "vqa_rad", style="plain", templates=[Template("{question}")])
    with pytest.raises(ValueError, match="templates is empty: pass one or more"):
        InstructionDataset(rows, "vqa_rad", templates=[])
