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

from baleen.ops.loops import LOWEST, F, exponential, loop, norm_rows, ordered, product, rotate, stays_whole

TOGETHER = 8
"""Tokens that score a page one after the other while it is in the processor's first cache."""


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
    """The index queries [M, I D] and weights [M, I] with their scales; writes the tokens' index keys [., D, .]."""
    tokens, half = cos.shape
    dims, heads = index_k.shape[1], weights.shape[1]
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
        page, slot = divmod(places[m], index_k.shape[2])
        index_k[page, :, slot] = key
        for head in range(heads):
            rotate(q[m, head * dims : head * dims + 2 * half], cos[m], sin[m], interleaved, space)
            weights[m, head] *= scale


@loop
def select(
    q: Any, weights: Any, positions: Any, owners: Any, tables: Any, page_tokens: int, index_k: Any, selected: Any
) -> None:
    """The best positions [M, K] of what each token sees, ascending, -1 behind: the higher score first, then the lower
    position. Tokens of one sequence that follow each other score a page together, as long as it is near."""
    stays_whole()
    tokens, most = selected.shape
    dims, heads = index_k.shape[1], weights.shape[1]
    longest = 0
    for m in range(tokens):
        longest = max(longest, positions[m] + 1)
    pages = (longest + page_tokens - 1) // page_tokens
    scores, dots = np.empty((min(TOGETHER, tokens), pages, page_tokens), F), np.empty((2, page_tokens), F)
    bits, hits = np.empty(pages * page_tokens, np.uint32), np.zeros(256, np.int64)
    first = 0
    while first < tokens:
        end, seen, table = first, 0, tables[owners[first]]
        while end < min(first + TOGETHER, tokens) and owners[end] == owners[first]:
            seen = max(seen, positions[end] + 1)
            end += 1
        for page in range((seen + page_tokens - 1) // page_tokens if seen > most else 0):
            for m in range(first, end):
                score_page(q[m].reshape(heads, dims), weights[m], index_k[table[page]], dots, scores[m - first, page])
        for m in range(first, end):
            take_best(scores[m - first].reshape(-1), positions[m] + 1, bits, hits, selected[m])
        first = end


@loop
def take_best(scores: Any, count: int, bits: Any, hits: Any, chosen: Any) -> None:
    """The positions of the best of scores[:count] into chosen [K]; bits and hits are space."""
    stays_whole()
    most, taken = chosen.shape[0], 0
    if count <= most:
        for i in range(most):
            chosen[i] = i if i < count else -1
        return
    _sortable(scores, count, bits)
    threshold, equal = _kth_largest(bits, count, most, hits)
    for i in range(count):
        if bits[i] > threshold or (bits[i] == threshold and equal > 0):
            if bits[i] == threshold:
                equal -= 1
            chosen[taken] = i
            taken += 1


@ordered
def score_page(asked: Any, weights: Any, keys: Any, dots: Any, scores: Any) -> None:
    """scores [T] = sum over heads of weight ReLU(asked . key), of a page's keys [D, T]; what lies behind a sequence's
    end is scored too, and not looked at. dots [2, T] is space, for two heads at a time. Sums are in the order as
    written."""
    stays_whole()
    heads, dims = asked.shape
    count = scores.shape[0]
    one, two = dots[0], dots[1]
    for head in range(0, heads, 2):
        other = min(head + 1, heads - 1)
        mine, its = asked[head], asked[other]
        one[:], two[:] = F(0), F(0)
        for d in range(0, dims - 3, 4):
            a, b, c, e = keys[d], keys[d + 1], keys[d + 2], keys[d + 3]
            p, q, r, s = mine[d], mine[d + 1], mine[d + 2], mine[d + 3]
            t, u, v, w = its[d], its[d + 1], its[d + 2], its[d + 3]
            for i in range(count):
                x, y = one[i] + p * a[i], two[i] + t * a[i]
                x, y = x + q * b[i], y + u * b[i]
                x, y = x + r * c[i], y + v * c[i]
                one[i], two[i] = x + s * e[i], y + w * e[i]
        for d in range(dims - dims % 4, dims):
            a, p, t = keys[d], mine[d], its[d]
            for i in range(count):
                one[i] += p * a[i]
                two[i] += t * a[i]
        weight, its_weight = weights[head], weights[other] if other > head else F(0)
        if head == 0:
            scores[:] = F(0)
        for i in range(count):
            scores[i] += weight * max(one[i], F(0)) + its_weight * max(two[i], F(0))


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
    stays_whole()
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
    stays_whole()
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
