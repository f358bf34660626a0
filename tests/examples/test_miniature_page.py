"""The demo's page and its maps of attention, with a tiny random model."""

import re

import attention
import datasets
import demo_page
import numpy as np
import pytest
import torch
from html_page import Page
from PIL import Image
from steps import mean
from transformers import BlipImageProcessorPil
from world import Thing
from write_datasets import write_datasets

from instructblip import InstructBLIPProcessor
from instructblip.eval_tasks.report_samples import Answer, Shown
from instructblip.eval_tasks.report_tables import DASH

HOSTILE = '<script>alert("x")</script>'
INSTRUCTIONS = ["what is the color of this cat ?", "is there a dog ?"]


@pytest.fixture
def make_processor(llama_tokenizer, qformer_tokenizer):
    llama_tokenizer.add_tokens([f"<unused{number}>" for number in range(79 - len(llama_tokenizer))])  # <image> is 79

    def make(side=28):
        pictures = BlipImageProcessorPil(size={"height": side, "width": side})
        return InstructBLIPProcessor(pictures, llama_tokenizer, qformer_tokenizer, 4, 64, is_encoder_decoder=False)

    return make


@pytest.fixture
def make_model(tiny_model):
    def make(vision="siglip_vision_model", **options):
        model = tiny_model("llama", vision=vision, **options)
        model.set_attn_implementation("eager")
        return model

    return make


@pytest.mark.parametrize("vision", ["siglip_vision_model", "instructblip_vision_model"])  # the second has a class token
def test_every_query_shares_out_its_attention_over_the_patches(vision, make_model, make_processor, tiny_images):
    model, processor = make_model(vision), make_processor()
    maps = attention.attention_maps(
        model, processor, [tiny_images[0]] * 2 + [tiny_images[1]], [*INSTRUCTIONS] * 1 + INSTRUCTIONS[:1]
    )
    assert maps.shape == (3, 4, 4, 4)
    np.testing.assert_allclose(maps.sum(axis=(2, 3)), 1, rtol=1e-5)
    assert np.abs(maps[0] - maps[1]).max() > 1e-4  # another instruction
    assert np.abs(maps[0] - maps[2]).max() > 1e-4  # another picture


def test_the_maps_are_those_of_the_last_layer_that_sees_the_picture(make_model, make_processor, tiny_images):
    model, processor = make_model("instructblip_vision_model"), make_processor()
    inputs = processor(images=tiny_images[2], text=INSTRUCTIONS[0])
    names = ("pixel_values", "qformer_input_ids", "qformer_attention_mask")
    layers = model.get_image_features(**{name: inputs[name] for name in names}, output_attentions=True)
    heads = layers.qformer_cross_attentions[1][0]  # of layers 0 and 2; (heads, query, class token and patches)
    assert len(layers.qformer_cross_attentions) == 2
    maps = attention.attention_maps(model, processor, [tiny_images[2]], INSTRUCTIONS[:1])
    for query in range(4):
        by_hand = sum(heads[head, query] for head in range(4))[1:]
        by_hand = by_hand / by_hand.sum()
        for row in range(4):
            for column in range(4):
                assert maps[0, query, row, column] == pytest.approx(by_hand[4 * row + column].item(), rel=1e-4)


def test_a_release_is_loaded_with_its_attention(tiny_model, make_processor, tiny_images, tmp_path):
    model, processor = tiny_model("llama", vision="siglip_vision_model"), make_processor()
    with pytest.raises(ValueError, match="attention is 'sdpa': load the release with load_with_attention"):
        attention.attention_maps(model, processor, tiny_images[:1], INSTRUCTIONS[:1])
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = attention.load_with_attention(tmp_path)
    model.set_attn_implementation("eager")
    np.testing.assert_allclose(
        attention.attention_maps(*loaded, tiny_images[:1], INSTRUCTIONS[:1]),
        attention.attention_maps(model, processor, tiny_images[:1], INSTRUCTIONS[:1]),
        rtol=1e-4,
    )


def test_an_answer_comes_with_what_was_looked_at(make_model, make_processor, tiny_images):
    model, processor = make_model(), make_processor()
    looked = demo_page.look(model, processor, tiny_images[0], INSTRUCTIONS)
    tokens = model.generate(
        **processor(images=tiny_images[0], text=INSTRUCTIONS[1]), max_new_tokens=32, do_sample=False
    )
    assert looked.answers[1] == processor.batch_decode(tokens, skip_special_tokens=True)[0].strip() != ""
    maps = attention.attention_maps(model, processor, [tiny_images[0]] * 2, INSTRUCTIONS)
    np.testing.assert_array_equal(looked.maps, maps)


