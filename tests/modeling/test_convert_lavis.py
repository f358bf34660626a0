"""LAVIS files become our models with the same numbers; `lavis_files` restates the LAVIS side."""

import copy
import os
import re

import pytest
import torch
from lavis_files import (
    FROZEN,
    IMAGE_TOKEN,
    LAVIS_ROWS,
    LLAMA,
    QFORMER,
    QUERIES,
    T5,
    VISION,
    lavis_language_model,
    lavis_language_state,
    lavis_projection,
    lavis_qformer_state,
    lavis_stage1_heads,
    lavis_vision_state,
    layer_norm,
    linear,
    run_lavis,
    run_lavis_vision,
)
from safetensors.torch import load_file

from instructblip import InstructBLIPConfig, InstructBLIPForConditionalGeneration
from instructblip.modeling import convert_lavis
from instructblip.modeling.convert_lavis import VARIANTS, Variant, convert_state_dict, load_lavis, main, part_of


def tiny(language):
    """What VARIANTS holds, small."""
    return {
        "vision_config": VISION,
        "qformer_config": QFORMER,
        "text_config": T5 if language == "t5" else LLAMA,
        "image_token_index": IMAGE_TOKEN,
        "num_query_tokens": QUERIES,
    }


def config_of(language, **kwargs):
    return InstructBLIPConfig(**copy.deepcopy(tiny(language)), post_layernorm_eps=1e-5, **kwargs)


@pytest.fixture(autouse=True)
def tiny_variants(monkeypatch):
    for language in ("t5", "llama"):
        monkeypatch.setitem(VARIANTS, f"tiny-{language}", Variant(tiny(language), language_model="nobody/nothing"))


# ---- LAVIS


@pytest.fixture
def lavis():
    """A factory: (full LAVIS state dict, its language model)."""

    def make(language="t5"):
        model = lavis_language_model(language)
        state = {
            **lavis_vision_state(),
            **lavis_qformer_state(),
            **lavis_language_state(model, language),
            **lavis_projection(language),
        }
        return state, model

    return make


@pytest.fixture
def inputs():
    """Two samples; the second instruction of the Q-Former is shorter."""
    return {
        "pixel_values": torch.randn(2, 3, 28, 28),
        "qformer_input_ids": torch.randint(5, 60, (2, 6)),
        "qformer_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]),
        "input_ids": torch.cat([torch.full((2, QUERIES), IMAGE_TOKEN), torch.randint(3, 70, (2, 7))], dim=1),
    }


def save_pth(state, path, **kwargs):
    torch.save({"model": state, "epoch": 3}, path, **kwargs)
    return path


def run(folder, state, *options, variant="tiny-t5"):
    """Run the command on a state dict; returns the folder it writes."""
    folder.mkdir(exist_ok=True)
    checkpoint = save_pth(state, folder / "lavis.pth")
    main([str(word) for word in (checkpoint, folder / "out", "--variant", variant, "--image-size", 28, *options)])
    return folder / "out"


@pytest.fixture
def refusal(capsys):
    """A factory: the message with which `run` is refused, after a look that nothing was written."""

    def refused(folder, state, *options, **kwargs):
        with pytest.raises(SystemExit) as status:
            run(folder, state, *options, **kwargs)
        assert status.value.code == 1
        assert not [name for name in os.listdir(folder) if name == "out" or name.startswith(".instructblip")]
        return capsys.readouterr().err

    return refused


def load(folder):
    return InstructBLIPForConditionalGeneration.from_pretrained(folder)


@torch.no_grad()
def logits_of(model, inputs, labels=None):
    return model.eval()(**inputs, labels=labels if model.config.is_encoder_decoder else None).logits


# ---- numbers


