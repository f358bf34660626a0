import numpy as np
import pytest
import tiny_peers
import torch
from lm_eval.api.instance import Instance
from PIL import Image

from instructblip.eval_tasks import InstructBLIPEvalModel, chat_model_scoring
from instructblip.eval_tasks.chat_model_driver import ChatModelDriver
from instructblip.eval_tasks.driver import Prompt
from instructblip.eval_tasks.instructblip_driver import InstructBLIPDriver

SEVERAL_PICTURES = ("llava", "llava_next", "idefics3", "smolvlm", "qwen2_vl", "qwen2_5_vl")
ONE_PICTURE = ("blip_2_opt", "blip_2_t5", "instructblip_llama", "instructblip_t5")
PEERS = SEVERAL_PICTURES + ONE_PICTURE
ANSWERS = ["yes", "no", "red cat", "red dog", "two cat left", "two cat"]
GREEDY = {"max_new_tokens": 5, "do_sample": False}


@pytest.fixture
def peer(request):
    """A factory of tiny models of other families with their processors: `peer("llava")`."""
    return lambda name, *args, **kwargs: getattr(tiny_peers, name)(
        lambda tokenizer: request.getfixturevalue(f"{tokenizer}_tokenizer"), *args, **kwargs
    )


@pytest.fixture
def images(tmp_path, tiny_images):
    """Decoded pictures by path; the second is wide."""
    pictures = [tiny_images[0], tiny_images[1].resize((56, 28)), tiny_images[2]]
    paths = [str(tmp_path / f"{number}.png") for number in range(3)]
    for path, picture in zip(paths, pictures, strict=True):
        picture.save(path)
    return {path: Image.open(path).convert("RGB") for path in paths}


def prompts_about(images, name):
    first, second, third = images
    prompts = [
        Prompt("what is this ? answer :", first),
        Prompt("what is this ? answer :", second),
        Prompt("is the cat red or blue in the photo ? answer :", third),
        Prompt("left ? answer :", first),
    ]
    if name in SEVERAL_PICTURES:
        prompts += [Prompt("is this a cat ? answer :", []), Prompt("what color ? answer :", [third, second])]
        prompts += [Prompt("what ? answer :", [first, second], history=[("is this red ?", "yes"), ("blue ?", "no")])]
    return prompts


def one_forward(model, inputs, ids):
    """log p(ids | inputs) of one prompt without padding, from nothing but the model's forward."""
    target = torch.tensor(ids)
    with torch.no_grad():
        if getattr(model, "language_model", model).config.is_encoder_decoder:
            logits = model(**inputs, decoder_input_ids=torch.tensor([[0, *ids[:-1]]])).logits[0]
        else:
            whole = dict(inputs, input_ids=torch.cat([inputs["input_ids"], target[None]], dim=1))
            for name in ("attention_mask", "mm_token_type_ids"):
                if name in inputs:
                    more = torch.full((1, len(ids)), int(name == "attention_mask"))
                    whole[name] = torch.cat([inputs[name], more], dim=1)
            logits = model(**whole).logits[0, -len(ids) - 1 : -1]
    return logits.log_softmax(dim=-1)[torch.arange(len(ids)), target].sum().item()


@pytest.mark.parametrize("name", PEERS)
def test_scores_equal_one_forward_per_candidate_and_do_not_depend_on_the_batch(peer, images, name):
    model, processor = peer(name)
    driver = ChatModelDriver(model, processor)
    prompts = prompts_about(images, name)
    candidates = driver.encode_candidates(ANSWERS)
    fewer = [candidates[:2] if row == 1 else candidates for row in range(len(prompts))]
    scores = driver.score(driver.inputs(prompts, images), fewer, None, False)
    assert scores.dtype == np.float32
    assert np.isneginf(scores[1, 2:]).all()
    assert len(np.unique(scores[:, 0].round(5))) > 3, "prompts and pictures make no difference"
    end = [model.language_model.config.eos_token_id] if name.endswith("t5") else []
    for prompt, of_prompt, row in zip(prompts, fewer, scores, strict=True):
        [(_, alone)] = driver.inputs([prompt], images)
        assert alone["attention_mask"].all()
        expected = [one_forward(model, alone, ids + end) for ids in of_prompt]
        np.testing.assert_allclose(row[: len(of_prompt)], expected, atol=1e-4)


