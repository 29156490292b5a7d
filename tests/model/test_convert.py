"""A dense checkpoint becomes a sparse one; its indexer begins where the attention already is."""

from __future__ import annotations

import pytest
import torch

from baleen.model.checkpoint import load_model, save_model
from baleen.model.config import ModelConfig, UnsupportedCheckpointError
from baleen.model.convert import add_indexer, convert
from tiny import tiny_model

IDS = torch.randint(0, 120, (2, 60), generator=torch.Generator().manual_seed(0))
SIZES = {"index_n_heads": 4, "index_head_dim": 16, "index_topk": 8}


def sharp_model(**changes):
    """A dense model whose attention is far from even."""
    model = tiny_model(model_type="deepseek_v3", **changes)
    with torch.no_grad():
        for layer in model.layers:
            attention = layer.self_attn
            query = attention.q_proj if attention.config.q_lora_rank is None else attention.q_b_proj
            query.weight.mul_(4.0)
            attention.kv_a_layernorm.weight.add_(torch.linspace(-0.3, 0.3, 20))
            layer.input_layernorm.weight.add_(0.3)
    return model


def kl_of(model, beginning, **sizes):
    add_indexer(
        model, ModelConfig(**(model.config.model_dump() | SIZES | sizes | {"model_type": "deepseek_v32"})), beginning
    )
    with torch.no_grad():
        return torch.stack(model(IDS, sparse=False, indexer_loss="dense").indexer_kl).mean()


@pytest.mark.parametrize(
    "changes", [{}, {"q_lora_rank": None}, {"rope_interleave": False}], ids=["v3", "no query latent", "half-split"]
)
@pytest.mark.parametrize("dims", [16, 40], ids=["part of the latent", "more than the latent"])
def test_a_derived_indexer_is_closer_to_the_attention_than_a_random_one(changes, dims):
    derived, random = (kl_of(sharp_model(**changes), how, index_head_dim=dims) for how in ("derived", "random"))
    assert derived < 0.98 * random  # with weights at random; trained ones are measured in docs/experiments.md


@torch.no_grad()
def test_with_a_head_for_a_head_and_the_whole_latent_the_derived_queries_and_keys_give_the_attention_s_own_logits():
    model = sharp_model()
    config = ModelConfig(**(model.config.model_dump() | SIZES | {"index_head_dim": 28, "model_type": "deepseek_v32"}))
    add_indexer(model, config)
    attention = model.layers[0].self_attn
    x = model.layers[0].input_layernorm(model.embed_tokens(IDS[:1]))
    context = model.context((1, 60))
    q_latent, (q_nope, q_rope) = attention._queries(x, context)
    rows = attention._rows(x, context)
    k, _ = attention._expand(rows)
    logits = torch.einsum("bthd,blhd->bhtl", torch.cat((q_nope, q_rope), -1), k)
    index_q, index_k, _ = attention.indexer(x, q_latent, context.cos, context.sin)
    products = torch.einsum("bthd,bld->bhtl", index_q, index_k)
    for head in range(4):
        both = torch.stack((logits[0, head].flatten(), products[0, head].flatten()))
        assert torch.corrcoef(both)[0, 1] > 0.9


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_conversion_keeps_every_weight_and_its_dtype(dtype, tmp_path):
    dense = sharp_model().to(dtype)
    save_model(dense, tmp_path / "dense")
    convert(tmp_path / "dense", tmp_path / "sparse", **SIZES)
    sparse = load_model(tmp_path / "sparse", dtype)
    assert sparse.config.sparse
    assert sparse.config.index_topk == 8
    for name, value in dense.state_dict().items():
        assert torch.equal(sparse.state_dict()[name], value), name
    assert sparse.mtp.layer.self_attn.indexer is not None
    if dtype == torch.float32:
        torch.testing.assert_close(sparse(IDS, sparse=False).logits, dense(IDS).logits)
        assert (sparse(IDS).logits - dense(IDS).logits).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"q_lora_rank": None}, {"attention_bias": True}])
def test_a_model_that_rotates_halves_is_reordered_and_says_the_same(changes, tmp_path):
    dense = sharp_model(rope_interleave=False, **changes)
    save_model(dense, tmp_path / "dense")
    convert(tmp_path / "dense", tmp_path / "sparse", **SIZES)
    sparse = load_model(tmp_path / "sparse")
    assert sparse.config.rope_interleave
    torch.testing.assert_close(sparse(IDS, sparse=False).logits, dense(IDS).logits, atol=2e-5, rtol=0)


def test_what_is_sparse_already_or_would_overwrite_is_refused(tmp_path):
    save_model(tiny_model(), tmp_path / "sparse")
    with pytest.raises(UnsupportedCheckpointError, match="has a lightning indexer already"):
        convert(tmp_path / "sparse", tmp_path / "again")
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="there exists"):
        convert(tmp_path / "sparse", tmp_path / "there")