def test_change_by_hand():
    left, right = np.zeros((2, 2)), np.zeros((2, 2))
    left[:, 0], right[:, 1] = 0.5, 0.5
    assert attention.change(np.array([[left], [left]])) == 0
    assert attention.change(np.array([[left], [right]])) == 1
    assert attention.change(np.array([[left, left], [left, right]])) == 0.5  # one of two queries looks elsewhere
    assert attention.change(np.array([[left], [left], [right]])) == pytest.approx(2 / 3)  # two of the three pairs


def test_the_share_on_a_thing_is_that_of_its_place():
    weights = np.arange(36, dtype=float).reshape(6, 6)
    thing = Thing("star", "red", "plain", "small", place=5)  # in the middle row, on the right
    assert attention.share_of(weights, thing) == 16 + 17 + 22 + 23
    with pytest.raises(ValueError, match="4 x 4 patches cannot be shared out to 3 x 3 places"):
        attention.share_of(np.ones((4, 4)), thing)


def test_queries_that_look_everywhere_alike_look_at_nothing_in_particular(tiny_config, make_processor):
    from instructblip import InstructBLIPForConditionalGeneration

    config = tiny_config("llama", vision="siglip_vision_model")
    config.vision_config.image_size, config.vision_config.patch_size = 24, 4
    model = InstructBLIPForConditionalGeneration(config).eval()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        for layer in model.qformer.encoder.layer[::2]:
            layer.crossattention.attention.query.weight.zero_()
    found = attention.looks_at(model, make_processor(24), count=3)
    expected = {"asked about": 1 / 9, "other": 1 / 9, "chance": 1 / 9, "change": 0}
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_map_lights_what_is_looked_at():
    weights = np.zeros((6, 6))
    weights[0, 5] = 1
    drawn = np.asarray(attention.draw_map(Image.new("RGB", (96, 48), (200, 40, 40)), weights, side=60)).astype(int)
    assert drawn.shape == (30, 60, 3)
    assert (drawn[1, 58] >= [200, 40, 40]).all()
    assert (drawn[20:, :30] == [50, 10, 10]).all()


def test_a_sheet_has_a_tile_for_every_query():
    sheet = attention.draw_sheet(Image.new("RGB", (96, 96)), np.ones((6, 6, 6)) / 36, columns=4, side=20)
    assert sheet.size == (4 * 20 + 3 * attention.GAP, 2 * 20 + attention.GAP)


# ---- the page


@pytest.fixture
def contents():
    picture = Image.new("RGB", (96, 96), "red")
    blind = dict.fromkeys(demo_page.NAMES, 20.0)
    ours = {name: 40.0 + place for place, name in enumerate(demo_page.NAMES)}  # their mean is 46
    rows = [
        demo_page.Row("chance", {"GQA": 61.25}),
        demo_page.Row("blind", {**blind, "COCO": 12.5}, kind="blind"),
        demo_page.Row(f"ours {HOSTILE}", {**ours, "COCO": 95.0}, {"GQA": (31.5, 52.5)}, "ours"),
    ]
    answers = [Answer("InstructBLIP", HOSTILE, (), 0.0), Answer("BLIP-2", "red", (), 1.0)]
    shown = Shown("gqa/1", "best", f"Question: {HOSTILE}", f"truth {HOSTILE}", answers, [picture] * 4, "")
    maps = np.random.default_rng(0).dirichlet(np.ones(36), (2, 3)).reshape(2, 3, 6, 6)
    return demo_page.Contents(
        title=f"A page {HOSTILE}",
        introduction=["First.", HOSTILE],
        rows=rows,
        samples={"GQA": [shown]},
        attention_words=HOSTILE,
        attention=[demo_page.Looked(picture, [HOSTILE, "what?"], [HOSTILE, ""], maps)],
        chat=demo_page.Chat(picture, [(HOSTILE, HOSTILE), ("and then?", "")]),
        notes=[HOSTILE],
        commands=["make demo", f"echo {HOSTILE}"],
    )


@pytest.fixture
def page(contents, tmp_path):
    demo_page.write_page(tmp_path / "index.html", contents)
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
    return (tmp_path / "index.html").read_text(encoding="utf-8")


def table(page, place=0):
    """The cells of one of the page's tables, as HTML."""
    rows = re.findall("<tr.*?</tr>", page.split("<table>")[1 + place].split("</table>")[0], re.DOTALL)
    return [re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row) for row in rows]


def test_the_table_has_the_scores_with_the_best_in_bold(page):
    head, chance, blind, ours = table(page)
    assert head[1:] == [*demo_page.NAMES, *demo_page.MEANS]
    gqa = demo_page.NAMES.index("GQA")
    assert chance[1 + gqa] == "<b>61.2</b>"
    assert set(chance[1:]) - {chance[1 + gqa]} == {DASH}  # no mean either
    assert blind[1:] == ["20.0"] * 15
    expected = [f"<b>{40 + place}.0</b>" for place in range(13)]
    expected[gqa] = f"{40 + gqa}.0"
    assert ours[1:] == [*expected, "<b>46.0</b>", "<b>47.0</b>"]


