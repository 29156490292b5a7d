"""The compiled loops themselves. Imported only where numba is installed; `compiled.py` says when they are taken.

Products take four rows at a time against two rows of the weight; a block that is not full repeats its last row, so that
every row runs through the same instructions and its bits depend on nothing but itself.
Weights are used as torch stores them, [out, in].
"""

# M = rows (tokens), K = depth of a product, N = outputs, H = heads, D = hidden or head dims

from __future__ import annotations

import hashlib
import math
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic

FAST = frozenset({"reassoc", "contract", "arcp", "nsz"})
"""What the compiler may do: sum in vectors, fuse multiply and add. Not: assume that there is no infinity."""

AS_WRITTEN = frozenset({"contract"})
"""Sums in the order that the loop states."""

NEAR = 16
"""Rows of a product that go through all outputs together, a multiple of four: they stay in the processor's first
cache."""

F = np.float32
LOWEST = F(-1e30)


def compiling(fastmath: frozenset[str], **options: Any) -> Any:
    """A decorator that compiles a loop when it is first called, and keeps the result on disk."""

    def decorate(function: Any) -> Any:
        config: Any = numba.config
        before, config.CACHE_DIR = config.CACHE_DIR, _folder()
        try:
            return numba.njit(function, fastmath=set(fastmath), nogil=True, cache=True, error_model="numpy", **options)
        finally:
            config.CACHE_DIR = before

    return decorate


@cache
def _folder() -> str:
    """Where compiled loops are kept, by the text of all of them: numba itself sees only changes of a loop's own file,
    and would go on with an old version of what it calls."""
    text = b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("loops*.py")))
    return str(Path(__file__).parent / "__pycache__" / f"loops-{hashlib.sha256(text).hexdigest()[:16]}")


loop, ordered, inlined = compiling(FAST), compiling(AS_WRITTEN), compiling(FAST, inline="always")


