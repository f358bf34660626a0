"""Stage 1: what sees what, the three losses against a slow reference in plain loops, and where weights come from."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForPreTraining, BertConfig, BertForPreTraining, BertModel

from instructblip import InstructBLIPForConditionalGeneration, InstructBLIPForPreTraining, start_from_stage1
from instructblip.modeling import modeling_pretraining
from instructblip.modeling.modeling_pretraining import draw_negatives, similarity
from instructblip.modeling.stage_weights import copy_bert

CLS, SEP, DEC = 2, 3, 79
HEADS, QUERIES, WIDTH = 4, 4, 8
TOLERANCE = dict(atol=2e-5, rtol=1e-4)
CAPTIONS = [[CLS, 10, 11, 12, SEP], [CLS, 13, SEP], [CLS, 14, 15, SEP], [CLS, 16, 17, 18, 19, 20, SEP], [CLS, 21, SEP]]
IMAGE_OF = [0, 1, 2, 2, 3]  # captions 2 and 3 are of one picture
PICTURES = torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def make_model(tiny_config):
    """A factory of tiny stage-1 models with weights large enough for every part to matter."""

    def make(temperature=0.3, **kwargs):
        model = InstructBLIPForPreTraining(tiny_config(image_text_hidden_size=WIDTH, **kwargs)).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1:
                    parameter.mul_(4)
                elif name.startswith(("qformer", "lm_head")):
                    parameter.add_(torch.randn_like(parameter) * 0.1)
            model.temperature.fill_(temperature)
        model.freeze_backbones()
        return model

    return make


@pytest.fixture
def model(make_model):
    return make_model()


def make_batch(rows=range(5), length=8, image_ids=False):
    """Captions padded on the right, and their pictures once each."""
    ids, mask = torch.zeros(len(rows), length, dtype=torch.long), torch.zeros(len(rows), length, dtype=torch.long)
    for number, row in enumerate(rows):
        words = CAPTIONS[row]
        ids[number, : len(words)], mask[number, : len(words)] = torch.tensor(words), 1
    pictures = sorted({IMAGE_OF[row] for row in rows})
    batch = {"pixel_values": PICTURES[pictures], "input_ids": ids, "attention_mask": mask}
    batch["image_index"] = torch.tensor([pictures.index(IMAGE_OF[row]) for row in rows])
    if image_ids:
        batch["image_ids"] = torch.tensor([1000 - IMAGE_OF[row] for row in rows])
    return batch


def best_negatives(scores, same):
    """In place of a draw: always the likeliest wrong one."""
    return scores.masked_fill(same, float("-inf")).argmax(dim=1)


# ---- The reference: one row at a time, nothing padded, who sees whom written as a condition


class Reference:
    """Stage 1 from its state dict, in loops."""

    def __init__(self, model):
        self.state = dict(model.named_parameters())
        self.layers = model.config.qformer_config.num_hidden_layers
        self.eps = model.config.qformer_config.layer_norm_eps
        norm = model.vision_layernorm
        with torch.no_grad():
            towers = [model.vision_model(pixel_values=picture[None]).last_hidden_state[0] for picture in PICTURES]
        self.images = [
            torch.nn.functional.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps) for x in towers
        ]

    def linear(self, name, x):
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, name, x):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + self.eps).sqrt()
        return x * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def attend(self, name, x, keys, sees):
        """`sees(i, j)`: whether position i may look at position j."""
        query, key, value = (self.linear(f"{name}.attention.{part}", y) for part, y in zip(
            ("query", "key", "value"), (x, keys, keys), strict=True
        ))  # fmt: skip
        size = query.shape[1] // HEADS
        rows = []
        for i in range(len(x)):
            seen = [j for j in range(len(keys)) if sees(i, j)]
            heads = []
            for head in range(HEADS):
                part = slice(head * size, (head + 1) * size)
                scores = torch.stack([query[i, part] @ key[j, part] / size**0.5 for j in seen])
                weights = scores.softmax(0)
                heads.append(sum(weight * value[j, part] for weight, j in zip(weights, seen, strict=True)))
            rows.append(torch.cat(heads))
        return self.norm(f"{name}.output.LayerNorm", self.linear(f"{name}.output.dense", torch.stack(rows)) + x)

    def feed_forward(self, layer, kind, x):
        inner = torch.nn.functional.gelu(self.linear(f"{layer}.intermediate{kind}.dense", x))
        return self.norm(f"{layer}.output{kind}.LayerNorm", self.linear(f"{layer}.output{kind}.dense", inner) + x)

    def qformer(self, words=(), image=None, sees=lambda i, j: True):
        """(queries, text) outputs for the words, and the queries if there is an image."""
        text = "qformer.embeddings.{}_embeddings.weight"
        x = [self.state[text.format("word")][w] + self.state[text.format("position")][p] for p, w in enumerate(words)]
        queries = 0 if image is None else QUERIES
        x = torch.stack([*self.state["query_tokens"][0][:queries], *x])
        x = self.norm("qformer.embeddings.layernorm", x)
        for number in range(self.layers):
            layer = f"qformer.encoder.layer.{number}"
            x = self.attend(f"{layer}.attention", x, x, sees)
            asking, telling = x[:queries], x[queries:]
            if queries and number % 2 == 0:
                asking = self.attend(f"{layer}.crossattention", asking, self.images[image], lambda i, j: True)
            parts = [self.feed_forward(layer, "_query", asking)] if queries else []
            parts += [self.feed_forward(layer, "", telling)] if len(telling) else []
            x = torch.cat(parts)
        return x[:queries], x[queries:]

    def image_feature(self, image):
        feature = self.linear("vision_projection", self.qformer(image=image)[0])
        return feature / feature.norm(dim=-1, keepdim=True)

    def text_feature(self, words):
        feature = self.linear("text_projection", self.qformer(words)[1][0])
        return feature / feature.norm()

    def matching(self, words, image):
        return self.linear("itm_head", self.qformer(words, image)[0]).mean(0)

    def word_logits(self, words, image):
        """Logits of each next word: the text sees the queries and itself so far, the queries see each other."""
        sees = lambda i, j: j < QUERIES or (i >= QUERIES and j <= i)  # noqa: E731
        hidden = self.qformer([DEC, *words[1:]], image, sees)[1]
        hidden = self.norm("lm_head.LayerNorm", torch.nn.functional.gelu(self.linear("lm_head.dense", hidden)))
        return hidden @ self.state["qformer.embeddings.word_embeddings.weight"].T + self.state["lm_head.bias"]

    def losses(self, captions=CAPTIONS, image_of=IMAGE_OF):
        rows = range(len(captions))
        images, texts = (
            [self.image_feature(image_of[r]) for r in rows],
            [self.text_feature(words) for words in captions],
        )
        temperature = self.state["temperature"][0]
        itc, negatives = 0, []
        for row in rows:
            right = [other for other in rows if image_of[other] == image_of[row]]
            target = [0.9 * (other in right) / len(right) + 0.1 / len(rows) for other in rows]
            finding_text = [max(query @ texts[other].detach() for query in images[row]) for other in rows]
            finding_image = [max(query @ texts[row] for query in images[other].detach()) for other in rows]
            chosen = []
            for scores in (finding_text, finding_image):
                logs = (torch.stack(scores) / temperature).log_softmax(0)
                itc = itc - sum(t * log for t, log in zip(target, logs, strict=True)) / (2 * len(rows))
                wrong = [other for other in rows if other not in right]
                chosen.append(max(wrong, key=lambda other, scores=scores: scores[other].item()))
            negatives.append(chosen)
        pairs = [(captions[row], image_of[row], 1) for row in rows]
        pairs += [(captions[row], image_of[negatives[row][1]], 0) for row in rows]
        pairs += [(captions[negatives[row][0]], image_of[row], 0) for row in rows]
        itm = sum(-self.matching(words, image).log_softmax(0)[label] for words, image, label in pairs) / len(pairs)
        words_learned, itg = 0, 0
        for words, image in zip(captions, image_of, strict=True):
            for logits, target in zip(self.word_logits(words, image)[:-1], words[1:], strict=True):
                logs = logits.log_softmax(0)
                itg = itg - 0.9 * logs[target] - 0.1 * logs.mean()
                words_learned += 1
        return {"loss_itc": itc, "loss_itm": itm, "loss_itg": itg / words_learned}


def test_losses_and_gradients_are_those_of_the_slow_reference(make_model, monkeypatch):
    monkeypatch.setattr(modeling_pretraining, "draw_negatives", best_negatives)
    model = make_model(qformer=dict(num_hidden_layers=3))
    expected = Reference(model).losses()
    output = model(**make_batch())
    for name, loss in expected.items():
        torch.testing.assert_close(output[name], loss, **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}")
    torch.testing.assert_close(output.loss, sum(expected.values()), **TOLERANCE)
    output.loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    sum(expected.values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(found[name], parameter.grad, atol=1e-4, rtol=1e-3, msg=name)
            assert found[name].any() or name.endswith("key.bias"), name  # a bias of all keys changes no softmax
        else:
            assert name.startswith("vision_model."), name
            assert found[name] is None, name


def test_image_ids_say_what_image_index_does_not(make_model, monkeypatch):
    """The same picture twice in the batch, as two processes would have it, is one picture by its id."""
    monkeypatch.setattr(modeling_pretraining, "draw_negatives", best_negatives)
    model = make_model()
    expected = model(**make_batch())
    batch = make_batch(image_ids=True)
    batch["pixel_values"], batch["image_index"] = batch["pixel_values"][batch["image_index"]], torch.arange(5)
    output = model(**batch)
    for name in ("loss_itc", "loss_itm", "loss_itg"):
        torch.testing.assert_close(output[name], expected[name], **TOLERANCE)
    right = []
    monkeypatch.setattr(
        modeling_pretraining, "draw_negatives", lambda scores, same: right.append(same) or same.max(1)[1]
    )
    model(**batch)
    model(**{key: value for key, value in batch.items() if key != "image_ids"})
    assert [int(same.sum()) for same in right] == [7, 7, 5, 5]  # 2 and 3 are right for each other, twice


def test_the_picture_of_a_row_comes_once_or_as_often_as_it_is_used(model):
    batch = make_batch()
    features = model(**batch, return_loss=False)
    assert features.loss is None
    torch.testing.assert_close(features.image_features[2], features.image_features[3])
    torch.testing.assert_close(features.image_features[[0, 1, 2, 4]], model.get_image_features(batch["pixel_values"]))
    torch.testing.assert_close(
        features.text_features, model.get_text_features(batch["input_ids"], batch["attention_mask"])
    )
    encoded = model.encode_images(batch.pop("pixel_values")).last_hidden_state
    torch.testing.assert_close(
        model(**batch, image_embeds=encoded, return_loss=False).image_features, features.image_features
    )


# ---- Who sees whom: change what must not be seen, nothing happens; change what must be, something does


def changed(before, after):
    """For each position of (length, hidden) whether it is another."""
    return [not torch.allclose(a, b, atol=1e-6) for a, b in zip(before, after, strict=True)]


@pytest.fixture
def qformer_inputs(model):
    return {
        "query_embeds": model.query_tokens.detach().clone(),
        "image_embeds": torch.randn(1, 5, 32),
        "input_ids": torch.tensor([[DEC, 10, 11, 12, SEP, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0, 0]]),
    }


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_generation_queries_see_no_text_and_text_sees_queries_and_what_came_before(model, qformer_inputs, attention):
    model.qformer.set_attn_implementation(attention)
    run = lambda **new: model.qformer(**{**qformer_inputs, **new}, text_output=True, causal_text=True)[0][0].detach()  # noqa: E731
    before = run()
    ids = qformer_inputs["input_ids"]
    for place in range(5):
        after = run(input_ids=ids.index_fill(1, torch.tensor([place]), 50))
        assert changed(before, after)[: QUERIES + 5] == [False] * (QUERIES + place) + [True] * (5 - place)
    assert changed(before, run(input_ids=ids.index_fill(1, torch.tensor([5, 6]), 50)))[: QUERIES + 5] == [False] * 9
    queries = qformer_inputs["query_embeds"].clone()
    queries[0, 2, 5] += 1
    assert changed(before, run(query_embeds=queries))[: QUERIES + 5] == [True] * 9
    image = torch.randn(1, 5, 32)
    assert changed(before, run(image_embeds=image))[: QUERIES + 5] == [True] * 9
    alone = model.qformer(qformer_inputs["query_embeds"], qformer_inputs["image_embeds"])[0][0]
    torch.testing.assert_close(before[:QUERIES], alone, atol=1e-6, rtol=1e-5)  # as if there were no text


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_matching_queries_and_text_see_all_of_each_other(model, qformer_inputs, attention):
    model.qformer.set_attn_implementation(attention)
    run = lambda **new: model.qformer(**{**qformer_inputs, **new}, text_output=True)[0][0].detach()  # noqa: E731
    before = run()
    ids = qformer_inputs["input_ids"]
    for place in range(5):
        assert all(changed(before, run(input_ids=ids.index_fill(1, torch.tensor([place]), 50)))[: QUERIES + 5])
    assert not any(changed(before, run(input_ids=ids.index_fill(1, torch.tensor([5, 6]), 50)))[: QUERIES + 5])
    queries = qformer_inputs["query_embeds"].clone()
    queries[0, 2, 5] += 1
    assert all(changed(before, run(query_embeds=queries))[: QUERIES + 5])
    assert all(changed(before, run(image_embeds=torch.randn(1, 5, 32)))[: QUERIES + 5])


def test_contrast_image_and_text_do_not_see_each_other_and_text_sees_all_of_itself(model):
    batch = make_batch()
    before = model(**batch, return_loss=False)
    other = model(**{**batch, "pixel_values": batch["pixel_values"].flip(0)}, return_loss=False)
    assert changed(before.text_features, other.text_features) == [False] * 5
    assert changed(before.image_features, other.image_features) == [True] * 5
    words = batch["input_ids"].clone()
    words[0, 3] = 50  # a later word of the first caption
    words[1, 5] = 50  # padding of the second
    other = model(**{**batch, "input_ids": words}, return_loss=False)
    assert changed(before.text_features, other.text_features) == [True, False, False, False, False]
    assert changed(before.image_features, other.image_features) == [False] * 5


def test_padding_on_the_left_or_more_of_it_changes_no_loss(model, monkeypatch):
    monkeypatch.setattr(modeling_pretraining, "draw_negatives", best_negatives)
    expected, batch = model(**make_batch()), make_batch()
    for row, words in enumerate(CAPTIONS):
        batch["input_ids"][row], batch["attention_mask"][row] = 50, 0
        batch["input_ids"][row, 8 - len(words) :] = torch.tensor(words)
        batch["attention_mask"][row, 8 - len(words) :] = 1
    for output in (model(**batch), model(**make_batch(length=16))):
        for name in ("loss_itc", "loss_itm", "loss_itg"):
            torch.testing.assert_close(output[name], expected[name], **TOLERANCE)


# ---- Negatives


def test_a_negative_is_never_the_right_one_nor_another_of_its_picture():
    pictures = torch.tensor([0, 1, 1, 2])
    same = pictures[:, None] == pictures
    scores = torch.zeros(4, 4).fill_diagonal_(50.0)  # the right ones are by far the likeliest
    for _ in range(500):
        assert not same[torch.arange(4), draw_negatives(scores, same)].any()


def test_in_a_batch_of_two_the_negative_is_the_other():
    same = torch.eye(2, dtype=torch.bool)
    scores = torch.tensor([[20.0, -20.0], [-90.0, 90.0]])
    assert all(draw_negatives(scores, same).tolist() == [1, 0] for _ in range(200))


def test_harder_negatives_are_drawn_more_often():
    scores = torch.tensor([[9.0, 0.0, 1.0]]).expand(4000, -1)
    same = torch.tensor([[True, False, False]]).expand(4000, -1)
    drawn = draw_negatives(scores, same).bincount(minlength=3) / 4000
    weights = torch.tensor([0.0, 1.0, torch.e])
    torch.testing.assert_close(drawn, weights / weights.sum(), atol=0.03, rtol=0)


def test_a_batch_without_wrong_captions_matches_the_right_ones_only(model):
    output = model(**make_batch(rows=[2, 3]))
    batch = make_batch(rows=[2, 3])
    states = model.normed_images(model.encode_images(batch["pixel_values"]).last_hidden_state)
    logits = model.get_matching_logits(states, batch["image_index"], batch["input_ids"], batch["attention_mask"])
    torch.testing.assert_close(output.loss_itm, -logits.log_softmax(1)[:, 1].mean())
    assert output.loss.isfinite()


def test_similarity_is_that_of_the_best_query():
    images = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[-1.0, 0.0], [0.6, 0.8]]])
    texts = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    torch.testing.assert_close(similarity(images, texts), torch.tensor([[1.0, 0.0], [0.6, 0.0]]))


# ---- Training


def test_gradient_checkpointing_changes_nothing(model, monkeypatch):
    monkeypatch.setattr(modeling_pretraining, "draw_negatives", best_negatives)
    model.train()
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(**make_batch()).loss.backward()
        grads.append([parameter.grad.clone() for _, parameter in model.named_bridge_parameters()])
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_bfloat16_autocast_is_near_float32(model, monkeypatch):
    monkeypatch.setattr(modeling_pretraining, "draw_negatives", best_negatives)
    expected = model(**make_batch())
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**make_batch())
    output.loss.backward()
    for name in ("loss_itc", "loss_itm", "loss_itg"):
        assert output[name].dtype == torch.float32
        torch.testing.assert_close(output[name], expected[name], atol=0.05, rtol=0.05)


def test_only_the_tower_is_frozen_and_stays_in_eval_mode(model):
    model.train()
    assert not model.vision_model.training
    assert model.qformer.training
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    frozen = {name for name, _ in model.named_parameters()} - trained
    assert all(name.startswith("vision_model.") and "post_layernorm" not in name for name in frozen)
    assert trained == {name for name, _ in model.named_bridge_parameters()}


def test_what_does_not_fit_is_refused(model):
    batch = make_batch()
    with pytest.raises(ValueError, match="4 images for 5 captions: pass image_index"):
        model(**{**batch, "image_index": None})
    with pytest.raises(ValueError, match="caption 4 belongs to image 4, but there are 4 images"):
        model(**{**batch, "image_index": torch.tensor([0, 1, 2, 2, 4])})
    with pytest.raises(ValueError, match=r"image_index is \(5, 2\) for 5 captions: each has one image"):
        model(**{**batch, "image_index": torch.zeros(5, 2, dtype=torch.long)})
    with pytest.raises(ValueError, match="3 image_ids for 5 captions"):
        model(**batch, image_ids=torch.arange(3))
    with pytest.raises(ValueError, match="input_ids is missing"):
        model(batch["pixel_values"])
    with pytest.raises(ValueError, match="either pixel_values or image_embeds"):
        model(input_ids=batch["input_ids"])


# ---- Several processes


def run_rank(rank, folder):
    """One of two processes: its rows, through DistributedDataParallel."""
    torch.set_num_threads(1)
    modeling_pretraining.draw_negatives = best_negatives
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    # Uneven: three rows of three pictures and two rows, of which one shows a picture of the other process.
    batch = make_batch([0, 1, 2] if rank == 0 else [3, 4], length=6 if rank == 0 else 7, image_ids=True)
    for way in ("ddp", "fsdp2"):
        model = InstructBLIPForPreTraining.from_pretrained(folder / "model").eval()
        model.freeze_backbones()
        parallel = DistributedDataParallel(model) if way == "ddp" else shard(model)
        output = parallel(**batch)
        output.loss.backward()
        result = {name: output[name].detach() for name in ("loss", "loss_itc", "loss_itm", "loss_itg")}
        grads = {name: parameter.grad for name, parameter in model.named_bridge_parameters()}
        result["grads"] = {name: grad if way == "ddp" else grad.full_tensor() for name, grad in grads.items()}
        torch.save(result, folder / f"{way}{rank}")
    distributed.destroy_process_group()


def shard(model):
    """FSDP2 over the modules that the model names, as accelerate does it."""
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("shard",))
    for module in list(model.modules()):
        inner = {"InstructBlipAttention"}  # inside a layer that is sharded as one
        if type(module).__name__ in model._no_split_modules - inner:
            fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def test_two_processes_have_the_losses_and_gradients_of_one_with_the_whole_batch(model, monkeypatch, tmp_path):
    monkeypatch.setattr(modeling_pretraining, "draw_negatives", best_negatives)
    model.save_pretrained(tmp_path / "model")
    command = [sys.executable, __file__, str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = model(**make_batch())
    expected.loss.backward()
    for way in ("ddp", "fsdp2"):
        results = [torch.load(tmp_path / f"{way}{rank}") for rank in range(2)]
        check_ranks(results, model, expected)


def check_ranks(results, model, expected):
    for name in ("loss", "loss_itc", "loss_itm", "loss_itg"):
        mean = (results[0][name] + results[1][name]) / 2
        torch.testing.assert_close(mean, expected[name].detach(), **TOLERANCE, msg=lambda t, name=name: f"{name}: {t}")
    for name, parameter in model.named_bridge_parameters():
        for result in results:
            torch.testing.assert_close(result["grads"][name], parameter.grad, atol=1e-4, rtol=1e-3, msg=name)


# ---- From BERT

BERT = dict(
    vocab_size=50, hidden_size=24, num_hidden_layers=3, num_attention_heads=4, intermediate_size=32,
    max_position_embeddings=20, type_vocab_size=2,
)  # fmt: skip


@pytest.fixture
def bert():
    bert = BertForPreTraining(BertConfig(**BERT)).eval()
    for parameter in bert.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    return bert


@pytest.fixture
def tower(tiny_model, tmp_path):
    """A folder with a whole checkpoint, whose tower is taken."""
    tiny_model("llama").save_pretrained(tmp_path / "tower")
    return tmp_path / "tower"


@pytest.fixture
def from_bert(bert, tower, tmp_path):
    """A factory of stage-1 models that begin as `bert`."""
    bert.save_pretrained(tmp_path / "bert")
    return lambda **kwargs: InstructBLIPForPreTraining.from_backbones(tower, tmp_path / "bert", **kwargs)


def test_the_text_branch_alone_begins_as_that_bert(bert, from_bert):
    model = from_bert()
    ids = torch.tensor([[2, 10, 11, 12, 3], [2, 13, 3, 0, 0]])
    mask = (ids > 0).long()
    ours = model.qformer(None, None, ids, mask, text_output=True).last_hidden_state
    theirs = bert.bert(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(ours[mask == 1], theirs[mask == 1], atol=1e-5, rtol=1e-5)
    logits = model.lm_head(ours, model.get_input_embeddings().weight)[mask == 1]
    torch.testing.assert_close(
        logits[:, :50], bert(ids, attention_mask=mask).prediction_logits[mask == 1], atol=1e-5, rtol=1e-5
    )
    assert logits.shape[1] == 51  # [DEC]
    assert 0 < model.get_input_embeddings().weight[50].abs().max() < 0.2  # which is new


def test_the_query_feed_forward_begins_as_the_texts_and_cross_attention_is_new(from_bert):
    model = from_bert()
    for layer in model.qformer.encoder.layer:
        for query, text in ((layer.intermediate_query, layer.intermediate), (layer.output_query, layer.output)):
            for ours, theirs in zip(query.parameters(), text.parameters(), strict=True):
                assert torch.equal(ours, theirs)
                assert ours.data_ptr() != theirs.data_ptr()
    weight = model.qformer.encoder.layer[0].crossattention.attention.key.weight
    assert weight.shape == (24, 32)
    assert 0.01 < weight.std() < 0.03


def test_the_tower_of_a_new_model_is_that_of_the_checkpoint_and_is_named_in_a_bridge_release(
    from_bert, tiny_model, tower, tmp_path
):
    model = from_bert()
    expected = InstructBLIPForConditionalGeneration.from_pretrained(tower).encode_images(PICTURES)
    torch.testing.assert_close(model.encode_images(PICTURES).last_hidden_state, expected.last_hidden_state)
    model.save_pretrained(tmp_path / "release", bridge_only=True)
    again = InstructBLIPForPreTraining.from_pretrained(tmp_path / "release")
    names = [name for name, _ in model.named_bridge_parameters()]
    assert len(names) < len(list(model.parameters()))
    assert again.known_backbones == model.known_backbones == {
        "vision": {"repo": str(tower), "revision": None, "prefix": "vision_model."}
    }  # fmt: skip
    for (name, ours), theirs in zip(again.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_a_qformer_may_have_fewer_layers_than_the_bert_but_not_more(bert, tiny_config):
    shape = dict(vocab_size=51, max_position_embeddings=20)
    model = InstructBLIPForPreTraining(tiny_config(qformer=dict(shape, num_hidden_layers=2)))
    copy_bert(model, bert)
    assert torch.equal(
        model.qformer.encoder.layer[1].output.dense.weight, bert.bert.encoder.layer[1].output.dense.weight
    )
    model = InstructBLIPForPreTraining(tiny_config(qformer=dict(shape, num_hidden_layers=4)))
    with pytest.raises(ValueError, match="the BERT has 3 layers and the Q-Former 4"):
        copy_bert(model, bert)


def test_a_bert_of_another_size_is_refused_and_nothing_changed(bert, tiny_config):
    model = InstructBLIPForPreTraining(tiny_config(qformer=dict(intermediate_size=48, num_hidden_layers=2)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"does not fit the Q-Former: .*position_embeddings.weight: \(20, 24\), exp"):
        copy_bert(model, bert)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_bert_without_a_head_leaves_the_head_new(bert, tiny_config):
    model = InstructBLIPForPreTraining(
        tiny_config(qformer=dict(vocab_size=51, max_position_embeddings=20, num_hidden_layers=3))
    )
    before = model.lm_head.dense.weight.clone()
    body = BertModel(bert.config)
    copy_bert(model, body)
    assert torch.equal(model.lm_head.dense.weight, before)
    assert torch.equal(model.get_input_embeddings().weight[:50], body.get_input_embeddings().weight)


# ---- Saving, and the next stage


def test_a_saved_model_comes_back_through_the_auto_class(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = AutoModelForPreTraining.from_pretrained(tmp_path)
    assert type(again) is InstructBLIPForPreTraining
    assert again.config.image_text_hidden_size == WIDTH
    for (name, ours), theirs in zip(again.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_new_weights_are_those_of_lavis(tiny_config):
    model = InstructBLIPForPreTraining(tiny_config())
    assert model.temperature.tolist() == [pytest.approx(0.07)]
    assert 0.01 < model.query_tokens.std() < 0.03
    assert not model.lm_head.bias.any()
    assert model.vision_projection.out_features == model.text_projection.out_features == 256


@pytest.mark.parametrize("vision", ["instructblip_vision_model", "siglip_vision_model"])
@pytest.mark.parametrize("saved", [False, True])
def test_stage_2_begins_with_the_queries_of_stage_1(make_model, tiny_model, tmp_path, vision, saved):
    stage1 = make_model(vision=vision)
    stage2 = tiny_model("llama", vision=vision, qformer_text_input=False)
    stage2.vision_model.load_state_dict(stage1.vision_model.state_dict())
    if saved:
        stage1.save_pretrained(tmp_path)
    start_from_stage1(stage2, tmp_path if saved else stage1)
    states = stage1.normed_images(stage1.encode_images(PICTURES).last_hidden_state)
    expected = stage2.language_projection(stage1.qformer(stage1.query_tokens.expand(4, -1, -1), states)[0])
    torch.testing.assert_close(stage2.get_image_features(PICTURES).pooler_output, expected)


def test_stage_3_is_stage_2_with_the_text_branch_of_stage_1(make_model, tiny_model):
    stage1, stage3 = make_model(), tiny_model("llama")
    before = {name: tensor.clone() for name, tensor in stage3.state_dict().items()}
    start_from_stage1(stage3, stage1, text_branch_only=True)
    theirs, taken = stage1.state_dict(), []
    for name, tensor in stage3.state_dict().items():
        if not torch.equal(tensor, before[name]):
            assert torch.equal(tensor, theirs[name]), name
            taken.append(name)
    per_layer = {f"{part}.{kind}" for part in ("intermediate.dense", "output.dense") for kind in ("weight", "bias")}
    per_layer |= {"output.LayerNorm.bias"}  # its weights are all 1 in `stage3` and differ in `stage1`
    per_layer |= {"output.LayerNorm.weight"}
    expected = {f"qformer.encoder.layer.{layer}.{name}" for layer in range(4) for name in per_layer}
    expected |= {f"qformer.embeddings.{kind}_embeddings.weight" for kind in ("word", "position")}
    assert set(taken) == expected


def test_a_stage_2_model_keeps_the_text_branch_it_does_not_train(make_model, tiny_model):
    """So that stage 3, which reads text, finds that of stage 1 in the checkpoint of stage 2."""
    stage1, stage2 = make_model(), tiny_model("llama", qformer_text_input=False)
    start_from_stage1(stage2, stage1)
    stage2.freeze_backbones()
    bridge, theirs = stage2.bridge_state_dict(), stage1.state_dict()
    for name, parameter in stage2.qformer.named_parameters():
        if not parameter.requires_grad:
            assert torch.equal(bridge[f"qformer.{name}"], theirs[f"qformer.{name}"])
    assert not stage2.qformer.embeddings.word_embeddings.weight.requires_grad


def test_a_stage_1_of_another_tower_or_size_is_refused_and_nothing_changed(make_model, tiny_model):
    stage2 = tiny_model("llama")
    before = {name: tensor.clone() for name, tensor in stage2.state_dict().items()}
    with pytest.raises(ValueError, match=r"it lacks \['vision_model.post_layernorm.weight'"):
        start_from_stage1(stage2, make_model(vision="dinov2"))
    with pytest.raises(ValueError, match=r"query_tokens: \(1, 2, 24\), expected \(1, 4, 24\)"):
        start_from_stage1(stage2, make_model(num_query_tokens=2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in stage2.state_dict().items())


if __name__ == "__main__":
    multiprocessing.start_processes(run_rank, (Path(sys.argv[1]),), nprocs=2, start_method="fork")
