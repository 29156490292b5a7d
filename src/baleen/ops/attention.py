"""Multi-head latent attention over shared keys, in its two equal forms.

MHA form: keys and values are expanded from the latent for all heads; right where many queries share the keys. MQA
(absorbed) form: the key expansion is folded into the query and the value expansion into the output, so that all heads
share one row per token; right where few queries meet a long cache. `softmax(scale (q_nope . W_k c + q_rope . k_rope))
W_v c`. Where each query has its own few keys, `sparse_attention.py` has the absorbed form that fetches only those.

Masks and logits exist for a tile of queries at a time.
"""

# B = batch, T = queries, L = keys, H = heads, N = nope dims, R = rope dims, V = value dims, C = latent dims,
# W = C + R, K = selected

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from baleen.ops.selection import selection_mask
from baleen.ops.visibility import Visibility

LOGIT_BYTES = 64 << 20
"""Memory for the logits of one tile in the absorbed form."""

MASKED_ROWS = 512
"""Queries that share one mask: late keys are then cut off for early queries, which a mask alone does not save."""


def attend_mha(
    q: Tensor, k: Tensor, v: Tensor, seen: Visibility, scale: float, selected: Tensor | None = None
) -> Tensor:
    """Attention [B, T, H, V] of q [B, T, H, N+R], k [B, L, H, N+R], v [B, L, H, V]; zeros for a query without keys.

    selected [B, T, K] int: of the visible keys only these positions count (-1 is nothing). Values are padded to the key
    width when they differ, because the fused kernel on CPU needs one width and is several times faster than the
    fallback.
    """
    value_width = v.shape[-1]
    if value_width < q.shape[-1]:
        v = F.pad(v, (0, q.shape[-1] - value_width))
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if selected is None and seen.is_causal_square:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        return out.transpose(1, 2)[..., :value_width]
    tiles = []
    for start in range(0, q.shape[2], MASKED_ROWS):
        part = slice(start, min(start + MASKED_ROWS, q.shape[2]))
        here = seen.rows(part)
        keys, values = k[:, :, : here.length], v[:, :, : here.length]
        if selected is None and start == 0 and here.is_causal_square:
            tiles.append(F.scaled_dot_product_attention(q[:, :, part], keys, values, is_causal=True, scale=scale))
            continue
        mask = here.mask()
        if selected is not None:
            mask = mask & selection_mask(selected[:, part], here.length)
        tiles.append(
            F.scaled_dot_product_attention(q[:, :, part], keys, values, attn_mask=mask.unsqueeze(1), scale=scale)
        )
    return torch.cat(tiles, dim=2).transpose(1, 2)[..., :value_width]


def attend_mqa(q: Tensor, rows: Tensor, value_width: int, seen: Visibility, scale: float) -> Tensor:
    """Absorbed attention over all visible keys, [B, T, H, C] (expand it with W_v after); zeros where nothing is seen.

    q [B, T, H, W] (W_k folded in, then the rope part), rows [B, L, W] (latent, rope key).
    """
    batch, queries, heads, width = q.shape
    tile = max(1, LOGIT_BYTES // (4 * batch * heads * max(seen.length, 1)))
    tiles = []
    for start in range(0, queries, tile):
        part = slice(start, min(start + tile, queries))
        here = seen.rows(part)
        keys = rows[:, : here.length]
        logits = torch.bmm(q[:, part].reshape(batch, -1, width) * scale, keys.transpose(1, 2))
        hidden = ~here.mask().unsqueeze(2)
        logits = logits.view(batch, -1, heads, here.length).masked_fill(hidden, -1e30)
        weights = torch.softmax(logits, dim=-1, dtype=torch.promote_types(q.dtype, torch.float32))
        weights = weights.masked_fill(hidden, 0.0).to(rows.dtype).view(batch, -1, here.length)
        tiles.append(torch.bmm(weights, keys[..., :value_width]).view(batch, -1, heads, value_width))
    return torch.cat(tiles, dim=1)


def attend_reference(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """The formula for mask [B, T, L] and expanded keys and values, all at once; zeros for a query without keys."""
    logits = torch.einsum("bthd,blhd->bhtl", q, k) * scale
    hidden = ~mask.unsqueeze(1)
    weights = torch.softmax(logits.masked_fill(hidden, -1e30), dim=-1).masked_fill(hidden, 0.0)
    return torch.einsum("bhtl,blhv->bthv", weights, v)


@torch.no_grad()
def head_probabilities(q: Tensor, k: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Attention probabilities averaged over heads, [B, T, L] in fp32: what the indexer learns from.

    q [B, T, H, N+R], k [B, L, H, N+R], mask [B or 1, T, L]. Without gradient; the logits of all heads exist at once.
    """
    logits = torch.matmul(q.transpose(1, 2) * scale, k.permute(0, 2, 3, 1))
    hidden = ~mask.unsqueeze(1)
    dtype = torch.promote_types(q.dtype, torch.float32)
    weights = torch.softmax(logits.masked_fill_(hidden, -1e30), dim=-1, dtype=dtype)
    return weights.masked_fill_(hidden, 0.0).mean(dim=1)