@pytest.mark.parametrize("name", PEERS)
def test_answers_do_not_depend_on_the_batch(peer, images, name):
    driver = ChatModelDriver(*peer(name))
    prompts = prompts_about(images, name)
    settings = {**GREEDY, "num_beams": 2, "repetition_penalty": 1.5, "min_new_tokens": 3}
    answers = driver.generate(driver.inputs(prompts, images), settings)
    assert len(set(answers)) > 1
    assert [driver.generate(driver.inputs([prompt], images), settings)[0] for prompt in prompts] == answers


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "blip_2_opt", "blip_2_t5"])
def test_only_new_text_comes_back(peer, images, name):
    """The tokens are those that plain greedy search over the model's forward finds."""
    model, processor = peer(name)
    driver = ChatModelDriver(model, processor)
    prompt = prompts_about(images, name)[0]
    [(_, inputs)] = driver.inputs([prompt], images)
    found = []
    allowed = sorted(set(range(10, 40)))
    for _ in range(4):
        scores = [one_forward(model, inputs, [*found, token]) for token in allowed]
        found.append(allowed[int(np.argmax(scores))])
    settings = {**GREEDY, "max_new_tokens": 4, "prefix_allowed_tokens_fn": lambda row, ids: allowed}
    [answer] = driver.generate(driver.inputs([prompt], images), settings)
    assert answer == processor.tokenizer.decode(found, skip_special_tokens=True)


def test_a_model_that_returns_no_prompt_gives_the_same_text(peer, images, monkeypatch):
    model, processor = peer("llava")
    driver = ChatModelDriver(model, processor)
    settings = {**GREEDY, "repetition_penalty": 1.5, "min_new_tokens": 5}
    prompts = [Prompt("what is this ?", key) for key in images]
    expected = driver.generate(driver.inputs(prompts, images), settings)
    assert any(expected)
    generate = model.generate

    def from_embeddings(input_ids, pixel_values, **kwargs):
        features = torch.cat(list(model.get_image_features(pixel_values).pooler_output))
        embeds = model.get_input_embeddings()(input_ids)
        embeds = embeds.masked_scatter((input_ids == model.config.image_token_id)[..., None], features)
        return generate(inputs_embeds=embeds, **kwargs)

    monkeypatch.setattr(model, "generate", from_embeddings)
    assert driver.generate(driver.inputs(prompts, images), settings) == expected


def test_a_repetition_penalty_does_not_count_the_prompt(peer, images):
    """A huge one makes no token come twice, and leaves the first token as it is, although the prompt holds it."""
    model, processor = peer("llava")
    driver = ChatModelDriver(model, processor)
    words = list(range(10, 20))
    settings = {**GREEDY, "prefix_allowed_tokens_fn": lambda row, ids: words}
    prompt = Prompt(processor.tokenizer.decode(words), list(images)[:1])
    [plain] = driver.generate(driver.inputs([prompt], images), settings)
    [penalized] = driver.generate(driver.inputs([prompt], images), {**settings, "repetition_penalty": 1e6})
    assert penalized.split()[0] == plain.split()[0]
    assert len(set(penalized.split())) == 5
    model.generation_config.repetition_penalty = 1e6  # gives way to the task's
    assert driver.generate(driver.inputs([prompt], images), {**settings, "repetition_penalty": 1.0}) == [plain]


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "blip_2_t5"])
def test_scores_do_not_depend_on_how_many_candidates_run_together(peer, images, name, monkeypatch):
    driver = ChatModelDriver(*peer(name))
    prompts = prompts_about(images, name)
    candidates = [driver.encode_candidates(ANSWERS)] * len(prompts)
    expected = driver.score(driver.inputs(prompts, images), candidates, None, False)
    monkeypatch.setattr(chat_model_scoring, "MAX_ROWS", 3)
    np.testing.assert_allclose(
        driver.score(driver.inputs(prompts, images), candidates, None, False), expected, atol=1e-5
    )
    monkeypatch.setattr(chat_model_scoring, "MAX_POSITIONS", 1)
    np.testing.assert_allclose(
        driver.score(driver.inputs(prompts, images), candidates, None, False), expected, atol=1e-5
    )


