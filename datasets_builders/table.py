"""What differs between the datasets and is no code: one entry each.

`recalled` names the facts of an entry that no public document seen by us confirms; all others were checked against the
owners' pages or counted in the files.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Counts:
    """What a split holds when nothing is left out."""

    rows: int  # visual inputs
    samples: int
    answers: int


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """One dataset."""

    name: str  # of the builder's module and in `load`
    title: str
    builder: str  # class in that module
    category: str  # one of the paper's eleven
    role: Literal["held_in", "held_out", "extra"]  # in the paper's mixture; "extra": not one of its 26
    task: Literal["vqa", "caption", "true_false"]  # family of templates
    splits: Mapping[str, tuple[str, ...]]  # split -> places in data_dir of its annotation file; {config} is filled in
    counts: Mapping[str, Counts]  # "config/split"
    licence: str
    access: str  # how to get the files, and terms to accept
    homepage: str
    hub_ids: tuple[str, ...]  # copies on the Hub; `access` says how they differ
    prompt: str  # for evaluation; the paper's appendix E where it has one
    metric: str
    method: Literal["generate", "rank"]
    citation_key: str
    citation: str
    answer_policy: Literal["most_frequent", "sampled", "all"] = "most_frequent"  # see instructions.py
    lowercase_answers: bool = False  # for sets that spell one answer in several ways, "Yes" and "yes"
    recalled: tuple[str, ...] = ()


VQA_RAD = DatasetSpec(
    name="vqa_rad",
    title="VQA-RAD",
    builder="VQARad",
    category="image question answering",
    role="extra",
    task="vqa",
    splits={"train": ("trainset.json",), "test": ("testset.json",)},
    counts={"default/train": Counts(314, 3064, 3064), "default/test": Counts(203, 451, 451)},
    licence="CC0-1.0",
    access=(
        "OSF project 89kps, 315 radiology images of NLM MedPix with questions by clinicians. trainset.json and "
        "testset.json are the split used in the literature; both ask about the same images by design. The Hub copy has "
        "the same 451 test questions and 1,793 of the training ones, without answer_type."
    ),
    homepage="https://osf.io/89kps/",
    hub_ids=("flaviagiammarino/vqa-rad",),
    prompt="Question: {question} Short answer:",
    metric="exact match after strip and lower-case, over all, CLOSED and OPEN questions",
    method="generate",
    citation_key="lau2018dataset",
    citation=(
        "@article{lau2018dataset, title={A dataset of clinically generated visual questions and answers about "
        "radiology images}, author={Lau, Jason J. and Gayen, Soumya and Ben Abacha, Asma and Demner-Fushman, Dina}, "
        "journal={Scientific Data}, volume={5}, year={2018}}"
    ),
    lowercase_answers=True,
)

COCO_CAPTION = DatasetSpec(
    name="coco_caption",
    title="COCO Caption",
    builder="COCOCaption",
    category="image captioning",
    role="held_in",
    task="caption",
    splits={
        "train": ("annotations/captions_train{config}.json", "captions_train{config}.json"),
        "validation": ("annotations/captions_val{config}.json", "captions_val{config}.json"),
    },
    counts={
        "2017/train": Counts(118_287, 118_287, 591_753),
        "2017/validation": Counts(5_000, 5_000, 25_014),
        "2014/train": Counts(82_783, 82_783, 414_113),
        "2014/validation": Counts(40_504, 40_504, 202_654),
    },
    licence="CC-BY-4.0 (captions); each photograph has its own Flickr licence",
    access=(
        "cocodataset.org: annotations_trainval2017.zip with train2017.zip and val2017.zip, or the same of 2014. "
        "The paper trains on Karpathy's split of the 2014 images, 566,747 captions."
    ),
    homepage="https://cocodataset.org",
    hub_ids=("lmms-lab/COCO-Caption", "yerevann/coco-karpathy"),
    prompt="A short image description:",
    metric="CIDEr",
    method="generate",
    citation_key="chen2015microsoft",
    citation=(
        "@article{chen2015microsoft, title={Microsoft COCO Captions: Data Collection and Evaluation Server}, "
        "author={Chen, Xinlei and Fang, Hao and Lin, Tsung-Yi and Vedantam, Ramakrishna and Gupta, Saurabh and Dollar, "
        "Piotr and Zitnick, C. Lawrence}, journal={arXiv:1504.00325}, year={2015}}"
    ),
    answer_policy="all",  # every caption is a training example, as the paper counts them
    recalled=("counts[2017/train].answers", "counts[2014/train].answers", "counts[2014/validation].answers"),
)

VSR = DatasetSpec(
    name="vsr",
    title="Visual Spatial Reasoning",
    builder="VSR",
    category="visual reasoning",
    role="held_out",
    task="true_false",
    splits={
        "train": ("splits/{config}/train.jsonl", "data/splits/{config}/train.jsonl", "train.jsonl"),
        "validation": ("splits/{config}/dev.jsonl", "data/splits/{config}/dev.jsonl", "dev.jsonl"),
        "test": ("splits/{config}/test.jsonl", "data/splits/{config}/test.jsonl", "test.jsonl"),
    },
    counts={
        "zeroshot/train": Counts(2249, 3489, 3489),
        "zeroshot/validation": Counts(227, 340, 340),
        "zeroshot/test": Counts(715, 1222, 1222),
    },
    licence="Apache-2.0 (repository); the authors' Hub card says CC-BY-4.0; photographs as COCO",
    access=(
        "github.com/cambridgeltl/visual-spatial-reasoning, data/splits; the images are COCO train2017 and val2017. "
        "The Hub copy holds the same three files of the zero-shot split, and no images."
    ),
    homepage="https://github.com/cambridgeltl/visual-spatial-reasoning",
    hub_ids=("cambridgeltl/vsr_zeroshot",),
    prompt='Based on the image, is this statement true or false? "{question}" Answer:',
    metric="accuracy",
    method="rank",
    citation_key="liu2023visual",
    citation=(
        "@article{liu2023visual, title={Visual Spatial Reasoning}, author={Liu, Fangyu and Emerson, Guy and Collier, "
        "Nigel}, journal={Transactions of the Association for Computational Linguistics}, volume={11}, year={2023}}"
    ),
)

TABLE: dict[str, DatasetSpec] = {spec.name: spec for spec in (VQA_RAD, COCO_CAPTION, VSR)}
