"""How sure a score is: pass@k without bias, and intervals.

pass@k from n >= k attempts of which c passed (Chen et al. 2021, arXiv 2107.03374, equation 1):

    pass@k = 1 - C(n - c, k) / C(n, k)

Wilson's interval holds for one attempt per task; with several attempts per task these are not independent, and the
tasks are what must be resampled (`pass_at_k_over_tasks`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A figure with its confidence interval."""

    value: float
    low: float
    high: float


def pass_at_k(n: int, c: int, k: int) -> float:
    """The probability that k attempts, drawn without putting back from the n made, hold one of the c correct."""
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}: make at least k attempts")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> Estimate:
    """Wilson's score interval of a proportion (1927); sound near 0 and 1 and for few trials. Without trials: 0 to 1."""
    if not 0 <= successes <= trials:
        raise ValueError(f"successes must lie between 0 and {trials}, got {successes}")
    if trials == 0:
        return Estimate(math.nan, 0.0, 1.0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / trials
    centre = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    # The bounds are exactly 0 and 1 at the ends; rounding must not move them.
    low = 0.0 if successes == 0 else (centre - spread) / scale
    high = 1.0 if successes == trials else (centre + spread) / scale
    return Estimate(share, low, high)


def pass_at_k_over_tasks(
    attempts: Sequence[tuple[int, int]], k: int, *, seed: int, confidence: float = 0.95, resamples: int = 2000
) -> Estimate:
    """The mean pass@k over tasks, each given as (attempts made, attempts passed), with a bootstrap interval over tasks.

    A percentile bootstrap: it cannot see beyond the tasks it has, and has no width where all tasks agree.
    """
    if not attempts:
        raise ValueError("no task to average over: run the benchmark first")
    scores = np.array([pass_at_k(n, c, k) for n, c in attempts])
    random = np.random.default_rng(seed)
    means = scores[random.integers(len(scores), size=(resamples, len(scores)))].mean(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(float(scores.mean()), float(low), float(high))