@pytest.mark.parametrize("language", ["t5", "llama"])
def test_a_full_file_gives_the_logits_of_lavis(lavis, inputs, language, tmp_path):
    state, language_model = lavis(language)
    labels = torch.randint(3, 70, (2, 5))
    expected = run_lavis(state, language_model, inputs, labels)
    model = load(run(tmp_path, state, variant=f"tiny-{language}"))
    actual = logits_of(model, inputs, labels)
    rows = LAVIS_ROWS[language]
    torch.testing.assert_close(actual[..., :rows], expected, atol=1e-5, rtol=1e-5)
    assert (actual[..., rows:] < actual.max(dim=-1, keepdim=True).values).all()  # the added tokens never win


def test_the_eps_after_the_vision_tower_is_that_of_lavis_and_survives_saving(lavis, inputs, tmp_path):
    state, _ = lavis()
    load(run(tmp_path, state)).save_pretrained(tmp_path / "again")
    model = load(tmp_path / "again")
    norm = model.vision_model.post_layernorm
    assert (norm.eps, model.vision_model.encoder.layers[0].layer_norm1.eps) == (1e-5, 1e-6)

    del inputs["input_ids"]
    with torch.no_grad():
        expected = run_lavis_vision(state, inputs["pixel_values"])
        image = model.get_image_features(**inputs).last_hidden_state
        norm.eps = 1e-6
        other = model.get_image_features(**inputs).last_hidden_state
    torch.testing.assert_close(image, expected, atol=1e-5, rtol=1e-5)
    assert (other - expected).abs().max() > 1e-3  # the activations here are small enough to tell


def test_t5_keeps_exact_gelu_and_its_own_head(lavis, tmp_path):
    state, _ = lavis()
    model = load(run(tmp_path, state))
    text, language_model = model.config.text_config, model.language_model
    assert (text.dense_act_fn, text.is_gated_act, text.scale_decoder_outputs) == ("gelu", True, False)
    assert torch.equal(language_model.lm_head.weight, state["t5_model.lm_head.weight"])
    assert torch.equal(language_model.shared.weight, state["t5_model.shared.weight"])
    assert language_model.encoder.embed_tokens.weight is language_model.shared.weight


def test_the_result_has_the_dtype_asked_for(lavis, tmp_path):
    state, _ = lavis()
    state = {key: value.half() if key.startswith(FROZEN) else value for key, value in state.items()}
    assert {p.dtype for p in load(run(tmp_path / "a", state)).parameters()} == {torch.float32}
    assert {p.dtype for p in load(run(tmp_path / "b", state, "--dtype", "bfloat16")).parameters()} == {torch.bfloat16}


# ---- tensors


def test_q_and_v_biases_become_one_bias_with_zeros_for_k():
    state = {"visual_encoder.blocks.1.attn.q_bias": torch.tensor([1.0, 2.0]),
             "visual_encoder.blocks.1.attn.v_bias": torch.tensor([3.0, 4.0])}  # fmt: skip
    converted = convert_state_dict(state, config_of("t5"))
    assert list(converted) == ["vision_model.encoder.layers.1.self_attn.qkv.bias"]
    torch.testing.assert_close(*converted.values(), torch.tensor([1.0, 2.0, 0.0, 0.0, 3.0, 4.0]))


def test_half_a_bias_pair_is_refused():
    with pytest.raises(ValueError, match=r"only one of q_bias and v_bias:\n  visual_encoder\.blocks\.1\.attn$"):
        convert_state_dict({"visual_encoder.blocks.1.attn.v_bias": torch.ones(2)}, config_of("t5"))


def test_only_the_embedding_layernorm_is_lower_case():
    converted = convert_state_dict(lavis_qformer_state(), config_of("t5"))
    assert "qformer.embeddings.layernorm.weight" in converted
    assert "qformer.encoder.layer.0.crossattention.output.LayerNorm.weight" in converted
    assert "qformer.encoder.layer.2.crossattention.attention.key.weight" in converted
    assert not [key for key in converted if "position_ids" in key]


