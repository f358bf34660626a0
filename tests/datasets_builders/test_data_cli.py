import json

import pytest
from huggingface_hub.errors import HfHubHTTPError

from instructblip.datasets_builders import load, publishing
from instructblip.datasets_builders.__main__ import main
from instructblip.datasets_builders.table import TABLE


@pytest.fixture
def pushed(monkeypatch):
    """What is handed to `push`."""
    calls = []

    def push(sources, repo_id, **options):
        calls.append((sources, repo_id, options))
        return dict.fromkeys(sources, "c0ffee")

    monkeypatch.setattr(publishing, "push", push)
    return calls


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def test_the_list_has_every_dataset(capsys):
    assert main(["list"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert set(TABLE) <= set(lines)
    assert lines["vsr"].split()[4:6] == ["3,191", "5,051"]
    assert "train,validation,test" in lines["vsr"]
    assert "* Hateful Memes" in lines["hateful_memes"]
    assert main(["list", "--role", "held_out"]) == 0
    assert "vqav2 " not in capsys.readouterr().out


def test_one_dataset_is_told_in_full(capsys):
    assert main(["list", "hateful_memes", "vsr"]) == 0
    out = capsys.readouterr().out
    assert "zeroshot/train: rows 2,249, samples 3,489" in out
    assert "terms: handed out to those who accepted the terms of the Hateful Memes Challenge" in out
    assert "how to get it: github.com/cambridgeltl" in out
    assert "on the Hub: cambridgeltl/vsr_random (train, validation, test, variant random)" in out


def test_build_writes_parquet_that_load_reads(vqa_rad_folder, tmp_path, capsys, cache):
    words = ["build", "vqa_rad", "--data-dir", str(vqa_rad_folder), "--out", str(tmp_path / "out"), "--splits", "test"]
    assert main(words) == 0
    assert "vqa_rad/test: 2 rows\n" in capsys.readouterr().out
    assert len(load("vqa_rad", tmp_path / "out" / "vqa_rad", split="test", cache_dir=cache)) == 2


def test_what_is_left_out_is_counted(vqa_rad_folder, tmp_path, capsys):
    (vqa_rad_folder / "images" / "synpic1.jpg").write_bytes(b"no image")
    words = ["build", "vqa_rad", "--data-dir", str(vqa_rad_folder), "--out", str(tmp_path / "out")]
    assert main(words) == 1
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("instructblip-data: ")
    assert "trainset.json, row 2: image" in err
    assert main([*words, "--on-bad", "skip"]) == 0
    assert "vqa_rad/test: 1 rows, 1 bad ones left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["build", "vqarad", "--data-dir", "x", "--out", "y"], "no dataset 'vqarad': there are aokvqa"),
        (["build", "vsr", "--data-dir", "x"], "the following arguments are required: --out"),
        (["build", "vsr", "--data-dir", "x", "--out", "y", "--num-proc", "0"], "'0': expected 1 or more"),
        (["preview", "mine.jsonl", "--rows", "0"], "'0': expected 1 or more"),
        (["preview", "mine.jsonl", "--count", "-3"], "'-3': expected 1 or more"),
        (["list", "--role", "best"], "invalid choice: 'best'"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_words_that_mean_nothing_end_with_status_2(words, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_bad_input_is_one_line_and_status_1(tmp_path, capsys):
    assert main(["build", "vsr", "--data-dir", str(tmp_path), "--out", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"instructblip-data: vsr: no annotation file in {tmp_path}: expected" in err
    assert main(["build", "vsr", "--data-dir", str(tmp_path), "--out", str(tmp_path), "--config", "none"]) == 1
    assert "BuilderConfig 'none' not found" in capsys.readouterr().err


def test_push_takes_official_files_and_what_build_made(vqa_rad_folder, tmp_path, capsys, pushed):
    root = str(vqa_rad_folder.parent)
    assert main(["push", "vqa_rad", "--repo", "me/mix", "--data-dir", root, "--seed", "3"]) == 0
    assert main(["build", "vqa_rad", "--data-dir", str(vqa_rad_folder), "--out", str(tmp_path / "out")]) == 0
    assert (
        main(["push", "vqa_rad", "--repo", "me/mix", "--data-dir", str(tmp_path / "out" / "vqa_rad"), "--public"]) == 0
    )
    (official, repo, options), (built, _, others) = pushed
    assert official["vqa_rad"]["train"]["samples"] == built["vqa_rad"]["train"]["samples"]
    assert (repo, options["seed"], options["private"], others["private"]) == ("me/mix", 3, True, False)
    assert "vqa_rad: in me/mix since c0ffee" in capsys.readouterr().out


def test_terms_are_asked_for_before_anything_is_built(tmp_path, capsys, pushed):
    words = ["push", "vsr", "hateful_memes", "--repo", "me/mix", "--data-dir", str(tmp_path)]
    assert main([*words, "--public"]) == 1
    assert "hateful_memes is not for commercial use" in capsys.readouterr().err
    assert main([*words, "--public", "--accept-terms", "hateful_memes"]) == 1
    assert f"{tmp_path}/vsr is no folder: it should hold the files of vsr" in capsys.readouterr().err
    assert main([*words, "--config", "random"]) == 2
    assert not pushed


def test_a_broken_annotation_file_is_named(vqa_rad_folder, tmp_path, capsys):
    (vqa_rad_folder / "trainset.json").write_text(json.dumps([{"qid": 1}]))
    assert main(["build", "vqa_rad", "--data-dir", str(vqa_rad_folder), "--out", str(tmp_path / "out")]) == 1
    assert "trainset.json, row 1: 'image_name' is missing" in capsys.readouterr().err


def test_the_papers_halves_have_a_name(tmp_path, capsys, pushed):
    words = ["--repo", "me/mix", "--data-dir", str(tmp_path)]
    assert main(["push", "held-in", *words]) == 1
    assert "aokvqa is no folder: it should hold the files of aokvqa" in capsys.readouterr().err
    assert main(["push", "held-out", *words, "--public"]) == 1
    assert "flickr30k is" in capsys.readouterr().err
    assert not pushed


def test_question_generation_reads_the_files_of_its_questions(tmp_path, capsys, pushed):
    (tmp_path / "okvqa").mkdir()
    assert main(["push", "vqg_okvqa", "okvqa", "--repo", "me/mix", "--data-dir", str(tmp_path)]) == 1
    assert f"okvqa: no annotation file in {tmp_path / 'okvqa'}" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(capsys):
    assert main(["preview", "vsr=nowhere"]) == 1
    assert "vsr=nowhere: there is no folder nowhere, and no repository can be called so" in capsys.readouterr().err


def test_a_hub_that_cannot_be_reached_is_one_line(vqa_rad_folder, capsys, monkeypatch):
    def fail(*_, **__):
        raise HfHubHTTPError.__bases__[0]("Name or service not known")

    monkeypatch.setattr(publishing, "push", fail)
    assert main(["push", "vqa_rad", "--repo", "me/mix", "--data-dir", str(vqa_rad_folder)]) == 1
    assert capsys.readouterr().err.endswith("instructblip-data: the Hub cannot be reached: Name or service not known\n")
