"""Log-likelihoods of candidate answers: one forward per candidate, or all candidates packed as a trie.

The packed way runs image and prompt once per row. Candidates become a trie; each inner node of it is one position of a
forward, which attends to the prompt and to its ancestors only, so a beginning that many candidates share is computed
once and a last token never is an input. Memory is bounded by running the trie in blocks of at most `MAX_BLOCK` nodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutput

from .input_checks import check_length
from .packing import additive_mask, align, attention_as, logits_at, positions_from_mask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_BLOCK = 256  # positions of one forward; the fastest on CPU lay between 128 and 512

Candidates = Sequence[Sequence[tuple[int, ...]]]


def score_candidates_naively(model: PreTrainedModel, candidates: Candidates, **prompt: Any) -> list[torch.Tensor]:
    """Score each candidate by a whole forward of its own; returns one (candidates,) tensor a row."""
    scores = []
    for row, row_candidates in enumerate(candidates):
        alone = _one_row(prompt, row)
        device = next(iter(alone.values())).device
        row_scores = []
        for ids in row_candidates:
            answer = torch.tensor([ids], device=device)
            if model.config.is_encoder_decoder:
                inputs, labels = alone, answer
            else:
                inputs, labels = _append(model, alone, answer)
            loss = model(**inputs, labels=labels, num_items_in_batch=1, skip_logits=False).loss
            row_scores.append(-loss)
        scores.append(torch.stack(row_scores))
    return scores


def _one_row(prompt: dict[str, Any], row: int) -> dict[str, Any]:
    """The arguments of one row, without padding and with only its own images."""
    text = {key: prompt.get(key) for key in ("input_ids", "inputs_embeds", "attention_mask")}
    mask = text.pop("attention_mask")
    alone = {key: value[row : row + 1] for key, value in text.items() if value is not None}
    if mask is not None:
        alone = {key: value[:, mask[row].bool()] for key, value in alone.items()}
    for key in ("qformer_input_ids", "qformer_attention_mask"):
        if prompt.get(key) is not None:
            alone[key] = prompt[key][row : row + 1]
    index = prompt.get("image_index")
    if index is not None and prompt.get("pixel_values") is not None and prompt["pixel_values"].dim() == 5:
        prompt = {**prompt, "pixel_values": prompt["pixel_values"].flatten(0, 1)}
    shown = [row] if index is None else index[row][index[row] >= 0].tolist()
    for key in ("pixel_values", "image_embeds"):
        if prompt.get(key) is not None and shown:
            alone[key] = prompt[key][shown]
            if alone[key].dim() < 5:
                alone["image_index"] = torch.arange(len(shown), device=alone[key].device)[None]
    return alone


def _append(model: PreTrainedModel, alone: dict[str, Any], answer: torch.Tensor) -> tuple[dict[str, Any], torch.Tensor]:
    """The prompt followed by the answer, and labels that supervise the answer only."""
    inputs = dict(alone)
    if "input_ids" in inputs:
        length = inputs["input_ids"].shape[1]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], answer.to(inputs["input_ids"].device)], dim=1)
    else:
        length = inputs["inputs_embeds"].shape[1]
        embedded = model.get_input_embeddings()(answer).to(inputs["inputs_embeds"].dtype)
        inputs["inputs_embeds"] = torch.cat([inputs["inputs_embeds"], embedded], dim=1)
    return inputs, torch.cat([answer.new_full((1, length), -100), answer], dim=1)


@dataclass
class CandidateTrie:
    """Candidates merged by their beginnings.

    Attributes:
        tokens, parents, depths: one entry per inner node, in depth-first order; the prompt is parent -1, its children
            have depth 0.
        edge_parents, edge_tokens: one entry per distinct (node, next token); every candidate is a path of edges.
        paths: the edges of each candidate, in the candidates' order.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    edge_parents: list[int] = field(default_factory=list)
    edge_tokens: list[int] = field(default_factory=list)
    paths: list[list[int]] = field(default_factory=list)

    @classmethod
    def build(cls, candidates: Sequence[tuple[int, ...]]) -> CandidateTrie:
        trie, nodes, edges = cls(), {(): -1}, {}
        trie.paths = [[] for _ in candidates]
        for number in sorted(range(len(candidates)), key=lambda number: candidates[number]):  # gives depth-first order
            ids = candidates[number]
            for length, token in enumerate(ids):
                parent = nodes.get(ids[:length])
                if parent is None:
                    nodes[ids[:length]] = parent = len(trie.tokens)
                    trie.tokens.append(ids[length - 1])
                    trie.parents.append(nodes[ids[: length - 1]])
                    trie.depths.append(length - 1)
                edge = edges.setdefault((parent, token), len(edges))
                if edge == len(trie.edge_parents):
                    trie.edge_parents.append(parent)
                    trie.edge_tokens.append(token)
                trie.paths[number].append(edge)
        return trie

    def blocks(self) -> Iterator[TrieBlock]:
        """Cut the nodes into runs of at most `MAX_BLOCK`, the ancestors of a run's first node repeated in front."""
        start = 0
        while start < len(self.tokens):
            ancestors: list[int] = []
            parent = self.parents[start]
            while parent != -1:
                ancestors.insert(0, parent)
                parent = self.parents[parent]
            stop = min(start + max(MAX_BLOCK - len(ancestors), 1), len(self.tokens))
            yield TrieBlock(self, [*ancestors, *range(start, stop)], start, stop)
            start = stop

    def edges_from(self, start: int, stop: int) -> list[int]:
        """The edges whose parent node is in [start, stop)."""
        return [edge for edge, parent in enumerate(self.edge_parents) if start <= parent < stop]

    def sum_paths(self, edge_scores: torch.Tensor) -> torch.Tensor:
        """(candidates,) sums of (edges,) scores along each candidate's path."""
        flat = torch.tensor([edge for path in self.paths for edge in path], device=edge_scores.device)
        owner = torch.tensor(
            [number for number, path in enumerate(self.paths) for _ in path], device=edge_scores.device
        )
        return edge_scores.new_zeros(len(self.paths)).index_add_(0, owner, edge_scores[flat])


