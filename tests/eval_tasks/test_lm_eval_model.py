import json
import threading

import lm_eval.api.registry
import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance

from instructblip import InstructBLIPForConditionalGeneration, InstructBLIPProcessor
from instructblip.eval_tasks import InstructBLIPEvalModel, lm_eval_model
from instructblip.eval_tasks.lm_eval_model import CandidateList, cut_before


@pytest.fixture
def paths(tmp_path, tiny_images):
    names = [str(tmp_path / f"{number}.png") for number in range(len(tiny_images))]
    for name, image in zip(names, tiny_images, strict=True):
        image.save(name)
    return names


@pytest.fixture
def decoded(monkeypatch):
    """The references that are decoded, in order."""
    references = []
    read = lm_eval_model.read_image
    monkeypatch.setattr(lm_eval_model, "read_image", lambda reference: references.append(reference) or read(reference))
    return references


def request(kind, *args):
    return Instance(request_type=kind, doc={}, arguments=args, idx=0)


def generate_requests(paths, count=12, pictures=3, **settings):
    settings = {"until": [], "max_gen_toks": 5, "do_sample": False, **settings}
    return [
        request(
            "generate_until", "what color" + " ?" * (number % 5), dict(settings), {"visual": [paths[number % pictures]]}
        )
        for number in range(count)
    ]


def rank_requests(paths, count=12, candidates=("yes", "no", "red")):
    return [
        request("rank_candidates", "what" + " is" * (number % 4), list(candidates), {"visual": [paths[number % 3]]})
        for number in range(count)
    ]


def shuffled(requests):
    order = np.random.default_rng(1).permutation(len(requests))
    return order, [requests[number] for number in order]


def test_the_class_is_registered_beside_lm_evals_own():
    assert lm_eval.api.registry.get_model("instructblip") is InstructBLIPEvalModel
    assert "hf" in lm_eval.api.registry.model_registry


@pytest.mark.parametrize("batch_size", ["auto", 0, -1])
def test_a_batch_size_that_is_no_number_is_refused(stub_lm, batch_size):
    with pytest.raises(ValueError, match=f"batch_size '?{batch_size}'?: pass a positive number"):
        stub_lm(batch_size=batch_size)


def test_a_model_in_memory_needs_its_processor_and_may_not_hide_in_model_args(stub_lm):
    with pytest.raises(TypeError, match="pass processor="):
        InstructBLIPEvalModel(stub_lm().model, device="cpu")
    with pytest.raises(TypeError, match="pass model=InstructBLIPEvalModel"):
        InstructBLIPEvalModel.create_from_arg_obj({"pretrained": torch.nn.Linear(1, 1)})


def test_a_processor_of_another_model_is_refused_when_it_is_loaded(tiny_lm, tmp_path):
    lm = tiny_lm("llama")
    lm.processor.tokenizer.add_tokens([f"<new{number}>" for number in range(10)])
    reason = "do not belong together: the language model's tokenizer has 90 tokens but the model only 80"
    with pytest.raises(ValueError, match=reason):
        InstructBLIPEvalModel(lm.model, lm.processor, device="cpu")
    lm.model.save_pretrained(tmp_path)
    lm.processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path} cannot be loaded: .* {reason}"):
        InstructBLIPEvalModel(str(tmp_path), device="cpu")


def test_lm_evals_default_device_falls_back_to_the_cpu(monkeypatch, caplog, stub_lm):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    lm = stub_lm()
    lm._join_processes("cuda:0")
    assert lm.device == torch.device("cpu")
    assert "no GPU for device=cuda:0" in caplog.text


def test_rolling_likelihood_is_refused_with_a_reason(stub_lm):
    with pytest.raises(NotImplementedError, match="perplexity of running text is not offered"):
        stub_lm().loglikelihood_rolling([])


def test_lm_evals_own_chat_templates_are_refused_with_a_reason(stub_lm, evaluate):
    with pytest.raises(ValueError, match="--apply_chat_template is for models of text: leave it out"):
        evaluate(stub_lm(), "instructblip_vqa_rad", apply_chat_template=True)


