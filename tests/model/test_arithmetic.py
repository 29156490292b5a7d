"""The counted parameters are those of the network, the costs those that are published, worked by hand where short."""

import pytest
import torch

import tiny
from baleen.model.arithmetic import (
    Weight,
    activation_bytes_per_token,
    cache_bytes_per_token,
    cache_layer_bytes,
    count_parameters,
    forward_flops,
    pair_flops,
    weights,
)
from baleen.model.cache import LatentCache
from baleen.model.config import ModelConfig
from baleen.model.network import Model

V32 = ModelConfig()
V3 = ModelConfig(model_type="deepseek_v3", num_nextn_predict_layers=0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_nextn_predict_layers": 0},
        {"model_type": "deepseek_v3"},
        {"q_lora_rank": None},
        {"attention_bias": True},
        {"attention_bias": True, "q_lora_rank": None},
        {"tie_word_embeddings": True},
        {"n_shared_experts": 2},
        {"first_k_dense_replace": 3},
        {"first_k_dense_replace": 0},
    ],
)
def test_the_count_is_that_of_the_network_itself(changes):
    config = ModelConfig(**(tiny.TINY | changes))
    model, counted = Model(config), count_parameters(config)
    assert counted.total == sum(parameter.numel() for parameter in model.parameters())
    biases = [b for name, b in model.named_buffers() if name.endswith("e_score_correction_bias")]
    assert counted.gate_biases == sum(bias.numel() for bias in biases)
    assert 0 < counted.active < counted.total
    parts = {"indexer": ".indexer.", "routers": "mlp.gate.", "shared experts": ".shared_experts."}
    for part, name in parts.items():
        found = [p.numel() for key, p in model.named_parameters() if name in key and not key.startswith("mtp.")]
        assert counted.by_part[part] == sum(found)


def test_layers_that_share_an_index_have_no_indexer():
    class Shared(ModelConfig):
        def index_shared(self, layer):
            return layer == 1

    config, whole = Shared(**tiny.TINY), ModelConfig(**tiny.TINY)
    assert count_parameters(config).total == sum(parameter.numel() for parameter in Model(config).parameters())
    assert count_parameters(config).by_part["indexer"] == count_parameters(whole).by_part["indexer"] * 2 // 3
    latent, index = cache_layer_bytes(config)
    assert cache_bytes_per_token(config) == 3 * latent + 2 * index
    scores = [forward_flops(each, 100, sparse=True).indexer for each in (whole, config)]
    assert scores[1] == scores[0] * 2 // 3


def test_the_published_model_has_671_billion_parameters_and_37_active():
    dense = count_parameters(V3)
    assert dense.total == pytest.approx(671.0e9, abs=0.05e9)
    assert dense.active == pytest.approx(36.6e9, abs=0.05e9)  # "36.6B, including 0.9B for the output head"
    # 61 indexers: wq_b 1536 x 8192, wk 7168 x 128, weights_proj 7168 x 64, and a LayerNorm's 256.
    indexers = 61 * (1536 * 8192 + 7168 * 128 + 7168 * 64 + 256)
    sparse = count_parameters(V32.model_copy(update={"num_nextn_predict_layers": 0}))
    assert sparse.total - dense.total == sparse.active - dense.active == indexers
    assert round(sparse.active / 1e9) == 37


def test_the_published_costs_per_pair_are_met():
    pair = pair_flops(V32)
    assert (pair.indexer, pair.mha, pair.mqa) == (16_384, 81_920, 278_528)


def test_a_token_costs_two_operations_per_active_weight_and_its_pairs():
    dense = forward_flops(V32, 100_000, sparse=False)
    assert dense.indexer == 0
    assert dense.attention == 61 * 100_000 * 81_920
    vectors = 61 * (2 * 7168 + 1536 + 512) + 7168
    assert dense.weights == 2 * (count_parameters(V3).active - vectors)
    projections = 2 * 61 * (1536 * 8192 + 7168 * 128 + 7168 * 64)
    for decoding in (False, True):
        sparse = forward_flops(V32, 100_000, sparse=True, decoding=decoding)
        assert sparse.weights == dense.weights
        assert sparse.indexer == projections + 61 * 100_000 * 16_384
        assert sparse.attention == 61 * 2_048 * 278_528
    assert forward_flops(V32, 100_000, sparse=False, decoding=True).attention == 61 * 100_000 * 278_528


