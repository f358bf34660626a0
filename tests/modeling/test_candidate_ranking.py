"""Ranking of candidate answers: the packed trie equals one forward per candidate, to the order."""

import pytest
import torch

from instructblip.modeling import candidate_ranking
from instructblip.modeling.candidate_ranking import CandidateTrie

KINDS = ["t5", "llama"]
LANGUAGES = [*KINDS, "qwen2"]  # qwen2 has fewer key-value heads than query heads
SHARED = [[20], [20, 21], [20, 21, 22], [20, 23], [24, 25, 26, 27], [24, 25, 28], [29], [20, 21]]
PER_ROW = [
    [[20, 21, 22], [20, 21, 23], [30]],
    [[31], [31, 32, 33, 34, 35]],
    [[20, 21, 22]],
    [[40, 41], [40, 42], [43, 41], [43, 42], [44]],
    [[20, 21, 22], [20]],
]


def assert_trie_equals_naive(model, candidates, batch, **settings):
    packed = model.score_candidates(candidates, **batch, **settings)
    naive = model.score_candidates(candidates, **batch, **settings, packed=False)
    torch.testing.assert_close(packed, naive, atol=1e-4, rtol=0)
    # Equal candidates tie, and rounding may order a tie either way.
    ties = (naive[:, :, None] - naive[:, None, :]).abs() < 1e-4
    order = (packed[:, :, None] > packed[:, None, :]) == (naive[:, :, None] > naive[:, None, :])
    assert (order | ties).all()
    return packed


# ---- trie == naive


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("end", [None, False, True])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_the_trie_equals_one_forward_per_candidate(language, side, end, normalize, tiny_model, make_batch, mixed_rows):
    model = tiny_model(language)
    batch = make_batch(mixed_rows, language, side, extra=2)  # one image, no image, several, a shared one
    settings = dict(add_end_token=end, length_normalize=normalize)
    scores = assert_trie_equals_naive(model, SHARED, batch, **settings)
    assert scores.shape == (5, 8)
    torch.testing.assert_close(scores[:, 1], scores[:, 7])  # a duplicate
    scores = assert_trie_equals_naive(model, PER_ROW, batch, **settings)
    assert scores.shape == (5, 5)
    assert [int(row.isfinite().sum()) for row in scores] == [3, 2, 1, 5, 2]
    assert (scores[2, 1:] == float("-inf")).all()


@pytest.mark.parametrize("block", [1, 2, 3, 7])
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_trie_larger_than_a_block_is_cut_and_ancestors_are_repeated(
    language, block, tiny_model, make_batch, mixed_rows, monkeypatch
):
    model = tiny_model(language)
    batch = make_batch(mixed_rows[:2], language, "left")
    generator = torch.Generator().manual_seed(1)
    candidates = [  # bushy: five first tokens, up to six tokens
        torch.randint(20, 25, (length,), generator=generator).tolist() for length in range(1, 7) for _ in range(7)
    ]
    expected = model.score_candidates(candidates, **batch)
    monkeypatch.setattr(candidate_ranking, "MAX_BLOCK", block)
    ran = []
    model.get_output_embeddings().register_forward_hook(lambda _, inputs, output: ran.append(output.shape))
    scores = model.score_candidates(candidates, **batch)
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)
    assert len(ran) > 10
    if block == 7:
        # A forward has at most MAX_BLOCK positions and T5's start token, or is one block of one node and its ancestors.
        assert max(shape[:-1].numel() for shape in ran) <= 8
    assert_trie_equals_naive(model, candidates[::3], batch)


@pytest.mark.parametrize("language", KINDS)
def test_attention_implementations_agree(language, tiny_model, make_batch, mixed_rows):
    model = tiny_model(language)
    batch = make_batch(mixed_rows, language, "left")
    assert model.language_model.config._attn_implementation == "sdpa"
    expected = model.score_candidates(PER_ROW, **batch)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model.score_candidates(PER_ROW, **batch), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("language", KINDS)
