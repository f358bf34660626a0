"""`generate`: transformers' own search on the same inputs, new tokens only, whatever else is asked for."""

import copy
import importlib

import pytest
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

KINDS = ["t5", "llama"]
MIXIN = "generation_instruct_blip"
GQA = "qwen2"  # two key-value heads for four query heads


def without_sharing(model, **inputs):
    """transformers' own search, which holds the prompt once per beam."""
    plain = copy.deepcopy(model)
    plain._may_share_prompt = lambda *args: False
    return plain.generate(**inputs)


@pytest.fixture
def rows(mixed_rows):
    return mixed_rows


# ---- alone == in any batch, new tokens only


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}])
@pytest.mark.parametrize("side", ["right", "left", "inner"])
@pytest.mark.parametrize("language", KINDS)
def test_an_answer_alone_equals_itself_in_a_batch(language, side, settings, tiny_model, make_batch, rows):
    model = tiny_model(language)
    settings = dict(settings, max_new_tokens=5, output_scores=True, return_dict_in_generate=True)
    together = model.generate(**make_batch(rows, language, side, extra=2), **settings)
    scores = torch.stack(together.scores, dim=1)  # (rows or beams, steps, vocabulary)
    beams = settings.get("num_beams", 1)
    for number, row in enumerate(rows):
        alone = model.generate(**make_batch([row], language), **settings)
        tokens = alone.sequences.shape[1]
        assert alone.sequences[0].tolist() == together.sequences[number, :tokens].tolist()
        first = scores[number * beams, 0]
        finite = first.isfinite()
        torch.testing.assert_close(alone.scores[0][0][finite], first[finite], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("language", KINDS)
def test_greedy_answers_are_the_most_likely_next_tokens_of_forward(language, tiny_model, make_batch, rows):
    model = tiny_model(language)
    row = rows[0]
    answer = model.generate(**make_batch([row], language), max_new_tokens=4, eos_token_id=None)[0].tolist()
    assert len(answer) == 4  # new tokens only
    for length in range(4):
        if language == "t5":
            start = torch.tensor([[0, *answer[:length]]])
            logits = model(**make_batch([row], language), decoder_input_ids=start).logits
        else:
            logits = model(**make_batch([dict(vars(row), answer=answer[:length])], language, labels=True)).logits
        assert logits[0, -1].argmax() == answer[length]


def test_a_decoding_loop_by_hand_equals_generate(tiny_model, make_batch, rows):
    model = tiny_model("llama")
    batch = make_batch(rows, "llama", "left")
    expected = model.generate(**batch, max_new_tokens=4, eos_token_id=None)
    mask = batch["attention_mask"]
    output, tokens = model(**batch, use_cache=True), []
    for _ in range(4):
        tokens.append(output.logits[:, -1].argmax(dim=-1, keepdim=True))
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        output = model(input_ids=tokens[-1], attention_mask=mask, past_key_values=output.past_key_values)
    assert torch.cat(tokens, dim=1).tolist() == expected.tolist()


# ---- beams that share the prompt


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 2},
        {"num_beams": 5, "num_return_sequences": 5},
        {"num_beams": 3, "length_penalty": -2.0, "early_stopping": True},
        {"num_beams": 4, "length_penalty": 2.0, "early_stopping": "never", "num_return_sequences": 2},
        {"num_beams": 3, "no_repeat_ngram_size": 1, "repetition_penalty": 1.5, "min_new_tokens": 4},
    ],
)
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("language", [*KINDS, GQA])
def test_shared_prompt_beams_equal_those_of_transformers(language, side, settings, tiny_model, make_batch, rows):
    model = tiny_model(language)
    batch = make_batch(rows, language, side)
    # Frequent end tokens, so that hypotheses end early and at different steps.
    settings = dict(settings, max_new_tokens=7, eos_token_id=[1, 2, *range(40, 60)], pad_token_id=3,
                    return_dict_in_generate=True, output_scores=True)  # fmt: skip
    shared, plain = model.generate(**batch, **settings), without_sharing(model, **batch, **settings)
    assert shared.sequences.tolist() == plain.sequences.tolist()
    torch.testing.assert_close(shared.sequences_scores, plain.sequences_scores, atol=1e-5, rtol=1e-5)
    assert shared.beam_indices.tolist() == plain.beam_indices.tolist()
    if settings.get("early_stopping") is True:
        assert (shared.sequences == 3).any()  # some hypotheses did end early