def test_the_state_dict_passed_in_is_not_changed(lavis):
    state, _ = lavis()
    before = {key: value.clone() for key, value in state.items()}
    convert_state_dict(state, config_of("t5"))
    assert list(state) == list(before)
    for key in before:
        torch.testing.assert_close(state[key], before[key])


def test_added_vocabulary_rows_are_the_mean_of_the_others(lavis):
    state, _ = lavis("llama")
    table = convert_state_dict(state, config_of("llama"))["language_model.lm_head.weight"]
    assert table.shape == (96, 40)
    torch.testing.assert_close(table[:79], state["llm_model.lm_head.weight"])
    torch.testing.assert_close(table[79:], state["llm_model.lm_head.weight"].mean(0).expand(17, -1))


def test_a_larger_image_size_interpolates_the_positions_of_the_patches_only():
    config = config_of("t5")
    config.vision_config.image_size = 42  # 6 x 6 patches instead of 4 x 4
    ramp = torch.arange(4.0).repeat(4)[None, :, None].expand(1, 16, 32)  # grows by one per column
    table = torch.cat([torch.full((1, 1, 32), 9.0), ramp], dim=1)
    resized = convert_state_dict({"visual_encoder.pos_embed": table}, config)
    resized = resized["vision_model.embeddings.position_embedding"]
    assert resized.shape == (1, 37, 32)
    assert (resized[:, 0] == 9).all()
    grid = resized[0, 1:, 0].view(6, 6)
    torch.testing.assert_close(grid, grid[:1].expand(6, -1))  # rows stay alike
    assert (grid[0].diff() > 0).all()
    torch.testing.assert_close(grid[0].mean(), torch.tensor(1.5))


def test_a_position_table_that_is_no_square_is_refused():
    with pytest.raises(ValueError, match="has 16 positions"):
        convert_state_dict({"visual_encoder.pos_embed": torch.zeros(1, 16, 32)}, config_of("t5"))


def test_t5_copies_of_the_embeddings_must_be_copies(lavis):
    state, _ = lavis()
    state["t5_model.decoder.embed_tokens.weight"] = torch.zeros(80, 40)
    with pytest.raises(ValueError, match=r"decoder\.embed_tokens\.weight differs from language_model\.shared\.weight"):
        convert_state_dict(state, config_of("t5"))


# ---- keys


def test_all_unknown_keys_are_listed_sorted_with_their_number(lavis, tmp_path, refusal):
    state, _ = lavis()
    state["visual_encoder.blocks.0.gamma_1"] = state["Qformer.bert.pooler.dense.weight"] = torch.zeros(1)
    unknown = (
        "2 unknown keys in the LAVIS state dict:\n  Qformer.bert.pooler.dense.weight\n  visual_encoder.blocks.0.gamma_1"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(unknown)}$"):
        convert_state_dict(state, config_of("t5"))
    assert unknown in refusal(tmp_path, state)


def test_all_missing_keys_are_listed(lavis, tmp_path, refusal):
    state, _ = lavis()
    for key in ("visual_encoder.blocks.1.mlp.fc1.bias", "t5_model.encoder.final_layer_norm.weight", "query_tokens"):
        del state[key]
    assert (
        "3 missing keys (our names):\n  language_model.encoder.final_layer_norm.weight\n  query_tokens\n"
        "  vision_model.encoder.layers.1.mlp.fc1.bias\n"
    ) in refusal(tmp_path, state)


def test_the_wrong_variant_is_refused(lavis, tmp_path, refusal):
    state, _ = lavis("llama")
    message = refusal(tmp_path, state, variant="tiny-t5")
    assert "(our names) that this variant does not have:\n" in message
    assert "\n  language_model.model.layers.0.mlp.up_proj.weight\n" in message


