"""`config.json` of every family: what it says, what it leaves unsaid, and what is refused by name."""

from __future__ import annotations

import json
import math

import pytest
import torch

from baleen.model.config import ModelConfig, UnsupportedCheckpointError
from baleen.model.families import FAMILIES, ConfigError
from baleen.model.rotary import rotary_frequencies

transformers = pytest.importorskip("transformers")

SMALL = {
    **{"vocab_size": 120, "hidden_size": 48, "intermediate_size": 64, "moe_intermediate_size": 24},
    **{"num_attention_heads": 4, "num_key_value_heads": 4, "n_routed_experts": 8, "num_experts_per_tok": 2},
    **{"n_group": 1, "topk_group": 1, "q_lora_rank": 24, "kv_lora_rank": 20, "qk_nope_head_dim": 16},
    **{"v_head_dim": 12, "index_n_heads": 16, "index_topk": 12},
}

V2_LITE = {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707, "type": "yarn"} | {
    "original_max_position_embeddings": 4096
}
KIMI = V2_LITE | {"beta_fast": 1.0, "factor": 32.0, "mscale": 1.0, "mscale_all_dim": 1.0}
ROPES = {
    "nothing": {},
    "V2-Lite": {"rope_scaling": V2_LITE, "rope_theta": 10000},
    "Kimi K2": {"rope_scaling": KIMI, "rope_theta": 50000.0},
    "GLM-5": {"rope_parameters": {"rope_theta": 1000000, "rope_type": "default"}},
    "two bases": {"rope_parameters": {"rope_theta": 1000000, "rope_type": "default"}, "rope_theta": 500.0},
    "base inside the scaling": {"rope_scaling": V2_LITE | {"rope_theta": 777.0}, "rope_theta": 500.0},
    "empty scaling": {"rope_scaling": {}, "rope_parameters": {"rope_type": "yarn", "factor": 3.0, "rope_theta": 99.0}},
    "no original length": {"rope_scaling": {"type": "yarn", "factor": 8.0}, "max_position_embeddings": 4096},
    "own attention factor": {"rope_scaling": V2_LITE | {"attention_factor": 1.3, "truncate": False}},
    "a factor that is not the ratio": {"rope_scaling": V2_LITE, "max_position_embeddings": 8192},
}


@pytest.mark.parametrize("kind", ["deepseek_v2", "deepseek_v3", "glm4_moe_lite", "deepseek_v32", "glm_moe_dsa"])
@pytest.mark.parametrize("case", ROPES)
def test_positions_turn_as_they_do_in_transformers(case, kind, tmp_path):
    small = SMALL | {"qk_rope_head_dim": 64, "index_head_dim": 64, "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind} | small | ROPES[case]))
    ours = ModelConfig.from_pretrained(tmp_path)
    theirs = transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained(tmp_path))
    frequencies, factor = rotary_frequencies(ours)
    torch.testing.assert_close(frequencies, theirs.rotary_emb.inv_freq, atol=0, rtol=1e-5)
    assert factor == pytest.approx(theirs.rotary_emb.attention_scaling)
    assert ours.softmax_scale == pytest.approx(theirs.layers[0].self_attn.scaling)


def test_a_null_means_none_rather_than_the_default(tmp_path):
    nulls = ("n_shared_experts", "n_group", "topk_group", "norm_topk_prob", "eos_token_id", "q_lora_rank")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "deepseek_v3"} | dict.fromkeys(nulls)))
    config = ModelConfig.from_pretrained(tmp_path)
    assert [getattr(config, name) for name in nulls] == [0, 1, 1, False, None, None]
    (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
    assert ModelConfig.from_pretrained(tmp_path) == config


def test_experts_on_every_nth_layer(tmp_path):
    fields = {"model_type": "deepseek_v2", "num_hidden_layers": 8, "first_k_dense_replace": 1, "moe_layer_freq": 3}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert ModelConfig.from_pretrained(tmp_path).moe_layers == [3, 6]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"index_topk_freq": 4, "index_skip_topk_offset": 2}, "FFSSSFSS"),
        ({"index_topk_freq": 4, "index_skip_topk_offset": 1}, "FSSSFSSS"),
        ({"index_topk_pattern": "FSFSFSFS"}, "FSFSFSFS"),
        ({}, "FFFFFFFF"),
    ],
)
def test_sharing_is_read_from_a_pattern_or_a_frequency_as_transformers_reads_it(fields, expected, tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "glm_moe_dsa", "num_hidden_layers": 8, "n_group": 1, "topk_group": 1} | fields)
    )
    config = ModelConfig.from_pretrained(tmp_path)
    assert "".join("S" if config.index_shared(layer) else "F" for layer in range(8)) == expected
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert [kind[0].upper() for kind in theirs.indexer_types] == list(expected)


