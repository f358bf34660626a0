from pathlib import Path

from setuptools import setup

# These folders stay at the top of the checkout; installed, they are subpackages of `instructblip`.
SUBPACKAGES = ["modeling", "processing", "training", "datasets_builders", "eval_tasks"]

setup(
    name="instructblip",
    version="0.1.0",
    description="InstructBLIP for transformers: an instruction-aware Q-Former between any vision tower and any LLM",
    long_description=Path(__file__).with_name("README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    packages=["instructblip", *(f"instructblip.{name}" for name in SUBPACKAGES)],
    package_dir={"instructblip": "src/instructblip", **{f"instructblip.{name}": name for name in SUBPACKAGES}},
    package_data={
        "instructblip": ["py.typed"],
        "instructblip.datasets_builders": ["specs/*.yaml"],
        "instructblip.eval_tasks": ["*.yaml"],
    },
    python_requires=">=3.11",  # as transformers 5.23
    install_requires=[
        "accelerate",
        "datasets>=5.2,<6",
        "huggingface_hub>=2",
        "numpy",
        "peft",
        "Pillow",
        "PyYAML",
        "safetensors",
        "torch>=2.11",
        "transformers>=5.23,<6",
        "trl",
    ],
    extras_require={
        "datatrove": ["datatrove"],
        "eval": ["lm-eval>=0.4.13", "scikit-learn"],
        "video": ["av"],
        "dev": [
            "bitsandbytes; sys_platform == 'linux'",
            "hypothesis",
            "pyrefly",
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
            "setuptools>=77",
        ],
    },
    entry_points={
        "console_scripts": [
            "instructblip-data = instructblip.datasets_builders.__main__:main",
            "instructblip-eval = instructblip.eval_tasks.__main__:main",
            "instructblip-convert-lavis = instructblip.modeling.convert_lavis:main",
        ]
    },
)
