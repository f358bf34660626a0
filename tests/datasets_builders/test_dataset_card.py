import pytest
import yaml

from instructblip.datasets_builders import own_format
from instructblip.datasets_builders.dataset_card import PublishedConfig, PublishedSplit, terms, write_card
from instructblip.datasets_builders.table import TABLE


def make_config(name, rows=10, **changes):
    task = TABLE[name].task if name in TABLE else "vqa"
    fields = {"several_images": False, "task": task, "style": "natural", "answer_policy": "most_frequent", "seed": 0}
    fields |= {
        "made_with": "1.0",
        "licence": "",
        "splits": {"train": PublishedSplit(rows, rows, 0, 1, {"x.parquet": 1})},
    }
    return PublishedConfig(name, **{**fields, **changes})


def metadata(card):
    return yaml.safe_load(card.split("---")[1])


def test_one_licence_of_the_hubs_list_is_named_and_several_are_other():
    assert metadata(write_card("me/mix", [make_config("vqa_rad")]))["license"] == "cc0-1.0"
    several = metadata(write_card("me/mix", [make_config("vqa_rad"), make_config("nocaps")]))
    assert (several["license"], several["license_name"]) == ("other", "see-the-table-of-licences")
    assert metadata(write_card("me/mix", [make_config("vqav2")]))["license"] == "other"  # photographs have their own
    assert metadata(write_card("me/mix", [make_config("mine")]))["license"] == "other"  # none is stated


def test_a_licence_that_no_longer_holds_is_not_kept():
    one = write_card("me/mix", [make_config("vqa_rad")])
    two = metadata(write_card("me/mix", [make_config("vqa_rad"), make_config("mine")], one))
    assert two["license"] == "other"
    assert "license_name" not in metadata(
        write_card("me/mix", [make_config("vqa_rad")], write_card("me/mix", [make_config("mine")]))
    )


@pytest.mark.parametrize(
    ("rows", "size"), [(999, "n<1K"), (1000, "1K<n<10K"), (13_873_136, "10M<n<100M"), (10**8, "100M<n<1B")]
)
def test_the_size_category_follows_from_the_rows(rows, size):
    assert metadata(write_card("me/mix", [make_config("vqa_rad", rows)]))["size_categories"] == [size]


def test_weights_are_those_of_the_paper_for_the_configs_that_are_there():
    card = write_card("me/mix", [make_config("okvqa"), make_config("vqav2"), make_config("vsr")])
    assert "| `okvqa` | 9,009 | 0.125 |" in card  # sqrt(9009) / (sqrt(9009) + sqrt(443757))
    assert "| `vqav2` | 443,757 | 0.875 |" in card
    assert "None of the configs is of the mixture" in write_card("me/mix", [make_config("vsr")])


def test_question_generation_has_the_question_as_response():
    card = write_card("me/mix", [make_config("vqg_okvqa")])
    assert (
        "| `vqg_okvqa` | vqg, instructblip 1.0 | natural | the question; the answer is in the instruction | 0 |" in card
    )


def test_captions_and_videos_are_found_by_their_tasks():
    configs = [make_config("nocaps"), make_config("msvd_qa", several_images=True)]
    assert metadata(write_card("me/mix", configs))["task_categories"] == [
        "image-text-to-text",
        "image-to-text",
        "video-text-to-text",
    ]


def test_terms_are_told_and_free_licences_have_none():
    assert terms("vqav2") == terms("vsr") == terms("mine") == []
    assert terms("scienceqa") == [f"not for commercial use ({TABLE['scienceqa'].licence})"]
    card = write_card("me/mix", [make_config("scienceqa"), make_config("vsr")])
    assert "> `scienceqa` is not for commercial use" in card
    assert "> `vsr`" not in card
    assert "[!WARNING]" not in write_card("me/mix", [make_config("vsr")])


def test_ones_own_data_are_loaded_with_their_own_wordings():
    card = write_card("me/mix", [make_config("mine", task=own_format("mine").task)])
    assert "import InstructionDataset, load, own_format\n" in card
    assert 'InstructionDataset(rows, "mine", format=own_format("mine"))[0]' in card


def test_the_datasets_that_not_everyone_may_have_are_these():
    llava = {name for name in TABLE if name.startswith("llava_")}
    videos = {"msvd_qa", "msrvtt_qa", "ivqa"}  # no licence stated, and clips of others
    restricted = {"flickr30k", "hateful_memes", "iconqa", "ocr_vqa", "scienceqa", *llava, *videos}
    assert {name for name in TABLE if terms(name)} == restricted
    card = write_card("me/mix", [make_config(name) for name in TABLE])
    assert all((f"> `{name}` is " in card) == (name in restricted) for name in TABLE)
