import pickle

import datasets
import pytest
from torch.utils.data import DataLoader

from instructblip.datasets_builders import InstructionDataset, load
from instructblip.datasets_builders.schema import make_sample, row_features
from instructblip.datasets_builders.templates import Template


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


def test_wrong_use_is_named(rows, vqa_rad_folder, cache):
    with pytest.raises(ValueError, match="'mine', task '': pass templates=, or a task out of vqa, caption"):
        InstructionDataset(rows, "mine")
    with pytest.raises(ValueError, match="answer_policy 'first': expected most_frequent"):
        InstructionDataset(rows, "vqa_rad", answer_policy="first")
    with pytest.raises(ValueError, match="rows with columns image_id, samples: expected image or images"):
        InstructionDataset(rows.remove_columns("image"), "vqa_rad")
    with pytest.raises(TypeError, match="rows is a DatasetDict: expected one split"):
        InstructionDataset(load("vqa_rad", vqa_rad_folder, cache_dir=cache), "vqa_rad")
