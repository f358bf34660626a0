"""Turn LAVIS' `blip2_pretrained.pth` into a folder for `InstructBLIPForPreTraining.from_pretrained`.

instructblip-convert-lavis blip2_pretrained.pth OUTPUT --variant stage-1
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .configuration_instruct_blip import InstructBLIPConfig
from .convert_lavis import (
    LAVIS_POST_LAYERNORM_EPS,
    STAGE1_HEADS,
    check_complete,
    convert_state_dict,
    expected_shapes,
    load_lavis,
    named_place,
    part_of,
    read_vision,
    save,
)
from .modeling_pretraining import InstructBLIPForPreTraining

CONFIG: dict[str, Any] = {}  # keyword arguments of `InstructBLIPConfig`, whose defaults are the released sizes
VISION_TOWER = "Salesforce/instructblip-flan-t5-xl"

HEADS = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"Qformer\.cls\.predictions\.bias", r"lm_head.bias"),
        (r"Qformer\.cls\.predictions\.transform\.(dense|LayerNorm)\.(weight|bias)", r"lm_head.\1.\2"),
        (r"(vision|text)_proj\.(weight|bias)", r"\1_projection.\2"),
        (r"itm_head\.(weight|bias)", r"itm_head.\1"),
        (r"temp", r"temperature"),
    )
)
# The word embeddings and the bias again, under a second name.
COPIES = {
    "Qformer.cls.predictions.decoder.weight": "Qformer.bert.embeddings.word_embeddings.weight",
    "Qformer.cls.predictions.decoder.bias": "Qformer.cls.predictions.bias",
}


def convert_heads(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The heads of a stage-1 state dict under our names.

    Raises:
        ValueError: the output weights of the language-modeling head are not the word embeddings.
    """
    for copy, original in COPIES.items():
        if copy in state_dict and original in state_dict and not torch.equal(state_dict[copy], state_dict[original]):
            raise ValueError(f"{copy} differs from {original}: they are one tensor in stage 1")
    converted = {}
    for key, tensor in state_dict.items():
        for pattern, name in HEADS:
            match = pattern.fullmatch(key)
            if match:
                converted[match.expand(name)] = tensor.reshape(1) if key == "temp" else tensor
    return converted


def convert_stage1(options: argparse.Namespace) -> None:
    """Do what the command line says, with `--variant stage-1`.

    Raises:
        ValueError, OSError: nothing is written.
    """
    if options.llm or options.init_from:
        raise ValueError("stage 1 has no language model and no stage before it: leave out --llm and --init-from")
    config = InstructBLIPConfig(**CONFIG, post_layernorm_eps=LAVIS_POST_LAYERNORM_EPS)
    config.vision_config.image_size = options.image_size
    state_dict = load_lavis(options.checkpoint)
    tensors = convert_state_dict({key: t for key, t in state_dict.items() if not STAGE1_HEADS.fullmatch(key)}, config)
    tensors.update(convert_heads(state_dict))

    has_tower = any(part_of(name) == "vision" for name in tensors)
    if has_tower and options.vision:
        raise ValueError(f"{options.checkpoint} has its own vision model: leave out --vision")
    expected = expected_shapes(config, InstructBLIPForPreTraining)
    check_complete(tensors, {name: shape for name, shape in expected.items() if has_tower or part_of(name) != "vision"})
    bridge_only = options.bridge_only or not (has_tower or options.vision)
    if bridge_only:
        source = options.vision or VISION_TOWER
        tensors = {name: tensor for name, tensor in tensors.items() if part_of(name) != "vision"}
        config.backbones = {"vision": named_place(source, "vision")}
    elif options.vision:
        tensors.update(read_vision(options.vision, config))
        check_complete(tensors, expected)
    output = Path(options.output)
    save(tensors, config, output, getattr(torch, options.dtype), bridge_only, InstructBLIPForPreTraining)
    kind = "a bridge-only release" if bridge_only else "the whole model"
    print(f"Saved stage 1, {kind}, in {output}: AutoModelForPreTraining loads it, start_from_stage1 begins with it.")
