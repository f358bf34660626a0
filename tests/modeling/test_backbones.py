"""New pairs of pretrained backbones, and releases that hold the trained bridge only."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    CLIPConfig,
    CLIPModel,
    SiglipConfig,
    SiglipModel,
)

from instructblip import InstructBLIPConfig, InstructBLIPForConditionalGeneration
from instructblip.modeling.backbones import _quantize_language_model_only

TOWER = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=28, patch_size=7
)
TEXT_TOWER = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, vocab_size=80)
SMALL = dict(
    vocab_size=80, hidden_size=24, num_hidden_layers=4, num_attention_heads=4, intermediate_size=32,
    max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip


@pytest.fixture
def folders(tmp_path, llama_tokenizer, t5_tokenizer, tiny_config):
    """Local folders as the Hub has them: whole two-tower checkpoints, and language models with their tokenizers."""
    SiglipModel(SiglipConfig(vision_config=TOWER, text_config=TEXT_TOWER)).save_pretrained(tmp_path / "siglip")
    CLIPModel(CLIPConfig(vision_config=TOWER, text_config=TEXT_TOWER, projection_dim=32)).save_pretrained(
        tmp_path / "clip"
    )
    for name in ("gpt2", "llama", "t5"):
        auto = AutoModelForSeq2SeqLM if name == "t5" else AutoModelForCausalLM
        language_model = auto.from_config(tiny_config(name).text_config)
        language_model.generation_config.eos_token_id = [2, 7]
        language_model.save_pretrained(tmp_path / name)
        (t5_tokenizer if name == "t5" else llama_tokenizer).save_pretrained(tmp_path / name)
    return tmp_path


@pytest.fixture
def new_model(folders):
    """A factory of models from local folders with a small Q-Former."""

    def make(vision="siglip", language="llama", **kwargs):
        config = InstructBLIPConfig.from_backbones(
            str(folders / vision), str(folders / language), qformer_config=SMALL, num_query_tokens=4
        )
        config.image_token_id = 79
        return InstructBLIPForConditionalGeneration.from_backbones(
            str(folders / vision), str(folders / language), config=config, **kwargs
        )

    return make


@pytest.fixture
def full_checkpoint(tiny_model, tmp_path):
    """A factory of whole checkpoints as `Salesforce/instructblip-*` are."""

    def make(language="llama", **kwargs):
        model = tiny_model(language, **kwargs)
        model.save_pretrained(tmp_path / "full")
        return model, tmp_path / "full"

    return make


def train_a_little(model):
    with torch.no_grad():
        for _, parameter in model.named_bridge_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def names_in(folder):
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return set(file.keys())


# ---- new pairs


@pytest.mark.parametrize("language", ["gpt2", "llama", "t5"])
@pytest.mark.parametrize("vision", ["siglip", "clip"])
def test_a_new_pair_has_the_weights_of_its_backbones(vision, language, folders, new_model, make_batch, mixed_rows):
    model = new_model(vision, language)
    assert not model.training
    whole = (SiglipModel if vision == "siglip" else CLIPModel).from_pretrained(folders / vision)
    for name, tensor in whole.vision_model.state_dict().items():
        torch.testing.assert_close(model.vision_model.state_dict()[name], tensor)
    auto = AutoModelForSeq2SeqLM if language == "t5" else AutoModelForCausalLM
    for name, tensor in auto.from_pretrained(folders / language).state_dict().items():
        torch.testing.assert_close(model.language_model.state_dict()[name], tensor)
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert 0.015 < model.query_tokens.std() < 0.025
    assert model(**make_batch(mixed_rows, language, labels=True)).loss.isfinite()


def test_a_new_pair_keeps_the_generation_settings_of_its_language_model(new_model):
    assert new_model()._effective_generation_config(None).eos_token_id == [2, 7]


def test_the_config_of_a_new_pair_names_its_backbones_and_the_placeholder(folders):
    config = InstructBLIPConfig.from_backbones(str(folders / "siglip"), str(folders / "gpt2"))
    assert config.vision_config.model_type == "siglip_vision_model"
    assert config.text_config.model_type == "gpt2"
    assert config.qformer_config.encoder_hidden_size == 32
    assert config.qformer_config.hidden_size == 768
    assert config.backbones["vision"]["repo"] == str(folders / "siglip")
    assert config.backbones["language"] == {"repo": str(folders / "gpt2"), "revision": None}
    from transformers import AutoTokenizer

    assert config.image_token_id == len(AutoTokenizer.from_pretrained(folders / "gpt2"))


@pytest.mark.parametrize("vision", ["instructblip_vision_model", "siglip_vision_model"])
def test_the_backbones_of_an_instructblip_checkpoint_serve_a_new_pair(vision, full_checkpoint, make_batch):
    source, folder = full_checkpoint("t5", vision=vision)
    config = InstructBLIPConfig.from_backbones(
        str(folder), str(folder), qformer_config=SMALL, num_query_tokens=4, image_token_index=79
    )
    model = InstructBLIPForConditionalGeneration.from_backbones(str(folder), str(folder), config=config)
    for part in ("vision_model", "language_model"):
        for name, tensor in getattr(source, part).state_dict().items():
            torch.testing.assert_close(getattr(model, part).state_dict()[name], tensor)
    assert not torch.equal(model.query_tokens, source.query_tokens)
    model(**make_batch([dict(text=(5,), answer=(1,))], "t5", labels=True))


def test_a_new_pair_loads_in_the_dtype_asked_for(new_model, make_batch, mixed_rows):
    model = new_model(dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model(**make_batch(mixed_rows, "llama", labels=True)).loss.isfinite()


def test_a_new_pair_trains_the_bridge_only_once_frozen(new_model, make_batch, mixed_rows):
    model = new_model()
    model.freeze_backbones()
    model.train()(**make_batch(mixed_rows, "llama", labels=True)).loss.backward()
    bridge = {name for name, parameter in model.named_bridge_parameters() if parameter.requires_grad}
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == bridge


# ---- bridge-only releases


@pytest.mark.parametrize(("vision", "language"), [("siglip", "llama"), ("clip", "gpt2"), ("siglip", "t5")])
def test_a_bridge_release_gives_the_same_numbers(vision, language, new_model, tmp_path, make_batch, mixed_rows):
    model = train_a_little(new_model(vision, language))
    model.save_pretrained(tmp_path / "bridge", bridge_only=True)
    assert names_in(tmp_path / "bridge") == {name for name, _ in model.named_bridge_parameters()}
    assert not [name for name in names_in(tmp_path / "bridge") if name.startswith(("vision_model", "language_model"))]
    loaded = InstructBLIPForConditionalGeneration.from_pretrained(tmp_path / "bridge")
    assert not loaded.training
    batch = make_batch(mixed_rows, language, labels=True)
    torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits)
    prompt = make_batch(mixed_rows, language)
    answers = model.generate(**prompt, max_new_tokens=4)
    assert loaded.generate(**prompt, max_new_tokens=4).tolist() == answers.tolist()


def test_saving_a_bridge_leaves_the_model_as_it_was(new_model, tmp_path):
    model = new_model()
    config = model.config.to_dict()
    model.save_pretrained(tmp_path / "bridge", bridge_only=True)
    assert {key: value for key, value in model.config.to_dict().items() if key != "auto_map"} == config | {
        key: model.config.to_dict()[key] for key in ("architectures", "dtype") if key in model.config.to_dict()
    }
    assert json.loads((tmp_path / "bridge" / "config.json").read_text())["bridge_only"] is True
    model.save_pretrained(tmp_path / "full")
    assert json.loads((tmp_path / "full" / "config.json").read_text())["bridge_only"] is False


def test_the_bridge_of_a_quantized_model_is_saved_as_that_of_another(new_model, tmp_path):
    """A quantizer saves every tensor, whatever it is given, and its config would be applied to the next loading."""
    model = new_model()
    quantizer = SimpleNamespace(
        is_serializable=lambda: True, get_state_dict_and_metadata=lambda model: (model.state_dict(), {})
    )
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    model.hf_quantizer = quantizer
    model.config.quantization_config = model.config.text_config.quantization_config = settings
    model.save_pretrained(tmp_path / "bridge", bridge_only=True)
    assert names_in(tmp_path / "bridge") == {name for name, _ in model.named_bridge_parameters()}
    assert "quantization_config" not in (tmp_path / "bridge" / "config.json").read_text()
    assert model.hf_quantizer is quantizer
    assert model.config.quantization_config == model.config.text_config.quantization_config == settings


def test_a_bridge_of_a_whole_checkpoint_of_another_tower_finds_it_there(
    full_checkpoint, tmp_path, make_batch, mixed_rows
):
    for vision in ("siglip_vision_model", "clip_vision_model", "dinov2"):
        _, folder = full_checkpoint("llama", vision=vision)
        model = train_a_little(InstructBLIPForConditionalGeneration.from_pretrained(folder))
        model.save_pretrained(tmp_path / vision, bridge_only=True)
        loaded = InstructBLIPForConditionalGeneration.from_pretrained(tmp_path / vision)
        batch = make_batch(mixed_rows, "llama", labels=True)
        torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits)


def test_a_bridge_of_an_official_checkpoint_finds_its_backbones_there(
    full_checkpoint, tmp_path, make_batch, mixed_rows
):
    """Its tower and language model are parts of one file, and `vision_model.post_layernorm` belongs to the bridge."""
    for language in ("t5", "llama"):
        _, folder = full_checkpoint(language)
        model = train_a_little(InstructBLIPForConditionalGeneration.from_pretrained(folder))
        release = tmp_path / f"bridge-{language}"
        model.save_pretrained(release, bridge_only=True)
        assert "vision_model.post_layernorm.weight" in names_in(release)
        assert not [name for name in names_in(release) if name.startswith(("vision_model.enc", "language_model"))]
        loaded = InstructBLIPForConditionalGeneration.from_pretrained(release)
        batch = make_batch(mixed_rows, language, labels=True)
        torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits)


def test_a_loaded_bridge_can_be_saved_whole_and_as_a_bridge_again(new_model, tmp_path, make_batch, mixed_rows):
    model = train_a_little(new_model())
    model.save_pretrained(tmp_path / "bridge", bridge_only=True)
    loaded = InstructBLIPForConditionalGeneration.from_pretrained(tmp_path / "bridge")
    loaded.save_pretrained(tmp_path / "full")
    train_a_little(loaded).save_pretrained(tmp_path / "again", bridge_only=True)
    batch = make_batch(mixed_rows, "llama", labels=True)
    whole, info = InstructBLIPForConditionalGeneration.from_pretrained(tmp_path / "full", output_loading_info=True)
    assert not any(info.values())
    torch.testing.assert_close(whole(**batch).logits, model(**batch).logits)
    again = InstructBLIPForConditionalGeneration.from_pretrained(tmp_path / "again")
    torch.testing.assert_close(again(**batch).logits, loaded(**batch).logits)
    assert len(names_in(tmp_path / "full")) > len(names_in(tmp_path / "again"))


def test_a_given_state_dict_is_narrowed_to_the_bridge(new_model, tmp_path):
    """Trainer passes the state dict that it gathered."""
    model = new_model()
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "bridge", bridge_only=True, state_dict=state)
    assert names_in(tmp_path / "bridge") == {name for name, _ in model.named_bridge_parameters()}
    loaded = InstructBLIPForConditionalGeneration.from_pretrained(tmp_path / "bridge")
    torch.testing.assert_close(loaded.query_tokens, model.query_tokens + 1)


def test_a_bridge_release_takes_from_pretraineds_arguments(new_model, tmp_path, make_batch, mixed_rows):
    model = train_a_little(new_model())
    model.save_pretrained(tmp_path / "bridge", bridge_only=True)
    load = InstructBLIPForConditionalGeneration.from_pretrained
    assert {parameter.dtype for parameter in load(tmp_path / "bridge", dtype=torch.bfloat16).parameters()} == {
        torch.bfloat16
    }
    eager = load(tmp_path / "bridge", attn_implementation="eager")
    parts = (eager.language_model, eager.qformer, eager.vision_model)
    assert [part.config._attn_implementation for part in parts] == ["eager"] * 3
    placed = load(tmp_path / "bridge", device_map="cpu")
    batch = make_batch(mixed_rows, "llama", labels=True)
    torch.testing.assert_close(placed(**batch).logits, model(**batch).logits)
    _, info = load(tmp_path / "bridge", output_loading_info=True)
    assert not any(info.values())
    config = InstructBLIPConfig.from_pretrained(tmp_path / "bridge")
    torch.testing.assert_close(load(tmp_path / "bridge", config=config).query_tokens, model.query_tokens)


@pytest.mark.parametrize("memory", [None, 60_000], ids=["in memory", "most on the disk"])
@pytest.mark.parametrize("bridge_only", [False, True])
def test_a_device_map_of_accelerate_gives_the_same_answers(
    bridge_only, memory, full_checkpoint, tmp_path, make_batch, mixed_rows
):
    expected, folder = full_checkpoint("llama")
    load = InstructBLIPForConditionalGeneration.from_pretrained
    if bridge_only:
        load(folder).save_pretrained(tmp_path / "bridge", bridge_only=True)
        folder = tmp_path / "bridge"
    limit = {} if memory is None else {"max_memory": {"cpu": memory}, "offload_folder": tmp_path / "offload"}
    placed = load(folder, device_map="auto", **limit)
    assert any(parameter.is_meta for parameter in placed.language_model.parameters()) == (memory is not None)
    batch = make_batch(mixed_rows, "llama")
    answers = expected.generate(**batch, max_new_tokens=4, num_beams=2).tolist()
    assert placed.generate(**batch, max_new_tokens=4, num_beams=2).tolist() == answers
    torch.testing.assert_close(placed(**batch).logits, expected(**batch).logits)


def test_the_layernorm_eps_of_lavis_survives_a_bridge_release(full_checkpoint, tmp_path):
    _, folder = full_checkpoint("llama", post_layernorm_eps=1e-5)
    model = InstructBLIPForConditionalGeneration.from_pretrained(folder)
    assert model.vision_layernorm.eps == 1e-5
    model.save_pretrained(tmp_path / "bridge", bridge_only=True)
    loaded = InstructBLIPForConditionalGeneration.from_pretrained(tmp_path / "bridge")
    assert loaded.vision_layernorm.eps == 1e-5
    assert loaded.config.post_layernorm_eps == 1e-5


def test_generation_settings_survive_a_bridge_release(new_model, tmp_path):
    model = new_model()
    model.generation_config.max_new_tokens = 17
    model.save_pretrained(tmp_path / "bridge", bridge_only=True)
    loaded = InstructBLIPForConditionalGeneration.from_pretrained(tmp_path / "bridge")
    assert loaded.generation_config.max_new_tokens == 17
    assert loaded._effective_generation_config(None).eos_token_id == [2, 7]


# ---- what is refused


def test_a_bridge_with_wrong_or_missing_tensors_lists_them(new_model, tmp_path):
    new_model().save_pretrained(tmp_path / "bridge", bridge_only=True)
    file = tmp_path / "bridge" / "model.safetensors"
    with safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    tensors["extra"] = tensors.pop("ln_vision.bias")
    tensors["query_tokens"] = tensors["query_tokens"][:, :2].contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
    message = r"missing \['ln_vision.bias'\], unexpected \['extra'\], of another shape \['query_tokens'\]"
    with pytest.raises(ValueError, match=message):
        InstructBLIPForConditionalGeneration.from_pretrained(tmp_path / "bridge")


@pytest.mark.parametrize("part", ["vision", "language"])
def test_a_backbone_that_is_another_model_is_refused(part, new_model, folders, tmp_path):
    """transformers would start what it does not find at random, and say so in a table only."""
    new_model().save_pretrained(tmp_path / "bridge", bridge_only=True)
    file = tmp_path / "bridge" / "config.json"
    config = json.loads(file.read_text())
    config["backbones"][part]["repo"] = str(folders / {"vision": "llama", "language": "siglip"}[part])
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"is no \w+ of this config: \d+ of its weights are not there"):
        InstructBLIPForConditionalGeneration.from_pretrained(tmp_path / "bridge")


def test_weights_that_a_checkpoint_lacks_begin_as_those_of_a_new_model(tiny_model, tmp_path):
    layers = dict(num_layers=1, num_decoder_layers=1)
    tiny_model("t5", text=layers).save_pretrained(tmp_path)
    new = tiny_model("t5", text=dict(num_layers=2, num_decoder_layers=2))
    torch.manual_seed(0)
    fresh = type(new)(new.config).state_dict()
    found = type(new).from_pretrained(tmp_path, config=new.config).state_dict()
    lacking = [name for name in fresh if ".block.1." in name and fresh[name].dim() > 1]
    assert len(lacking) > 10
    for name in lacking:
        assert 0.7 < found[name].std() / fresh[name].std() < 1.4, name


def test_a_bridge_without_known_backbones_is_not_saved(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="needs to know where the frozen backbones are"):
        tiny_model("llama").save_pretrained(tmp_path / "bridge", bridge_only=True)
    assert not (tmp_path / "bridge").exists()


def test_a_bridge_config_without_both_backbones_is_refused(new_model, tmp_path):
    new_model().save_pretrained(tmp_path / "bridge", bridge_only=True)
    file = tmp_path / "bridge" / "config.json"
    config = json.loads(file.read_text())
    language = config["backbones"].pop("language")
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="must name its `vision` and `language` backbones"):
        InstructBLIPForConditionalGeneration.from_pretrained(tmp_path / "bridge")
    config["backbones"]["language"] = {**language, "weights": "x.bin"}
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="must have `repo` and may have `revision` and `prefix`"):
        InstructBLIPForConditionalGeneration.from_pretrained(tmp_path / "bridge")


def test_a_local_backbone_is_pointed_out_when_a_bridge_is_saved(new_model, tmp_path, monkeypatch):
    from instructblip.modeling import backbones

    warnings = []
    monkeypatch.setattr(backbones.logger, "warning", warnings.append)
    new_model().save_pretrained(tmp_path / "bridge", bridge_only=True)
    assert ["push it first" in warning for warning in warnings] == [True, True]


# ---- quantization


@pytest.mark.parametrize("field", ["llm_int8_skip_modules", "modules_to_not_convert"])
def test_quantization_skips_all_but_the_language_model(field):
    config = SimpleNamespace(**{field: None})
    _quantize_language_model_only(config)
    assert {"vision_model", "qformer", "language_projection", "lm_head"} <= set(getattr(config, field))
    config = SimpleNamespace(**{field: ["mine"]})
    _quantize_language_model_only(config)
    assert getattr(config, field) == ["mine"]  # whoever chose knows better


# ---- configurations


def test_configs_refuse_nonsense_and_copy_what_follows(tiny_config):
    with pytest.raises(ValueError, match="num_query_tokens is 0"):
        tiny_config("llama", num_query_tokens=0)
    assert tiny_config("t5").is_encoder_decoder is True
    assert tiny_config("llama").is_encoder_decoder is False
    assert tiny_config("llama").qformer_config.encoder_hidden_size == 32
    config = tiny_config("llama")
    assert config.image_token_id == config.image_token_index == 79


def test_a_config_survives_saving(tiny_config, tmp_path):
    config = tiny_config("opt", vision="dinov2", qformer_text_input=False, post_layernorm_eps=1e-5)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is InstructBLIPConfig
    assert loaded.to_dict() == {**config.to_dict(), "_name_or_path": str(tmp_path)}
    assert loaded.text_config.model_type == "opt"
    assert loaded.qformer_text_input is False
