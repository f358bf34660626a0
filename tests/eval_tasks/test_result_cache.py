import json
import os
import shutil
import signal
import sqlite3
from pathlib import Path

import killable_evaluation
import numpy as np
import pytest
from lm_eval.api.instance import Instance

from instructblip.eval_tasks import InstructBLIPEvalModel
from instructblip.eval_tasks.driver import Prompt
from instructblip.eval_tasks.images import keep_rows
from instructblip.eval_tasks.model_identity import checkpoint_identity
from instructblip.eval_tasks.result_cache import ResultCache, picture_digest

KILLED = -signal.SIGKILL
TEN = list(range(10))


@pytest.fixture(scope="module")
def server():
    server = killable_evaluation.Server()
    yield server
    server.close()


@pytest.fixture
def release(tiny_lm, tmp_path):
    lm = tiny_lm("t5")
    lm.model.save_pretrained(tmp_path / "release")
    lm.processor.save_pretrained(tmp_path / "release")
    return str(tmp_path / "release")


@pytest.fixture
def run(release, tmp_path, tiny_images):
    """run("name", cache="cache"): what the run takes; its `record` and `output` are files of that name."""
    for number in range(3):
        tiny_images[number].save(tmp_path / f"{number}.png")

    def make(name, cache="cache", numbers=TEN, **moment):
        return {
            "release": release, "folder": str(tmp_path), "cache": cache and str(tmp_path / cache), "numbers": numbers,
            "record": str(tmp_path / f"{name}-rows"), "output": str(tmp_path / name), **moment,
        }  # fmt: skip

    return make


def rows(run):
    """The number of documents that the model has answered."""
    if not os.path.exists(run["record"]):
        return 0
    with open(run["record"]) as file:
        return sum(map(int, file))


def said(run):
    with open(f"{run['record']}-said") as file:
        return file.read()


def answers(run):
    with open(run["output"]) as file:
        return json.load(file)


def kept(cache, tmp_path):
    """How many answers are in the cache. Looks at a copy, as opening a file clears up after the killed process."""
    copy = shutil.copytree(cache, tmp_path / "copy") if os.path.exists(cache) else tmp_path
    count = 0
    for file in copy.glob("*/*.sqlite"):
        with sqlite3.connect(file) as database:
            count += database.execute("SELECT count(*) FROM results").fetchone()[0]
    shutil.rmtree(tmp_path / "copy", ignore_errors=True)
    return count


def test_a_run_that_is_killed_at_any_moment_ends_as_if_it_had_not_been(server, run, tmp_path):
    unbroken = run("unbroken", cache=None)
    assert server.run(unbroken) == [0], said(unbroken)
    assert rows(unbroken) == 20
    draw = np.random.default_rng(0)
    moments = [{"event": int(event)} for event in draw.choice(np.arange(1, 42), 5, replace=False)]
    moments += [{"byte": size} for size in (8500, 16000)] + [{"after": float(draw.uniform(0, 0.1))}]
    finished = set()
    for number, moment in enumerate(moments):
        after = moment.pop("after", None)
        cache = f"cache{number}"
        killed, again = run(f"killed{number}", cache, **moment), run(f"again{number}", cache)
        code = server.run(killed, after=after)[0]
        assert code in (KILLED, -signal.SIGXFSZ, 0 if after else KILLED), said(killed)
        before = kept(killed["cache"], tmp_path)
        finished.add(before)
        assert before in (rows(killed), rows(killed) - 3, rows(killed) - 1)  # all but the batch that was being written
        assert server.run(again) == [0], said(again)
        assert rows(again) == 20 - before
        assert answers(again) == answers(unbroken)
        assert "damaged" not in said(again)
    assert len(finished) > 3  # the moments did differ


def test_a_run_of_which_all_is_kept_does_not_ask_the_model(server, run):
    first, second, without = run("first"), run("second"), run("without", cache=None)
    assert server.run(first) + server.run(second) + server.run(without) == [0, 0, 0]
    assert (rows(first), rows(second), rows(without)) == (20, 0, 20)
    assert answers(first) == answers(second) == answers(without)


def test_what_two_processes_finished_one_finds(server, run):
    even, odd, both = run("even", numbers=TEN[::2]), run("odd", numbers=TEN[1::2]), run("both")
    assert server.run(even, odd) == [0, 0], said(even) + said(odd)
    assert server.run(both) == [0]
    assert (rows(even), rows(odd), rows(both)) == (10, 10, 0)
    assert answers(both)[1][::2] == answers(even)[1]
    assert answers(both)[0][1::2] == answers(odd)[0]