@pytest.mark.parametrize("name", PEERS)
def test_models_without_a_usable_cache_are_scored_the_plain_way(peer, images, name):
    model, processor = peer(name)
    driver = ChatModelDriver(model, processor)
    prompts = prompts_about(images, name)[:4]
    candidates = [[tuple(ids) for ids in driver.encode_candidates(ANSWERS)][: 6 - row] for row in range(4)]
    [(_, inputs)] = driver.inputs(prompts, images)
    with torch.no_grad():
        expected = chat_model_scoring.score_candidates(model, inputs, candidates)
        plain = chat_model_scoring.score_after_whole_prompts(model, inputs, candidates)
    for ours, other in zip(expected, plain, strict=True):
        torch.testing.assert_close(ours, other, atol=1e-4, rtol=0)


def test_a_sliding_window_that_is_shorter_than_the_prompt_is_kept_to(peer, images):
    model, processor = peer("llava", model_type="mistral", sliding_window=6)
    driver = ChatModelDriver(model, processor)
    prompt = Prompt("is the cat red ?", list(images)[:1])
    candidates = driver.encode_candidates(ANSWERS)
    [(_, alone)] = driver.inputs([prompt], images)
    assert alone["input_ids"].shape[1] > 20
    expected = [one_forward(model, alone, ids) for ids in candidates]
    prompts = [prompt, Prompt("what ?", list(images)[:1])]
    scores = driver.score(driver.inputs(prompts, images), [candidates] * 2, None, False)[0]
    np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_prompt_and_pictures_run_once_however_many_candidates(peer, images, monkeypatch):
    model, processor = peer("llava")
    driver = ChatModelDriver(model, processor)
    runs = []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda *args, **kwargs: runs.append("pixel_values" in kwargs) or forward(*args, **kwargs)
    )
    prompts = prompts_about(images, "blip")
    driver.score(driver.inputs(prompts, images), [driver.encode_candidates(ANSWERS)] * 4, None, False)
    assert runs == [True, False]


def test_the_end_token_counts_only_where_it_is_asked_for(peer, images):
    model, processor = peer("blip_2_t5")
    driver = ChatModelDriver(model, processor)
    prompts, candidates = [Prompt("what ?", list(images)[:1])], driver.encode_candidates(["red cat"])
    [(_, alone)] = driver.inputs(prompts, images)
    ids = candidates[0]
    for add_end, scored in ((None, [*ids, 1]), (True, [*ids, 1]), (False, ids)):
        expected = one_forward(model, alone, scored)
        for normalize, divisor in ((False, 1), (True, len(scored))):
            [[score]] = driver.score(driver.inputs(prompts, images), [candidates], add_end, normalize)
            assert score == pytest.approx(expected / divisor, abs=1e-4)


def test_decoder_only_models_end_with_the_first_end_token_of_their_settings(peer, images):
    model, processor = peer("qwen2_vl")
    driver = ChatModelDriver(model, processor)
    prompts, candidates = [Prompt("what ?", list(images)[:1])], driver.encode_candidates(["red cat"])
    [(_, alone)] = driver.inputs(prompts, images)
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    [[score]] = driver.score(driver.inputs(prompts, images), [candidates], True, False)
    assert score == pytest.approx(one_forward(model, alone, [*candidates[0], end]), abs=1e-4)


