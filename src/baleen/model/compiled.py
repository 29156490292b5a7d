"""One layer in compiled loops: the form that a small network takes in the engine.

A decoding step of a small network is a few hundred operations on a few thousand numbers, and torch spends most of its
time on starting them. Where `numba` is installed (extra `serve`), a layer of a flat list on a CPU in fp32 is a handful
of loops instead, prompts and decoding alike. The model is the one that `network.py` defines: the same weights, the same
cache, and a test that holds the two forms to each other.
"""

# M = new tokens, D = hidden, K = experts per token or selected positions

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from baleen.model.cache import FlatView
from baleen.model.config import ModelConfig
from baleen.model.layers import FeedForward, RMSNorm
from baleen.model.moe import MoE
from baleen.ops.threads import in_threads

if TYPE_CHECKING:
    from baleen.model.attention import Attention, AttentionContext
    from baleen.model.network import Layer, Model

WIDEST = 512
"""Hidden size up to which loops beat the matrix library: wider layers spend their time in the products themselves."""

EPS = 1e-6
"""Of the latents' norms and the index keys' norm, in every family."""


@cache
def is_installed() -> bool:
    """Whether numba is there."""
    return find_spec("numba") is not None


def takes_loops(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the engine runs this network in compiled loops."""
    return (
        is_installed()
        and dtype == torch.float32
        and device.type == "cpu"
        and config.sparse
        and config.hidden_size <= WIDEST
        and config.q_lora_rank is not None
        and not config.attention_bias
        and (not config.moe_layers or (config.topk_method == "noaux_tc" and config.scoring_func == "sigmoid"))
    )


@dataclass
class _Weights:
    """A layer's parameters as arrays. They share memory with the parameters, so updates in place are seen."""

    norms: tuple[NDArray, ...]
    latent: tuple[NDArray, ...]
    index: tuple[NDArray, ...]
    kv_b: NDArray
    o_proj: NDArray
    feed_forward: tuple[NDArray, ...]
    """Of a dense layer or of the shared experts."""

    routed: tuple[NDArray, ...]
    address: int

    @classmethod
    def of(cls, layer: Layer) -> _Weights:
        """The layer's, kept with it for as long as its parameters stay where they are."""
        address = layer.self_attn.o_proj.weight.data_ptr()
        kept: _Weights | None = layer.__dict__.get("_compiled_weights")
        if kept is None or kept.address != address:
            kept = layer.__dict__["_compiled_weights"] = cls._read(layer, address)
        return kept

    @classmethod
    def _read(cls, layer: Layer, address: int) -> _Weights:
        attention, mlp = layer.self_attn, layer.mlp
        indexer = attention.indexer
        dense = mlp.shared_experts if isinstance(mlp, MoE) else mlp
        return cls(
            norms=_arrays(layer.input_layernorm.weight, layer.post_attention_layernorm.weight),
            latent=_arrays(
                attention.q_a_proj.weight,
                attention.q_a_layernorm.weight,
                attention.q_b_proj.weight,
                attention.kv_a_proj_with_mqa.weight,
                attention.kv_a_layernorm.weight,
            ),
            index=()
            if indexer is None
            else _arrays(
                indexer.wq_b.weight,
                indexer.wk.weight,
                indexer.k_norm.weight,
                indexer.k_norm.bias,
                indexer.weights_proj.weight,
            ),
            kv_b=_array(attention.kv_b_proj.weight),
            o_proj=_array(attention.o_proj.weight),
            feed_forward=_arrays(dense.gate_proj.weight, dense.up_proj.weight, dense.down_proj.weight)
            if isinstance(dense, FeedForward)
            else (),
            routed=_arrays(
                mlp.gate.weight, mlp.gate.e_score_correction_bias, mlp.experts.gate_up_proj, mlp.experts.down_proj
            )
            if isinstance(mlp, MoE)
            else (),
            address=address,
        )


def run_layer(
    layer: Layer, x: Tensor, context: AttentionContext, selected: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """x [1, M, D] -> x [1, M, D], experts [1, M, K] or None, selected [1, M, K] int32, as the layer's forward."""
    from baleen.ops import loops

    weights, config, eps = _Weights.of(layer), layer.self_attn.config, np.float32(layer.input_layernorm.eps)
    given = x[0].numpy()
    normed = np.empty_like(given)
    loops.norm_rows(given, weights.norms[0], eps, normed)
    chosen = None if selected is None else selected[0].numpy()
    out, chosen = _attention(layer.self_attn, weights, normed, context, chosen)
    out += given
    loops.norm_rows(out, weights.norms[1], eps, normed)
    experts = None
    if weights.routed:
        mixed, experts = _mixture(config, weights, normed)
        out += mixed
    if weights.feed_forward:
        out += _feed_forward(weights, normed)
    return (
        torch.from_numpy(out).unsqueeze(0),
        None if experts is None else torch.from_numpy(experts).unsqueeze(0),
        torch.from_numpy(chosen).unsqueeze(0),
    )


def _attention(
    attention: Attention, weights: _Weights, x: NDArray, context: AttentionContext, selected: NDArray[np.int32] | None
) -> tuple[NDArray, NDArray[np.int32]]:
    from baleen.ops import loops, loops_attention

    config, view, layer = attention.config, context.cache, attention.layer
    assert isinstance(view, FlatView)
    tokens, heads, nope = len(x), config.num_attention_heads, config.qk_nope_head_dim
    rows, index_k = view.storage(layer).numpy(), view.cache.layers[layer].index_k.flatten(0, 1).numpy()
    cos, sin, places, positions = context.cos[0].numpy(), context.sin[0].numpy(), view.places.numpy(), view.positions
    owners, pages, stored = view.owners, (view.tables, view.cache.page_tokens), np.float32(EPS)
    latent = np.empty((tokens, config.q_lora_rank or 0), np.float32)
    q = np.empty((tokens, heads * (nope + config.qk_rope_head_dim)), np.float32)
    indexed = attention.indexer is not None and selected is None
    asked = np.empty((tokens, config.index_n_heads * config.index_head_dim), np.float32)
    shares = np.empty((tokens, config.index_n_heads), np.float32)
    if selected is None:
        selected = np.empty((tokens, config.index_topk), np.int32)

    def project(part: slice) -> None:
        loops_attention.project_latent(
            x[part], *weights.latent, stored, heads, cos[part], sin[part], config.rope_interleave, places[part], rows,
            latent[part], q[part],
        )  # fmt: skip
        if indexed:
            loops_attention.project_index(
                x[part], latent[part], *weights.index, stored, cos[part], sin[part], config.indexer_rope_interleave,
                places[part], index_k, asked[part], shares[part],
            )  # fmt: skip

    def attend(part: slice) -> None:
        if indexed:
            loops_attention.select(
                asked[part], shares[part], position[part], owners[part], *pages, index_k, selected[part]
            )
        loops_attention.attend(
            q[part], selected[part], owners[part], *pages, rows, weights.kv_b, heads, nope, scale, attended[part]
        )
        loops.product(attended[part], weights.o_proj, out[part])

    in_threads(project, tokens, tokens * sum(weight.size for weight in weights.latent + weights.index))
    position, scale = positions[0].numpy(), np.float32(config.softmax_scale)
    attended = np.empty((tokens, heads * config.v_head_dim), np.float32)
    out = np.empty((tokens, x.shape[1]), np.float32)
    scored = config.index_n_heads * config.index_head_dim * view.length if indexed else 0
    in_threads(attend, tokens, tokens * (2 * heads * rows.shape[1] * config.index_topk + scored))
    return out, selected


def _feed_forward(weights: _Weights, x: NDArray) -> NDArray:
    from baleen.ops import loops

    out = np.empty_like(x)

    def some(part: slice) -> None:
        loops.swiglu(x[part], *weights.feed_forward, out[part])

    in_threads(some, len(x), 3 * len(x) * weights.feed_forward[0].size)
    return out


def _mixture(config: ModelConfig, weights: _Weights, x: NDArray) -> tuple[NDArray, NDArray[np.int64]]:
    from baleen.ops import loops

    gate, bias, gate_up, down = weights.routed
    experts = np.empty((len(x), config.num_experts_per_tok), np.int64)
    shares = np.empty(experts.shape, np.float32)
    out = np.empty_like(x)

    def some(part: slice) -> None:
        logits = np.empty((len(x[part]), config.n_routed_experts), np.float32)
        loops.product(x[part], gate, logits)
        loops.route(
            logits, bias, config.n_group, config.topk_group, np.float32(config.routed_scaling_factor),
            config.norm_topk_prob, experts[part], shares[part],
        )  # fmt: skip
        loops.run_experts(x[part], experts[part], shares[part], gate_up, down, out[part])

    in_threads(some, len(x), 3 * len(x) * down[0].size * config.num_experts_per_tok)
    return out, experts


def predict(model: Model, hidden: Tensor, rows: list[int]) -> Tensor:
    """fp32 logits [len(rows), V] of some rows of hidden [M, D]."""
    from baleen.ops import loops

    logits = np.empty((len(rows), model.config.vocab_size), np.float32)
    loops.product(hidden.numpy()[rows], _array(model.lm_head.weight), logits)
    return torch.from_numpy(logits)


def norm(module: RMSNorm, x: Tensor) -> Tensor:
    """The module's norm of x [1, M, D]."""
    from baleen.ops import loops

    out = np.empty(x.shape[1:], np.float32)
    loops.norm_rows(x[0].numpy(), _array(module.weight), np.float32(module.eps), out)
    return torch.from_numpy(out).unsqueeze(0)


def _arrays(*tensors: Tensor | None) -> tuple[NDArray, ...]:
    return tuple(_array(tensor) for tensor in tensors if tensor is not None)


def _array(tensor: Tensor) -> Any:
    return tensor.detach().numpy() if tensor.requires_grad else tensor.numpy()
