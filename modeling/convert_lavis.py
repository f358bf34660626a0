"""Turn LAVIS `.pth` files into folders for `from_pretrained`.

    instructblip-convert-lavis CHECKPOINT OUTPUT --variant flan-t5-xl

LAVIS writes four kinds of file, told apart by what is in them:

    full      vision tower, Q-Former and language model
    trimmed   InstructBLIP releases: only what trained (Q-Former, query tokens, `ln_vision`, projection)
    stage 2   BLIP-2 releases: as trimmed, but the Q-Former has no word embeddings and no text feed-forward
    stage 1   `blip2_pretrained.pth`: Q-Former with its text branch and the pre-training heads, no projection

InstructBLIP starts from stage 2 laid over stage 1, which has the text branch: `--init-from blip2_pretrained.pth`. With
`--variant stage-1` that file becomes an `InstructBLIPForPreTraining` of its own.
"""

from __future__ import annotations

import argparse
import copy
import logging
import math
import os
import pickle
import re
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from .backbones import commit_of, read_tensors
from .configuration_instruct_blip import InstructBLIPConfig
from .modeling_instruct_blip import InstructBLIPForConditionalGeneration

logger = logging.getLogger(__name__)

# LAVIS runs Flan-T5 with the exact GELU, not with the tanh approximation that Flan-T5 was trained with. Both settings
# are needed: `feed_forward_proj` makes the block gated, and chooses the approximation unless `dense_act_fn` is given.
FLAN_T5 = {
    "model_type": "t5",
    "feed_forward_proj": "gated-gelu",
    "dense_act_fn": "gelu",
    "tie_word_embeddings": False,  # which T5Config reads as: do not scale the decoder's outputs
    "d_kv": 64,
    "num_layers": 24,
    "vocab_size": 32128,  # 32100 words and a margin, where <image> is
    "bos_token_id": 1,
    "decoder_start_token_id": 0,
}
VICUNA = {
    "model_type": "llama",
    "vocab_size": 32064,  # 32000 words, [PAD], <image>, rounded up to 64
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "pad_token_id": 32000,
    "bos_token_id": 2,  # LAVIS begins its prompts with </s>
    "eos_token_id": 2,
}


@dataclass(frozen=True)
class Variant:
    """One of the released models.

    Attributes:
        config: keyword arguments of `InstructBLIPConfig`; its defaults are the released vision tower and Q-Former.
        language_model: Hub id that a bridge-only release names, with the pad token's row where LAVIS added one.
        vision_tower: as `language_model`.
    """

    config: dict[str, Any]
    language_model: str
    vision_tower: str = "Salesforce/instructblip-flan-t5-xl"


VARIANTS = {
    "flan-t5-xl": Variant(
        config={"text_config": dict(FLAN_T5, d_model=2048, d_ff=5120, num_heads=32), "image_token_index": 32100},
        language_model="google/flan-t5-xl",
    ),
    "flan-t5-xxl": Variant(
        config={"text_config": dict(FLAN_T5, d_model=4096, d_ff=10240, num_heads=64), "image_token_index": 32100},
        language_model="google/flan-t5-xxl",
    ),
    "vicuna-7b": Variant(
        config={
            "text_config": dict(
                VICUNA, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
            ),
            "image_token_index": 32001,
        },
        language_model="Salesforce/instructblip-vicuna-7b",
    ),
    "vicuna-13b": Variant(
        config={
            "text_config": dict(
                VICUNA, hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40
            ),
            "image_token_index": 32001,
        },
        language_model="Salesforce/instructblip-vicuna-13b",
    ),
}
STAGE1 = "stage-1"  # as a variant: the pre-training model, which has no language model
LAVIS_POST_LAYERNORM_EPS = 1e-5  # torch's default; the blocks of the tower have 1e-6

LANGUAGE_PREFIXES = ("t5_model.", "llm_model.", "opt_model.")
PROJECTIONS = ("t5_proj.", "llm_proj.", "opt_proj.")

