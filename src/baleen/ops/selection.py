"""Token selection: the indexer's scores, and the top-k of each query under one tie rule.

`I[t,s] = sum_h w[t,h] ReLU(q[t,h] . k[s])` (report, equation 1), then the k best visible positions of each query.
ReLU makes exact ties common, and `torch.topk` breaks them differently for different row lengths, so prefill and decode
would select different tokens. The rule here: the higher score first, then the LOWER position.

Scores decide, so they are always made in fp32 (or float64), and by products whose bits do not depend on how many
queries or keys share the call. They exist for one tile of rows at a time; `topk.py` takes the best of each row.
"""

# B = batch, T = queries, L = keys, H = index heads, D = index head dim, K = index_topk

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from baleen.ops.topk import topk_positions
from baleen.ops.visibility import Visibility

SCORE_BYTES = 64 << 20
"""Memory for the scores of one row tile."""

PRODUCT_ROWS, PRODUCT_SIZE = 1024, 1 << 21
"""Rows and values of one matrix product: large enough for full speed, small enough that it stays in the cache."""

LEAST_ROWS, LEAST_KEYS = 8, 32
"""Smaller products take another path through the matrix library and round differently; they are padded to this."""


def index_scores(q: Tensor, k: Tensor, weights: Tensor) -> Tensor:
    """Scores [B, T, L] of queries [B, T, H, D] against keys [B, L, D], weights [B, T, H] (scales included).

    The whole matrix, differentiable: for the loss and for small shapes. fp32, or float64 when the queries are.
    """
    batch, queries, heads, dims = q.shape
    dtype = _score_dtype(q)
    products = torch.bmm(q.reshape(batch, queries * heads, dims).to(dtype), k.to(dtype).transpose(1, 2))
    products = torch.relu(products).view(batch, queries, heads, -1)
    return torch.matmul(weights.to(dtype).unsqueeze(2), products).squeeze(2)


@torch.no_grad()
def indexer_topk(
    q: Tensor, k: Tensor, weights: Tensor, seen: Visibility, topk: int, *, score_bytes: int = SCORE_BYTES
) -> Tensor:
    """Each query's best visible positions, [B, T, min(topk, L)] int32, ascending; -1 (at the end) where it sees fewer.

    q [B, T, H, D], k [B, L, D], weights [B, T, H]. Scores exist for as many queries at a time as fit `score_bytes` (one
    at least). The selection of a query depends on nothing but its own row: not on tiles, batch or other queries.
    """
    batch, queries, heads, _ = q.shape
    selected = torch.full((batch, queries, min(topk, seen.length)), -1, dtype=torch.int32, device=q.device)
    dtype = _score_dtype(q)
    widest = score_bytes // (dtype.itemsize * batch * max(seen.length, 1))
    tile = max(1, min(widest, PRODUCT_ROWS // (heads * batch), queries))
    space = torch.empty(batch * tile * seen.length, dtype=dtype, device=q.device)
    for start in range(0, queries, tile):
        part = slice(start, min(start + tile, queries))
        seen_here = seen.rows(part)
        if seen_here.length <= topk:
            selected[:, part, : seen_here.length] = _all_visible(seen_here)
            continue
        scores = space[: batch * (part.stop - start) * seen_here.length].view(batch, -1, seen_here.length)
        _score_tile(q[:, part], k[:, : seen_here.length], weights[:, part], scores)
        selected[:, part] = _select(seen_here.hide(scores), topk)
    return selected


def select_topk(scores: Tensor, visible: Tensor, topk: int) -> Tensor:
    """The same from given scores [B, T, L] and visible [B or 1, T, L] bool: positions [B, T, min(topk, L)] int32."""
    return _select(scores.masked_fill(~visible, -torch.inf), topk)


def select_topk_reference(scores: Tensor, visible: Tensor, topk: int) -> Tensor:
    """The same by a stable sort: the plain statement of the rule."""
    length = scores.shape[-1]
    order = scores.masked_fill(~visible, -torch.inf).sort(dim=-1, descending=True, stable=True).indices
    order = order[..., : min(topk, length)]
    order = order.masked_fill(~visible.expand_as(scores).gather(-1, order), length).sort(-1).values
    return order.masked_fill(order == length, -1).int()


def selection_mask(selected: Tensor, length: int) -> Tensor:
    """Bool [B, T, length], true at the selected positions [B, T, K] (-1 is nothing)."""
    mask = torch.zeros(*selected.shape[:-1], length + 1, dtype=torch.bool, device=selected.device)
    mask.scatter_(-1, selected.long().masked_fill(selected < 0, length), True)
    return mask[..., :length]


def _score_dtype(q: Tensor) -> torch.dtype:
    return torch.promote_types(q.dtype, torch.float32)


def _score_tile(q: Tensor, k: Tensor, weights: Tensor, scores: Tensor) -> None:
    """Writes the scores [B, T, L] of one row tile, a block of keys at a time."""
    batch, queries, heads, dims = q.shape
    length, dtype = scores.shape[-1], scores.dtype
    rows = q.to(dtype).transpose(1, 2).reshape(batch, heads * queries, dims)
    if rows.shape[1] < LEAST_ROWS:
        rows = F.pad(rows, (0, 0, 0, LEAST_ROWS - rows.shape[1]))
    weight = weights.to(dtype).unsqueeze(-1)
    width = max(LEAST_KEYS, min(PRODUCT_SIZE // (batch * rows.shape[1]), length))
    space = torch.empty(batch * rows.shape[1] * width, dtype=dtype, device=q.device)
    for start in range(0, length, width):
        # The last block reaches back, or into padding, so that it is never too narrow.
        first = max(0, min(start, length - LEAST_KEYS))
        keys = k[:, first : min(start + width, length)].to(dtype)
        if keys.shape[1] < LEAST_KEYS:
            keys = F.pad(keys, (0, 0, 0, LEAST_KEYS - keys.shape[1]))
        products = space[: batch * rows.shape[1] * keys.shape[1]].view(batch, rows.shape[1], keys.shape[1])
        if batch == 1:
            torch.mm(rows[0], keys[0].t(), out=products[0])
        else:
            torch.bmm(rows, keys.transpose(1, 2), out=products)
        products.relu_()
        block = scores[..., first : min(start + width, length)]
        for head in range(heads):
            product = products[:, head * queries : (head + 1) * queries, : block.shape[-1]]
            if head == 0:
                torch.mul(product, weight[:, :, head], out=block)
            else:
                block.addcmul_(product, weight[:, :, head])


def _all_visible(seen: Visibility) -> Tensor:
    """[B or 1, T, L] int32: the visible positions in order, then -1."""
    positions = torch.arange(seen.length, dtype=torch.int32, device=seen.positions.device)
    mask = seen.mask()
    if seen.subtree_end is None:
        return torch.where(mask, positions, -1)
    ordered = torch.where(mask, positions, seen.length).sort(-1).values
    return ordered.masked_fill_(ordered == seen.length, -1)


def _select(scores: Tensor, topk: int) -> Tensor:
    """Positions [B, T, min(topk, L)] int32, ascending, of scores [B, T, L] in which hidden keys are -inf."""
    length = scores.shape[-1]
    if length > topk:
        return topk_positions(scores.flatten(0, 1), topk).unflatten(0, scores.shape[:2])
    positions = torch.arange(length, dtype=torch.int32, device=scores.device)
    ordered = torch.where(scores > -torch.inf, positions, length).sort(-1).values
    return ordered.masked_fill_(ordered == length, -1)
