"""Training batches: prompts and answers taken apart, every image once."""

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from transformers.feature_extraction_utils import BatchFeature

from .chat_template import join_history
from .image_loading import image_key, open_image
from .processing_instruct_blip import InstructBLIPProcessor

IMAGE_KEYS = ("image_embeds", "images", "image")


class InstructBLIPCollator:
    """Collate samples into a batch that the model can train on.

    A sample is a dict with
    - one of `image` (anything that the processor opens, or None for text only), `images` (a list, in reading order) or
      `image_embeds` (one (patches, hidden) tensor, or a list of them, from `model.encode_images`);
    - `instruction` and `response`, or `prompt` and `completion` as in TRL's data: strings or messages;
    - optionally `history` (earlier rounds `{"question", "answer"}`, put in front of the instruction), `image_id` (or
      `image_ids`, one per image: samples with the same id share one image), `id` and `dataset`.

    The Q-Former reads the instruction only, never the response.

    Args:
        processor: turns the batch into tensors.
        max_length: text tokens kept of a prompt (LAVIS: 128); longer ones lose their beginning. None keeps all.
        answer_max_length: tokens kept of a response, the end token included (LAVIS: 256).
        pad_to_multiple_of: of prompt, Q-Former and label lengths.
        keep_ids: also return `id` and `dataset` of the samples, as lists.
        bucketed: round lengths and numbers of images up to few different ones, so that there are few shapes to compile
            or to record as CUDA graphs (`torch_compile`). What is filled up changes no result.
    """

    def __init__(
        self,
        processor: InstructBLIPProcessor,
        max_length: int | None = 128,
        answer_max_length: int | None = 256,
        pad_to_multiple_of: int | None = 8,
        keep_ids: bool = False,
        bucketed: bool = False,
    ):
        self.processor = processor
        self.max_length = max_length
        self.answer_max_length = answer_max_length
        self.pad_to_multiple_of = pad_to_multiple_of
        self.keep_ids = keep_ids
        self.bucketed = bucketed

    def __call__(self, features: Sequence[dict[str, Any]]) -> BatchFeature:
        """Collate samples.

        Returns:
            The processor's outputs with labels, and the `sizes` that the model's `forward` takes; with `keep_ids` also
            lists `id` and `dataset`.

        Raises:
            ValueError: a sample lacks a key or holds something else than it promises, an image cannot be read, or some
                samples have images and others embeddings. The message names the sample.
        """
        names = [sample_name(row, feature) for row, feature in enumerate(features)]
        instructions = [self._instruction(feature, name) for feature, name in zip(features, names, strict=True)]
        responses = [_response(feature, name) for feature, name in zip(features, names, strict=True)]
        prompts = [
            join_history(_history(feature, name), instruction)
            for feature, instruction, name in zip(features, instructions, names, strict=True)
        ]
        batch = self.processor(
            text=prompts,
            answers=responses,
            **self._images(features, names),
            max_length=self.max_length,
            answer_max_length=self.answer_max_length,
            pad_to_multiple_of=self.pad_to_multiple_of,
        )
        if self.bucketed:
            self._fill_buckets(batch)
        batch["sizes"] = self._sizes(batch)
        if self.keep_ids:
            batch["id"] = [feature.get("id") for feature in features]
            batch["dataset"] = [feature.get("dataset") for feature in features]
        return batch

    def _sizes(self, batch: BatchFeature) -> dict[str, int]:
        """What the host has to know for shapes that do not depend on what is on the device."""
        real = {
            "tokens": batch["attention_mask"] == 1,
            "supervised": batch["labels"] != -100,
            "uses": batch["image_index"] >= 0 if "image_index" in batch else torch.zeros(0),
        }
        sizes = {name: int(places.sum()) for name, places in real.items()}
        if not self.bucketed:
            return {**sizes, "longest": int(real["tokens"].sum(dim=1).max())}
        # Not more than there are places, which would be another case to compile.
        parts = {"tokens": 4, "supervised": 1, "uses": 4}
        return {name: min(bucket(size, parts[name]), real[name].numel()) for name, size in sizes.items()}

    def _fill_buckets(self, batch: BatchFeature) -> None:
        """Pad rows on the right, where training has its padding, and repeat the last image, which no row then uses.

        Four parts an octave where time goes with the size: in images, and in an encoder's rows, which stay padded.
        """
        encoder = self.processor.is_encoder_decoder
        for key in ("input_ids", "attention_mask", "qformer_input_ids", "qformer_attention_mask", "labels"):
            length = batch[key].shape[1]
            wanted = bucket(length, 4 if encoder and key in ("input_ids", "attention_mask") else 1)
            if key.startswith("qformer"):
                wanted = min(wanted, self.processor.qformer_max_length)
            padding = (0, wanted - length)
            batch[key] = torch.nn.functional.pad(batch[key], padding, value=-100 if key == "labels" else 0)
        for key in ("pixel_values", "image_embeds"):
            if key in batch:
                images = batch[key]
                more = bucket(len(images), 4) - len(images)
                batch[key] = torch.cat([images, images[-1:].expand(more, *images.shape[1:])])

    def _instruction(self, feature: dict[str, Any], name: str) -> str:
        key = "instruction" if "instruction" in feature or "prompt" not in feature else "prompt"
        if _is_conversation(feature.get(key)):
            return self.processor.apply_chat_template(feature[key], add_generation_prompt=True, tokenize=False)
        return _text(feature, key, name)

    def _images(self, features: Sequence[dict[str, Any]], names: list[str]) -> dict[str, Any]:
        """One list of opened images (or embeddings) per sample; samples that share one hold the same object."""
        opened: dict[Hashable, Any] = {}
        rows, kinds = [], set()
        for feature, name in zip(features, names, strict=True):
            kind, sources = _sources(feature, name)
            if sources:
                kinds.add(kind)
            keys = _keys(feature, sources, name)
            for number, (key, source) in enumerate(zip(keys, sources, strict=True)):
                if key not in opened:
                    opened[key] = source if kind == "image_embeds" else open_image(source, f"image {number} of {name}")
            rows.append([opened[key] for key in keys])
        if "image_embeds" in kinds and len(kinds) > 1:
            raise ValueError("some samples of the batch have image_embeds and others images: encode all or none")
        return {"image_embeds" if "image_embeds" in kinds else "images": rows}