def test_a_wrong_shape_is_shown_with_the_right_one(lavis, tmp_path, refusal):
    state, _ = lavis()
    state["query_tokens"] = torch.zeros(1, 5, 24)
    message = refusal(tmp_path, state)
    assert "1 tensor of another shape; is this the right --variant?:\n" in message
    assert "\n  query_tokens: (1, 5, 24), expected (1, 4, 24)\n" in message


def test_the_heads_of_stage_1_are_left_out_by_name_and_said_so(caplog):
    state = {**lavis_qformer_state(), **lavis_stage1_heads()}
    with caplog.at_level("INFO", logger=convert_lavis.__name__):
        converted = convert_state_dict(state, config_of("t5"))
    assert not [key for key in converted if key.startswith(("temp", "itm", "Qformer"))]
    assert "10 tensors of the stage-1 heads left out:" in caplog.text
    assert "\n  itm_head.bias\n" in caplog.text


def test_a_head_in_an_instructblip_file_is_unknown():
    state = {**lavis_qformer_state(), **lavis_projection("t5"), "Qformer.cls.predictions.bias": torch.zeros(60)}
    with pytest.raises(ValueError, match=r"1 unknown key in the LAVIS state dict:\n  Qformer\.cls\.predictions\.bias"):
        convert_state_dict(state, config_of("t5"))


def test_two_projections_are_refused():
    with pytest.raises(ValueError, match=r"llm_proj\.bias and t5_proj\.bias are both language_projection\.bias"):
        convert_state_dict({**lavis_projection("t5"), **lavis_projection("llama")}, config_of("t5"))


# ---- files that hold the bridge only


def trimmed(state):
    return {key: value for key, value in state.items() if not key.startswith(FROZEN) or "inv_freq" in key}


def eva_file(state, path):
    """The tower as its authors publish it: no prefix, one block more, a norm and a head."""
    tower = {key.removeprefix("visual_encoder."): v for key, v in state.items() if key.startswith("visual_encoder.")}
    extra = lavis_vision_state(prefix="", blocks=3)
    tower.update({key: value for key, value in extra.items() if key.startswith("blocks.2.")})
    layer_norm(tower, "norm", 32)
    linear(tower, "head", 32, 10)
    torch.save(tower, path)
    return path


@pytest.fixture
def whole(lavis, tmp_path):
    """A converted whole model, to take frozen parts from."""
    return run(tmp_path / "whole", lavis()[0])


@pytest.mark.parametrize("language", ["t5", "llama"])
def test_a_trimmed_file_and_its_frozen_parts_give_the_logits_of_lavis(lavis, inputs, language, tmp_path):
    state, language_model = lavis(language)
    labels = torch.randint(3, 70, (2, 5))
    expected = run_lavis(state, language_model, inputs, labels)
    rows = 80
    if language == "llama":  # as it was before LAVIS added the pad token
        rows = 78
        language_model.resize_token_embeddings(rows)
        language_model.config.pad_token_id = None
    language_model.save_pretrained(tmp_path / "llm")
    eva = eva_file(state, tmp_path / "eva_vit_g.pth")

    options = ["--vision", eva, "--llm", tmp_path / "llm"]
    model = load(run(tmp_path, trimmed(state), *options, variant=f"tiny-{language}"))
    actual = logits_of(model, inputs, labels)
    torch.testing.assert_close(actual[..., :rows], expected[..., :rows], atol=1e-5, rtol=1e-5)


def test_frozen_parts_come_out_of_a_whole_checkpoint(lavis, whole, tmp_path):
    bridge = trimmed(lavis()[0])
    actual = load(run(tmp_path, bridge, "--vision", whole, "--llm", whole)).state_dict()
    frozen = load(whole).state_dict()
    bridge = convert_state_dict(bridge, config_of("t5"))
    # The LayerNorm after the tower trains, so it is the file's own.
    assert not torch.equal(bridge["vision_model.post_layernorm.bias"], frozen["vision_model.post_layernorm.bias"])
    torch.testing.assert_close(actual, {**frozen, **bridge}, atol=0, rtol=0)


