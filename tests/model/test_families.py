"""Every family of MLA checkpoints: the same logits as transformers' own model, on the way in and on the way back."""

from __future__ import annotations

import json

import pytest
import torch

from baleen.model.cache import CacheView, LatentCache
from baleen.model.checkpoint import load_model, save_model
from baleen.model.config import ModelConfig, UnsupportedCheckpointError
from baleen.model.families import FAMILIES, ConfigError
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