def test_a_row_alone_equals_itself_in_any_batch(language, tiny_model, make_batch, mixed_rows):
    model = tiny_model(language)
    for side in ("right", "left", "inner"):
        together = model.score_candidates(PER_ROW, **make_batch(mixed_rows, language, side, extra=3))
        for number, row in enumerate(mixed_rows):
            alone = model.score_candidates([PER_ROW[number]], **make_batch([row], language))[0]
            torch.testing.assert_close(together[number, : len(alone)], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("language", KINDS)
def test_scores_are_sums_of_log_probabilities_of_forward(language, tiny_model, make_batch, mixed_rows):
    """Worked from the logits, without the loss."""
    model = tiny_model(language)
    row, answer = mixed_rows[0], [20, 21]
    if language == "t5":
        logits = model(**make_batch([row], language), decoder_input_ids=torch.tensor([[0, *answer]])).logits[0]
        answer = [*answer, 1]  # T5's answers end with </s>, as LAVIS scores them
    else:
        logits = model(**make_batch([dict(vars(row), answer=answer)], language, labels=True)).logits[0, -3:]
    expected = sum(logits.log_softmax(dim=-1)[place, token] for place, token in enumerate(answer))
    scores = model.score_candidates([[20, 21]], **make_batch([row], language))
    torch.testing.assert_close(scores[0, 0], expected, atol=1e-5, rtol=1e-5)
    normalized = model.score_candidates([[20, 21]], **make_batch([row], language), length_normalize=True)
    torch.testing.assert_close(normalized[0, 0], expected / len(answer), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("language", KINDS)
def test_probabilities_of_all_single_tokens_sum_to_one(language, tiny_model, make_batch, mixed_rows):
    model = tiny_model(language)
    scores = model.score_candidates([[token] for token in range(80)], **make_batch(mixed_rows, language),
                                    add_end_token=False)  # fmt: skip
    torch.testing.assert_close(scores.exp().sum(dim=1), torch.ones(5))


@pytest.mark.parametrize("language", KINDS)
def test_a_longer_candidate_is_never_more_likely_than_its_beginning(language, tiny_model, make_batch, mixed_rows):
    scores = tiny_model(language).score_candidates(SHARED, **make_batch(mixed_rows, language), add_end_token=False)
    assert (scores[:, 0] >= scores[:, 1]).all()
    assert (scores[:, 1] >= scores[:, 2]).all()


def test_the_end_token_is_the_models_setting(tiny_model, make_batch, mixed_rows):
    model = tiny_model("llama")
    batch = make_batch(mixed_rows[:1], "llama")
    expected = model.score_candidates([[20, 9]], **batch)
    model.generation_config.eos_token_id = [9, 2]
    torch.testing.assert_close(model.score_candidates([[20]], **batch, add_end_token=True), expected)


@pytest.mark.parametrize("language", KINDS)
def test_embeds_give_the_same_scores(language, tiny_model, make_batch, mixed_rows):
    model = tiny_model(language)
    batch = make_batch(mixed_rows, language, "left")
    expected = model.score_candidates(PER_ROW, **batch)
    batch["image_embeds"] = model.encode_images(batch.pop("pixel_values")).last_hidden_state
    for packed in (True, False):
        scores = model.score_candidates(PER_ROW, **batch, packed=packed)
        torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)
    batch["inputs_embeds"] = model.get_input_embeddings()(batch.pop("input_ids")).detach()
    for packed in (True, False):
        scores = model.score_candidates(PER_ROW, **batch, packed=packed)
        torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("with_index", [True, False])
@pytest.mark.parametrize("language", KINDS)
def test_frames_are_scored(language, with_index, tiny_model, make_batch):
    model = tiny_model(language)
    batch = make_batch([dict(text=(5, 6), images=(0, 1)), dict(text=(7,), images=(2, 3))], language)
    expected = model.score_candidates(SHARED, **batch)
    batch["pixel_values"] = batch["pixel_values"].view(2, 2, 3, 28, 28)
    if not with_index:
        del batch["image_index"]
    torch.testing.assert_close(assert_trie_equals_naive(model, SHARED, batch), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("language", KINDS)
def test_bfloat16_scores_are_close_and_float32(language, tiny_model, make_batch, mixed_rows):
    model = tiny_model(language)
    batch = make_batch(mixed_rows, language)
    expected = model.score_candidates(PER_ROW, **batch)
    scores = model.to(torch.bfloat16).score_candidates(PER_ROW, **batch)
    assert scores.dtype == torch.float32
    real = expected.isfinite()
    torch.testing.assert_close(scores[real], expected[real], atol=0.5, rtol=0.1)


def test_the_prompt_and_the_image_run_once_per_row(tiny_model, make_batch, mixed_rows):
    model = tiny_model("llama")
    images, positions = [], []
    model.vision_model.register_forward_hook(lambda _, inputs, output: images.append(len(output[0])))
    model.language_model.model.register_forward_hook(
        lambda _, inputs, output: positions.append(output.last_hidden_state.shape[:2].numel())
    )
    model.score_candidates([[token, 21, 22] for token in range(20, 60)], **make_batch(mixed_rows[:2], "llama"))
    prompt = 2 * (4 + 7)
    inner = 2 * 40 * 2  # rows * candidates * tokens that are an input
    assert images == [2]
    assert positions[0] == prompt
    assert sum(positions[1:]) == inner


# ---- errors


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ([], "0 candidate lists for 5 prompts"),
        ([[[20]]] * 4, "4 candidate lists for 5 prompts"),
        ([[[20]], [[20]], [], [[20]], [[20]]], "sample 2 has no candidates"),
        ([[[20]], [[20]], [[20], []], [[20]], [[20]]], "candidate 1 of sample 2 has no tokens"),
        ([[20], []], "candidate 1 of sample 0 has no tokens"),
        ([[20], [80]], "candidate 1 of sample 0 has token 80, but the language model's vocabulary has 80"),
        ([[20], [-1, 5]], "candidate 1 of sample 0 has token -1, but the language model's vocabulary has 80"),
        (["yes", "no"], "candidate 0 of sample 0 is text, token ids were expected"),
        ([["yes", "no"]] * 5, "candidate 0 of sample 0 is text, token ids were expected"),
    ],
)
def test_candidates_that_cannot_be_scored_are_named(candidates, message, tiny_model, make_batch, mixed_rows):
    for packed in (True, False):
        with pytest.raises(ValueError, match=message):
            tiny_model("llama").score_candidates(candidates, **make_batch(mixed_rows, "llama"), packed=packed)