def test_a_full_disk_is_one_sentence_and_what_was_finished_stays(server, run, tmp_path):
    full, again = run("full", full=12300), run("again")
    assert server.run(full) == [1]
    assert "make room on its disk and start again; what was finished before is kept" in said(full)
    before = kept(full["cache"], tmp_path)
    assert before > 0
    assert server.run(again) == [0], said(again)
    assert rows(again) == 20 - before


def test_lm_evals_numbers_are_the_same_with_the_cache_and_from_it(release, evaluate, tmp_path, monkeypatch):
    def results(**kwargs):
        lm = InstructBLIPEvalModel(release, device="cpu", batch_size=4, **kwargs)
        calls = []
        monkeypatch.setattr(lm.driver, "generate", counted(lm.driver.generate, calls))
        monkeypatch.setattr(lm.driver, "score", counted(lm.driver.score, calls))
        found = evaluate(lm, "instructblip_vqa_rad", "instructblip_vqa_rad_ranked")
        answers = [sample["resps"] for samples in found["samples"].values() for sample in samples]
        return len(calls), repr(answers), found["results"]

    without = results()
    filling, filled = [results(result_cache=str(tmp_path / "cache")) for _ in range(2)]
    assert without[0] == filling[0] > 0
    assert filled[0] == 0
    assert without[1:] == filling[1:] == filled[1:]


def counted(function, calls):
    return lambda *arguments: calls.append(0) or function(*arguments)


# What is told apart


@pytest.fixture
def cached_lm(stub_lm, tmp_path):
    """A stub whose cache stands for one model."""

    def make(**kwargs):
        lm = stub_lm(**kwargs)
        lm.result_cache = ResultCache(tmp_path / "cache", {"model": "stub"})
        return lm

    return make


@pytest.fixture
def picture(tmp_path, tiny_images):
    tiny_images[0].save(tmp_path / "picture.png")
    return str(tmp_path / "picture.png")


def request(kind, text, asked, picture, task="task"):
    return Instance(
        request_type=kind, doc={}, arguments=(text, asked, {"visual": picture}), idx=0, metadata=(task, 0, 1)
    )


def asked_again(lm, requests):
    """Whether a model has to answer."""
    getattr(lm, requests[0].request_type)(requests)
    return sum(rows for _, rows, _ in lm.model.calls)


def test_another_task_prompt_setting_or_candidate_set_is_another_answer(cached_lm, picture):
    generate = ("generate_until", "what ?", {"max_gen_toks": 5}, picture)
    rank = ("rank_candidates", "what ?", ["yes", "no"], picture)
    for known in (generate, rank):
        assert asked_again(cached_lm(), [request(*known)]) == 1
        assert asked_again(cached_lm(), [request(*known)]) == 0
    others = [
        request(*generate, task="other"),
        request("generate_until", "what", *generate[2:]),
        request("generate_until", "what ?", {"max_gen_toks": 6}, picture),
        request("generate_until", "what ?", {"max_gen_toks": 5, "until": ["."]}, picture),
        request(*rank, task="other"),
        request("rank_candidates", "what", *rank[2:]),
        request("rank_candidates", "what ?", ["no", "yes"], picture),
        request("rank_candidates", "what ?", ["yes", "no", "red"], picture),
    ]
    for other in others:
        assert asked_again(cached_lm(), [other]) == 1


def test_a_picture_counts_with_its_content(cached_lm, picture, tiny_images):
    def ask(what):
        return asked_again(cached_lm(), [request("generate_until", "what ?", {"max_gen_toks": 5}, what)])

    content = Path(picture).read_bytes()
    assert [ask(picture), ask(picture)] == [1, 0]
    tiny_images[1].save(picture)  # another picture under the same name
    assert [ask(picture), ask(picture)] == [1, 0]
    assert [ask({"bytes": content, "path": "a.png"}), ask({"bytes": content, "path": "b.png"}), ask(content)] == [
        1,
        0,
        0,
    ]
    assert [ask(tiny_images[0]), ask(tiny_images[0].copy()), ask(tiny_images[1])] == [1, 0, 1]
    assert ask(None) == 1


