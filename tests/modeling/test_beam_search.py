"""Our beam search returns the ids that transformers' own returns, whatever is asked for."""

import importlib

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from instructblip.modeling import beam_search

LANGUAGES = ["t5", "llama", "qwen2", "gpt2", "opt"]
MIXIN = importlib.import_module("instructblip.modeling.generation_instruct_blip")
ENDS = [1, 2, *range(40, 60)]  # frequent, so that answers end early and at different steps
USUAL = dict(num_beams=3, max_new_tokens=7, eos_token_id=ENDS, pad_token_id=3)


class LastTokenIsRare(LogitsProcessor):
    """Reads the ids so far and gives scores that depend on them."""

    def __call__(self, input_ids, scores):
        if input_ids.shape[1] == 0:
            return scores
        return scores.scatter_add(1, input_ids[:, -1:], torch.full((len(scores), 1), -3.0))


class AfterToken(StoppingCriteria):
    """Ends an answer at any of some tokens, in its second place or later."""

    def __call__(self, input_ids, scores, **kwargs):
        return (input_ids[:, -1] > 60) & torch.tensor(input_ids.shape[1] > 2)


@pytest.fixture
def searches(monkeypatch):
    """Which searches ran: one item for each of ours."""
    ran, original = [], beam_search.search_beams

    def search(model, input_ids, logits_processor, stopping_criteria, generation_config, beam_steps, **model_kwargs):
        ran.append("ours")
        return original(
            model, input_ids, logits_processor, stopping_criteria, generation_config, beam_steps, **model_kwargs
        )

    monkeypatch.setattr(MIXIN, "search_beams", search)
    return ran


def by_transformers(model, **inputs):
    """The same with the prompt and the search of transformers."""
    model._may_share_prompt = lambda *args: False
    try:
        return model.generate(**inputs)
    finally:
        del model._may_share_prompt


SETTINGS = {
    "plain": {},
    "all beams": dict(num_beams=5, num_return_sequences=5),
    "two beams": dict(num_beams=2, num_return_sequences=2),
    "many beams": dict(num_beams=12, num_return_sequences=7),
    "one end": dict(eos_token_id=45),
    "no end": dict(eos_token_id=None),
    "padding with 0": dict(pad_token_id=0, num_return_sequences=3),
    "one token": dict(max_new_tokens=1, num_return_sequences=3),
    "longer than needed": dict(max_new_tokens=25),
    "max_length": dict(max_new_tokens=None, max_length=30),
    "repetition penalty": dict(repetition_penalty=1.7),
    "n-grams": dict(no_repeat_ngram_size=1),
    "at least": dict(min_new_tokens=5),
    "bad words": dict(bad_words_ids=[[5], [10, 11]], eos_token_id=45),
    "forced end": dict(forced_eos_token_id=45, eos_token_id=45),
    "ids read": dict(logits_processor=LogitsProcessorList([LastTokenIsRare()])),
    "few allowed": dict(prefix_allowed_tokens_fn=lambda row, ids: [5 + row, 20, 21, 40, 70], num_return_sequences=2),
    "stops": dict(stopping_criteria=StoppingCriteriaList([AfterToken()]), eos_token_id=None),
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("language", ["t5", "llama"])
def test_ids_are_those_of_transformers(language, settings, tiny_model, make_batch, mixed_rows, searches):
    model, batch = tiny_model(language), make_batch(mixed_rows, language, "left")
    settings = {**USUAL, **settings}
    ours = model.generate(**batch, **settings)
    assert searches == ["ours"]
    assert ours.tolist() == by_transformers(model, **batch, **settings).tolist()


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, -1.0, 2.0])
@pytest.mark.parametrize("language", LANGUAGES)
def test_ids_with_each_rule_of_stopping(
    language, length_penalty, early_stopping, tiny_model, make_batch, mixed_rows, searches
):
    model, batch = tiny_model(language), make_batch(mixed_rows, language, "right")
    for ends in (ENDS, [45]):
        settings = dict(USUAL, length_penalty=length_penalty, early_stopping=early_stopping, eos_token_id=ends)
        settings.update(num_return_sequences=3, max_new_tokens=9)
        ours = model.generate(**batch, **settings)
        assert ours.tolist() == by_transformers(model, **batch, **settings).tolist()
    assert searches == ["ours"] * 2


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("side", ["left", "right", "inner"])
def test_ids_of_rows_with_and_without_padding(language, side, tiny_model, make_batch, mixed_rows, searches):
    model = tiny_model(language)
    for rows in (mixed_rows, mixed_rows[:1], [mixed_rows[0], mixed_rows[0]]):
        batch = make_batch(rows, language, side)
        assert model.generate(**batch, **USUAL).tolist() == by_transformers(model, **batch, **USUAL).tolist()
    assert searches == ["ours"] * 3


