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

    def write(
        self, layer: int, latent: Tensor, k_rope: Tensor, index_k: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Stores the new entries [B, T, .] and returns all keys of these slots, [B, length, .] each."""
        kept = self.cache.layers[layer]
        rows = self.slots.unsqueeze(1)
        kept.latent[rows, self.positions] = latent.to(kept.latent.dtype)
        kept.k_rope[rows, self.positions] = k_rope.to(kept.k_rope.dtype)
        if index_k is not None:
            kept.index_k[rows, self.positions] = index_k.to(kept.index_k.dtype)
        count = self.slots.shape[0]
        leading = bool(torch.equal(self.slots, torch.arange(count, device=self.slots.device)))
        return tuple(  # type: ignore[return-value]
            (part[:count] if leading else part[self.slots])[:, : self.length]  # the leading slots need no copy
            for part in (kept.latent, kept.k_rope, kept.index_k)
        )