def test_prompts_become_turns_of_the_chat_template(peer, images):
    driver = ChatModelDriver(*peer("llava"))
    first, second, _ = images
    prompt = Prompt("blue ?", [first, second], history=[("red ?", "no")])
    assert driver._text(prompt) == "USER: <image> <image> red ? ASSISTANT: no USER: blue ? ASSISTANT:"
    assert driver._text(Prompt("blue ?", [])) == "USER: blue ? ASSISTANT:"
    assert driver.prompt_form == "chat template"


def test_without_a_chat_template_pictures_come_before_the_plain_prompt(peer, images):
    model, processor = peer("llava", chat_template=None)
    driver = ChatModelDriver(model, processor)
    first, second, _ = images
    prompts = [Prompt("blue ?", [first, second], history=[("red ?", "no")]), Prompt("blue ?", [])]
    assert [driver._text(prompt) for prompt in prompts] == ["<image><image>red ? no\nblue ?", "blue ?"]
    assert driver.prompt_form == "plain prompt"
    assert len(driver.generate(driver.inputs(prompts, images), GREEDY)) == 2
    blip = ChatModelDriver(*peer("blip_2_opt"))
    assert blip._text(Prompt("blue ?", [first])) == "blue ?"
    [(_, inputs)] = blip.inputs([Prompt("blue ?", [first]), Prompt("is this blue ?", [first])], images)
    placeholder = blip.model.config.image_token_id
    assert (inputs["input_ids"][0] == placeholder).nonzero().flatten().tolist() == [2, 3, 4, 5]  # padding comes first


def test_a_start_token_of_the_template_is_not_doubled(peer, images):
    driver = ChatModelDriver(*peer("idefics3"))
    [(_, inputs)] = driver.inputs([Prompt("what ?", list(images)[:1])], images)
    assert (inputs["input_ids"] == driver.processor.tokenizer.bos_token_id).sum() == 1


@pytest.mark.parametrize(("name", "answer"), [("llava", "ASSISTANT: red"), ("qwen2_vl", "assistant\nred")])
def test_candidates_are_tokenized_as_the_assistants_turn(peer, gpt2_tokenizer, name, answer):
    model, processor = peer(name)
    processor.tokenizer = gpt2_tokenizer  # for which " red" and "red" differ
    driver = ChatModelDriver(model, processor)
    [ids] = driver.encode_candidates(["red"])
    lead = answer.partition("red")[0]
    assert gpt2_tokenizer.decode(ids) == (" red" if lead.endswith(" ") else "red")
    beginning = gpt2_tokenizer(lead.rstrip(" "))["input_ids"]
    assert gpt2_tokenizer(answer)["input_ids"] == [*beginning, *ids]


def test_an_empty_candidate_is_refused(peer, images):
    driver = ChatModelDriver(*peer("llava"))
    inputs = driver.inputs([Prompt("what ?", list(images)[:1])], images)
    with pytest.raises(ValueError, match="candidates must not be empty"):
        driver.score(inputs, [[[5], []]], None, False)


@pytest.mark.parametrize("count", [0, 2])
def test_blip_2_takes_one_picture_a_prompt(peer, images, count):
    driver = ChatModelDriver(*peer("blip_2_opt"))
    prompts = [Prompt("what ?", list(images)[:1]), Prompt("and that ?", list(images)[:count])]
    with pytest.raises(ValueError, match=f"takes one picture a prompt, and 'and that \\?' has {count or 'none'}"):
        driver.inputs(prompts, images)


def test_prompts_that_a_model_cannot_take_are_refused_before_any_is_answered(peer, images, monkeypatch):
    lm = InstructBLIPEvalModel(*peer("blip_2_opt"), device="cpu")
    monkeypatch.setattr(lm.driver, "generate", lambda *_: pytest.fail("answered"))
    settings = [{"num_beams": 1, "max_new_tokens": 2}, {"num_beams": 2, "max_new_tokens": 2}]
    requests = [
        Instance("generate_until", {}, ("what ?", settings[count - 1], {"visual": list(images)[:count]}), count)
        for count in (1, 2)
    ]
    with pytest.raises(ValueError, match="'what \\?' has 2: leave out tasks with such prompts"):
        lm.generate_until(requests)


