import importlib.util
import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoProcessor,
    BertConfig,
    BertForPreTraining,
    CLIPImageProcessorPil,
    SiglipVisionConfig,
)

import instructblip
from instructblip.datasets_builders.data_sources import training_data, validation_data
from instructblip.datasets_builders.official_files import BadRowError
from instructblip.datasets_builders.table import TABLE

EXAMPLES = Path(__file__).parents[2] / "examples"
TOWER = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=28)
TOWER |= dict(patch_size=7, vision_use_head=False)
BERT = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32)
BERT |= dict(max_position_embeddings=128)


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
    sides = dict(hidden_size=48, intermediate_size=64)  # multiples of 16, which float8 needs
    tiny_model("llama", text=sides, image_token_index=processor.image_token_id).save_pretrained(tmp_path / "model")
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
        "model": model_folder and str(model_folder),
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


def test_a_language_model_in_float8_trains_and_its_bridge_is_saved(script, model_folder, questions, tmp_path, capsys):
    script.main(settings(model_folder, tmp_path, data=str(questions), quantize="fp8"))
    bridge = load_file(tmp_path / "out" / "release" / "model.safetensors")
    before = load_file(model_folder / "model.safetensors")
    assert set(bridge) < set(before)
    assert not torch.equal(bridge["query_tokens"], before["query_tokens"])
    with pytest.raises(ValueError, match="quantize fp8 is for a language model.* and for release: bridge"):
        script.main(settings(model_folder, tmp_path, data=str(questions), quantize="fp8", release="full"))


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


# ---- recipes and stages


def test_a_recipe_stands_on_those_that_it_includes(script, tmp_path):
    (tmp_path / "base.yaml").write_text("learning_rate: 1.0e-3\nmodel: base\nmax_steps: 7\n")
    (tmp_path / "middle.yaml").write_text("include: base.yaml\nmodel: middle\n")
    (tmp_path / "top.yaml").write_text("include: middle.yaml\ndata: mine\nuse_cpu: true\n")
    changed = ["--learning_rate", "1e-2", "--data", "null"]
    recipe, training = script.parse(["--config", str(tmp_path / "top.yaml"), *changed])
    assert (recipe.model, recipe.data, training.max_steps, training.learning_rate) == ("middle", None, 7, 1e-2)


def test_a_misspelled_field_is_named(script, tmp_path):
    (tmp_path / "a.yaml").write_text("learning_rat: 1.0e-3\nuse_cpu: true\n")
    with pytest.raises(ValueError, match="no such fields: --learning_rat"):
        script.parse(["--config", str(tmp_path / "a.yaml")])


def test_one_kind_of_data_is_expected(script):
    for recipe in (script.Recipe(), script.Recipe(data="vqa_rad", mixture="mixture.yaml")):
        with pytest.raises(ValueError, match="give either data, one dataset, or mixture"):
            script.sources(recipe)


def test_what_the_user_can_mend_is_one_line_and_no_traceback(script, model_folder, pictures, tmp_path, capsys):
    good = {"image": "a.png", "question": "a", "answer": "b"}
    bad = pictures("a.jsonl", good, good | {"image": "../b.png"})

    def said(arguments):
        with pytest.raises(SystemExit, match="^2$"):
            script.command(arguments)
        return capsys.readouterr().err.splitlines()[-1]

    line = said(settings(model_folder, tmp_path, data=str(bad)))
    assert line.startswith("examples/train.py: ")
    assert line.endswith("a.jsonl, row 2: image '../b.png' is not a name inside the image folder")
    assert "gone.jsonl" in said(settings(model_folder, tmp_path, data=str(tmp_path / "gone.jsonl")))
    assert "give either data, one dataset, or mixture" in said(settings(model_folder, tmp_path, data=None))
    assert "No such file or directory: '/gone.yaml'" in said(["--config", "/gone.yaml"])


