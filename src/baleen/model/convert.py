"""A dense MLA checkpoint becomes a sparse one: the same weights plus a lightning indexer, ready for warm-up.

Two beginnings for the indexer. `random`: normal weights, as any fresh layer. `derived`: from the attention that it is
to imitate. There, all heads score the same row (latent, rope key) of a token, so the index key is the rope key and the
part of the latent that the heads' keys depend on most; index head j asks what attention head j (evenly spread) asks,
folded into that part; and the weights, which have no bias, are the linear map of the layer's input that comes closest
to a constant, fitted on embeddings, so that all heads count as positive evidence. No data and no forward are needed.
"""

# D = hidden, C = latent dims, R = rope dims, N = nope dims, H = heads, J = index heads, P = index dims - R

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from baleen.model.attention import Attention
from baleen.model.checkpoint import TOKENIZER_FILES, load_model, save_model
from baleen.model.config import ModelConfig, UnsupportedCheckpointError
from baleen.model.indexer import Indexer
from baleen.model.network import Layer, Model
from baleen.model.rotary import rotate_interleaved

Beginning = Literal["derived", "random"]

SAMPLED_EMBEDDINGS = 2048
"""Embeddings that the constant is fitted on."""

RIDGE = 0.1
"""Penalty of that fit, relative to the mean square of its inputs."""


def convert(
    src: str | Path,
    dst: str | Path,
    *,
    index_n_heads: int = 64,
    index_head_dim: int = 128,
    index_topk: int = 2048,
    indexer: Beginning = "derived",
    seed: int = 0,
) -> None:
    """Writes `dst`, a `deepseek_v32` folder with the weights of the dense folder `src`, in their dtype, and an indexer.

    Raises `UnsupportedCheckpointError` when `src` is sparse already, `FileExistsError` when `dst` exists.
    """
    source, target = Path(src), Path(dst)
    if target.exists():
        raise FileExistsError(f"{target} exists; give a folder that does not")
    config = ModelConfig.from_pretrained(source)
    if config.sparse:
        raise UnsupportedCheckpointError(f"{source} has a lightning indexer already; there is nothing to convert")
    model = load_model(source, dtype=_stored_dtype(source))
    if not config.rope_interleave:
        pair_neighbours(model)
    fields: dict[str, object] = {"index_n_heads": index_n_heads, "index_head_dim": index_head_dim}
    fields |= {"index_topk": index_topk, "model_type": "deepseek_v32", "rope_interleave": True}
    add_indexer(model, ModelConfig(**(model.config.model_dump() | fields)), indexer, seed)
    has_tokenizer = all((source / file).is_file() for file in TOKENIZER_FILES)
    save_model(model, target, tokenizer=source if has_tokenizer else None)


def _stored_dtype(folder: Path) -> torch.dtype:
    """What a folder says its weights are; FP8 blocks are taken as bf16."""
    fields = json.loads((folder / "config.json").read_text())
    name = fields.get("torch_dtype") or fields.get("dtype")
    return torch.bfloat16 if name == "bfloat16" or "quantization_config" in fields else torch.float32


@torch.no_grad()
def add_indexer(model: Model, config: ModelConfig, beginning: Beginning = "derived", seed: int = 0) -> None:
    """Turns a dense model into the sparse one of `config` in place: every layer that is to have an indexer gets one."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = model.embed_tokens.weight
    some = embeddings[torch.randperm(len(embeddings), generator=generator)[:SAMPLED_EMBEDDINGS]].float()
    for module in model.modules():
        if hasattr(module, "config"):
            module.config = config  # type: ignore[assignment]
    for layer in model.modules():
        if not isinstance(layer, Layer) or config.index_shared(layer.self_attn.layer):
            continue
        indexer = Indexer(config)
        for parameter in indexer.parameters():
            if parameter.dim() >= 2:
                nn.init.normal_(parameter, std=config.initializer_range, generator=generator)
        if beginning == "derived":
            derive_indexer(indexer, layer.self_attn, layer.input_layernorm(some.to(embeddings.dtype)).float())
        layer.self_attn.indexer = indexer.to(embeddings.dtype)


@torch.no_grad()
def pair_neighbours(model: Model) -> None:
    """Reorders the attention's rope dims in place, from pairs half the width apart to neighbours, as V3.2 has them."""
    for attention in model.modules():
        if not isinstance(attention, Attention):
            continue
        config = attention.config
        nope, rope, latent = config.qk_nope_head_dim, config.qk_rope_head_dim, config.kv_lora_rank
        order = torch.arange(rope).view(2, -1).T.flatten()
        query = attention.q_proj if config.q_lora_rank is None else attention.q_b_proj
        heads = query.weight.data.view(config.num_attention_heads, nope + rope, -1)
        heads[:, nope:] = heads[:, nope:][:, order]
        for part in (attention.kv_a_proj_with_mqa.weight, attention.kv_a_proj_with_mqa.bias):
            if part is not None:
                part.data[latent:] = part.data[latent:][order]
        attention.rotate = rotate_interleaved


