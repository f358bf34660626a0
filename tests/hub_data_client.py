"""What a user's process does with data on the Hub; tests/datasets_builders/test_publishing.py runs it.

python hub_data_client.py push RESULTS FOLDER NAME... [--public] [--killed]   # FOLDER/NAME holds official files
python hub_data_client.py load RESULTS REPO                       # with instructblip
python hub_data_client.py load_without RESULTS REPO [--streaming]   # where it cannot be imported
"""

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

REPO = "org/mix"


def digest(image: Any) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


def push(results: Path, folder: str, *arguments: str) -> None:
    from huggingface_hub import HfApi

    from instructblip.datasets_builders import load, publishing

    publishing.READ_ROWS["image"] = 4  # so that a few rows make several shards
    names = [name for name in arguments if not name.startswith("--")]
    if "--killed" in arguments:
        kill_after(2, HfApi)
    commits, refused = {}, ""
    for name in names:
        rows = load(name, data_dir=f"{folder}/{name}", cache_dir=str(results / "cache"))
        options = {"private": "--public" not in arguments, "work_dir": results / "work", "shard_bytes": 2500, "seed": 7}
        try:
            commits |= publishing.push({name: rows}, REPO, **options)
        except ValueError as error:
            refused = str(error)
    (results / "push.json").write_text(json.dumps({"commits": commits, "refused": refused}))


def kill_after(uploads: int, api: Any) -> None:
    """End the process, without a word, when it is about to upload once more."""
    preupload = api.preupload_lfs_files
    done = []

    def count(*args: Any, **kwargs: Any) -> None:
        if len(done) == uploads:
            os._exit(9)
        preupload(*args, **kwargs)
        done.append(1)

    api.preupload_lfs_files = count


def load(results: Path, repo: str) -> None:
    from instructblip.datasets_builders import load

    found = {}
    for split, rows in load("vqa_rad", repo_id=repo).items():
        found[split] = [
            {"image_id": row["image_id"], "samples": row["samples"], "image": digest(row["image"])} for row in rows
        ]
    stream = load("vqa_rad", repo_id=repo, split="test", streaming=True)
    found["streamed"] = [row["image_id"] for row in stream]
    (results / "load.json").write_text(json.dumps(found))


def load_without(results: Path, repo: str, *arguments: str) -> None:
    from hub_client import Absent

    sys.meta_path.insert(0, Absent())
    import datasets

    report: dict[str, Any] = {"configs": datasets.get_dataset_config_names(repo)}
    for config in report["configs"]:
        report[config] = {}
        for split, rows in datasets.load_dataset(repo, config).items():
            found = {"columns": rows.column_names, "images": [digest(row["image"]) for row in rows]}
            found["texts"] = [{key: row[key] for key in ("samples", "instruction", "response")} for row in rows]
            if "--streaming" in arguments:
                stream = datasets.load_dataset(repo, config, split=split, streaming=True)
                found["streamed"] = [digest(row["image"]) for row in stream]
                found["shards"] = stream.num_shards
                iterator = iter(stream)
                next(iterator)
                stream.load_state_dict(stream.state_dict())
                found["resumed"] = [digest(row["image"]) for row in stream]
            report[config][split] = found
    report["imported"] = [name for name in sys.modules if name.split(".")[0] == "instructblip"]
    (results / "load_without.json").write_text(json.dumps(report))


if __name__ == "__main__":
    command, results, *arguments = sys.argv[1:]
    {"push": push, "load": load, "load_without": load_without}[command](Path(results), *arguments)
