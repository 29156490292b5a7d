"""FP8 blocks and groups: the fast form is the plain one, what fits comes back exactly, the rest within e4m3's step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baleen.ops import fp8
from baleen.ops.fp8 import (
    BLOCK,
    FP8,
    LEAST_ACTIVATION,
    LEAST_WEIGHT,
    block_shape,
    dequantise_blocks,
    quantise_blocks,
    quantise_groups,
    reference_dequantise_blocks,
    reference_quantise,
)

SHAPES = [(128, 128), (256, 384), (1, 1), (127, 129), (300, 5), (130, 257)]
WORST_STEP = 2**-4
"""Half a step of e4m3's three mantissa bits, relative to the value."""


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def is_power_of_two(scale):
    return bool((torch.frexp(scale).mantissa == 0.5).all())


@pytest.mark.parametrize("ue8m0", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_are_quantised_as_in_the_plain_form(shape, dtype, ue8m0):
    weight = normal(*shape, dtype=dtype)
    quantised, scale = quantise_blocks(weight, ue8m0=ue8m0)
    expected, expected_scale = reference_quantise(weight, BLOCK, LEAST_WEIGHT, ue8m0=ue8m0)
    assert quantised.dtype == FP8
    assert tuple(scale.shape) == block_shape(*shape)
    assert torch.equal(quantised.float(), expected.float())
    assert torch.equal(scale, expected_scale)


@pytest.mark.parametrize("shape", [(1, 1), (3, 129), (129, 3)])
def test_blocks_are_dequantised_as_in_the_plain_form(shape):
    quantised, scale = quantise_blocks(normal(*shape), ue8m0=False)
    assert torch.equal(dequantise_blocks(quantised, scale), reference_dequantise_blocks(quantised, scale))


@pytest.mark.parametrize("ue8m0", [True, False])
@pytest.mark.parametrize("shape", [(4, 128), (3, 200), (1, 1), (7, 513)])
def test_groups_are_quantised_as_in_the_plain_form(shape, ue8m0):
    x = normal(*shape) * 1e-3
    x[0] = 0
    quantised, scale = quantise_groups(x, ue8m0=ue8m0)
    expected, expected_scale = reference_quantise(x, 1, LEAST_ACTIVATION, ue8m0=ue8m0)
    assert torch.equal(quantised.float(), expected.float())
    assert torch.equal(scale, expected_scale)


@pytest.mark.parametrize("size", [1, 260 * 128, 2 * 260 * 128 + 5])
def test_stripes_of_rows_change_nothing(size, monkeypatch):
    weight = normal(515, 260)
    whole = quantise_blocks(weight, ue8m0=False)
    groups = quantise_groups(weight, ue8m0=False)
    back = dequantise_blocks(*whole, torch.bfloat16)
    monkeypatch.setattr(fp8, "STRIPE", size)
    assert len(list(fp8._stripes(515, 260, BLOCK))) > 2
    for before, after in (
        (whole, quantise_blocks(weight, ue8m0=False)),
        (groups, quantise_groups(weight, ue8m0=False)),
    ):
        assert torch.equal(before[0].float(), after[0].float())
        assert torch.equal(before[1], after[1])
    assert torch.equal(back, dequantise_blocks(*whole, torch.bfloat16))


def test_groups_keep_the_leading_dims():
    x = normal(2, 3, 4, 300)
    quantised, scale = quantise_groups(x, ue8m0=True)
    assert quantised.shape == x.shape
    assert scale.shape == (2, 3, 4, 3)
    alone = quantise_groups(x[1, 2], ue8m0=True)
    assert torch.equal(quantised[1, 2].float(), alone[0].float())
    assert torch.equal(scale[1, 2], alone[1])


@given(st.integers(-100, 100), st.integers(1, 300), st.integers(1, 300), st.integers(0, 1000))
def test_values_that_are_e4m3_times_a_power_of_two_come_back_exactly(exponent, rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (rows, columns), generator=generator).to(torch.uint8)
    codes[(codes & 0x7F) == 0x7F] = 0  # not a number
    weight = codes.view(FP8).float() * 2.0**exponent
    quantised, scale = quantise_blocks(weight, ue8m0=True)
    assert is_power_of_two(scale)
    assert torch.equal(dequantise_blocks(quantised, scale), weight)
    assert torch.equal(dequantise_blocks(*quantise_blocks(weight, ue8m0=True)), weight)


@given(st.booleans(), st.floats(1e-30, 1e30), st.integers(0, 1000))
def test_no_value_moves_further_than_half_a_step(ue8m0, size, seed):
    weight = normal(130, 140, seed=seed) * size
    quantised, scale = quantise_blocks(weight, ue8m0=ue8m0)
    assert bool(torch.isfinite(quantised.float()).all())
    smallest = scale.repeat_interleave(BLOCK, 0)[:130].repeat_interleave(BLOCK, 1)[:, :140] * 2**-10
    error = (dequantise_blocks(quantised, scale) - weight).abs()
    assert bool((error <= torch.maximum(weight.abs() * WORST_STEP, smallest) * 1.001).all())


@given(st.floats(2.0**-120, 2.0**120))
def test_a_ue8m0_scale_is_the_least_power_of_two_that_fits(size):
    weight = torch.full((1, 1), size, dtype=torch.float32)
    plain, rounded = (quantise_blocks(weight, ue8m0=flag)[1] for flag in (False, True))
    assert is_power_of_two(rounded)
    assert plain <= rounded < 2 * plain


@pytest.mark.parametrize("ue8m0", [True, False])
def test_zeros_stay_zeros_and_their_scales_are_usable(ue8m0):
    quantised, scale = quantise_blocks(torch.zeros(200, 3), ue8m0=ue8m0)
    assert bool((scale > 0).all())
    assert torch.equal(dequantise_blocks(quantised, scale), torch.zeros(200, 3))
    quantised, scale = quantise_groups(torch.zeros(2, 3), ue8m0=ue8m0)
    assert not quantised.float().any()
    assert bool((scale >= LEAST_ACTIVATION / 448 * 0.999).all())


def test_a_large_block_does_not_spoil_its_neighbours():
    weight = normal(256, 256) * 1e-3
    weight[:128, :128] *= 1e6
    quantised, scale = quantise_blocks(weight, ue8m0=True)
    alone = quantise_blocks(weight[128:, 128:], ue8m0=True)
    assert torch.equal(quantised[128:, 128:].float(), alone[0].float())
    assert scale[1, 1] == alone[1]


def test_the_result_has_the_dtype_asked_for():
    quantised, scale = quantise_blocks(normal(5, 6), ue8m0=True)
    inexact = dequantise_blocks(quantised, scale, torch.bfloat16)
    assert inexact.dtype == torch.bfloat16
    # e4m3 times a power of two fits bf16, so nothing is lost.
    assert torch.equal(inexact.float(), dequantise_blocks(quantised, scale))


def test_what_cannot_be_held_is_refused():
    for bad in (torch.inf, torch.nan):
        weight = normal(5, 6)
        weight[1, 1] = bad
        with pytest.raises(ValueError, match="not finite"):
            quantise_blocks(weight, ue8m0=True)
        scale = quantise_groups(weight, ue8m0=True)[1]
        assert scale.isfinite().flatten().tolist() == [True, False, True, True, True]
    with pytest.raises(ValueError, match="matrix"):
        quantise_blocks(normal(5), ue8m0=True)
    quantised, _ = quantise_blocks(normal(129, 6), ue8m0=True)
    with pytest.raises(ValueError, match=r"scales of shape \[2, 1\], not \[1, 1\]"):
        dequantise_blocks(quantised, torch.ones(1, 1))
