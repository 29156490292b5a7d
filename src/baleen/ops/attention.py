"""Multi-head latent attention, in its two equal forms.

MHA form: keys and values are expanded from the latent for all heads; right where many queries share the keys
(training). MQA (absorbed) form: the key expansion is folded into the query and the value expansion into the output,
so that all heads share one latent per token; right where few queries meet a long cache (decoding), and where each
query has its own set. `softmax(scale (q_nope . W_k c + q_rope . k_rope)) W_v c`.
"""

# B = batch, T = queries, L = keys, H = heads, N = nope dims, R = rope dims, V = value dims, C = latent dims, K =
# selected

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attend_mha(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attention [B, T, H, V] of q [B, T, H, N+R], k [B, L, H, N+R], v [B, L, H, V].

    mask [B, T, L] bool, true where seen; None means causal over T = L. Values are padded to the key width when they
    differ, because the fused kernel on CPU needs one width and is several times faster than the fallback.
    """
    width, value_width = q.shape[-1], v.shape[-1]
    if value_width < width:
        v = F.pad(v, (0, width - value_width))
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=None if mask is None else mask.unsqueeze(1),
        is_causal=mask is None,
        scale=scale,
    )
    return out.transpose(1, 2)[..., :value_width]


@torch.no_grad()
def head_probabilities(q: Tensor, k: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Attention probabilities summed over heads and L1-normalised, [B, T, L] in fp32: what the indexer learns from.

    q [B, T, H, N+R], k [B, L, H, N+R], mask [B, T, L]. Without gradient.
    """
    logits = torch.matmul(q.transpose(1, 2), k.permute(0, 2, 3, 1)) * scale
    return torch.softmax(logits.masked_fill(~mask.unsqueeze(1), -torch.inf), dim=-1, dtype=torch.float32).mean(dim=1)


def attend_mqa_selected(
    q_latent: Tensor, q_rope: Tensor, latent: Tensor, k_rope: Tensor, selected: Tensor, scale: float
) -> Tensor:
    """Absorbed attention over each query's own set: [B, T, H, C] in the latent space (expand it with W_v after).

    q_latent [B, T, H, C] (W_k folded in), q_rope [B, T, H, R], latent [B, L, C], k_rope [B, L, R], selected [B, T, K]
    positions, -1 for none. Work and memory are O(T K).
    """
    start = (torch.arange(len(latent), device=selected.device) * latent.shape[1]).view(-1, 1, 1)
    index = (selected.clamp(min=0) + start).flatten()
    # Whole rows are taken, which is several times faster than gathering element by element.
    keys = latent.flatten(0, 1).index_select(0, index).view(*selected.shape, -1)
    ropes = k_rope.flatten(0, 1).index_select(0, index).view(*selected.shape, -1)
    logits = (q_latent @ keys.transpose(2, 3) + q_rope @ ropes.transpose(2, 3)) * scale
    logits = logits.masked_fill((selected < 0).unsqueeze(2), -torch.inf)
    return torch.softmax(logits, dim=-1, dtype=torch.float32).to(keys.dtype) @ keys


def attend_mqa_masked(
    q_latent: Tensor, q_rope: Tensor, latent: Tensor, k_rope: Tensor, mask: Tensor, scale: float
) -> Tensor:
    """Absorbed attention over the keys that mask [B, T, L] shows: [B, T, H, C]. For chunks of queries over a cache."""
    batch, queries, heads, _ = q_latent.shape
    q = torch.cat((q_latent, q_rope), dim=-1).reshape(batch, queries * heads, -1)
    logits = torch.bmm(q, torch.cat((latent, k_rope), dim=-1).transpose(1, 2)).view(batch, queries, heads, -1) * scale
    logits = logits.masked_fill(~mask.unsqueeze(2), -torch.inf)
    weights = torch.softmax(logits, dim=-1, dtype=torch.float32).to(latent.dtype)
    return torch.bmm(weights.view(batch, queries * heads, -1), latent).view(batch, queries, heads, -1)
