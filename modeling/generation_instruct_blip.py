"""Answers from [`InstructBLIPForConditionalGeneration`]: generation, and ranking of candidate answers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, LogitsProcessorList, RepetitionPenaltyLogitsProcessor
from transformers.generation import GenerationMode
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_managed_module

from .beam_search import BeamSteps, DecoderSteps, EncoderDecoderSteps, search_beams
from .candidate_ranking import score_candidates_naively, score_candidates_packed
from .input_checks import check_length
from .packing import align, attention_as, has_plain_attention, positions_from_mask
from .shared_prefix import SHARED_PREFIX, share_prompt, share_source


class GenerationAndRankingMixin:
    """`generate` and `score_candidates` for the model class."""

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        qformer_input_ids: torch.Tensor | None = None,
        qformer_attention_mask: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        **generate_kwargs,
    ) -> Any:
        """Generate answers; every further argument is one of transformers' `generate`, where `inputs` is `input_ids`.

        The settings are the language model's own generation config, then this model's, then `generation_config`, then
        the arguments. Without `input_ids`, each image is described from the language model's start token.

        Assisted decoding by another model or by an early exit, `guidance_scale` and `prefill_chunk_size` are refused:
        transformers' code for them reads a prompt of token ids, and images have none.

        Returns:
            (rows * num_return_sequences, new) ids of *new* tokens only, for both kinds of language model, or
            transformers' output object with `return_dict_in_generate=True`.

        Raises:
            ValueError: placeholders and images do not match, an argument is missing or refused, or a prompt is too
                long, alone or with the new tokens.
        """
        inputs = generate_kwargs.pop("inputs", None)
        if inputs is not None and input_ids is not None:
            raise ValueError("inputs and input_ids are the same argument: pass one")
        input_ids = inputs if input_ids is None else input_ids
        if input_ids is None and inputs_embeds is None:
            input_ids = self._image_only_prompt(pixel_values, image_embeds, image_index)
        embeds, mask, _, _ = self._prompt(
            input_ids,
            attention_mask,
            inputs_embeds,
            pixel_values,
            image_embeds,
            image_index,
            qformer_input_ids,
            qformer_attention_mask,
        )
        config = self._effective_generation_config(generation_config)
        for name in [name for name in generate_kwargs if hasattr(config, name)]:
            value = generate_kwargs.pop(name)
            if value is not None:
                setattr(config, name, value)
        _refuse_what_reads_ids(config, generate_kwargs)
        if not self.config.is_encoder_decoder:
            self._check_new_tokens(config, mask)
        if not self.config.is_encoder_decoder and config.repetition_penalty not in (None, 1.0):
            # transformers' own leaves as many new tokens of a row unpenalized as the row has padding
            penalty = RepetitionPenaltyLogitsProcessor(config.repetition_penalty)
            theirs = generate_kwargs.get("logits_processor") or []
            generate_kwargs["logits_processor"] = LogitsProcessorList([penalty, *theirs])
            config.repetition_penalty = 1.0
        mask, embeds = align(mask.to(embeds.device), "right" if self.config.is_encoder_decoder else "left", embeds)
        arguments = {"inputs_embeds": embeds, "attention_mask": mask, "generation_config": config, **generate_kwargs}
        if embeds.shape[1] > 1 and self._may_share_prompt(config, generate_kwargs):
            if self._is_plain_beam_search(config, generate_kwargs):
                arguments.update(self._own_search(embeds, mask, config.num_beams))
            else:
                arguments.update(self._shared_prompt(embeds, mask))
            if self.config.is_encoder_decoder:
                arguments.pop("inputs_embeds")
            with attention_as(self.language_model, SHARED_PREFIX):
                output = self.language_model.generate(**arguments)
        else:
            output = self.language_model.generate(**arguments)
        if not self.config.is_encoder_decoder:
            return output
        # An encoder-decoder returns what its decoder began with; transformers puts the start token before a given
        # beginning that lacks it.
        begun, given = 1, generate_kwargs.get("decoder_input_ids")
        if given is not None:
            begun = given.shape[1] + int(bool((given[:, 0] != config.decoder_start_token_id).all()))
        if isinstance(output, torch.Tensor):
            return output[:, begun:]
        output.sequences = output.sequences[:, begun:]
        return output

    def _image_only_prompt(self, pixel_values, image_embeds, image_index) -> torch.Tensor:
        images = image_embeds if pixel_values is None else pixel_values
        if images is None:
            raise ValueError("nothing to generate from: pass input_ids, inputs_embeds or images")
        if image_index is not None and (image_index < 0).any():
            raise ValueError("input_ids is missing and rows have different numbers of images: pass prompts")
        rows = len(images) if image_index is None else len(image_index)
        each = images.shape[1] if images.dim() == 5 else 1 if image_index is None else image_index.shape[1]
        start = getattr(self.config.text_config, "bos_token_id", None)
        ids = [self.config.image_token_id] * self.config.num_query_tokens * each
        ids += [start] if start is not None and not self.config.is_encoder_decoder else []
        return torch.tensor([ids] * rows, device=images.device)

    def _effective_generation_config(self, given: GenerationConfig | None) -> GenerationConfig:
        """The language model's settings, overridden by this model's, overridden by `given`."""
        config = copy.deepcopy(self.language_model.generation_config)
        for layer in (self.generation_config, given):
            if layer is not None:
                config.update(**{key: value for key, value in layer.to_dict().items() if value is not None})
        config.is_encoder_decoder = self.config.is_encoder_decoder if hasattr(config, "is_encoder_decoder") else None
        return config

    def _check_new_tokens(self, config: GenerationConfig, mask: torch.Tensor) -> None:
        """Refuse settings that leave no room for new tokens, or that need more positions than were learned."""
        new_tokens = config.max_new_tokens
        if new_tokens is None and config.max_length is not None:
            new_tokens = config.max_length - mask.shape[1]
            if new_tokens < 1:
                raise ValueError(
                    f"max_length {config.max_length} counts the prompt, which has {mask.shape[1]} tokens with its "
                    "images: pass max_new_tokens"
                )
        if getattr(self.config.text_config, "rope_parameters", None) is None:  # rotary positions have no end
            # The last token is not read; 20 is transformers' default.
            check_length(mask, self.config.text_config, further=(new_tokens or 20) - 1)

    def _has_fast_paths(self) -> bool:
        """Whether beams may share a prompt and candidates be scored as a trie with this language model."""
        return self.config.text_config.model_type == "t5" or has_plain_attention(self.language_model)

    def _may_share_prompt(self, config: GenerationConfig, kwargs: dict[str, Any]) -> bool:
        """Whether several hypotheses per row read one prompt, and nothing asked for needs transformers' own cache."""
        beams = max(config.num_beams or 1, config.num_return_sequences or 1)
        special = ("past_key_values", "custom_generate", "encoder_outputs", "decoder_input_ids")
        return (
            beams > 1
            and not (self.config.is_encoder_decoder and self.language_model.device.type == "meta")  # offloaded
            and self._has_fast_paths()
            and config.use_cache is not False
            and config.cache_implementation is None
            and not (config.output_attentions or config.output_hidden_states)
            and not any(kwargs.get(name) is not None for name in special)
        )

    def _is_plain_beam_search(self, config: GenerationConfig, kwargs: dict[str, Any]) -> bool:
        """Whether beam_search.py does all that is asked for."""
        simple = ("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn")
        in_step = is_deepspeed_zero3_enabled() or is_fsdp_managed_module(self.language_model)
        return (
            config.get_generation_mode() == GenerationMode.BEAM_SEARCH
            and not (config.return_dict_in_generate or config.low_memory)
            and config.max_time is None
            and config.stop_strings is None
            and not in_step  # every process has to run as many steps as the longest
            and all(value is None or name in simple for name, value in kwargs.items())
        )

    def _own_search(self, embeds: torch.Tensor, mask: torch.Tensor, num_beams: int) -> dict[str, Any]:
        """Arguments for transformers' `generate` that let beam_search.py do the search."""
        if not self.config.is_encoder_decoder:
            steps: BeamSteps = DecoderSteps(self.language_model, embeds, mask, num_beams)
            return {"custom_generate": search_beams, "beam_steps": steps}
        encoded = self.language_model.get_encoder()(inputs_embeds=embeds, attention_mask=mask)
        steps = EncoderDecoderSteps(self.language_model, encoded, mask, num_beams)
        return {"custom_generate": search_beams, "beam_steps": steps, "encoder_outputs": encoded}

    def _shared_prompt(self, embeds: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
        """Arguments for transformers' beam search that hold each row's prompt once."""
        if self.config.is_encoder_decoder:
            encoded = self.language_model.get_encoder()(inputs_embeds=embeds, attention_mask=mask)
            cache = share_source(self.language_model.get_decoder(), encoded.last_hidden_state)
            return {"encoder_outputs": encoded, "past_key_values": cache}
        # transformers runs the prompt's last token itself, once per beam, to get the first logits.
        prefill = self.language_model(
            inputs_embeds=embeds[:, :-1],
            attention_mask=mask[:, :-1],
            position_ids=positions_from_mask(mask[:, :-1]),
            use_cache=True,
            logits_to_keep=1,
        )
        return {"past_key_values": share_prompt(prefill.past_key_values)}

    @torch.no_grad()
    def score_candidates(
        self,
        candidates: Sequence[Sequence[Sequence[int]]] | Sequence[Sequence[int]],
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        qformer_input_ids: torch.Tensor | None = None,
        qformer_attention_mask: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        add_end_token: bool | None = None,
        length_normalize: bool = False,
        packed: bool = True,
    ) -> torch.Tensor:
        """Log-likelihood of candidate answers, the paper's vocabulary ranking (section 3.1, "Inference methods").

        The image and the prompt are run once per row; candidates that begin alike share their beginning.

        Args:
            candidates: per row, a list of token-id lists without end token (`processor.encode_answers`); or one list of
                token-id lists for all rows.
            add_end_token: score the end token too. Default: for an encoder-decoder only, as LAVIS does.
            length_normalize: divide each sum by its number of scored tokens. LAVIS does not.
            packed: False runs one whole forward per candidate; the slow way that the fast one is tested against, and
                what language models without plain attention get.
            The other arguments are those of `forward`.

        Returns:
            (rows, most candidates of a row) log p(candidate | image, prompt) in nats, -inf where a row has fewer.

        Raises:
            ValueError: an empty candidate, no candidates for a row, or a wrong number of lists.
        """
        prompt = dict(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            image_embeds=image_embeds,
            image_index=image_index,
            qformer_input_ids=qformer_input_ids,
            qformer_attention_mask=qformer_attention_mask,
        )
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass either input_ids or inputs_embeds")
        rows = len(input_ids if inputs_embeds is None else inputs_embeds)
        end = self.config.is_encoder_decoder if add_end_token is None else add_end_token
        vocabulary = self.get_input_embeddings().num_embeddings
        per_row = _candidates_per_row(candidates, rows, [self._end_token_id()] if end else [], vocabulary)
        score: Callable = score_candidates_packed if packed and self._has_fast_paths() else score_candidates_naively
        scores = score(self, per_row, **prompt)
        if length_normalize:
            scores = [
                row / row.new_tensor([len(ids) for ids in ids_of_row])
                for row, ids_of_row in zip(scores, per_row, strict=True)
            ]
        return nn.utils.rnn.pad_sequence(scores, batch_first=True, padding_value=float("-inf"))

    def _end_token_id(self) -> int:
        end = self._effective_generation_config(None).eos_token_id
        end = self.config.text_config.eos_token_id if end is None else end
        if end is None:
            raise ValueError("add_end_token needs an end token: set generation_config.eos_token_id")
        return end[0] if isinstance(end, (list, tuple)) else end


def _refuse_what_reads_ids(config: GenerationConfig, kwargs: dict[str, Any]) -> None:
    """Refuse what transformers' `generate` does with the ids of the prompt, which it does not have here."""
    asked = {
        "assistant_model": kwargs.get("assistant_model") is not None,
        "assistant_early_exit": config.assistant_early_exit is not None,
        "guidance_scale": config.guidance_scale not in (None, 1.0),
        "prefill_chunk_size": config.prefill_chunk_size is not None,
    }
    refused = [name for name, wanted in asked.items() if wanted]
    if refused:
        raise ValueError(
            f"generate cannot use {' and '.join(refused)}: transformers' code for it reads a prompt of token ids, and "
            "images have none"
        )


def _candidates_per_row(
    candidates: Sequence, rows: int, suffix: list[int], vocabulary: int
) -> list[list[tuple[int, ...]]]:
    """Candidates as tuples with the end token, one list a row."""
    shared = len(candidates) > 0 and len(candidates[0]) > 0 and not isinstance(candidates[0][0], (list, tuple))
    lists = [candidates] * rows if shared else list(candidates)
    if len(lists) != rows:
        raise ValueError(f"{len(lists)} candidate lists for {rows} prompts: pass one list per prompt, or one for all")
    cleaned: list[list[tuple[int, ...]]] = []
    for row, row_candidates in enumerate(lists):
        if shared and row:
            cleaned.append(cleaned[0])
            continue
        if not row_candidates:
            raise ValueError(f"sample {row} has no candidates")
        for number, ids in enumerate(row_candidates):
            if len(ids) == 0:
                raise ValueError(f"candidate {number} of sample {row} has no tokens")
            if isinstance(ids[0], str):
                raise ValueError(
                    f"candidate {number} of sample {row} is text, token ids were expected: encode candidates with "
                    "processor.encode_answers"
                )
            if not 0 <= min(ids) <= max(ids) < vocabulary:
                wrong = next(token for token in ids if not 0 <= token < vocabulary)
                raise ValueError(
                    f"candidate {number} of sample {row} has token {wrong}, but the language model's vocabulary has "
                    f"{vocabulary}: encode candidates with its own tokenizer"
                )
        cleaned.append([tuple(int(token) for token in ids) + tuple(suffix) for ids in row_candidates])
    return cleaned
