"""What sampling decided, so that training can decide the same.

A `Trace` covers the whole sequence that a completion ended with: prompt tokens first, then sampled ones. Every part is
optional and every part is replayable by the model's forward: keep routing (`experts`), keep selection (`selected`),
keep sampling mask (`kept_ids`, `kept_offsets`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Trace:
    """Recorded decisions. S = tokens of prompt + completion, N = sampled tokens, all positions from the sequence
    start."""

    logprobs: NDArray[np.float32]
    """[N] log-probability of each sampled token under the distribution it was drawn from (after the sampling mask)."""

    kept_ids: NDArray[np.int32] | None = None
    """[K] the kept sampling sets of the N tokens, joined (CSR values); None when nothing was cut (top_p 1, no
    top_k)."""

    kept_offsets: NDArray[np.int32] | None = None
    """[N + 1] CSR offsets into `kept_ids`."""

    experts: NDArray[np.int16] | None = None
    """[S - 1, moe layers, experts per token] the experts each forwarded token went to (the last token is never
    forwarded)."""

    selected: NDArray[np.int16] | None = None
    """[S - 1, layers, index_topk] positions each token attended to, in any order; -1 fills rows of fewer."""

    version: int = 0
    """The weights' version that sampled it."""
