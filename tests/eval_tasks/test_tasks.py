"""Every task on its dataset's official layout: what is asked, of what, and what comes out."""

import json
from functools import partial

import datasets
import lm_eval
import numpy as np
import pytest
import several_processes
import torch
import yaml
from evaluation_command import run_command
from official_data import write_official_data

from instructblip.datasets_builders.table import TABLE
from instructblip.datasets_builders.templates import format_instruction
from instructblip.eval_tasks import TASK_FOLDER, task_manager
from instructblip.eval_tasks.images import read_image
from instructblip.modeling.candidate_ranking import score_candidates_naively

QUESTION = "Question: {question} Short answer:"  # paper, appendix E, as all prompts here
CAPTION = "A short image description:"
CHOICE = "Question: {question} Options: {options}. Short answer:"
STATEMENT = 'Based on the image, is this statement true or false? "{question}" Answer:'
MEME = 'This is an image with: "{context}" written on it. Is it hateful? Answer:'
DIALOG = "Dialog history: {context} {history} \n Question: {question} Short answer:"
SCIENCE = "Question: {question} Options: {options}. Answer:"

TASKS = {  # name: (dataset, split, documents, prompt as `format_instruction` takes it, fields that it leaves out)
    "nocaps": ("nocaps", "validation", 4, CAPTION, ()),
    "flickr30k": ("flickr30k", "test", 3, CAPTION, ()),
    "gqa": ("gqa", "testdev", 4, QUESTION, ()),
    "vsr": ("vsr", "test", 5, STATEMENT, ()),
    "iconqa": ("iconqa", "test", 4, CHOICE, ()),
    "textvqa": ("textvqa", "validation", 5, QUESTION, ()),
    "textvqa_without_ocr": ("textvqa", "validation", 5, QUESTION, ("ocr_tokens",)),
    "visdial": ("visdial", "validation", 20, DIALOG, ()),
    "visdial_without_caption": ("visdial", "validation", 20, QUESTION, ("context",)),
    "hateful_memes": ("hateful_memes", "dev_seen", 4, MEME, ()),
    "hateful_memes_test_seen": ("hateful_memes", "test_seen", 4, MEME, ()),
    "vizwiz": ("vizwiz", "validation", 4, QUESTION, ()),
    "vizwiz_test": ("vizwiz", "test", 4, QUESTION, ()),
    "scienceqa": ("scienceqa", "test", 4, SCIENCE, ()),
    "scienceqa_without_context": ("scienceqa", "test", 4, SCIENCE, ("context",)),
    "msvd_qa": ("msvd_qa", "test", 5, QUESTION, ()),
    "msvd_qa_generated": ("msvd_qa", "test", 5, QUESTION, ()),
    "msrvtt_qa": ("msrvtt_qa", "test", 5, QUESTION, ()),
    "msrvtt_qa_generated": ("msrvtt_qa", "test", 5, QUESTION, ()),
    "ivqa": ("ivqa", "test", 3, QUESTION, ()),
    "coco_caption": ("coco_caption", "test", 3, CAPTION, ()),
    "coco_caption_validation": ("coco_caption", "validation", 2, CAPTION, ()),
    "textcaps": ("textcaps", "validation", 3, CAPTION, ()),
    "vqav2": ("vqav2", "validation", 5, QUESTION, ()),
    "okvqa": ("okvqa", "validation", 5, QUESTION, ()),
    "aokvqa_direct_answer": ("aokvqa", "validation", 4, QUESTION, ()),
    "aokvqa_multiple_choice": ("aokvqa", "validation", 4, CHOICE, ()),
    "ocr_vqa": ("ocr_vqa", "test", 4, QUESTION, ()),
    "vqa_rad": ("vqa_rad", "test", 5, QUESTION, ()),
    "vqa_rad_ranked": ("vqa_rad", "test", 5, QUESTION, ()),
    "nlvr": ("nlvr", "test", 4, STATEMENT, ()),
    "pope_random": ("pope", "test", 6, QUESTION, ()),
    "pope_popular": ("pope", "test", 6, QUESTION, ()),
    "pope_adversarial": ("pope", "test", 6, QUESTION, ()),
}
OTHER_PROMPT = ("visdial_without_caption", "aokvqa_direct_answer")  # than the table's
GROUPS = {"instructblip_heldout": 13, "instructblip_heldin": 7, "instructblip_pope": 3}
SCORES = {
    "cider": ("nocaps", "flickr30k", "coco_caption", "textcaps"),
    "accuracy": ("gqa", "vsr", "iconqa", "scienceqa", "msvd_qa", "msrvtt_qa", "ivqa", "aokvqa_multiple_choice", "nlvr"),
    "vqa_accuracy": ("textvqa", "vizwiz", "vqav2", "okvqa", "aokvqa_direct_answer"),
    "mrr": ("visdial",),
    "ndcg": ("visdial",),
    "auroc": ("hateful_memes", "hateful_memes_test_seen"),
    "f1": ("pope_random", "pope_popular", "pope_adversarial"),
    "cider_out_domain": ("nocaps",),
}  # each a number on these files


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    return write_official_data(tmp_path_factory.mktemp("official"))