def test_a_row_of_a_dataset_counts_as_the_picture_that_it_holds(tiny_images):
    import datasets

    def references(images):
        return keep_rows(datasets.Dataset.from_dict({"image": images}).cast_column("image", datasets.Image()))

    (first,), (second,) = references(tiny_images[:2])
    (third,), (fourth,) = references(tiny_images[1:3])
    assert picture_digest(second) == picture_digest(third)
    assert len({picture_digest(reference) for reference in (first, second, third, fourth)}) == 3


def test_what_may_change_unnoticed_is_not_kept(cached_lm, picture):
    assert picture_digest("https://example.org/photo.jpg") is None
    sampled = request("generate_until", "what ?", {"temperature": 0.7}, picture)
    assert [asked_again(cached_lm(), [sampled]), asked_again(cached_lm(), [sampled])] == [1, 1]
    assert len(cached_lm().result_cache) == 0


def test_earlier_turns_count(tmp_path):
    cache = ResultCache(tmp_path, {})
    alone, after = Prompt("what ?", None), Prompt("what ?", None, history=[("who ?", "me")])
    assert len(set(cache.keys("generate_until", ["t", "t"], [alone, after], ["", ""]))) == 2


def test_choices_scored_by_lm_evals_own_requests_are_kept(cached_lm, picture):
    requests = [request("loglikelihood", "true ?", choice, picture) for choice in (" yes", " no")]
    expected = cached_lm().loglikelihood(requests)
    again = cached_lm()
    assert again.loglikelihood(requests) == expected
    assert again.model.calls == []


def test_batches_left_by_other_processes_are_filled_up(cached_lm, picture):
    requests = [request("generate_until", "what" + " ?" * number, {"max_gen_toks": 5}, picture) for number in range(12)]
    cached_lm(batch_size=2).generate_until(requests[::2])
    second = cached_lm(batch_size=4)
    second.generate_until(requests)
    assert [rows for _, rows, _ in second.model.calls] == [4, 2]


def folders(cache):
    return {entry.name for entry in os.scandir(cache)}


def test_checkpoints_and_settings_have_folders_of_their_own(release, tmp_path):
    def load(**kwargs):
        InstructBLIPEvalModel(release, device="cpu", result_cache=str(tmp_path / "cache"), **kwargs)
        return len(folders(tmp_path / "cache"))

    assert [load(), load(), load(dtype="float32")] == [1, 1, 1]  # as it is saved
    assert load(dtype="bfloat16") == 2
    assert load(max_length=9) == 3
    assert load(add_end_token=False) == 4
    assert load(length_normalize=True) == 5
    assert load(processor=release) == 6
    (tmp_path / "release" / "README.md").write_text("a model card")
    assert load() == 6
    model = tmp_path / "release" / "model.safetensors"
    changed = bytearray(model.read_bytes())
    changed[-1] ^= 1
    model.write_bytes(bytes(changed))
    assert load() == 7
    identity = json.loads(next((tmp_path / "cache").glob("*/identity.json")).read_text())
    assert identity["loaded_from"] == release
    assert {"checkpoint", "dtype", "prompt_form", "add_end_token", "software"} < set(identity)


def test_a_moved_checkpoint_is_the_same_and_its_backbones_count(tiny_lm, release, tmp_path):
    before = checkpoint_identity(release)
    bridge = tmp_path / "bridge"
    model = InstructBLIPEvalModel(release, device="cpu").model
    model.save_pretrained(bridge, bridge_only=True)
    of_bridge = checkpoint_identity(str(bridge))
    assert of_bridge["backbones"]["language"] == before
    config = tmp_path / "release" / "generation_config.json"
    config.write_text(config.read_text() + " ")
    assert checkpoint_identity(str(bridge)) != of_bridge
    config.write_text(config.read_text()[:-1])
    os.rename(release, tmp_path / "elsewhere")
    assert checkpoint_identity(str(tmp_path / "elsewhere")) == before


def test_an_adapter_counts_with_the_model_that_it_is_for(release, tmp_path):
    import peft

    from instructblip import InstructBLIPForConditionalGeneration

    model = InstructBLIPForConditionalGeneration.from_pretrained(release)
    config = peft.LoraConfig(r=2, **model.lora_targets("language_model"))
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    identity = checkpoint_identity(str(tmp_path / "adapter"))
    assert identity["adapter_of"] == checkpoint_identity(release)
    assert identity["files"] != identity["adapter_of"]["files"]


