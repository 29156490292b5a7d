"""From logits to tokens: temperature, top-k, top-p, and what was kept.

One uniform number per sequence and step decides, drawn from the request's own seed, so that a request's tokens do not
depend on its neighbours. The kept set is recorded here, inside the sampler: rebuilding it later from probabilities
gives another set (report, keep sampling mask).
"""

# B = sequences, V = vocabulary

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class SamplingParams:
    """How one request is sampled. temperature 0 takes the most likely token; top_p 1 and top_k 0 cut nothing."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 256
    seed: int = 0
    stop_ids: tuple[int, ...] = ()
    """Ends a sequence, beside the end-of-sentence token."""

    trace: bool = False
    """Record experts and selected positions; log-probabilities and kept sets are always there."""

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature {self.temperature} must not be negative")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p} must be above 0 and at most 1")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens {self.max_tokens} must be at least 1")


@dataclass(frozen=True)
class Draw:
    """The tokens [B], their log-probabilities [B] under what was sampled from, and the kept set of each (None =
    all)."""

    tokens: list[int]
    logprobs: list[float]
    kept: list[NDArray[np.int32] | None]


def uniforms(params: SamplingParams) -> NDArray[np.float64]:
    """A request's random numbers, one for each token that it may sample."""
    return np.random.Generator(np.random.Philox(params.seed)).random(params.max_tokens)


@torch.no_grad()
def draw(logits: Tensor, params: Sequence[SamplingParams], uniform: Sequence[float]) -> Draw:
    """Samples one token for each row of logits [B, V] (fp32); uniform [B] in [0, 1)."""
    temperature = torch.tensor([p.temperature if p.temperature > 0 else 1.0 for p in params]).unsqueeze(1)
    logp = torch.log_softmax(logits.float() / temperature, dim=-1)
    cuts = [i for i, p in enumerate(params) if p.top_p < 1 or p.top_k or p.temperature == 0]
    kept: list[NDArray[np.int32] | None] = [None] * len(params)
    if cuts:
        mask = _kept_mask(logp[cuts], [params[i] for i in cuts])
        logp[cuts] = torch.log_softmax(logp[cuts].masked_fill(~mask, -torch.inf), dim=-1)
        for row, i in enumerate(cuts):
            kept[i] = mask[row].nonzero().flatten().numpy().astype(np.int32)
    cumulative = logp.double().exp().cumsum(-1)
    target = torch.tensor(uniform, dtype=torch.float64).unsqueeze(1) * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, target, right=True).clamp(max=logits.shape[1] - 1)
    return Draw(tokens.flatten().tolist(), logp.gather(1, tokens).flatten().tolist(), kept)


def _kept_mask(logp: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Bool [B, V]: the smallest set of most likely tokens that reaches top_p, at most top_k; ties to the lower id."""
    ordered, order = logp.sort(dim=-1, descending=True, stable=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    top_p = torch.tensor([p.top_p for p in params]).unsqueeze(1)
    vocabulary = logp.shape[1]
    top_k = torch.tensor([1 if p.temperature == 0 else p.top_k or vocabulary for p in params]).unsqueeze(1)
    keep = (before < top_p) & (torch.arange(vocabulary) < top_k)
    return torch.zeros_like(keep).scatter_(1, order, keep)
