"""Multi-head latent attention with the lightning indexer: DeepSeek Sparse Attention (report, section 2.1).

One path serves training, prefill and decoding: make the query, the row that a token leaves behind, and the index
projections; select; attend. Keys are the batch's own rows or those of a cache. Three equal forms attend, and
`_attend` is the one place that chooses: expanded (MHA) where many queries share few keys, absorbed (MQA) where few
queries meet many, fetched (MQA over the selected rows alone) where each query has its own few of many. The engine's
flat lists take the fetched form alone, so that a token's bits do not depend on its company.
"""

# B = batch, S = new tokens, L = keys, H = heads, K = selected, C = latent dims, W = row width (latent and rope key)

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baleen.model.cache import CacheView, FlatView
from baleen.model.config import ModelConfig
from baleen.model.indexer import Indexer
from baleen.model.layers import Linear, RMSNorm
from baleen.model.rotary import rotate_half_split, rotate_interleaved
from baleen.ops.attention import attend_mha, attend_mqa, head_probabilities
from baleen.ops.indexer_loss import Index, dense_indexer_kl, indexer_kl, selected_index_scores
from baleen.ops.selection import index_scores, indexer_topk
from baleen.ops.sparse_attention import attend_selected, selected_probabilities
from baleen.ops.visibility import Visibility

IndexerLoss = Literal["dense", "selected"]

MASKED_PAIR_COST = 1.5
"""What a pair costs in the expanded form under a mask, against one in the fetched form, per multiplication (measured
on two CPU cores)."""

LATENT_NORM_EPS = 1e-6
"""In every family, whatever `rms_norm_eps` the other norms have."""

FEW_QUERIES = 64
"""From this many queries on it pays to expand the whole cache's keys and values for them."""


@dataclass
class AttentionContext:
    """What all layers of one forward share."""

    cos: Tensor
    sin: Tensor
    seen: Visibility
    """Which keys exist for each query before any selection."""

    sparse: bool
    cache: CacheView | FlatView | None = None
    compiled: bool = False
    """Layers run as compiled loops (a flat list of a small network)."""

    indexer_loss: IndexerLoss | None = None
    indexer_stride: int = 1
    """The KL is taken on every `indexer_stride`-th query from `indexer_offset` on: an unbiased part of the whole."""

    indexer_offset: int = 0
    probe: list[tuple[Tensor, Tensor | None, Tensor]] | None = None
    """When a list: each layer appends (attention probabilities, index scores, visible), [B, S, L] each."""


class _Keys:
    """Of one layer and one rectangle of queries: what every query may attend to."""

    def __init__(self, rows: Tensor | None, view: CacheView | None, layer: int) -> None:
        self._rows, self.view, self.layer = rows, view, layer

    @property
    def rows(self) -> Tensor:
        """[B, L, W]."""
        if self._rows is None:
            assert self.view is not None
            self._rows = self.view.rows(self.layer)
        return self._rows

    @property
    def storage(self) -> Tensor:
        """[N, W]: the rows again, as one list."""
        return self.view.storage(self.layer) if self.view is not None else self.rows.flatten(0, 1)

    def in_storage(self, selected: Tensor) -> Tensor:
        """Positions [B, S, K] as row numbers in `storage`, [B S, K]; -1 stays -1."""
        if self.view is not None:
            return self.view.in_storage(selected)
        batch, length = self.rows.shape[:2]
        if batch == 1:
            return selected[0]
        start = torch.arange(0, batch * length, length, device=selected.device, dtype=selected.dtype)
        return torch.where(selected < 0, -1, selected + start.view(-1, 1, 1)).flatten(0, 1)