@dataclass
class TrieBlock:
    """A run of nodes that one forward can score: `nodes` includes repeated ancestors, [start, stop) are its own."""

    trie: CandidateTrie
    nodes: list[int]
    start: int
    stop: int

    def ancestor_mask(self) -> torch.Tensor:
        """(nodes, nodes) True where the column is the row itself or one of its ancestors."""
        place = {node: position for position, node in enumerate(self.nodes)}
        mask = torch.eye(len(self.nodes), dtype=torch.bool).numpy()
        for position, node in enumerate(self.nodes):
            parent = place.get(self.trie.parents[node])
            if parent is not None:
                mask[position] |= mask[parent]
        return torch.from_numpy(mask)


def score_candidates_packed(model: PreTrainedModel, candidates: Candidates, **prompt: Any) -> list[torch.Tensor]:
    """Score all candidates with image and prompt run once; returns one (candidates,) tensor a row.

    Raises:
        ValueError: a prompt and its longest candidate need more positions than a decoder-only language model has.
    """
    embeds, mask, _, _ = model._prompt(**prompt)
    mask = mask.to(embeds.device)
    if not model.config.is_encoder_decoder:
        for row, row_candidates in enumerate(candidates):
            check_length(mask[row : row + 1], model.config.text_config, further=max(map(len, row_candidates)))
    tries: dict[int, CandidateTrie] = {}  # rows often share one list of candidates
    for row_candidates in candidates:
        if id(row_candidates) not in tries:
            tries[id(row_candidates)] = CandidateTrie.build(row_candidates)
    row_tries = [tries[id(row_candidates)] for row_candidates in candidates]
    scorer = _EncoderDecoderScorer if model.config.is_encoder_decoder else _DecoderScorer
    with attention_as(model.language_model, "sdpa"):  # which takes the trie's mask, as flash attention does not
        return scorer(model.language_model, embeds, mask).score(row_tries)


