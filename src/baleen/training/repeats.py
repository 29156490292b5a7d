"""Rows that only copying can predict: a random segment of tokens, said over and over.

A call repeats a name from the question, an answer repeats a number from a result. The heads that copy (one layer finds
the previous token, a later one what followed it before; Olsson et al. 2022) come out of text after very many tokens,
since little of it can be predicted by copying alone. Here all of it is, so they come within a few hundred small steps.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from baleen.training.batch import Batch

ROW_TOKENS = 64
SHORTEST, LONGEST = 16, 32
"""Tokens of a segment, all different; a row says it about three times. Under 16 they teach slower: there, knowing which
tokens the row holds is nearly as good as copying."""

STEP_TOKENS = 1024
"""Tokens of a step. What counts is the number of steps: twice the tokens a step save a fifth of them."""

ALPHABET = 64
"""How many different tokens to begin with. Over hundreds of them it takes twice as long, since each is seen seldom."""

GROWTH_STARTS, DOUBLING_STEPS = 300, 40
"""Once copying is there the alphabet doubles every so many steps: heads that learned on 64 directions of the embedding
space know no others."""


def by_frequency(sequences: Iterable[NDArray[np.int32]]) -> NDArray[np.int64]:
    """The different ids of sequences [S], the most frequent first; of equally frequent ones the lower first."""
    counts = np.bincount(np.concatenate(list(sequences)))
    order = np.argsort(-counts, kind="stable")
    return order[: int((counts > 0).sum())]


def alphabet(ids: NDArray[np.int64], step: int) -> NDArray[np.int64]:
    """The tokens of step `step`'s repeats: the first 64 of `ids`, later ever more of them."""
    doublings = max(0, step - GROWTH_STARTS) / DOUBLING_STEPS
    return ids[: int(ALPHABET * 2 ** min(doublings, 20.0))]


def repeat_batch(ids: NDArray[np.int64], seed: int, tokens: int = STEP_TOKENS) -> Batch:
    """About `tokens` tokens as rows [B, 64] of at least 32 ids; trained from the second time on."""
    random = np.random.default_rng(seed)
    count = max(1, tokens // ROW_TOKENS)
    periods = random.integers(SHORTEST, LONGEST + 1, size=count)
    segments = ids[np.argsort(random.random((count, len(ids))), axis=1)[:, :LONGEST]]
    places = np.arange(ROW_TOKENS)
    rows = np.take_along_axis(segments, places % periods[:, None], axis=1)
    # The first token of the second time is where the repetition starts: nothing tells it yet.
    trained = places[1:] > periods[:, None]
    source = np.arange(count)[:, None] * ROW_TOKENS + places[:-1]
    return Batch(
        torch.from_numpy(rows),
        torch.from_numpy(source[trained]),
        torch.from_numpy(rows[:, 1:][trained]),
        torch.ones(int(trained.sum())),
        kind="repeats",
    )
