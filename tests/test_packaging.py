"""The wheel holds the whole package and nothing else, and importing it stays light."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import instructblip

ROOT = Path(__file__).parent.parent
SUBPACKAGES = ("modeling", "processing", "training", "datasets_builders", "eval_tasks")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Names in a wheel that pip builds from a copy of the tree, without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    for path in source_files():
        target = tree / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / path).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "--wheel-dir", folder, tree], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def source_files():
    """Paths, from the root, of what the build reads."""
    names = ["setup.py", "pyproject.toml", "README.md", "LICENSE"]
    for folder in ("src/instructblip", *SUBPACKAGES):
        files = (ROOT / folder).rglob("*")
        names += [str(path.relative_to(ROOT)) for path in files if path.is_file() and "__pycache__" not in path.parts]
    return names


def test_the_wheel_holds_every_source_file(wheel):
    expected = {
        str(Path(name).relative_to("src")) if name.startswith("src/") else f"instructblip/{name}"
        for name in source_files()
        if "/" in name
    }
    assert {name for name in wheel if name.startswith("instructblip/")} == expected
    assert "instructblip/py.typed" in expected
    assert any(name.endswith(".yaml") for name in expected)


def test_the_wheel_puts_nothing_else_at_the_top_level(wheel):
    assert {name.split("/")[0] for name in wheel} == {
        "instructblip",
        f"instructblip-{instructblip.__version__}.dist-info",
    }


def test_the_wheel_carries_licence_and_commands(wheel):
    info = f"instructblip-{instructblip.__version__}.dist-info"
    assert "Apache License" in wheel[f"{info}/licenses/LICENSE"]
    assert "License-Expression: Apache-2.0" in wheel[f"{info}/METADATA"]
    assert "instructblip-eval = instructblip.eval_tasks.__main__:main" in wheel[f"{info}/entry_points.txt"]


def test_importing_the_package_imports_nothing_heavy():
    program = "import sys, instructblip; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not set(loaded) & {"datasets", "lm_eval", "trl", "peft", "torchvision", "av", "matplotlib", "gradio"}


def test_the_registered_classes_are_ours():
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForImageTextToText,
        AutoModelForMultimodalLM,
        AutoModelForPreTraining,
    )

    config = AutoConfig.for_model("instruct_blip")
    assert type(config) is instructblip.InstructBLIPConfig
    for auto_class in (AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM):
        assert auto_class._model_mapping[type(config)] is instructblip.InstructBLIPForConditionalGeneration
    assert AutoModelForPreTraining._model_mapping[type(config)] is instructblip.InstructBLIPForPreTraining


def test_classes_of_transformers_stay_what_they_were():
    from transformers import AutoConfig, AutoModelForImageTextToText, InstructBlipForConditionalGeneration

    theirs = AutoConfig.for_model("instructblip")
    assert AutoModelForImageTextToText._model_mapping[type(theirs)] is InstructBlipForConditionalGeneration