class _TrieScorer:
    """Scores tries after prompts that are run once per row.

    `begun` is the number of positions before a block's nodes (T5's start token), whose logits score the tries' roots.
    """

    begun: int
    mask: torch.Tensor

    def root_scores(self, row: int, tokens: list[int]) -> torch.Tensor | None:
        """log p of `tokens` right after a row's prompt, where that is known before any trie is run."""
        raise NotImplementedError

    def run(self, chunk: list[tuple[int, TrieBlock]]) -> torch.Tensor:
        """Logits (blocks, begun + nodes, vocabulary) of (row, block) pairs."""
        raise NotImplementedError

    def score(self, tries: list[CandidateTrie]) -> list[torch.Tensor]:
        """One (candidates,) tensor a row."""
        blocks = {id(trie): list(trie.blocks()) for trie in tries}
        scores = []
        for row, trie in enumerate(tries):
            roots = trie.edges_from(-1, 0)
            known = self.root_scores(row, [trie.edge_tokens[edge] for edge in roots])
            scores.append(torch.zeros(len(trie.edge_tokens), device=self.mask.device))
            if known is not None:
                scores[row][roots] = known
            elif not blocks[id(trie)]:
                blocks[id(trie)] = [TrieBlock(trie, [], 0, 0)]  # one-token candidates: nothing but the root
        todo = [(row, block) for row, trie in enumerate(tries) for block in blocks[id(trie)]]
        todo.sort(key=lambda pair: len(pair[1].nodes), reverse=True)
        for chunk in _chunks(todo, extra=self.begun):
            logits = self.run(chunk)
            for number, (row, block) in enumerate(chunk):
                _score_edges(scores[row], logits[number], block, offset=self.begun)
        return [trie.sum_paths(row_scores) for trie, row_scores in zip(tries, scores, strict=True)]


class _DecoderScorer(_TrieScorer):
    """Scores tries after prompts whose keys and values are computed once per row."""

    begun = 0

    def __init__(self, language_model: PreTrainedModel, embeds: torch.Tensor, mask: torch.Tensor):
        self.language_model, self.mask = language_model, mask.bool()
        self.lengths = mask.sum(dim=1)
        rows, seq = mask.shape
        columns = torch.arange(seq, device=mask.device)
        last = (self.mask * columns).amax(dim=1) + seq * torch.arange(rows, device=mask.device)  # real token of a row
        with logits_at(language_model, last):
            outputs = language_model(
                inputs_embeds=embeds, attention_mask=mask, position_ids=positions_from_mask(mask), use_cache=True
            )
        self.cache = outputs.past_key_values
        self.first = outputs.logits.float().log_softmax(dim=-1)  # (rows, vocabulary), after the prompt

    def root_scores(self, row: int, tokens: list[int]) -> torch.Tensor:
        return self.first[row, tokens]

    def run(self, chunk: list[tuple[int, TrieBlock]]) -> torch.Tensor:
        device = self.mask.device
        rows = torch.tensor([row for row, _ in chunk], device=device)
        size = max(len(block.nodes) for _, block in chunk)
        tokens, depths, ancestors = _pad_blocks([block for _, block in chunk], size)
        allowed = torch.cat([self.mask[rows, None].expand(-1, size, -1), ancestors.to(device)], dim=2)
        cache = DynamicCache()
        for index, layer in enumerate(self.cache.layers):
            cache.update(layer.keys[rows], layer.values[rows], index)
        return self.language_model(
            input_ids=tokens.to(device),
            attention_mask=additive_mask(allowed[:, None], self.language_model.dtype),
            position_ids=self.lengths[rows, None] + depths.to(device),
            past_key_values=cache,
            use_cache=True,
        ).logits


