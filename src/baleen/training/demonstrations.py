"""Demonstrations as training samples: exactly the tokens that serving would see, learning on what the model says.

A conversation is cut where the thinking rule rewrites the context, so that what is trained is what is served. Batches
hold each domain's share of the tokens, and are drawn by neighbours: samples with the same opening (system prompt and
tools, often half of all tokens) come a few at a time, and packing computes their opening once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from baleen.chat.encoding import segments
from baleen.chat.messages import Message, ToolSpec
from baleen.chat.retention import training_views
from baleen.chat.tokenizer import Tokenizer
from baleen.training.batch import Batch, tree_batch
from baleen.training.packing import common_prefix, pack_tree
from baleen.training.sample import Sample, SampleError, plain_sample

TOGETHER = 8
"""How many samples with the same opening are drawn at a time: nano learns 1.4 times the sampled tokens per second that
it does with 3."""


@dataclass(frozen=True)
class Pool:
    """What one domain gives to a batch."""

    share: float
    """Its part of a batch's tokens, relative to the other pools'."""

    groups: Sequence[Sequence[Sample]]
    """Samples by their opening."""


def demonstration_samples(
    messages: Sequence[Message], tools: Sequence[ToolSpec], thinking: bool, tokenizer: Tokenizer
) -> list[Sample]:
    """The samples of one conversation; a turn that was sampled under a shorter context is masked in later views."""
    samples = []
    for view in training_views(messages, thinking):
        ids, sampled = tokenizer.encode_segments(segments(view, tools, thinking))
        samples.append(plain_sample(ids, sampled))
    return samples


def fitting(pools: Sequence[Pool], row_tokens: int) -> list[Pool]:
    """The pools without samples longer than a row. Raises `SampleError` where that leaves a pool empty."""
    kept = []
    for pool in pools:
        groups = [[sample for sample in group if len(sample.tokens) <= row_tokens] for group in pool.groups]
        if not any(groups):
            shortest = min((len(sample.tokens) for group in pool.groups for sample in group), default=0)
            raise SampleError(
                f"no sample fits a row of {row_tokens} tokens (the shortest has {shortest}): raise tree_length"
                if shortest
                else "there is no sample to train on"
            )
        kept.append(Pool(pool.share, [group for group in groups if group]))
    return kept


def demonstration_batches(pools: Sequence[Pool], *, row_tokens: int, tokens: int, seed: int) -> list[Batch]:
    """A random draw from pools of fitting samples, by seed: about `tokens` distinct tokens in tree rows of up to
    `row_tokens`, each a batch of its own, so that nothing is padded."""
    random = np.random.default_rng(seed)
    whole = sum(pool.share for pool in pools)
    chosen = [sample for pool in pools for sample in _draw(pool, tokens * pool.share / whole, random)]
    return [tree_batch([row], chosen) for row in pack_tree(chosen, row_tokens)]


def _draw(pool: Pool, tokens: float, random: np.random.Generator) -> list[Sample]:
    """Samples until they hold `tokens` distinct tokens; every sample of the pool is as likely as any other."""
    sizes = np.array([len(group) for group in pool.groups])
    drawn: list[Sample] = []
    held = 0
    while True:
        group = pool.groups[random.choice(len(sizes), p=sizes / sizes.sum())]
        before: Sample | None = None
        for index in random.permutation(len(group))[:TOGETHER]:
            if held >= tokens:
                return drawn
            sample = group[index]
            drawn.append(sample)
            held += len(sample.tokens) - (common_prefix(before.tokens, sample.tokens) if before else 0)
            before = sample
