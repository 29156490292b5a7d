"""The network in compiled loops: the form that a small one takes in the engine.

A decoding step of a small network is a few hundred operations on a few thousand numbers, and torch spends most of its
time on starting them. Where `numba` is installed (extra `serve`), a flat list on a CPU in fp32 runs through two loops a
layer instead, prompts and decoding alike; `decoding.py` runs many steps in one loop. The model is the one that
`network.py` defines: the same weights, the same cache, and a test that holds the forms to each other.
"""

# M = new tokens, D = hidden, K = experts per token or selected positions

from __future__ import annotations

import weakref
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from baleen.model.cache import FlatView
from baleen.model.config import ModelConfig
from baleen.model.layers import FeedForward
from baleen.model.moe import MoE
from baleen.ops.threads import in_threads

if TYPE_CHECKING:
    from baleen.model.network import Layer, Model
    from baleen.ops.loops_decode import Constants

WIDEST = 512
"""Hidden size up to which loops beat the matrix library: wider layers spend their time in the products themselves."""

EPS = np.float32(1e-6)
"""Of the latents' norms and the index keys' norm, in every family."""


@cache
def is_installed() -> bool:
    """Whether numba is there."""
    return find_spec("numba") is not None


def takes_loops(model: Model) -> bool:
    """Whether the engine runs this network in compiled loops."""
    config, weight = model.config, model.lm_head.weight
    return (
        is_installed()
        and weight.dtype == model.compute_dtype == torch.float32
        and weight.device.type == "cpu"
        and config.sparse
        and config.hidden_size <= WIDEST
        and config.q_lora_rank is not None
        and not config.attention_bias
        and (not config.moe_layers or (config.topk_method == "noaux_tc" and config.scoring_func == "sigmoid"))
    )


@dataclass
class Result:
    """What a forward of a flat list gives: hidden [M, D] behind the final norm, experts [M, K] of each MoE layer,
    selected [M, K] of each layer."""

    hidden: NDArray[np.float32]
    experts: list[NDArray[np.int64]]
    selected: list[NDArray[np.int32]]


