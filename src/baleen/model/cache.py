"""What a token leaves behind: per layer its latent, its rotated rope key and its index key. Nothing else is kept.

Latent and rope key stand side by side in one row, because attention over a selection fetches both. One fixed stretch of
`max_tokens` rows per sequence ("slot"); a page table over the same storage is the engine's later concern.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from baleen.model.config import ModelConfig


@dataclass
class LayerCache:
    """rows [slots, max_tokens, C+R] (latent, rope key), index_k [slots, max_tokens, D] (width 0 without an indexer)."""

    rows: Tensor
    index_k: Tensor


class LatentCache:
    """The cache of all layers for `slots` sequences of up to `max_tokens` tokens.

    With `drafts` the multi-token-prediction layer has its place too, behind the others.
    """

    def __init__(
        self, config: ModelConfig, slots: int, max_tokens: int, dtype: torch.dtype, *, drafts: bool = False
    ) -> None:
        self.slots, self.max_tokens = slots, max_tokens

        def space(width: int) -> Tensor:
            return torch.zeros(slots, max_tokens, width, dtype=dtype)

        self.layers = [
            LayerCache(
                space(config.kv_lora_rank + config.qk_rope_head_dim),
                space(config.index_head_dim if config.sparse and not config.index_shared(layer) else 0),
            )
            for layer in range(config.num_hidden_layers + drafts)
        ]

    def copy_prefix(self, source: int, target: int, tokens: int) -> None:
        """Copies the first `tokens` entries of one slot to another."""
        for layer in self.layers:
            for part in (layer.rows, layer.index_k):
                part[target, :tokens] = part[source, :tokens]


@dataclass(frozen=True)
class CacheView:
    """Where a batch of new tokens goes: row b of the input is written to slot `slots[b]` from `starts[b]` on.

    Rows may be padded at the right to the longest: the surplus entries are written behind a sequence's end and
    overwritten by its next tokens, and no query ever sees past its own position.
    """

    cache: LatentCache
    slots: Tensor
    """[B] int64."""

    positions: Tensor
    """[B, T] int64: each new token's position in its sequence."""

    length: int
    """Keys 0..length-1 are looked at: the largest position + 1."""

    def write(self, layer: int, rows: Tensor, index_k: Tensor | None) -> None:
        """Stores the new entries [B, T, .]."""
        kept = self.cache.layers[layer]
        slots = self.slots.unsqueeze(1)
        kept.rows[slots, self.positions] = rows.to(kept.rows.dtype)
        if index_k is not None:
            kept.index_k[slots, self.positions] = index_k.to(kept.index_k.dtype)

    def index_keys(self, layer: int) -> Tensor:
        """The index keys of these slots, [B, length, D]."""
        return self._of_slots(self.cache.layers[layer].index_k)

    def rows(self, layer: int) -> Tensor:
        """The latents and rope keys of these slots, [B, length, C+R]."""
        return self._of_slots(self.cache.layers[layer].rows)

    def storage(self, layer: int) -> Tensor:
        """The rows of the whole cache as one list, [slots * max_tokens, C+R]: queries that see few of them are served
        without a copy of their slots."""
        return self.cache.layers[layer].rows.flatten(0, 1)

    def in_storage(self, selected: Tensor) -> Tensor:
        """Positions [B, T, K] of these slots as row numbers in `storage`, [B * T, K]; -1 stays -1."""
        start = (self.slots * self.cache.max_tokens).view(-1, 1, 1)
        return torch.where(selected < 0, -1, selected + start).flatten(0, 1)

    def _of_slots(self, part: Tensor) -> Tensor:
        first, count = int(self.slots[0]), self.slots.shape[0]
        if torch.equal(self.slots, torch.arange(first, first + count, device=self.slots.device)):
            return part[first : first + count, : self.length]  # neighbouring slots need no copy
        return part[:, : self.length].index_select(0, self.slots)
