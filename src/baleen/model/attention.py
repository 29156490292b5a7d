"""Multi-head latent attention with the lightning indexer: DeepSeek Sparse Attention (report, section 2.1).

One module serves training, prefill and decoding. It makes the query, the latent and the index projections once, decides
which keys each query sees (causality, the token tree, the selection) and hands over to the form of attention that suits
the shape: MHA when all queries share the keys, absorbed MQA over the cache.
"""

# B = batch, S = new tokens, L = keys, H = heads, K = selected

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baleen.model.cache import CacheView
from baleen.model.config import ModelConfig
from baleen.model.layers import Linear, RMSNorm
from baleen.model.rotary import rotate_half_split, rotate_interleaved
from baleen.ops.attention import attend_mha, attend_mqa_masked, attend_mqa_selected, head_probabilities
from baleen.ops.indexer_loss import indexer_kl
from baleen.ops.selection import index_scores, select_topk, select_topk_mask, selection_mask

IndexerLoss = Literal["dense", "selected"]
CAUSAL = None
"""The `visible` of a plain causal batch: no mask has to be built."""


@dataclass
class AttentionContext:
    """What all layers of one forward share."""

    cos: Tensor
    sin: Tensor
    visible: Tensor | None
    """[B, S, L] bool: which keys exist for each query before any selection; None is plain causal."""

    sparse: bool
    cache: CacheView | None = None
    indexer_loss: IndexerLoss | None = None
    indexer_stride: int = 1
    """The KL is taken on every `indexer_stride`-th query from `indexer_offset` on: an unbiased part of the whole."""

    indexer_offset: int = 0
    record: bool = False
    """Return the selected positions (they cost more than the mask that attention needs)."""

    probe: list[tuple[Tensor, Tensor | None, Tensor]] | None = None
    """When a list: each layer appends (attention probabilities, index scores, visible), [B, S, L] each."""


class Indexer(nn.Module):
    """The lightning indexer. Its key is a true LayerNorm; its rope dims come first and rotate half-split."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.dims, self.rope = config.index_n_heads, config.index_head_dim, config.qk_rope_head_dim
        self.wq_b = Linear(config.q_lora_rank, self.heads * self.dims)
        self.wk = Linear(config.hidden_size, self.dims)
        self.k_norm = nn.LayerNorm(self.dims, eps=1e-6)
        self.weights_proj = Linear(config.hidden_size, self.heads)

    def forward(self, x: Tensor, q_latent: Tensor, context: AttentionContext) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, S, D], q_latent [B, S, q_lora] -> q [B, S, H, D_i], k [B, S, D_i], weights [B, S, H] with their
        scales."""
        q = self.wq_b(q_latent).unflatten(-1, (self.heads, self.dims))
        norm = self.k_norm
        k = F.layer_norm(self.wk(x).float(), (self.dims,), norm.weight.float(), norm.bias.float(), norm.eps).to(q.dtype)
        weights = F.linear(x.float(), self.weights_proj.weight.float()) * (self.heads**-0.5 * self.dims**-0.5)
        return self._rotated(q, context), self._rotated(k.unsqueeze(2), context).squeeze(2), weights

    def _rotated(self, x: Tensor, context: AttentionContext) -> Tensor:
        rotated = rotate_half_split(x[..., : self.rope], context.cos, context.sin)
        return torch.cat((rotated, x[..., self.rope :]), dim=-1)