class _EncoderDecoderScorer(_TrieScorer):
    """Scores tries with a T5 whose encoder runs once per row.

    T5 counts decoder positions by itself, so the mask also carries the difference between the position bias that the
    trie needs (by depth) and the one that T5 adds (by column).
    """

    begun = 1

    def __init__(self, language_model: PreTrainedModel, embeds: torch.Tensor, mask: torch.Tensor):
        self.language_model = language_model
        self.mask, embeds = align(mask, "right", embeds)
        self.encoded = language_model.get_encoder()(inputs_embeds=embeds, attention_mask=self.mask).last_hidden_state
        start = language_model.config.decoder_start_token_id
        self.start = language_model.generation_config.decoder_start_token_id if start is None else start

    def root_scores(self, row: int, tokens: list[int]) -> None:
        return None

    def run(self, chunk: list[tuple[int, TrieBlock]]) -> torch.Tensor:
        """Logits (blocks, 1 + nodes, vocabulary); the first position is the decoder's start token."""
        device = self.mask.device
        rows = torch.tensor([row for row, _ in chunk], device=device)
        size = 1 + max(len(block.nodes) for _, block in chunk)
        tokens, depths, ancestors = _pad_blocks([block for _, block in chunk], size - 1)
        tokens = torch.nn.functional.pad(tokens, (1, 0), value=self.start).to(device)
        depths = torch.nn.functional.pad(depths + 1, (1, 0)).to(device)
        allowed = torch.nn.functional.pad(ancestors, (1, 0, 1, 0)).to(device)
        allowed[:, :, 0] = True  # every node attends to the start token
        attention = self.language_model.get_decoder().block[0].layer[0].SelfAttention
        longest = int(depths.max()) + 1
        by_depth = attention.compute_bias(longest, longest, device=device)[0]  # (heads, depth, depth)
        wanted = by_depth[:, depths[:, :, None], depths[:, None, :]].transpose(0, 1)
        added = attention.compute_bias(size, size, device=device)
        mask = additive_mask(allowed[:, None], self.encoded.dtype) + (wanted - added)
        return self.language_model(
            encoder_outputs=BaseModelOutput(last_hidden_state=self.encoded[rows]),
            attention_mask=self.mask[rows],
            decoder_input_ids=tokens,
            decoder_attention_mask=mask,
            use_cache=False,
        ).logits


def _chunks(todo: list[tuple[int, TrieBlock]], extra: int) -> Iterator[list[tuple[int, TrieBlock]]]:
    """Group blocks, longest first, so that a padded group has at most `MAX_BLOCK` positions (or is one block)."""
    start = 0
    while start < len(todo):
        longest = len(todo[start][1].nodes) + extra
        count = max(MAX_BLOCK // longest, 1)
        yield todo[start : start + count]
        start += count


def _pad_blocks(blocks: list[TrieBlock], size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens and depths (blocks, size) and ancestor masks (blocks, size, size); padding attends to itself only."""
    tokens = torch.zeros(len(blocks), size, dtype=torch.long)
    depths = torch.zeros(len(blocks), size, dtype=torch.long)
    masks = torch.eye(size, dtype=torch.bool).repeat(len(blocks), 1, 1)
    filled: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}  # rows that share a list share its blocks
    for number, block in enumerate(blocks):
        if id(block) not in filled:
            trie = block.trie
            filled[id(block)] = (
                torch.tensor([trie.tokens[node] for node in block.nodes], dtype=torch.long),
                torch.tensor([trie.depths[node] for node in block.nodes], dtype=torch.long),
                block.ancestor_mask(),
            )
        length = len(block.nodes)
        tokens[number, :length], depths[number, :length], masks[number, :length, :length] = filled[id(block)]
    return tokens, depths, masks


def _score_edges(scores: torch.Tensor, logits: torch.Tensor, block: TrieBlock, offset: int) -> None:
    """Write log p(token | node) of the edges that leave a block's own nodes (and its start token, if `offset`)."""
    trie = block.trie
    first = -1 if offset and block.start == 0 else block.start
    edges = trie.edges_from(first, block.stop)
    if not edges:
        return
    repeated = len(block.nodes) - (block.stop - block.start)
    parents = [trie.edge_parents[edge] for edge in edges]
    places = [0 if parent == -1 else parent - block.start + repeated + offset for parent in parents]
    tokens = torch.tensor([trie.edge_tokens[edge] for edge in edges], device=logits.device)
    places_tensor = torch.tensor(places, device=logits.device)
    normalizer = logits.float().logsumexp(dim=-1)
    scores[edges] = logits[places_tensor, tokens].float() - normalizer[places_tensor]
