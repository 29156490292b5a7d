"""What is saved is what is loaded; a folder that is not whole is refused by name."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from baleen.model.checkpoint import CheckpointError, load_model, save_model
from baleen.model.config import UnsupportedCheckpointError
from baleen.model.convert import convert
from tiny import tiny_model

IDS = torch.randint(0, 120, (2, 40), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path):
    save_model(tiny_model(), tmp_path / "m")
    return tmp_path / "m"


def edit(folder, change):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


@torch.no_grad()
def test_a_round_trip_gives_the_same_logits_and_the_same_second_prediction(folder):
    before, after = tiny_model(), load_model(folder)
    assert after.config == before.config
    for name, value in before.state_dict().items():
        assert torch.equal(value, after.state_dict()[name]), name
    outs = [model(IDS[:, :-1]) for model in (before, after)]
    assert torch.equal(outs[0].logits, outs[1].logits)
    seconds = [
        model.predict_second(out, IDS[:, 1:], model.context((2, 39), sparse=False))[0]
        for model, out in zip((before, after), outs, strict=True)
    ]
    assert torch.equal(*seconds)
    assert seconds[0].abs().max() > 0


def test_names_are_the_published_ones(folder):
    names = load_file(folder / "model.safetensors").keys()
    for name in (
        "model.embed_tokens.weight",
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.1.mlp.experts.7.up_proj.weight",
        "model.layers.1.mlp.gate.e_score_correction_bias",
        "model.layers.2.self_attn.kv_a_proj_with_mqa.weight",
        "model.layers.0.self_attn.indexer.k_norm.bias",
        "model.layers.3.eh_proj.weight",
        "model.layers.3.shared_head.norm.weight",
        "model.norm.weight",
        "lm_head.weight",
    ):
        assert name in names


@torch.no_grad()
def test_a_folder_without_the_mtp_layer_loads_as_a_model_without_it(folder):
    edit(folder, lambda t: [t.pop(name) for name in list(t) if name.startswith("model.layers.3.")])
    model = load_model(folder)
    assert model.mtp is None
    assert torch.equal(model(IDS).logits, tiny_model()(IDS).logits)


def test_weights_split_over_several_files_load_as_one(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    save_file({n: tensors[n] for n in names[::2]}, folder / "model-00001-of-00002.safetensors")
    save_file({n: tensors[n] for n in names[1::2]}, folder / "model-00002-of-00002.safetensors")
    assert torch.equal(load_model(folder).lm_head.weight, tensors["lm_head.weight"])


def test_a_missing_tensor_is_named_with_its_folder(folder):
    name = "model.layers.1.mlp.experts.3.down_proj.weight"
    edit(folder, lambda t: t.pop(name))
    with pytest.raises(CheckpointError) as error:
        load_model(folder)
    assert name in str(error.value)
    assert str(folder) in str(error.value)


def test_a_wrong_shape_is_named_with_both_shapes_and_the_file(folder):
    edit(folder, lambda t: t.update({"model.norm.weight": torch.ones(7)}))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: model\.norm\.weight has shape \[7\], not \[48\]"):
        load_model(folder)


def test_an_unexpected_tensor_is_named_with_its_file(folder):
    edit(folder, lambda t: t.update({"model.layers.0.surprise": torch.ones(1)}))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: unexpected tensor model\.layers\.0\.surprise"):
        load_model(folder)


def test_a_truncated_file_is_named(folder):
    file = folder / "model.safetensors"
    content = file.read_bytes()
    for size in (len(content) // 2, 5, 0):
        file.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
            load_model(folder)


def test_another_architecture_is_refused_by_its_name(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    with pytest.raises(UnsupportedCheckpointError, match="'llama' is not supported"):
        load_model(folder)


def test_a_folder_without_config_or_weights_is_refused(folder, tmp_path):
    with pytest.raises(UnsupportedCheckpointError, match=r"config\.json does not exist"):
        load_model(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UnsupportedCheckpointError, match=r"no \.safetensors file"):
        load_model(folder)


def test_saving_again_replaces_the_folder_whole(folder):
    (folder / "stray").write_text("")
    other = tiny_model(5)
    save_model(other, folder)
    assert not (folder / "stray").exists()
    assert not folder.with_name("m.partial").exists()
    assert torch.equal(load_model(folder).lm_head.weight, other.lm_head.weight)


@torch.no_grad()
def test_a_dense_checkpoint_becomes_a_sparse_one_with_the_same_dense_logits(tmp_path):
    dense = tiny_model(model_type="deepseek_v3")
    save_model(dense, tmp_path / "v3")
    assert json.loads((tmp_path / "v3/config.json").read_text())["model_type"] == "deepseek_v3"
    convert(tmp_path / "v3", tmp_path / "v32", index_n_heads=4, index_head_dim=16, index_topk=8)
    sparse = load_model(tmp_path / "v32")
    assert sparse.config.model_type == "deepseek_v32"
    assert sparse.config.index_topk == 8
    torch.testing.assert_close(sparse(IDS, sparse=False).logits, dense(IDS).logits, atol=1e-6, rtol=0)
    assert (sparse(IDS).logits - dense(IDS).logits).abs().max() > 1e-3
    with pytest.raises(FileExistsError, match="exists"):
        convert(tmp_path / "v3", tmp_path / "v32")
    with pytest.raises(UnsupportedCheckpointError, match="already"):
        convert(tmp_path / "v32", tmp_path / "again")
