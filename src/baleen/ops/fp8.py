"""FP8 with fine-grained scales (DeepSeek-V3, section 3.3): e4m3 values, one fp32 scale per block or group.

    q = e4m3(x / scale),  x ~ q * scale,  scale = amax / 448

Weights share a scale per 128 x 128 block (`weight_scale_inv` in a checkpoint: the factor to multiply by), activations
per 1 x 128 group. With the format `ue8m0` a scale is rounded UP to a power of two, so that multiplying by it is exact
and no value passes 448. The fast forms work on stripes of rows, so that beside the result they hold a row of blocks or
about a megabyte in fp32, never the whole weight; the `reference_` forms say the same block by block.
"""

# M, N = rows and columns of a matrix

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

FP8 = torch.float8_e4m3fn

LARGEST = 448.0
"""The largest e4m3 value."""

BLOCK = 128
"""Rows and columns of a weight block, and columns of an activation group."""

LEAST_ACTIVATION = 1e-4
"""Activations smaller than this do not shrink their group's scale further (the released kernels)."""

LEAST_WEIGHT = LARGEST * 2.0**-126
"""The least block maximum: its scale is the smallest normal fp32 number, so a block of zeros needs no other rule."""

STRIPE = 1 << 18
"""About how many values are in fp32 at a time; a row of blocks at least."""


def block_shape(rows: int, columns: int) -> tuple[int, int]:
    """The shape of the scales of a weight [rows, columns]: blocks down and across, the last ones perhaps not full."""
    return -(-rows // BLOCK), -(-columns // BLOCK)


def quantise_blocks(weight: Tensor, *, ue8m0: bool) -> tuple[Tensor, Tensor]:
    """A weight [M, N] of any floating dtype -> e4m3 [M, N] and `scale_inv` [ceil(M/128), ceil(N/128)] in fp32.

    Values that are e4m3 times a power of two come back exactly. Raises `ValueError` for values that are not finite,
    which no scale can hold.
    """
    _check_matrix(weight)
    quantised, scale = _quantise(weight, BLOCK, LEAST_WEIGHT, ue8m0)
    if not bool(torch.isfinite(scale).all()):
        raise ValueError("the weight holds values that are not finite; FP8 blocks cannot hold them")
    return quantised, scale


def dequantise_blocks(weight: Tensor, scale_inv: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """e4m3 [M, N] times its blocks' scales [ceil(M/128), ceil(N/128)]: [M, N], multiplied in fp32, then in `dtype`.

    Raises `ValueError` when the scales do not fit the weight.
    """
    _check_matrix(weight)
    rows, columns = weight.shape
    if tuple(scale_inv.shape) != block_shape(rows, columns):
        raise ValueError(
            f"a weight of shape {[rows, columns]} has scales of shape {list(block_shape(rows, columns))}, "
            f"not {list(scale_inv.shape)}"
        )
    out = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    for first, end in _stripes(rows, columns, BLOCK):
        scale = scale_inv[first // BLOCK : -(-end // BLOCK)].float()
        scale = scale.repeat_interleave(BLOCK, 1)[:, :columns].repeat_interleave(BLOCK, 0)[: end - first]
        out[first:end] = scale.mul_(weight[first:end].float())
    return out


def quantise_groups(x: Tensor, *, ue8m0: bool) -> tuple[Tensor, Tensor]:
    """Activations [..., N] -> e4m3 [..., N] and scales [..., ceil(N/128)] in fp32: max(amax, 1e-4) / 448 per group.

    A group with a value that is not finite gets a scale that is not finite either: nothing is hidden.
    """
    flat = x.reshape(-1, x.shape[-1])
    quantised, scale = _quantise(flat, 1, LEAST_ACTIVATION, ue8m0)
    return quantised.view(x.shape), scale.view(*x.shape[:-1], -1)


def reference_quantise(x: Tensor, rows: int, least: float, *, ue8m0: bool) -> tuple[Tensor, Tensor]:
    """The plain form of both quantisers on [M, N]: blocks of `rows` x 128 one after the other."""
    quantised = torch.empty(x.shape, dtype=FP8)
    scales = torch.empty(-(-x.shape[0] // rows), -(-x.shape[1] // BLOCK))
    for down in range(scales.shape[0]):
        for across in range(scales.shape[1]):
            part = (slice(down * rows, (down + 1) * rows), slice(across * BLOCK, (across + 1) * BLOCK))
            scale = x[part].float().abs().max().clamp(min=least) / LARGEST
            if ue8m0:
                mantissa, exponent = torch.frexp(scale)  # scale = mantissa 2^exponent, mantissa in [1/2, 1)
                scale = torch.ldexp(torch.tensor(1.0), exponent - (mantissa == 0.5).int())
            quantised[part] = (x[part].float() / scale).to(FP8)
            scales[down, across] = scale
    return quantised, scales


def reference_dequantise_blocks(weight: Tensor, scale_inv: Tensor) -> Tensor:
    """The plain form of `dequantise_blocks`, in fp32: one value after the other."""
    out = torch.empty(weight.shape)
    for row in range(weight.shape[0]):
        for column in range(weight.shape[1]):
            out[row, column] = weight[row, column].float() * scale_inv[row // BLOCK, column // BLOCK]
    return out


def _quantise(x: Tensor, rows: int, least: float, ue8m0: bool) -> tuple[Tensor, Tensor]:
    """[M, N] in blocks of `rows` x 128. The last blocks are filled up with zeros, which change no maximum."""
    height, width = x.shape
    quantised = torch.empty(x.shape, dtype=FP8, device=x.device)
    scales = torch.empty(-(-height // rows), -(-width // BLOCK), device=x.device)
    for first, end in _stripes(height, width, rows):
        padded = F.pad(x[first:end].float(), (0, -width % BLOCK, 0, (first - end) % rows))
        blocks = padded.view(padded.shape[0] // rows, rows, padded.shape[1] // BLOCK, BLOCK)
        scale = blocks.abs().amax((1, 3)).clamp_(min=least) / LARGEST
        if ue8m0:
            scale = _power_of_two_above(scale)
        quantised[first:end] = (blocks / scale[:, None, :, None]).to(FP8).view(padded.shape)[: end - first, :width]
        scales[first // rows : -(-end // rows)] = scale
    return quantised, scales


def _stripes(height: int, width: int, multiple: int) -> Iterator[tuple[int, int]]:
    """The rows of a matrix in stripes of about `STRIPE` values: (first, end). All but the last hold whole blocks."""
    step = max(STRIPE // max(width, 1) // multiple, 1) * multiple
    for first in range(0, height, step):
        yield first, min(first + step, height)


def _power_of_two_above(scale: Tensor) -> Tensor:
    """The least power of two that is not below a positive normal fp32 number: any mantissa bit carries into the
    exponent. What is not a number stays so."""
    rounded = ((scale.view(torch.int32) + 0x7FFFFF) & 0x7F800000).view(torch.float32)
    return torch.where(scale.isfinite(), rounded, scale)


def _check_matrix(weight: Tensor) -> None:
    if weight.dim() != 2:
        raise ValueError(f"FP8 blocks need a matrix, not a tensor of shape {list(weight.shape)}")