class CompiledNetwork:
    """A model's parameters as arrays, and its forward over them. Arrays share memory with the parameters, so updates in
    place are seen."""

    def __init__(self, model: Model) -> None:
        config = model.config
        self.model = weakref.ref(model)
        self.places = _places(model)
        self.addresses = _addresses(self.places)
        self.embedding = _array(model.embed_tokens.weight)
        self.norm, self.eps = _array(model.norm.weight), np.float32(model.norm.eps)
        self.head = _array(model.lm_head.weight)
        self.layers = [_CompiledLayer(cast("Layer", layer), config) for layer in model.layers]
        self.shared = [config.index_shared(layer) for layer in range(config.num_hidden_layers)]
        # Multiplications of a decoded token, and for every token before it.
        self.token_work = self.head.size + sum(layer.work_before + layer.work_after for layer in self.layers)
        self.key_work = sum(len(layer.index[0]) for layer in self.layers if layer.indexed)
        if model.mtp is not None:
            self.second = _CompiledLayer(model.mtp.layer, config)
            self.second_norms = _arrays(model.mtp.enorm.weight, model.mtp.hnorm.weight, model.mtp.norm.weight)
            self.joined = _array(model.mtp.eh_proj.weight)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copied model makes its own."""

    @classmethod
    def of(cls, model: Model) -> CompiledNetwork:
        """The model's, kept with it for as long as its parameters stay where they are."""
        kept: CompiledNetwork | None = model.__dict__.get("_compiled")
        if kept is None or kept.model() is not model or kept.addresses != _addresses(kept.places):
            kept = model.__dict__["_compiled"] = cls(model)
        return kept

    def constants(self) -> Constants:
        """What all layers have in common."""
        from baleen.ops.loops_decode import Constants

        layer = self.layers[0]
        own = layer.heads, layer.nope, layer.scale, layer.eps, EPS, *layer.rope
        return Constants._make((*own, *next((each.routing for each in self.layers if each.routed), NO_ROUTING)))

    def forward(self, ids: NDArray[np.int64], view: FlatView, cos: NDArray, sin: NDArray) -> Result:
        """ids [M], cos and sin [M, R/2]."""
        x = self.embedding[ids]
        experts, every = [], []
        selected: NDArray[np.int32] | None = None
        for layer, shared in zip(self.layers, self.shared, strict=True):
            x, chosen, selected = layer.run(x, view, cos, sin, selected if shared else None)
            every.append(selected)
            if chosen is not None:
                experts.append(chosen)
        return Result(self._normed(x, self.norm), experts, every)

    def second_hidden(
        self, hidden: NDArray, following: NDArray[np.int64], view: FlatView, cos: NDArray, sin: NDArray
    ) -> NDArray[np.float32]:
        """[M, D] that predict the token after `following` [M], from the trunk's hidden [M, D]."""
        from baleen.ops import loops

        enorm, hnorm, norm = self.second_norms
        joined = np.concatenate((self._normed(self.embedding[following], enorm), self._normed(hidden, hnorm)), axis=1)
        x = np.empty_like(hidden)
        loops.product(joined, self.joined, x)
        return self._normed(self.second.run(x, view, cos, sin, None)[0], norm)

    def logits(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """[M, V] of hidden [M, D]."""
        from baleen.ops import loops

        made = np.empty((len(hidden), len(self.head)), np.float32)
        loops.product(hidden, self.head, made)
        return made

    def _normed(self, x: NDArray, weight: NDArray) -> NDArray[np.float32]:
        from baleen.ops import loops

        made = np.empty_like(x)
        loops.norm_rows(x, weight, self.eps, made)
        return made


class _CompiledLayer:
    """One layer's arrays and constants."""

    def __init__(self, layer: Layer, config: ModelConfig) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.number, self.topk, self.indexed = attention.layer, config.index_topk, attention.indexer is not None
        self.heads, self.nope = config.num_attention_heads, config.qk_nope_head_dim
        self.scale, self.eps = np.float32(config.softmax_scale), np.float32(layer.input_layernorm.eps)
        self.rope = (config.rope_interleave, config.indexer_rope_interleave)
        self.norms = _arrays(layer.input_layernorm.weight, layer.post_attention_layernorm.weight)
        self.latent = _arrays(
            attention.q_a_proj.weight,
            attention.q_a_layernorm.weight,
            attention.q_b_proj.weight,
            attention.kv_a_proj_with_mqa.weight,
            attention.kv_a_layernorm.weight,
        )
        self.index = _index_weights(attention.indexer)
        self.kv_b, self.o_proj = _array(attention.kv_b_proj.weight), _array(attention.o_proj.weight)
        dense = mlp.shared_experts if isinstance(mlp, MoE) else mlp
        self.has_dense = isinstance(dense, FeedForward)
        self.dense: tuple[NDArray, ...] = (_MATRIX,) * 3
        if isinstance(dense, FeedForward):
            self.dense = _arrays(dense.gate_proj.weight, dense.up_proj.weight, dense.down_proj.weight)
        self.routed: tuple[NDArray, ...] = ()
        if isinstance(mlp, MoE):
            bias = mlp.gate.e_score_correction_bias
            assert bias is not None
            self.routed = _arrays(mlp.gate.weight, bias, mlp.experts.gate_up_proj, mlp.experts.down_proj)
            self.routing = (
                config.n_group,
                config.topk_group,
                np.float32(config.routed_scaling_factor),
                config.norm_topk_prob,
            )
        self.taken = config.num_experts_per_tok
        # Multiplications of a token, about: before its rows are left, and after (its scores not counted).
        self.work_before = sum(each.size for each in self.latent + self.index)
        after = [self.o_proj, self.kv_b, *self.dense, *(each[0] for each in self.routed[2:])]
        self.work_after = 4 * sum(each.size for each in after)

    def arrays(self) -> tuple[NDArray | None, ...]:
        """All parameters in the order of `ops/loops_decode.py`."""
        index = self.index if self.indexed else (None,) * len(self.index)
        dense = self.dense if self.has_dense else (None,) * len(self.dense)
        return *self.norms, *self.latent, *index, self.kv_b, self.o_proj, *dense, *(self.routed or (None,) * 4)

    def run(
        self, x: NDArray, view: FlatView, cos: NDArray, sin: NDArray, selected: NDArray[np.int32] | None
    ) -> tuple[NDArray, NDArray[np.int64] | None, NDArray[np.int32]]:
        """x [M, D] -> x, experts [M, K] or None, selected [M, K]; what was selected before is taken over."""
        from baleen.ops import loops_layer as loops

        tokens, routed = len(x), bool(self.routed)
        rows, index_k = view.cache.in_loops(self.number)
        q = np.empty((tokens, len(self.latent[2])), np.float32)
        asked = np.empty((tokens, len(self.index[0])), np.float32)
        shares = np.empty((tokens, len(self.index[4])), np.float32)
        indexed = self.indexed and selected is None
        chosen = np.empty((tokens, self.topk), np.int32) if selected is None else selected
        experts = np.empty((tokens, self.taken), np.int64) if routed else None
        out = np.empty_like(x)

        def before(part: slice) -> None:
            loops.leave_rows(
                x[part], self.norms[0], self.eps, self.heads, *self.latent, rows, indexed, *self.index, index_k, EPS,
                cos[part], sin[part], *self.rope, view.places_array[part], q[part], asked[part], shares[part],
            )  # fmt: skip

        def after(part: slice) -> None:
            made = out[part]
            loops.attend_and_add(
                x[part], q[part], asked[part], shares[part], indexed, view.positions_array[part], view.owners[part],
                view.tables, view.cache.page_tokens, rows, index_k, self.kv_b, self.o_proj, self.heads, self.nope,
                self.scale, chosen[part], made,
            )  # fmt: skip
            if experts is not None:
                gate, bias, gate_up, down = self.routed
                loops.add_mixture(
                    made, self.norms[1], self.eps, gate, bias, *self.routing, gate_up, down, self.has_dense,
                    *self.dense, experts[part],
                )  # fmt: skip
            else:
                loops.add_feed_forward(made, self.norms[1], self.eps, *self.dense)

        in_threads(before, tokens, tokens * self.work_before)
        in_threads(after, tokens, tokens * (self.work_after + (asked.shape[1] * view.length if indexed else 0)))
        return out, experts, chosen


NO_ROUTING = (1, 1, np.float32(1), False)

_MATRIX, _VECTOR = np.zeros((1, 1), np.float32), np.zeros(1, np.float32)
"""Stand where a layer has none, as loops take arrays of one kind."""


def _index_weights(indexer: Any) -> tuple[NDArray, ...]:
    if indexer is None:
        return _MATRIX, _MATRIX, _VECTOR, _VECTOR, _MATRIX
    norm = indexer.k_norm
    return _arrays(indexer.wq_b.weight, indexer.wk.weight, norm.weight, norm.bias, indexer.weights_proj.weight)


def _places(model: Model) -> list[tuple[dict[str, Any], str]]:
    """Where each parameter and buffer hangs."""
    found = []
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            found += [(held, name) for name, tensor in held.items() if tensor is not None]
    return found


def _addresses(places: list[tuple[dict[str, Any], str]]) -> tuple[int, ...]:
    return tuple([held[name].data_ptr() for held, name in places])


def _arrays(*tensors: Tensor) -> tuple[NDArray, ...]:
    return tuple(_array(tensor) for tensor in tensors)


def _array(tensor: Tensor) -> NDArray:
    if not tensor.is_contiguous():
        raise ValueError(f"a parameter {list(tensor.shape)} is not contiguous: give the model `.contiguous()` ones")
    array: NDArray = tensor.detach().numpy()
    return array
