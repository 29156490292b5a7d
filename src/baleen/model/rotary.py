"""Rotary position embedding with YaRN.

MLA rotates interleaved pairs `(x0, x1), (x2, x3)...`; the lightning indexer rotates half-split pairs `(x0,
x_{d/2})...`. Both use the same frequencies. Only dot products of rotated vectors are ever used, so the interleaved
form may return its dims in half-split order.
"""

# B = batch, S = tokens, R = rope dims

from __future__ import annotations

import math

import torch
from torch import Tensor

from baleen.model.config import ModelConfig


def rotary_frequencies(config: ModelConfig) -> tuple[Tensor, float]:
    """Inverse frequencies [R/2] in fp32 and the factor on cos and sin (YaRN's attention factor)."""
    dims, base, scaling = config.qk_rope_head_dim, config.rope_theta, config.rope_scaling
    plain = base ** -(torch.arange(0, dims, 2, dtype=torch.float32) / dims)
    if not scaling or scaling.get("rope_type", scaling.get("type")) == "default":
        return plain, 1.0
    factor, original = scaling["factor"], scaling["original_max_position_embeddings"]

    def dim_of(rotations: float) -> float:
        return dims * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = dim_of(scaling.get("beta_fast") or 32), dim_of(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    ramp = ((torch.arange(dims // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)
    mscale, mscale_all = scaling.get("mscale"), scaling.get("mscale_all_dim")

    def magnitude(strength: float) -> float:
        return 0.1 * strength * math.log(factor) + 1.0 if factor > 1 else 1.0

    attention_factor = magnitude(mscale) / magnitude(mscale_all) if mscale and mscale_all else magnitude(1.0)
    attention_factor = scaling.get("attention_factor") or attention_factor
    return plain / factor * ramp + plain * (1 - ramp), attention_factor


def rotary_table(position_ids: Tensor, frequencies: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """cos and sin [B, S, R/2] in fp32 for integer positions [B, S]."""
    angles = position_ids[..., None].float() * frequencies
    return angles.cos() * factor, angles.sin() * factor


class RotaryCache:
    """Tables of the first positions, kept: a decoding step looks a few up rather than making them anew."""

    def __init__(self) -> None:
        self.cos = self.sin = torch.empty(0, 0)

    def first(self, length: int, frequencies: Tensor, factor: float) -> tuple[Tensor, Tensor]:
        """`rotary_table` of the first positions, [length or more, R/2]."""
        if self.cos.shape[0] < length or self.cos.device != frequencies.device:
            every = torch.arange(max(length, 2 * self.cos.shape[0]), device=frequencies.device)
            self.cos, self.sin = rotary_table(every, frequencies, factor)
        return self.cos, self.sin


def rotate_interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates x [B, S, H, R], pairs of neighbouring dims; the result's dims are in half-split order."""
    return _rotate(x[..., 0::2], x[..., 1::2], cos, sin)


def rotate_half_split(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates x [B, S, H, R], pairs of dims half the width apart."""
    first, second = x.chunk(2, dim=-1)
    return _rotate(first, second, cos, sin)


def _rotate(first: Tensor, second: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = cos[:, :, None].to(first.dtype), sin[:, :, None].to(first.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
