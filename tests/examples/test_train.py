import importlib.util
import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPImageProcessorPil

import instructblip
from instructblip.datasets_builders.data_sources import training_data, validation_data
from instructblip.datasets_builders.official_files import BadRowError
from instructblip.datasets_builders.table import TABLE

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("examples_train", EXAMPLES / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def model_folder(tiny_model, llama_tokenizer, qformer_tokenizer, tmp_path):
    images = CLIPImageProcessorPil(size={"height": 28, "width": 28}, do_center_crop=False)
    processor = instructblip.InstructBLIPProcessor(
        images, llama_tokenizer, qformer_tokenizer, num_query_tokens=4, qformer_max_length=32, is_encoder_decoder=False
    )
    tiny_model("llama", image_token_index=processor.image_token_id).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def questions(tiny_images, tmp_path):
    """A JSON-lines file with four questions about four images."""
    (tmp_path / "data" / "photos").mkdir(parents=True)
    lines = []
    for number, image in enumerate(tiny_images[:4]):
        image.save(tmp_path / "data" / "photos" / f"{number}.png")
        answer = ("red", "blue", "green", "no")[number]
        lines.append({"image": f"photos/{number}.png", "question": "what is the color ?", "answer": answer})
    file = tmp_path / "data" / "train.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return file


def settings(model_folder, tmp_path, **changed):
    """A recipe file with small settings."""
    recipe = yaml.safe_load((EXAMPLES / "finetune.yaml").read_text())
    recipe |= {
        "model": str(model_folder),
        "eval_data": None,
        "eval_strategy": "no",
        "save_strategy": "no",
        "output_dir": str(tmp_path / "out"),
        "num_train_epochs": 1,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-3,
        "dataloader_num_workers": 0,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        **changed,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return ["--config", str(tmp_path / "recipe.yaml")]


@pytest.mark.parametrize("release", ["bridge", "full"])
def test_a_recipe_trains_on_ones_own_images_and_its_release_loads(script, model_folder, questions, tmp_path, release):
    script.main(settings(model_folder, tmp_path, data=str(questions), eval_data=str(questions), release=release))
    folder = tmp_path / "out" / "release"
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    bridge, before = model.bridge_state_dict(), load_file(model_folder / "model.safetensors")
    assert (set(load_file(folder / "model.safetensors")) == set(bridge)) == (release == "bridge")
    assert not torch.equal(bridge["query_tokens"], before["query_tokens"])
    frozen = "language_model.model.embed_tokens.weight"
    torch.testing.assert_close(model.state_dict()[frozen], before[frozen], rtol=0, atol=0)
    inputs = processor(images=str(questions.parent / "photos" / "0.png"), text="what is the color ?")
    assert model.generate(**inputs, max_new_tokens=2).shape[1] <= 2


def test_the_command_line_overrides_the_recipe(script, model_folder, questions, tmp_path, capsys):
    arguments = settings(model_folder, tmp_path, data="nowhere.jsonl")
    script.main([*arguments, "--data", str(questions), "--output_dir", str(tmp_path / "elsewhere")])
    assert (tmp_path / "elsewhere" / "release" / "model.safetensors").is_file()
    assert f"saved the bridge release to {tmp_path / 'elsewhere' / 'release'}" in capsys.readouterr().out


def test_a_dataset_with_a_builder_is_named(script):
    folder = str(EXAMPLES / "vqa_rad" / "data")
    (source,) = script.sources(script.Recipe(data="vqa_rad", eval_data="test", data_dir=folder))
    sample = validation_data([source])["vqa_rad"][0]
    assert (sample["dataset"], sample["template"]) == ("vqa_rad", TABLE["vqa_rad"].prompt)
    assert sample["image"].size[0] <= 224


@pytest.fixture
def pictures(tmp_path, tiny_images):
    """A folder with a.png and b.png, and what writes a file of records into it."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, image in zip("ab", tiny_images, strict=False):
        image.save(folder / f"{name}.png")

    def write(name, *records):
        (folder / name).write_text("\n".join(map(json.dumps, records)) + "\n")
        return folder / name

    return write


def texts(script, data, **options):
    items = training_data(script.sources(script.Recipe(data=str(data), **options)))
    return [(item["instruction"], item["response"]) for item in items]


def test_questions_take_the_prompt_and_instructions_none(script, pictures):
    asked = pictures("metadata.jsonl", {"file_name": "a.png", "question": "a {b} ?", "answer": "c"}).parent
    assert texts(script, asked, prompt="Q: {question} A:") == [("Q: a {b} ? A:", "c")]
    told = pictures("told.jsonl", {"image": "b.png", "instruction": "Say d.", "response": "D"})
    assert texts(script, told) == [("Say d.", "D")]


def test_captions_take_wordings_of_their_own(script, pictures):
    ((instruction, response),) = texts(script, pictures("a.jsonl", {"image": "a.png", "caption": "a wall"}))
    assert response == "a wall"
    assert "Question" not in instruction


def test_choices_are_listed_behind_the_question_or_where_the_prompt_says(script, pictures):
    data = pictures("a.jsonl", {"image": "a.png", "question": "a ?", "choices": ["b", "c"], "answer": "c"})
    assert texts(script, data, prompt="{question} {options}:") == [("a ? (a) b (b) c:", "c")]
    assert texts(script, data, prompt="Question: {question} Short answer:") == [
        ("Question: a ? Options: (a) b (b) c. Short answer:", "c")
    ]


def test_the_data_to_evaluate_on_are_a_file_or_a_split(script, pictures):
    record = {"image": "a.png", "question": "a ?", "answer": "b"}
    train, test = pictures("train.jsonl", record, record | {"answer": "c"}), pictures("test.jsonl", record)
    for data, evaluated in ((train, str(test)), (train.parent, "test")):
        sources = script.sources(script.Recipe(data=str(data), eval_data=evaluated))
        assert [len(dataset) for dataset in validation_data(sources).values()] == [1]
        assert len(training_data(sources)) == 2


def test_a_bad_row_is_named(script, pictures):
    good = {"image": "a.png", "question": "a", "answer": "b"}
    with pytest.raises(BadRowError, match=r"row 2: image '../model/config.json' is not a name inside the image folder"):
        texts(script, pictures("a.jsonl", good, good | {"image": "../model/config.json"}))