class Attention(nn.Module):
    """MLA, dense or sparse."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        heads = config.num_attention_heads
        self.q_a_proj = Linear(config.hidden_size, config.q_lora_rank)
        self.q_a_layernorm = RMSNorm(config.q_lora_rank, config.rms_norm_eps)
        self.q_b_proj = Linear(config.q_lora_rank, heads * (config.qk_nope_head_dim + config.qk_rope_head_dim))
        self.kv_a_proj_with_mqa = Linear(config.hidden_size, config.kv_lora_rank + config.qk_rope_head_dim)
        self.kv_a_layernorm = RMSNorm(config.kv_lora_rank, config.rms_norm_eps)
        self.kv_b_proj = Linear(config.kv_lora_rank, heads * (config.qk_nope_head_dim + config.v_head_dim))
        self.o_proj = Linear(heads * config.v_head_dim, config.hidden_size)
        self.indexer = Indexer(config) if config.sparse else None

    def forward(
        self, x: Tensor, context: AttentionContext, replay: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """x [B, S, D], replay [B, S, K] positions to attend to -> output [B, S, D], selected [B, S, K], KL [B, S]."""
        config = self.config
        q_latent = self.q_a_layernorm(self.q_a_proj(x))
        q = self.q_b_proj(q_latent).unflatten(-1, (config.num_attention_heads, -1))
        q_nope, q_rope = q.split((config.qk_nope_head_dim, config.qk_rope_head_dim), dim=-1)
        q_rope = rotate_interleaved(q_rope, context.cos, context.sin)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split((config.kv_lora_rank, config.qk_rope_head_dim), dim=-1)
        latent = self.kv_a_layernorm(latent).to(q.dtype)
        k_rope = rotate_interleaved(k_rope.unsqueeze(2), context.cos, context.sin).squeeze(2)
        index = None
        wants_index = context.sparse or context.indexer_loss or context.cache or context.probe is not None
        if self.indexer is not None and wants_index:
            detach = context.indexer_loss is not None  # the indexer learns from its KL alone, the trunk never from it
            index = self.indexer(x.detach() if detach else x, q_latent.detach() if detach else q_latent, context)
        if context.cache is not None:
            out, selected = self._attend_cached(q_nope, q_rope, latent, k_rope, index, context, replay)
            return self.o_proj(out.flatten(2)), selected, None
        out, selected, kl = self._attend_sequence(q_nope, q_rope, latent, k_rope, index, context, replay)
        return self.o_proj(out.flatten(2)), selected, kl

    def _attend_sequence(
        self,
        q_nope: Tensor,
        q_rope: Tensor,
        latent: Tensor,
        k_rope: Tensor,
        index: tuple[Tensor, Tensor, Tensor] | None,
        context: AttentionContext,
        replay: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """All keys are the batch's own: the MHA form, with the selection as a mask."""
        config, length = self.config, latent.shape[1]
        selected, kl = None, None
        visible = mask = context.visible
        selects = context.sparse and length > config.index_topk
        if selects or context.indexer_loss or context.probe is not None:
            visible = mask = visible if visible is not None else causal_mask(length, latent.device)
        if selects and visible is not None:
            selected = replay
            if selected is None and context.record:
                assert index is not None
                with torch.no_grad():
                    selected = select_topk(index_scores(*index), visible, config.index_topk)
            if selected is not None:
                mask = selection_mask(selected, length) & visible
            else:
                assert index is not None
                with torch.no_grad():
                    mask = select_topk_mask(index_scores(*index), visible, config.index_topk)
        expanded = self.kv_b_proj(latent).unflatten(-1, (config.num_attention_heads, -1))
        k_nope, v = expanded.split((config.qk_nope_head_dim, config.v_head_dim), dim=-1)
        k = torch.cat((k_nope, k_rope.unsqueeze(2).expand(-1, -1, config.num_attention_heads, -1)), dim=-1)
        q = torch.cat((q_nope, q_rope), dim=-1)
        plain_causal = context.visible is None and not selects
        out = attend_mha(q, k, v, None if plain_causal else mask, config.softmax_scale)
        if context.probe is not None:
            assert visible is not None
            scores = None if index is None else index_scores(*index)
            context.probe.append((head_probabilities(q, k, visible, config.softmax_scale), scores, visible))
        if context.indexer_loss is not None:
            assert index is not None
            assert mask is not None
            rows = slice(context.indexer_offset, None, context.indexer_stride)
            seen = mask[:, rows].expand(q.shape[0], -1, -1)
            target = head_probabilities(q[:, rows], k, seen, config.softmax_scale)
            kl = indexer_kl(target, index_scores(index[0][:, rows], index[1], index[2][:, rows]), seen)
        return out, selected, kl

    def _attend_cached(
        self,
        q_nope: Tensor,
        q_rope: Tensor,
        latent: Tensor,
        k_rope: Tensor,
        index: tuple[Tensor, Tensor, Tensor] | None,
        context: AttentionContext,
        replay: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """New queries over a long cache: the absorbed form."""
        assert context.cache is not None
        config, view = self.config, context.cache
        view.write(self.layer, latent, k_rope, None if index is None else index[1])
        visible = context.visible
        assert visible is not None
        kv_b = self.kv_b_proj.cast(self.kv_b_proj.weight).view(config.num_attention_heads, -1, config.kv_lora_rank)
        w_k, w_v = kv_b.split((config.qk_nope_head_dim, config.v_head_dim), dim=1)
        q_latent = torch.einsum("bthn,hnc->bthc", q_nope, w_k)
        selected = None
        if context.sparse and index is not None and view.length > config.index_topk:
            selected = replay
            if selected is None:
                scores = index_scores(index[0], view.index_keys(self.layer), index[2])
                selected = select_topk(scores, visible, config.index_topk)
        if selected is not None and q_nope.shape[1] == 1:
            q_latent, q_rope = q_latent.transpose(0, 1), q_rope.transpose(0, 1)  # one sequence of B queries
            found = view.in_storage(selected)
            out = attend_mqa_selected(q_latent, q_rope, *view.storage(self.layer), found, config.softmax_scale)
            out = out.transpose(0, 1)
        else:
            latent, k_rope = view.keys(self.layer)
            mask = visible if selected is None else selection_mask(selected, view.length) & visible
            out = attend_mqa_masked(q_latent, q_rope, latent, k_rope, mask, config.softmax_scale)
        return torch.einsum("bthc,hvc->bthv", out, w_v), selected


def causal_mask(length: int, device: torch.device) -> Tensor:
    """[1, length, length] bool, true on and below the diagonal."""
    return torch.ones(1, length, length, dtype=torch.bool, device=device).tril_()
