"""Many decoding steps in one compiled loop: forward, sample, go on, for sequences that have one new token each.

Sequences are independent while they decode, so nothing has to be planned between their tokens; what a step does outside
the network is a few comparisons here. A sequence that ends leaves the others' bits alone, as rows are independent in
all loops. Layers come as a table of addresses, so that one compiled loop serves every network.
"""

# B = sequences, M = those that go on, S = steps, L = layers, D = hidden, K = selected, E = experts of a token

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic

from baleen.ops.loops import F, inlined, loop, norm_rows, product, sample
from baleen.ops.loops_layer import add_feed_forward, add_mixture, attend_and_add, leave_rows

(
    ATTENTION_NORM, FEED_FORWARD_NORM, Q_A, Q_NORM, Q_B, KV_A, KV_NORM, WQ_B, WK, K_NORM, K_BIAS,
    WEIGHTS_PROJ, KV_B, O_PROJ, GATE, UP, DOWN, ROUTER, BIAS, EXPERT_GATE_UP, EXPERT_DOWN, ROWS, INDEX_K,
) = range(23)  # fmt: skip
"""A layer's arrays in their order in the table. Each is (address, three sizes), with sizes of 1 in front where it has
fewer dims; an address of 0 stands for what the layer lacks."""


class Constants(NamedTuple):
    """What all layers of a network have in common."""

    heads: int
    nope: int
    scale: np.float32
    eps: np.float32
    stored_eps: np.float32
    interleaved: bool
    index_interleaved: bool
    groups: int
    kept_groups: int
    scaling: np.float32
    normalise: bool


def _as_floats(_: Any, address: Any) -> Any:
    """The address as a pointer to fp32 numbers."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float32)(types.int64), build


_floats: Any = intrinsic(_as_floats)


@inlined
def _vector(layer: Any, name: int) -> Any:
    return numba.carray(_floats(layer[name, 0]), (layer[name, 3],))


@inlined
def _matrix(layer: Any, name: int) -> Any:
    return numba.carray(_floats(layer[name, 0]), (layer[name, 2], layer[name, 3]))


@inlined
def _cube(layer: Any, name: int) -> Any:
    return numba.carray(_floats(layer[name, 0]), (layer[name, 1], layer[name, 2], layer[name, 3]))


@loop
def decode(
    layers: Any, constants: Any, embedding: Any, norm: Any, head: Any, cos: Any, sin: Any, tables: Any,
    page_tokens: int, last: Any, starts: Any, most: Any, ends: Any, temperature: Any, uniform: Any, tokens: Any,
    logprobs: Any, counts: Any, experts: Any, selected: Any,
) -> None:  # fmt: skip
    """Decodes every sequence until it says one of its `ends` [B, .], or `most` [B] tokens.

    `last` [B] are their newest tokens, at the positions `starts` [B]; `uniform` [B, S] decides; cos and sin [., R/2]
    are those of all positions. Written: `tokens` and `logprobs` [B, S], how many in `counts` [B], and of every token
    that was forwarded its experts [B, S, MoE layers, E] and selection [B, S, L, K], unless these have no rows. `most`
    is changed.
    """
    ids, going = last.copy(), np.arange(last.shape[0])
    counts[:] = 0
    count = going.shape[0]
    for step in range(uniform.shape[1]):
        left = 0
        for i in range(count):
            if step < most[going[i]]:
                going[left] = going[i]
                left += 1
        count = left
        if count == 0:
            break
        owners, x = going[:count], np.empty((count, embedding.shape[1]), F)
        positions, places = np.empty(count, np.int64), np.empty(count, np.int64)
        turns, heat, draw = np.empty((2, count, cos.shape[1]), F), np.empty(count, F), np.empty(count, np.float64)
        for i in range(count):
            b = owners[i]
            position = starts[b] + step
            positions[i] = position
            places[i] = tables[b, position // page_tokens] * page_tokens + position % page_tokens
            x[i], turns[0, i], turns[1, i] = embedding[ids[b]], cos[position], sin[position]
            heat[i], draw[i] = temperature[b], uniform[b, step]
        where = owners, positions, places, tables, page_tokens
        x = _layers(x, layers, constants, turns, where, step, experts, selected)
        norm_rows(x, norm, constants.eps, x)
        logits, said, likely = np.empty((count, head.shape[0]), F), np.empty(count, np.int64), np.empty(count, F)
        product(x, head, logits)
        sample(logits, heat, draw, said, likely)
        for i in range(count):
            b = owners[i]
            ids[b], tokens[b, step], logprobs[b, step] = said[i], said[i], likely[i]
            counts[b] = step + 1
            for end in ends[b]:
                if end == said[i]:
                    most[b] = step + 1


@loop
def _layers(x: Any, layers: Any, constants: Any, turns: Any, where: Any, step: int, experts: Any, selected: Any) -> Any:
    """x [M, D] behind all layers; writes the step's records."""
    owners, positions, places, tables, page_tokens = where
    count, routed = x.shape[0], 0
    chosen = np.empty((count, selected.shape[3]), np.int32)
    taken = np.empty((count, experts.shape[3]), np.int64)
    for number in range(layers.shape[0]):
        layer = layers[number]
        rows, index_k, indexed = _matrix(layer, ROWS), _cube(layer, INDEX_K), layer[WQ_B, 0] != 0
        q = np.empty((count, layer[Q_B, 2]), F)
        asked, shares = np.empty((count, layer[WQ_B, 2]), F), np.empty((count, layer[WEIGHTS_PROJ, 2]), F)
        leave_rows(
            x, _vector(layer, ATTENTION_NORM), constants.eps, constants.heads, _matrix(layer, Q_A),
            _vector(layer, Q_NORM), _matrix(layer, Q_B), _matrix(layer, KV_A), _vector(layer, KV_NORM), rows, indexed,
            _matrix(layer, WQ_B), _matrix(layer, WK), _vector(layer, K_NORM), _vector(layer, K_BIAS),
            _matrix(layer, WEIGHTS_PROJ), index_k, constants.stored_eps, turns[0], turns[1], constants.interleaved,
            constants.index_interleaved, places, q, asked, shares,
        )  # fmt: skip
        out = np.empty_like(x)
        attend_and_add(
            x, q, asked, shares, indexed, positions, owners, tables, page_tokens, rows, index_k, _matrix(layer, KV_B),
            _matrix(layer, O_PROJ), constants.heads, constants.nope, constants.scale, chosen, out,
        )  # fmt: skip
        x = out
        norm, gate = _vector(layer, FEED_FORWARD_NORM), _matrix(layer, GATE)
        up, down = _matrix(layer, UP), _matrix(layer, DOWN)
        if layer[ROUTER, 0] == 0:
            add_feed_forward(x, norm, constants.eps, gate, up, down)
        else:
            add_mixture(
                x, norm, constants.eps, _matrix(layer, ROUTER), _vector(layer, BIAS), constants.groups,
                constants.kept_groups, constants.scaling, constants.normalise, _cube(layer, EXPERT_GATE_UP),
                _cube(layer, EXPERT_DOWN), layer[GATE, 0] != 0, gate, up, down, taken,
            )  # fmt: skip
            if experts.shape[0] > 0:
                for i in range(count):
                    experts[owners[i], step, routed] = taken[i]
            routed += 1
        if selected.shape[0] > 0:
            for i in range(count):
                selected[owners[i], step, number] = chosen[i]
    return x