def _mark_whole(_: Any) -> Any:
    def build(context: Any, builder: Any, *__: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.none(), build


stays_whole: Any = intrinsic(_mark_whole)
"""Called in a loop, it keeps that loop from being merged into those that call it. Merged, it runs through other
instructions in each of them, which are slower by far where the compiler loses sight of what does not overlap."""


@loop
def product(x: Any, weight: Any, out: Any) -> None:
    """out [M, N] = x [M, K] weight [N, K]^T."""
    stays_whole()
    rows, depth = x.shape
    outputs = weight.shape[0]
    for first in range(0, rows, NEAR):
        for n in range(0, outputs, 2):
            other = min(n + 1, outputs - 1)
            v, w = weight[n], weight[other]
            for m in range(first, min(first + NEAR, rows), 4):
                m1, m2, m3 = min(m + 1, rows - 1), min(m + 2, rows - 1), min(m + 3, rows - 1)
                a, b, c, d = x[m], x[m1], x[m2], x[m3]
                p, q, r, s = F(0), F(0), F(0), F(0)
                t, u, y, z = F(0), F(0), F(0), F(0)
                for k in range(depth):
                    p += a[k] * v[k]
                    q += b[k] * v[k]
                    r += c[k] * v[k]
                    s += d[k] * v[k]
                    t += a[k] * w[k]
                    u += b[k] * w[k]
                    y += c[k] * w[k]
                    z += d[k] * w[k]
                out[m3, n], out[m2, n], out[m1, n], out[m, n] = s, r, q, p
                out[m3, other], out[m2, other], out[m1, other], out[m, other] = z, y, u, t


@loop
def norm_rows(x: Any, weight: Any, eps: Any, out: Any) -> None:
    """Root mean square norm of every row; out may be x."""
    stays_whole()
    rows, width = x.shape
    for m in range(rows):
        values, made = x[m], out[m]
        square = F(0)
        for i in range(width):
            square += values[i] * values[i]
        share = F(1) / math.sqrt(square / F(width) + eps)
        for i in range(width):
            made[i] = values[i] * share * weight[i]


@loop
def rotate(values: Any, cos: Any, sin: Any, interleaved: bool, space: Any) -> None:
    """Rotates one head's rope dims [R] in place; the result is in half-split order. space [R]."""
    stays_whole()
    half = values.shape[0] // 2
    for i in range(half):
        if interleaved:
            first, second = values[2 * i], values[2 * i + 1]
        else:
            first, second = values[i], values[half + i]
        space[i] = first * cos[i] - second * sin[i]
        space[half + i] = second * cos[i] + first * sin[i]
    for i in range(2 * half):
        values[i] = space[i]


@inlined
def exponential(x: Any) -> Any:
    """exp of a number that is not positive: its series around 0 and the exponent's bits (Cephes), all in vectors."""
    x = max(x, F(-87))
    power = np.floor(x * F(1.44269504) + F(0.5))
    r = x - power * F(0.693359375) + power * F(2.12194440e-4)
    series = F(1.9875691500e-4) * r + F(1.3981999507e-3)
    series = (series * r + F(8.3334519073e-3)) * r + F(4.1665795894e-2)
    series = (series * r + F(1.6666665459e-1)) * r + F(5.0000001201e-1)
    series = series * r * r + r + F(1)
    return series * np.int32((np.int32(power) + 127) << 23).view(F)


@inlined
def silu(x: Any) -> Any:
    """x / (1 + exp(-x))."""
    e = exponential(-abs(x))
    return x / (F(1) + e) if x >= F(0) else x * e / (F(1) + e)


@loop
def sample(logits: Any, temperature: Any, uniform: Any, tokens: Any, logprobs: Any) -> None:
    """Of each row [V], the first token whose cumulative probability passes the uniform number, and its log-probability;
    the most likely one, with 0, where the temperature is 0. logits are changed."""
    stays_whole()
    rows, count = logits.shape
    likely = np.empty(count, F)
    for m in range(rows):
        row, best, total, passed = logits[m], 0, 0.0, 0.0
        for i in range(count):
            if row[i] > row[best]:
                best = i
        tokens[m], logprobs[m] = best, F(0)
        if temperature[m] == F(0):
            continue
        highest, share = row[best], F(1) / temperature[m]
        for i in range(count):
            row[i] = (row[i] - highest) * share
            likely[i] = exponential(row[i]) if row[i] > F(-87) else F(0)
        for i in range(count):
            total += np.float64(likely[i])
        target = uniform[m] * total
        for i in range(count):
            passed += np.float64(likely[i])
            if passed > target:
                tokens[m] = i
                break
        logprobs[m] = row[tokens[m]] - F(math.log(total))


@loop
def swiglu(x: Any, gate: Any, up: Any, down: Any, out: Any) -> None:
    """out [M, D] = down(silu(gate x) * up x)."""
    stays_whole()
    rows, width = x.shape[0], gate.shape[0]
    inner, other = np.empty((rows, width), F), np.empty((rows, width), F)
    product(x, gate, inner)
    product(x, up, other)
    for m in range(rows):
        for i in range(width):
            inner[m, i] = silu(inner[m, i]) * other[m, i]
    product(inner, down, out)


@loop
def route(
    logits: Any, bias: Any, groups: int, kept_groups: int, scaling: Any, normalise: bool, experts: Any, weights: Any
) -> None:
    """Sigmoid scores, the best groups by their two best biased scores, the best experts of these; ties to the lower
    index. experts [M, K] int64 and weights [M, K] are written."""
    stays_whole()
    rows, count = logits.shape
    size, taken = count // groups, experts.shape[1]
    scores, choice, group_scores = np.empty(count, F), np.empty(count, F), np.empty(groups, F)
    for m in range(rows):
        for e in range(count):
            x = exponential(-abs(logits[m, e]))
            scores[e] = F(1) / (F(1) + x) if logits[m, e] >= F(0) else x / (F(1) + x)
            choice[e] = scores[e] + bias[e]
        if kept_groups < groups:
            for g in range(groups):
                best, second = LOWEST, F(0) if size == 1 else LOWEST
                for e in range(g * size, (g + 1) * size):
                    if choice[e] > best:
                        best, second = choice[e], best if size > 1 else F(0)
                    elif choice[e] > second and size > 1:
                        second = choice[e]
                group_scores[g] = best + second
            for _ in range(groups - kept_groups):  # of equal groups the higher one goes
                worst = -1
                for g in range(groups):
                    if group_scores[g] > LOWEST and (worst < 0 or group_scores[g] <= group_scores[worst]):
                        worst = g
                group_scores[worst] = LOWEST
                choice[worst * size : (worst + 1) * size] = LOWEST
        total = F(0)
        for k in range(taken):
            best_expert = 0
            for e in range(1, count):
                if choice[e] > choice[best_expert]:
                    best_expert = e
            choice[best_expert] = F(-2e30)
            experts[m, k] = best_expert
            weights[m, k] = scores[best_expert]
            total += scores[best_expert]
        for k in range(taken):
            weights[m, k] = weights[m, k] / (total + F(1e-20)) * scaling if normalise else weights[m, k] * scaling


@loop
def run_experts(x: Any, experts: Any, weights: Any, gate_up: Any, down: Any, out: Any) -> None:
    """out [M, D] = sum_k weights[m, k] down_e(silu(gate_e x_m) * up_e x_m) with e = experts[m, k]."""
    stays_whole()
    rows, taken = experts.shape
    hidden, width = x.shape[1], down.shape[2]
    mixed = np.empty((rows, taken, hidden), F)
    members = np.empty((rows * taken, 2), np.int64)
    for expert in range(gate_up.shape[0]):
        count = 0
        for m in range(rows):
            for k in range(taken):
                if experts[m, k] == expert:
                    members[count, 0], members[count, 1] = m, k
                    count += 1
        if count == 0:
            continue
        mine, both, made = np.empty((count, hidden), F), np.empty((count, 2 * width), F), np.empty((count, hidden), F)
        for i in range(count):
            mine[i] = x[members[i, 0]]
        product(mine, gate_up[expert], both)
        inner = np.empty((count, width), F)
        for i in range(count):
            share = weights[members[i, 0], members[i, 1]]
            for j in range(width):
                inner[i, j] = silu(both[i, j]) * both[i, width + j] * share
        product(inner, down[expert], made)
        for i in range(count):
            mixed[members[i, 0], members[i, 1]] = made[i]
    for m in range(rows):
        for i in range(hidden):
            out[m, i] = mixed[m, 0, i]
        for k in range(1, taken):
            for i in range(hidden):
                out[m, i] += mixed[m, k, i]
