"""What a recipe's stages will cost, before they run: tokens, operations, and time on this machine.

A token that is sampled costs one forward pass in the decoding form, one that is trained three in the prefill form (the
backward pass costs twice the forward; Kaplan et al. 2020). What a forward pass costs is in `model/arithmetic.py`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from baleen.model.arithmetic import forward_flops
from baleen.model.config import ModelConfig
from baleen.pipeline.recipe import Recipe, ReinforcementSection, TrainSection

STEP_OVERHEAD = 5.0
"""Time of a small model's step over the time of its large matrix products alone; softmax, norms, routing and optimiser
fill the rest. A rough figure for laptops, the reason why the estimate is called one."""

DECODE_OVERHEAD = 40.0
"""The same for sampling, where each step multiplies a few rows only."""

TURN_SHARE = 0.5
"""Sampled tokens per allowed token: most turns stop early."""


@dataclass(frozen=True)
class StageEstimate:
    """A stage's tokens (trained and sampled) and its operations."""

    name: str
    trained_tokens: int
    sampled_tokens: int
    operations: float
    seconds: float


def estimate_stage(recipe: Recipe, name: str, rate: float) -> StageEstimate | None:
    """What the section of that name will cost at `rate` operations a second; None for a stage without one."""
    section = getattr(recipe, name, None)
    config = recipe.network()
    if isinstance(section, TrainSection):
        trained = section.steps * section.tokens_per_step
        sparse = name not in ("pretrain", "indexer_warmup")
        each = 3 * forward_flops(config, section.sequence_length // 2, sparse=sparse).total
        return StageEstimate(name, trained, 0, trained * each, trained * each / rate * STEP_OVERHEAD)
    if isinstance(section, ReinforcementSection):
        episodes = section.steps * section.tasks_per_step * section.group_size
        sampled = round(episodes * section.max_tokens * TURN_SHARE)
        context = min(config.max_position_embeddings, 2 * section.max_tokens)
        sampling = sampled * forward_flops(config, context, sparse=True, decoding=True).total
        training = sampled * 3 * forward_flops(config, context, sparse=True).total
        seconds = (sampling * DECODE_OVERHEAD + training * STEP_OVERHEAD) / rate
        return StageEstimate(name, sampled, sampled, sampling + training, seconds)
    return None


def measure_rate(config: ModelConfig, seconds: float = 0.2) -> float:
    """Operations a second of this machine's matrix product in float32, at the size of the network's own layers."""
    import numpy as np

    rows, inner, columns = 1024, config.hidden_size, min(config.intermediate_size, 4096)
    left = np.ones((rows, min(inner, 4096)), dtype=np.float32)
    right = np.ones((left.shape[1], columns), dtype=np.float32)
    began, fastest = time.perf_counter(), float("inf")
    while time.perf_counter() - began < seconds:
        start = time.perf_counter()
        left @ right
        # The fastest, because the first pays for the threads' start and others may wait for a busy neighbour.
        fastest = min(fastest, time.perf_counter() - start)
    return 2.0 * rows * left.shape[1] * columns / fastest
