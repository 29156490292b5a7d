"""What a token leaves behind: per layer its latent, its rotated rope key and its index key. Nothing else is kept.

One fixed row of `max_tokens` per sequence ("slot"); a page table over the same storage is the engine's later concern.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from baleen.model.config import ModelConfig


@dataclass
class LayerCache:
    """latent [slots, max_tokens, C], k_rope [slots, max_tokens, R], index_k [slots, max_tokens, D]."""

    latent: Tensor
    k_rope: Tensor
    index_k: Tensor


class LatentCache:
    """The cache of all layers for `slots` sequences of up to `max_tokens` tokens."""

    def __init__(self, config: ModelConfig, slots: int, max_tokens: int, dtype: torch.dtype) -> None:
        self.slots, self.max_tokens = slots, max_tokens

        def rows(width: int) -> Tensor:
            return torch.zeros(slots, max_tokens, width, dtype=dtype)

        self.layers = [
            LayerCache(rows(config.kv_lora_rank), rows(config.qk_rope_head_dim), rows(config.index_head_dim))
            for _ in range(config.num_hidden_layers)
        ]

    def copy_prefix(self, source: int, target: int, tokens: int) -> None:
        """Copies the first `tokens` entries of one slot to another."""
        for layer in self.layers:
            for rows in (layer.latent, layer.k_rope, layer.index_k):
                rows[target, :tokens] = rows[source, :tokens]


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

    def write(self, layer: int, latent: Tensor, k_rope: Tensor, index_k: Tensor | None) -> None:
        """Stores the new entries [B, T, .]."""
        kept = self.cache.layers[layer]
        rows = self.slots.unsqueeze(1)
        kept.latent[rows, self.positions] = latent.to(kept.latent.dtype)
        kept.k_rope[rows, self.positions] = k_rope.to(kept.k_rope.dtype)
        if index_k is not None:
            kept.index_k[rows, self.positions] = index_k.to(kept.index_k.dtype)

    def index_keys(self, layer: int) -> Tensor:
        """The index keys of these slots, [B, length, D]."""
        return self._of_slots(self.cache.layers[layer].index_k)

    def keys(self, layer: int) -> tuple[Tensor, Tensor]:
        """The latents and rope keys of these slots, [B, length, .] each."""
        kept = self.cache.layers[layer]
        return self._of_slots(kept.latent), self._of_slots(kept.k_rope)

    def storage(self, layer: int) -> tuple[Tensor, Tensor]:
        """The latents and rope keys of the whole cache as one long sequence, [1, slots * max_tokens, .] each: a query
        that sees few of them is served without a copy of its slot."""
        kept = self.cache.layers[layer]
        return kept.latent.flatten(0, 1).unsqueeze(0), kept.k_rope.flatten(0, 1).unsqueeze(0)

    def in_storage(self, selected: Tensor) -> Tensor:
        """Positions [B, T, K] of these slots as positions in `storage`, [1, B * T, K]; -1 stays -1."""
        start = (self.slots * self.cache.max_tokens).view(-1, 1, 1)
        return torch.where(selected < 0, selected, selected + start).flatten(0, 1).unsqueeze(0)

    def _of_slots(self, part: Tensor) -> Tensor:
        count = self.slots.shape[0]
        if torch.equal(self.slots, torch.arange(count, device=self.slots.device)):
            return part[:count, : self.length]  # the leading slots need no copy
        return part[:, : self.length].index_select(0, self.slots)
