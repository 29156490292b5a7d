"""How the indexer learns: KL of the main attention's probabilities against its own.

`p[t,:]` is the attention summed over heads and L1-normalised. Dense warm-up: `KL(p[t,:] || softmax(I[t,:]))` over all
visible keys (report, equation 3). Sparse stage: over the selected set only, p renormalised on it (equation 4).
"""

from __future__ import annotations

import torch
from torch import Tensor


def indexer_kl(target: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
    """KL per query [B, T] in fp32, over the keys that mask [B, T, L] shows; 0 for a query that sees nothing.

    target [B, T, L]: attention probabilities (renormalised here over the mask); scores [B, T, L]: index scores.
    """
    target = target.float() * mask
    target = target / target.sum(-1, keepdim=True).clamp(min=1e-20)
    log_index = torch.log_softmax(scores.float().masked_fill(~mask, -1e30), dim=-1)
    log_target = target.clamp(min=1e-20).log()
    return (target * (log_target - log_index) * mask).sum(-1)
