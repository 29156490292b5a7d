"""GRPO as the report scales it, one switch per stabiliser, pure functions on plain tensors.

    J = E[ 1/G sum_i 1/|o_i| sum_t ( min(r A, clip(r, 1 - eps_low, 1 + eps_high) A) * M_i - beta * KL_t ) ]
    r = pi / pi_old,   A_i = R_i - mean(R over the group)                     (arXiv 2512.02556, section 3.1)

`pi_old` is the probability that the INFERENCE engine returned when it sampled, never the trainer's recomputation: the
off-policy mask exists to see the difference. `log pi` must be taken over the same sampling set as `log pi_old`
(`kept_log_probabilities`), or their ratio is biased by the mass that sampling cut.

Legend: N = sequences, T = tokens (padded), M = sampled positions, V = vocabulary, K = kept ids of all M positions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def grpo_loss(
    logp: Tensor,
    logp_old: Tensor,
    logp_ref: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: float | tuple[float, float],
    beta: float,
    delta: float | None,
) -> tuple[Tensor, dict[str, float]]:
    """-J, a scalar to minimise, and its metrics; the mean is over all N sequences, each weighing the same.

    `logp`, `logp_old`, `logp_ref` are [N, T] log-probabilities of the tokens that stand there, `advantages` [N], `mask`
    [N, T] is 1 on sampled tokens; what stands elsewhere is never read. `clip` is eps or (eps_low, eps_high). `beta` 0
    switches the KL off and allows `logp_ref` None; `delta` None switches off-policy sequence masking off. A sequence
    without sampled tokens contributes 0. Only `logp` receives a gradient.

    Metrics: `clip_fraction` of tokens whose policy gradient the clip stopped, `mask_fraction` of sequences dropped,
    `kl` mean over tokens, `ratio_mean` and `ratio_max` over tokens, `mean_log_ratio` mean over sequences of
    mean_t log(pi_old / pi), `mismatch` mean over tokens of |log pi - log pi_old|, `tokens`.

    Raises `ValueError` when beta asks for a KL and there is no reference.
    """
    if beta != 0 and logp_ref is None:
        raise ValueError("beta is not 0 but logp_ref is None: score the sequences with the reference, or set beta to 0")
    low, high = (clip, clip) if isinstance(clip, int | float) else clip
    inside = mask.bool()
    old = torch.where(inside, logp_old.detach(), 0)
    new = torch.where(inside, logp, 0)
    ratio = torch.exp(new - old)
    advantage = advantages.detach().to(new.dtype)[:, None]
    unclipped, clipped = ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage
    policy = torch.minimum(unclipped, clipped)
    keep = _keep(advantages, new, old, inside, delta)
    objective = torch.where(keep[:, None], policy, 0)
    kl = torch.zeros_like(new)
    if logp_ref is not None:
        kl = unbiased_kl(new, old, torch.where(inside, logp_ref.detach(), 0))
        if beta != 0:
            objective = objective - beta * kl
    loss = -_mean_over_tokens(objective, inside).mean()
    return loss, _metrics(new.detach(), old, kl.detach(), (clipped < unclipped).detach(), keep, inside)


def group_advantages(rewards: Tensor, groups: Tensor, valid: Tensor) -> Tensor:
    """[N] `A_i = R_i - mean(R)` over the valid members of i's group; 0 for invalid ones.

    No division by the standard deviation. `groups` [N] are any integers, `valid` [N] is false for what was not scored
    or failed through no fault of the policy: its reward is never read (NaN is fine) and does not move the mean.
    """
    inside = valid.bool()
    scored = torch.where(inside, rewards, 0)
    _, member_of = torch.unique(groups, return_inverse=True)
    empty = scored.new_zeros(int(member_of.max()) + 1 if member_of.numel() else 0)
    totals = empty.index_add(0, member_of, scored)
    counts = empty.index_add(0, member_of, inside.to(scored.dtype))
    means = totals / counts.clamp(min=1)
    return torch.where(inside, scored - means[member_of], 0)


def unbiased_kl(logp: Tensor, logp_old: Tensor, logp_ref: Tensor) -> Tensor:
    """Per token `(pi / pi_old) * (pi_ref / pi - log(pi_ref / pi) - 1)`, differentiable through both factors.

    In expectation over tokens drawn from pi_old, its value and its gradient are those of KL(pi || pi_ref); without the
    ratio the gradient is not.
    """
    log_ref_ratio = logp_ref - logp
    return torch.exp(logp - logp_old) * (torch.expm1(log_ref_ratio) - log_ref_ratio)


def off_policy_sequence_mask(
    advantages: Tensor, logp: Tensor, logp_old: Tensor, mask: Tensor, delta: float | None
) -> Tensor:
    """[N] `M_i = 0` where `A_i < 0` and `mean_t log(pi_old / pi) > delta`, else 1. Carries no gradient.

    Only negative advantages are masked: unlearning what the policy would no longer do is what destabilises.
    """
    return _keep(advantages, logp, logp_old, mask, delta).to(logp.dtype)


def sequence_log_ratio(logp: Tensor, logp_old: Tensor, mask: Tensor) -> Tensor:
    """[N] `mean_t log(pi_old / pi)` over sampled tokens. `delta` is a bound on it: choose one by its histogram."""
    return _mean_over_tokens(torch.where(mask.bool(), logp_old - logp, 0).detach(), mask.bool())


def kept_log_probabilities(
    logits: Tensor, targets: Tensor, kept_ids: Tensor | None, kept_offsets: Tensor | None, temperature: float
) -> Tensor:
    """[M] `log pi(target)`, renormalised over the set that sampling kept (keep sampling mask, section 3.1).

    `logits` [M, V] of the sampled positions, `targets` [M]; the set of row m is `kept_ids[kept_offsets[m]:
    kept_offsets[m + 1]]` as the sampler recorded it; both None when nothing was cut. Half precision is lifted to
    float32. Raises `ValueError` when a target is not in its own set: the record belongs to other tokens.
    """
    rows = torch.arange(len(targets), device=logits.device)
    chosen = _lift(logits[rows, targets]) / temperature
    if kept_ids is None or kept_offsets is None:
        return chosen - torch.logsumexp(_lift(logits) / temperature, dim=-1)
    row_of = torch.repeat_interleave(rows, kept_offsets.diff().long())
    ids = kept_ids.long()
    hits = torch.zeros_like(rows).index_add(0, row_of, (ids == targets[row_of]).long())
    if bool((hits == 0).any()):
        row = int((hits == 0).nonzero()[0])
        raise ValueError(
            f"target {int(targets[row])} of row {row} is not in its kept set: tokens and record do not match"
        )
    kept = _lift(logits[row_of, ids]) / temperature
    top = torch.full_like(chosen, -torch.inf).scatter_reduce(0, row_of, kept.detach(), "amax")
    mass = torch.zeros_like(chosen).index_add(0, row_of, torch.exp(kept - top[row_of]))
    return chosen - top - torch.log(mass)


def entropy(logits: Tensor) -> Tensor:
    """[...] `-sum_v p log p` in nats of the softmax over the last dimension; logits of -inf count as p = 0."""
    logp = torch.log_softmax(_lift(logits), dim=-1)
    probability = torch.exp(logp)
    return -(probability * torch.where(probability > 0, logp, 0)).sum(-1)


def _keep(advantages: Tensor, logp: Tensor, logp_old: Tensor, mask: Tensor, delta: float | None) -> Tensor:
    if delta is None:
        return torch.ones_like(advantages, dtype=torch.bool)
    return ~((advantages.detach() < 0) & (sequence_log_ratio(logp, logp_old, mask) > delta))


def _mean_over_tokens(values: Tensor, inside: Tensor) -> Tensor:
    counts = inside.sum(-1).clamp(min=1)
    return torch.where(inside, values, 0).sum(-1) / counts


def _lift(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def _metrics(new: Tensor, old: Tensor, kl: Tensor, clipped: Tensor, keep: Tensor, inside: Tensor) -> dict[str, float]:
    """All figures leave the device in one transfer."""
    tokens = inside.sum()
    per_token = tokens.clamp(min=1)
    sequences = inside.any(-1)
    per_sequence = sequences.sum().clamp(min=1)
    ratio = torch.where(inside, torch.exp(new - old), 0)
    figures = {
        "clip_fraction": (clipped & inside).sum() / per_token,
        "mask_fraction": (~keep & sequences).sum() / per_sequence,
        "kl": torch.where(inside, kl, 0).sum() / per_token,
        "ratio_mean": ratio.sum() / per_token,
        "ratio_max": ratio.max(),
        "mean_log_ratio": sequence_log_ratio(new, old, inside).sum() / per_sequence,
        "mismatch": torch.where(inside, (new - old).abs(), 0).sum() / per_token,
        "tokens": tokens,
    }
    values = torch.stack([value.double() for value in figures.values()]).tolist()
    return dict(zip(figures, values, strict=True))