@pytest.mark.parametrize("kind", [kind for kind in FAMILIES if kind != "kimi_k2"])
def test_what_a_config_leaves_out_is_what_transformers_takes_it_for(kind, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    theirs, ours = transformers.AutoConfig.from_pretrained(tmp_path), ModelConfig.from_pretrained(tmp_path)
    own = {"model_type", "num_nextn_predict_layers", "scoring_func", "topk_method", "mlp_layer_types"}
    own |= {"rope_theta", "rope_scaling", "indexer_rope_interleave"}
    for name in set(ModelConfig.model_fields) - own:
        value = getattr(theirs, name, None)
        if value is not None:
            assert getattr(ours, name) == (tuple(value) if isinstance(value, list) else value) or (
                name == "indexer_types" and set(value) == {"full"}
            ), name


IMPOSSIBLE = [0, -1, 7, 1e-30, math.nan, math.inf, True, False, "x", "4", [], [1, 2], {}, {"rope_type": ["yarn"]}] + [
    {"rope_type": "yarn", "factor": 2.0} | wrong
    for wrong in (
        *({"factor": True}, {"factor": math.nan}, {"beta_fast": "x"}, {"mscale": "1", "mscale_all_dim": "1"}),
        *({"attention_factor": "x"}, {"rope_theta": "x"}, {"original_max_position_embeddings": 0}),
    )
]
DERIVED = ("moe_layer_freq", "index_topk_freq", "index_skip_topk_offset", "index_topk_pattern", "rope_parameters")
OTHERS = ("hidden_act", "mlp_bias", "partial_rotary_factor")
NAMED = {"rope_scaling": "rope", "rope_parameters": "rope", "index_topk_pattern": "index"}
"""Fields whose content is refused under another name as well."""


def read_or_refused(folder):
    """The config, or the words that it is refused with; any other error passes through."""
    try:
        return ModelConfig.from_pretrained(folder), ""
    except ConfigError as error:
        return None, str(error)


@pytest.mark.parametrize("name", sorted({*ModelConfig.model_fields, *DERIVED, *OTHERS} - {"model_type"}))
def test_whatever_a_field_holds_it_is_read_and_written_back_or_refused_by_name(name, tmp_path):
    file = tmp_path / "config.json"
    for kind in FAMILIES:
        for value in (None, *IMPOSSIBLE):
            file.write_text(json.dumps({"model_type": kind, "num_hidden_layers": 8, name: value}))
            config, refusal = read_or_refused(tmp_path)
            if config is None:
                assert refusal.startswith(f"{file}: ")
                assert NAMED.get(name, name) in refusal, (kind, value)
                continue
            frequencies, factor = rotary_frequencies(config)
            assert frequencies.isfinite().all()
            assert math.isfinite(factor * config.softmax_scale)
            file.write_text(json.dumps(config.to_json()))
            assert ModelConfig.from_pretrained(tmp_path) == config, (kind, value)


@pytest.mark.parametrize("kind", [kind for kind in FAMILIES if kind != "kimi_k2"])
@pytest.mark.parametrize("dense", [0, 2, 4])
def test_dense_first_layers_are_the_same_said_as_a_number_or_as_a_pattern(kind, dense, tmp_path):
    by_number = ModelConfig(model_type=kind, **SMALL, num_hidden_layers=4, first_k_dense_replace=dense)
    pattern = ("dense",) * dense + ("sparse",) * (4 - dense)
    by_pattern = ModelConfig(model_type=kind, **SMALL, num_hidden_layers=4, mlp_layer_types=pattern)
    for config in (by_number, by_pattern):
        (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
        assert ModelConfig.from_pretrained(tmp_path) == by_number
        with torch.device("meta"):
            theirs = transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained(tmp_path))
        assert [i for i, layer in enumerate(theirs.layers) if hasattr(layer.mlp, "experts")] == config.moe_layers


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"scoring_func": "tanh"}, "scoring_func 'tanh' is not supported"),
        ({"topk_method": "hash"}, "topk_method 'hash' is not supported"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "rope type 'llama3' is not supported"),
        ({"rope_scaling": {"type": "yarn"}}, "yarn has no factor"),
        ({"rope_scaling": {"type": "yarn", "factor": None}}, "yarn has no factor"),
        ({"rope_scaling": {"type": "yarn", "factor": "40"}}, "rope_scaling.factor '40' is not supported"),
        ({"rope_scaling": "yarn"}, "rope_scaling 'yarn' is not supported"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
        ({"rope_interleave": False}, "rope_interleave False is not supported"),
        ({"model_type": "deepseek_v2", "norm_topk_prob": True}, "norm_topk_prob True is not supported"),
        ({"mlp_bias": True}, "mlp_bias True is not supported"),
        ({"moe_layer_freq": [0, 1]}, "moe_layer_freq [0, 1] is not supported"),
        ({"n_routed_experts": None}, "n_routed_experts null is not supported"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"n_group": 3}, "must be a multiple of n_group 3"),
        ({"indexer_types": ["shared"] * 61}, "begins with a shared layer"),
        ({"indexer_types": ["full"] * 3}, "indexer_types names 3 layers, num_hidden_layers is 61"),
        ({"mlp_layer_types": []}, "mlp_layer_types names 0 layers, num_hidden_layers is 61"),
        ({"index_topk_freq": "4"}, "index_topk_freq '4' is not supported; a whole number is"),
        ({"index_topk_pattern": 4}, "index_topk_pattern 4 is not supported"),
        ({"num_attention_heads": 0}, "num_attention_heads 0 is not supported; 1 or more is"),
        ({"index_topk": True}, "index_topk True is not supported; it is no switch"),
        ({"qk_rope_head_dim": 7}, "qk_rope_head_dim 7 is not supported; an even number is"),
        ({"rope_theta": 1}, "rope_theta 1.0 is not supported; a number above 1 is"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps nan is not supported"),
        ({"rope_scaling": {"type": "yarn", "factor": 2, "beta_fast": "32"}}, "rope_scaling.beta_fast '32'"),
        ({"rope_scaling": {"type": "yarn", "factor": 2, "attention_factor": 0}}, "attention_factor 0 is not supported"),
    ],
)
def test_a_field_that_would_be_computed_wrongly_is_refused_by_name_and_file(fields, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "deepseek_v32"} | fields))
    with pytest.raises(ConfigError, match=r"config\.json") as error:
        ModelConfig.from_pretrained(tmp_path)
    assert message in str(error.value)


def test_an_unknown_model_type_is_answered_with_those_that_are_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(
        UnsupportedCheckpointError, match=r"'llama' is not supported; deepseek_v2, deepseek_v3, kimi_k2"
    ):
        ModelConfig.from_pretrained(tmp_path)
