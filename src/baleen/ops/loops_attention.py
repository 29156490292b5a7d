"""Sparse latent attention over a paged cache, in compiled loops: what a flat list of new tokens does in one layer.

First every token leaves its rows behind (`project`), then every token scores the keys it sees, selects the best and
attends to them (`attend`). Both go token by token, so that nothing a token gets depends on the others in the list.
"""

# M = new tokens, H = heads, N, R, V = nope, rope, value dims of a head, C = latent dims, W = C + R, I = index heads,
# D = index head dim, K = index_topk, P = pages of a sequence

from __future__ import annotations

import math
from typing import Any

import numpy as np

from baleen.ops.loops import LOWEST, F, exponential, loop, norm_rows, ordered, product, rotate

RUN = 1024
"""Keys scored at once, about: their dims stay in the processor's first cache."""


@loop
def project_latent(
    x: Any, q_a: Any, q_norm: Any, q_b: Any, kv_a: Any, kv_norm: Any, eps: Any, heads: int, cos: Any, sin: Any,
    interleaved: bool, places: Any, rows: Any, latent: Any, q: Any,
) -> None:  # fmt: skip
    """x [M, hidden] -> the query latents [M, Q] and queries q [M, H (N + R)]; writes the tokens' rows [., W]."""
    tokens, half = cos.shape
    width = rows.shape[1] - 2 * half
    space = np.empty(2 * half, F)
    product(x, q_a, latent)
    norm_rows(latent, q_norm, eps, latent)
    product(latent, q_b, q)
    made = np.empty((tokens, rows.shape[1]), F)
    product(x, kv_a, made)
    norm_rows(made[:, :width], kv_norm, eps, made[:, :width])
    each = q.shape[1] // heads
    for m in range(tokens):
        for head in range(heads):
            rotate(q[m, (head + 1) * each - 2 * half : (head + 1) * each], cos[m], sin[m], interleaved, space)
        rotate(made[m, width:], cos[m], sin[m], interleaved, space)
        rows[places[m]] = made[m]


@loop
def project_index(
    x: Any, latent: Any, wq_b: Any, wk: Any, norm_weight: Any, norm_bias: Any, weights_proj: Any, eps: Any, cos: Any,
    sin: Any, interleaved: bool, places: Any, index_k: Any, q: Any, weights: Any,
) -> None:  # fmt: skip
    """The index queries [M, I D] and weights [M, I] with their scales; writes the tokens' index keys [D, .]."""
    tokens, half = cos.shape
    dims, heads = index_k.shape[0], weights.shape[1]
    space = np.empty(2 * half, F)
    keys = np.empty((tokens, dims), F)
    product(latent, wq_b, q)
    product(x, wk, keys)
    product(x, weights_proj, weights)
    scale = F(1 / math.sqrt(heads * dims))
    for m in range(tokens):
        key = keys[m]
        mean, square = F(0), F(0)
        for i in range(dims):
            mean += key[i]
        mean /= F(dims)
        for i in range(dims):
            square += (key[i] - mean) * (key[i] - mean)
        share = F(1) / math.sqrt(square / F(dims) + eps)
        for i in range(dims):
            key[i] = (key[i] - mean) * share * norm_weight[i] + norm_bias[i]
        rotate(key[: 2 * half], cos[m], sin[m], interleaved, space)
        index_k[:, places[m]] = key
        for head in range(heads):
            rotate(q[m, head * dims : head * dims + 2 * half], cos[m], sin[m], interleaved, space)
            weights[m, head] *= scale


