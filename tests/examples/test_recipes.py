"""Every recipe is what its comments say: it parses into the real options, and its numbers are the paper's."""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from instructblip.datasets_builders.data_sources import read_sources
from instructblip.datasets_builders.mixture import paper_probabilities, sampling_probabilities
from instructblip.datasets_builders.table import TABLE

EXAMPLES = Path(__file__).parents[2] / "examples"
RECIPES = sorted((EXAMPLES / "recipes").glob("*.yaml"))
LISTS = ("mixture", "captions")  # of datasets
SHARED = ("instruct", "downstream")  # included by others
RUN = [path for path in RECIPES if path.stem not in (*LISTS, *SHARED)]
GPUS = 16  # of the paper, and of the recipes that reproduce it
BATCHES = {  # samples a step
    "stage1": 1680,
    "stage2": 1520,
    "stage2_flan_t5_xxl": 1520,
    "stage2_vicuna_7b": 1920,
    "stage2_vicuna_13b": 1920,
    "instruct_flan_t5_xl": 192,
    "instruct_vicuna_7b": 128,
    "instruct_flan_t5_xxl": 64,
    "instruct_vicuna_13b": 64,
}
STAGE2 = {  # variant: recipe, language model
    "flan_t5_xl": ("stage2", "google/flan-t5-xl"),
    "flan_t5_xxl": ("stage2_flan_t5_xxl", "google/flan-t5-xxl"),
    "vicuna_7b": ("stage2_vicuna_7b", "lmsys/vicuna-7b-v1.1"),
    "vicuna_13b": ("stage2_vicuna_13b", "lmsys/vicuna-13b-v1.1"),
}
every_recipe = pytest.mark.parametrize("path", RUN, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("examples_train_recipes", EXAMPLES / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def parsed(script, monkeypatch):
    """A factory: a recipe's options on this machine, which has no GPU for bfloat16."""
    monkeypatch.chdir(EXAMPLES.parent)

    def parse(name, *more):
        path = EXAMPLES / "recipes" / f"{name}.yaml"
        return script.parse(["--config", str(path), "--use_cpu", "true", "--bf16", "false", *more])

    return parse


@every_recipe
def test_a_recipe_parses_into_the_options_of_the_script(parsed, path):
    recipe, training = parsed(path.stem)
    assert recipe.stage in (1, 2, 3)
    assert (recipe.data is None) != (recipe.mixture is None)
    assert training.output_dir.startswith("outputs/")


@pytest.mark.parametrize(("name", "batch"), BATCHES.items())
def test_a_step_has_as_many_samples_as_the_papers(parsed, name, batch):
    _, training = parsed(name)
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps * GPUS == batch
    text = (EXAMPLES / "recipes" / f"{name}.yaml").read_text()
    assert f"{batch} samples a step" in text
    assert f"on {GPUS} GPUs" in text


@pytest.mark.parametrize("name", [name for name in BATCHES if name.startswith("instruct")])
def test_instruction_tuning_is_the_papers(parsed, name):
    recipe, training = parsed(name)
    assert (training.max_steps, training.warmup_steps, training.eval_steps) == (60_000, 1000, 3000)
    assert (training.learning_rate, str(training.lr_scheduler_type.value)) == (1e-5, "cosine")
    assert (training.adam_beta1, training.adam_beta2, training.weight_decay) == (0.9, 0.999, 0.05)
    assert training.load_best_model_at_end
    assert (training.metric_for_best_model, training.greater_is_better) == ("score", True)
    assert (recipe.sampling, recipe.style, recipe.qformer_text_input) == ("sqrt", "natural", True)
    assert training.homogeneous_batches
    assert training.language_model_dropout


@pytest.mark.parametrize(
    ("name", "steps", "scheduler", "options"),
    [("stage1", 250_000, "cosine", {})]
    + [(name, 80_000, "cosine_with_min_lr", {"min_lr": 5e-5}) for name, _ in STAGE2.values()],
)
def test_the_stages_before_are_blip2s(parsed, name, steps, scheduler, options):
    _, training = parsed(name)
    assert (training.max_steps, training.warmup_steps, training.learning_rate) == (steps, 2000, 1e-4)
    assert (training.adam_beta1, training.adam_beta2, training.weight_decay) == (0.9, 0.98, 0.05)
    assert (training.lr_scheduler_type.value, training.lr_scheduler_kwargs or {}) == (scheduler, options)


def test_the_mixture_is_the_papers_13_datasets_with_its_shares():
    sources = read_sources(str(EXAMPLES / "recipes" / "mixture.yaml"), "data")
    labels = [source.label for source in sources]
    assert sorted(labels) == sorted(name for name, entry in TABLE.items() if entry.role == "held_in")
    sizes = {source.label: TABLE[source.dataset].sampling_size for source in sources}
    factors = {source.label: source.factor * TABLE[source.dataset].sampling_factor for source in sources}
    expected = paper_probabilities(labels)
    assert sampling_probabilities(sizes, "sqrt", factors=factors) == pytest.approx(expected)


def test_a_mixtures_folders_are_below_the_root():
    sources = {source.label: source for source in read_sources(str(EXAMPLES / "recipes" / "mixture.yaml"), "/data")}
    assert sources["vqg_okvqa"].options["data_dir"] == "/data/okvqa"
    assert sources["okvqa"].options["image_dirs"] == ("/data/coco/train2014", "/data/coco/val2014")
    assert "data_dir" not in sources["ocr_vqa"].options


@every_recipe
def test_every_value_says_where_it_is_from(path):
    """A comment in its line, or the next; names of files and data speak for themselves."""
    own = ("include", "mixture", "output_dir", "data", "data_dir", "data_config", "eval_data", "stage")
    lines = path.read_text().splitlines()
    included = re.match(r"include: (\S+)", "\n".join(line for line in lines if line.startswith("include")))
    if included:
        lines += (path.parent / included[1]).read_text().splitlines()
    for line in lines:
        key = line.partition(":")[0]
        if line and not line.startswith(("#", " ")) and key not in own:
            assert "#" in line, f"{path.name}: {line}"


@pytest.mark.parametrize(
    "switch",
    [("--qformer_text_input", "false"), ("--sampling", "uniform"), ("--sampling", "proportional"),
     ("--style", "plain"), ("--style", "tagged"), ("--homogeneous_batches", "false")],
)  # fmt: skip
def test_an_ablation_is_one_switch(parsed, switch):
    options = {**vars(parsed("instruct_flan_t5_xl", *switch)[0]), **vars(parsed("instruct_flan_t5_xl", *switch)[1])}
    assert str(options[switch[0].removeprefix("--")]).lower() == switch[1]


@pytest.mark.parametrize("variant", STAGE2)
def test_each_stage_begins_with_what_the_one_before_wrote(parsed, variant):
    name, language_model = STAGE2[variant]
    recipe, training = parsed(name)
    assert parsed(f"instruct_{variant}")[0].model == f"{training.output_dir}/release"
    assert (recipe.stage, recipe.language_model) == (2, language_model)
    assert recipe.stage1 == f"{parsed('stage1')[1].output_dir}/release"


def test_a_variant_is_launched_alike_in_both_stages():
    def launched(name):
        text = (EXAMPLES / "recipes" / f"{name}.yaml").read_text()
        assert f"--config examples/recipes/{name}.yaml" in text
        return re.search(r"--config_file (\S+) --num_processes \d+", text)[0]

    for variant, (name, _) in STAGE2.items():
        assert launched(name) == launched(f"instruct_{variant}")


def test_variants_differ_in_model_folder_and_batch_only():
    for path in RECIPES:
        if path.stem.startswith(("instruct_", "stage2_")):
            values = yaml.safe_load(path.read_text())
            assert set(values) == {
                "model" if path.stem.startswith("instruct_") else "language_model",
                "include", "output_dir", "per_device_train_batch_size", "gradient_accumulation_steps",
            }  # fmt: skip


def test_downstream_recipes_name_a_dataset_and_ask_in_the_words_of_its_evaluation(parsed, script):
    names = [path.stem for path in RUN if path.stem.startswith("downstream")]
    asked = set()
    for name in names:
        (source,) = script.sources(parsed(name)[0])
        asked.add((source.dataset, source.options.get("config")))
        assert source.validation
        expected = TABLE["vqav2"].prompt if source.task == "vqa" else TABLE[source.dataset].prompt
        assert source.prompt == expected
    assert asked == {
        ("scienceqa", None),
        ("ocr_vqa", None),
        ("okvqa", None),
        ("aokvqa", "direct_answer"),
        ("aokvqa", "multiple_choice"),
    }