def test_answers_come_in_request_order_whatever_the_batch_size_and_order(stub_lm, paths):
    requests = generate_requests(paths)
    expected = stub_lm().generate_until(requests)
    assert len(set(expected)) > 8
    assert stub_lm(batch_size=5).generate_until(requests) == expected
    order, mixed = shuffled(requests)
    assert stub_lm(batch_size=4).generate_until(mixed) == [expected[number] for number in order]


def test_requests_with_other_settings_are_not_batched_together(stub_lm, paths):
    requests = generate_requests(paths, 3, num_beams=5) + generate_requests(paths, 3, num_beams=1)
    lm = stub_lm(batch_size=8)
    lm.generate_until(requests)
    assert [(size, settings["num_beams"]) for _, size, settings in lm.model.calls] == [(3, 5), (3, 1)]


@pytest.mark.parametrize(("encoder_decoder", "penalty"), [(True, -1.0), (False, 0.0)])
def test_a_setting_may_differ_between_the_two_kinds_of_language_model(stub_lm, paths, encoder_decoder, penalty):
    lm = stub_lm()
    lm.model.config = type("config", (), {"is_encoder_decoder": encoder_decoder})
    lm.generate_until(
        generate_requests(paths, 1, temperature=0.0, length_penalty={"encoder_decoder": -1.0, "decoder_only": 0.0})
    )
    assert lm.model.calls[0][2] == {"max_new_tokens": 5, "do_sample": False, "length_penalty": penalty}


def test_answers_end_before_the_first_stop_string(stub_lm, paths):
    assert cut_before("a b\n\nc stop", ["stop", "\n\n", ""]) == "a b"
    assert stub_lm().generate_until(generate_requests(paths, 1, until=[" . stop"]))[0].startswith("light")
    assert "stop" not in stub_lm().generate_until(generate_requests(paths, 1, until="stop"))[0]


def test_each_picture_is_decoded_once_although_it_spans_batches(stub_lm, paths, decoded):
    stub_lm(batch_size=2).generate_until(generate_requests(paths, count=12, pictures=3))  # 4 questions a picture
    assert sorted(decoded) == paths[:3]


def test_a_batch_is_prepared_while_the_model_works_on_the_one_before(stub_lm, paths, monkeypatch):
    lm = stub_lm(batch_size=1)
    prepared, answered = [threading.Event() for _ in range(4)], []
    inputs, generate = lm.driver.inputs, lm.driver.generate

    def note_inputs(prompts, images):
        batch = inputs(prompts, images)
        prepared[len(lm.processor.batches) - 1].set()
        return batch

    def wait_for_next(batch, settings):
        if len(answered) < 3:
            assert prepared[len(answered) + 1].wait(timeout=10)
        answered.append(len(lm.processor.batches))
        return generate(batch, settings)

    monkeypatch.setattr(lm.driver, "inputs", note_inputs)
    monkeypatch.setattr(lm.driver, "generate", wait_for_next)
    lm.generate_until(generate_requests(paths, 4, 4))
    assert answered == [2, 3, 4, 4]  # never more than one batch ahead


@pytest.mark.parametrize("kind", ["generate_until", "rank_candidates", "loglikelihood"])
def test_a_broken_picture_is_named_and_leaves_no_thread(stub_lm, paths, tmp_path, kind):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    requests = {
        "generate_until": generate_requests(paths, 6, 6),
        "rank_candidates": rank_requests(paths, 6),
        "loglikelihood": [request("loglikelihood", f"{i} ?", " yes", {"visual": [paths[i]]}) for i in range(6)],
    }[kind]
    requests[-1].arguments = (*requests[-1].args[:2], {"visual": [str(tmp_path / "broken.png")]})
    requests[-1].arguments = ("?", *requests[-1].args[1:])  # the shortest prompt comes last
    lm = stub_lm(batch_size=1)
    with pytest.raises(ValueError, match="broken.png"):
        getattr(lm, kind)(requests)
    assert len(lm.model.calls) == 5  # the batches before it are done
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prepare_batch")]


@pytest.mark.parametrize("kind", ["generate_until", "rank_candidates"])
def test_an_interrupted_run_leaves_no_thread(stub_lm, paths, monkeypatch, kind):
    lm = stub_lm(batch_size=1)

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(lm.driver, "generate", interrupted)
    monkeypatch.setattr(lm.driver, "score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        getattr(lm, kind)(generate_requests(paths) if kind == "generate_until" else rank_requests(paths))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prepare_batch")]


