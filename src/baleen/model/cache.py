"""What a token leaves behind: per layer its latent, its rotated rope key and its index key. Nothing else is kept.

Latent and rope key stand side by side in one row, because attention over a selection fetches both. Storage is pages of
a fixed number of tokens, and a sequence is a list of pages: the engine shares them between sequences with the same
beginning. One page per sequence, as long as the longest, is a plain cache.

A forward writes and reads through a view. `CacheView` is a rectangle: B sequences, T new tokens each. `FlatView` is
what an engine runs, one list of new tokens of many sequences, made of rectangles.
"""

# B = sequences, T = new tokens of each, M = new tokens in all, P = pages of a sequence, N = stored rows,
# L = keys looked at, C = latent dims, R = rope dims, D = index head dim, W = C + R, K = selected

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from baleen.model.config import ModelConfig


@dataclass
class LayerCache:
    """rows [pages, page_tokens, W] (latent, rope key), index_k [pages, page_tokens, D] (width 0 without an indexer)."""

    rows: Tensor
    index_k: Tensor


class LatentCache:
    """The cache of all layers: `pages` pages of `page_tokens` tokens each.

    With `drafts` the multi-token-prediction layer has its place too, behind the others.
    """

    def __init__(
        self, config: ModelConfig, pages: int, page_tokens: int, dtype: torch.dtype, *, drafts: bool = False
    ) -> None:
        self.pages, self.page_tokens = pages, page_tokens
        self.layers = [
            LayerCache(*(torch.zeros(pages, page_tokens, width, dtype=dtype) for width in widths))
            for widths in _widths(config, drafts)
        ]

    def in_loops(self, layer: int) -> tuple[NDArray, NDArray]:
        """Rows [N, W] and index keys of a layer as arrays. Loops keep a page's index keys with their dims first,
        [pages, D, page_tokens], in the same memory: a cache is read by the form that wrote it."""
        kept = self.layers[layer]
        keys = kept.index_k.view(self.pages, kept.index_k.shape[-1], self.page_tokens)
        return kept.rows.flatten(0, 1).numpy(), keys.numpy()

    @staticmethod
    def token_bytes(config: ModelConfig, dtype: torch.dtype, *, drafts: bool = False) -> int:
        """Bytes that one token takes in all layers."""
        return dtype.itemsize * sum(map(sum, _widths(config, drafts)))


def _widths(config: ModelConfig, drafts: bool) -> list[tuple[int, int]]:
    """Of each layer, the values that a token leaves in `rows` and in `index_k`."""
    return [
        (
            config.kv_lora_rank + config.qk_rope_head_dim,
            config.index_head_dim if config.sparse and not config.index_shared(layer) else 0,
        )
        for layer in range(config.num_hidden_layers + drafts)
    ]


class _View:
    """What rectangles and lists of them have in common: rows by their number in the storage."""

    cache: LatentCache
    places: Tensor
    """[M] int64: the row that each new token takes."""

    def write(self, layer: int, rows: Tensor, index_k: Tensor | None) -> None:
        """Stores the new entries [.., W] and [.., D], in the order of `places`."""
        kept = self.cache.layers[layer]
        kept.rows.flatten(0, 1).index_copy_(0, self.places, rows.flatten(0, -2).to(kept.rows.dtype))
        if index_k is not None:
            kept.index_k.flatten(0, 1).index_copy_(0, self.places, index_k.flatten(0, -2).to(kept.index_k.dtype))

    def storage(self, layer: int) -> Tensor:
        """The rows of the whole cache as one list, [N, W]: queries that see few of them need no copy of the rest."""
        return self.cache.layers[layer].rows.flatten(0, 1)