# LAVIS name (a pattern that fits the whole of it) -> our name. What fits none of them is an error.
RENAMES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"query_tokens", r"query_tokens"),
        (r"visual_encoder\.cls_token", r"vision_model.embeddings.class_embedding"),
        (r"visual_encoder\.pos_embed", r"vision_model.embeddings.position_embedding"),
        (r"visual_encoder\.patch_embed\.proj\.(weight|bias)", r"vision_model.embeddings.patch_embedding.\1"),
        (
            r"visual_encoder\.blocks\.(\d+)\.norm([12])\.(weight|bias)",
            r"vision_model.encoder.layers.\1.layer_norm\2.\3",
        ),
        (r"visual_encoder\.blocks\.(\d+)\.attn\.qkv\.weight", r"vision_model.encoder.layers.\1.self_attn.qkv.weight"),
        (
            r"visual_encoder\.blocks\.(\d+)\.attn\.proj\.(weight|bias)",
            r"vision_model.encoder.layers.\1.self_attn.projection.\2",
        ),
        (r"visual_encoder\.blocks\.(\d+)\.mlp\.(fc[12])\.(weight|bias)", r"vision_model.encoder.layers.\1.mlp.\2.\3"),
        (r"ln_vision\.(weight|bias)", r"vision_model.post_layernorm.\1"),
        (r"Qformer\.bert\.embeddings\.(word|position)_embeddings\.weight", r"qformer.embeddings.\1_embeddings.weight"),
        (r"Qformer\.bert\.embeddings\.LayerNorm\.(weight|bias)", r"qformer.embeddings.layernorm.\1"),
        (
            r"Qformer\.bert\.encoder\.layer\.(\d+)\.(cross)?attention\.self\.(query|key|value)\.(weight|bias)",
            r"qformer.encoder.layer.\1.\2attention.attention.\3.\4",
        ),
        (
            r"Qformer\.bert\.encoder\.layer\.(\d+)\.((?:cross)?attention\.output|output|output_query)"
            r"\.(dense|LayerNorm)\.(weight|bias)",
            r"qformer.encoder.layer.\1.\2.\3.\4",
        ),
        (
            r"Qformer\.bert\.encoder\.layer\.(\d+)\.(intermediate|intermediate_query)\.dense\.(weight|bias)",
            r"qformer.encoder.layer.\1.\2.dense.\3",
        ),
        (r"(?:t5|llm|opt)_proj\.(weight|bias)", r"language_projection.\1"),
        (r"(?:t5|llm|opt)_model\.(.+)", r"language_model.\1"),
    )
)
# LAVIS adds the q and v biases outside the Linear; the k bias does not exist, which is the same as zero.
QV_BIAS = re.compile(r"visual_encoder\.blocks\.(\d+)\.attn\.([qv])_bias")
# Tables that the code computes; LAVIS keeps buffers in every file, frozen or not.
BUFFERS = re.compile(
    r"Qformer\.bert\.embeddings\.position_ids|(?:llm_model|opt_model)\.model\.layers\.\d+\.self_attn\.rotary_emb\.\w+"
)
STAGE1_HEADS = re.compile(r"Qformer\.cls\..+|(?:vision_proj|text_proj|itm_head)\.(?:weight|bias)|temp")
TEXT_BRANCH = re.compile(
    r"qformer\.embeddings\.(?:word|position)_embeddings\.weight|qformer\.encoder\.layer\.\d+\.(?:intermediate|output)\..+"
)
# Copies of the input embeddings that old T5 and OPT files hold besides the original.
EMBEDDING_COPIES = ("language_model.encoder.embed_tokens.weight", "language_model.decoder.embed_tokens.weight")
VOCABULARY_TABLES = (
    "language_model.shared.weight",
    "language_model.model.embed_tokens.weight",
    "language_model.lm_head.weight",
)


def variant_config(name: str, image_size: int = 224) -> InstructBLIPConfig:
    """The config of one of `VARIANTS` with LAVIS' numerics."""
    config = InstructBLIPConfig(**copy.deepcopy(VARIANTS[name].config), post_layernorm_eps=LAVIS_POST_LAYERNORM_EPS)
    config.vision_config.image_size = image_size
    return config