def test_questions_about_one_picture_get_the_same_object(stub_lm, paths):
    lm = stub_lm(batch_size=4)
    lm.generate_until(generate_requests(paths, count=4, pictures=1))
    images, _ = lm.processor.batches[0]
    assert all(row[0] is images[0][0] for row in images)


def test_documents_may_have_several_pictures_or_none(stub_lm, paths):
    lm = stub_lm(batch_size=4)
    settings = {"max_gen_toks": 2}
    lm.generate_until(
        [
            request("generate_until", "two ?", settings, {"visual": paths[:2]}),
            request("generate_until", "one ?", settings, {"visual": paths[0]}),
            request("generate_until", "no ?", settings, {"visual": []}),
            request("generate_until", "text", settings),
        ]
    )
    rows = dict(zip(lm.processor.batches[0][1], lm.processor.batches[0][0], strict=True))
    assert {text: len(row or []) for text, row in rows.items()} == {"two ?": 2, "one ?": 1, "no ?": 0, "text": 0}
    lm.generate_until([request("generate_until", "text", settings)])
    assert lm.processor.batches[-1] == (None, ["text"])


def test_the_choices_of_a_document_are_scored_in_one_call(stub_lm, paths):
    choices = [" yes", " true", " no", " false"]
    requests = [
        request("loglikelihood", f"true or false {number} ?", choice, {"visual": [paths[number]]})
        for number in range(4)
        for choice in choices
    ]
    lm = stub_lm(batch_size=4)
    results = lm.loglikelihood(requests)
    assert [(kind, rows) for kind, rows, _ in lm.model.calls] == [("score", 4)]
    assert {greedy for _, greedy in results} == {False}
    order, mixed = shuffled(requests)
    assert stub_lm(batch_size=3).loglikelihood(mixed) == [results[number] for number in order]


def test_a_request_that_comes_twice_gets_its_score_twice(stub_lm, paths):
    one = request("loglikelihood", "true ?", " yes", {"visual": [paths[0]]})
    first, second = stub_lm().loglikelihood([one, one])
    assert first == second


def test_scoring_by_is_greedy_is_warned_about(stub_lm, paths, caplog):
    stub_lm().loglikelihood([request("loglikelihood", "true ?", " yes", {"visual": [paths[0]]})])
    assert "`is_greedy` is always False" in caplog.text


def test_scores_come_in_the_order_of_the_candidates_whatever_the_batch(stub_lm, paths):
    requests = rank_requests(paths)
    requests[3].arguments = (requests[3].args[0], ["no", "blue"], requests[3].args[2])  # fewer than the others
    expected = stub_lm().rank_candidates(requests)
    assert [len(scores) for scores in expected[2:5]] == [3, 2, 3]
    order, mixed = shuffled(requests)
    for place, scores in zip(order, stub_lm(batch_size=5).rank_candidates(mixed), strict=True):
        np.testing.assert_array_equal(scores, expected[place])


def test_a_shared_vocabulary_is_tokenized_once(stub_lm, paths, monkeypatch):
    lm = stub_lm(batch_size=2)
    asked = []
    encode = lm.processor.encode_answers
    monkeypatch.setattr(lm.processor, "encode_answers", lambda answers: asked.append(len(answers)) or encode(answers))
    lm.rank_candidates(rank_requests(paths, candidates=CandidateList([f"answer {number}" for number in range(100)])))
    assert asked == [100]


def test_scoring_options_reach_the_model(stub_lm, paths):
    lm = stub_lm(add_end_token=False, length_normalize=True)
    lm.rank_candidates(rank_requests(paths, 1))
    assert lm.model.calls[0][2] == {"add_end_token": False, "length_normalize": True}
    assert lm.get_model_info()["add_end_token"] is False
    assert stub_lm().get_model_info()["add_end_token"] is True  # the default of an encoder-decoder


def test_a_candidate_list_is_one_line_in_a_log():
    candidates = CandidateList(["yes", "no"])
    assert list(candidates) == ["yes", "no"]
    assert str(candidates).startswith("CandidateList(2 candidates, sha256 ")
    assert candidates == CandidateList(["yes", "no"]) != CandidateList(["no", "yes"])


