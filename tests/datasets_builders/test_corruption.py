"""Broken annotation files and images never pass silently, and never fail without naming the file.

Small parts of real official files are mutated at random, each mutation with its own seed. `INSTRUCTBLIP_MUTATIONS`
says how many to try:

    INSTRUCTBLIP_MUTATIONS=10000 pytest tests/datasets_builders/test_corruption.py
"""

import copy
import dataclasses
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from instructblip.datasets_builders import builder
from instructblip.datasets_builders.official_files import BadRowError

MUTATIONS = int(os.environ.get("INSTRUCTBLIP_MUTATIONS", "400"))
REAL = Path(__file__).parents[3] / "shared" / "data"
VQA_RAD = Path(__file__).parents[2] / "examples" / "vqa_rad" / "data"


@dataclasses.dataclass
class Case:
    """A dataset cut down to a few rows of its real files."""

    name: str
    config: str | None
    split: str
    annotation: str  # the file to break, relative to the folder
    write: Callable[[Path], None]
    free: tuple[str, ...] = ()  # fields that any value of the right type, or none, will do for


def vqa_rad(folder):
    records = json.loads((VQA_RAD / "trainset.json").read_text())[:6]
    (folder / "images").mkdir()
    for record in records:
        shutil.copy(VQA_RAD / "images" / record["image_name"], folder / "images")
    (folder / "trainset.json").write_text(json.dumps(records))


def vsr(folder):
    (folder / "images").mkdir()
    for image in [*(REAL / "coco_mini").glob("*2017/*.jpg")]:
        (folder / "images" / image.name).symlink_to(image)
    shutil.copy(REAL / "coco_mini" / "vsr_on_these_images.jsonl", folder / "train.jsonl")


def coco_caption(folder):
    content = json.loads((REAL / "coco_mini" / "annotations" / "captions_val2017.json").read_text())
    content["images"] = content["images"][:3]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in kept]
    (folder / "val2017").mkdir()
    for image in content["images"]:
        shutil.copy(REAL / "coco_mini" / "val2017" / image["file_name"], folder / "val2017")
    (folder / "captions_val2017.json").write_text(json.dumps(content))


def nlvr(folder):
    lines = (REAL / "nlvr" / "dev" / "dev.json").read_text().splitlines()[:6]
    for record in map(json.loads, lines):
        images = folder / "dev" / "images" / str(record["directory"])
        images.mkdir(parents=True, exist_ok=True)
        for image in (REAL / "nlvr" / "dev" / "images" / str(record["directory"])).glob(
            f"dev-{record['identifier']}-*"
        ):
            shutil.copy(image, images)
    (folder / "dev" / "dev.json").write_text("\n".join(lines))


def pope(folder):
    lines = (REAL / "pope" / "coco_pope_random.json").read_text().splitlines()[:6]
    (folder / "val2014").mkdir()
    for line in lines:
        Image.new("RGB", (8, 8)).save(folder / "val2014" / json.loads(line)["image"])
    (folder / "coco_pope_random.json").write_text("\n".join(lines))


def iconqa(folder):
    place = REAL / "nc" / "iconqa" / "choose_txt"
    files = sorted(place.glob("*/data.json"))[:5]
    problems = {path.parent.name: json.loads(path.read_text()) for path in files}
    for problem in problems.values():
        problem["split"] = "test"
    (folder / "problems.json").write_text(json.dumps(problems))
    (folder / "pid_splits.json").write_text(json.dumps({"choose_txt_test": list(problems)}))
    for name in problems:
        shutil.copytree(place / name, folder / "iconqa" / "test" / "choose_txt" / name)


def scienceqa(folder):
    place = REAL / "nc" / "scienceqa"
    problems = json.loads((place / "problems.json").read_text())
    chosen = {key: value for key, value in problems.items() if value["image"] and value["split"] == "train"}
    chosen = dict(list(chosen.items())[:4])
    for name, problem in chosen.items():
        (folder / "images" / "train" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "images" / "train" / name / problem["image"])
    (folder / "problems.json").write_text(json.dumps(chosen))
    (folder / "pid_splits.json").write_text(json.dumps({"train": list(chosen)}))


def msvd_qa(folder):
    records = json.loads((REAL / "msvd_qa" / "test_qa.json").read_text())[:6]
    for record in records:
        frames = folder / "video" / f"vid{record['video_id']}"
        frames.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(frames / "0.png")
    (folder / "test_qa.json").write_text(json.dumps(records))