def test_a_checkpoint_whose_commit_is_unknown_is_refused(monkeypatch):
    monkeypatch.setattr("instructblip.eval_tasks.model_identity.commit_of", lambda name, revision: revision)
    with pytest.raises(ValueError, match="the commit of org/model cannot be found out: pass revision=COMMIT"):
        checkpoint_identity("org/model", "main")


def test_a_model_in_memory_is_refused(stub_lm, tmp_path):
    with pytest.raises(ValueError, match="result_cache: a model or processor in memory may change unnoticed"):
        stub_lm(result_cache=str(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_lm_evals_own_cache_is_refused(stub_lm, evaluate, tmp_path):
    with pytest.raises(ValueError, match="leave it out and pass result_cache=FOLDER"):
        evaluate(stub_lm(), "instructblip_vqa_rad", use_cache=str(tmp_path / "theirs"))


# Files


def fill(folder, first, count=40):
    cache = ResultCache(folder, {})
    prompts = [Prompt(f"question {number}", None) for number in range(first, first + count)]
    keys = cache.keys("rank_candidates", ["t"] * count, prompts, [""] * count)
    results = [np.arange(number, number + 50, dtype=np.float32) for number in range(first, first + count)]
    cache.put(zip(keys, results, strict=True))
    return dict(zip(keys, results, strict=True))


def test_answers_come_back_as_they_were(tmp_path):
    scores = np.array([-1.5, float("-inf"), 1e-30], dtype=np.float32)
    ResultCache(tmp_path, {}).put([(b"a", "ein Bär\0 \n"), (b"b", scores), (None, "not kept"), (b"c", "")])
    found = ResultCache(tmp_path, {}).get([b"a", None, b"b", b"c", b"d"])
    assert set(found) == {b"a", b"b", b"c"}
    assert (found[b"a"], found[b"c"]) == ("ein Bär\0 \n", "")
    np.testing.assert_array_equal(found[b"b"], scores)
    assert found[b"b"].dtype == np.float32


def test_a_process_that_finishes_nothing_leaves_no_file(tmp_path):
    cache = ResultCache(tmp_path, {})
    cache.put([(None, "not kept")])
    assert [file.name for file in cache.folder.iterdir()] == ["identity.json"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "another file"])
def test_a_damaged_file_is_set_aside_by_name_and_the_others_serve(tmp_path, caplog, damage):
    torn, whole = fill(tmp_path, 0), fill(tmp_path, 100)
    folder = ResultCache(tmp_path, {}).folder
    file = next(file for file in folder.glob("*.sqlite") if file_keys(file) == set(torn))
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 4  # inside the scores of a document
    file.write_bytes({"cut": content[:7000], "flipped": content, "emptied": b"", "another file": b"PK" * 999}[damage])
    cache = ResultCache(tmp_path, {})
    assert f"{file} is damaged" in caplog.text
    assert f"set aside as {file.name}.damaged" in caplog.text
    assert not file.exists()
    found = cache.get([*torn, *whole])
    assert set(found) == set(whole)
    caplog.clear()
    assert len(ResultCache(tmp_path, {})) == 40
    assert caplog.text == ""


def file_keys(file):
    with sqlite3.connect(file) as database:
        return {key for (key,) in database.execute("SELECT key FROM results")}


def test_no_damaged_byte_changes_an_answer(tmp_path):
    expected = fill(tmp_path, 0, count=30)
    file = next(ResultCache(tmp_path, {}).folder.glob("*.sqlite"))
    content = file.read_bytes()
    lost = 0
    for place in np.random.default_rng(0).integers(0, len(content), 60):
        spoiled = bytearray(content)
        spoiled[place] ^= 255
        file.write_bytes(bytes(spoiled))
        found = ResultCache(tmp_path, {}).get(expected)
        lost += len(found) < len(expected)
        for key, scores in found.items():
            np.testing.assert_array_equal(scores, expected[key])
    assert lost > 20


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        ResultCache(tmp_path / "file", {})


def test_progress_counts_what_was_kept(cached_lm, picture, monkeypatch):
    requests = [request("rank_candidates", "what" + " ?" * number, ["yes"], picture) for number in range(6)]
    cached_lm(batch_size=2).rank_candidates(requests[:4])
    lm, bars = cached_lm(batch_size=2), []
    show = lm._progress
    monkeypatch.setattr(lm, "_progress", lambda *arguments: bars.append(show(*arguments)) or bars[-1])
    lm.rank_candidates(requests)
    assert [(bar.total, bar.n) for bar in bars] == [(6, 6)]