@pytest.mark.parametrize("language", ["t5", "llama"])
def test_a_trimmed_file_alone_becomes_a_bridge_only_release(lavis, inputs, language, tmp_path, monkeypatch, capsys):
    state, language_model = lavis(language)
    labels = torch.randint(3, 70, (2, 5))
    expected = run_lavis(state, language_model, inputs, labels)
    home = str(run(tmp_path / "whole", state, variant=f"tiny-{language}"))  # stands for the Hub
    monkeypatch.setitem(VARIANTS, "tiny", Variant(tiny(language), language_model=home, vision_tower=home))

    release = run(tmp_path, trimmed(state), variant="tiny")
    assert "Saved a bridge-only release" in capsys.readouterr().out
    assert {part_of(key) for key in load_file(release / "model.safetensors")} == {"bridge"}
    model = load(release)
    assert model.vision_model.post_layernorm.eps == 1e-5
    actual = logits_of(model, inputs, labels)[..., : LAVIS_ROWS[language]]
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_a_bridge_only_release_names_commits(lavis, tmp_path, monkeypatch, refusal):
    monkeypatch.setattr(convert_lavis, "place_of", lambda source, part: {"repo": source, "revision": None})
    message = refusal(tmp_path, trimmed(lavis()[0]))
    assert "the commit of Salesforce/instructblip-flan-t5-xl cannot be looked up" in message
    assert "pass Salesforce/instructblip-flan-t5-xl@COMMIT for the vision part" in message


def test_a_bridge_is_not_laid_on_a_language_model_without_the_pad_token(lavis, tmp_path, refusal):
    state, language_model = lavis("llama")
    language_model.resize_token_embeddings(78)
    language_model.save_pretrained(tmp_path / "llm")
    options = ["--bridge-only", "--llm", tmp_path / "llm", "--vision", tmp_path / "llm"]
    message = refusal(tmp_path, trimmed(state), *options, variant="tiny-llama")
    assert "llm has 78 tokens and LAVIS trained with 79" in message


@pytest.mark.parametrize(
    ("cut", "options", "message"),
    [
        (trimmed, ["--llm", "x"], "has no vision model: add --vision, or --bridge-only"),
        (dict, ["--llm", "x"], "has its own language model: leave out --llm"),
        (trimmed, ["--bridge-only", "--vision", __file__], "is a file: the vision part is named by Hub id or folder"),
    ],
)
def test_frozen_parts_are_named_exactly_once(lavis, tmp_path, refusal, cut, options, message):
    assert message in refusal(tmp_path, cut(lavis()[0]), *options)


# ---- stages 1 and 2


def test_stage_2_lies_over_stage_1_which_has_the_text_branch(whole, tmp_path, caplog):
    stage1 = {**lavis_qformer_state(), **lavis_stage1_heads()}
    stage2 = {**lavis_qformer_state(text=False), **lavis_projection("t5")}
    first = save_pth(stage1, tmp_path / "blip2_pretrained.pth")
    folder = run(tmp_path, stage2, "--init-from", first, "--vision", whole, "--llm", whole)
    assert "26 tensors taken from stage 1:" in caplog.text  # 4 layers of 6, and 2 tables
    actual = load(folder).state_dict()
    for source, name, key in (
        (stage1, "qformer.embeddings.word_embeddings", "Qformer.bert.embeddings.word_embeddings"),
        (stage1, "qformer.embeddings.position_embeddings", "Qformer.bert.embeddings.position_embeddings"),
        (stage1, "qformer.encoder.layer.3.output.dense", "Qformer.bert.encoder.layer.3.output.dense"),
        (stage2, "qformer.embeddings.layernorm", "Qformer.bert.embeddings.LayerNorm"),
        (stage2, "qformer.encoder.layer.3.output_query.dense", "Qformer.bert.encoder.layer.3.output_query.dense"),
        (stage2, "vision_model.post_layernorm", "ln_vision"),
        (stage2, "language_projection", "t5_proj"),
    ):
        assert torch.equal(actual[f"{name}.weight"], source[f"{key}.weight"]), name