def vqav2(folder):
    questions = json.loads((REAL / "coco_mini" / "vqav2_questions_on_these_images.json").read_text())
    annotations = json.loads((REAL / "coco_mini" / "vqav2_annotations_on_these_images.json").read_text())
    (folder / "train2017").mkdir()
    for question in questions["questions"]:
        name = f"{question['image_id']:012d}.jpg"
        (found,) = (REAL / "coco_mini").glob(f"*2017/{name}")
        if not (folder / "train2017" / name).exists():
            shutil.copy(found, folder / "train2017" / name)
    (folder / "v2_OpenEnded_mscoco_train2014_questions.json").write_text(json.dumps(questions))
    (folder / "v2_mscoco_train2014_annotations.json").write_text(json.dumps(annotations))


def vizwiz(folder):
    (folder / "val").mkdir()
    for part in ("questions", "annotations"):
        content = json.loads((REAL / "vizwiz" / f"val_{part}_vqa_format.json").read_text())
        content[part] = sorted(content[part], key=lambda entry: entry["question_id"])[:4]
        for entry in content[part]:
            Image.new("RGB", (8, 8)).save(folder / "val" / entry["image_id"])
        (folder / f"val_{part}_vqa_format.json").write_text(json.dumps(content))


CASES = {
    f"{case.name}-{case.annotation}": case
    for case in (
        Case("vqa_rad", None, "train", "trainset.json", vqa_rad, free=("answer",)),  # a number will do
        Case("vsr", None, "train", "train.jsonl", vsr),
        Case("coco_caption", "2017", "validation", "captions_val2017.json", coco_caption),
        Case("nlvr", None, "validation", "dev/dev.json", nlvr),
        Case("pope", "random", "test", "coco_pope_random.json", pope),
        Case("iconqa", None, "test", "problems.json", iconqa),
        Case("scienceqa", None, "train", "problems.json", scienceqa, free=("hint", "image")),
        Case("msvd_qa", None, "test", "test_qa.json", msvd_qa),
        Case("vqav2", None, "train", "v2_OpenEnded_mscoco_train2014_questions.json", vqav2),
        Case("vqav2", None, "train", "v2_mscoco_train2014_annotations.json", vqav2, free=("answer",)),  # some are blank
        Case("vizwiz", None, "validation", "val_questions_vqa_format.json", vizwiz),
        Case("vizwiz", None, "validation", "val_annotations_vqa_format.json", vizwiz, free=("answer",)),
    )
}


def rows_of(case: Case, folder: Path, cache: str, **options) -> list[dict[str, Any]]:
    """All rows as the schema's types hold them, images left as they are."""
    made = builder(case.name, str(folder), case.config, cache_dir=cache, splits=(case.split,), **options)
    rows = [row for shard in made.shards_to_build(case.split) for row in made.shard_rows(shard, [])]
    return [made.info.features.encode_example(row) for row in rows]


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Paths of all values inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return (
        [path, *(place for key, child in inside for place in places(child, (*path, key)))]
        if path
        else [place for key, child in inside for place in places(child, (key,))]
    )


WRONG: tuple[Any, ...] = (None, True, -7, 3.5, "", "  ", "\ud800", [], {}, [[]], {"a": {}}, 10**30)


def break_value(content: Any, chance: random.Random) -> tuple[tuple[str, ...], bool]:
    """Delete a value or put one of another kind in its place.

    Returns:
        The names on the way to it, and whether it was an item taken out of a list, which leaves a sound, shorter file.
    """
    path = chance.choice(places(content))
    parent = content
    for key in path[:-1]:
        parent = parent[key]
    if chance.random() < 0.3:
        del parent[path[-1]]
        return tuple(key for key in path if isinstance(key, str)), isinstance(parent, list)
    old = parent[path[-1]]
    other = [value for value in WRONG if type(value) is not type(old) or not old or value in ("", "  ", "\ud800")]
    parent[path[-1]] = copy.deepcopy(chance.choice(other))
    return tuple(key for key in path if isinstance(key, str)), False


def break_bytes(content: bytes, chance: random.Random) -> bytes:
    """Cut off, overwrite or insert bytes."""
    at = chance.randrange(1, len(content))
    noise = chance.randbytes(chance.randint(1, 8))
    return chance.choice(
        [content[:at], content[:at] + noise + content[at + len(noise) :], content[:at] + noise + content[at:]]
    )