def test_held_in_scores_have_a_table_of_their_own_without_means(page):
    head, chance, blind, ours = table(page, 1)
    assert head[1:] == demo_page.HELD_IN_NAMES
    assert ours[1:] == ["<b>95.0</b>", *[DASH] * (len(demo_page.HELD_IN_NAMES) - 1)]
    assert blind[1:] == ["12.5", *[DASH] * (len(demo_page.HELD_IN_NAMES) - 1)]
    assert set(chance[1:]) == {DASH}


def test_plots_have_the_rows_that_have_a_score(page):
    figures = {
        re.search("<figcaption>(.*?)<", figure)[1]: Page(figure).text
        for figure in re.findall("<figure>.*?</figure>", page)
        if "<svg" in figure
    }
    assert list(figures) == [*demo_page.MEANS, *demo_page.NAMES]
    assert "chance: 61.2" in figures["GQA"]
    assert "chance" not in figures["VSR"] + figures["mean of the 13"]
    assert "blind: 20.0" in figures["mean of the 13"]


def test_no_text_becomes_markup(page):
    assert "<script" not in page
    titles, row, sample, maps, chat, others = 2, 2 + 15, 3, 2, 2, 4  # a row's label is in both tables and in each plot
    assert Page(page).text.count(HOSTILE) == titles + row + sample + maps + chat + others


def test_the_page_needs_nothing_else(page):
    tags = Page(page).tags
    images = [about["src"] for tag, about in tags if tag == "img"]
    assert len(images) == 4 + 1 + 2 * 2 + 1  # frames; picture, and maps of two instructions; the chat's
    assert all(source.startswith("data:image/") for source in images)
    assert not [tag for tag, about in tags if tag in ("script", "link", "iframe") or "href" in about]
    assert not re.search(r"https?:|url\(", page)


def test_the_page_says_how_far_attention_moves_and_what_was_run(page, contents):
    text = Page(page).text
    assert f"{attention.change(contents.attention[0].maps):.0%} of the attention goes elsewhere" in text
    assert "the mean over 3 queries" in text
    assert "make demo\necho" in text
    assert text.count("(nothing)") == 2  # an empty answer below a map, and in the chat


def test_a_mean_needs_every_benchmark():
    scores = {name: float(place) for place, name in enumerate(demo_page.NAMES)}
    everything, answers = demo_page.MEANS
    assert demo_page.Row("all", scores).value(everything) == mean(scores) == 6
    assert demo_page.Row("all", scores).value(answers) == 7  # without the first two, which are captions
    del scores["NoCaps"]
    assert demo_page.Row("all but one", scores).value(everything) is None
    assert demo_page.Row("all but one", scores).value(answers) == 7


# ---- from results


@pytest.fixture
def results(make_model, make_processor, tmp_path, monkeypatch):
    """Label -> results on eight questions of GQA, of a model that answers every other one and one that answers none."""
    pytest.importorskip("lm_eval")
    from logged_results import answering, log_evaluation

    from instructblip.eval_tasks import InstructBLIPEvalModel

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_datasets(tmp_path / "data", ["gqa"], scale=0.01)
    model = InstructBLIPEvalModel(make_model(), make_processor(), device="cpu")
    ways = {
        "ours": lambda place, doc: "nothing" if place % 2 else doc["answers"][0],
        "before": lambda place, doc: "nothing",
    }
    for label, way in ways.items():
        task = ["instructblip_gqa"]
        log_evaluation(answering(model, way), tmp_path / label, tmp_path / "data", task, name=f"/runs/{label}/release")
    return {label: tmp_path / label for label in ways}


def test_rows_and_samples_come_from_results(results, tmp_path):
    ours, before = (demo_page.measured_row(label, folder, "ours") for label, folder in results.items())
    assert ours.scores == {"GQA": 50.0}
    assert before.scores == {"GQA": 0.0}
    low, high = ours.intervals["GQA"]
    assert 0 <= low < 50 < high <= 100
    assert [ours.value(name) for name in demo_page.MEANS] == [None, None]

    samples = demo_page.draw_samples(results, tmp_path / "data")
    assert list(samples) == ["GQA"]
    assert [document.kind for document in samples["GQA"]] == ["best", "worst"]
    best, worst = ([(answer.model, answer.score) for answer in document.answers] for document in samples["GQA"])
    assert (best, worst) == ([("ours", 1.0), ("before", 0.0)], [("ours", 0.0), ("before", 0.0)])
    assert [picture.size for document in samples["GQA"] for picture in document.pictures] == [(96, 96)] * 2


def test_results_of_two_models_are_no_row(results, tmp_path):
    with pytest.raises(ValueError, match="holds results of 2 models: a row shows one"):
        demo_page.measured_row("both", tmp_path, "ours")
