"""Which keys exist for each query, before any selection; a row tile at a time, so that no L x L mask has to be held.

Key k is seen by the query at row position p iff `k <= p < subtree_end[k]`. Without `subtree_end` that is plain
causality; with it a row may hold a tree of sequences that share prefixes. Queries may be the last tokens of a longer
row (a cache) or all of it.
"""

# B = batch, T = queries, L = keys

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Visibility:
    """What each of T queries sees of L keys."""

    positions: Tensor
    """[B or 1, T] int64: where each query stands among the keys."""

    length: int
    """L: keys 0 to L-1 are looked at."""

    subtree_end: Tensor | None = None
    """[B or 1, L] int64: where the subtree of each key ends; None for plain causality."""

    @classmethod
    def causal(cls, length: int, device: torch.device | None = None) -> Visibility:
        """All tokens of plain rows."""
        return cls(torch.arange(length, device=device).unsqueeze(0), length)

    @property
    def is_causal_square(self) -> bool:
        """Whether the queries are all keys of plain rows, in order: attention then needs no mask."""
        square = self.subtree_end is None and self.positions.shape == (1, self.length)
        return square and int(self.positions[0, 0]) == 0

    def rows(self, part: slice) -> Visibility:
        """The same for some of the queries, with the keys that none of them sees cut off at the end."""
        positions = self.positions[:, part]
        length = min(self.length, int(positions.max()) + 1)
        ends = None if self.subtree_end is None else self.subtree_end[:, :length]
        return Visibility(positions, length, ends)

    def mask(self) -> Tensor:
        """[B or 1, T, L] bool, true where the query sees the key."""
        keys = torch.arange(self.length, device=self.positions.device)
        queries = self.positions.unsqueeze(-1)
        seen = keys <= queries
        return seen if self.subtree_end is None else seen & (queries < self.subtree_end.unsqueeze(1))

    def hide(self, scores: Tensor) -> Tensor:
        """Fills scores [B, T, L] in place with -inf where the key is not seen."""
        if self.subtree_end is not None:
            return scores.masked_fill_(~self.mask(), -torch.inf)
        first = int(self.positions.min()) + 1  # what every query sees is left alone
        keys = torch.arange(first, self.length, device=scores.device)
        scores[..., first:].masked_fill_(keys > self.positions.unsqueeze(-1), -torch.inf)
        return scores
