"""What README and docs/ show runs: every Python block, and every command that is ours, on tiny stand-ins.

A loopback Hub serves tiny models under the ids that the pages name; the pages run in one process of their own, each in
a folder of its own, blocks in order. A block after the comment `<!-- needs: PACKAGE -->` is skipped where that package
is missing. A YAML block whose first line is `# some/path` is written to that file, without the line; so is any block
after `<!-- file: some/path -->`. A block after `<!-- fails -->` must raise what the next block shows, with "..." for
anything at all, from its beginning on.
"""

import contextlib
import importlib.util
import io
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import time
import traceback
from functools import partial, partialmethod
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]
LINKED = [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "examples/miniature/README.md"]
BLOCK = re.compile(r"^(?:<!-- (needs|file|fails)(?:: (\S+))? -->\n)?```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_OURS = ("git", "make", "pip")  # commands that the pages may show and nothing here runs


def blocks_of(page):
    """The fenced blocks of a page: line, what the comment before it says if there is one, language and code."""
    text = (ROOT / page).read_text("utf-8")
    found = list(BLOCK.finditer(text))
    return [
        {
            "page": page,
            "line": text[: match.start(3)].count("\n") + 1,
            "needs": match[2] if match[1] == "needs" else None,
            "file": match[2] if match[1] == "file" else None,
            "fails": following[4] if match[1] == "fails" and following else None,
            "language": match[3],
            "code": match[4],
        }
        for match, following in zip(found, [*found[1:], None], strict=True)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
RUN = [block for block in BLOCKS if block["language"] in ("python", "bash")]
by_place = pytest.mark.parametrize("block", RUN, ids=[f"{block['page']}:{block['line']}" for block in RUN])


def commands(code):
    """The commands of a bash block as lists of words, comments left out."""
    lines = code.replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


# ---- Stand-ins for what the pages name


VISION = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=224)
VISION |= dict(patch_size=56, initializer_range=0.02)
QFORMER = dict(vocab_size=80, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32)
QFORMER |= dict(max_position_embeddings=128, encoder_hidden_size=32)
WORDS = "what is the color of this picture question short answer yes no red blue a photo ? : .".split()
T5_WORDS = ["<pad>", "</s>", "<unk>", "▁", *(f"▁{word}" for word in WORDS)]
BERT_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


def t5_config():
    from transformers import T5Config

    return T5Config(
        d_model=40, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=80, feed_forward_proj="gated-gelu",
        tie_word_embeddings=False, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip


def decoder_config(name):
    from transformers import AutoConfig

    return AutoConfig.for_model(
        name, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=320, max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip


def bytes_tokenizer():
    """Byte-level BPE with few merges, the kind that Qwen has."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<pad>", "<s>", "</s>"]
    vocabulary = {token: number for number, token in enumerate([*specials, *letters])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    names = dict(zip(("pad_token", "bos_token", "eos_token"), specials, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def t5_tokenizer():
    from transformers import T5Tokenizer

    return T5Tokenizer(vocab=[(word, -float(number)) for number, word in enumerate(T5_WORDS)], extra_ids=0)


def qformer_tokenizer():
    from transformers import BertTokenizer

    return BertTokenizer(vocab={word: number for number, word in enumerate(BERT_WORDS)})


def save_official(folder, text_config, tokenizer):
    """A folder as those of Salesforce/instructblip-*, written by transformers' own classes."""
    from transformers import (
        BlipImageProcessorPil,
        InstructBlipConfig,
        InstructBlipForConditionalGeneration,
        InstructBlipProcessor,
        InstructBlipQFormerConfig,
        InstructBlipVisionConfig,
    )

    processor = InstructBlipProcessor(
        BlipImageProcessorPil(size={"height": 224, "width": 224}), tokenizer, qformer_tokenizer(), num_query_tokens=32
    )
    config = InstructBlipConfig(
        vision_config=InstructBlipVisionConfig(**VISION),
        qformer_config=InstructBlipQFormerConfig(**QFORMER),
        text_config=text_config,
        num_query_tokens=32,
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = InstructBlipForConditionalGeneration(config)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model


def save_blip_2(folder):
    """A folder as that of Salesforce/blip2-flan-t5-xl."""
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2Processor,
        Blip2QFormerConfig,
        Blip2VisionConfig,
        BlipImageProcessorPil,
    )

    images = BlipImageProcessorPil(size={"height": 224, "width": 224})
    processor = Blip2Processor(images, t5_tokenizer(), num_query_tokens=32)
    config = Blip2Config(
        vision_config=Blip2VisionConfig(**VISION),
        qformer_config=Blip2QFormerConfig(**QFORMER),
        text_config=t5_config(),
        num_query_tokens=32,
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
    )
    Blip2ForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)


def save_lavis(model, file):
    """The trimmed LAVIS file of an official model with T5: what trained, under LAVIS' names."""
    import torch

    names = {
        r"^vision_model\.post_layernorm": "ln_vision",
        r"^language_projection": "t5_proj",
        r"^qformer\.embeddings\.layernorm": "qformer.embeddings.LayerNorm",
        r"^qformer\.": "Qformer.bert.",
        r"attention\.attention\.": "attention.self.",
    }
    state = {}
    for name, tensor in model.state_dict().items():
        if not name.startswith(("language_model.", "vision_model.e")):
            for pattern, new in names.items():
                name = re.sub(pattern, new, name)
            state[name] = tensor.clone()
    torch.save({"model": state}, file)


def save_stand_ins(folder):
    """One folder for each Hub id that the pages name, and the LAVIS file; returns the folders by id."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        BertConfig,
        BertForPreTraining,
        SiglipConfig,
        SiglipImageProcessorPil,
        SiglipModel,
        T5ForConditionalGeneration,
    )

    torch.manual_seed(0)
    folders = {
        "Salesforce/instructblip-flan-t5-xl": folder / "xl",
        "Salesforce/instructblip-vicuna-7b": folder / "vicuna",
        "Salesforce/blip2-flan-t5-xl": folder / "blip2",
        "google/flan-t5-xl": folder / "t5",
        "google/siglip-base-patch16-224": folder / "siglip",
        "Qwen/Qwen2.5-0.5B-Instruct": folder / "qwen",
        "google-bert/bert-base-uncased": folder / "bert",
    }
    xl, vicuna, blip2, t5, siglip, qwen, bert = folders.values()
    save_blip_2(blip2)
    save_lavis(save_official(xl, t5_config(), t5_tokenizer()), folder / "lavis.pth")
    save_official(vicuna, decoder_config("llama"), bytes_tokenizer())
    T5ForConditionalGeneration(t5_config()).save_pretrained(t5)
    t5_tokenizer().save_pretrained(t5)
    text = dict(VISION, vocab_size=80, max_position_embeddings=16)
    SiglipModel(SiglipConfig(text_config=text, vision_config=VISION)).save_pretrained(siglip)
    SiglipImageProcessorPil(size={"height": 224, "width": 224}).save_pretrained(siglip)
    AutoModelForCausalLM.from_config(decoder_config("qwen2")).save_pretrained(qwen)
    bytes_tokenizer().save_pretrained(qwen)
    qformer_tokenizer().save_pretrained(bert)
    sizes = {name: size for name, size in QFORMER.items() if name != "encoder_hidden_size"}
    BertForPreTraining(BertConfig(**{**sizes, "vocab_size": QFORMER["vocab_size"] - 1})).save_pretrained(bert)
    return folders


def save_cauldron(folder):
    """A Parquet file in the layout of HuggingFaceM4/the_cauldron, which has a folder for each config."""
    from datasets import Dataset
    from PIL import Image

    texts = [{"user": "What is this?", "assistant": "a photo", "source": "AI2D"}]
    rows = Dataset.from_list([{"images": [Image.new("RGB", (64, 64), "red")], "texts": texts}])
    (folder / "ai2d").mkdir(parents=True)
    rows.to_parquet(folder / "ai2d" / "train-00000-of-00001.parquet")
    config = "- config_name: ai2d\n  data_files:\n  - split: train\n    path: ai2d/train-*\n"
    (folder / "README.md").write_text(f"---\nconfigs:\n{config}---\n")
    return folder


def publish(hub, repo_id, folder, kind="model"):
    """Put a folder into the store behind the Hub, without a client."""
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    entries = {name: hub.store.entry(hub.store.put(path.read_bytes()), False) for name, path in files.items()}
    hub.store.create(kind, repo_id, private=False)
    hub.store.commit(hub.store.get(kind, repo_id), {"summary": "stand-in"}, entries)


def save_user_files(folder):
    """What the pages take for granted beside the package: one's own pictures, questions and checkpoint files."""
    import av
    import numpy as np
    from PIL import Image

    (folder / "data" / "photos").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    pictures = [Image.fromarray(pixels) for pixels in noise]
    lines = []
    for number, picture in enumerate(pictures):
        picture.save(folder / "data" / "photos" / f"{number + 1:04}.jpg")
        lines.append({"image": f"photos/{number + 1:04}.jpg", "question": "what is this ?", "answer": "a photo"})
    for split in ("train", "validation"):
        (folder / "data" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    for name in ("photo", "before", "after"):
        pictures[0].save(folder / f"{name}.jpg")
    with av.open(str(folder / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width = stream.height = 64
        for picture in pictures * 2:
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("images", "*.json"))
    recipe = folder / "examples" / "finetune.yaml"
    recipe.write_text(re.sub(r"(?m)^dataloader_num_workers.*", "dataloader_num_workers: 0", recipe.read_text("utf-8")))
    data = folder / "examples" / "vqa_rad" / "data"
    (data / "images").mkdir(parents=True, exist_ok=True)
    for name, count in (("trainset.json", 12), ("testset.json", 6)):
        records = json.loads((ROOT / "examples" / "vqa_rad" / "data" / name).read_text("utf-8"))[:count]
        (data / name).write_text(json.dumps(records))
        for record in records:
            shutil.copy(ROOT / "examples" / "vqa_rad" / "data" / "images" / record["image_name"], data / "images")


# ---- The process that runs the pages


def shrink_defaults():
    """New Q-Formers, and what LAVIS files are held to, get the stand-ins' size; nothing slow is done in passing."""
    import torch
    from lm_eval.tasks import TaskManager

    from instructblip.modeling import InstructBLIPQFormerConfig, convert_lavis

    torch.set_num_threads(1)
    torch.compile = partial(torch.compile, backend="eager")
    TaskManager.__init__ = partialmethod(TaskManager.__init__, include_defaults=False)  # or it reads 10,000 YAML files
    made = InstructBLIPQFormerConfig.__init__
    InstructBLIPQFormerConfig.__init__ = lambda self, **kwargs: made(self, **{**QFORMER, **kwargs})
    parts = {
        "vision_config": {"model_type": "instructblip_vision_model", **VISION},
        "qformer_config": QFORMER,
        "text_config": t5_config().to_dict(),
        "image_token_index": t5_tokenizer().add_tokens("<image>") + len(T5_WORDS) - 1,
    }
    convert_lavis.VARIANTS["flan-t5-xl"] = convert_lavis.Variant(parts, language_model="google/flan-t5-xl")


def run_command(words):
    """Run one of our commands in this process; the launcher of several processes is left out."""
    if words[:2] == ["accelerate", "launch"]:
        place = next(number for number, word in enumerate(words) if word.endswith(".py") or word == "-m")
        words = ["python", *words[place:]]
    name, *arguments = words
    scripts = entry_points(group="console_scripts", name=name) if name.startswith("instructblip-") else ()
    before = sys.argv, sys.path[:]
    try:
        if name == "python" and arguments[0] == "-m":
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        elif name == "python":
            sys.argv = arguments
            sys.path.insert(0, str(Path(arguments[0]).parent))
            runpy.run_path(arguments[0], run_name="__main__")
        elif scripts:
            sys.argv = words
            sys.exit(next(iter(scripts)).load()())  # as the launcher that pip writes does
        else:
            raise AssertionError(f"{name} is none of our commands, and not in NOT_OURS")
    except SystemExit as end:
        if end.code not in (None, 0):
            raise AssertionError(f"{shlex.join(words)} exits with {end.code}") from end
    finally:
        sys.argv, sys.path[:] = before


def run_block(block, names):
    """What went wrong in a block; None if nothing did."""
    if block["language"] == "yaml" and (found := re.match(r"# (\S+/\S+)\n", block["code"])):
        Path(found[1]).parent.mkdir(parents=True, exist_ok=True)
        Path(found[1]).write_text(block["code"].partition("\n")[2])
    if block["file"]:
        Path(block["file"]).parent.mkdir(parents=True, exist_ok=True)
        Path(block["file"]).write_text(block["code"], "utf-8")
    missing = block["needs"] and importlib.util.find_spec(block["needs"]) is None
    if missing or block["language"] not in ("python", "bash"):
        return None
    try:
        if block["language"] == "bash":
            for words in commands(block["code"]):
                if words[0] not in NOT_OURS:
                    run_command(words)
        else:
            code = "\n" * block["line"] + block["code"]  # so that tracebacks name the line of the page
            exec(compile(code, block["page"], "exec"), names)
    except Exception as error:
        shown = re.escape((block["fails"] or "").strip()).replace(r"\.\.\.", ".*")
        return None if block["fails"] and re.match(shown, str(error)) else traceback.format_exc()
    return f"nothing fails, and the page says {block['fails']}" if block["fails"] else None


def run_pages(job):
    """Run all pages that a job file names, and write what happened beside it."""
    shrink_defaults()
    results, finished = [], []
    for page, folder in json.loads(job.read_text()).items():
        os.chdir(folder)
        names = {"__name__": "__main__"}
        for block in blocks_of(page):
            output, began = io.StringIO(), time.perf_counter()
            with contextlib.redirect_stdout(output):
                error = run_block(block, names)
            seconds = round(time.perf_counter() - began, 1)
            results.append({"place": [page, block["line"]], "error": error, "seconds": seconds})
            results[-1]["output"] = output.getvalue()[-2000:]
        finished.append(names)  # kept, so that nothing is torn down while other pages run
    job.with_suffix(".results").write_text(json.dumps(results))


# ---- Tests


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """What happened to each block, by page and line."""
    from minihub import MiniHub

    folder = tmp_path_factory.mktemp("docs")
    save_user_files(folder / "user")
    job = {}
    with MiniHub() as hub:
        hub.orgs = ("your-name",)
        for repo_id, saved in save_stand_ins(folder).items():
            publish(hub, repo_id, saved)
        publish(hub, "HuggingFaceM4/the_cauldron", save_cauldron(folder / "cauldron"), "dataset")
        shutil.copy(folder / "lavis.pth", folder / "user" / "instruct_blip_flanxl_trimmed.pth")
        for page in PAGES:
            job[page] = str(folder / page.replace("/", "_"))
            shutil.copytree(folder / "user", job[page])
        (folder / "job.json").write_text(json.dumps(job))
        environment = {**hub.client_env(folder / "home"), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, __file__, str(folder / "job.json")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    results = json.loads((folder / "job.results").read_text())
    return {tuple(result["place"]): result for result in results}


@by_place
def test_what_a_page_shows_runs(block, outcome):
    if block["needs"]:
        pytest.importorskip(block["needs"])
    result = outcome[block["page"], block["line"]]
    assert result["error"] is None, f"{result['error']}\n{result['output']}"


@pytest.mark.parametrize("page", LINKED)
def test_relative_links_lead_to_files(page):
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text("utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    relative = {target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:|#", target)}
    assert [target for target in sorted(relative) if not (ROOT / page).parent.joinpath(target).exists()] == []


@pytest.mark.parametrize("page", LINKED)
def test_files_that_a_page_names_exist(page):
    text = (ROOT / page).read_text("utf-8")
    ours = {entry.name for entry in ROOT.iterdir()} - {"outputs", "build", "dist"}
    named = set(re.findall(r"(?<![\w/.-])[\w.-]+(?:/[\w.-]+)+/?", text)) | set(re.findall(r"`([\w.-]+/?)`", text))
    paths = {name.rstrip("./") for name in named if name.split("/")[0] in ours and name.partition("/")[2]}
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []
    python = {name for name in named if "/" not in name and name.endswith(".py")}
    folders = [name for name in ours if not name.startswith(".")]
    everywhere = {path.name for folder in folders for path in (ROOT / folder).rglob("*.py")}
    assert sorted(python - everywhere - ours - {"utils.py"}) == []  # CONTRIBUTING: there is none


@pytest.mark.parametrize("page", LINKED)
def test_make_targets_that_a_page_names_exist(page):
    targets = re.findall(r"^([a-z_]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    shown = re.findall(r"(?:^|`)make ([a-z_]+)", (ROOT / page).read_text("utf-8"), re.MULTILINE)
    assert sorted(set(shown) - set(targets)) == []


if __name__ == "__main__":
    run_pages(Path(sys.argv[1]))