def convert_state_dict(state_dict: Mapping[str, torch.Tensor], config: InstructBLIPConfig) -> dict[str, torch.Tensor]:
    """Rename and reshape a LAVIS state dict; whatever it lacks, the result lacks too (see `check_complete`).

    Args:
        state_dict: tensors under LAVIS names, of any of the four kinds of file. Not changed.
        config: the model to fit. The position table of the vision tower is resized to its image size, and the
            vocabulary tables of the language model get rows for the pad and image tokens where they lack them.

    Returns:
        Tensors under our names, in the dtypes they came in.

    Raises:
        ValueError: names that LAVIS does not use (all are listed), or parts that contradict each other.
    """
    has_projection = any(key.startswith(PROJECTIONS) for key in state_dict)
    converted: dict[str, torch.Tensor] = {}
    sources: dict[str, str] = {}
    heads, unknown = [], []
    for key in sorted(state_dict):
        if BUFFERS.fullmatch(key) or QV_BIAS.fullmatch(key):
            continue
        if STAGE1_HEADS.fullmatch(key) and not has_projection:
            heads.append(key)
            continue
        name = our_name(key)
        if name is None:
            unknown.append(key)
        elif name in sources:
            raise ValueError(f"{sources[name]} and {key} are both {name}: this is not one LAVIS model")
        else:
            converted[name] = state_dict[key]
            sources[name] = key
    if unknown:
        raise ValueError(listing("unknown key", unknown, "in the LAVIS state dict"))
    if heads:
        logger.info(listing("tensor", heads, "of the stage-1 heads left out"))
    converted.update(fuse_qkv_biases(state_dict))
    drop_embedding_copies(converted)
    fit_positions(converted, config)
    grow_vocabulary(converted, config)
    return converted


def our_name(key: str) -> str | None:
    """Our name of a LAVIS tensor; None if LAVIS has no such tensor."""
    for pattern, replacement in RENAMES:
        match = pattern.fullmatch(key)
        if match:
            return match.expand(replacement)
    return None


def listing(noun: str, names: Iterable[str], rest: str) -> str:
    """`2 unknown keys in the file: a, b`, one name per line, sorted, none left out."""
    names = sorted(names)
    return f"{len(names)} {noun}{'' if len(names) == 1 else 's'} {rest}:" + "".join(f"\n  {name}" for name in names)


def fuse_qkv_biases(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The one bias of each block's qkv Linear: (q bias, zeros, v bias)."""
    biases: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in state_dict.items():
        match = QV_BIAS.fullmatch(key)
        if match:
            biases.setdefault(match[1], {})[match[2]] = tensor
    halves = [f"visual_encoder.blocks.{block}.attn" for block, pair in biases.items() if len(pair) == 1]
    if halves:
        raise ValueError(listing("attention", halves, "with only one of q_bias and v_bias"))
    return {
        f"vision_model.encoder.layers.{block}.self_attn.qkv.bias": torch.cat(
            [pair["q"], torch.zeros_like(pair["v"]), pair["v"]]
        )
        for block, pair in biases.items()
    }


def drop_embedding_copies(converted: dict[str, torch.Tensor]) -> None:
    """Keep one of T5's three input embeddings. `lm_head` stays: in Flan-T5 it differs from them.

    Raises:
        ValueError: a copy differs from `shared`, which this T5 cannot represent.
    """
    shared = converted.get("language_model.shared.weight")
    for name in EMBEDDING_COPIES:
        if shared is not None and name in converted and not torch.equal(converted.pop(name), shared):
            raise ValueError(f"{name} differs from language_model.shared.weight: they are one tensor in T5")


def fit_positions(converted: dict[str, torch.Tensor], config: InstructBLIPConfig) -> None:
    """Resize the vision tower's position table (1, 1 + patches, hidden) to the config's image size, as LAVIS does.

    Raises:
        ValueError: the table is not a class token and a square of patches.
    """
    name = "vision_model.embeddings.position_embedding"
    table = converted.get(name)
    if table is None:
        return
    vision = config.vision_config
    side, old_side = vision.image_size // vision.patch_size, math.isqrt(table.shape[1] - 1)
    if old_side**2 + 1 != table.shape[1]:
        raise ValueError(f"{name} has {table.shape[1]} positions: expected one and a square number of patches")
    if side == old_side:
        return
    grid = table[:, 1:].float().unflatten(1, (old_side, old_side)).permute(0, 3, 1, 2)  # (1, hidden, row, column)
    grid = torch.nn.functional.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    patches = grid.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)
    converted[name] = torch.cat([table[:, :1], patches], dim=1)
    logger.info("position table resized from %d x %d to %d x %d patches", old_side, old_side, side, side)


