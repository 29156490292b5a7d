"""The counted parameters are those of the network, and of the published one at its published size."""

import pytest

from baleen.model.config import ModelConfig
from baleen.pipeline.estimate import (
    attention_operations,
    cache_bytes_per_token,
    count_parameters,
    estimate_stage,
    measure_rate,
)
from baleen.pipeline.loading import load_recipe

PUBLISHED = ModelConfig()


def test_the_published_model_has_671_billion_parameters_and_37_active():
    dense = count_parameters(PUBLISHED.model_copy(update={"model_type": "deepseek_v3", "num_nextn_predict_layers": 0}))
    assert dense.total == pytest.approx(671.03e9, rel=1e-4)
    assert dense.active == pytest.approx(37.5e9, rel=0.01)
    # 61 indexers: wq_b 1536 x 8192, wk 7168 x 128, weights_proj 7168 x 64, and a LayerNorm's 256.
    sparse = count_parameters(PUBLISHED.model_copy(update={"num_nextn_predict_layers": 0}))
    assert sparse.total - dense.total == 61 * (1536 * 8192 + 7168 * 128 + 7168 * 64 + 256)


@pytest.mark.parametrize("recipe", ["micro", "nano"])
@pytest.mark.parametrize("changes", [{}, {"num_nextn_predict_layers": 0}, {"model_type": "deepseek_v3"}])
def test_the_count_is_that_of_the_network_itself(recipe, changes):
    from baleen.model.network import Model

    config = load_recipe(recipe).network().model_copy(update=changes)
    counted = count_parameters(config)
    assert counted.total == sum(parameter.numel() for parameter in Model(config).parameters())
    assert counted.active < counted.total


def test_the_published_costs_per_pair_are_met():
    """Indexer 16.4 kFLOP, heads in MHA form 81.9 kFLOP per query-key pair."""
    layers, context = PUBLISHED.num_hidden_layers, 100_000
    assert attention_operations(PUBLISHED, context, sparse=False) == layers * context * 81_920
    assert attention_operations(PUBLISHED, context, sparse=True) == layers * (context * 16_384 + 2048 * 81_920)
    short = 100
    assert attention_operations(PUBLISHED, short, sparse=True) > attention_operations(PUBLISHED, short, sparse=False)


def test_the_cache_holds_latent_rope_key_and_index_key():
    assert cache_bytes_per_token(PUBLISHED) == 61 * (512 + 64 + 128) * 2


def test_a_stage_costs_its_tokens():
    recipe = load_recipe("micro", ["pretrain.steps=10", "pretrain.tokens_per_step=1000"])
    estimate = estimate_stage(recipe, "pretrain", rate=1e9)
    assert estimate.trained_tokens == 10_000
    assert estimate.sampled_tokens == 0
    assert estimate_stage(recipe, "pretrain", rate=2e9).seconds == pytest.approx(estimate.seconds / 2)
    section = recipe.mixed_rl
    episodes = section.steps * section.tasks_per_step * section.group_size
    reinforced = estimate_stage(recipe, "mixed_rl", rate=1e9)
    assert 0 < reinforced.sampled_tokens < episodes * section.max_turns * section.max_tokens
    assert estimate_stage(recipe, "tokenizer", rate=1e9) is None


def test_the_rate_of_this_machine_is_a_rate():
    assert 1e8 < measure_rate(load_recipe("micro").network(), seconds=0.02) < 1e15