@pytest.mark.parametrize("own_search", [True, False])
@pytest.mark.parametrize("language", [*KINDS, GQA])
def test_the_prompt_is_stored_once_for_all_beams(language, own_search, tiny_model, make_batch, rows, monkeypatch):
    model = tiny_model(language)
    name = "share_source" if language == "t5" else "share_prompt"
    module = importlib.import_module(f"instructblip.modeling.{'beam_search' if own_search else MIXIN}")
    made, original = [], getattr(module, name)
    monkeypatch.setattr(module, name, lambda *given: made.append(original(*given)) or made[-1])
    batch = make_batch(rows, language)
    model.generate(**batch, num_beams=4, max_new_tokens=3, eos_token_id=None, return_dict_in_generate=not own_search)
    if language == "t5":
        assert {len(layer.keys) for layer in made[0].cross_attention_cache.layers} == {5}
        assert {len(layer.keys) for layer in made[0].self_attention_cache.layers} == {20}
    else:
        assert {len(layer.prefix_keys) for layer in made[0].layers} == {5}
        added = 2 if own_search else 3  # transformers' search also runs the prompt's last token once per beam
        assert {tuple(layer.keys.shape[:3:2]) for layer in made[0].layers} == {(20, added)}


@pytest.mark.parametrize("language", KINDS)
def test_sampling_several_sequences_equals_transformers(language, tiny_model, make_batch, rows):
    model = tiny_model(language)
    batch = make_batch(rows, language, "left")
    settings = dict(do_sample=True, num_return_sequences=3, max_new_tokens=5, top_k=20, temperature=0.7)
    torch.manual_seed(3)
    shared = model.generate(**batch, **settings)
    torch.manual_seed(3)
    assert shared.tolist() == without_sharing(model, **batch, **settings).tolist()
    assert shared.shape[0] == 15
    assert len({tuple(ids) for ids in shared.tolist()}) > 5


@pytest.mark.parametrize("language", KINDS)
def test_beams_over_a_prompt_of_one_token(language, tiny_model, make_batch):
    model = tiny_model(language)
    batch = make_batch([dict(text=(5,), images=())], language)
    expected = without_sharing(model, **batch, num_beams=3, max_new_tokens=4)
    assert model.generate(**batch, num_beams=3, max_new_tokens=4).tolist() == expected.tolist()


@pytest.mark.parametrize("language", KINDS)
def test_beams_when_one_row_is_a_single_token(language, tiny_model, make_batch):
    """Its prompt before the last token is all padding."""
    model = tiny_model(language)
    batch = make_batch([dict(text=(5,), images=()), dict(text=(6, 7, 8), images=())], language)
    expected = without_sharing(model, **batch, num_beams=3, max_new_tokens=4)
    assert model.generate(**batch, num_beams=3, max_new_tokens=4).tolist() == expected.tolist()
    alone = model.generate(**make_batch([dict(text=(5,), images=())], language), num_beams=3, max_new_tokens=4)
    assert alone[0].tolist() == expected[0, : alone.shape[1]].tolist()


@pytest.mark.parametrize("language", KINDS)
@pytest.mark.parametrize("settings", [{"use_cache": False}, {"cache_implementation": "dynamic"}, {"attention": "eager"},
                                      {"output_attentions": True, "return_dict_in_generate": True}])  # fmt: skip
def test_beams_with_another_cache_or_attention(language, settings, tiny_model, make_batch, rows):
    model = tiny_model(language)
    batch = make_batch(rows, language, "left")
    expected = model.generate(**batch, num_beams=3, max_new_tokens=4)
    settings = dict(settings)
    if "output_attentions" in settings:
        model.set_attn_implementation("eager")
    if settings.get("attention"):
        model.set_attn_implementation(settings.pop("attention"))
    output = model.generate(**batch, num_beams=3, max_new_tokens=4, **settings)
    assert getattr(output, "sequences", output).tolist() == expected.tolist()


@pytest.mark.parametrize("language", KINDS)
def test_an_error_in_the_search_leaves_the_attention_as_it_was(language, tiny_model, make_batch, rows):
    model = tiny_model(language)
    batch = make_batch(rows, language)
    expected = model.generate(**batch, num_beams=2, max_new_tokens=3)

    class Fails(LogitsProcessor):
        def __call__(self, input_ids, scores):
            raise RuntimeError("in the search")

    with pytest.raises(RuntimeError, match="in the search"):
        model.generate(**batch, num_beams=2, logits_processor=LogitsProcessorList([Fails()]))
    implementations = {module.config._attn_implementation for module in model.modules() if hasattr(module, "config")}
    assert implementations == {"sdpa"}
    assert model.generate(**batch, num_beams=2, max_new_tokens=3).tolist() == expected.tolist()


# ---- transformers' other arguments