@pytest.mark.parametrize("language", ["t5", "llama"])
def test_ranking_equals_one_forward_per_candidate(tiny_lm, paths, language):
    candidates = ["yes", "no", "red", "red cat", "red dog", "two cat on the left", "a blue dog"]
    lm = tiny_lm(language, batch_size=5)
    requests = rank_requests(paths, candidates=candidates)
    for ours, one in zip(lm.rank_candidates(requests), requests, strict=True):
        inputs = lm.processor(images=[lm_eval_model.read_image(one.args[2]["visual"][0])], text=[one.args[0]])
        naive = [
            lm.model.score_candidates(candidates=[[ids]], **inputs, packed=False).item()
            for ids in lm.processor.encode_answers(candidates)
        ]
        np.testing.assert_allclose(ours, naive, atol=1e-4)
        assert np.argsort(ours).tolist() == np.argsort(naive).tolist()


@pytest.mark.parametrize("language", ["t5", "llama"])
def test_a_document_gets_the_same_alone_and_in_any_batch(tiny_lm, paths, language):
    lm, alone = tiny_lm(language, batch_size=5), tiny_lm(language, batch_size=1)
    alone.model.load_state_dict(lm.model.state_dict())
    settings = {"num_beams": 3, "max_gen_toks": 6}
    requests = generate_requests(paths, 8, 3, **settings)
    requests += [request("generate_until", "what is there ?", requests[0].args[1], {"visual": paths[:2]})]
    requests += [request("generate_until", "is there a cat ?", requests[0].args[1])]
    expected = alone.generate_until(requests)
    assert len(set(expected)) > 1
    order, mixed = shuffled(requests)
    assert lm.generate_until(mixed) == [expected[number] for number in order]
    ranked = [request("rank_candidates", one.args[0], ["yes", "no", "red cat"], *one.args[2:]) for one in requests]
    expected_scores = alone.rank_candidates(ranked)
    order, mixed = shuffled(ranked)
    for place, scores in zip(order, lm.rank_candidates(mixed), strict=True):
        np.testing.assert_allclose(scores, expected_scores[place], atol=2e-5)


def test_a_saved_release_is_loaded_by_its_folder(tiny_lm, tmp_path, paths):
    lm = tiny_lm("t5")
    lm.model.save_pretrained(tmp_path / "release")
    lm.processor.save_pretrained(tmp_path / "release")
    loaded = lm_eval.api.registry.get_model("instructblip").create_from_arg_string(
        f"pretrained={tmp_path / 'release'},dtype=float32", {"batch_size": "4", "max_batch_size": None, "device": "cpu"}
    )
    requests = rank_requests(paths)
    for ours, theirs in zip(lm.rank_candidates(requests), loaded.rank_candidates(requests), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert loaded.get_model_info()["model_name"].endswith("release")


def test_an_official_checkpoint_becomes_our_model(tiny_lm, tmp_path, paths):
    """The Auto classes would give transformers' own model and processor, with their faults and without ranking."""
    lm = tiny_lm("t5")
    lm.model.save_pretrained(tmp_path)
    lm.processor.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_type"], config["qformer_config"]["model_type"] = "instructblip", "instructblip_qformer"
    del config["auto_map"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = InstructBLIPEvalModel(str(tmp_path), device="cpu")
    assert type(loaded.model) is InstructBLIPForConditionalGeneration
    assert type(loaded.processor) is InstructBLIPProcessor


@pytest.mark.parametrize(
    ("kind", "asked"), [("generate_until", {"max_new_tokens": 2}), ("rank_candidates", CandidateList(["yes", "no"]))]
)
def test_what_goes_wrong_is_told_on_a_line_after_the_progress(stub_lm, monkeypatch, capsys, kind, asked):
    lm = stub_lm()
    monkeypatch.setattr(lm.driver, "inputs", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError) as raised:
        getattr(lm, kind)([Instance(kind, {}, ("what ?", asked, {"visual": None}), 0)])
    assert capsys.readouterr().err.endswith("\n")
    assert raised.tb  # which holds the progress, that would otherwise have ended its line when it went away
