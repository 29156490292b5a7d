"""A long prompt through the cache, a chunk at a time: activations are bounded by the chunk, not by the prompt."""

# B = batch, S = tokens

from __future__ import annotations

import torch
from torch import Tensor

from baleen.model.cache import CacheView, LatentCache
from baleen.model.network import Model, Output

CHUNK = 2048
"""Tokens of one forward; with more, memory that is new to the process costs more than larger products gain."""


@torch.no_grad()
def prefill(
    model: Model,
    input_ids: Tensor,
    cache: LatentCache | None = None,
    *,
    chunk: int = CHUNK,
    sparse: bool | None = None,
) -> tuple[Output, LatentCache]:
    """Forwards input_ids [B, S] and leaves them in the cache's first B pages, one for each row.

    Returns the last chunk's output (`hidden` alone, no logits) and the cache, a new one of exactly this size if none is
    given. The result is that of one whole forward, whatever the chunk. Raises `ValueError` when the prompt does not fit
    the cache.
    """
    batch, length = input_ids.shape
    if not length:
        raise ValueError("the prompt is empty: give at least one token")
    if cache is None:
        cache = LatentCache(model.config, batch, length, model.compute_dtype)
    if batch > cache.pages or length > cache.page_tokens:
        raise ValueError(
            f"a prompt of {batch} x {length} tokens does not fit a cache of {cache.pages} x {cache.page_tokens}"
        )
    for start in range(0, length, chunk):
        end = min(start + chunk, length)
        view = CacheView.plain(cache, range(batch), start, end)
        out = model(input_ids[:, start:end], cache=view, sparse=sparse, logits=False)
    return out, cache