def test_few_keys_are_neither_scored_nor_attended_to_in_the_dearer_form():
    projections = forward_flops(V32, 1, sparse=True).indexer
    assert forward_flops(V32, 2_048, sparse=True).indexer == projections
    assert forward_flops(V32, 2_049, sparse=True).indexer == projections + 61 * 2_049 * 16_384
    for context in (100, 2_048, 6_000):  # below 2048 x 278.5 / 81.9 = 6963 keys the mask is cheaper
        sparse, dense = (forward_flops(V32, context, sparse=each) for each in (True, False))
        assert sparse.attention == dense.attention


def test_the_gain_at_128k_is_near_the_published_one():
    """Cost per token at 128K, dense over sparse: prefill 0.666 / 0.187, decode 2.155 / 0.249 (dollars per million)."""
    for decoding, published in ((False, 0.666 / 0.187), (True, 2.155 / 0.249)):
        dense, sparse = (forward_flops(V32, 131_072, sparse=each, decoding=decoding).total for each in (False, True))
        assert dense / sparse == pytest.approx(published, rel=0.2)


def test_sparse_attention_without_an_indexer_is_refused():
    with pytest.raises(ValueError, match="convert it first"):
        forward_flops(V3, 10, sparse=True)


def test_the_cache_has_the_published_bytes():
    assert cache_layer_bytes(V32, "fp8") == (656, 132)
    assert cache_layer_bytes(V32) == (2 * (512 + 64), 2 * 128)
    assert cache_bytes_per_token(V32, "fp8") == 61 * (656 + 132)
    assert cache_bytes_per_token(V32) == 61 * (512 + 64 + 128) * 2
    assert cache_bytes_per_token(V3) == 61 * (512 + 64) * 2


@pytest.mark.parametrize("changes", [{}, {"model_type": "deepseek_v3"}])
def test_the_cache_is_that_of_the_engine(changes):
    config = ModelConfig(**(tiny.TINY | changes))
    cache = LatentCache(config, pages=2, page_tokens=10, dtype=torch.bfloat16)
    held = sum(part.nbytes for layer in cache.layers for part in vars(layer).values())
    assert held == 2 * 10 * cache_bytes_per_token(config)


def test_fp8_weights_are_a_byte_each_with_a_scale_per_block_of_128():
    assert Weight("mlp.up_proj.weight", "dense feed-forward", 0, 256, 384).bytes("fp8") == 256 * 384 + 6 * 4
    assert Weight("mlp.up_proj.weight", "dense feed-forward", 0, 129, 1, copies=3).bytes("fp8") == 2 * 129 * 3
    ragged = Weight("mlp.experts.up_proj.weight", "routed experts", 0, 129, 100, copies=3)
    assert ragged.bytes("fp8") == 3 * (129 * 100 + 2 * 4)
    for name in ("embed_tokens", "lm_head", "mlp.gate", "self_attn.indexer.weights_proj"):
        found = [weight for weight in weights(V32) if weight.name == f"{name}.weight"]
        assert found
        assert all(weight.bytes("fp8") == 2 * weight.parameters for weight in found)


def test_the_folder_on_the_hub_has_the_published_685_billion():
    """DeepSeek-V3's README: 671B and an MTP module of 14B, which repeats embedding and head."""
    repeated = 2 * V3.vocab_size * V3.hidden_size
    mtp = count_parameters(V3.model_copy(update={"num_nextn_predict_layers": 1})).by_part["multi-token prediction"]
    assert count_parameters(V3).total + mtp + repeated == pytest.approx(685e9, rel=1e-3)


def test_activations_are_the_layer_inputs_the_choices_and_one_layer_at_work():
    kept, working = activation_bytes_per_token(V32)
    assert kept == 62 * 7168 * 2 + 61 * 2048 * 4
    assert activation_bytes_per_token(V3)[0] == 61 * 7168 * 2
    # Attention: input, its norm and output; queries and their latent; latent row; absorbed queries and outputs;
    # index queries and key; values of the heads. Experts: input, output, gate, up and product of eight; a shared one.
    attention = 3 * 7168 + 1536 + 128 * 192 + 576 + 128 * (576 + 512) + 65 * 128 + 128 * 128
    experts = 8 * (2 * 7168 + 3 * 2048) + 3 * 2048
    assert working == 2 * 2 * (attention + experts)
    assert activation_bytes_per_token(V3)[1] < working
