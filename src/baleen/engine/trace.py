"""What sampling decided, so that training can decide the same.

A `Trace` covers the whole sequence that a completion ended with: prompt tokens first, then sampled ones. Every part is
optional and every part is replayable by the model's forward: keep routing (`experts`), keep selection (`selected`),
keep sampling mask (`kept_ids`, `kept_offsets`). No torch: servers and clients import it.
"""

from __future__ import annotations

from collections.abc import Sequence
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

    selected: NDArray[np.int16] | NDArray[np.int32] | None = None
    """[S - 1, layers, index_topk] positions each token attended to, in any order; -1 fills rows of fewer."""

    versions: NDArray[np.int32] | None = None
    """[N] the weights' version that sampled each token."""


@dataclass(frozen=True)
class Records:
    """What the first tokens of a sequence decided when they were forwarded; parts as in `Trace`."""

    tokens: int
    experts: NDArray[np.int16] | None
    selected: NDArray[np.int16] | NDArray[np.int32] | None


def join_kept(kept: Sequence[NDArray[np.int32] | None]) -> tuple[NDArray[np.int32] | None, NDArray[np.int32] | None]:
    """The kept sets of one sequence as CSR values and offsets; (None, None) when nothing was ever cut."""
    if all(each is None for each in kept):
        return None, None
    parts = [each if each is not None else np.empty(0, np.int32) for each in kept]
    return np.concatenate(parts), np.cumsum([0, *map(len, parts)]).astype(np.int32)
