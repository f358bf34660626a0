"""What training takes on given GPUs, by calculation, and which of examples/accelerate/*.yaml to take.

    python -m instructblip.training.memory --model Salesforce/instructblip-vicuna-13b --gpus 8 --gib 24 --batch 4

`--model` is a Hub id, a folder with a config.json, or the name of a released variant, for which nothing is downloaded.
Nothing is measured, and no weights are read: parameters and what a step keeps for its backward pass are counted on the
meta device.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from instructblip.modeling import InstructBLIPConfig, InstructBLIPForConditionalGeneration
from instructblip.modeling.convert_lavis import VARIANTS

GIB = 2**30
CONTEXT = 1.0 * GIB  # CUDA context, cuBLAS workspaces, NCCL buffers
FRAGMENTATION = 1.1  # of what comes and goes: activations and gathered weights
UTILISATION = 0.5  # share of the matrix rate that a step reaches
TRAINED_BYTES = 16  # per parameter: float32 weight, gradient and AdamW's two moments
LIVE_BYTES_ZERO3 = 3 * GIB  # DeepSpeed's stage3_max_live_parameters (1e9) and buckets at their defaults
QUANTIZED_BYTES = {8: 1.0, 4: 0.5625}  # per weight of a linear layer, with its scales


@dataclass(frozen=True)
class Batch:
    """What one GPU sees at a time; the lengths are those of a VQA-like mixture.

    Args:
        rows: samples.
        prompt, answer: language-model tokens of a sample, without the image.
        instruction: Q-Former tokens.
    """

    rows: int = 4
    prompt: int = 64
    answer: int = 16
    instruction: int = 40


@dataclass(frozen=True)
class Sizes:
    """Bytes and operations of a model, for one GPU that holds all of it.

    Attributes:
        vision, language, bridge: parameters; the vision tower's LayerNorm is of the bridge.
        quantizable: those of the language model that 8-bit and 4-bit loading packs.
        largest_layer: of the language model, parameters.
        outside_layers: parameters of both frozen parts that are in none of their layers.
        saved, saved_checkpointed: bytes that a step keeps for its backward pass.
        forward, language_forward: operations of the forward pass of a step: all, and the language model's.
        bridge_forward: those of the Q-Former and the projection.
    """

    vision: int
    language: int
    bridge: int
    quantizable: int
    largest_layer: int
    outside_layers: int
    saved: float
    saved_checkpointed: float
    forward: float
    language_forward: float
    bridge_forward: float


@dataclass(frozen=True)
class Plan:
    """One way to train: what to launch with, and what one GPU needs."""

    name: str
    config: str | None
    arguments: str
    frozen: float
    trained: float
    gathered: float
    activations: float
    seconds: float
    exact: bool = True

    @property
    def total(self) -> float:
        return CONTEXT + self.frozen + self.trained + FRAGMENTATION * (self.gathered + self.activations)


def sizes(config: InstructBLIPConfig, batch: Batch) -> Sizes:
    """Count a model on the meta device."""
    with torch.device("meta"):
        model = InstructBLIPForConditionalGeneration(config)
    model.freeze_backbones()
    model.train()
    language = model.language_model.to(torch.bfloat16)
    bridge = {id(parameter): parameter.numel() for _, parameter in model.named_bridge_parameters()}
    layers = repeated_layers(language)
    packed = sum(m.weight.numel() for layer in layers for m in layer.modules() if isinstance(m, nn.Linear))
    vision = sum(p.numel() for p in model.vision_model.parameters() if id(p) not in bridge)
    in_layers = sum(
        p.numel()
        for part in (language, model.vision_model)
        for layer in repeated_layers(part)
        for p in layer.parameters()
    )
    parameters = sum(p.numel() for p in language.parameters())
    saved_language, per_layer = language_bytes(model, batch)
    saved_bridge = bridge_bytes(model, batch)
    tokens = batch.rows * (config.num_query_tokens + batch.prompt + batch.answer)
    # Two operations per weight and token; attention itself is a few percent of this at such lengths.
    language_forward = 2.0 * packed * tokens
    if config.is_encoder_decoder:  # half of the layers see the prompt, and half the answer
        shares = {
            "encoder": batch.rows * (config.num_query_tokens + batch.prompt),
            "decoder": batch.rows * batch.answer,
        }
        language_forward = 0.0
        for name, count in shares.items():
            language_forward += (
                2.0
                * count
                * sum(m.weight.numel() for m in getattr(language, name).modules() if isinstance(m, nn.Linear))
            )
    bridge_forward = 2.0 * sum(bridge.values()) * batch.rows * (config.num_query_tokens + batch.instruction)
    return Sizes(
        vision=vision,
        language=parameters,
        bridge=sum(bridge.values()),
        quantizable=packed,
        largest_layer=max(sum(p.numel() for p in layer.parameters()) for layer in layers),
        outside_layers=parameters + vision - in_layers,
        saved=saved_language + saved_bridge,
        saved_checkpointed=per_layer + saved_bridge,
        forward=2.0 * vision * batch.rows * patches(config) + language_forward + bridge_forward,
        language_forward=language_forward,
        bridge_forward=bridge_forward,
    )


def patches(config: InstructBLIPConfig) -> int:
    vision = config.vision_config
    size = vision.image_size if isinstance(vision.image_size, int) else vision.image_size[0]
    return (size // vision.patch_size) ** 2 + 1


def repeated_layers(module: nn.Module) -> list[nn.Module]:
    """The layers of a transformer: what is in the longest lists of modules of one class."""
    lists = [m for m in module.modules() if isinstance(m, nn.ModuleList) and len(m) and len({type(x) for x in m}) == 1]
    longest = max(map(len, lists), default=0)
    return [layer for one in lists if len(one) == longest for layer in one]


def language_bytes(model: InstructBLIPForConditionalGeneration, batch: Batch) -> tuple[float, float]:
    """What the frozen language model keeps: everything, and with checkpointing the inputs of layers and one layer."""
    config, language = model.config, model.language_model
    width = config.text_config.hidden_size
    prompt = config.num_query_tokens + batch.prompt
    device = next(language.parameters()).device
    inputs: dict[str, Any] = {"use_cache": False}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.zeros(batch.rows, batch.answer, dtype=torch.long, device=device)
        tokens, decoded = batch.rows * prompt, batch.rows * batch.answer
    else:
        prompt, decoded = prompt + batch.answer, 0
        # Made here, because transformers looks at positions to make it.
        inputs["attention_mask"] = torch.zeros(batch.rows, 1, prompt, prompt, dtype=torch.bfloat16, device=device)
        tokens = batch.rows * prompt
    embeds = torch.zeros(batch.rows, prompt, width, dtype=torch.bfloat16, device=device, requires_grad=True)
    head = language.get_output_embeddings()  # the loss looks at answers only
    scored = batch.rows * batch.answer
    hook = head.register_forward_pre_hook(lambda _, hidden: (hidden[0].flatten(0, 1)[:scored],))
    try:
        kept = kept_bytes(language, lambda: language(inputs_embeds=embeds, **inputs))
    finally:
        hook.remove()
    kept += scored * head.out_features * (2 + 4 + 4)  # logits, and in float32 the logits and their softmax
    layers = repeated_layers(language)
    stacks = 2 if config.is_encoder_decoder else 1
    per_stack = len(layers) // stacks
    inputs_of_layers = (
        2 * width * per_stack * (tokens + 2 * decoded)
    )  # a decoder's layer also gets the encoder's output
    return kept, inputs_of_layers + (kept / len(layers)) * stacks


def bridge_bytes(model: InstructBLIPForConditionalGeneration, batch: Batch) -> float:
    """What the Q-Former keeps under autocast, with the bfloat16 copies of its weights."""
    config = model.config
    # The instruction as so many more queries, which keep as much but for the cross-attention: masks need real numbers.
    length = config.num_query_tokens + (batch.instruction if config.qformer_text_input else 0)
    queries = torch.empty(batch.rows, length, config.qformer_config.hidden_size, device="meta", requires_grad=True)
    images = torch.empty(batch.rows, patches(config), config.vision_config.hidden_size, device="meta")
    images.requires_grad_()
    kept = kept_bytes(model.qformer, lambda: model.qformer(queries, images))  # in float32
    return 0.6 * kept + 2 * sum(p.numel() for p in model.qformer.encoder.parameters())


def kept_bytes(module: nn.Module, run: Callable[[], Any]) -> float:
    """Bytes of the tensors that `run` keeps for a backward pass, but for the parameters of `module`."""
    parameters = {p.untyped_storage()._cdata for p in module.parameters()}
    found: dict[int, tuple[int, torch.UntypedStorage]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            found[storage._cdata] = (storage.nbytes(), storage)  # held, so that no other gets its number
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), kept_on_gpus():
        run()
    return float(sum(size for size, _ in found.values()))


class _Attention(torch.autograd.Function):
    """Keeps what a fused attention kernel keeps; computes nothing."""

    @staticmethod
    def forward(ctx, query, key, value):
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx, gradient):
        raise NotImplementedError


class _Norm(torch.autograd.Function):
    """Keeps what a fused RMSNorm keeps: its input, and a number for each token."""

    @staticmethod
    def forward(ctx, hidden):
        ctx.save_for_backward(hidden, hidden.new_empty(hidden.shape[:-1], dtype=torch.float32))
        return torch.empty_like(hidden)

    @staticmethod
    def backward(ctx, gradient):
        raise NotImplementedError


@contextmanager
def kept_on_gpus() -> Iterator[None]:
    """Inside, attention and RMSNorm keep what their CUDA kernels do; elsewhere they keep more."""
    before = nn.functional.scaled_dot_product_attention, nn.functional.rms_norm
    nn.functional.scaled_dot_product_attention = lambda query, key, value, *_, **__: _Attention.apply(query, key, value)
    nn.functional.rms_norm = lambda hidden, *_, **__: _Norm.apply(hidden)
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention, nn.functional.rms_norm = before


def plans(model: Sizes, gpus: int, tflops: float, link: float) -> list[Plan]:
    """All ways to train on `gpus` GPUs; exact ones first, then by time.

    Args:
        model: what `sizes` counted.
        tflops: bfloat16 matrix rate of a GPU, 1e12 operations per second.
        link: what a GPU receives from the others, 1e9 bytes per second.
    """
    frozen, trained = 2.0 * (model.vision + model.language), float(TRAINED_BYTES * model.bridge)
    rate, bandwidth = tflops * 1e12 * UTILISATION, link * 1e9
    others = (gpus - 1) / gpus  # of what is sharded, that much comes from elsewhere
    sharing = 2 * others * 4 * model.bridge / bandwidth  # the gradients' all-reduce
    found = []
    for checkpointing in (False, True):
        # Frozen weights have no gradient: backward costs what forward does, and the bridge's twice that.
        operations = model.forward + model.language_forward + 2 * model.bridge_forward
        operations += (model.language_forward + model.bridge_forward) if checkpointing else 0
        kept = model.saved_checkpointed if checkpointing else model.saved
        seconds = operations / rate
        arguments = "--gradient_checkpointing true" if checkpointing else ""
        alone, note = (None, "one GPU") if gpus == 1 else ("ddp.yaml", "DDP")
        name = note + (", checkpointing" if checkpointing else "")
        buckets = 0.0 if gpus == 1 else 4.0 * model.bridge
        found.append(Plan(name, alone, arguments, frozen, trained, buckets, kept, seconds + sharing))
        for bits, each in QUANTIZED_BYTES.items():
            packed = frozen - (2 - each) * model.quantizable
            layer = 2.0 * model.largest_layer  # unpacked while it computes
            slower = 1.3 * seconds + sharing
            options = f"--quantize {bits}bit {arguments}".strip()
            found.append(
                Plan(f"{name}, {bits}-bit", alone, options, packed, trained, buckets + layer, kept, slower, exact=False)
            )
        if gpus > 1:
            whole = 2.0 * (model.outside_layers + 2 * model.largest_layer) + 4.0 * model.bridge
            # Language model forward and backward, vision tower forward, and the bridge both ways in float32.
            moved = others * (2 * 2.0 * model.language + 2.0 * model.vision + 3 * 4.0 * model.bridge)
            sharded = max(seconds, moved / bandwidth)
            name = "FSDP2" + (", checkpointing" if checkpointing else "")
            found.append(Plan(name, "fsdp2.yaml", arguments, frozen / gpus, trained / gpus, whole, kept, sharded))
            name = name.replace("FSDP2", "ZeRO-3")
            # bfloat16 weight and gradient, float32 weight and moments; DeepSpeed overlaps less of what it moves.
            states = 16.0 * model.bridge / gpus
            live = min(LIVE_BYTES_ZERO3, 2.0 * (model.vision + model.language + model.bridge))
            found.append(
                Plan(name, "zero3.yaml", arguments, frozen / gpus, states, live, kept, seconds + moved / bandwidth)
            )
    return sorted(found, key=lambda plan: (not plan.exact, plan.seconds))


def choose(found: list[Plan], gib: float) -> Plan | None:
    """The first of `plans` that fits into GPUs of `gib` GiB."""
    return next((plan for plan in found if plan.total <= gib * GIB), None)


def read_config(model: str) -> InstructBLIPConfig:
    """The config of a Hub id or folder; those of the released variants are known and need no network."""
    variant = model.removeprefix("Salesforce/instructblip-")
    if variant in VARIANTS and not os.path.isdir(model):
        return InstructBLIPConfig(**VARIANTS[variant].config)
    return InstructBLIPConfig.from_pretrained(model)


def command(plan: Plan, gpus: int) -> str:
    launch = "python" if plan.config is None else f"accelerate launch --config_file examples/accelerate/{plan.config}"
    processes = "" if plan.config is None else f" --num_processes {gpus}"
    return f"{launch}{processes} examples/train.py --config RECIPE.yaml {plan.arguments}".rstrip()


def table(found: list[Plan], gib: float, rows: int, gpus: int) -> str:
    """`plans` as a Markdown table, in GiB of one GPU."""
    lines = [
        "| | frozen | trained | gathered | activations | sum | fits | samples/s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- | ---: |",
    ]
    for plan in found:
        parts = (plan.frozen, plan.trained, plan.gathered, plan.activations, plan.total)
        shown = " | ".join(f"{part / GIB:.1f}" for part in parts)
        fits = "yes" if plan.total <= gib * GIB else "no"
        lines.append(f"| {plan.name} | {shown} | {fits} | {rows * gpus / plan.seconds:.1f} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m instructblip.training.memory", description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="Hub id, folder, or one of: " + ", ".join(VARIANTS))
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--gib", type=float, default=24, help="memory of a GPU")
    parser.add_argument("--batch", type=int, default=4, help="samples of a GPU at a time")
    parser.add_argument("--prompt", type=int, default=Batch.prompt, help="language-model tokens of an instruction")
    parser.add_argument("--answer", type=int, default=Batch.answer, help="language-model tokens of an answer")
    parser.add_argument("--instruction", type=int, default=Batch.instruction, help="Q-Former tokens of an instruction")
    parser.add_argument("--tflops", type=float, default=125, help="a GPU's bfloat16 matrix rate; A10 125, H100 990")
    parser.add_argument("--link", type=float, default=12, help="GB/s between GPUs; PCIe 12 to 25, NVLink 300 and more")
    options = parser.parse_args(arguments)
    for name in ("gpus", "gib", "batch", "prompt", "answer", "instruction", "tflops", "link"):
        if getattr(options, name) <= 0:
            parser.error(f"--{name} {getattr(options, name)}: expected more than 0")
    counted = sizes(
        read_config(options.model), Batch(options.batch, options.prompt, options.answer, options.instruction)
    )
    found = plans(counted, options.gpus, options.tflops, options.link)
    print(
        f"{options.model}: {(counted.vision + counted.language) / 1e9:.2f} G frozen parameters in bfloat16, "
        f"{counted.bridge / 1e6:.0f} M trained in float32. {options.gpus} x {options.gib:g} GiB, "
        f"{options.batch} samples each. GiB per GPU, computed, not measured:\n"
    )
    print(table(found, options.gib, options.batch, options.gpus))
    chosen = choose(found, options.gib)
    if chosen is None:
        print("\nNone fits: lower --batch, or use more or larger GPUs")
    else:
        print(f"\nTake {chosen.name}:\n{command(chosen, options.gpus)}")


if __name__ == "__main__":
    main()
