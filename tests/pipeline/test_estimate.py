"""A stage costs its tokens, at the cost of the network's forward passes."""

import pytest

from baleen.model.arithmetic import forward_flops
from baleen.pipeline.estimate import estimate_stage, measure_rate
from baleen.pipeline.loading import load_recipe


def test_a_stage_costs_its_tokens():
    recipe = load_recipe("micro", ["pretrain.steps=10", "pretrain.tokens_per_step=1000"])
    estimate = estimate_stage(recipe, "pretrain", rate=1e9)
    assert estimate.trained_tokens == 10_000
    assert estimate.sampled_tokens == 0
    one = forward_flops(recipe.network(), recipe.pretrain.sequence_length // 2, sparse=False).total
    assert estimate.operations == 10_000 * 3 * one
    assert estimate_stage(recipe, "pretrain", rate=2e9).seconds == pytest.approx(estimate.seconds / 2)
    section = recipe.mixed_rl
    episodes = section.steps * section.tasks_per_step * section.group_size
    reinforced = estimate_stage(recipe, "mixed_rl", rate=1e9)
    assert 0 < reinforced.sampled_tokens < episodes * section.max_turns * section.max_tokens
    assert estimate_stage(recipe, "tokenizer", rate=1e9) is None


def test_the_rate_of_this_machine_is_a_rate():
    assert 1e8 < measure_rate(load_recipe("micro").network(), seconds=0.02) < 1e15
