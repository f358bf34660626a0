import itertools
import json

import pytest
import yaml

from instructblip.datasets_builders import InstructionDataset
from instructblip.datasets_builders.data_sources import (
    DataSource,
    make_source,
    read_sources,
    training_data,
    validation_data,
)
from instructblip.datasets_builders.mixture import InstructionMixture
from instructblip.datasets_builders.table import TABLE


@pytest.fixture
def own(tmp_path, picture):
    """own(name, count): a file with `count` questions about one image each."""

    def make(name, count):
        for number in range(count):
            picture(tmp_path / name / f"{number}.png", number)
        records = [{"image": f"{n}.png", "question": f"what is {n} ?", "answer": f"{name} {n}"} for n in range(count)]
        file = tmp_path / name / "questions.jsonl"
        file.write_text("\n".join(map(json.dumps, records)))
        return {"dataset": str(file), "name": name, "cache_dir": str(tmp_path / "cache")}

    return make


@pytest.fixture
def listed(tmp_path):
    """listed(*entries): the path of a YAML file with them."""

    def write(*entries):
        (tmp_path / "mixture.yaml").write_text(yaml.safe_dump(list(entries)))
        return str(tmp_path / "mixture.yaml")

    return write


def test_a_list_becomes_a_mixture_with_square_root_shares_and_factors(listed, own):
    sources = read_sources(listed(own("a", 4), {**own("b", 1), "factor": 3}))
    mixture = training_data(sources, seed=5)
    assert isinstance(mixture, InstructionMixture)
    assert mixture.probabilities == pytest.approx({"a": 2 / 5, "b": 3 / 5})
    assert {item["dataset"] for item in mixture} <= {"a", "b"}


@pytest.mark.parametrize(("sampling", "share"), [("uniform", 1 / 2), ("proportional", 4 / 5)])
def test_balancing_can_be_left_out(listed, own, sampling, share):
    mixture = training_data(read_sources(listed(own("a", 4), own("b", 1))), sampling=sampling)
    assert mixture.probabilities["a"] == pytest.approx(share)


def test_a_size_may_be_written(listed, own):
    mixture = training_data(read_sources(listed({**own("a", 2), "size": 9}, {**own("b", 2), "size": 1})))
    assert mixture.probabilities["a"] == pytest.approx(3 / 4)


def test_one_dataset_alone_is_no_mixture(own):
    assert isinstance(training_data([make_source(own("a", 3))]), InstructionDataset)


def test_styles_and_prompts_decide_what_is_read(own):
    (asked,) = {training_data([make_source({**own("a", 1), "prompt": "Q: {question} A:"})])[0]["instruction"]}
    assert asked == "Q: what is 0 ? A:"
    assert training_data([make_source(own("a", 1))], style="plain")[0]["instruction"] == "what is 0 ?"
    tagged = training_data([make_source(own("a", 1))], style="tagged")[0]["instruction"]
    assert tagged == "[Visual question answering:a] what is 0 ?"


def test_validation_asks_each_sample_once_in_the_words_of_the_evaluation(real_vqa_rad):
    source = make_source({"dataset": "vqa_rad", "data_dir": real_vqa_rad, "train": None, "validation": "test[:3]"})
    ((name, dataset),) = validation_data([source]).items()
    assert name == "vqa_rad"
    assert {dataset.text(item)["template"] for item in range(len(dataset))} == {TABLE["vqa_rad"].prompt}
    assert dataset.format.answer_policy == "most_frequent"
    with pytest.raises(ValueError, match="no dataset has a split to train on"):
        training_data([source])


@pytest.fixture
def real_vqa_rad(vqa_rad_folder):
    return str(vqa_rad_folder)


def test_a_dataset_may_be_trained_on_as_another_task_under_another_name():
    source = make_source({"dataset": "aokvqa", "name": "direct", "task": "vqa", "config": "direct_answer"})
    made = source.training_format("natural", 0)
    assert (made.name, made.task) == ("direct", "vqa")


def test_streams_take_the_shares_of_the_table_or_of_the_list(listed, own):
    sources = read_sources(listed({**own("a", 3), "size": 1}, {**own("b", 3), "size": 1}))
    stream = training_data(sources, streaming=True)
    assert {item["dataset"] for item in itertools.islice(stream, 40)} == {"a", "b"}
    with pytest.raises(ValueError, match="a is streamed and its size not known: write size:"):
        training_data(read_sources(listed(own("a", 3), own("b", 3))), streaming=True)
    assert next(iter(training_data([make_source(own("a", 3))], streaming=True)))["dataset"] == "a"


def test_a_list_that_cannot_be_meant_is_refused(listed, own, tmp_path):
    for entries, message in (
        ([{"name": "a"}], "entry 1 has no key dataset; it has name"),
        ([own("a", 1), own("a", 1)], "two datasets are called a"),
        ([{"dataset": "mine.jsonl"}], "mine.jsonl has no name: write name:"),
        ([{**own("a", 1), "train": None}], "a has neither a split to train nor one to validate on"),
        ([{**own("a", 1), "task": "vqa"}], "your own data say themselves what they are"),
    ):
        with pytest.raises(ValueError, match=message):
            read_sources(listed(*entries))
    (tmp_path / "map.yaml").write_text("dataset: vqav2")
    with pytest.raises(ValueError, match="expected a list of datasets"):
        read_sources(str(tmp_path / "map.yaml"))
    with pytest.raises(ValueError, match="no option 'splitt'"):
        DataSource("vqa_rad", options={"data_dir": ".", "splitt": 1}).rows("train")
