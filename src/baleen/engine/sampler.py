"""From logits to tokens: what may be said, how likely it is, and one number that decides.

The number is uniform, one per request and token, drawn from the request's own seed, so that a request's tokens do not
depend on its neighbours. The kept set is recorded here, inside the sampler: rebuilding it later from probabilities
gives another set (report, keep sampling mask).
"""

# B = sequences, V = vocabulary

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from baleen.engine.params import SamplingParams
from baleen.engine.sequence import Alternatives, Sequence
from baleen.model.compiled import is_installed

Kept = NDArray[np.int32] | None


@dataclass(frozen=True)
class Drawn:
    """A sampled token, its log-probability under what it was sampled from, the kept set (None = all), and the most
    likely tokens where the request asks for them."""

    token: int
    logprob: float
    kept: Kept
    top: Alternatives


@torch.no_grad()
def draw(logits: Tensor, sequences: Many[Sequence], ends: frozenset[int]) -> list[Drawn]:
    """Samples the next token of each sequence from logits [B, V] (fp32, changed in place)."""
    uniform = np.array([sequence.uniforms[sequence.sampled] for sequence in sequences])
    params = [sequence.params for sequence in sequences]
    if all(sequence.plain for sequence in sequences) and is_installed():
        return _draw_all(logits, params, uniform)
    for row, sequence in enumerate(sequences):
        if not sequence.plain:
            _prepare(logits[row], sequence, ends)
    # A row's form depends on its own request alone, or its last bits would depend on its neighbours.
    form = [_draw_all if is_installed() and not p.cuts else _draw_cut for p in params]
    return [
        form[row](logits[row : row + 1], params[row : row + 1], uniform[row : row + 1])[0] for row in range(len(params))
    ]


def _draw_all(logits: Tensor, params: Many[SamplingParams], uniform: NDArray[np.float64]) -> list[Drawn]:
    """Samples where no token is cut, in one compiled loop."""
    from baleen.ops.loops import sample

    tokens, logprobs = np.empty(len(params), np.int64), np.empty(len(params), np.float32)
    temperature = np.array([p.temperature for p in params], dtype=np.float32)
    top = [_most_likely(_log_probabilities(logits, p), p) if p.top_logprobs else () for p in params]
    sample(logits.numpy(), temperature, uniform, tokens, logprobs)
    return [
        Drawn(token, logprob, None if p.temperature else np.array([token], np.int32), most)
        for token, logprob, p, most in zip(tokens.tolist(), logprobs.tolist(), params, top, strict=True)
    ]


def _draw_cut(logits: Tensor, params: Many[SamplingParams], uniform: NDArray[np.float64]) -> list[Drawn]:
    """Samples one row [1, V] from what is kept."""
    whole = logp = _log_probabilities(logits, params[0])
    kept: Kept = None
    if params[0].cuts or params[0].temperature == 0:
        mask = _kept_mask(logp, params[0])
        logp = torch.log_softmax(logp.masked_fill(~mask, -torch.inf), dim=-1)
        kept = mask.nonzero().flatten().numpy().astype(np.int32)
    token = _inverse(logp, float(uniform[0]))
    top = _most_likely(logp if params[0].temperature else whole, params[0]) if params[0].top_logprobs else ()
    return [Drawn(token, float(logp[token]), kept, top)]


def _log_probabilities(logits: Tensor, params: SamplingParams) -> Tensor:
    """[V] of one row [1, V], in which the temperature counts."""
    return torch.log_softmax(logits[0] / (params.temperature or 1.0), dim=-1)


def _inverse(logp: Tensor, uniform: float) -> int:
    """The first token whose cumulative probability passes the uniform number."""
    cumulative = logp.double().exp().cumsum(-1)
    token = int(torch.searchsorted(cumulative, uniform * cumulative[-1:], right=True))
    # Rounding may leave the number at the very end, behind the last token that is possible at all.
    return min(token, int((logp > -torch.inf).nonzero().max()))


def _prepare(logits: Tensor, sequence: Sequence, ends: frozenset[int]) -> None:
    """Changes one row [V]: bias, penalties, grammar. Where bias and `min_tokens` leave no token of the grammar, they
    yield to it."""
    given = logits.clone()
    _shift(logits, sequence, ends)
    if sequence.allowed is not None:
        forbidden = torch.from_numpy(~sequence.allowed)
        logits.masked_fill_(forbidden, -torch.inf)
        given.masked_fill_(forbidden, -torch.inf)
    if not bool((logits > -torch.inf).any()):
        logits.copy_(given)


def _shift(logits: Tensor, sequence: Sequence, ends: frozenset[int]) -> None:
    """Applies bias and penalties to one row [V], and keeps the end away until `min_tokens`."""
    params = sequence.params
    if params.repetition_penalty != 1:
        said = torch.from_numpy(np.unique(sequence.ids).astype(np.int64))
        values = logits[said]
        logits[said] = torch.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    if sequence.counts and (params.presence_penalty or params.frequency_penalty):
        tokens = torch.tensor(list(sequence.counts))
        counts = torch.tensor(list(sequence.counts.values()), dtype=logits.dtype)
        logits[tokens] -= params.presence_penalty + params.frequency_penalty * counts
    for token, bias in params.logit_bias:
        logits[token] += bias
    if sequence.sampled < params.min_tokens:
        logits[list(set(params.stop_ids) | (set() if params.ignore_end else ends))] = -torch.inf


def _kept_mask(logp: Tensor, params: SamplingParams) -> Tensor:
    """Bool [V]: of the possible tokens the `top_k` most likely, of these the fewest that reach `top_p`, of these all
    that reach `min_p` of the most likely; ties to the lower id."""
    ordered, order = logp.sort(descending=True, stable=True)
    keep = ordered > -torch.inf
    if params.temperature == 0 or params.top_k:
        keep[1 if params.temperature == 0 else params.top_k :] = False
    if params.top_p < 1:
        share = torch.softmax(ordered.masked_fill(~keep, -torch.inf), dim=-1)
        keep &= share.cumsum(-1) - share < params.top_p
    if params.min_p > 0:
        keep &= (ordered - ordered[0]).exp() >= params.min_p
    return torch.zeros_like(keep).scatter_(0, order, keep)


def _most_likely(logp: Tensor, params: SamplingParams) -> Alternatives:
    values, tokens = logp.topk(min(params.top_logprobs, len(logp)))
    found = zip(tokens.tolist(), values.tolist(), strict=True)
    return tuple((token, value) for token, value in found if value > -float("inf"))
