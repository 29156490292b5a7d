"""How the indexer learns: KL of the main attention's probabilities against its own.

`p[t,:]` is the attention summed over heads and L1-normalised. Dense warm-up: `KL(p[t,:] || softmax(I[t,:]))` over all
visible keys (report, equation 3). Sparse stage: over the selected set only, p renormalised on it (equation 4). Neither
holds an L x L matrix: the first makes both distributions a tile of queries at a time and again in backward, the second
scores nothing but the selected keys.
"""

# B = batch, T = queries, L = keys, M = B T, N = stored keys, H = index heads, D = index head dim, K = selected

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from baleen.ops.attention import head_probabilities
from baleen.ops.selection import index_scores
from baleen.ops.sparse_attention import RowFetcher
from baleen.ops.visibility import Visibility

TILE_BYTES = 64 << 20
"""Memory for the attention logits of all heads of one tile."""

Index = tuple[Tensor, Tensor, Tensor]
"""Queries [B, T, H, D], keys [B, L, D] and weights [B, T, H] (scales included) of the indexer."""


def indexer_kl(target: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
    """KL per query [..., T] in fp32 over the keys that mask [..., T, L] shows; 0 for a query that sees nothing.

    target [..., T, L]: attention probabilities (renormalised here over the mask); scores [..., T, L]: index scores.
    """
    dtype = torch.promote_types(scores.dtype, torch.float32)
    target = target.to(dtype) * mask
    target = target / target.sum(-1, keepdim=True).clamp(min=1e-20)
    log_index = torch.log_softmax(scores.to(dtype).masked_fill(~mask, -1e30), dim=-1)
    log_target = target.clamp(min=1e-20).log()
    return (target * (log_target - log_index) * mask).sum(-1)


def dense_indexer_kl(q: Tensor, k: Tensor, index: Index, seen: Visibility, scale: float) -> Tensor:
    """KL [B, T] over all visible keys. q [B, T, heads, d] and k [B, L, heads, d] are the attention's, expanded."""
    batch, queries, heads, _ = q.shape
    tile = max(1, TILE_BYTES // (4 * batch * heads * seen.length))
    parts = []
    for start in range(0, queries, tile):
        part = slice(start, min(start + tile, queries))
        here = seen.rows(part)
        index_q, index_k, weights = index[0][:, part], index[1][:, : here.length], index[2][:, part]
        inputs = (q[:, part].detach(), k[:, : here.length].detach(), index_q, index_k, weights, here, scale)
        parts.append(_dense_tile(*inputs) if queries <= tile else checkpoint(_dense_tile, *inputs, use_reentrant=False))
    return torch.cat(parts, dim=1)


def _dense_tile(
    q: Tensor, k: Tensor, index_q: Tensor, index_k: Tensor, weights: Tensor, seen: Visibility, scale: float
) -> Tensor:
    mask = seen.mask()
    return indexer_kl(head_probabilities(q, k, mask, scale), index_scores(index_q, index_k, weights), mask)


def selected_index_scores(q: Tensor, keys: Tensor, weights: Tensor, selected: Tensor) -> Tensor:
    """The scores [M, K] of selected keys alone, differentiable: q [M, H, D], keys [N, D], weights [M, H], selected
    [M, K] row numbers (the scores at -1 are without meaning, and must get no gradient)."""
    return _SelectedScores.apply(q, keys, weights, selected)


class _SelectedScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, keys: Tensor, weights: Tensor, selected: Tensor) -> Tensor:
        dtype = torch.promote_types(q.dtype, torch.float32)
        scores = q.new_empty(selected.shape, dtype=dtype)
        for part, _, fetched, _ in RowFetcher(keys, selected, q.element_size() * (q.shape[2] + 2 * q.shape[1])):
            products = torch.bmm(q[part].to(dtype), fetched.to(dtype).transpose(1, 2)).relu_()
            torch.bmm(weights[part].to(dtype).unsqueeze(1), products, out=scores[part].unsqueeze(1))
        ctx.save_for_backward(q, keys, weights, selected)
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, keys, weights, selected = ctx.saved_tensors
        dtype = grad.dtype
        grad_q, grad_weights = torch.empty_like(q), torch.empty_like(weights)
        grad_keys = torch.zeros_like(keys, dtype=dtype)
        for part, index, fetched, _ in RowFetcher(keys, selected, q.element_size() * (2 * q.shape[2] + 3 * q.shape[1])):
            queries, rows, row_grad = q[part].to(dtype), fetched.to(dtype), grad[part].unsqueeze(1)
            products = torch.bmm(queries, rows.transpose(1, 2)).relu_()
            grad_weights[part] = torch.bmm(products, row_grad.transpose(1, 2)).squeeze(2)
            inner = (products > 0) * (weights[part].to(dtype).unsqueeze(2) * row_grad)
            grad_q[part] = torch.bmm(inner, rows)
            grad_keys.index_add_(0, index, torch.bmm(inner.transpose(1, 2), queries).flatten(0, 1))
        return grad_q, grad_keys.to(keys.dtype), grad_weights, None
