"""What is saved is what is loaded; a folder that is not whole is refused by name; a failed save changes nothing."""

from __future__ import annotations

import json
import resource
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file, save_file

from baleen.model import shards
from baleen.model.checkpoint import TOKENIZER_FILES, CheckpointError, load_model, save_model
from baleen.model.config import UnsupportedCheckpointError
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


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def refusal(folder):
    """The message with which the folder is refused."""
    with pytest.raises(CheckpointError) as error:
        load_model(folder)
    return str(error.value)


def same(model, other):
    state, theirs = model.state_dict(), other.state_dict()
    assert state.keys() == theirs.keys()
    return all(torch.equal(value, theirs[name]) for name, value in state.items())


@torch.no_grad()
def test_a_round_trip_gives_the_same_logits_and_the_same_second_prediction(folder):
    before, after = tiny_model(), load_model(folder)
    assert after.config == before.config
    for name, value in before.state_dict().items():
        assert torch.equal(value, after.state_dict()[name]), name
    outs = [model(IDS[:, :-1]) for model in (before, after)]
    assert torch.equal(outs[0].logits, outs[1].logits)
    seconds = [
        model.predict_second(out.hidden, IDS[:, 1:], model.context((2, 39), sparse=False))[0]
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


def test_a_multi_token_prediction_layer_in_part_is_refused(folder):
    edit(folder, lambda t: t.pop("model.layers.3.eh_proj.weight"))
    message = refusal(folder)
    assert "model.safetensors: tensor model.layers.3.eh_proj.weight of shape [48, 96] is missing (1 in all)" in message
    assert "remove all tensors that begin with model.layers.3." in message
    assert "num_nextn_predict_layers" in message


def test_bf16_parameters_are_the_rounded_ones_and_the_gate_s_bias_stays_fp32(folder):
    before, after = tiny_model(), load_model(folder, dtype=torch.bfloat16)
    for name, value in after.state_dict().items():
        expected = torch.float32 if name.endswith("e_score_correction_bias") else torch.bfloat16
        assert value.dtype == expected, name
        assert torch.equal(value, before.state_dict()[name].to(expected)), name
    assert torch.equal(after.frequencies, before.frequencies)
    assert after.frequencies.dtype == torch.float32
    save_model(after, folder)
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert load_file(folder / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16
    assert same(load_model(folder, dtype=torch.bfloat16), after)


def test_other_dtypes_are_refused(folder):
    for dtype in (torch.float16, torch.int32):
        with pytest.raises(ValueError, match="not torch"):
            load_model(folder, dtype=dtype)


def test_a_loaded_model_can_be_trained(folder):
    model = load_model(folder)
    model(IDS).logits.sum().backward()
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.embed_tokens.weight.grad.any()
    assert not any(value.is_meta for value in (*model.parameters(), *model.buffers()))


def test_tensors_read_in_small_pieces_are_the_same(folder, monkeypatch):
    monkeypatch.setattr(shards, "PIECE_BYTES", 200)
    assert same(load_model(folder), tiny_model())


@pytest.fixture
def split(tmp_path):
    """A folder in several files, and the file of each tensor."""
    save_model(tiny_model(), tmp_path / "s", max_shard_bytes=100_000)
    return tmp_path / "s", json.loads((tmp_path / "s" / shards.INDEX).read_text())["weight_map"]


def test_a_large_model_is_cut_into_files_with_an_index(split):
    folder, places = split
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 2
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    assert all(file.stat().st_size < 110_000 for file in files)
    held = {name: file.name for file in files for name in load_file(file)}
    assert held == places
    total = json.loads((folder / shards.INDEX).read_text())["metadata"]["total_size"]
    assert total == sum(value.nbytes for file in files for value in load_file(file).values())
    assert same(load_model(folder), tiny_model())


@torch.no_grad()
def test_transformers_reads_a_folder_of_several_files(split):
    transformers = pytest.importorskip("transformers")
    theirs, info = transformers.DeepseekV32ForCausalLM.from_pretrained(
        split[0], dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert torch.equal(theirs.lm_head.weight, tiny_model().lm_head.weight)


def test_a_tensor_larger_than_a_file_may_be_has_a_file_for_itself(tmp_path):
    save_model(tiny_model(), tmp_path / "m", max_shard_bytes=1)
    assert all(len(load_file(file)) == 1 for file in (tmp_path / "m").glob("*.safetensors"))
    assert same(load_model(tmp_path / "m"), tiny_model())


def test_files_without_an_index_load_as_one(split):
    folder, _ = split
    (folder / shards.INDEX).unlink()
    assert same(load_model(folder), tiny_model())


def test_a_tensor_in_two_files_is_refused(split):
    folder, places = split
    (folder / shards.INDEX).unlink()
    save_file({"model.norm.weight": torch.ones(48)}, folder / "stray.safetensors")
    message = refusal(folder)
    assert f"{folder / 'stray.safetensors'}: tensor model.norm.weight is in {places['model.norm.weight']}" in message


def test_an_index_that_says_otherwise_than_the_files_is_refused(split):
    folder, places = split
    name = "model.norm.weight"
    other = next(file for file in places.values() if file != places[name])

    def refused(changed):
        (folder / shards.INDEX).write_text(json.dumps({"weight_map": changed}))
        return refusal(folder)

    index = str(folder / shards.INDEX)
    gone = refused(places | {name: "gone.safetensors"})
    assert index in gone
    assert f"tensor {name} is said to be in gone.safetensors" in gone
    assert "does not exist; copy that file" in gone
    moved = refused(places | {name: other})
    assert f"{index}: tensor {name} is said to be in {folder / other}, but it is in {places[name]}" in moved
    assert "no file of the index holds it" in refused(places | {"model.more.weight": other})
    assert f"{folder / places[name]}: tensor {name} is not in {index}" in refused(
        {key: file for key, file in places.items() if key != name}
    )
    assert "which is no file name" in refused(places | {name: "../m/model.safetensors"})
    (folder / shards.INDEX).write_text("{")
    assert f"{index} cannot be read" in refusal(folder)


def test_a_missing_tensor_is_named_with_its_file(folder):
    name = "model.layers.1.mlp.experts.3.down_proj.weight"
    edit(folder, lambda t: t.pop(name))
    message = refusal(folder)
    assert f"{folder / 'model.safetensors'}: tensor {name} of shape [48, 24] is missing (1 in all)" in message
    assert "copy the checkpoint again; or look at n_routed_experts" in message


def test_a_wrong_shape_is_named_with_both_shapes_and_the_file(folder):
    edit(folder, lambda t: t.update({"model.norm.weight": torch.ones(7)}))
    assert f"{folder / 'model.safetensors'}: model.norm.weight has shape [7], not [48]" in refusal(folder)


def test_an_unexpected_tensor_is_named_with_its_file(folder):
    edit(folder, lambda t: t.update({"model.layers.0.surprise": torch.ones(1)}))
    message = refusal(folder)
    assert f"{folder / 'model.safetensors'}: unexpected tensor model.layers.0.surprise of shape [1]" in message


def test_what_published_files_hold_beside_the_weights_is_left_out(folder):
    edit(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    assert same(load_model(folder), tiny_model())


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool])
def test_integers_are_no_weights(folder, dtype):
    edit(folder, lambda t: t.update({"model.norm.weight": torch.ones(48).to(dtype)}))
    message = refusal(folder)
    assert f"{folder / 'model.safetensors'}: model.norm.weight is of dtype" in message
    assert "give the bf16, fp32 or FP8" in message


@pytest.mark.parametrize(
    ("changes", "tensor", "shapes"),
    [
        ({"vocab_size": 130}, "model.embed_tokens.weight", "[120, 48], not [130, 48]"),
        ({"hidden_size": 64}, "model.embed_tokens.weight", "[120, 48], not [120, 64]"),
        ({"n_routed_experts": 16}, "model.layers.1.mlp.gate.weight", "[8, 48], not [16, 48]"),
        ({"n_routed_experts": 4}, "model.layers.1.mlp.gate.weight", "[8, 48], not [4, 48]"),
        ({"num_hidden_layers": 2}, "model.layers.3.", ""),
        ({"num_hidden_layers": 4}, "model.layers.3.", ""),
        ({"num_hidden_layers": 9}, "model.layers.3.", ""),
        ({"first_k_dense_replace": 2}, "model.layers.1.mlp.", ""),
        ({"moe_intermediate_size": 32}, "model.layers.1.mlp.experts.0.gate_proj.weight", "[24, 48], not [32, 48]"),
        ({"intermediate_size": 32}, "model.layers.0.mlp.gate_proj.weight", "[64, 48], not [32, 48]"),
        ({"kv_lora_rank": 16}, "model.layers.0.self_attn.kv_a_proj_with_mqa.weight", "[28, 48], not [24, 48]"),
        ({"v_head_dim": 16}, "model.layers.0.self_attn.kv_b_proj.weight", "[112, 20], not [128, 20]"),
        ({"num_attention_heads": 2}, "model.layers.0.self_attn.q_b_proj.weight", "[96, 24], not [48, 24]"),
        ({"index_n_heads": 8}, "model.layers.0.self_attn.indexer.wq_b.weight", "[256, 24], not [128, 24]"),
        ({"index_head_dim": 8}, "model.layers.0.self_attn.indexer.wq_b.weight", "[256, 24], not [128, 24]"),
        ({"model_type": "deepseek_v3"}, "model.layers.0.self_attn.indexer.", ""),
        ({"num_nextn_predict_layers": 0}, "model.layers.3.", ""),
    ],
)
def test_a_config_that_contradicts_the_weights_is_told_by_its_field(folder, changes, tensor, shapes):
    edit_config(folder, **changes)
    message = refusal(folder)
    assert message.startswith(f"{folder / 'model.safetensors'}: ")
    assert tensor in message
    assert shapes in message
    assert "look at " in message
    assert next(iter(changes)) in message.split("look at ")[1]


def test_a_truncated_file_is_named(folder):
    file = folder / "model.safetensors"
    content = file.read_bytes()
    for size in (len(content) - 1, len(content) // 2, 100, 5, 0):
        file.write_bytes(content[:size])
        message = refusal(folder)
        assert f"{file} cannot be read" in message
        assert "copy it again" in message
    file.write_bytes(content[:-1])
    header_size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + header_size])
    length_of_data = len(content) - 8 - header_size
    last = next(name for name, entry in header.items() if entry.get("data_offsets", [0, 0])[1] == length_of_data)
    assert f"its tensor {last} at byte {len(content)}" in refusal(folder)
    file.write_bytes(b"<html>not found</html>" * 100)
    assert f"{file} cannot be read" in refusal(folder)


def test_a_file_that_shrinks_while_it_is_read_is_named(folder):
    stored = shards.stored_tensors(folder)["lm_head.weight"]
    stored.file.write_bytes(stored.file.read_bytes()[: stored.start + 10])
    with pytest.raises(CheckpointError, match=r"model\.safetensors ends within tensor lm_head\.weight"):
        stored.read()


def test_a_header_whose_sizes_do_not_agree_is_refused(folder):
    file = folder / "model.safetensors"
    content = file.read_bytes()
    changed = content.replace(b'"shape":[48]', b'"shape":[47]', 1)
    assert changed != content
    file.write_bytes(changed)
    assert "bytes, which is not [47] of F32" in refusal(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"data_offsets": [-1000, -1000 + 192]},
        {"data_offsets": [0, 192]},
        {"data_offsets": [192, 0]},
        {"data_offsets": [0, 1, 2]},
        {"data_offsets": None},
        {"dtype": []},
        {"dtype": "F99"},
        {"shape": "48"},
        {"shape": [-48]},
        {"shape": [float("inf")]},
    ],
    ids=str,
)
def test_a_header_that_makes_no_sense_is_refused(folder, change):
    file = folder / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["model.norm.weight"] |= change
    changed = json.dumps(header).encode()
    file.write_bytes(len(changed).to_bytes(8, "little") + changed + content[8 + length :])
    assert str(file) in refusal(folder)


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
    assert [path.name for path in folder.parent.iterdir()] == ["m"]
    assert same(load_model(folder), other)