@pytest.mark.parametrize("error", [ValueError("of a library"), RuntimeError("of ours")])
def test_what_nobody_expected_keeps_its_traceback(script, model_folder, tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(script, "sources", fail)
    with pytest.raises(type(error), match=str(error)):
        script.command(settings(model_folder, tmp_path))


@pytest.fixture
def mixture(tmp_path, tiny_images, questions):
    """A list of two datasets of one's own, questions and captions; both are validated."""
    captions = tmp_path / "captions"
    captions.mkdir()
    lines = []
    for number, image in enumerate(tiny_images[4:]):
        image.save(captions / f"{number}.png")
        lines.append({"image": f"{number}.png", "caption": "a photo of a red dog"})
    (captions / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    entries = [
        {"dataset": str(questions), "name": "questions", "validation": "train"},
        {"dataset": str(captions / "captions.jsonl"), "name": "captions", "validation": "train[:2]"},
    ]
    (tmp_path / "mixture.yaml").write_text(yaml.safe_dump(entries))
    return str(tmp_path / "mixture.yaml")


STEPS = dict(max_steps=2, logging_steps=1, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1)


def logged(folder):
    """Every logged value of a run: name -> values."""
    history = json.loads(max(folder.glob("checkpoint-*")).joinpath("trainer_state.json").read_text())["log_history"]
    return {
        key: [entry[key] for entry in history if key in entry] for key in {key for entry in history for key in entry}
    }


def test_a_mixture_reports_each_dataset_and_keeps_the_best(script, model_folder, mixture, tmp_path):
    options = dict(mixture=mixture, data=None, predict_with_generate=True, metric_for_best_model="score")
    script.main(settings(model_folder, tmp_path, per_device_train_batch_size=8, **options, **STEPS))
    values = logged(tmp_path / "out")
    assert {"loss/questions", "loss/captions", "token_accuracy/captions", "eval_captions_loss"} <= set(values)
    assert len(values["eval_questions_accuracy"]) == 2
    assert values["eval_score"] == values["eval_questions_accuracy"]  # captions have no score
    assert (tmp_path / "out" / "release" / "model.safetensors").is_file()


@pytest.mark.parametrize("streaming", [False, True])
def test_homogeneous_batches_streams_and_ablations_are_switches(
    script, model_folder, mixture, questions, tmp_path, streaming
):
    entries = [{**entry, "size": 4, "validation": None} for entry in yaml.safe_load(Path(mixture).read_text())]
    Path(mixture).write_text(yaml.safe_dump(entries))
    options = dict(mixture=mixture, data=None, style="plain", sampling="uniform", qformer_text_input=False, max_steps=2)
    more = dict(streaming=streaming, homogeneous_batches=True, load_best_model_at_end=False)
    script.main(settings(model_folder, tmp_path, prompt=None, **options, **more))
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out" / "release")
    assert model.config.qformer_text_input is False


def test_a_benchmark_is_fine_tuned_by_its_recipe(script, model_folder, tmp_path):
    recipe = yaml.safe_load((EXAMPLES / "recipes" / "downstream_okvqa.yaml").read_text())
    changed = {**recipe, "include": str(EXAMPLES / "recipes" / "downstream.yaml"), "model": str(model_folder)}
    changed |= {"data": "vqa_rad", "data_dir": str(EXAMPLES / "vqa_rad" / "data"), "bf16": False, "use_cpu": True}
    changed |= {
        "train_split": "test[:4]",
        "eval_data": "test[4:6]",
        "output_dir": str(tmp_path / "out"),
        "max_steps": 2,
    }
    changed |= {"dataloader_num_workers": 0, "report_to": "none", "disable_tqdm": True, **STEPS}
    (tmp_path / "downstream.yaml").write_text(yaml.safe_dump(changed))
    script.main(["--config", str(tmp_path / "downstream.yaml")])
    values = logged(tmp_path / "out")
    assert len(values["eval_accuracy"]) == len(values["eval_token_accuracy"]) == 2


@pytest.fixture
def backbones(tmp_path, tiny_config, llama_tokenizer, t5_tokenizer, qformer_tokenizer):
    """Folders as the Hub has them: a vision tower, a T5, a LLaMA and a BERT, each with what reads for it."""
    vision = AutoModel.from_config(SiglipVisionConfig(**TOWER))
    vision.save_pretrained(tmp_path / "vision")
    CLIPImageProcessorPil(size={"height": 28, "width": 28}, do_center_crop=False).save_pretrained(tmp_path / "vision")
    for name, auto, tokenizer in (
        ("t5", AutoModelForSeq2SeqLM, t5_tokenizer),
        ("llama", AutoModelForCausalLM, llama_tokenizer),
    ):
        auto.from_config(tiny_config(name).text_config).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    BertForPreTraining(BertConfig(vocab_size=len(qformer_tokenizer) - 1, **BERT)).save_pretrained(tmp_path / "bert")
    qformer_tokenizer.save_pretrained(tmp_path / "bert")
    return {name: str(tmp_path / name) for name in ("vision", "t5", "llama", "bert")}


@pytest.mark.parametrize("language", ["t5", "llama"])
def test_each_stage_starts_from_the_one_before(script, backbones, mixture, questions, tmp_path, language):
    captions = yaml.safe_load(Path(mixture).read_text())[1]["dataset"]
    common = dict(max_steps=2, logging_steps=1, save_strategy="steps", load_best_model_at_end=False, prompt=None)
    vision, bert = backbones["vision"], backbones["bert"]

    def run(stage, **options):
        folder = tmp_path / f"stage{stage}"
        script.main(settings(None, tmp_path, stage=stage, output_dir=str(folder), **common, **options))
        return str(folder / "release")

    first = run(1, data=captions, vision_model=vision, bert=bert)
    assert {"loss_itc", "loss_itm", "loss_itg"} <= set(logged(tmp_path / "stage1"))
    second = run(2, data=captions, stage1=first, vision_model=vision, language_model=backbones[language], bert=bert)
    third = run(3, data=str(questions), model=second)
    stages = [load_file(Path(folder) / "model.safetensors") for folder in (first, second, third)]
    words = "qformer.embeddings.word_embeddings.weight"
    torch.testing.assert_close(stages[1][words], stages[0][words])  # stage 2 reads no text, and keeps what read it
    assert not torch.equal(stages[2][words], stages[1][words])
    assert not torch.equal(stages[1]["query_tokens"], stages[0]["query_tokens"])
    model = AutoModelForImageTextToText.from_pretrained(third)
    assert model.config.qformer_text_input
