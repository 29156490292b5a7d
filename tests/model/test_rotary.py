"""MLA turns neighbouring dims, the indexer dims half the width apart; YaRN slows the low frequencies only."""

from __future__ import annotations

import math

import pytest
import torch

from baleen.model.config import ModelConfig
from baleen.model.rotary import rotary_frequencies, rotary_table, rotate_half_split, rotate_interleaved

ANGLES = torch.tensor([0.3, 1.1])
COS, SIN = ANGLES.cos().view(1, 1, 2), ANGLES.sin().view(1, 1, 2)


def turned(x, y, angle):
    return x * math.cos(angle) - y * math.sin(angle), y * math.cos(angle) + x * math.sin(angle)


def test_interleaved_pairs_are_neighbours_and_come_out_half_split():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4)
    (a0, b0), (a1, b1) = turned(1, 2, 0.3), turned(3, 4, 1.1)
    torch.testing.assert_close(rotate_interleaved(x, COS, SIN).flatten(), torch.tensor([a0, a1, b0, b1]))


def test_half_split_pairs_are_half_the_width_apart():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4)
    (a0, b0), (a1, b1) = turned(1, 3, 0.3), turned(2, 4, 1.1)
    torch.testing.assert_close(rotate_half_split(x, COS, SIN).flatten(), torch.tensor([a0, a1, b0, b1]))


@pytest.mark.parametrize("rotate", [rotate_interleaved, rotate_half_split])
def test_products_depend_on_the_distance_alone(rotate):
    config = ModelConfig(qk_rope_head_dim=16)
    frequencies, factor = rotary_frequencies(config)
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 16, generator=generator)

    def product(at, to):
        tables = [rotary_table(torch.tensor([[position]]), frequencies, factor) for position in (at, to)]
        return float((rotate(q, *tables[0]) * rotate(k, *tables[1])).sum())

    assert product(7, 3) == pytest.approx(product(104, 100), abs=1e-4)
    assert product(7, 3) != pytest.approx(product(8, 3), abs=1e-3)


def test_plain_frequencies_are_powers_of_the_base():
    frequencies, factor = rotary_frequencies(ModelConfig(qk_rope_head_dim=4, rope_theta=100.0))
    torch.testing.assert_close(frequencies, torch.tensor([1.0, 0.1]))
    assert factor == 1.0


def test_yarn_keeps_the_fast_dims_slows_the_slow_ones_and_raises_the_softmax_scale():
    scaling = {
        "rope_type": "yarn",
        "factor": 40,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
    }
    plain, _ = rotary_frequencies(ModelConfig())
    scaled, factor = rotary_frequencies(ModelConfig(rope_scaling=scaling))
    # 64 dims, base 10000: 32 turns in 4096 tokens at dim 10.47, one turn at dim 22.51; the ramp runs from 10 to 23.
    torch.testing.assert_close(scaled[:11], plain[:11])
    torch.testing.assert_close(scaled[23:], plain[23:] / 40)
    torch.testing.assert_close(scaled[12], plain[12] * (11 / 13 + 2 / 13 / 40))
    assert factor == 1.0  # mscale and mscale_all_dim cancel
    grown = ModelConfig(rope_scaling=scaling).softmax_scale / ModelConfig().softmax_scale
    assert grown == pytest.approx((0.1 * math.log(40) + 1) ** 2)