class Attention(nn.Module):
    """MLA, dense or sparse."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        heads, bias = config.num_attention_heads, config.attention_bias
        query_width = heads * (config.qk_nope_head_dim + config.qk_rope_head_dim)
        if config.q_lora_rank is None:
            self.q_proj = Linear(config.hidden_size, query_width)
        else:
            self.q_a_proj = Linear(config.hidden_size, config.q_lora_rank, bias=bias)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, LATENT_NORM_EPS)
            self.q_b_proj = Linear(config.q_lora_rank, query_width)
        self.kv_a_proj_with_mqa = Linear(config.hidden_size, config.kv_lora_rank + config.qk_rope_head_dim, bias=bias)
        self.kv_a_layernorm = RMSNorm(config.kv_lora_rank, LATENT_NORM_EPS)
        self.kv_b_proj = Linear(config.kv_lora_rank, heads * (config.qk_nope_head_dim + config.v_head_dim))
        self.o_proj = Linear(heads * config.v_head_dim, config.hidden_size, bias=bias)
        self.indexer = Indexer(config) if config.sparse and not config.index_shared(layer) else None
        self.rotate = rotate_interleaved if config.rope_interleave else rotate_half_split

    def forward(
        self, x: Tensor, context: AttentionContext, selected: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """x [B, S, D], selected [B, S, K] positions to attend to (replayed or shared) -> output [B, S, D], selected
        [B, S, K] (None where every visible key is seen), KL [B, S]."""
        q_latent, q = self._queries(x, context)
        rows = self._rows(x, context)
        index = self._index(x, q_latent, context)
        view = context.cache
        if view is not None:
            view.write(self.layer, rows, None if index is None else index[1])
        if isinstance(view, FlatView):
            out, selected = self._attend_flat(q, index, view, context.sparse, selected)
            return self.o_proj(out.flatten(2)), selected, None
        keys = _Keys(None if view else rows, view, self.layer)
        if index is not None and view is not None:
            index = (index[0], view.index_keys(self.layer), index[2])
        if not context.sparse or context.seen.length <= self.config.index_topk:
            selected = None
        elif selected is None:
            selected = indexer_topk(*self._needed(index), context.seen, self.config.index_topk)
        out = self._attend(q, keys, context.seen, selected)
        kl = self._indexer_kl(q, keys, index, selected, context)
        if context.probe is not None:
            self._probe(q, keys, index, context)
        return self.o_proj(out.flatten(2)), selected, kl

    def _attend_flat(
        self, q: tuple[Tensor, Tensor], index: Index | None, view: FlatView, sparse: bool, selected: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """[1, M, H, V] and the selection [1, M, index_topk] of a flat list. A sparse model takes one form over one
        width for every token; a dense one attends rectangle by rectangle."""
        if not sparse:
            parts = []
            for part, rectangle in view.parts:
                here = (each[0, part].unflatten(0, rectangle.positions.shape) for each in q)
                keys = _Keys(None, rectangle, self.layer)
                seen = Visibility(rectangle.positions, rectangle.length)
                parts.append(self._attend((next(here), next(here)), keys, seen, None).flatten(0, 1))
            return torch.cat(parts).unsqueeze(0), None
        if selected is None:
            queries, _, weights = self._needed(index)
            chosen = []
            for part, rectangle in view.parts:
                shape = rectangle.positions.shape
                found = indexer_topk(
                    queries[0, part].unflatten(0, shape),
                    rectangle.index_keys(self.layer),
                    weights[0, part].unflatten(0, shape),
                    Visibility(rectangle.positions, rectangle.length),
                    self.config.index_topk,
                ).flatten(0, 1)
                chosen.append(F.pad(found, (0, self.config.index_topk - found.shape[-1]), value=-1))
            selected = torch.cat(chosen).unsqueeze(0)
        return self._fetched(q, view.storage(self.layer), view.in_storage(selected)), selected

    def _needed(self, index: Index | None) -> Index:
        if index is None:
            raise ValueError(f"layer {self.layer} shares a selection, and none was made before it")
        return index

    def _queries(self, x: Tensor, context: AttentionContext) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The normed query latent (the input itself in a model without one) and q_nope, q_rope [B, S, H, .]."""
        config = self.config
        if config.q_lora_rank is None:
            q_latent, q = x, self.q_proj(x)
        else:
            q_latent = self.q_a_layernorm(self.q_a_proj(x))
            q = self.q_b_proj(q_latent)
        q = q.unflatten(-1, (config.num_attention_heads, -1))
        q_nope, q_rope = q.split((config.qk_nope_head_dim, config.qk_rope_head_dim), dim=-1)
        return q_latent, (q_nope, self.rotate(q_rope, context.cos, context.sin))

    def _rows(self, x: Tensor, context: AttentionContext) -> Tensor:
        """[B, S, W]: the normed latent and the rotated rope key."""
        config = self.config
        latent, k_rope = self.kv_a_proj_with_mqa(x).split((config.kv_lora_rank, config.qk_rope_head_dim), dim=-1)
        k_rope = self.rotate(k_rope.unsqueeze(2), context.cos, context.sin).squeeze(2)
        return torch.cat((self.kv_a_layernorm(latent).to(k_rope.dtype), k_rope), dim=-1)

    def _index(self, x: Tensor, q_latent: Tensor, context: AttentionContext) -> Index | None:
        """The index projections where they are used. The indexer learns from its KL alone, the trunk never from it."""
        selects = context.sparse and context.seen.length > self.config.index_topk
        wanted = selects or context.indexer_loss or context.cache or context.probe is not None
        if self.indexer is None or not wanted:
            return None
        index: Index = self.indexer(x.detach(), q_latent.detach(), context.cos, context.sin)
        return index

    def _attend(self, q: tuple[Tensor, Tensor], keys: _Keys, seen: Visibility, selected: Tensor | None) -> Tensor:
        """[B, S, H, V]. Queries stand in order, so a selection's first ones see few keys and its last ones many."""
        queries = q[0].shape[1]
        if selected is None:
            return self._expanded(q, keys, seen) if queries >= FEW_QUERIES else self._absorbed(q, keys, seen)
        expanded = self._expanded_queries(seen, queries)
        parts = []
        if expanded:
            part = slice(0, expanded)
            here = seen.rows(part)
            chosen = None if here.length <= self.config.index_topk else selected[:, part]
            parts.append(self._expanded(_rows_of(q, part), keys, here, chosen))
        if expanded < queries:
            part = slice(expanded, queries)
            parts.append(self._fetched(_rows_of(q, part), keys.storage, keys.in_storage(selected[:, part])))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _expanded_queries(self, seen: Visibility, queries: int) -> int:
        """How many of the first queries see so few keys that the expanded form under a mask is the cheaper one."""
        config = self.config
        pair_expanded = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
        pair_fetched = 2 * config.kv_lora_rank + config.qk_rope_head_dim
        limit = config.index_topk * pair_fetched / (pair_expanded * MASKED_PAIR_COST)
        count = int((seen.positions.amax(0) < limit).sum())
        return count if count >= FEW_QUERIES else 0

    def _expanded(
        self, q: tuple[Tensor, Tensor], keys: _Keys, seen: Visibility, selected: Tensor | None = None
    ) -> Tensor:
        """[B, S, H, V] with keys and values of all heads made from the rows."""
        k, v = self._expand(keys.rows[:, : seen.length])
        return attend_mha(torch.cat(q, dim=-1), k, v, seen, self.config.softmax_scale, selected)

    def _expand(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """k [B, L, H, nope + rope] and v [B, L, H, V] of rows [B, L, W]."""
        config = self.config
        latent, k_rope = rows.split((config.kv_lora_rank, config.qk_rope_head_dim), dim=-1)
        both = self.kv_b_proj(latent).unflatten(-1, (config.num_attention_heads, -1))
        k_nope, v = both.split((config.qk_nope_head_dim, config.v_head_dim), dim=-1)
        shared = k_rope.unsqueeze(2).expand(-1, -1, config.num_attention_heads, -1)
        return torch.cat((k_nope, shared.to(k_nope.dtype)), dim=-1), v

    def _absorbed(self, q: tuple[Tensor, Tensor], keys: _Keys, seen: Visibility) -> Tensor:
        """[B, S, H, V] with the key expansion in the query and the value expansion behind."""
        config, w_v = self.config, self._expansions()[1]
        out = attend_mqa(self._absorb(q, keys.rows), keys.rows, config.kv_lora_rank, seen, config.softmax_scale)
        return _per_head(out, w_v.transpose(1, 2))

    def _fetched(self, q: tuple[Tensor, Tensor], storage: Tensor, places: Tensor) -> Tensor:
        """[B, S, H, V] over the rows of storage [N, W] at places [B S, K] alone."""
        config, w_v = self.config, self._expansions()[1]
        absorbed = self._absorb(q, storage).flatten(0, 1)
        out = attend_selected(absorbed, storage, places, config.kv_lora_rank, config.softmax_scale)
        return _per_head(out.unflatten(0, q[0].shape[:2]), w_v.transpose(1, 2))

    def _absorb(self, q: tuple[Tensor, Tensor], rows: Tensor) -> Tensor:
        """[B, S, H, W]: queries that meet rows directly."""
        return torch.cat((_per_head(q[0], self._expansions()[0]), q[1]), dim=-1).to(rows.dtype)

    def _expansions(self) -> tuple[Tensor, Tensor]:
        """W_k [H, nope, C] and W_v [H, V, C]."""
        config = self.config
        both = self.kv_b_proj.cast(self.kv_b_proj.weight).view(config.num_attention_heads, -1, config.kv_lora_rank)
        w_k, w_v = both.split((config.qk_nope_head_dim, config.v_head_dim), dim=1)
        return w_k, w_v

    def _indexer_kl(
        self,
        q: tuple[Tensor, Tensor],
        keys: _Keys,
        index: Index | None,
        selected: Tensor | None,
        context: AttentionContext,
    ) -> Tensor | None:
        """[B, S'] of every `indexer_stride`-th query, when the forward asks for it and the layer has an indexer."""
        if context.indexer_loss is None or index is None:
            return None
        part = slice(context.indexer_offset, None, context.indexer_stride)
        some = (index[0][:, part], index[1], index[2][:, part])
        here = _rows_of(q, part)
        if context.indexer_loss == "dense" or selected is None:
            with torch.no_grad():
                k, _ = self._expand(keys.rows)
            return dense_indexer_kl(
                torch.cat(here, dim=-1), k, some, context.seen.rows(part), self.config.softmax_scale
            )
        chosen = selected[:, part]
        places = keys.in_storage(chosen)
        with torch.no_grad():
            absorbed = self._absorb(here, keys.storage).flatten(0, 1)
            target = selected_probabilities(absorbed, keys.storage, places, self.config.softmax_scale)
        scores = selected_index_scores(some[0].flatten(0, 1), some[1].flatten(0, 1), some[2].flatten(0, 1), places)
        return indexer_kl(target.view(chosen.shape), scores.view(chosen.shape), chosen >= 0)

    @torch.no_grad()
    def _probe(self, q: tuple[Tensor, Tensor], keys: _Keys, index: Index | None, context: AttentionContext) -> None:
        assert context.probe is not None
        visible = context.seen.mask()
        k, _ = self._expand(keys.rows)
        probabilities = head_probabilities(torch.cat(q, dim=-1), k, visible, self.config.softmax_scale)
        context.probe.append((probabilities, None if index is None else index_scores(*index), visible))


def _rows_of(q: tuple[Tensor, Tensor], part: slice) -> tuple[Tensor, Tensor]:
    return q[0][:, part], q[1][:, part]


def _per_head(x: Tensor, weight: Tensor) -> Tensor:
    """x [B, S, H, n] times weight [H, n, m] -> [B, S, H, m]: one product per head."""
    heads_first = x.flatten(0, 1).transpose(0, 1)
    return torch.bmm(heads_first, weight).transpose(0, 1).unflatten(0, x.shape[:2])