def grow_vocabulary(converted: dict[str, torch.Tensor], config: InstructBLIPConfig) -> None:
    """Add the rows that a language model lacks for the pad and image tokens, in place.

    LAVIS adds `[PAD]` to Vicuna's 32000 tokens, we add `<image>` after it, and the official folders round up to 64.
    New rows are the mean of the old ones: no token is ever read from them, and as outputs they cannot win. A table
    that lacks more than those rows is left alone, for `check_complete` to refuse.
    """
    rows = config.text_config.vocab_size
    for name in VOCABULARY_TABLES:
        table = converted.get(name)
        if table is None or not config.image_token_index - 1 <= table.shape[0] < rows:
            continue
        mean = table.float().mean(dim=0, keepdim=True).to(table.dtype)
        converted[name] = torch.cat([table, mean.expand(rows - table.shape[0], -1)])
        logger.info("%s grown from %d to %d rows", name, table.shape[0], rows)


def check_complete(converted: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Size]) -> None:
    """See that a converted state dict is exactly the model's.

    Args:
        expected: shape of each tensor of the model (`expected_shapes`).

    Raises:
        ValueError: lists every missing, superfluous and wrongly shaped tensor.
    """
    missing = [name for name in expected if name not in converted]
    superfluous = [name for name in converted if name not in expected]
    misshapen = [
        f"{name}: {tuple(converted[name].shape)}, expected {tuple(shape)}"
        for name, shape in expected.items()
        if name in converted and converted[name].shape != shape
    ]
    problems = []
    if missing:
        problems.append(listing("missing key", missing, "(our names)"))
        if all(TEXT_BRANCH.fullmatch(name) for name in missing):
            problems.append(
                "This is BLIP-2 stage 2, whose Q-Former reads no text: add --init-from blip2_pretrained.pth"
            )
        if "language_projection.weight" in missing:
            problems.append(
                "There is no projection: this is a stage-1 file, which goes into --init-from or has --variant stage-1"
            )
    if superfluous:
        problems.append(listing("key", superfluous, "(our names) that this variant does not have"))
    if misshapen:
        problems.append(listing("tensor", misshapen, "of another shape; is this the right --variant?"))
    if problems:
        raise ValueError("the checkpoint does not fit the model\n" + "\n".join(problems))


def load_lavis(path: str | Path) -> dict[str, torch.Tensor]:
    """The state dict of a LAVIS `.pth` file, mapped from disk where the file's format allows it.

    Raises:
        ValueError: the file is no PyTorch file, holds objects that could run code, or holds no state dict.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} is not loaded: no PyTorch file, or one with objects that could run code") from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is not a whole PyTorch file") from error
    state_dict = loaded.get("model", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(state_dict, dict) or not all(isinstance(value, torch.Tensor) for value in state_dict.values()):
        raise ValueError(f"{path} holds no state dict: expected a dict of tensors under the key 'model'")
    return state_dict


def expected_shapes(
    config: InstructBLIPConfig, model_class: type[PreTrainedModel] = InstructBLIPForConditionalGeneration
) -> dict[str, torch.Size]:
    """The shape of every tensor of the model, built without memory; T5's input embeddings once."""
    state_dict = empty_model(config, model_class).state_dict()
    return {name: tensor.shape for name, tensor in state_dict.items() if name not in EMBEDDING_COPIES}


def empty_model(
    config: InstructBLIPConfig, model_class: type[PreTrainedModel] = InstructBLIPForConditionalGeneration
) -> PreTrainedModel:
    with torch.device("meta"):
        return model_class(config)


def part_of(name: str) -> str:
    """`vision`, `language` or `bridge`: the part of the model that one of our names belongs to."""
    if name.startswith("language_model."):
        return "language"
    if name.startswith("vision_model.") and not name.startswith("vision_model.post_layernorm."):
        return "vision"
    return "bridge"


