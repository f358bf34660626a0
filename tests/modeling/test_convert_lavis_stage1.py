"""`blip2_pretrained.pth` becomes a stage-1 model with the same numbers; `lavis_files` restates the LAVIS side."""

import pytest
import torch
from lavis_files import (
    QFORMER,
    QUERIES,
    VISION,
    apply_linear,
    apply_norm,
    lavis_projection,
    lavis_qformer_state,
    lavis_stage1_heads,
    lavis_vision_state,
    linear,
    run_lavis_qformer,
    run_lavis_vision,
)
from torch.nn import functional

from instructblip import InstructBLIPForPreTraining
from instructblip.modeling import convert_lavis_stage1
from instructblip.modeling.convert_lavis import main


@pytest.fixture(autouse=True)
def tiny_sizes(monkeypatch):
    sizes = {"vision_config": VISION, "qformer_config": QFORMER, "num_query_tokens": QUERIES}
    monkeypatch.setattr(convert_lavis_stage1, "CONFIG", {**sizes, "image_text_hidden_size": 16})


@pytest.fixture
def state():
    """A trimmed stage-1 file: everything but the vision tower."""
    state = {**lavis_qformer_state(), **lavis_stage1_heads(), "temp": torch.tensor(0.05)}
    words = state["Qformer.bert.embeddings.word_embeddings.weight"]
    state["Qformer.cls.predictions.bias"] = torch.randn(60)
    linear(state, "Qformer.cls.predictions.transform.dense", 24, 24)
    state["Qformer.cls.predictions.transform.LayerNorm.weight"] = torch.rand(24)
    state["Qformer.cls.predictions.transform.LayerNorm.bias"] = torch.rand(24)
    state["Qformer.cls.predictions.decoder.weight"] = words.clone()
    state["Qformer.cls.predictions.decoder.bias"] = state["Qformer.cls.predictions.bias"].clone()
    return state


def run(folder, state, *options):
    torch.save({"model": state}, folder / "blip2_pretrained.pth")
    words = ["blip2_pretrained.pth", "out", "--variant", "stage-1", "--image-size", 28, *options]
    main([str(folder / word) if word in words[:2] else str(word) for word in words])
    return folder / "out"


@torch.no_grad()
def test_a_whole_file_has_the_numbers_of_lavis(state, tmp_path):
    state.update(lavis_vision_state())
    model = InstructBLIPForPreTraining.from_pretrained(run(tmp_path, state)).eval()
    assert model.temperature.tolist() == [pytest.approx(0.05)]
    pixels, ids = torch.randn(2, 3, 28, 28), torch.randint(5, 60, (2, 6))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    image = run_lavis_vision(state, pixels)
    states = model.normed_images(model.encode_images(pixels).last_hidden_state)
    expected = apply_linear(state, "itm_head", run_lavis_qformer(state, image, ids, mask)).mean(dim=1)
    actual = model.get_matching_logits(states, torch.arange(2), ids, mask)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    expected = apply_linear(state, "vision_proj", run_lavis_qformer(state, image, ids[:, :0], mask[:, :0]))
    expected = functional.normalize(expected, dim=-1)
    torch.testing.assert_close(model.get_image_features(pixels), expected, atol=1e-5, rtol=1e-5)
    hidden, head = torch.randn(3, 24), "Qformer.cls.predictions"
    expected = functional.gelu(apply_linear(state, f"{head}.transform.dense", hidden))
    expected = apply_linear(state, f"{head}.decoder", apply_norm(state, f"{head}.transform.LayerNorm", expected, 1e-12))
    actual = model.lm_head(hidden, model.get_input_embeddings().weight)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(model.text_projection.weight, state["text_proj.weight"])


def test_the_tower_comes_from_a_file_of_its_own(state, tmp_path):
    tower = lavis_vision_state(prefix="", blocks=3)
    torch.save(tower, tmp_path / "eva_vit_g.pth")
    model = InstructBLIPForPreTraining.from_pretrained(run(tmp_path, state, "--vision", tmp_path / "eva_vit_g.pth"))
    assert torch.equal(model.vision_model.encoder.layers[1].mlp.fc1.weight, tower["blocks.1.mlp.fc1.weight"])
    assert torch.equal(model.vision_layernorm.weight, state["ln_vision.weight"])


def test_a_trimmed_file_alone_becomes_a_release_that_names_its_tower(state, tiny_config, tmp_path, monkeypatch, capsys):
    (tmp_path / "a").mkdir()
    whole = run(tmp_path / "a", {**state, **lavis_vision_state()})
    monkeypatch.setattr(convert_lavis_stage1, "VISION_TOWER", str(whole))
    release = run(tmp_path, state)
    assert "stage 1, a bridge-only release" in capsys.readouterr().out
    model = InstructBLIPForPreTraining.from_pretrained(release)
    expected = InstructBLIPForPreTraining.from_pretrained(whole).state_dict()
    assert model.known_backbones["vision"]["repo"] == str(whole)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, ["--llm", "google/flan-t5-xl"], "stage 1 has no language model"),
        (lavis_vision_state(), ["--vision", "eva_vit_g.pth"], "has its own vision model: leave out --vision"),
        (lavis_projection("t5"), [], "2 keys (our names) that this variant does not have:"),
        ({"Qformer.cls.predictions.decoder.weight": torch.zeros(60, 24)}, [], "they are one tensor in stage 1"),
        ({"itm_head.weight": torch.zeros(3, 24)}, [], "itm_head.weight: (3, 24), expected (2, 24)"),
        ({"itm_tail.weight": torch.zeros(2)}, [], "1 unknown key in the LAVIS state dict:\n  itm_tail.weight"),
    ],
)
def test_what_is_no_stage_1_is_refused_and_nothing_written(state, tmp_path, capsys, change, options, message):
    with pytest.raises(SystemExit):
        run(tmp_path, {**state, **change}, *options)
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blip2_pretrained.pth"]


def test_missing_heads_are_named(state, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(tmp_path, {key: tensor for key, tensor in state.items() if key != "temp"})
    assert "1 missing key (our names):\n  temperature" in capsys.readouterr().err
