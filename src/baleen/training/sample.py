"""One training sequence: exact tokens, which of them were sampled, and what the sampler decided on the way.

Demonstrations fill only `tokens` and `sampled`; reinforcement learning fills the rest, so that training can force the
sampler's experts, selected positions and kept sets.

Legend: S = tokens of a sample, N = its sampled tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


class SampleError(ValueError):
    """An episode that cannot be trained on, with what is missing or does not fit."""


@dataclass(frozen=True)
class Sample:
    """One training sequence. An episode gives one or more; all of them carry the episode's group and advantage."""

    tokens: NDArray[np.int32]
    """[S]"""

    sampled: NDArray[np.bool_]
    """[S] true on tokens that the policy sampled; false on prompts and on what the environment said."""

    logprobs: NDArray[np.float32]
    """[S] the sampler's log-probability of each sampled token, 0 elsewhere."""

    kept_ids: NDArray[np.int32] | None
    """[K] the kept sampling sets of the N sampled tokens in order (CSR values); None when nothing was cut."""

    kept_offsets: NDArray[np.int32] | None
    """[N + 1] CSR offsets into `kept_ids`."""

    experts: NDArray[np.int16] | None
    """[S - 1, moe layers, experts per token] recorded routing; the last token was never forwarded."""

    selected: NDArray[np.int16] | NDArray[np.int32] | None
    """[S - 1, layers, index_topk] recorded selection, positions of this sample; -1 fills."""

    group: int
    advantage: float
    episode: int
    """Which episode it came from, as the caller counts them."""


def plain_sample(tokens: Sequence[int], sampled: Sequence[bool]) -> Sample:
    """A demonstration: tokens [S] and which of them the model is to learn [S], nothing recorded."""
    ids = np.asarray(tokens, dtype=np.int32)
    mask = np.asarray(sampled, dtype=np.bool_)
    return Sample(ids, mask, np.zeros(len(ids), np.float32), None, None, None, None, group=0, advantage=1.0, episode=0)