def merge_stages(stage1: Mapping[str, torch.Tensor], stage2: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Lay a converted stage-2 file over a converted stage-1 file: InstructBLIP's initialisation.

    What only stage 1 has is the Q-Former's text branch: 72 feed-forward tensors and 2 embedding tables at full size.
    """
    added = [name for name in stage1 if name not in stage2]
    logger.info(listing("tensor", added, "taken from stage 1"))
    return {**stage1, **stage2}


def place_of(source: str, part: str) -> dict[str, Any]:
    """A `backbones` entry for `REPO`, `REPO@REVISION` or a folder.

    Raises:
        ValueError: the source is a file.
        OSError: there is no such repository or folder.
    """
    if os.path.isfile(source):
        raise ValueError(f"{source} is a file: the {part} part is named by Hub id or folder")
    repo, _, revision = (source, "", "") if os.path.isdir(source) else source.partition("@")
    place: dict[str, Any] = {"repo": repo, "revision": commit_of(repo, revision or None)}
    config = AutoConfig.from_pretrained(repo, revision=place["revision"])
    if getattr(config, "qformer_config", None) is not None:
        place["prefix"] = f"{part}_model."
    return place


def named_place(source: str, part: str) -> dict[str, Any]:
    """As `place_of`, for a bridge-only release.

    Raises:
        ValueError: the commit cannot be found out.
    """
    place = place_of(source, part)
    if place["revision"] is None and not os.path.isdir(place["repo"]):
        raise ValueError(
            f"the commit of {place['repo']} cannot be looked up, and a bridge-only release names it: connect to the "
            f"Hub, or pass {place['repo']}@COMMIT for the {part} part"
        )
    return place


def read_vision(source: str, config: InstructBLIPConfig) -> dict[str, torch.Tensor]:
    """The frozen vision tower of `eva_vit_g.pth`, or of a Hub id or folder of an (Instruct)BLIP-2 checkpoint.

    Returns:
        Tensors under our names, without the LayerNorm after the tower, which trains.
    """
    if os.path.isfile(source):
        depth = config.vision_config.num_hidden_layers
        # BLIP-2 reads the second to last block, so what the file has after that is not ours.
        after = re.compile(r"(?:norm|fc_norm|head)\..+|blocks\.(\d+)\..+")
        tensors = {}
        for key, tensor in load_lavis(source).items():
            match = after.fullmatch(key)
            if match is None or (match[1] is not None and int(match[1]) < depth):
                tensors[f"visual_encoder.{key}"] = tensor
        return convert_state_dict(tensors, config)
    place = place_of(source, "vision")
    tensors = read_tensors(place["repo"], place["revision"], place.get("prefix", ""))
    named = {f"vision_model.{name}": tensor for name, tensor in tensors.items()}
    named = {name: tensor for name, tensor in named.items() if part_of(name) == "vision"}
    fit_positions(named, config)
    return named


def read_language(source: str, config: InstructBLIPConfig) -> dict[str, torch.Tensor]:
    """The frozen language model of a Hub id or folder, under our names, its vocabulary grown to the config's."""
    place = place_of(source, "language")
    if "prefix" in place:
        tensors = read_tensors(place["repo"], place["revision"], place["prefix"])
    else:
        auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        tensors = auto_class.from_pretrained(place["repo"], revision=place["revision"], dtype="auto").state_dict()
    named = {f"language_model.{name}": tensor for name, tensor in tensors.items()}
    drop_embedding_copies(named)
    grow_vocabulary(named, config)
    return named


def name_backbones(config: InstructBLIPConfig, vision: str, language: str) -> None:
    """Write into the config where a bridge-only release finds its frozen parts.

    Raises:
        ValueError: a commit cannot be found out, or the language model lacks the pad token's row.
    """
    places = {"vision": named_place(vision, "vision"), "language": named_place(language, "language")}
    theirs = AutoConfig.from_pretrained(places["language"]["repo"], revision=places["language"]["revision"])
    rows = theirs.get_text_config().vocab_size
    if rows < config.image_token_index:
        raise ValueError(
            f"{language} has {rows} tokens and LAVIS trained with {config.image_token_index}: a bridge-only release "
            "needs a language model that has the pad token, or convert without --bridge-only"
        )
    config.text_config.vocab_size = rows
    config.backbones = places


def save(
    tensors: Mapping[str, torch.Tensor],
    config: InstructBLIPConfig,
    output: Path,
    dtype: torch.dtype,
    bridge_only: bool,
    model_class: type[PreTrainedModel] = InstructBLIPForConditionalGeneration,
) -> None:
    """Write a folder that `from_pretrained` reads; it appears under its name only when it is whole."""
    model = empty_model(config, model_class)
    state_dict = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    # Assigned, not copied: a new T5 has its head tied to its embeddings, and copies would land in one tensor.
    for name in EMBEDDING_COPIES:
        if "language_model.shared.weight" in state_dict:
            state_dict[name] = state_dict["language_model.shared.weight"]
    model.load_state_dict(state_dict, strict=False, assign=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".instructblip-") as folder:
        model.save_pretrained(Path(folder) / output.name, bridge_only=bridge_only)
        (Path(folder) / output.name).rename(output)


def add_backbones(
    tensors: dict[str, torch.Tensor], absent: set[str], config: InstructBLIPConfig, options: argparse.Namespace
) -> None:
    """Read the frozen parts that the checkpoint lacks from where the command line says, into `tensors`.

    Raises:
        ValueError: a part is named nowhere, or is in the checkpoint as well.
    """
    for part, option, source, read in (
        ("vision", "--vision", options.vision, read_vision),
        ("language", "--llm", options.llm, read_language),
    ):
        if (part in absent) == (source is None):
            problem = "has no" if part in absent else "has its own"
            remedy = f"add {option}, or --bridge-only" if part in absent else f"leave out {option}"
            raise ValueError(f"{options.checkpoint} {problem} {part} model: {remedy}")
        if source is not None:
            tensors.update(read(source, config))


def convert(options: argparse.Namespace) -> None:
    """Do what the command line says.

    Raises:
        ValueError, OSError: nothing is written.
    """
    output = Path(options.output)
    if output.exists():
        raise ValueError(f"{output} exists: choose a new folder")
    if not output.parent.is_dir():
        raise ValueError(f"{output.parent} is no folder")
    if options.variant == STAGE1:
        from .convert_lavis_stage1 import convert_stage1  # which imports this module

        convert_stage1(options)
        return
    config = variant_config(options.variant, options.image_size)
    tensors = convert_state_dict(load_lavis(options.checkpoint), config)
    if options.init_from:
        tensors = merge_stages(convert_state_dict(load_lavis(options.init_from), config), tensors)

    absent = {"vision", "language"} - {part_of(name) for name in tensors}
    bridge_only = options.bridge_only or (bool(absent) and options.llm is None and options.vision is None)
    expected = expected_shapes(config)
    # The file itself first: frozen parts are large, and their places may be out of reach.
    check_complete(tensors, {name: shape for name, shape in expected.items() if part_of(name) not in absent})
    if bridge_only:
        tensors = {name: tensor for name, tensor in tensors.items() if part_of(name) == "bridge"}
        variant = VARIANTS[options.variant]
        name_backbones(config, options.vision or variant.vision_tower, options.llm or variant.language_model)
    else:
        add_backbones(tensors, absent, config, options)
        check_complete(tensors, expected)
    save(tensors, config, output, getattr(torch, options.dtype), bridge_only)
    kind = "bridge-only release" if bridge_only else "whole model"
    released = f"Salesforce/instructblip-{options.variant}"
    print(f"Saved a {kind} in {output}. Put a processor beside it, for example the released one:")
    print(f'  InstructBLIPProcessor.from_pretrained("{released}").save_pretrained("{output}")')


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="instructblip-convert-lavis",
        description="Turn a LAVIS .pth file into a folder that from_pretrained reads.",
    )
    parser.add_argument("checkpoint", help="LAVIS file: full, trimmed or BLIP-2 stage 2; stage 1 with its own variant")
    parser.add_argument("output", help="new folder for the result")
    parser.add_argument("--variant", required=True, choices=[*sorted(VARIANTS), STAGE1])
    parser.add_argument("--init-from", metavar="STAGE1", help="blip2_pretrained.pth: what a stage-2 CHECKPOINT lacks")
    parser.add_argument(
        "--vision", metavar="SOURCE", help="vision tower: eva_vit_g.pth, a folder or REPO[@REVISION] of a BLIP-2"
    )
    parser.add_argument("--llm", metavar="SOURCE", help="language model: a folder or REPO[@REVISION]")
    parser.add_argument(
        "--bridge-only",
        action="store_true",
        help="save what trained, name the rest; default if CHECKPOINT holds no more and no source is given",
    )
    parser.add_argument("--image-size", type=int, default=224, help="pixels; positions are interpolated (default 224)")
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16", "float16"),
        help="of the result; LAVIS trains in float32 and keeps frozen parts in 16 bits (default float32)",
    )
    options = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO)
    try:
        convert(options)
    except (ValueError, OSError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
