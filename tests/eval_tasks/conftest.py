"""A small data set in VQA-RAD's official format, and models for the harness."""

import json
from types import SimpleNamespace

import datasets
import pytest
import torch
from official_data import write_official_data
from transformers import BatchFeature

LOGGED = "nocaps gqa vsr visdial hateful_memes textvqa vqav2 pope_random vqa_rad_ranked".split()

QUESTIONS = ["is there a cat ?", "what color is this ?", "is the dog left ?", "what is in the picture ?"]
ANSWERS = {"CLOSED": ["yes", "No"], "OPEN": ["red", "two dog", "blue"]}


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))


def _records(count, pictures, first):
    for number in range(count):
        kind = "CLOSED" if number % 2 == 0 else "OPEN"
        yield {
            "qid": first + number,
            "image_name": f"synpic{number % pictures}.png",
            "image_organ": "HEAD",
            "answer": ANSWERS[kind][number // 2 % len(ANSWERS[kind])],
            "answer_type": kind,
            "question_type": "PRES",
            "question": QUESTIONS[number % 4] + " ?" * (number % 3),
            "phrase_type": "freeform",
        }


@pytest.fixture
def data_root(tmp_path, tiny_images):
    """A folder with `vqa_rad`: 12 training questions, and 10 test questions about 4 pictures."""
    folder = tmp_path / "vqa_rad"
    (folder / "images").mkdir(parents=True)
    for number, image in enumerate(tiny_images[:4]):
        image.save(folder / "images" / f"synpic{number}.png")
    (folder / "trainset.json").write_text(json.dumps(list(_records(12, 4, first=1))))
    (folder / "testset.json").write_text(json.dumps(list(_records(10, 4, first=101))))
    return tmp_path


class StubProcessor:
    """Hands texts and pictures on as they are, and keeps them for the test to look at."""

    def __init__(self):
        self.batches = []

    def __call__(self, images=None, text=None, **kwargs):
        self.batches.append((images, text))
        brightness = [sum(image.getpixel((0, 0))[0] for image in row or []) for row in images or [None] * len(text)]
        return BatchFeature(
            {"text_lengths": torch.tensor([[len(line)] for line in text]), "light": torch.tensor(brightness)}
        )

    def check_compatible(self, config):
        pass

    def encode_answers(self, answers):
        return [[ord(letter) for letter in answer] for answer in answers]

    def batch_decode(self, tokens, skip_special_tokens):
        return [f" light {light} . stop {length}" for light, length in tokens.tolist()]


class StubModel(torch.nn.Module):
    """Answers and scores follow from text, picture and candidate alone; nothing is learned."""

    class config:  # noqa: N801
        is_encoder_decoder = True
        _name_or_path = "stub"

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self):
        super().__init__()
        self.calls = []

    def num_parameters(self):
        return 0

    def generate(self, text_lengths, light, **settings):
        self.calls.append(("generate", len(light), settings))
        return torch.stack([light, text_lengths[:, 0]], dim=1)

    def score_candidates(self, candidates, text_lengths, light, **settings):
        self.calls.append(("score", len(light), settings))
        most = max(map(len, candidates))
        scores = torch.full((len(candidates), most), float("-inf"))
        for row, ids in enumerate(candidates):
            for place, letters in enumerate(ids):
                scores[row, place] = -((sum(letters) * 31 + int(light[row]) * 17 + int(text_lengths[row])) % 101)
        return scores


@pytest.fixture(scope="session")
def stub_lm():
    """A factory of harness models around the stub: `stub_lm(batch_size=4)`."""
    from instructblip.eval_tasks import InstructBLIPEvalModel

    return lambda **kwargs: InstructBLIPEvalModel(StubModel(), StubProcessor(), device="cpu", **kwargs)


@pytest.fixture
def tiny_processor(request, qformer_tokenizer):
    """A factory of processors for `tiny_model`: `tiny_processor("llama")`."""
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    from instructblip import InstructBLIPProcessor

    def make(language):
        tokenizer = request.getfixturevalue(f"{language}_tokenizer")
        tokenizer.add_tokens([f"<unused{number}>" for number in range(79 - len(tokenizer))])  # <image> becomes 79
        return InstructBLIPProcessor(
            BlipImageProcessorPil(size={"height": 28, "width": 28}),
            tokenizer,
            qformer_tokenizer,
            num_query_tokens=4,
            qformer_max_length=64,  # the tiny Q-Former's positions
            is_encoder_decoder=language == "t5",
        )

    return make


@pytest.fixture
def tiny_lm(tiny_model, tiny_processor):
    """A factory of harness models around a tiny checkpoint in memory: `tiny_lm("llama", batch_size=4)`."""
    from instructblip.eval_tasks import InstructBLIPEvalModel

    def make(language, **kwargs):
        processor = tiny_processor(language)
        model = tiny_model(language, image_token_index=processor.image_token_id)
        return InstructBLIPEvalModel(model, processor, device="cpu", **kwargs)

    return make


@pytest.fixture
def evaluate(data_root):
    """`lm_eval.simple_evaluate` on the small data set."""
    import lm_eval

    from instructblip.eval_tasks import task_manager

    def run(model, *tasks, **kwargs):
        manager = task_manager(data_root=str(data_root))
        return lm_eval.simple_evaluate(model, tasks=list(tasks), task_manager=manager, bootstrap_iters=0, **kwargs)

    return run


@pytest.fixture(scope="session")
def logged(stub_lm, tmp_path_factory):
    """Results and samples of two models, as lm-eval writes them: `folder`, and `data_root`.

    "org/first" was asked everything in `LOGGED` and generates the truth for every other document and else "nothing";
    "org/second" was asked two tasks, with `--limit 2` and other settings, and never generates the truth.
    """
    from logged_results import answering, log_evaluation  # and lm-eval

    root, tasks = tmp_path_factory.mktemp("logged"), [f"instructblip_{name}" for name in LOGGED]
    data_root = write_official_data(root / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(root / "cache"))
        first = answering(stub_lm(batch_size=4), lambda place, doc: "nothing" if place % 2 else doc["answers"][0])
        log_evaluation(first, root / "runs", data_root, tasks, name="org/first")
        second = answering(stub_lm(length_normalize=True), lambda place, doc: "nothing")
        two = ["instructblip_gqa", "instructblip_nocaps"]
        log_evaluation(second, root / "runs", data_root, two, name="org/second", limit=2)
    return SimpleNamespace(folder=root / "runs", data_root=data_root, tasks=tasks)
