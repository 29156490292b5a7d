"""One step of scaled GRPO: episodes -> advantages -> samples -> packed rows -> update.

Every stabiliser of the report is a switch: the ratio is against the SAMPLER's log-probabilities; `keep_routing`,
`keep_selection` and `keep_sampling_mask` force in training what sampling decided; `delta` masks off-policy sequences
with A < 0; `beta` weighs the unbiased KL to the reference. Group statistics leave out episodes that were not scored.
"""

# N = samples, T = sampled tokens of the longest, M = sampled tokens in all

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from baleen.agent.episode import Episode
from baleen.model.network import Model
from baleen.rl.objective import entropy, group_advantages, grpo_loss, kept_log_probabilities
from baleen.rl.rewards import RewardConfig, shape
from baleen.rl.samples import samples_from_episode
from baleen.training.batch import Batch, tree_batch
from baleen.training.optimizer import Optimizer
from baleen.training.packing import PackedRow, pack_tree
from baleen.training.sample import Sample


@dataclass(frozen=True)
class GrpoConfig:
    """The objective's constants and switches; eps, beta and delta are unpublished, hence knobs."""

    clip: float = 0.2
    beta: float = 0.0
    delta: float | None = 0.1
    temperature: float = 1.0
    keep_routing: bool = True
    keep_selection: bool = True
    keep_sampling_mask: bool = True
    row_tokens: int = 4096
    minibatches: int = 1
    max_norm: float = 1.0
    """The gradient is scaled down to it. Each sequence counts as one, so a few short ones can outweigh all others."""


@dataclass(frozen=True)
class Scored:
    """A row's predictions under a model: [n, T] each, n = samples of the row."""

    logp: Tensor
    entropy: float


def judge(episodes: Sequence[Episode], config: RewardConfig) -> list[dict[str, float | None]]:
    """Each episode's reward parts, shaping gated on a correct outcome."""
    parts = []
    for episode in episodes:
        reasoning = " ".join(m.reasoning_content or "" for m in episode.messages if m.role == "assistant")
        last = next((m for m in reversed(episode.messages) if m.role == "assistant"), None)
        parts.append(
            shape(
                episode.rewards.get("outcome") if episode.scored else None,
                sampled_tokens=sum(len(completion.sampled_tokens) for completion in episode.completions),
                reasoning=reasoning,
                content=last.content if last else None,
                language=episode.task.metadata.get("language"),
                config=config,
            )
        )
    return parts


def advantages_of(parts: Sequence[dict[str, float | None]], group_size: int) -> Tensor:
    """[N] `R - mean` of each group of `group_size` neighbours, over its scored members."""
    rewards = torch.tensor([part["total"] or 0.0 for part in parts])
    groups = torch.arange(len(parts)) // group_size
    return group_advantages(rewards, groups, torch.tensor([part["total"] is not None for part in parts]))


