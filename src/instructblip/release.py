"""Releases on the Hub: weights, processor, code and model card, pushed together in one commit."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitInfo, EvalResult, HfApi, ModelCard, ModelCardData

from instructblip.modeling import InstructBLIPForConditionalGeneration
from instructblip.processing import InstructBLIPProcessor

WEIGHTS = ["model*.safetensors", "model.safetensors.index.json"]

CITATION = """@inproceedings{dai2023instructblip,
  title     = {{InstructBLIP}: Towards General-purpose Vision-Language Models with Instruction Tuning},
  author    = {Dai, Wenliang and Li, Junnan and Li, Dongxu and Tiong, Anthony Meng Huat and Zhao, Junqi and
               Wang, Weisheng and Li, Boyang and Fung, Pascale and Hoi, Steven},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {36},
  year      = {2023}
}"""


def write_model_card(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    backbones: dict[str, dict] | None = None,
    bridge_only: bool = False,
    license: str | None = None,
    datasets: Sequence[str] = (),
    training_data: str | None = None,
    results: Sequence[EvalResult] = (),
) -> ModelCard:
    """Write the README.md of a release into `folder`.

    Args:
        repo_id: where the release will be, "owner/name".
        backbones: the frozen parts, as in `config.backbones`: `{"vision": {"repo", "revision"}, "language": {...}}`.
        bridge_only: whether the release holds the trained tensors only.
        license: Hub id of the licence of what the release itself holds ("apache-2.0"); left out if None.
        datasets: Hub ids of the training data, for the card's metadata.
        training_data: what the bridge was tuned on, in words (Markdown).
        results: one per metric and data set; shown in a table, and by the Hub as model-index.

    Returns:
        the card, as written.
    """
    data = ModelCardData(
        base_model=sorted({where["repo"] for where in (backbones or {}).values()}) or None,
        datasets=list(datasets) or None,
        language="en",
        library_name="transformers",
        license=license,
        pipeline_tag="image-text-to-text",
        tags=["custom_code", "instructblip"],
        model_name=repo_id.split("/")[-1] if results else None,
        eval_results=list(results) or None,
    )
    sections = [
        f"# {repo_id.split('/')[-1]}",
        "An [InstructBLIP](https://arxiv.org/abs/2305.06500) model: a Q-Former reads an image together with the "
        "instruction and hands what it found to a frozen language model, which answers in text.",
        "## How to use",
        _usage(repo_id),
        "## What is in here",
        _contents(bridge_only, backbones),
    ]
    if training_data or datasets:
        listed = ", ".join(f"[{name}](https://huggingface.co/datasets/{name})" for name in datasets)
        sections += ["## Training data", "\n\n".join(filter(None, [training_data, listed]))]
    if results:
        sections += ["## Results", _results_table(results)]
    sections += ["## Citation", f"```bibtex\n{CITATION}\n```"]
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")
    card.save(Path(folder) / "README.md")
    return card


def push_release(
    model: InstructBLIPForConditionalGeneration,
    processor: InstructBLIPProcessor,
    repo_id: str,
    *,
    bridge_only: bool = False,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str = "Upload model, processor and card",
    license: str | None = None,
    datasets: Sequence[str] = (),
    training_data: str | None = None,
    results: Sequence[EvalResult] = (),
) -> CommitInfo:
    """Push model, processor, their code and a model card to the Hub in one commit.

    The repository is made if it is missing; weights of an earlier release in it are replaced.

    Args:
        bridge_only: push the trained tensors and the names of the frozen backbones instead of all weights.
        private: for a new repository; None is the Hub's default.
        license, datasets, training_data, results: for the card, see [`write_model_card`].

    Raises:
        ValueError: model and processor do not fit, or a bridge-only release could not be put together elsewhere,
            because a backbone is a local folder or has no commit. Nothing is pushed.
    """
    processor.check_compatible(model.config)
    backbones = model.known_backbones
    if bridge_only:
        _check_backbones(backbones)
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, bridge_only=bridge_only)
        processor.save_pretrained(folder)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        write_model_card(
            folder,
            repo_id,
            backbones={part: where for part, where in (backbones or {}).items() if not os.path.isdir(where["repo"])},
            bridge_only=bridge_only,
            license=license,
            datasets=datasets,
            training_data=training_data,
            results=results,
        )
        return api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message=commit_message, delete_patterns=WEIGHTS
        )


def _check_backbones(backbones: dict[str, dict] | None) -> None:
    """Raise if a bridge-only release with these backbones would load on this machine only."""
    for part, where in (backbones or {}).items():
        if os.path.isdir(where["repo"]):
            raise ValueError(
                f"the {part} backbone is the local folder {where['repo']}: push it and set "
                f"config.backbones[{part!r}], or push a full release"
            )
        if not where.get("revision"):
            raise ValueError(f"the {part} backbone {where['repo']} has no commit: set config.backbones[{part!r}]")


def _usage(repo_id: str) -> str:
    return f"""```python
import instructblip  # registers the classes; without the package, pass trust_remote_code=True below
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained("{repo_id}")
model = AutoModelForImageTextToText.from_pretrained("{repo_id}")
inputs = processor(images=Image.open("photo.jpg"), text="What is in the picture?")
answer = model.generate(**inputs, max_new_tokens=30)
print(processor.batch_decode(answer, skip_special_tokens=True)[0])
```

The code in this repository runs without the package: `from_pretrained("{repo_id}", trust_remote_code=True)`, for model
and processor."""


def _contents(bridge_only: bool, backbones: dict[str, dict] | None) -> str:
    roles = {"vision": "vision tower", "language": "language model"}
    rows = [
        f"| {roles[part]} | [{where['repo']}](https://huggingface.co/{where['repo']}) | `{where.get('revision')}` |"
        for part, where in (backbones or {}).items()
    ]
    table = ["| frozen part | from | commit |", "| --- | --- | --- |", *rows] if rows else []
    if bridge_only:
        words = (
            "Only what was trained: the Q-Former, its query tokens, the projection and the last LayerNorm of the "
            "vision tower. The frozen parts are downloaded from their owners when the model is loaded."
        )
    else:
        words = "All weights, those of the frozen vision tower and language model included."
    owners = "The licences of the frozen parts stay with their owners, and apply to the whole model."
    return "\n\n".join(filter(None, [words, "\n".join(table), owners]))


def _results_table(results: Sequence[EvalResult]) -> str:
    rows = [
        f"| {result.dataset_name} | {result.dataset_split or ''} | {result.metric_name or result.metric_type} "
        f"| {result.metric_value} |"
        for result in results
    ]
    return "\n".join(["| data set | split | metric | value |", "| --- | --- | --- | --- |", *rows])
