"""Checkpoints in the form of `Salesforce/instructblip-*` load as they are and give the same numbers and text."""

import copy
import json
import warnings

import pytest
import torch
from transformers import InstructBlipConfig, InstructBlipForConditionalGeneration

from instructblip import InstructBLIPConfig, InstructBLIPForConditionalGeneration
from instructblip.modeling.convert_lavis import VARIANTS

FULL_SIZE = ["flan-t5-xl", "flan-t5-xxl", "vicuna-7b", "vicuna-13b"]
QUERIES, IMAGE_TOKEN = 4, 79
TINY_TEXT = {
    "t5": {
        "model_type": "t5",
        "d_model": 40,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
        "vocab_size": 80,
        "feed_forward_proj": "gated-gelu",
        "dense_act_fn": "gelu",
        "tie_word_embeddings": False,
        "decoder_start_token_id": 0,
        "bos_token_id": 1,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "dropout_rate": 0.1,
    },
    "llama": {
        "model_type": "llama",
        "hidden_size": 40,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 80,
        "max_position_embeddings": 128,
        "pad_token_id": 78,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
}


def official_json(text_config, tiny=False):
    """A config.json as the Hub has it, with the names and fields of older releases of transformers."""
    vision = {"model_type": "instructblip_vision_model", "hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": True}
    qformer = {
        "model_type": "instructblip_qformer",
        "vocab_size": 30523,
        "cross_attention_frequency": 2,
        "encoder_hidden_size": 1408,
        "position_embedding_type": "absolute",
    }
    if tiny:
        vision.update(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=28,
                      patch_size=7, initializer_range=0.02)  # fmt: skip
        qformer.update(vocab_size=60, hidden_size=24, num_hidden_layers=4, num_attention_heads=4, intermediate_size=32,
                       max_position_embeddings=64, encoder_hidden_size=32)  # fmt: skip
    return {
        "architectures": ["InstructBlipForConditionalGeneration"],
        "image_token_index": IMAGE_TOKEN if tiny else 32100 if text_config["model_type"] == "t5" else 32001,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "model_type": "instructblip",
        "num_query_tokens": QUERIES if tiny else 32,
        "qformer_config": qformer,
        "text_config": text_config,
        "torch_dtype": "float32",
        "transformers_version": "4.47.0.dev0",
        "use_decoder_only_language_model": text_config["model_type"] == "llama",
        "vision_config": vision,
    }


@pytest.fixture
def official_config(tmp_path):
    """A factory: (their config, ours), both read from one config.json."""

    def read(text_config, tiny=False):
        folder = tmp_path / "official_config"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(official_json(text_config, tiny)))
        return InstructBlipConfig.from_pretrained(folder), InstructBLIPConfig.from_pretrained(folder)

    return read