@dataclass(frozen=True)
class CacheView(_View):
    """A rectangle of new tokens: token t of sequence b stands at `positions[b, t]`, in a page of `table[b]`.

    Rows may be padded at the right to the longest: the surplus entries are written behind a sequence's end and
    overwritten by its next tokens, and no query ever sees past its own position.
    """

    cache: LatentCache
    table: Tensor
    """[B, P] int64: the pages of each sequence, in order; surplus entries are never looked at."""

    positions: Tensor
    """[B, T] int64: each new token's position in its sequence."""

    length: int
    """Keys 0..length-1 are looked at: the largest position + 1."""

    @classmethod
    def plain(cls, cache: LatentCache, slots: Sequence[int] | range, start: int, end: int) -> CacheView:
        """Tokens start..end-1 of sequences that have one page each, those of the numbers `slots`."""
        positions = torch.arange(start, end).expand(len(slots), -1)
        return cls(cache, torch.tensor(list(slots)).unsqueeze(1), positions, end)

    @cached_property
    def places(self) -> Tensor:  # type: ignore[override]
        """[B T] int64: the row that each new token takes."""
        return self._rows_at(self.positions).flatten()

    def index_keys(self, layer: int) -> Tensor:
        """The index keys of these sequences, [B, L, D]."""
        return self._of_sequences(self.cache.layers[layer].index_k)

    def rows(self, layer: int) -> Tensor:
        """The latents and rope keys of these sequences, [B, L, W]."""
        return self._of_sequences(self.cache.layers[layer].rows)

    def in_storage(self, selected: Tensor) -> Tensor:
        """Positions [B, T, K] of these sequences as row numbers in `storage`, [B T, K]; -1 stays -1."""
        rows = self._rows_at(selected.flatten(1).clamp(min=0).long()).view_as(selected)
        return torch.where(selected < 0, -1, rows).flatten(0, 1)

    def _rows_at(self, positions: Tensor) -> Tensor:
        """Row numbers [B, n] of positions [B, n]."""
        tokens = self.cache.page_tokens
        if self.table.shape[1] == 1:
            return self.table * tokens + positions
        page = torch.div(positions, tokens, rounding_mode="floor")
        return self.table.gather(1, page) * tokens + (positions - page * tokens)

    @cached_property
    def _stretch(self) -> tuple[int, int] | None:
        """(first page, pages from one sequence to the next) where every sequence lies in one piece, at equal
        distances: it is then read without a copy."""
        table = self.table[:, : -(-self.length // self.cache.page_tokens)]
        batch, count = table.shape
        first, distance = int(table[0, 0]), int(table[1, 0] - table[0, 0]) if batch > 1 else count
        starts = first + distance * torch.arange(batch, device=table.device).unsqueeze(1)
        straight = distance >= 0 and torch.equal(table, starts + torch.arange(count, device=table.device))
        return (first, distance) if straight else None

    def _of_sequences(self, part: Tensor) -> Tensor:
        batch, width, tokens = self.table.shape[0], part.shape[-1], self.cache.page_tokens
        if self._stretch is not None:
            first, distance = self._stretch
            piece = part[first:]
            return piece.as_strided((batch, self.length, width), (distance * tokens * width, width, 1))
        pages = self.table[:, : -(-self.length // tokens)]
        return part.index_select(0, pages.flatten()).view(batch, -1, width)[:, : self.length]


class FlatView(_View):
    """New tokens of many sequences as one list [1, M], made of rectangles: (table [B, P], positions [B, T]) each.

    Each token's outcome is the same whatever else is in the list: `model/attention.py` takes one form for all of them,
    over a selection of always `index_topk` places. With `compiled` the network runs in compiled loops
    (`compiled.takes_loops` says whether it can).
    """

    def __init__(
        self,
        cache: LatentCache,
        rectangles: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
        *,
        compiled: bool = False,
    ) -> None:
        self.cache, self.rectangles, self.compiled = cache, rectangles, compiled
        flat = [positions.reshape(-1) for _, positions in rectangles]
        every = flat[0] if len(flat) == 1 else np.concatenate(flat)
        page, place = np.divmod(every, cache.page_tokens)
        self.length = int(every.max()) + 1
        self.positions_array = every
        self.places_array = self.tables[self.owners, page] * cache.page_tokens + place
        self.positions, self.places = torch.from_numpy(every).unsqueeze(0), torch.from_numpy(self.places_array)

    @cached_property
    def tables(self) -> NDArray[np.int64]:
        """[sequences, P] the pages of each."""
        tables = [table for table, _ in self.rectangles]
        if len(tables) == 1:
            return tables[0]
        widest = max(table.shape[1] for table in tables)
        return np.concatenate([np.pad(table, ((0, 0), (0, widest - table.shape[1]))) for table in tables])

    @cached_property
    def owners(self) -> NDArray[np.int64]:
        """[M] the row in `tables` of each token's sequence."""
        owners, first = [], 0
        for _, positions in self.rectangles:
            rows, width = positions.shape
            owners.append(np.repeat(np.arange(first, first + rows), width))
            first += rows
        return owners[0] if len(owners) == 1 else np.concatenate(owners)

    @cached_property
    def parts(self) -> list[tuple[slice, CacheView]]:
        """Each rectangle as a view of its own, with the stretch of the list that it is."""
        parts, start = [], 0
        for table, positions in self.rectangles:
            end = start + positions.size
            view = CacheView(self.cache, torch.from_numpy(table), torch.from_numpy(positions), int(positions.max()) + 1)
            parts.append((slice(start, end), view))
            start = end
        return parts

    def in_storage(self, selected: Tensor) -> Tensor:
        """Positions [1, M, K] as row numbers in `storage`, [M, K]; -1 stays -1."""
        return torch.cat(
            [view.in_storage(selected[0, part].unflatten(0, view.positions.shape)) for part, view in self.parts]
        )
