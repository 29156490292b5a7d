"""A whole layer in two loops: what every token leaves in the cache, and everything after that.

Between the two all tokens of the forward must have left their rows; within each, tokens are independent, so any slice
of them may be given to any thread.
"""

# M = new tokens, D = hidden

from __future__ import annotations

from typing import Any

import numpy as np

from baleen.ops.loops import F, loop, norm_rows, product, route, run_experts, swiglu
from baleen.ops.loops_attention import attend, project_index, project_latent, select


@loop
def leave_rows(
    x: Any, norm: Any, eps: Any, heads: int, q_a: Any, q_norm: Any, q_b: Any, kv_a: Any, kv_norm: Any, rows: Any,
    indexed: bool, wq_b: Any, wk: Any, k_norm: Any, k_bias: Any, weights_proj: Any, index_k: Any, stored_eps: Any,
    cos: Any, sin: Any, interleaved: bool, index_interleaved: bool, places: Any, q: Any, asked: Any, shares: Any,
) -> None:  # fmt: skip
    """x [M, D] -> queries q, index queries and their weights; writes rows and index keys at `places`."""
    normed, latent = np.empty_like(x), np.empty((x.shape[0], q_a.shape[0]), F)
    norm_rows(x, norm, eps, normed)
    project_latent(
        normed, q_a, q_norm, q_b, kv_a, kv_norm, stored_eps, heads, cos, sin, interleaved, places, rows, latent, q
    )
    if indexed:
        project_index(
            normed, latent, wq_b, wk, k_norm, k_bias, weights_proj, stored_eps, cos, sin, index_interleaved, places,
            index_k, asked, shares,
        )  # fmt: skip


@loop
def attend_and_add(
    x: Any, q: Any, asked: Any, shares: Any, indexed: bool, positions: Any, owners: Any, tables: Any, page_tokens: int,
    rows: Any, index_k: Any, kv_b: Any, o_proj: Any, heads: int, nope: int, scale: Any, selected: Any, out: Any,
) -> None:  # fmt: skip
    """out [M, D] = x + attention over what each token selects (or was given in `selected`)."""
    if indexed:
        select(asked, shares, positions, owners, tables, page_tokens, index_k, selected)
    attended = np.empty((x.shape[0], o_proj.shape[1]), F)
    attend(q, selected, owners, tables, page_tokens, rows, kv_b, heads, nope, scale, attended)
    product(attended, o_proj, out)
    out += x


@loop
def add_feed_forward(x: Any, norm: Any, eps: Any, gate: Any, up: Any, down: Any) -> None:
    """x [M, D] += feed-forward of its norm."""
    normed, made = np.empty_like(x), np.empty_like(x)
    norm_rows(x, norm, eps, normed)
    swiglu(normed, gate, up, down, made)
    x += made


@loop
def add_mixture(
    x: Any, norm: Any, eps: Any, router: Any, bias: Any, groups: int, kept_groups: int, scaling: Any, normalise: bool,
    gate_up: Any, down: Any, shared: bool, shared_gate: Any, shared_up: Any, shared_down: Any, experts: Any,
) -> None:  # fmt: skip
    """x [M, D] += routed and shared experts of its norm; experts [M, K] are written."""
    normed, made = np.empty_like(x), np.empty_like(x)
    norm_rows(x, norm, eps, normed)
    logits, shares = np.empty((x.shape[0], bias.shape[0]), F), np.empty(experts.shape, F)
    product(normed, router, logits)
    route(logits, bias, groups, kept_groups, scaling, normalise, experts, shares)
    run_experts(normed, experts, shares, gate_up, down, made)
    x += made
    if shared:
        swiglu(normed, shared_gate, shared_up, shared_down, made)
        x += made