@pytest.fixture(scope="module")
def tasks(official, tmp_path_factory):
    """The tasks by name, without `instructblip_`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        loaded = task_manager(data_root=str(official)).load([f"instructblip_{name}" for name in TASKS])["tasks"]
        return {name.removeprefix("instructblip_"): task for name, task in loaded.items()}


def test_every_file_is_a_task_that_is_listed_here():
    """lm-eval skips a file that it cannot read without a word."""
    files = {path.stem: path.read_text() for path in TASK_FOLDER.glob("[!_]*.yaml")}
    names = {line.split(": ")[1] for text in files.values() for line in text.splitlines() if line.startswith("task: i")}
    groups = {
        line.split(": ")[1] for text in files.values() for line in text.splitlines() if line.startswith("group: ")
    }
    assert names == {f"instructblip_{name}" for name in TASKS}
    assert groups == GROUPS.keys()
    assert set(task_manager().all_tasks) == names | groups
    assert names <= {f"instructblip_{stem}" for stem in files}  # a task is found by its name


def members(group):
    content = yaml.safe_load((TASK_FOLDER / f"{group.removeprefix('instructblip_')}.yaml").read_text())
    return content["task"]


def test_groups_hold_the_papers_datasets():
    for group, count in GROUPS.items():
        assert len(set(members(group))) == count
        datasets_of = {TASKS[name.removeprefix("instructblip_")][0] for name in members(group)}
        role = {"instructblip_heldout": "held_out", "instructblip_heldin": "held_in"}.get(group, "extra")
        asked = {name for name, spec in TABLE.items() if spec.role == role and spec.task not in ("vqg", "chat")}
        assert datasets_of == (asked - {"capfilt"} if role != "extra" else {"pope"})


@pytest.mark.parametrize("name", TASKS)
def test_a_task_asks_every_question_of_its_split_in_the_words_of_the_paper(tasks, name):
    dataset, split, count, prompt, left_out = TASKS[name]
    task = tasks[name]
    assert task.config.dataset_kwargs["dataset"] == dataset
    assert (task.config.test_split, len(task.eval_docs)) == (split, count)
    assert split in TABLE[dataset].splits
    assert TABLE[dataset].method == "rank" or task.OUTPUT_TYPE == "generate_until" or name.endswith("_ranked")
    for doc in task.eval_docs:
        shown = {key: value for key, value in doc.items() if key not in left_out}
        assert task.doc_to_text(doc) == format_instruction(prompt, shown)
        if name not in OTHER_PROMPT:
            assert task.doc_to_text(doc) == format_instruction(TABLE[dataset].prompt, shown)


@pytest.mark.parametrize(
    ("name", "place", "prompt"),
    [
        ("textvqa", 2, "OCR tokens: red, Cat. Question: is there a dog ? Short answer:"),
        ("textvqa", 4, "OCR tokens: " + ", ".join(["one"] * 30) + ". Question: what is in the picture ? Short answer:"),
        ("textcaps", 1, "OCR tokens: red, Cat. A short image description:"),
        (
            "visdial",
            2,
            "Dialog history: a red cat what is the color of this cat ? red red is there a dog ? dog three \n "
            "Question: what is in the picture ? Short answer:",
        ),
        (
            "visdial_without_caption",
            1,
            "Dialog history: what is the color of this cat ? red red \n Question: is there a dog ? Short answer:",
        ),
        (
            "scienceqa",
            0,
            "Context: the cat is in the photo Question: what is the color of this cat ? Options: (a) red (b) blue. "
            "Answer:",
        ),
        ("scienceqa", 1, "Question: is there a dog ? Options: (a) red (b) blue (c) green. Answer:"),
        ("hateful_memes", 1, 'This is an image with: "is this a dog 1" written on it. Is it hateful? Answer:'),
    ],
)
def test_what_belongs_to_a_question_stands_where_the_paper_puts_it(tasks, name, place, prompt):
    assert tasks[name].doc_to_text(tasks[name].eval_docs[place]) == prompt


def test_a_clip_is_shown_as_four_frames(tasks):
    for name in ("msvd_qa", "msrvtt_qa", "ivqa"):
        assert {len(doc["images"]) for doc in tasks[name].eval_docs} == {4}
    assert {len(doc["images"]) for doc in tasks["gqa"].eval_docs} == {1}


def test_videos_rank_the_training_answers_without_the_training_clips(tasks, official):
    assert not (official / "msvd_qa" / "video" / "vid0.avi").exists()
    every = ["1", "2", "3", "blue", "cat", "dog", "green", "no", "red", "yes"]  # in normal form, which sorts them
    spelt = {"1": "one", "2": "two", "3": "three"}
    assert list(tasks["msvd_qa"].candidates) == [spelt.get(answer, answer) for answer in every]
    assert len(tasks["msrvtt_qa"].candidates) == 10


def test_a_rank_task_sends_a_documents_own_candidates(tasks):
    for name, expected in {
        "vsr": ["yes", "true", "no", "false"],
        "hateful_memes": ["yes", "true", "no", "false"],
        "pope_popular": ["yes", "no"],
        "iconqa": ["red", "blue"],
    }.items():
        task = tasks[name]
        request = task.construct_requests(task.eval_docs[0], "prompt")
        assert request.request_type == "rank_candidates"
        assert list(request.args[1]) == expected
    request = tasks["visdial"].construct_requests(tasks["visdial"].eval_docs[7], "prompt")
    assert list(request.args[1]) == tasks["visdial"].eval_docs[7]["choices"]


SHORT = "max_new_tokens=4,min_new_tokens=2"  # captions of 80 words take a minute


def by_document(samples):
    return {task: sorted((line["doc_id"], line["filtered_resps"]) for line in lines) for task, lines in samples.items()}


def numbers(results):
    """Scores by task; NaN as None, so that they can be compared."""
    return {
        task: {
            name: None if value != value else round(value, 9)
            for name, value in values.items()
            if isinstance(value, float) and "stderr" not in name
        }
        for task, values in results.items()
    }


@pytest.mark.parametrize("language", ["t5", "llama"])
def test_all_tasks_give_the_same_on_one_process_and_through_the_command_on_two(official, tiny_lm, tmp_path, language):
    """Two processes have other batches, of other documents in another order, and decode in other threads."""
    names = [f"instructblip_{name}" for name in TASKS]
    grouped = {name for group in GROUPS for name in members(group)}
    asked = [*GROUPS, *(name for name in names if name not in grouped)]
    lm = tiny_lm(language, batch_size=5)
    lm.model.save_pretrained(tmp_path / "release")
    lm.processor.save_pretrained(tmp_path / "release")
    manager = task_manager(data_root=str(official))
    one = lm_eval.simple_evaluate(lm, tasks=asked, task_manager=manager, bootstrap_iters=0, gen_kwargs=SHORT)
    for score, scored in SCORES.items():
        for name in scored:
            value = one["results"][f"instructblip_{name}"][f"{score},none"]
            assert np.isfinite(value), (name, score)
    assert np.isnan(one["results"]["instructblip_vizwiz_test"]["vqa_accuracy,none"])
    assert [len(one["samples"][name]) for name in names] == [count for _, _, count, *_ in TASKS.values()]

    arguments = [
        "--model_args", f"pretrained={tmp_path / 'release'},dtype=float32",
        "--tasks", ",".join(asked), "--metadata", f"data_root={official}", "--batch_size", "2", "--device", "cpu",
        "--output_path", str(tmp_path / "two"), "--log_samples", "--gen_kwargs", SHORT,
    ]  # fmt: skip
    several_processes.run(run_command, str(datasets.config.HF_DATASETS_CACHE), arguments)
    two = json.loads(next(tmp_path.glob("two/**/results_*.json")).read_text())
    assert numbers(two["results"]) == numbers(one["results"])
    samples = {
        name: [json.loads(line) for line in next(tmp_path.glob(f"two/**/samples_{name}_2*.jsonl")).open()]
        for name in names
    }
    for name in names:
        written = by_document(samples)[name]
        expected = by_document(one["samples"])[name]
        assert [number for number, _ in written] == [number for number, _ in expected]
        for (_, ours), (_, theirs) in zip(written, expected, strict=True):
            if isinstance(theirs[0], list):
                np.testing.assert_allclose(np.array(ours[0], dtype=float), theirs[0], atol=2e-4)
            else:
                assert ours == theirs


@pytest.mark.parametrize("language", ["t5", "llama"])
def test_scores_through_the_harness_are_those_of_a_forward_for_each_candidate(tasks, tiny_lm, language):
    lm = tiny_lm(language, batch_size=3)
    for name, count in (("visdial", 2), ("iconqa", 4), ("msvd_qa", 2)):
        task = tasks[name]
        docs = [task.eval_docs[number] for number in range(count)]
        requests = [task.construct_requests(doc, task.doc_to_text(doc)) for doc in docs]
        for request, scores in zip(requests, lm.rank_candidates(requests), strict=True):
            text, candidates, visual = request.args
            pictures = [read_image(reference) for reference in visual["visual"]]
            inputs = lm.processor(images=[pictures], text=[text], return_tensors="pt")
            ids = lm.processor.encode_answers(list(candidates))
            if lm.driver.is_encoder_decoder:
                ids = [[*answer, lm.processor.tokenizer.eos_token_id] for answer in ids]
            with torch.inference_mode():
                (naive,) = score_candidates_naively(lm.model, [ids], **inputs)
            np.testing.assert_allclose(scores, naive.numpy(), atol=3e-4)


def test_a_document_alone_gets_the_answer_that_it_gets_among_others(official, tiny_lm):
    names = [f"instructblip_{name}" for name in ("visdial", "gqa", "msvd_qa")]
    lm = tiny_lm("llama", batch_size=4)
    run = partial(lm_eval.simple_evaluate, lm, tasks=names, bootstrap_iters=0)
    every = by_document(run(task_manager=task_manager(data_root=str(official)))["samples"])
    alone = run(task_manager=task_manager(data_root=str(official)), samples={name: [3] for name in names})["samples"]
    for name in names:
        ours, theirs = alone[name][0]["filtered_resps"][0], every[name][3][1][0]
        assert ours == theirs if isinstance(theirs, str) else np.allclose(ours, theirs, atol=2e-4)
