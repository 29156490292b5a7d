"""Log-probabilities of a large vocabulary, in chunks: the full [tokens, vocabulary] matrix never exists at once."""

# M = positions, D = hidden, V = vocabulary

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def token_logprobs(hidden: Tensor, head: Tensor, targets: Tensor, *, chunk: int = 4096) -> Tensor:
    """`log softmax(head hidden)[target]` in fp32, [M], of hidden [M, D], head [V, D], targets [M].

    Each chunk's logits are dropped after use and computed again in backward, so memory is O(chunk V).
    """
    if hidden.shape[0] <= chunk:
        return _chunk_logprobs(hidden, head, targets)
    parts = zip(hidden.split(chunk), targets.split(chunk), strict=True)
    return torch.cat([checkpoint(_chunk_logprobs, h, head, t, use_reentrant=False) for h, t in parts])


def _chunk_logprobs(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    logits = torch.nn.functional.linear(hidden, head).float()
    return -torch.nn.functional.cross_entropy(logits, targets, reduction="none")
