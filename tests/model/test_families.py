"""Every family of MLA checkpoints: the same logits as transformers' own model, on the way in and on the way back."""

from __future__ import annotations

import json

import pytest
import torch

from baleen.model.cache import CacheView, LatentCache
from baleen.model.checkpoint import load_model, save_model
from baleen.model.config import ModelConfig, UnsupportedCheckpointError
from baleen.model.families import FAMILIES, ConfigError
from baleen.model.rotary import rotary_frequencies
from tiny import tiny_model

transformers = pytest.importorskip("transformers")

COMMON = {
    "vocab_size": 120,
    "hidden_size": 48,
    "intermediate_size": 64,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 24,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "pad_token_id": 0,
}
# 16 index heads, so that all of them are seldom silent at once: ties at exactly 0 are broken otherwise by transformers.
INDEXER = {"index_n_heads": 16, "index_head_dim": 16, "index_topk": 12}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 0.707,
    "mscale_all_dim": 0.9,
    "original_max_position_embeddings": 64,
    "rope_theta": 10000.0,
}

CASES = {
    "v2 lite": ("DeepseekV2", {"q_lora_rank": None, "first_k_dense_replace": 1, "topk_method": "greedy"}),
    "v2 with groups": (
        "DeepseekV2",
        {"first_k_dense_replace": 1, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
        | {"routed_scaling_factor": 3.0, "n_shared_experts": 2},
    ),
    "v2 with biases": ("DeepseekV2", {"first_k_dense_replace": 0, "attention_bias": True, "num_hidden_layers": 2}),
    "v3": ("DeepseekV3", {"first_k_dense_replace": 1, "n_group": 4, "topk_group": 2}),
    "v3 without query latent": ("DeepseekV3", {"q_lora_rank": None, "first_k_dense_replace": 1}),
    "v3 half-split": ("DeepseekV3", {"rope_interleave": False, "first_k_dense_replace": 1}),
    "v3 tied": ("DeepseekV3", {"tie_word_embeddings": True, "first_k_dense_replace": 1, "norm_topk_prob": False}),
    "glm4 lite": ("Glm4MoeLite", {}),
    "v32": ("DeepseekV32", {**INDEXER, "first_k_dense_replace": 1, "n_group": 4, "topk_group": 2}),
    "glm dsa": ("GlmMoeDsa", {**INDEXER, "first_k_dense_replace": 1}),
    "glm dsa sharing": (
        "GlmMoeDsa",
        {**INDEXER, "first_k_dense_replace": 1, "indexer_types": ["full", "full", "shared", "shared"]},
    ),
}
IDS = torch.randint(1, 120, (2, 40), generator=torch.Generator().manual_seed(0))


def theirs_of(case, yarn):
    """A random model of transformers: no norm, bias or gate is left at its neutral start."""
    name, changes = CASES[case]
    rope = {"rope_parameters": YARN} if yarn else {}
    config = getattr(transformers, f"{name}Config")(**(COMMON | rope | changes))
    torch.manual_seed(7)
    model = getattr(transformers, f"{name}ForCausalLM")._from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.dim() == 1 and value.is_floating_point() and "inv_freq" not in key:
                value.add_(torch.randn(value.shape, generator=generator) * 0.1)
            elif value.is_floating_point() and value.dim() > 1:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    return model


@pytest.mark.parametrize("yarn", [False, True], ids=["plain rope", "yarn"])
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_a_checkpoint_of_transformers_says_the_same_here(case, yarn, tmp_path):
    theirs = theirs_of(case, yarn)
    theirs.save_pretrained(tmp_path / "m")
    ours = load_model(tmp_path / "m")
    expected = theirs(IDS).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(IDS).logits, expected, atol=2e-5, rtol=0)
    # Token by token through the cache, and a prompt with padding at the left against the same prompt without.
    cache = LatentCache(ours.config, 2, 40, torch.float32)
    for end in (7, 20, *range(21, 41)):
        start = 0 if end == 7 else 7 if end == 20 else end - 1
        view = CacheView(cache, torch.arange(2), torch.arange(start, end).expand(2, -1), end)
        logits = ours(IDS[:, start:end], cache=view).logits
        torch.testing.assert_close(logits, expected[:, start:end], atol=2e-5, rtol=0)
    mask = torch.ones(2, 40, dtype=torch.long)
    mask[1, :11] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    padded = theirs(IDS, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(ours(IDS[1:, 11:]).logits, padded[1:, 11:], atol=2e-5, rtol=0)
    torch.testing.assert_close(ours(IDS[:, :23]).logits, expected[:, :23], atol=2e-5, rtol=0)
    # Here padding stands at the right, and nothing before it sees it.
    rows = torch.stack((IDS[0], torch.cat((IDS[1, 11:], torch.zeros(11, dtype=torch.long)))))
    batch = ours(rows).logits
    torch.testing.assert_close(batch[0], expected[0], atol=2e-5, rtol=0)
    torch.testing.assert_close(batch[1, :29], padded[1, 11:], atol=2e-5, rtol=0)


@pytest.mark.parametrize("yarn", [False, True], ids=["plain rope", "yarn"])
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_what_is_saved_here_says_the_same_in_transformers(case, yarn, tmp_path):
    first = theirs_of(case, yarn)
    first.save_pretrained(tmp_path / "m")
    save_model(load_model(tmp_path / "m"), tmp_path / "back")
    again, info = type(first).from_pretrained(
        tmp_path / "back", dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    torch.testing.assert_close(again(IDS).logits, first(IDS).logits, atol=1e-5, rtol=0)
    assert again.config.model_type == first.config.model_type


@torch.no_grad()
def test_kimi_k2_is_deepseek_v3_under_another_name(tmp_path):
    def rename(folder, kind):
        file = folder / "config.json"
        was = json.loads(file.read_text())
        file.write_text(json.dumps(was | {"model_type": kind}))
        return was["model_type"]

    theirs = theirs_of("v3", True)
    theirs.save_pretrained(tmp_path / "m")
    rename(tmp_path / "m", "kimi_k2")
    ours = load_model(tmp_path / "m")
    torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, atol=2e-5, rtol=0)
    save_model(ours, tmp_path / "back")
    # transformers joins experts by model type and has no rule for this one: it reads no such folder, ours or published.
    assert rename(tmp_path / "back", "deepseek_v3") == "kimi_k2"
    again = transformers.DeepseekV3ForCausalLM.from_pretrained(tmp_path / "back", attn_implementation="eager")
    torch.testing.assert_close(again(IDS).logits, theirs(IDS).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "kind", ["deepseek_v2", "deepseek_v3", "glm4_moe_lite", "deepseek_v32", "glm_moe_dsa"], ids=lambda kind: kind
)
@torch.no_grad()
def test_a_model_made_here_says_the_same_in_transformers(kind, tmp_path):
    # Two dense layers: not the number that every family starts from when nothing is said.
    ours = tiny_model(model_type=kind, num_nextn_predict_layers=0, first_k_dense_replace=2, num_hidden_layers=4)
    save_model(ours, tmp_path / "m")
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "m", dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info[trouble] for trouble in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, atol=2e-5, rtol=0)


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
    small = COMMON | INDEXER | {"qk_rope_head_dim": 64, "index_head_dim": 64, "num_hidden_layers": 1}
    del small["max_position_embeddings"]
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


def test_a_model_without_shared_experts_is_written_and_read(tmp_path):
    model = tiny_model(n_shared_experts=0, num_nextn_predict_layers=0)
    save_model(model, tmp_path / "m")
    assert torch.equal(load_model(tmp_path / "m")(IDS).logits, model(IDS).logits)


def test_experts_on_every_nth_layer(tmp_path):
    fields = {"model_type": "deepseek_v2", "num_hidden_layers": 8, "first_k_dense_replace": 1, "moe_layer_freq": 3}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert ModelConfig.from_pretrained(tmp_path).moe_layers == [3, 6]


@torch.no_grad()
def test_layers_that_share_take_over_the_selection_that_was_made_last():
    kinds = ("full", "shared", "full", "shared")
    model = tiny_model(model_type="glm_moe_dsa", num_hidden_layers=4, indexer_types=kinds, num_nextn_predict_layers=0)
    out = model(IDS)
    assert torch.equal(out.selected[0], out.selected[1])
    assert torch.equal(out.selected[2], out.selected[3])
    assert not torch.equal(out.selected[1], out.selected[2])
    assert [layer.self_attn.indexer is None for layer in model.layers] == [False, True, False, True]


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
