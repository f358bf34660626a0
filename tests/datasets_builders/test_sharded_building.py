import multiprocessing
import os

import datasets
import pytest

from instructblip.datasets_builders import load, schema
from instructblip.datasets_builders.distributed import BuildShards
from instructblip.datasets_builders.official_files import BadRowError
from instructblip.datasets_builders.schema import InstructionBuilder, Record, make_sample
from instructblip.datasets_builders.vqa_rad import VQARad


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """The 40 images of the folder make 10 shards."""
    monkeypatch.setattr(InstructionBuilder, "SMALLEST_SHARD", 4)


@pytest.fixture
def build(vqa_rad_folder, cache):
    """build(**options): the training rows, images as paths."""

    def build(num_proc=None, **options):
        options = {"cache_dir": cache, **options}
        rows = load("vqa_rad", str(vqa_rad_folder), split="train", num_proc=num_proc, **options)
        return list(rows.cast_column("image", datasets.Image(decode=False)))

    return build


@pytest.fixture
def checked(monkeypatch):
    """The images that builds of this process have checked."""
    paths = []
    check = schema.check_image
    monkeypatch.setattr(schema, "check_image", lambda path: (paths.append(path), check(path)))
    return paths


def killed_at(vqa_rad_folder, cache, image):
    """Build in another process that dies without a word when it comes to `image`."""

    def die(path):
        if path.endswith(f"{image}.jpg"):
            os._exit(9)

    def run():
        schema.check_image = die
        load("vqa_rad", str(vqa_rad_folder), split="train", cache_dir=cache)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    return process.exitcode


def test_a_killed_build_goes_on_with_the_shards_that_are_missing(vqa_rad_folder, cache, build, checked, tmp_path):
    assert killed_at(vqa_rad_folder, cache, "synpic26") == 9
    rows = build()
    assert len(checked) == 16  # 6 of 10 shards were whole
    assert checked[0].endswith("synpic24.jpg")
    assert rows == build(cache_dir=str(tmp_path / "other"))


def test_nothing_of_a_killed_build_is_left(vqa_rad_folder, cache, build):
    killed_at(vqa_rad_folder, cache, "synpic26")
    build()
    names = [name for _, folders, files in os.walk(cache) for name in (*folders, *files)]
    assert not [name for name in names if "partial" in name or name.endswith((".shards", ".incomplete"))]


def test_shards_of_another_annotation_file_are_not_taken(vqa_rad_folder, cache, build, checked):
    killed_at(vqa_rad_folder, cache, "synpic26")
    path = vqa_rad_folder / "trainset.json"
    path.write_text(path.read_text().replace("Question 3?", "Question three?"))
    assert build()[3]["samples"][0]["question"] == "Question three?"
    assert len(checked) == 40


def test_a_bad_image_leaves_the_shards_before_it_for_the_next_build(vqa_rad_folder, cache, build, checked, picture):
    path = vqa_rad_folder / "images" / "synpic12.jpg"
    path.write_bytes(b"no picture")
    with pytest.raises(BadRowError, match="synpic12"):
        build()
    checked.clear()
    picture(path)
    assert len(build()) == 40
    assert len(checked) == 28


def test_a_file_is_parsed_once_for_all_processes(vqa_rad_folder, cache, build, monkeypatch, tmp_path):
    log = tmp_path / "reads"
    read = VQARad.read

    def logged(self, split, file):
        with log.open("a") as lines:
            lines.write(f"{os.getpid()}\n")
        return read(self, split, file)

    monkeypatch.setattr(VQARad, "read", logged)
    build(num_proc=2)
    assert log.read_text() == f"{os.getpid()}\n"


def test_workers_of_two_machines_write_the_rows_of_one_process(vqa_rad_folder, cache, build, checked, tmp_path):
    alone = build()
    other = str(tmp_path / "other")
    checked.clear()
    for rank in (1, 0):
        VQARad(data_dir=str(vqa_rad_folder), cache_dir=other, splits="train").write_shards(rank, 2)
    assert len(checked) == 40
    assert build(cache_dir=other) == alone
    assert len(checked) == 40  # only put together