def bucket(count: int, parts: int = 1) -> int:
    """The next power of two, or of the sizes that cut the way from one to the next into equal `parts`.

    Four parts add at most a quarter.
    """
    step = max((1 << (count - 1).bit_length()) // (2 * parts), 1)
    return -(-count // step) * step


def sample_name(row: int, feature: dict[str, Any]) -> str:
    """How messages call a sample."""
    identity = f" (id {feature['id']!r})" if feature.get("id") is not None else ""
    return f"sample {row}{identity}"


def _is_conversation(value: Any) -> bool:
    """Whether a value is a list of messages."""
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(turn, dict) for turn in value)


def _response(feature: dict[str, Any], name: str) -> str:
    key = "response" if "response" in feature or "completion" not in feature else "completion"
    if not _is_conversation(feature.get(key)):
        return _text(feature, key, name)
    if len(feature[key]) > 1:
        raise ValueError(f"{name}: '{key}' has {len(feature[key])} messages, one answer was expected")
    content = feature[key][0].get("content")
    if isinstance(content, list):
        content = "".join(block.get("text") or "" for block in content)
    return _text({key: content}, key, name)


def _text(feature: dict[str, Any], key: str, name: str) -> str:
    if not isinstance(feature.get(key), str):
        what = f"a {type(feature[key]).__name__}" if key in feature else "missing"
        raise ValueError(f"{name}: '{key}' is {what}, a string was expected; the keys are {sorted(feature)}")
    return feature[key]


def _history(feature: dict[str, Any], name: str) -> list[dict[str, str]]:
    history = feature.get("history") or []
    for turn in history:
        if not isinstance(turn, dict) or "question" not in turn or "answer" not in turn:
            raise ValueError(f"{name}: a round of 'history' is {turn!r}, a dict with question and answer was expected")
    return history


def _sources(feature: dict[str, Any], name: str) -> tuple[str, list[Any]]:
    """(kind, images or embeddings) of a sample."""
    for kind in IMAGE_KEYS:
        value = feature.get(kind)
        if value is not None:
            several = isinstance(value, (list, tuple)) or (kind == "image_embeds" and value.ndim == 3)
            if kind == "images" and not several:
                raise ValueError(f"{name}: 'images' is a {type(value).__name__}, a list was expected")
            return kind, list(value) if several else [value]
    if not any(kind in feature for kind in IMAGE_KEYS):
        raise ValueError(
            f"{name}: 'image' is missing; the keys are {sorted(feature)}. Write image=None for a sample of text only"
        )
    return "image", []


def _keys(feature: dict[str, Any], sources: list[Any], name: str) -> list[Hashable]:
    """What makes images of several samples the same: their id if they have one, else path, bytes or object."""
    if feature.get("image_ids") is not None:
        if len(feature["image_ids"]) != len(sources):
            raise ValueError(f"{name} has {len(feature['image_ids'])} image_ids for {len(sources)} images")
        return [("id", image_id) for image_id in feature["image_ids"]]
    image_id = feature.get("image_id")
    if image_id is not None:  # of the whole visual input, such as a clip of which the images are frames
        return [("id", image_id)] if len(sources) == 1 else [("id", image_id, number) for number in range(len(sources))]
    return [("source", image_key(source)) for source in sources]