@torch.no_grad()
def derive_indexer(indexer: Indexer, attention: Attention, inputs: Tensor) -> None:
    """Sets the indexer's weights from the attention's; inputs [n, D] are examples of what both see."""
    config = attention.config
    rope, nope, latent = config.qk_rope_head_dim, config.qk_nope_head_dim, config.kv_lora_rank
    heads, width = config.num_attention_heads, indexer.dims - rope
    down = attention.kv_a_proj_with_mqa.weight.float()  # [C + R, D]
    gain = attention.kv_a_layernorm.weight.float()
    w_k = attention.kv_b_proj.weight.float().view(heads, -1, latent)[:, :nope] * gain  # [H, N, C], the norm's gain in
    query = (attention.q_proj if config.q_lora_rank is None else attention.q_b_proj).weight.float()
    query = query.view(heads, nope + rope, -1)
    chosen = torch.arange(indexer.heads) * heads // indexer.heads
    # The directions of the latent along which the heads' keys differ most.
    latents = inputs @ down[:latent].T
    latents = latents * latents.square().mean(-1, keepdim=True).rsqrt()
    spread = latents.T @ latents / len(latents)
    sensitivity = torch.einsum("hnc,hnd->cd", w_k, w_k)
    root = _square_root(spread)
    _, directions = torch.linalg.eigh(root @ sensitivity @ root)
    basis = torch.linalg.qr(root @ directions[:, -width:])[0]  # [C, P]
    order = _rope_order(attention, indexer, rope)
    typical = latents.norm(dim=-1).mean() / (inputs @ down[:latent].T).norm(dim=-1).mean()
    keys = torch.cat((down[latent:][order], typical * basis.T[:width] @ down[:latent]))
    asked = torch.einsum("jnc,cp,jnq->jpq", w_k[chosen], basis, query[chosen, :nope])
    queries = torch.cat((query[chosen, nope:][:, order], asked), dim=1)
    indexer.wk.weight[: len(keys)] = keys
    indexer.wk.weight[len(keys) :] = 0.0
    queries = nn.functional.pad(queries, (0, 0, 0, indexer.dims - queries.shape[1]))
    indexer.wq_b.weight.copy_(queries.flatten(0, 1))
    # The keys are normalised; what that takes from the scores, and the attention's scale, the weights give back.
    size = (inputs @ keys.T).square().mean().sqrt()
    each = config.softmax_scale * size / (indexer.heads * indexer.heads**-0.5 * indexer.dims**-0.5)
    indexer.weights_proj.weight.copy_((each * _constant_map(inputs)).expand(indexer.heads, -1))


def _rope_order(attention: Attention, indexer: Indexer, rope: int) -> Tensor:
    """Which of the attention's rope dims stands where in the indexer's, when one pairs neighbours and one halves."""
    neighbours = torch.arange(rope).view(-1, 2)
    if attention.rotate == indexer.rotate:
        return torch.arange(rope)
    if attention.config.rope_interleave:
        return neighbours.T.flatten()
    return torch.arange(rope).view(2, -1).T.flatten()


def _square_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def _constant_map(inputs: Tensor) -> Tensor:
    """[D]: the linear map of inputs [n, D] that comes closest to 1."""
    penalty = RIDGE * inputs.square().mean() * len(inputs) / inputs.shape[1]
    products = inputs @ inputs.T
    weights = torch.linalg.solve(products + penalty * torch.eye(len(inputs)), torch.ones(len(inputs)))
    return inputs.T @ weights