def collect_samples(
    episodes: Sequence[Episode], advantages: Tensor, group_size: int, *, keep_zero: bool
) -> list[Sample]:
    """Training samples of all scored episodes. An advantage of 0 has no policy gradient: kept only for its KL."""
    samples: list[Sample] = []
    for index, episode in enumerate(episodes):
        advantage = float(advantages[index])
        if episode.scored and (keep_zero or advantage != 0.0):
            samples += samples_from_episode(episode, group=index // group_size, advantage=advantage, index=index)
    return samples


def update(
    model: Model,
    reference: Model | None,
    optimizer: Optimizer,
    samples: Sequence[Sample],
    config: GrpoConfig,
    *,
    learning_rate: float,
    count: int,
) -> dict[str, float]:
    """One optimiser step per minibatch of packed rows; `count` is N, the episodes that the mean is over."""
    rows = pack_tree(samples, config.row_tokens)
    shares = np.array_split(np.arange(len(rows)), min(config.minibatches, len(rows)))
    totals: dict[str, float] = {}
    weights = 0.0
    norm = 0.0
    for share in shares:
        for index in share:
            row = rows[index]
            loss, metrics = _row_loss(model, reference, row, samples, config)
            weight = len(row.samples)
            (loss * weight * len(shares) / count).backward()
            for name, value in metrics.items():
                totals[name] = totals.get(name, 0.0) + value * weight
            weights += weight
        norm = max(norm, optimizer.step(learning_rate, max_norm=config.max_norm))
    figures = {name: value / weights for name, value in totals.items()}
    return figures | {"gradient_norm": norm, "rows": float(len(rows))}


def score(model: Model, row: PackedRow, samples: Sequence[Sample], config: GrpoConfig) -> tuple[Scored, Batch]:
    """Log-probabilities of a row's sampled tokens as training sees them, under the switches of `config`."""
    batch = tree_batch([row], samples, keep_routing=config.keep_routing, keep_selection=config.keep_selection)
    out = model(
        batch.tokens, position_ids=batch.position_ids, subtree_end=batch.subtree_end, replay=batch.replay, logits=False
    )
    logits = model.lm_head(out.hidden[0].index_select(0, batch.source)).float()
    kept_ids, kept_offsets = _kept(row, samples) if config.keep_sampling_mask else (None, None)
    logp = kept_log_probabilities(logits, batch.target, kept_ids, kept_offsets, config.temperature)
    with torch.no_grad():
        uncertainty = float(entropy(logits[:: max(1, len(logits) // 256)] / config.temperature).mean())
    return Scored(_padded(logp, row, batch), uncertainty), batch


def sampler_logprobs(row: PackedRow, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """The sampler's log-probabilities [n, T] and the mask [n, T] of a row's samples."""
    parts = [samples[index].logprobs[samples[index].sampled] for index in row.samples]
    width = max(len(part) for part in parts)
    old, mask = torch.zeros(len(parts), width), torch.zeros(len(parts), width)
    for place, part in enumerate(parts):
        old[place, : len(part)] = torch.from_numpy(part)
        mask[place, : len(part)] = 1
    return old, mask


def mismatch(model: Model, samples: Sequence[Sample], config: GrpoConfig) -> float:
    """Mean over sampled tokens of |log pi_trainer - log pi_sampler| under the switches of `config`."""
    total = tokens = 0.0
    with torch.no_grad():
        for row in pack_tree(samples, config.row_tokens):
            scored, _ = score(model, row, samples, config)
            old, mask = sampler_logprobs(row, samples)
            total += float(((scored.logp - old).abs() * mask).sum())
            tokens += float(mask.sum())
    return total / max(tokens, 1.0)


def without_replay(config: GrpoConfig) -> GrpoConfig:
    """The same with every recording ignored, to see what the recordings are worth."""
    return replace(config, keep_routing=False, keep_selection=False, keep_sampling_mask=False)


def _row_loss(
    model: Model, reference: Model | None, row: PackedRow, samples: Sequence[Sample], config: GrpoConfig
) -> tuple[Tensor, dict[str, float]]:
    scored, _ = score(model, row, samples, config)
    logp_ref = None
    if reference is not None and config.beta:
        with torch.no_grad():
            # The reference routes and selects for itself: the recordings are the policy's.
            free = replace(config, keep_routing=False, keep_selection=False)
            logp_ref = score(reference, row, samples, free)[0].logp
    old, mask = sampler_logprobs(row, samples)
    advantages = torch.tensor([samples[index].advantage for index in row.samples])
    loss, metrics = grpo_loss(
        scored.logp, old, logp_ref, advantages, mask, clip=config.clip, beta=config.beta, delta=config.delta
    )
    metrics.pop("tokens")  # the stage counts what was sampled, over all rows
    return loss, metrics | {"entropy": scored.entropy}


def _padded(values: Tensor, row: PackedRow, batch: Batch) -> Tensor:
    assert batch.sample is not None
    assert batch.slot is not None
    place = {index: position for position, index in enumerate(row.samples)}
    owner = torch.tensor([place[int(index)] for index in batch.sample])
    width = int(batch.slot.max()) + 1
    return values.new_zeros(len(row.samples), width).index_put((owner, batch.slot), values)


def _kept(row: PackedRow, samples: Sequence[Sample]) -> tuple[Tensor | None, Tensor | None]:
    """The row's kept sets, joined in the order of its predictions."""
    ids, sizes = [], []
    for index in row.samples:
        sample = samples[index]
        if sample.kept_ids is None or sample.kept_offsets is None:
            return None, None
        ids.append(sample.kept_ids)
        sizes.append(np.diff(sample.kept_offsets))
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(sizes))])
    return torch.from_numpy(np.concatenate(ids).astype(np.int64)), torch.from_numpy(offsets.astype(np.int64))