def test_a_link_to_a_folder_stays_a_link(folder):
    link = folder.with_name("link")
    link.symlink_to(folder)
    save_model(tiny_model(5), link)
    assert link.is_symlink()
    assert same(load_model(folder), tiny_model(5))


@contextmanager
def full_disk(limit):
    """No file may grow beyond `limit` bytes: the write that would do it raises `OSError`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit", [100, 100_000])
def test_a_failed_save_leaves_the_old_folder_and_nothing_else(folder, limit):
    with full_disk(limit), pytest.raises(OSError, match="large"):
        save_model(tiny_model(5), folder)
    assert [path.name for path in folder.parent.iterdir()] == ["m"]
    assert same(load_model(folder), tiny_model())
    with full_disk(limit), pytest.raises(OSError, match="large"):
        save_model(tiny_model(5), folder.with_name("new"))
    assert [path.name for path in folder.parent.iterdir()] == ["m"]
    with pytest.raises(FileNotFoundError):
        save_model(tiny_model(5), folder, tokenizer=folder.with_name("nowhere"))
    assert same(load_model(folder), tiny_model())


def test_what_a_killed_save_left_behind_is_no_hindrance(folder):
    for suffix in (".partial", ".old"):
        rest = folder.with_name(folder.name + suffix)
        rest.mkdir()
        (rest / "model.safetensors").write_text("half")
    save_model(tiny_model(5), folder)
    assert [path.name for path in folder.parent.iterdir()] == ["m"]
    assert same(load_model(folder), tiny_model(5))


def test_a_folder_that_is_no_model_is_not_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for path in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(CheckpointError, match="is no model folder"):
            save_model(tiny_model(), path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    save_model(tiny_model(), tmp_path / "empty")
    assert same(load_model(tmp_path / "empty"), tiny_model())


def test_the_tokenizer_comes_along(folder):
    tokenizer = folder.with_name("tokenizer")
    tokenizer.mkdir()
    for file in TOKENIZER_FILES:
        (tokenizer / file).write_text(file)
    save_model(tiny_model(), folder, tokenizer=tokenizer)
    save_model(tiny_model(), folder, tokenizer=folder)
    assert all((folder / file).read_text() == file for file in TOKENIZER_FILES)


def test_tied_embeddings_are_stored_once_and_stay_one_parameter(tmp_path):
    model = tiny_model(tie_word_embeddings=True)
    save_model(model, tmp_path / "m")
    assert "lm_head.weight" not in load_file(tmp_path / "m/model.safetensors")
    after = load_model(tmp_path / "m")
    assert after.lm_head.weight is after.embed_tokens.weight
    assert same(after, model)
    assert sum(1 for _ in after.parameters()) == sum(1 for _ in model.parameters())
    edit_config(tmp_path / "m", tie_word_embeddings=False)
    assert "look at tie_word_embeddings" in refusal(tmp_path / "m")