def test_stage_2_alone_is_refused_with_the_remedy(whole, tmp_path, refusal):
    stage2 = {**lavis_qformer_state(text=False), **lavis_projection("t5")}
    message = refusal(tmp_path, stage2, "--vision", whole, "--llm", whole)
    assert "26 missing keys (our names):\n  qformer.embeddings.position_embeddings.weight\n" in message
    assert "add --init-from blip2_pretrained.pth" in message


def test_stage_1_alone_is_refused_with_the_remedy(whole, tmp_path, refusal):
    stage1 = {**lavis_qformer_state(), **lavis_stage1_heads()}
    message = refusal(tmp_path, stage1, "--vision", whole, "--llm", whole)
    assert "2 missing keys (our names):\n  language_projection.bias\n  language_projection.weight\n" in message
    assert "this is a stage-1 file, which goes into --init-from" in message


# ---- files


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_runs_code_is_refused(tmp_path, refusal):
    state = {"query_tokens": Payload(tmp_path / "ran")}
    with pytest.raises(ValueError, match=r"bad\.pth is not loaded"):
        load_lavis(save_pth(state, tmp_path / "bad.pth"))
    assert "objects that could run code" in refusal(tmp_path, state)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"\x80\x02 no"])
def test_a_file_that_is_not_pytorchs_is_refused_by_name(content, tmp_path):
    (tmp_path / "cut.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"cut\.pth"):
        load_lavis(tmp_path / "cut.pth")


def test_a_file_without_tensors_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no state dict"):
        load_lavis(save_pth({"query_tokens": "no"}, tmp_path / "odd.pth"))


def test_a_file_that_is_not_there_is_said_so(lavis, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path / "nowhere.pth"), str(tmp_path / "out"), "--variant", "tiny-t5"])
    assert "nowhere.pth" in capsys.readouterr().err


def test_files_of_before_torch_1_6_load_too(tmp_path):
    state = {"query_tokens": torch.randn(1, 4, 24)}
    old = save_pth(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.testing.assert_close(load_lavis(old), state)


def test_an_existing_output_folder_is_left_alone(lavis, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(SystemExit):
        run(tmp_path, lavis()[0])
    assert "out exists: choose a new folder" in capsys.readouterr().err
    assert os.listdir(tmp_path / "out") == ["mine.txt"]


# ---- the four variants


def test_the_variants_have_the_sizes_of_the_released_models():
    assert set(VARIANTS) >= {"flan-t5-xl", "flan-t5-xxl", "vicuna-7b", "vicuna-13b"}
    for name, width, layers, feed_forward, heads in (
        ("flan-t5-xl", 2048, 24, 5120, 32),
        ("flan-t5-xxl", 4096, 24, 10240, 64),
        ("vicuna-7b", 4096, 32, 11008, 32),
        ("vicuna-13b", 5120, 40, 13824, 40),
    ):
        config = convert_lavis.variant_config(name)
        text = config.text_config
        assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads) == (width, layers, heads)
        if config.is_encoder_decoder:
            assert text.d_ff == feed_forward
            assert (text.dense_act_fn, text.is_gated_act, text.scale_decoder_outputs) == ("gelu", True, False)
        else:
            assert text.intermediate_size == feed_forward
            assert (text.bos_token_id, text.eos_token_id, text.pad_token_id) == (2, 2, 32000)
        assert (config.vision_config.hidden_size, config.vision_config.num_hidden_layers) == (1408, 39)
        assert (config.qformer_config.vocab_size, config.num_query_tokens) == (30523, 32)
        assert config.post_layernorm_eps == 1e-5
        assert config.image_token_id < text.vocab_size