def test_datatrove_builds_the_rows_of_one_process(vqa_rad_folder, cache, build, tmp_path):
    executor = pytest.importorskip("datatrove.executor.local", reason="datatrove is an optional extra")
    other = str(tmp_path / "other")
    step = BuildShards("vqa_rad", str(vqa_rad_folder), options={"cache_dir": other, "splits": ("train",)})
    logs = str(tmp_path / "logs")
    executor.LocalPipelineExecutor([step], tasks=2, workers=2, logging_dir=logs, start_method="fork").run()
    (shards,) = [path for path, _, files in os.walk(other) if any(name.endswith(".json") for name in files)]
    assert len([name for name in os.listdir(shards) if name.endswith(".arrow")]) == 10
    assert build(cache_dir=other) == build()


def test_a_parquet_build_has_a_file_for_each_shard(vqa_rad_folder, cache, tmp_path):
    made = VQARad(data_dir=str(vqa_rad_folder), cache_dir=cache, splits="train", shards=3)
    made.download_and_prepare(str(tmp_path / "parquet"), file_format="parquet")
    files = sorted(str(path) for path in (tmp_path / "parquet").glob("*.parquet"))
    assert [os.path.basename(path) for path in files] == [f"vqa_rad-train-{n:05d}-of-00003.parquet" for n in range(3)]
    rows = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
    assert rows["image_id"] == [f"vqa_rad/synpic{number}" for number in range(40)]
    assert rows[39]["image"].size == (12, 8)


def test_options_that_cannot_be_met_are_refused(vqa_rad_folder, cache, tmp_path):
    made = VQARad(data_dir=str(vqa_rad_folder), cache_dir=cache)
    with pytest.raises(ValueError, match="max_shard_size does not apply: the builder's option shards="):
        made.download_and_prepare(max_shard_size="1MB")
    with pytest.raises(ValueError, match="shards=0: expected 1 or more"):
        VQARad(data_dir=str(vqa_rad_folder), cache_dir=cache, shards=0)


class Lists(InstructionBuilder):
    """Every `*.list` file is a shard: a line names an image and asks about it."""

    one_shard_per_file = True
    several_images = True

    def annotation_files(self):
        return {"train": ["parts/*.list"]}

    def image_folders(self, split):
        return []

    def read(self, split, file):
        with open(file) as lines:
            for row, line in enumerate(lines, start=1):
                shade, question = line.split()
                if shade == "bad":
                    yield BadRowError(file, row, "a bad line")
                    continue
                encoded = b"P5 2 2 255 " + bytes([int(shade)] * 4)
                yield Record(
                    file, row, f"lists/{shade}", [encoded, encoded], make_sample(line.strip(), question, ["x"])
                )


@pytest.fixture
def lists(tmp_path):
    folder = tmp_path / "[lists]" / "parts"  # brackets mean something in a pattern
    folder.mkdir(parents=True)
    (folder / "b.list").write_text("10 p\n10 q\n20 r\n")
    (folder / "a.list").write_text("10 s\n")
    (folder / "c.list").write_text("bad line\n10 t\n")
    return str(tmp_path / "[lists]")


def test_each_file_is_a_shard_with_neighbours_grouped(lists, cache):
    made = Lists(data_dir=lists, cache_dir=cache, on_bad="skip")
    made.download_and_prepare(num_proc=2)
    rows = made.as_dataset("train")
    questions = [[sample["question"] for sample in row["samples"]] for row in rows]
    assert questions == [["s"], ["p", "q"], ["r"], ["t"]]
    assert [image.getpixel((0, 0)) for image in rows[2]["images"]] == [20, 20]
    assert made.as_streaming_dataset("train").num_shards == 3
    assert list(made.as_streaming_dataset("train").decode(False)) == list(
        rows.cast_column("images", datasets.List(datasets.Image(decode=False)))
    )
    assert [(os.path.basename(entry["file"]), entry["row"]) for entry in made.skipped("train")] == [("c.list", 1)]
