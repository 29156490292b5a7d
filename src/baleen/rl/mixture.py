"""The mixed stage's draw: which tasks a step trains on.

Reasoning, agent and alignment tasks are mixed in ONE stage, which avoids the forgetting of one stage after another. A
step's draw depends on nothing but seed and step, so a resumed run draws what an uninterrupted one does. Domains are
drawn by systematic sampling: count points, evenly spaced from one random start, thrown on the cumulative weights. So
every step holds each domain within one task of its exact share, and the shares are right on average.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from baleen.agent.task import Task


def draw_tasks(tasks: Sequence[Task], weights: Mapping[str, float], *, count: int, step: int, seed: int) -> list[Task]:
    """`count` tasks for `step`, domains in the proportion of `weights` (any positive scale; 0 leaves a domain out).

    A task is drawn again within a step only when its domain has too few. Tasks of domains without a weight are never
    drawn. Raises `ValueError` for a domain that has a weight and no task, and for weights that give nothing.
    """
    domains = sorted(name for name, weight in weights.items() if weight > 0)
    if not domains or any(weight < 0 for weight in weights.values()):
        raise ValueError(f"weights must be >= 0 and one of them > 0, got {dict(weights)}")
    pools = {name: [task for task in tasks if task.domain == name] for name in domains}
    empty = [name for name in domains if not pools[name]]
    if empty:
        raise ValueError(f"no task in domain {', '.join(empty)}: synthesise some, or set the weight to 0")
    random = np.random.default_rng([seed, step])
    drawn: list[Task] = []
    for name, share in zip(domains, _shares(domains, weights, count, random), strict=True):
        pool = pools[name]
        rounds = -(-share // len(pool))
        order = [int(i) for _ in range(rounds) for i in random.permutation(len(pool))]
        drawn += [pool[i] for i in order[:share]]
    return [drawn[i] for i in random.permutation(len(drawn))]


def _shares(domains: Sequence[str], weights: Mapping[str, float], count: int, random: np.random.Generator) -> list[int]:
    edges = np.cumsum([weights[name] for name in domains], dtype=np.float64)
    points = (random.random() + np.arange(count)) / max(count, 1)
    # min: a point may round up onto the last edge.
    owners = np.minimum(np.searchsorted(edges / edges[-1], points, side="right"), len(domains) - 1)
    return [int(share) for share in np.bincount(owners, minlength=len(domains))]
