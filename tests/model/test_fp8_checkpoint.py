"""FP8 folders are DeepSeek's: the same tensors in e4m3, the same scales, read as the products that they stand for."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from baleen.model import shards
from baleen.model.checkpoint import CheckpointError, load_model, save_model
from baleen.model.config import UnsupportedCheckpointError
from baleen.model.network import Replay
from baleen.ops.fp8 import FP8, dequantise_blocks, quantise_blocks
from tiny import tiny_model

IDS = torch.randint(0, 120, (2, 40), generator=torch.Generator().manual_seed(0))
SIZES = {"hidden_size": 160, "intermediate_size": 200, "moe_intermediate_size": 136, "initializer_range": 0.05}
"""More than one block along either dim, and the last ones not full."""

NAME = "model.layers.1.self_attn.o_proj.weight"


def wide_model(seed=0):
    return tiny_model(seed, **SIZES)


@pytest.fixture
def folder(tmp_path):
    save_model(wide_model(), tmp_path / "m", fp8=True)
    return tmp_path / "m"


def tensors_of(folder):
    return load_file(folder / "model.safetensors")


def edit(folder, change):
    tensors = tensors_of(folder)
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def refusal(folder):
    with pytest.raises(CheckpointError) as error:
        load_model(folder)
    return str(error.value)


def test_the_linear_weights_of_attention_feed_forward_and_experts_are_fp8_and_nothing_else(folder):
    tensors = tensors_of(folder)
    quantised = {re.sub(r"\d+", "N", name) for name, value in tensors.items() if value.dtype == FP8}
    attention = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "indexer.wq_b", "indexer.wk")
    mlp = [f"{part}{kind}_proj" for part in ("", "experts.N.", "shared_experts.") for kind in ("gate", "up", "down")]
    parts = [*(f"self_attn.{name}" for name in attention), *(f"mlp.{name}" for name in mlp)]
    assert quantised == {f"model.layers.N.{part}.weight" for part in parts}
    assert any(name.startswith("model.layers.3.") and value.dtype == FP8 for name, value in tensors.items())
    for name in (
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.norm.weight",
        "model.layers.1.mlp.gate.weight",
        "model.layers.1.mlp.gate.e_score_correction_bias",
        "model.layers.1.self_attn.indexer.weights_proj.weight",
        "model.layers.1.self_attn.q_a_layernorm.weight",
        "model.layers.3.eh_proj.weight",
        "model.layers.3.shared_head.head.weight",
    ):
        assert tensors[name].dtype == torch.float32
    for name, value in tensors.items():
        assert (name + "_scale_inv" in tensors) == (value.dtype == FP8)
    scale = tensors["model.layers.0.mlp.down_proj.weight_scale_inv"]
    assert scale.dtype == torch.float32
    assert scale.shape == (2, 2)


def test_the_config_says_fp8_as_deepseek_does_and_an_unquantised_one_does_not(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"] == {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "scale_fmt": "ue8m0",
        "weight_block_size": [128, 128],
    }
    assert config["torch_dtype"] == "float32"
    save_model(load_model(folder, dtype=torch.bfloat16), folder)
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loading_multiplies_by_the_scales_and_leaves_the_rest(folder, dtype):
    before, after = wide_model(), load_model(folder, dtype=dtype)
    projection = before.layers[1].self_attn.o_proj.weight.detach()
    expected = dequantise_blocks(*quantise_blocks(projection, ue8m0=True), dtype)
    assert torch.equal(after.layers[1].self_attn.o_proj.weight, expected)
    expert = before.layers[2].mlp.experts.gate_up_proj.detach()[5, 136:]
    expected = dequantise_blocks(*quantise_blocks(expert, ue8m0=True), dtype)
    assert torch.equal(after.layers[2].mlp.experts.gate_up_proj[5, 136:], expected)
    assert torch.equal(after.lm_head.weight, before.lm_head.weight.to(dtype))
    bias = after.layers[1].mlp.gate.e_score_correction_bias
    assert torch.equal(bias, before.layers[1].mlp.gate.e_score_correction_bias)


@torch.no_grad()
def test_the_model_says_nearly_the_same(folder):
    before = wide_model()(IDS, sparse=False)
    # Close scores may choose other experts: that is held still here.
    after = load_model(folder)(IDS, sparse=False, replay=Replay(experts=torch.stack(before.experts, dim=2)))
    assert 0 < (before.logits - after.logits).norm() / before.logits.norm() < 0.1


def test_what_was_fp8_is_saved_as_fp8_without_a_further_loss(folder):
    once = load_model(folder)
    save_model(once, folder, fp8=True)
    twice = load_model(folder)
    for name, value in once.state_dict().items():
        assert torch.equal(value, twice.state_dict()[name]), name


def test_plain_float_scales_are_read_as_well(folder):
    edit(folder, lambda t: t.update({NAME + "_scale_inv": t[NAME + "_scale_inv"] * 1.3}))
    tensors = tensors_of(folder)
    expected = dequantise_blocks(tensors[NAME], tensors[NAME + "_scale_inv"])
    assert torch.equal(load_model(folder).layers[1].self_attn.o_proj.weight, expected)


def test_scales_stored_as_exponents_are_read_as_well(folder):
    before = load_model(folder)
    edit(folder, lambda t: t.update({NAME + "_scale_inv": t[NAME + "_scale_inv"].to(torch.float8_e8m0fnu)}))
    assert torch.equal(load_model(folder).layers[1].self_attn.o_proj.weight, before.layers[1].self_attn.o_proj.weight)


def test_small_pieces_and_many_files_give_the_same_model(folder, monkeypatch):
    before = load_model(folder)
    save_model(wide_model(), folder, fp8=True, max_shard_bytes=100_000)
    places = json.loads((folder / shards.INDEX).read_text())["weight_map"]
    assert len(set(places.values())) > 2
    assert all(places[name] == file for name, file in places.items())
    monkeypatch.setattr(shards, "PIECE_BYTES", 1000)
    after = load_model(folder)
    for name, value in before.state_dict().items():
        assert torch.equal(value, after.state_dict()[name]), name


def test_scales_may_stand_in_another_file_than_their_weights(folder):
    before = load_model(folder)
    tensors = tensors_of(folder)
    (folder / "model.safetensors").unlink()
    scales = {name: value for name, value in tensors.items() if name.endswith("_scale_inv")}
    save_file(scales, folder / "scales.safetensors")
    save_file({name: value for name, value in tensors.items() if name not in scales}, folder / "weights.safetensors")
    assert torch.equal(load_model(folder).layers[1].self_attn.o_proj.weight, before.layers[1].self_attn.o_proj.weight)


def test_a_weight_without_scales_is_refused(folder):
    edit(folder, lambda t: t.pop(NAME + "_scale_inv"))
    message = refusal(folder)
    assert f"{folder / 'model.safetensors'}: {NAME} is FP8 and has no scales: {NAME}_scale_inv is missing" in message
    assert "copy the checkpoint again" in message


@pytest.mark.parametrize("scale", [torch.ones(1, 1), torch.ones(()), torch.ones(2, 1).to(FP8)])
def test_scales_that_do_not_fit_are_refused(folder, scale):
    edit(folder, lambda t: t.update({NAME + "_scale_inv": scale}))
    message = refusal(folder)
    assert f"{folder / 'model.safetensors'}: {NAME}_scale_inv has shape {list(scale.shape)}" in message
    assert f"not [2, 1] and F32: one scale per 128 x 128 block of {NAME} [160, 48]" in message


def test_integer_scales_are_refused(folder):
    edit(folder, lambda t: t.update({NAME + "_scale_inv": torch.ones(2, 1, dtype=torch.int32)}))
    assert f"{NAME}_scale_inv is of dtype I32" in refusal(folder)


def test_scales_without_an_fp8_weight_are_refused(folder):
    edit(folder, lambda t: t.update({NAME: t[NAME].to(torch.bfloat16)}))
    message = refusal(folder)
    assert f"unexpected tensor {NAME}_scale_inv" in message
    assert f"{NAME} is BF16, not FP8, and needs no scales: remove them" in message


def test_a_vector_in_fp8_and_scales_in_place_of_weights_are_refused(folder):
    edit(folder, lambda t: t.update({"model.norm.weight": torch.ones(160).to(FP8)}))
    assert "model.norm.weight is FP8, and only matrices can be" in refusal(folder)
    edit(folder, lambda t: t.update({"model.norm.weight": torch.ones(160).to(torch.float8_e8m0fnu)}))
    assert "model.norm.weight is made of scales" in refusal(folder)


def test_a_truncated_file_is_named_with_its_tensor(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert re.search(rf"{re.escape(str(file))} cannot be read: .* its tensor model\S+weight ", refusal(folder))


@pytest.mark.parametrize(
    "field", [{"quant_method": "awq"}, {"weight_block_size": [64, 64]}, {"weight_block_size": None}, {"fmt": "e5m2"}]
)
def test_another_quantisation_is_refused_by_its_field(folder, field):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= field
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedCheckpointError, match=rf"config\.json: quantization_config\.{next(iter(field))} "):
        load_model(folder)


def test_a_quantisation_that_is_no_object_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": "fp8"}))
    with pytest.raises(UnsupportedCheckpointError, match="quantization_config is 'fp8', which is no object"):
        load_model(folder)


def test_a_weight_that_cannot_be_quantised_is_named_and_the_old_folder_stays(folder):
    before = load_model(folder)
    broken = wide_model()
    with torch.no_grad():
        broken.layers[1].self_attn.o_proj.weight[3, 4] = torch.inf
    with pytest.raises(CheckpointError, match=re.escape(f"{folder}: {NAME} cannot be written")):
        save_model(broken, folder, fp8=True)
    assert [path.name for path in folder.parent.iterdir()] == ["m"]
    assert torch.equal(load_model(folder).lm_head.weight, before.lm_head.weight)