@loop
def select(
    q: Any, weights: Any, positions: Any, owners: Any, tables: Any, page_tokens: int, index_k: Any, selected: Any
) -> None:
    """The best positions [M, K] of what each token sees, ascending, -1 behind: the higher score first, then the lower
    position."""
    tokens, most = selected.shape
    dims, heads = index_k.shape[0], weights.shape[1]
    longest = 0
    for m in range(tokens):
        longest = max(longest, positions[m] + 1)
    dots = np.empty(RUN + page_tokens, F)
    scores, bits, hits = np.empty(longest, F), np.empty(longest, np.uint32), np.zeros(256, np.int64)
    for m in range(tokens):
        count, table, chosen = positions[m] + 1, tables[owners[m]], selected[m]
        if count <= most:
            for i in range(most):
                chosen[i] = i if i < count else -1
            continue
        asked = q[m].reshape(heads, dims)
        start = 0
        while start < count:  # a run of pages that lie one behind the other
            page = start // page_tokens
            first, end = table[page] * page_tokens, start + page_tokens
            while end < count and end - start < RUN and table[end // page_tokens] == table[end // page_tokens - 1] + 1:
                end += page_tokens
            end = min(end, count)
            score_run(asked, weights[m], index_k[:, first : first + end - start], dots, scores[start:end])
            start = end
        _sortable(scores, count, bits)
        threshold, equal = _kth_largest(bits, count, most, hits)
        taken = 0
        for i in range(count):
            if bits[i] > threshold or (bits[i] == threshold and equal > 0):
                if bits[i] == threshold:
                    equal -= 1
                chosen[taken] = i
                taken += 1


@ordered
def score_run(asked: Any, weights: Any, keys: Any, dots: Any, scores: Any) -> None:
    """scores [n] = sum over heads of weight ReLU(asked . key), of keys [D, n] with their dims first: all keys of a run
    in one vector operation; dots [n or more] is space. Sums are in the order as written, whatever the run's length."""
    heads, dims = asked.shape
    count = scores.shape[0]
    for head in range(heads):
        mine, weight = asked[head], weights[head]
        dots[:count] = F(0)
        for d in range(0, dims - 7, 8):
            a, b, c, e = keys[d], keys[d + 1], keys[d + 2], keys[d + 3]
            f, g, h, k = keys[d + 4], keys[d + 5], keys[d + 6], keys[d + 7]
            p, q, r, s = mine[d], mine[d + 1], mine[d + 2], mine[d + 3]
            t, u, v, w = mine[d + 4], mine[d + 5], mine[d + 6], mine[d + 7]
            for i in range(count):
                left = (p * a[i] + q * b[i]) + (r * c[i] + s * e[i])
                right = (t * f[i] + u * g[i]) + (v * h[i] + w * k[i])
                dots[i] += left + right
        for d in range(dims - dims % 8, dims):
            a, p = keys[d], mine[d]
            for i in range(count):
                dots[i] += p * a[i]
        if head == 0:
            for i in range(count):
                scores[i] = weight * max(dots[i], F(0))
        else:
            for i in range(count):
                scores[i] += weight * max(dots[i], F(0))


@loop
def _sortable(scores: Any, count: int, bits: Any) -> None:
    """Words that order as the scores do; both zeros are the same number."""
    words = scores.view(np.uint32)
    for i in range(count):
        word = words[i] if words[i] != np.uint32(0x80000000) else np.uint32(0)
        flip = np.uint32(0xFFFFFFFF) if word >> np.uint32(31) else np.uint32(0x80000000)
        bits[i] = word ^ flip


@loop
def _kth_largest(bits: Any, count: int, k: int, hits: Any) -> Any:
    """The k-th largest of bits[:count], and how many of those that equal it are among the k largest: byte by byte."""
    prefix, left = np.uint32(0), k
    for step in range(4):
        shift = np.uint32(24 - 8 * step)
        hits[:] = 0
        for i in range(count):
            if step == 0 or (bits[i] >> (shift + np.uint32(8))) == prefix:
                hits[(bits[i] >> shift) & np.uint32(255)] += 1
        digit = 255
        while hits[digit] < left:
            left -= hits[digit]
            digit -= 1
        prefix = (prefix << np.uint32(8)) | np.uint32(digit)
    return prefix, left


@loop
def attend(
    q: Any, selected: Any, owners: Any, tables: Any, page_tokens: int, rows: Any, kv_b: Any, heads: int, nope: int,
    scale: Any, out: Any,
) -> None:  # fmt: skip
    """out [M, H V] of queries q [M, H (N + R)] over the selected positions [M, K]; kv_b [H (N + V), C]."""
    tokens, most = selected.shape
    width, latent = rows.shape[1], kv_b.shape[1]
    rope, each = width - latent, q.shape[1] // heads
    values = kv_b.shape[0] // heads - nope
    asked, mixed, weights = np.empty((heads, width), F), np.empty((heads, latent), F), np.zeros((heads, most + 4), F)
    place = np.zeros(most + 4, np.int64)
    for m in range(tokens):
        table = tables[owners[m]]
        count = 0
        for i in range(most):
            if selected[m, i] < 0:
                break
            place[i] = table[selected[m, i] // page_tokens] * page_tokens + selected[m, i] % page_tokens
            count = i + 1
        place[count : count + 4] = place[count - 1]
        for head in range(heads):
            mine, target = q[m, head * each : (head + 1) * each], asked[head]
            target[:latent] = F(0)
            for n in range(nope):
                w, factor = kv_b[head * (nope + values) + n], mine[n]
                for c in range(latent):
                    target[c] += factor * w[c]
            target[latent:] = mine[nope : nope + rope]
        attend_rows(asked, place, count, rows, scale, weights, mixed)
        for head in range(heads):
            target = out[m, head * values : (head + 1) * values]
            for v in range(values):
                w, total = kv_b[head * (nope + values) + nope + v], F(0)
                for c in range(latent):
                    total += mixed[head, c] * w[c]
                target[v] = total


@loop
def attend_rows(asked: Any, place: Any, count: int, rows: Any, scale: Any, weights: Any, mixed: Any) -> None:
    """mixed [H, C] = softmax(scale asked [H, W] . rows at place[:count]) times the rows' first C dims. place and
    weights [H, .] are four longer than count, and place repeats its last row there."""
    heads, width = asked.shape
    values = mixed.shape[1]
    for head in range(0, heads, 4):
        last = heads - 1
        h1, h2, h3 = min(head + 1, last), min(head + 2, last), min(head + 3, last)
        a, b, c, d = asked[head], asked[h1], asked[h2], asked[h3]
        for key in range(count):
            row = rows[place[key]]
            p, q, r, s = F(0), F(0), F(0), F(0)
            for i in range(width):
                x = row[i]
                p += a[i] * x
                q += b[i] * x
                r += c[i] * x
                s += d[i] * x
            weights[h3, key] = s * scale
            weights[h2, key] = r * scale
            weights[h1, key] = q * scale
            weights[head, key] = p * scale
    for head in range(heads):
        weight = weights[head]
        highest, total = LOWEST, F(0)
        for key in range(count):
            highest = max(highest, weight[key])
        for key in range(count):
            weight[key] = exponential(weight[key] - highest)
            total += weight[key]
        for key in range(count):
            weight[key] /= total
        weight[count : count + 4] = F(0)
    mixed[:] = F(0)
    for key in range(0, count, 4):  # four rows at a time: the output is loaded and stored once for them
        a, b, c, d = rows[place[key]], rows[place[key + 1]], rows[place[key + 2]], rows[place[key + 3]]
        for head in range(heads):
            p, q, r, s = weights[head, key], weights[head, key + 1], weights[head, key + 2], weights[head, key + 3]
            made = mixed[head]
            for i in range(values):
                made[i] += p * a[i] + q * b[i] + r * c[i] + s * d[i]
