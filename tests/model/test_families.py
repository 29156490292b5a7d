"""Every family of MLA checkpoints: the same logits as transformers' own model, on the way in and on the way back."""

from __future__ import annotations

import json

import pytest
import torch

from baleen.model.cache import CacheView, LatentCache
from baleen.model.checkpoint import load_model, save_model
from tiny import tiny_model

transformers = pytest.importorskip("transformers")

from transformers.cache_utils import MtpCache  # noqa: E402
from transformers.modeling_layers import MtpModel  # noqa: E402

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
    "rms_norm_eps": 0.01,
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
    "v2 tied": ("DeepseekV2", {"first_k_dense_replace": 2, "tie_word_embeddings": True}),
    "v3": ("DeepseekV3", {"first_k_dense_replace": 1, "n_group": 4, "topk_group": 2}),
    "v3 without query latent": ("DeepseekV3", {"q_lora_rank": None, "first_k_dense_replace": 1}),
    "v3 with biases": (
        "DeepseekV3",
        {"q_lora_rank": None, "attention_bias": True, "first_k_dense_replace": 1},
    ),
    "v3 half-split": ("DeepseekV3", {"rope_interleave": False, "first_k_dense_replace": 1}),
    "v3 tied": ("DeepseekV3", {"tie_word_embeddings": True, "first_k_dense_replace": 1, "norm_topk_prob": False}),
    "glm4 lite": ("Glm4MoeLite", {}),
    "glm4 lite half-split": (
        "Glm4MoeLite",
        {"rope_interleave": False, "attention_bias": True, "tie_word_embeddings": True}
        | {"mlp_layer_types": ["sparse", "dense", "sparse", "dense"]},
    ),
    "v32": ("DeepseekV32", {**INDEXER, "first_k_dense_replace": 1, "n_group": 4, "topk_group": 2}),
    "v32 with biases": (
        "DeepseekV32",
        {**INDEXER, "attention_bias": True, "mlp_layer_types": ["sparse", "dense", "sparse", "dense"]},
    ),
    "glm dsa": ("GlmMoeDsa", {**INDEXER, "first_k_dense_replace": 1}),
    "glm dsa sharing": (
        "GlmMoeDsa",
        {**INDEXER, "first_k_dense_replace": 1, "indexer_types": ["full", "full", "shared", "shared"]}
        | {"attention_bias": True, "norm_topk_prob": False},
    ),
}
IDS = torch.randint(1, 120, (2, 40), generator=torch.Generator().manual_seed(0))


def theirs_of(case, yarn):
    """A random model of transformers: no norm, bias or gate is left at its neutral start, and the values that norms
    take are small where that shows their eps."""
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
                size = 0.0005 if "indexer.wk." in key else 0.1
                value.copy_(torch.randn(value.shape, generator=generator) * size)
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
        view = CacheView.plain(cache, range(2), start, end)
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
def test_the_second_prediction_is_that_of_transformers(tmp_path, monkeypatch):
    ours = tiny_model(model_type="deepseek_v3", num_nextn_predict_layers=1)
    generator = torch.Generator().manual_seed(1)
    for parameter in ours.parameters():
        if parameter.dim() == 1:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    save_model(ours, tmp_path / "m")
    # This is where transformers looks up which tensors are the second prediction's; it knows the published depth alone.
    monkeypatch.setattr(
        transformers.DeepseekV3ForCausalLM, "_keys_to_ignore_on_load_unexpected", [r"model\.layers\.3\..*"]
    )
    theirs = transformers.DeepseekV3ForCausalLM.from_pretrained(tmp_path / "m", attn_implementation="eager")
    second = MtpModel.from_pretrained(theirs)
    cache = MtpCache(config=theirs.config.get_mtp_config())
    hidden = theirs(IDS, output_hidden_states=True).hidden_states[-1][:, :-1]
    expected = second.forward_layer(0, hidden, torch.arange(1, 40)[None], cache, input_ids=IDS[:, 1:])
    out = ours(IDS[:, :-1])
    actual, _ = ours.predict_second(out.hidden, IDS[:, 1:], ours.context((2, 39)))
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=0)


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


def test_a_model_without_shared_experts_is_written_and_read(tmp_path):
    model = tiny_model(n_shared_experts=0, num_nextn_predict_layers=0)
    save_model(model, tmp_path / "m")
    assert torch.equal(load_model(tmp_path / "m")(IDS).logits, model(IDS).logits)


@torch.no_grad()
def test_layers_that_share_take_over_the_selection_that_was_made_last():
    kinds = ("full", "shared", "full", "shared")
    model = tiny_model(model_type="glm_moe_dsa", num_hidden_layers=4, indexer_types=kinds, num_nextn_predict_layers=0)
    out = model(IDS)
    assert torch.equal(out.selected[0], out.selected[1])
    assert torch.equal(out.selected[2], out.selected[3])
    assert not torch.equal(out.selected[1], out.selected[2])
    assert [layer.self_attn.indexer is None for layer in model.layers] == [False, True, False, True]