@pytest.mark.parametrize("language", KINDS)
def test_a_streamer_gets_every_new_token(language, tiny_model, make_batch, rows, t5_tokenizer, llama_tokenizer):
    model = tiny_model(language)
    tokenizer = t5_tokenizer if language == "t5" else llama_tokenizer
    batch = make_batch(rows[:1], language)
    streamer = TextIteratorStreamer(tokenizer, skip_special_tokens=True)
    answer = model.generate(**batch, max_new_tokens=5, streamer=streamer)
    assert "".join(streamer) == tokenizer.decode(answer[0], skip_special_tokens=True)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("language", KINDS)
def test_logits_processors_and_stopping_criteria_are_obeyed(language, beams, tiny_model, make_batch, rows):
    class Only42(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return scores.masked_fill(torch.arange(scores.shape[1]) != 42, float("-inf"))

    class AfterThree(StoppingCriteria):
        calls = 0

        def __call__(self, input_ids, scores, **kwargs):
            self.calls += 1
            return torch.full((len(input_ids),), self.calls >= 3)

    output = tiny_model(language).generate(
        **make_batch(rows[:2], language), num_beams=beams, max_new_tokens=9, eos_token_id=None,
        logits_processor=LogitsProcessorList([Only42()]), stopping_criteria=StoppingCriteriaList([AfterThree()]),
    )  # fmt: skip
    assert output.tolist() == [[42] * 3] * 2


@pytest.mark.parametrize("language", KINDS)
def test_return_dict_in_generate_holds_new_tokens_and_their_scores(language, tiny_model, make_batch, rows):
    model = tiny_model(language)
    output = model.generate(
        **make_batch(rows, language), max_new_tokens=4, eos_token_id=None, return_dict_in_generate=True,
        output_scores=True, output_logits=True,
    )  # fmt: skip
    assert output.sequences.shape == (5, 4)
    assert len(output.scores) == len(output.logits) == 4
    assert torch.stack(output.logits, dim=1).argmax(dim=-1).tolist() == output.sequences.tolist()


def test_a_given_beginning_of_the_answer_is_not_returned(tiny_model, make_batch, rows):
    model = tiny_model("t5")
    batch = make_batch(rows[:2], "t5")
    given = torch.tensor([[0, 5], [0, 6]])
    expected = model.generate(**batch, max_new_tokens=3, decoder_input_ids=given, eos_token_id=None)
    assert expected.shape == (2, 3)
    for beginning in (given[:, 1:], given):  # transformers adds a missing start token
        for beams in (1, 2):
            output = model.generate(
                **batch, max_new_tokens=3, decoder_input_ids=beginning, num_beams=beams, eos_token_id=None
            )
            assert output.shape == (2, 3)
            assert beams > 1 or output.tolist() == expected.tolist()


# ---- settings


def test_settings_go_language_model_then_model_then_argument_object_then_keywords(tiny_model, make_batch, rows):
    model = tiny_model("llama")
    batch = make_batch(rows[:1], "llama")

    def new(**kwargs):
        return model.generate(**batch, eos_token_id=None, **kwargs).shape[1]

    model.language_model.generation_config.max_new_tokens = 2
    assert new() == 2
    model.generation_config.max_new_tokens = 3
    assert new() == 3
    assert new(generation_config=GenerationConfig(max_new_tokens=4)) == 4
    assert new(generation_config=GenerationConfig(max_new_tokens=4), max_new_tokens=5) == 5
    assert new(generation_config=GenerationConfig(do_sample=False)) == 3  # what an object does not say stays


def test_the_language_models_end_tokens_are_kept(tiny_config, make_batch, rows, tmp_path):
    """A chat model has several end tokens in its generation_config.json and one in its config.json."""
    from instructblip import InstructBLIPForConditionalGeneration

    model = InstructBLIPForConditionalGeneration(tiny_config("llama"))
    model.generation_config.eos_token_id = [2, 7]
    model.save_pretrained(tmp_path)
    loaded = InstructBLIPForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded._effective_generation_config(None).eos_token_id == [2, 7]


@pytest.mark.parametrize("language", KINDS)
def test_generate_changes_no_settings(language, tiny_model, make_batch, rows):
    model = tiny_model(language)
    given = GenerationConfig(max_new_tokens=2, num_beams=2)
    before = [config.to_dict() for config in (model.generation_config, model.language_model.generation_config, given)]
    config = model.config.to_dict()
    model.generate(**make_batch(rows, language), generation_config=given, length_penalty=0.5)
    after = [config.to_dict() for config in (model.generation_config, model.language_model.generation_config, given)]
    assert after == before
    assert model.config.to_dict() == config


def test_a_misspelt_argument_is_refused(tiny_model, make_batch, rows):
    for beams in (1, 2):
        with pytest.raises((ValueError, TypeError), match="max_new_tokenz"):
            tiny_model("llama").generate(**make_batch(rows, "llama"), max_new_tokenz=3, num_beams=beams)


REFUSED = {
    "assistant_model": lambda model: model.language_model,
    "assistant_early_exit": lambda model: 1,
    "guidance_scale": lambda model: 1.5,
    "prefill_chunk_size": lambda model: 4,
}


@pytest.mark.parametrize("language", KINDS)
@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_the_ids_of_the_prompt_is_refused(name, language, tiny_model, make_batch, rows):
    model = tiny_model(language)
    for beams in (1, 2):
        with pytest.raises(ValueError, match=f"generate cannot use {name}: .* reads a prompt of token ids"):
            model.generate(**make_batch(rows, language), **{name: REFUSED[name](model)}, num_beams=beams)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("language", KINDS)
def test_a_static_cache_gives_the_same_answers(language, beams, tiny_model, make_batch, rows):
    model = tiny_model(language)
    settings = dict(make_batch(rows, language), max_new_tokens=5, num_beams=beams)
    expected = model.generate(**settings)
    assert model.generate(**settings, cache_implementation="static").tolist() == expected.tolist()


def test_prompt_lookup_gives_the_greedy_answer(tiny_model, make_batch, rows):
    model = tiny_model("llama")
    settings = dict(make_batch(rows[:1], "llama"), max_new_tokens=12, eos_token_id=None)
    assert model.generate(**settings, prompt_lookup_num_tokens=3).tolist() == model.generate(**settings).tolist()


# ---- lengths


@pytest.mark.parametrize("language", ["gpt2", "opt", "llama"])
def test_new_tokens_beyond_learned_positions_are_refused(language, tiny_model, make_batch):
    model = tiny_model(language, text={"n_positions" if language == "gpt2" else "max_position_embeddings": 32})
    batch = make_batch([dict(text=(5,) * 22), dict(text=(6, 7))], language, "left")  # and 4 placeholders
    for beams in (1, 3):
        settings = dict(batch, num_beams=beams, eos_token_id=None)
        assert model.generate(**settings, max_new_tokens=7).shape == (2, 7)  # the last of them is not read
        if language == "llama":  # rotary positions have no end
            assert model.generate(**settings, max_new_tokens=8).shape == (2, 8)
            continue
        for length in ({"max_new_tokens": 8}, {"max_length": 34}, {}):
            with pytest.raises(ValueError, match="26 tokens and .* that may follow is longer than the 32 positions"):
                model.generate(**settings, **length)


def test_a_length_that_the_prompt_uses_up_is_refused(tiny_model, make_batch, rows):
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="max_length 4 counts the prompt, which has .* pass max_new_tokens"):
        model.generate(**make_batch(rows, "llama"), max_length=4)
    assert tiny_model("t5").generate(**make_batch(rows, "t5"), max_length=4).shape[1] < 4  # counts the answer alone


