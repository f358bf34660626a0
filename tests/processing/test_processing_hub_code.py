"""The folder is copied to the Hub as it is, so its files may import only each other and what every user has."""

import ast
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_imports

import instructblip.processing as package
import instructblip.processing.processing_instruct_blip as module

FILES = sorted(Path(package.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_files_import_siblings_by_name_only(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1
            assert node.module is not None
            assert path.with_name(f"{node.module}.py").is_file()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_files_need_no_package_that_transformers_users_may_lack(path):
    allowed = {"torch", "transformers", "numpy", "PIL", *__import__("sys").stdlib_module_names}
    assert set(get_imports(path)) <= allowed  # imports inside `try` do not count: PyAV is optional


def test_the_processor_reaches_every_file_it_needs_without_the_collator():
    assert not hasattr(module, "InstructBLIPCollator")