def test_an_official_config_is_read_without_a_warning(tmp_path, caplog):
    (tmp_path / "config.json").write_text(json.dumps(official_json(TINY_TEXT["t5"], tiny=True)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        InstructBLIPConfig.from_pretrained(tmp_path)
    assert caplog.messages == []


# ---- full size, without memory


@pytest.mark.parametrize("variant", FULL_SIZE)
def test_keys_and_shapes_at_full_size_are_those_of_transformers(official_config, variant):
    theirs, ours = official_config(copy.deepcopy(VARIANTS[variant].config["text_config"]))
    with torch.device("meta"):
        expected = InstructBlipForConditionalGeneration(theirs).state_dict()
        actual = InstructBLIPForConditionalGeneration(ours).state_dict()
    assert sorted(actual) == sorted(expected)
    assert {key: value.shape for key, value in actual.items()} == {key: value.shape for key, value in expected.items()}


def test_the_bridge_has_the_number_of_parameters_of_the_paper(official_config):
    _, config = official_config(copy.deepcopy(VARIANTS["vicuna-7b"].config["text_config"]))
    with torch.device("meta"):
        model = InstructBLIPForConditionalGeneration(config)
    bridge = sum(parameter.numel() for _, parameter in model.named_bridge_parameters())
    assert round(bridge / 1e6, 1) == 188.8  # Q-Former 185.7, queries, vision LayerNorm, projection to 4096


def test_an_official_config_keeps_its_values(official_config):
    _, ours = official_config(copy.deepcopy(VARIANTS["flan-t5-xl"].config["text_config"]))
    assert (ours.image_token_id, ours.num_query_tokens, ours.qformer_config.vocab_size) == (32100, 32, 30523)
    assert (ours.is_encoder_decoder, ours.text_config.dense_act_fn) == (True, "gelu")
    assert (ours.model_type, ours.post_layernorm_eps) == ("instruct_blip", None)


# ---- tiny checkpoints


@pytest.fixture(params=["t5", "llama"])
def official(request, official_config, tmp_path):
    """(transformers' model, the folder it was saved in). T5's head differs from its embeddings, as Flan-T5's does."""
    theirs, _ = official_config(copy.deepcopy(TINY_TEXT[request.param]), tiny=True)
    model = InstructBlipForConditionalGeneration(theirs).eval()
    if request.param == "t5":
        model.language_model.lm_head.weight = torch.nn.Parameter(torch.empty(80, 40))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Large weights, so that every part shows in the logits and the texts differ.
            parameter.normal_(float("norm" in name.lower() and name.endswith("weight")), 0.2)
    model.save_pretrained(tmp_path / "official")
    (tmp_path / "official" / "config.json").write_text(json.dumps(official_json(TINY_TEXT[request.param], tiny=True)))
    return model, tmp_path / "official"


@pytest.fixture
def inputs():
    """Two samples of one length, so that nothing is padded."""
    input_ids = torch.cat([torch.full((2, QUERIES), IMAGE_TOKEN), torch.randint(3, 70, (2, 6))], dim=1)
    return {
        "pixel_values": torch.randn(2, 3, 28, 28),
        "qformer_input_ids": torch.randint(5, 60, (2, 5)),
        "qformer_attention_mask": torch.ones(2, 5, dtype=torch.long),
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
    }


def load(folder):
    model, info = InstructBLIPForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")), info
    return model.eval()


def equal_tensors(one, other):
    one, other = one.state_dict(), other.state_dict()
    return set(one) == set(other) and all(torch.equal(one[key], other[key]) for key in one)


@torch.no_grad()
def test_an_official_checkpoint_gives_the_same_logits(official, inputs):
    theirs, folder = official
    ours = load(folder)
    targets = {}
    if ours.config.is_encoder_decoder:
        targets = {"decoder_input_ids": torch.tensor([[0, 5, 6, 7], [0, 8, 9, 4]])}
    expected = theirs(**inputs, **targets).logits
    torch.testing.assert_close(ours(**inputs, **targets).logits, expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 0.1  # there is something to compare


@torch.no_grad()
def test_an_official_checkpoint_gives_the_same_loss(official, inputs):
    theirs, folder = official
    ours = load(folder)
    if ours.config.is_encoder_decoder:
        labels = torch.tensor([[5, 6, 7, 1], [8, 9, 1, -100]])
    else:
        labels = inputs["input_ids"].clone()
        labels[:, : QUERIES + 2] = -100
    expected = theirs(**inputs, labels=labels).loss
    torch.testing.assert_close(ours(**inputs, labels=labels).loss, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("beams", [1, 5])
def test_an_official_checkpoint_gives_the_same_text(official, inputs, beams):
    theirs, folder = official
    ours = load(folder)
    # transformers' text begins with what it was given: T5's start token, or the prompt.
    given = 1 if ours.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    settings = {"num_beams": beams, "do_sample": False, "max_new_tokens": 20}

    forced = ours.generate(**inputs, **settings, min_new_tokens=20)
    assert forced.tolist() == theirs.generate(**inputs, **settings, min_new_tokens=20)[:, given:].tolist()
    assert forced.shape == (2, 20)
    assert forced[0].tolist() != forced[1].tolist()

    # End tokens that are likely to come, and a search that prefers short texts.
    settings.update(eos_token_id=forced[:, 6].tolist(), length_penalty=-2.0 if beams > 1 else 1.0)
    free = ours.generate(**inputs, **settings)
    assert free.tolist() == theirs.generate(**inputs, **settings)[:, given:].tolist()
    assert all(set(settings["eos_token_id"]) & set(row) for row in free.tolist())


def test_a_head_of_its_own_stays_apart_from_the_embeddings(official):
    theirs, folder = official
    ours = load(folder)
    assert equal_tensors(ours, theirs)
    language_model = ours.language_model
    assert not torch.equal(language_model.get_input_embeddings().weight, language_model.get_output_embeddings().weight)
    if ours.config.is_encoder_decoder:
        assert language_model.encoder.embed_tokens.weight is language_model.shared.weight


def test_a_tied_head_stays_tied(official_config, tmp_path):
    _, config = official_config(dict(TINY_TEXT["t5"], tie_word_embeddings=True), tiny=True)
    InstructBLIPForConditionalGeneration(config).save_pretrained(tmp_path / "tied")
    language_model = load(tmp_path / "tied").language_model
    assert language_model.lm_head.weight is language_model.shared.weight
    assert language_model.encoder.embed_tokens.weight is language_model.shared.weight


@pytest.mark.parametrize("shards", [None, "20KB"])
def test_a_model_saved_by_us_loads_exactly(official, inputs, shards, tmp_path):
    ours = load(official[1])
    ours.save_pretrained(tmp_path / "saved", **({"max_shard_size": shards} if shards else {}))
    files = sorted(path.name for path in (tmp_path / "saved").glob("*.safetensors"))
    assert (len(files) > 3) if shards else (files == ["model.safetensors"])
    again = load(tmp_path / "saved")
    assert equal_tensors(again, ours)
    ours.config._name_or_path = again.config._name_or_path
    assert again.config.to_dict() == ours.config.to_dict()
    settings = {"do_sample": False, "max_new_tokens": 5}
    assert torch.equal(again.generate(**inputs, **settings), ours.generate(**inputs, **settings))


@torch.no_grad()
def test_transformers_loads_the_weights_that_we_save(official, inputs, tmp_path):
    """The other direction: our folder's weights under their config."""
    theirs, folder = official
    load(folder).save_pretrained(tmp_path / "saved")
    model, info = InstructBlipForConditionalGeneration.from_pretrained(
        tmp_path / "saved", config=theirs.config, output_loading_info=True
    )
    assert (info["missing_keys"], info["unexpected_keys"]) == (set(), set())
    assert equal_tensors(model, theirs)