def test_a_missing_prompt_or_end_token_is_named(tiny_model, make_batch, mixed_rows):
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="pass either input_ids or inputs_embeds"):
        model.score_candidates([[20]])
    for config in (model.generation_config, model.language_model.generation_config, model.config.text_config):
        config.eos_token_id = None
    with pytest.raises(ValueError, match="add_end_token needs an end token"):
        model.score_candidates([[20]], **make_batch(mixed_rows, "llama"), add_end_token=True)


# ---- the trie, by hand


def test_candidates_that_begin_alike_share_nodes_and_last_tokens_are_none():
    trie = CandidateTrie.build([(1, 2, 3), (1, 2, 4), (5,), (1,)])
    assert trie.tokens == [1, 2]  # inputs: 1, then 2 after 1; 3, 4 and 5 only have to be predicted
    assert trie.parents == [-1, 0]
    assert trie.depths == [0, 1]
    edges = list(zip(trie.edge_parents, trie.edge_tokens, strict=True))
    assert sorted(edges) == [(-1, 1), (-1, 5), (0, 2), (1, 3), (1, 4)]
    assert [[edges[edge] for edge in path] for path in trie.paths] == [
        [(-1, 1), (0, 2), (1, 3)],
        [(-1, 1), (0, 2), (1, 4)],
        [(-1, 5)],
        [(-1, 1)],
    ]


def test_nodes_are_in_depth_first_order():
    trie = CandidateTrie.build([(2, 7, 9), (1, 5, 9), (2, 8, 9), (1, 6, 9)])
    assert trie.tokens == [1, 5, 6, 2, 7, 8]
    assert trie.parents == [-1, 0, 0, -1, 3, 3]


def test_path_sums_are_those_of_the_candidates():
    trie = CandidateTrie.build([(1, 2), (1, 3), (1, 2)])
    scores = torch.zeros(len(trie.edge_tokens))
    for edge, token in enumerate(trie.edge_tokens):
        scores[edge] = {1: 10.0, 2: 2.0, 3: 3.0}[token]
    assert trie.sum_paths(scores).tolist() == [12, 13, 12]


def test_a_block_repeats_the_ancestors_of_its_first_node(monkeypatch):
    monkeypatch.setattr(candidate_ranking, "MAX_BLOCK", 3)
    trie = CandidateTrie.build([(1, 2, 3, 4), (1, 2, 5, 4), (6, 4)])
    assert trie.tokens == [1, 2, 3, 5, 6]
    blocks = list(trie.blocks())
    assert [(block.nodes, block.start, block.stop) for block in blocks] == [
        ([0, 1, 2], 0, 3),
        ([0, 1, 3], 3, 4),  # 5 after 1, 2
        ([4], 4, 5),
    ]
    assert blocks[1].ancestor_mask().tolist() == [[True, False, False], [True, True, False], [True, True, True]]


def test_siblings_do_not_see_each_other():
    (block,) = CandidateTrie.build([(1, 2, 9), (1, 3, 9), (4, 9)]).blocks()
    assert block.trie.tokens == [1, 2, 3, 4]
    assert block.ancestor_mask().int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]


def test_single_tokens_need_no_forward(tiny_model, make_batch, mixed_rows):
    assert list(CandidateTrie.build([(1,), (2,)]).blocks()) == []
    model = tiny_model("llama")
    calls = []
    model.language_model.register_forward_hook(lambda *_: calls.append(1))
    model.score_candidates([[20], [21]], **make_batch(mixed_rows, "llama"))
    assert calls == [1]  # the prompt


@pytest.mark.parametrize("language", ["gpt2", "llama"])
def test_a_candidate_beyond_the_positions_is_refused_both_ways(language, tiny_model, make_batch):
    model = tiny_model(language, text={"n_positions" if language == "gpt2" else "max_position_embeddings": 32})
    fits, longer = [[5, 6, 7]], [[5, 6, 7, 8]]
    batch = make_batch([dict(text=(5,) * 25), dict(text=(5, 6))], language)  # and 4 placeholders
    for packed in (True, False):
        assert model.score_candidates([fits, longer], **batch, packed=packed).isfinite().all()
        with pytest.raises(ValueError, match="longer than the 32 positions of the language model"):
            model.score_candidates([longer, fits], **batch, packed=packed)