def test_a_blip_2_processor_that_shows_no_pictures_is_refused(peer):
    model, processor = peer("blip_2_opt")
    processor.num_query_tokens = None
    with pytest.raises(ValueError, match="num_query_tokens=None.* set it to 4"):
        ChatModelDriver(model, processor)


def test_pictures_come_in_the_models_precision(peer, images):
    model, processor = peer("llava")
    driver = ChatModelDriver(model.to(torch.bfloat16), processor)
    inputs = driver.inputs([Prompt("what ?", list(images)[:1])], images)
    assert len(driver.generate(inputs, GREEDY)) == 1
    assert np.isfinite(driver.score(inputs, [driver.encode_candidates(ANSWERS)], None, False)).all()


# Through the harness's model class


def request(kind, *args):
    return Instance(request_type=kind, doc={}, arguments=args, idx=0)


def test_the_harness_tells_models_of_ours_from_others(peer, stub_lm):
    model, processor = peer("llava")
    lm = InstructBLIPEvalModel(model, processor, device="cpu")
    assert isinstance(lm.driver, ChatModelDriver)
    assert isinstance(stub_lm().driver, InstructBLIPDriver)
    info = lm.get_model_info()
    assert (info["prompt_form"], info["encoder_decoder"], info["add_end_token"]) == ("chat template", False, False)
    with pytest.raises(ValueError, match="max_length=20: only InstructBLIP's prompts can be cut, not those of Llava"):
        InstructBLIPEvalModel(model, processor, device="cpu", max_length=20)


@pytest.mark.parametrize("name", ["llava", "blip_2_t5"])
def test_a_folder_is_loaded_and_evaluated(peer, images, tmp_path, name):
    model, processor = peer(name)
    model.save_pretrained(tmp_path / name)
    processor.save_pretrained(tmp_path / name)
    loaded = InstructBLIPEvalModel(str(tmp_path / name), dtype="float32", device="cpu", batch_size=3)
    assert isinstance(loaded.driver, ChatModelDriver)
    memory = InstructBLIPEvalModel(model, processor, device="cpu", batch_size=1)
    settings = {
        "until": [],
        "max_gen_toks": 4,
        "length_penalty": {"encoder_decoder": -1.0, "decoder_only": 0.0},
        "repetition_penalty": {"encoder_decoder": 1.0, "decoder_only": 1.5},
        "num_beams": 2,
    }
    prompts = [(f"what is {word} ?", {"visual": [path]}) for path in images for word in ("this", "left")]
    asked = [request("generate_until", text, dict(settings), visual) for text, visual in prompts]
    assert loaded.generate_until(asked) == memory.generate_until(asked)
    ranked = [request("rank_candidates", text, ANSWERS, visual) for text, visual in prompts]
    for ours, other in zip(loaded.rank_candidates(ranked), memory.rank_candidates(ranked), strict=True):
        np.testing.assert_allclose(ours, other, atol=1e-4)


@pytest.mark.parametrize("name", ["qwen2_vl", "instructblip_t5"])
def test_tasks_run_end_to_end(peer, evaluate, name):
    lm = InstructBLIPEvalModel(*peer(name), device="cpu", batch_size=4)
    tasks = "instructblip_vqa_rad", "instructblip_vqa_rad_ranked"
    results = evaluate(lm, *tasks)
    assert {results["results"][task]["sample_len"] for task in tasks} == {10}
    ranked = results["samples"]["instructblip_vqa_rad_ranked"]
    assert all(sample["filtered_resps"][0] in ("yes", "no", "red", "two dog", "blue") for sample in ranked)
