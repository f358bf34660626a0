import importlib.util
import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPImageProcessorPil

import instructblip
from instructblip.datasets_builders.official_files import BadRowError

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
    options = script.FineTuning(model="", data="vqa_rad", data_dir=str(EXAMPLES / "vqa_rad" / "data"))
    sample = script.dataset("test", "test", options)[0]
    assert sample["dataset"] == "vqa_rad"
    assert sample["image"].size[0] <= 224


def test_samples_take_the_prompt_and_an_image_folders_file_names(script, tmp_path, tiny_images):
    tiny_images[0].save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "question": "a {b} ?", "answer": "c"}\n')
    samples = script.read_samples(str(tmp_path / "metadata.jsonl"), "Q: {question} A:")
    assert samples == [{"image": str(tmp_path / "a.png"), "instruction": "Q: a {b} ? A:", "response": "c"}]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"image": "gone.png", "question": "a", "answer": "b"}', "image 'gone.png' is not in"),
        ('{"image": "../model/config.json", "question": "a", "answer": "b"}', "not a name inside the image folder"),
        ('{"image": "a.png", "question": "a"}', "'answer' is missing"),
        ("{", "not JSON"),
    ],
)
def test_a_bad_row_is_named(script, tmp_path, tiny_images, line, complaint):
    tiny_images[0].save(tmp_path / "a.png")
    (tmp_path / "train.jsonl").write_text('{"image": "a.png", "question": "a", "answer": "b"}\n' + line + "\n")
    with pytest.raises(BadRowError, match=complaint) as caught:
        script.read_samples(str(tmp_path / "train.jsonl"), "{question}")
    assert caught.value.row == 2