# ---- inputs


@pytest.mark.parametrize("language", KINDS)
def test_inputs_are_input_ids(language, tiny_model, make_batch, rows):
    model = tiny_model(language)
    batch = make_batch(rows, language)
    expected = model.generate(**batch, max_new_tokens=4).tolist()
    ids = batch.pop("input_ids")
    assert model.generate(inputs=ids, **batch, max_new_tokens=4).tolist() == expected
    with pytest.raises(ValueError, match="inputs and input_ids are the same argument"):
        model.generate(ids, inputs=ids, **batch)


@pytest.mark.parametrize("language", KINDS)
def test_an_image_without_a_prompt_is_described_from_the_start_token(language, tiny_model, make_batch):
    model = tiny_model(language, qformer_text_input=False)
    batch = make_batch([dict(text=() if language == "t5" else (1,), images=(0,)),
                        dict(text=() if language == "t5" else (1,), images=(1,))], language)  # fmt: skip
    expected = model.generate(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"], max_new_tokens=4)
    assert model.generate(pixel_values=batch["pixel_values"], max_new_tokens=4).tolist() == expected.tolist()
    with pytest.raises(ValueError, match="nothing to generate from"):
        model.generate()
    with pytest.raises(ValueError, match='an instruction, which a processor makes of text= .text="" is an empty one'):
        tiny_model(language).generate(pixel_values=batch["pixel_values"])


@pytest.mark.parametrize("language", KINDS)
def test_image_embeds_and_inputs_embeds_give_the_same_answers(language, tiny_model, make_batch, rows):
    model = tiny_model(language)
    batch = make_batch(rows, language)
    expected = model.generate(**batch, num_beams=2, max_new_tokens=4)
    batch["image_embeds"] = model.encode_images(batch.pop("pixel_values")).last_hidden_state
    assert model.generate(**batch, num_beams=2, max_new_tokens=4).tolist() == expected.tolist()
    batch["inputs_embeds"] = model.get_input_embeddings()(batch.pop("input_ids"))
    assert model.generate(**batch, num_beams=2, max_new_tokens=4).tolist() == expected.tolist()
