"""The lm-eval model class `instructblip`: pictures by reference, batched generation, candidate ranking."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
from collections.abc import Collection, Generator, Hashable, Sequence
from contextlib import closing
from typing import Any

import lm_eval.models  # noqa: F401  first: lm-eval registers its own models only while the registry is empty
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, CacheHook
from lm_eval.api.registry import register_model
from PIL import Image
from tqdm import tqdm
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)

from instructblip import InstructBLIPForConditionalGeneration, InstructBLIPProcessor
from instructblip.eval_tasks.chat_model_driver import ChatModelDriver
from instructblip.eval_tasks.driver import Driver, Prompt
from instructblip.eval_tasks.images import read_image
from instructblip.eval_tasks.instructblip_driver import InstructBLIPDriver
from instructblip.eval_tasks.model_identity import model_identity
from instructblip.eval_tasks.prefetch import prepare_ahead
from instructblip.eval_tasks.result_cache import ResultCache
from instructblip.modeling.backbones import commit_of

logger = logging.getLogger(__name__)

DEFAULT_NEW_TOKENS = 256  # of lm-eval and of LAVIS


class CandidateList(Sequence):
    """Candidate answers that many documents share.

    No list, so that lm-eval, which copies and writes out the arguments of every logged request, writes one line for it.
    """

    def __init__(self, candidates: Sequence[str]) -> None:
        self._candidates = tuple(candidates)
        self._digest = hashlib.sha256("\0".join(self._candidates).encode()).hexdigest()[:16]

    def __getitem__(self, index):
        return self._candidates[index]

    def __len__(self) -> int:
        return len(self._candidates)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CandidateList) and self._candidates == other._candidates

    def __hash__(self) -> int:
        return hash(self._candidates)

    def __repr__(self) -> str:
        return f"CandidateList({len(self)} candidates, sha256 {self._digest})"


@register_model("instructblip")
class InstructBLIPEvalModel(LM):
    """Evaluate an InstructBLIP checkpoint, or another vision-language model of transformers, with lm-eval.

    Another model gets its prompts through its processor's chat template, where it has one (`ChatModelDriver`).

    What a document gets does not depend on batch size, order or the other documents, rounding apart. Several processes
    (`accelerate launch`, `torchrun`) each hold the model and take every n-th document.

    Args:
        pretrained: folder or Hub id of a full or bridge-only release; or a model, which stays on its device.
        processor: folder or Hub id; or a processor. Default: that of `pretrained`.
        revision: branch, tag or commit of `pretrained` (and of the processor that comes with it).
        dtype: "auto" (as saved), "float32", "bfloat16", ...
        device: default the process's GPU, else the CPU.
        device_map: spread one model over several GPUs, as in transformers; instead of `device`.
        batch_size: documents per batch.
        max_batch_size: lm-eval passes it; unused, as batch sizes are not searched for.
        trust_remote_code: load modelling code from the release.
        max_length: most text tokens of a prompt, longer ones lose their beginning; InstructBLIP only. Default: none.
        add_end_token: score a candidate's end token. Default: encoder-decoders only, as in LAVIS.
        length_normalize: divide a candidate's log-likelihood by its number of tokens. LAVIS does not.
        result_cache: folder where finished answers are kept, batch by batch; a run that was killed goes on from there.

    Raises:
        ValueError: `batch_size` is not a positive number, `dtype` is unknown, the model cannot be loaded or is not the
            processor's, or `result_cache` with a model in memory.
        TypeError: a model was passed without its processor.
    """

    MULTIMODAL = True

    def __init__(
        self,
        pretrained: str | PreTrainedModel,
        processor: str | ProcessorMixin | None = None,
        revision: str | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | None = None,
        device_map: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        trust_remote_code: bool = False,
        max_length: int | None = None,
        add_end_token: bool | None = None,
        length_normalize: bool = False,
        result_cache: str | None = None,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ValueError(f"batch_size {batch_size!r}: pass a positive number of documents")
        self.batch_size = int(batch_size)
        self.add_end_token = add_end_token
        self.length_normalize = length_normalize
        self.revision = revision
        self._join_processes(device)
        self.driver = load_driver(
            pretrained,
            processor,
            revision=revision,
            dtype=dtype,
            device=self._device,
            device_map=device_map,
            trust_remote_code=trust_remote_code,
            max_length=max_length,
        )
        self.model, self.processor = self.driver.model, self.driver.processor
        self._device = self.model.device
        self.result_cache: ResultCache | None = None
        if result_cache is not None:
            identity = model_identity(self, pretrained, processor, trust_remote_code, max_length)
            self.result_cache = ResultCache(result_cache, identity, loaded_from=str(pretrained))

    def _join_processes(self, device: str | None) -> None:
        """Find this process's place among the others, and its device."""
        wanted = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if wanted.type == "cuda" and not torch.cuda.is_available():
            logger.warning("no GPU for device=%s: running on the CPU", device)  # lm-eval's own default is cuda:0
            wanted = torch.device("cpu")
        self._device = wanted
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 or torch.distributed.is_initialized():
            state = PartialState(cpu=wanted.type == "cpu")
            self._rank, self._world_size = state.process_index, state.num_processes  # over all nodes
            self._device = state.device

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict, additional_config: dict | None = None) -> InstructBLIPEvalModel:
        """As lm-eval's, but a model in memory is refused: lm-eval would copy it into every task's metadata.

        Raises:
            ValueError: there is no `pretrained`, or an argument is unknown.
        """
        known = list(inspect.signature(cls).parameters)
        if unknown := [name for name in arg_dict if name not in known]:
            raise ValueError(f"--model_args: {', '.join(unknown)} is unknown, expected some of {', '.join(known)}")
        if "pretrained" not in arg_dict:
            raise ValueError("no model: pass --model_args pretrained=..., a folder or Hub id")
        if not isinstance(arg_dict["pretrained"], str):
            raise TypeError("model_args holds a model: pass model=InstructBLIPEvalModel(model, processor) instead")
        return super().create_from_arg_obj(arg_dict, additional_config)

    # What lm-eval asks for

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Generate an answer per request; it ends before the first of the request's `until` strings.

        Settings are those of transformers' `generate`. A setting that differs between the two kinds of language model
        is a mapping with the keys `encoder_decoder` and `decoder_only`.
        """
        answers: list[str] = [""] * len(requests)
        by_settings: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            by_settings.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
        all_prompts = self._prompts(requests)
        with self._progress(len(requests), "generating") as progress:
            for settings, numbers in by_settings.items():
                kwargs, until = self._generation_settings(json.loads(settings))
                prompts = [all_prompts[number] for number in numbers]
                asked = None if kwargs["do_sample"] else [settings] * len(numbers)  # a sampled answer is never kept
                keys, finished = self._kept([requests[number] for number in numbers], prompts, asked)
                for place, answer in finished.items():
                    answers[numbers[place]] = answer
                progress.update(len(finished))
                with closing(self._prepared(prompts, finished)) as prepared:
                    for batch, inputs, _ in prepared:
                        texts = [cut_before(text, until).strip() for text in self.driver.generate(inputs, kwargs)]
                        self._keep([keys[place] for place in batch], texts)
                        for place, text in zip(batch, texts, strict=True):
                            answers[numbers[place]] = text
                        progress.update(len(batch))
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Score continuations. Those with the same prompt and pictures, the choices of a document, are scored together.

        The blank that lm-eval puts before a continuation is dropped: the processor marks the start of a word itself.
        The second value, whether greedy decoding would give the continuation, is not computed and always False: it
        would cost a generation per document, and ranking does not ask for it.
        """
        groups: dict[Hashable, list[int]] = {}
        prompts = self._prompts(requests)
        for number, prompt in enumerate(prompts):
            groups.setdefault((prompt.text, prompt.image_keys), []).append(number)
        if any(len(numbers) == 1 for numbers in groups.values()):
            logger.warning("prompts with one continuation: `is_greedy` is always False, so do not score by it")
        members = list(groups.values())
        candidates = [list({requests[i].args[1].strip(): None for i in numbers}) for numbers in members]
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        firsts = [numbers[0] for numbers in members]
        requested, prompts = [requests[number] for number in firsts], [prompts[number] for number in firsts]
        with closing(self._ranked(requested, prompts, candidates)) as ranked:
            for group, scores in ranked:
                score_of = dict(zip(candidates[group], scores.tolist(), strict=True))
                for number in members[group]:
                    results[number] = (score_of[requests[number].args[1].strip()], False)
        return results

    def rank_candidates(self, requests: list[Instance]) -> list[np.ndarray]:
        """Score a document's candidate answers, one request per document.

        Args:
            requests: their `args` are (prompt, candidates, {"visual": references}).

        Returns:
            Per request the log-likelihoods, float32, in the order of its candidates.
        """
        prompts = self._prompts(requests)
        results: list[np.ndarray] = [np.empty(0)] * len(requests)
        with closing(self._ranked(requests, prompts, [request.args[1] for request in requests])) as ranked:
            for number, scores in ranked:
                results[number] = scores
        return results

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise NotImplementedError(
            "InstructBLIP answers instructions about pictures; perplexity of running text is not offered. Evaluate the "
            "language model alone, with lm-eval's `hf`, for that"
        )

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes into the results beside its own settings."""
        encoder_decoder, name = self.driver.is_encoder_decoder, self.model.config._name_or_path
        return {
            "model_name": name,
            "model_revision": self.revision,
            "model_sha": commit_of(name, self.revision) if name and not os.path.isdir(name) else None,
            "model_num_parameters": self.model.num_parameters(),
            "model_dtype": str(self.model.dtype),
            "encoder_decoder": encoder_decoder,
            "prompt_form": self.driver.prompt_form,
            "add_end_token": encoder_decoder if self.add_end_token is None else self.add_end_token,
            "length_normalize": self.length_normalize,
        }

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Refuse lm-eval's own cache: it would answer for one model with what another one said."""
        raise ValueError(
            "lm-eval's cache (--use_cache) does not tell models apart and keeps no rankings: leave it out and pass "
            "result_cache=FOLDER with the model's arguments"
        )

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Refuse `--apply_chat_template`: models that have a template get their prompts through it anyway."""
        raise ValueError(
            "--apply_chat_template is for models of text: leave it out. Models whose processor has a chat template get "
            "their prompts through it, and InstructBLIP has none"
        )

    @property
    def tokenizer_name(self) -> str:
        self.chat_template()  # what lm-eval asks for only with --apply_chat_template
        return ""

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return gather(tensor)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        if self.world_size == 1:
            return [obj]
        gathered = [None] * self.world_size if self.rank == dst else None
        torch.distributed.gather_object(obj, gathered, dst=dst)
        return gathered

    def barrier(self) -> None:
        if self.world_size > 1:
            torch.distributed.barrier()

    # Batches

    def _prompts(self, requests: Sequence[Instance]) -> list[Prompt]:
        visuals = [request.args[2].get("visual") if len(request.args) > 2 else None for request in requests]
        prompts = [Prompt(request.args[0], visual) for request, visual in zip(requests, visuals, strict=True)]
        self.driver.check(prompts)
        return prompts

    def _progress(self, total: int, doing: str) -> tqdm:
        return tqdm(total=total, desc=doing, unit="document", disable=self.rank != 0)

    def _batches(self, prompts: Sequence[Prompt], finished: Collection[int]) -> list[list[int]]:
        """Cut prompts into batches: those about one picture together, the longest first (memory is short at once).

        A run that goes on after a kill makes the batches that are left just as they would have been, as the rounding of
        an answer depends on its batch, unless many would be half empty.
        """
        groups: dict[Hashable, list[int]] = {}
        for number, prompt in enumerate(prompts):
            groups.setdefault(prompt.image_keys, []).append(number)
        longest = sorted(groups.values(), key=lambda numbers: -max(len(prompts[i].text) for i in numbers))
        order = [number for numbers in longest for number in numbers]
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        left = [[number for number in batch if number not in finished] for batch in batches]
        begun = sum(0 < len(rest) < len(batch) for rest, batch in zip(left, batches, strict=True))
        if 2 * begun > sum(map(bool, left)):  # another number of processes, or another batch size
            order = [number for batch in left for number in batch]
            left = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        return [batch for batch in left if batch]

    def _kept(
        self, requests: Sequence[Instance], prompts: Sequence[Prompt], asked: Sequence[str] | None
    ) -> tuple[list[bytes | None], dict[int, Any]]:
        """Look for answers in the result cache.

        Args:
            asked: per prompt the generation settings, or the candidates; None: the answers must not be kept.

        Returns:
            Per prompt what its answer is to be kept under, and the answers that are there by the prompts' numbers.
        """
        if self.result_cache is None or asked is None or not requests:
            return [None] * len(prompts), {}
        tasks = [request.task_name for request in requests]
        keys = self.result_cache.keys(requests[0].request_type, tasks, prompts, asked)
        kept = self.result_cache.get(keys)
        return keys, {number: kept[key] for number, key in enumerate(keys) if key in kept}

    def _keep(self, keys: Sequence[bytes | None], results: Sequence[Any]) -> None:
        if self.result_cache is not None:
            self.result_cache.put(zip(keys, results, strict=True))

    def _prepared(
        self,
        prompts: Sequence[Prompt],
        finished: Collection[int],
        candidates: Sequence[Sequence[str]] | None = None,
    ) -> Generator[tuple[list[int], Any, list[list[list[int]]]]]:
        """Batches, each prepared while the model works on the one before.

        Each picture is decoded once, or not at all if the batch before had it. Those that are `finished` are left out.

        Returns:
            Per batch the numbers of its prompts, the model's inputs, and the token ids of each prompt's candidates.
        """
        decoded: dict[Hashable, Image.Image] = {}
        ids_of: dict[str, list[int]] = {}  # a vocabulary comes with every document: tokenize it once

        def prepare(batch: list[int]) -> tuple[list[int], Any, list[list[list[int]]]]:
            nonlocal decoded
            wanted = {
                key: reference
                for number in batch
                for key, reference in zip(prompts[number].image_keys, prompts[number].references, strict=True)
            }
            decoded = {key: decoded.get(key) or read_image(reference) for key, reference in wanted.items()}
            texts = [candidates[number] for number in batch] if candidates else []
            new = {text: None for row in texts for text in row if text not in ids_of}
            if new:
                ids_of.update(zip(new, self.driver.encode_candidates(list(new)), strict=True))
            inputs = self.driver.inputs([prompts[number] for number in batch], decoded)
            return batch, inputs, [[ids_of[text] for text in row] for row in texts]

        return prepare_ahead(prepare, self._batches(prompts, finished))

    def _ranked(
        self, requests: Sequence[Instance], prompts: Sequence[Prompt], candidates: Sequence[Sequence[str]]
    ) -> Generator[tuple[int, np.ndarray]]:
        """Score candidates in batches of prompts; yields the number of a prompt and its candidates' log-likelihoods."""
        asked = [repr(row) if isinstance(row, CandidateList) else json.dumps(list(row)) for row in candidates]
        keys, finished = self._kept(requests, prompts, asked)
        with self._progress(len(prompts), "ranking") as progress:
            yield from finished.items()
            progress.update(len(finished))
            with closing(self._prepared(prompts, finished, candidates)) as prepared:
                for batch, inputs, ids in prepared:
                    padded = self.driver.score(inputs, ids, self.add_end_token, self.length_normalize)
                    scores = [row[: len(candidates[number])] for number, row in zip(batch, padded, strict=True)]
                    self._keep([keys[number] for number in batch], scores)
                    yield from zip(batch, scores, strict=True)
                    progress.update(len(batch))

    def _generation_settings(self, settings: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Split a request's settings into arguments of `generate` and stop strings."""
        until = settings.pop("until", None) or []
        kind = "encoder_decoder" if self.driver.is_encoder_decoder else "decoder_only"
        kwargs = {name: value[kind] if isinstance(value, dict) else value for name, value in settings.items()}
        if "max_gen_toks" in kwargs:
            kwargs["max_new_tokens"] = kwargs.pop("max_gen_toks")
        if "max_length" not in kwargs:
            kwargs.setdefault("max_new_tokens", DEFAULT_NEW_TOKENS)
        kwargs.setdefault("do_sample", kwargs.get("temperature", 0) > 0)
        if not kwargs["do_sample"]:
            kwargs.pop("temperature", None)  # lm-eval sends 0.0, which transformers warns about
        return kwargs, [until] if isinstance(until, str) else list(until)


def load_driver(pretrained: str | PreTrainedModel, processor: str | ProcessorMixin | None, **options: Any) -> Driver:
    """Load a model and its processor; the arguments are those of `InstructBLIPEvalModel`.

    Raises:
        ValueError: they cannot be loaded, or do not belong together; names the model.
    """
    try:
        return _driver_of(pretrained, processor, **options)
    except (ValueError, OSError) as error:
        if not isinstance(pretrained, str):
            raise
        raise ValueError(f"{pretrained} cannot be loaded: {error}") from error


def _driver_of(
    pretrained: str | PreTrainedModel,
    processor: str | ProcessorMixin | None,
    *,
    revision: str | None,
    dtype: str | torch.dtype,
    device: torch.device,
    device_map: str | None,
    trust_remote_code: bool,
    max_length: int | None,
) -> Driver:
    if dtype != "auto" and not isinstance(getattr(torch, str(dtype).removeprefix("torch."), None), torch.dtype):
        raise ValueError(f"dtype {dtype!r}: expected auto, float32, bfloat16 or float16")
    hub: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if isinstance(pretrained, str):
        config, _ = PreTrainedConfig.get_config_dict(pretrained, revision=revision)
        # The Auto classes take official checkpoints for transformers' own model.
        official = config.get("model_type") == "instructblip"
        model_class: Any = InstructBLIPForConditionalGeneration if official else AutoModelForImageTextToText
        model: Any = model_class.from_pretrained(pretrained, dtype=dtype, device_map=device_map, **hub)
        if device_map is None:
            model.to(device)
    else:
        model = pretrained
    model.eval()
    if processor is None:
        if not isinstance(pretrained, str):
            raise TypeError("a model in memory needs its processor: pass processor=")
        processor = pretrained
    elif isinstance(processor, str):
        hub["revision"] = None  # `revision` is a commit of `pretrained`
    if isinstance(processor, str):
        ours = isinstance(model, InstructBLIPForConditionalGeneration)
        processor_class: Any = InstructBLIPProcessor if ours else AutoProcessor
        processor = processor_class.from_pretrained(processor, **hub)
    if hasattr(model, "score_candidates"):
        processor.check_compatible(model.config)
        return InstructBLIPDriver(model, processor, max_length)
    if max_length is not None:
        raise ValueError(
            f"max_length={max_length}: only InstructBLIP's prompts can be cut, not those of {type(model).__name__}"
        )
    return ChatModelDriver(model, processor)


def cut_before(text: str, until: Sequence[str]) -> str:
    """The part of `text` before the first stop string; empty stop strings stop nothing."""
    return text[: min([text.find(stop) for stop in until if stop and stop in text], default=len(text))]
