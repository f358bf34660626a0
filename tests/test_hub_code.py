"""The files of modeling/ and processing/ are copied into releases, and run there with nothing but each other."""

import ast
import sys
from pathlib import Path

import pytest
from transformers import BlipImageProcessorPil
from transformers.dynamic_module_utils import get_relative_imports

import instructblip.modeling
import instructblip.processing
from instructblip import InstructBLIPForPreTraining, InstructBLIPProcessor

FOLDERS = {name: Path(getattr(instructblip, name).__file__).parent for name in ("modeling", "processing")}
FILES = [path for folder in FOLDERS.values() for path in sorted(folder.glob("*.py"))]
EVERYWHERE = {"torch", "transformers", "numpy", "PIL", "safetensors", *sys.stdlib_module_names}

every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")


def imported(path):
    """(level, module, names) of every import statement, those under TYPE_CHECKING and inside functions included."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield node.level, node.module, [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from ((0, alias.name, []) for alias in node.names)


def needed_files(path):
    """A file and what it imports from its folder, as the copier in transformers finds them: by regular expression."""
    found, queue = set(), [path]
    while queue:
        path = queue.pop()
        if path not in found:
            found.add(path)
            queue += [path.with_name(f"{name}.py") for name in get_relative_imports(path)]
    return {path.name for path in found}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_flat_and_holds_only_python(name):
    entries = [path for path in FOLDERS[name].iterdir() if path.name != "__pycache__"]
    assert [path.name for path in entries if path.suffix != ".py"] == []


def test_no_file_name_occurs_in_both_folders():
    modeling, processing = ({path.name for path in folder.glob("*.py")} for folder in FOLDERS.values())
    assert modeling & processing == {"__init__.py"}


@every_file
def test_relative_imports_name_a_sibling_and_something_in_it(path):
    for level, module, names in imported(path):
        if level:
            assert level == 1
            assert module is not None, f"`from . import {', '.join(names)}` is not copied"
            assert path.with_name(f"{module}.py").is_file()


@every_file
def test_what_the_copier_finds_exists(path):
    """It also reads docstrings: a line there that begins like a relative import would break every save."""
    assert [name for name in get_relative_imports(path) if not path.with_name(f"{name}.py").is_file()] == []


@every_file
def test_absolute_imports_are_there_wherever_transformers_is(path):
    optional = {"av"}  # behind an error that says what to install
    packages = {module.split(".")[0] for level, module, _ in imported(path) if not level}
    assert packages <= EVERYWHERE | optional


def test_saving_model_and_processor_copies_exactly_the_files_they_need(
    tmp_path, tiny_model, llama_tokenizer, qformer_tokenizer
):
    image_processor = BlipImageProcessorPil(size={"height": 28, "width": 28})
    tiny_model("llama").save_pretrained(tmp_path)
    InstructBLIPProcessor(image_processor, llama_tokenizer, qformer_tokenizer, 4).save_pretrained(tmp_path)
    needed = needed_files(FOLDERS["modeling"] / "modeling_instruct_blip.py")
    needed |= needed_files(FOLDERS["processing"] / "processing_instruct_blip.py")
    assert {path.name for path in tmp_path.glob("*.py")} == needed
    assert not needed & {"__init__.py", "convert_lavis.py", "collator.py", "modeling_pretraining.py"}


def test_saving_a_stage_1_model_copies_exactly_the_files_it_needs(tmp_path, tiny_config):
    InstructBLIPForPreTraining(tiny_config()).save_pretrained(tmp_path)
    needed = needed_files(FOLDERS["modeling"] / "modeling_pretraining.py")
    assert {path.name for path in tmp_path.glob("*.py")} == needed
    assert not needed & {"__init__.py", "convert_lavis.py"}
