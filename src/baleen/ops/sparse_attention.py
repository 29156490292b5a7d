"""Attention over each query's own set of keys, in the absorbed (MQA) form, with backward: O(M K) work and memory.

All heads share one row per token, latent and rope key side by side; the latent part is the value as well:
`o[m,h] = sum_j softmax_j(scale q[m,h] . row_j)[j] row_j[:C]` over the selected rows j of query m. A tile of queries at
a time fetches its rows, which several products then read from the cache; backward fetches them again, so that between
the two nothing of size M K is kept.
"""

# M = queries, H = heads, W = row width (latent + rope), C = latent dims, N = stored rows, K = selected

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE_BYTES = 6 << 20
"""Rows and logits of one tile. Larger tiles leave the processor's cache (and memory that is fresh for every tile)."""

NOTHING = -1e30
"""The logit of an empty place; finite, so that a query without keys gives 0 and not NaN."""


def attend_selected(q: Tensor, rows: Tensor, selected: Tensor, value_width: int, scale: float) -> Tensor:
    """Attention [M, H, C] of q [M, H, W] (the key expansion folded in, then the rope part) over rows [N, W].

    selected [M, K] int row numbers, -1 for none. A query that selects nothing gets zeros. Expand the result with W_v.
    """
    return _AttendSelected.apply(q, rows, selected, value_width, scale)


@torch.no_grad()
def selected_probabilities(q: Tensor, rows: Tensor, selected: Tensor, scale: float) -> Tensor:
    """The attention's probabilities averaged over heads, [M, K] fp32, without gradient: what the indexer learns
    from."""
    queries, heads, width = q.shape
    mean = q.new_empty(queries, selected.shape[1], dtype=_accurate(q))
    for part, _, keys, empty in RowFetcher(rows, selected, q.element_size() * (width + 2 * heads)):
        torch.mean(_weights(q[part] * scale, keys, empty), dim=1, dtype=mean.dtype, out=mean[part])
    return mean


def attend_selected_reference(q: Tensor, rows: Tensor, selected: Tensor, value_width: int, scale: float) -> Tensor:
    """The same, plainly: every query's rows at once."""
    keys = rows[selected.clamp(min=0).long()]
    hidden = (selected < 0).unsqueeze(1)
    logits = torch.einsum("mhw,mkw->mhk", q, keys) * scale
    weights = torch.softmax(logits.masked_fill(hidden, NOTHING), dim=-1).masked_fill(hidden, 0.0)
    return torch.einsum("mhk,mkc->mhc", weights, keys[..., :value_width])


class RowFetcher:
    """Fetches the selected rows of one tile after another into the same memory."""

    def __init__(self, rows: Tensor, selected: Tensor, bytes_per_place: int) -> None:
        self.rows, self.selected = rows, selected
        count = selected.shape[1]
        self.tile = max(1, min(TILE_BYTES // (count * bytes_per_place), selected.shape[0]))
        self.space = rows.new_empty(self.tile * count, rows.shape[1])

    def __iter__(self) -> Any:
        """Yields (slice of queries, row numbers [T K], fetched [T, K, W], empty [T, 1, K] or None)."""
        for start in range(0, self.selected.shape[0], self.tile):
            part = slice(start, min(start + self.tile, self.selected.shape[0]))
            chosen = self.selected[part]
            index = chosen.reshape(-1).long()  # adding by int32 numbers is three times slower
            empty = None
            if int(index.min()) < 0:
                empty, index = (chosen < 0).unsqueeze(1), index.clamp(min=0)
            fetched = torch.index_select(self.rows, 0, index, out=self.space[: index.numel()])
            yield part, index, fetched.view(*chosen.shape, -1), empty


def _weights(q: Tensor, keys: Tensor, empty: Tensor | None) -> Tensor:
    """[T, H, K] probabilities in the keys' dtype, of queries that carry the scale already."""
    logits = torch.bmm(q, keys.transpose(1, 2))
    if empty is None:
        return torch.softmax(logits, dim=-1, dtype=_accurate(q)).to(keys.dtype)
    weights = torch.softmax(logits.masked_fill_(empty, NOTHING), dim=-1, dtype=_accurate(q))
    return weights.masked_fill_(empty, 0.0).to(keys.dtype)


def _accurate(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


class _AttendSelected(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, rows: Tensor, selected: Tensor, value_width: int, scale: float) -> Tensor:
        queries, heads, width = q.shape
        out = q.new_empty(queries, heads, value_width)
        for part, _, keys, empty in RowFetcher(rows, selected, q.element_size() * (width + 2 * heads)):
            torch.bmm(_weights(q[part] * scale, keys, empty), keys[..., :value_width], out=out[part])
        ctx.save_for_backward(q, rows, selected, out)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, rows, selected, out = ctx.saved_tensors
        grad = grad.contiguous()
        value_width, (_, heads, width) = out.shape[2], q.shape
        grad_q = torch.empty_like(q)
        grad_rows = torch.zeros_like(rows, dtype=_accurate(rows))
        size = q.element_size()
        inner = (grad * out).sum(-1, keepdim=True)
        for part, index, keys, empty in RowFetcher(rows, selected, size * (width + 2 * heads)):
            scaled = q[part] * ctx.scale
            weights = _weights(scaled, keys, empty)
            grad_logits = torch.bmm(grad[part], keys[..., :value_width].transpose(1, 2))
            grad_logits.sub_(inner[part]).mul_(weights)
            torch.bmm(grad_logits, keys, out=grad_q[part])
            # A row is key and value: both of its gradients in one product.
            by_place = torch.cat((grad_logits, weights), dim=1).transpose(1, 2)
            grad_keys = torch.bmm(by_place, torch.cat((scaled, F.pad(grad[part], (0, width - value_width))), dim=1))
            grad_rows.index_add_(0, index, grad_keys.flatten(0, 1).to(grad_rows.dtype))
        return grad_q.mul_(ctx.scale), grad_rows.to(rows.dtype), None, None, None