def break_image(path: Path, chance: random.Random) -> None:
    """Leave something in an image's place that cannot be decoded."""
    content = path.read_bytes()
    path.unlink()
    if chance.random() < 0.2:
        return
    cut = content[: chance.randrange(max(1, len(content) - 64))]
    path.write_bytes(chance.choice([cut, b"", chance.randbytes(300), b"<html>not found</html>", b"\0" * len(content)]))


def read_lines(text: str, path: Path) -> Any:
    return json.loads(text) if not is_lines(path, text) else [json.loads(line) for line in text.splitlines()]


def is_lines(path: Path, text: str) -> bool:
    return path.suffix == ".jsonl" or "\n{" in text


def names_the_file(error: ValueError, path: Path) -> bool:
    beside = [str(other) for other in path.parent.glob("*.json*")]
    return any(name in str(error) for name in beside) and (not isinstance(error, BadRowError) or error.row >= 1)


def plausible(row: dict[str, Any]) -> bool:
    """Whether a row could be that of a sound file: text where text must be, the label among the choices."""
    return all(
        sample["id"].strip()
        and all(answer.strip() for answer in sample["answers"])
        and (sample["label"] == -1 or sample["label"] < len(sample["choices"]))
        for sample in row["samples"]
    ) and bool(row["samples"])


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """A case, its folder, and the rows of its sound files."""
    case = CASES[request.param]
    if case.name != "vqa_rad" and not REAL.is_dir():
        pytest.skip(f"no real files in {REAL}")
    folder = tmp_path_factory.mktemp(case.name)
    case.write(folder)
    cache = str(tmp_path_factory.mktemp("cache"))
    rows = rows_of(case, folder, cache)
    assert rows
    assert all(map(plausible, rows))
    return case, folder, cache, rows


def check(case: Case, folder: Path, cache: str, what: str, allowed: Callable[[list[dict[str, Any]]], bool]) -> None:
    failure, rows = None, []
    try:
        rows = rows_of(case, folder, cache)
    except ValueError as error:
        failure = error
    if failure is None:
        assert allowed(rows), f"{what}: passed silently"
    else:
        assert names_the_file(failure, folder / case.annotation), f"{what}: {failure}"


def test_a_value_of_the_wrong_kind_is_refused_or_not_read(case):
    case, folder, cache, rows = case
    path = folder / case.annotation
    text = path.read_text()
    sound = read_lines(text, path)
    try:
        for seed in range(MUTATIONS // len(CASES) // 3):
            content = copy.deepcopy(sound)
            names, shorter = break_value(content, random.Random(seed))
            lines = is_lines(path, text)
            path.write_text("\n".join(map(json.dumps, content)) if lines else json.dumps(content))
            free = shorter or (bool(names) and names[-1] in case.free)
            check(
                case,
                folder,
                cache,
                f"seed {seed}, {names}",
                lambda got, free=free: got == rows or (free and all(map(plausible, got))),
            )
    finally:
        path.write_text(text)


def test_broken_bytes_are_refused_or_leave_sound_rows(case):
    case, folder, cache, rows = case
    path = folder / case.annotation
    sound = path.read_bytes()
    try:
        for seed in range(MUTATIONS // len(CASES) // 3):
            path.write_bytes(break_bytes(sound, random.Random(seed)))
            check(
                case, folder, cache, f"seed {seed}", lambda got: all(map(plausible, got)) and len(got) <= len(rows) + 1
            )
    finally:
        path.write_bytes(sound)


def test_a_broken_image_is_refused_and_only_its_row_is_lost(case):
    case, folder, cache, rows = case
    images = sorted(path for path in folder.rglob("*") if path.suffix in (".jpg", ".png"))
    used = {image["path"] for row in rows for image in row.get("images") or [row["image"]]}
    images = [path for path in images if str(path) in used]
    assert images
    for seed in range(MUTATIONS // len(CASES) // 3):
        chance = random.Random(seed)
        path = chance.choice(images)
        content, link = path.read_bytes(), path.is_symlink() and os.readlink(path)
        try:
            if link:
                path.unlink()
                path.write_bytes(content)
            break_image(path, chance)
            with pytest.raises(BadRowError, match=r", row \d+: ") as error:
                rows_of(case, folder, cache)
            assert path.stem in str(error.value) or "no frames" in str(error.value), f"seed {seed}"
            left = rows_of(case, folder, cache, on_bad="skip")
            assert len(rows) - len(left) >= 1, f"seed {seed}"
            assert all(row in rows for row in left), f"seed {seed}"
        finally:
            path.unlink(missing_ok=True)
            if link:
                path.symlink_to(link)
            else:
                path.write_bytes(content)