@pytest.mark.parametrize("language", ["t5", "llama"])
def test_bfloat16_answers(language, tiny_model, make_batch, mixed_rows, searches):
    model, batch = tiny_model(language).to(torch.bfloat16), make_batch(mixed_rows, language)
    batch["pixel_values"] = batch["pixel_values"].to(torch.bfloat16)
    ours = model.generate(**batch, **USUAL)
    assert searches == ["ours"]
    assert (len(ours), ours.dtype) == (5, torch.long)
    assert 0 <= ours.min() <= ours.max() < 80


@pytest.mark.parametrize(
    "settings",
    [
        dict(return_dict_in_generate=True, output_scores=True),
        dict(max_time=100.0),
        dict(do_sample=True, num_return_sequences=3),
        dict(use_cache=False),
    ],
    ids=lambda settings: next(iter(settings)),
)
@pytest.mark.parametrize("language", ["t5", "llama"])
def test_what_is_not_plain_goes_to_transformers(language, settings, tiny_model, make_batch, mixed_rows, searches):
    model, batch = tiny_model(language), make_batch(mixed_rows, language, "left")
    settings = {**USUAL, **settings}
    outputs = []
    for generate in (model.generate, lambda **inputs: by_transformers(model, **inputs)):
        torch.manual_seed(0)
        outputs.append(generate(**batch, **settings))
    ours, theirs = (getattr(output, "sequences", output).tolist() for output in outputs)
    assert ours == theirs
    assert searches == []


@pytest.mark.parametrize("language", ["t5", "llama"])
def test_stop_strings_and_streamers_go_to_transformers(
    language, tiny_model, make_batch, mixed_rows, searches, gpt2_tokenizer
):
    model, batch = tiny_model(language), make_batch(mixed_rows[:2], language)
    settings = dict(USUAL, stop_strings=["5"], tokenizer=gpt2_tokenizer)
    assert model.generate(**batch, **settings).tolist() == by_transformers(model, **batch, **settings).tolist()
    with pytest.raises(ValueError, match="`streamer` cannot be used with beam search"):
        model.generate(**batch, **USUAL, streamer=object())
    assert searches == []


def test_processes_that_run_in_step_keep_the_search_of_transformers(tiny_model, monkeypatch):
    model = tiny_model("llama")
    config = model._effective_generation_config(None)
    config.num_beams = 3
    assert model._is_plain_beam_search(config, {})
    assert not model._is_plain_beam_search(config, {"synced_gpus": True})
    monkeypatch.setattr(MIXIN, "is_fsdp_managed_module", lambda module: module is model.language_model)
    assert not model._is_plain_beam_search(config, {})


@pytest.mark.parametrize("language", ["t5", "llama"])
def test_the_prompt_is_run_once_per_row_and_answers_once_per_step(
    language, tiny_model, make_batch, mixed_rows, monkeypatch
):
    model = tiny_model(language)
    sizes, head = [], model.language_model.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[:2])))
    model.generate(**make_batch(mixed_rows, language), num_beams=3, max_new_tokens=4, eos_token_id=None)
    assert sizes == [(5, 1), (15, 1), (15, 1), (15, 1)]
