"""Each compiled loop against its plain statement at odd sizes, and a row's bits against the rows around it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

import numba

from baleen.ops import experts, loops, loops_attention
from baleen.ops.selection import select_topk_reference
from baleen.ops.threads import in_threads

ROWS = st.integers(1, 9)
SEEDS = st.integers(0, 2**32 - 1)


@numba.njit
def exponentials(x, out):
    for i in range(len(x)):
        out[i] = loops.exponential(x[i])


@numba.njit
def silus(x, out):
    for i in range(len(x)):
        out[i] = loops.silu(x[i])


def normal(seed, *shape, scale=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def filled(*shape):
    """Where a loop writes: what it leaves out is seen."""
    return np.full(shape, np.nan, np.float32)


def product(x, weight):
    out = filled(len(x), len(weight))
    loops.product(x, weight, out)
    return out


def swiglu(x, gate, up, down):
    out = filled(len(x), len(down))
    loops.swiglu(x, gate, up, down, out)
    return out


@given(ROWS, st.integers(1, 70), st.integers(1, 9), SEEDS)
def test_product_is_the_matrix_product(rows, depth, outputs, seed):
    x, weight = normal(seed, rows, depth), normal(seed + 1, outputs, depth)
    wanted = x.astype(np.float64) @ weight.astype(np.float64).T
    np.testing.assert_allclose(product(x, weight), wanted, atol=1e-6 * (depth + 4), rtol=1e-5)


@given(ROWS, st.integers(1, 130), SEEDS)
def test_a_rows_product_does_not_depend_on_the_rows_around_it(rows, depth, seed):
    x, weight = normal(seed, rows, depth), normal(seed + 1, 5, depth)
    together = product(x, weight)
    for row in range(rows):
        assert together[row].tobytes() == product(x[row : row + 1], weight)[0].tobytes()
    part = slice(rows // 3, rows)
    assert together[part].tobytes() == product(x[part], weight).tobytes()


@given(ROWS, st.integers(1, 40), SEEDS)
def test_norm_rows_is_the_root_mean_square_norm(rows, width, seed):
    x, weight, eps = normal(seed, rows, width), normal(seed + 1, width), 1e-5
    out = filled(rows, width)
    loops.norm_rows(x, weight, np.float32(eps), out)
    wanted = F.rms_norm(torch.from_numpy(x), (width,), torch.from_numpy(weight), eps)
    np.testing.assert_allclose(out, wanted, atol=1e-6, rtol=1e-5)
    loops.norm_rows(x, weight, np.float32(eps), x)
    assert x.tobytes() == out.tobytes(), "in place it is the same"


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("dims", [2, 6, 8])
def test_rotate_rotates_pairs_and_leaves_half_split_order(interleaved, dims):
    values, angles = normal(1, dims), normal(2, dims // 2)
    cos, sin = np.cos(angles), np.sin(angles)
    first, second = (values[0::2], values[1::2]) if interleaved else (values[: dims // 2], values[dims // 2 :])
    wanted = np.concatenate((first * cos - second * sin, second * cos + first * sin))
    loops.rotate(values, cos, sin, interleaved, np.empty(dims, np.float32))
    np.testing.assert_allclose(values, wanted, atol=1e-6)


def test_exponential_is_right_to_two_units_in_the_last_place():
    x = np.concatenate([-np.logspace(-12, np.log10(87), 200_001), [0.0, -0.0, -87.0]]).astype(np.float32)
    out = np.empty_like(x)
    exponentials(x, out)
    wanted = np.exp(x.astype(np.float64))
    assert np.max(np.abs(out - wanted) / np.spacing(wanted.astype(np.float32))) <= 2
    assert out[-3] == out[-2] == 1


def test_exponential_of_very_low_numbers_is_as_good_as_nothing():
    x = np.array([-88, -1e4, -3e38, -np.inf], np.float32)
    out = np.empty_like(x)
    exponentials(x, out)
    assert (out >= 0).all()
    assert (out < 1e-37).all()


def test_silu_is_right_over_the_whole_range():
    x = np.concatenate([np.linspace(-90, 90, 10_001), [0.0, -1e6, 1e6]]).astype(np.float32)
    out = np.empty_like(x)
    silus(x, out)
    np.testing.assert_allclose(out, F.silu(torch.from_numpy(x.astype(np.float64))), rtol=1e-6, atol=1e-30)


@given(ROWS, st.integers(1, 30), st.integers(1, 11), SEEDS)
def test_swiglu_is_the_gated_feed_forward(rows, hidden, width, seed):
    x, gate, up, down = (
        normal(seed + i, *s) for i, s in enumerate([(rows, hidden), *[(width, hidden)] * 2, (hidden, width)])
    )
    x64, gate64, up64, down64 = (torch.from_numpy(each.astype(np.float64)) for each in (x, gate, up, down))
    made = swiglu(x, gate, up, down)
    wanted = (F.silu(x64 @ gate64.T) * (x64 @ up64.T)) @ down64.T
    np.testing.assert_allclose(made, wanted, atol=3e-4 * max(1.0, float(wanted.abs().max())) / 10, rtol=1e-4)
    for row in range(rows):
        assert made[row].tobytes() == swiglu(x[row : row + 1], gate, up, down)[0].tobytes()


def routed(logits, bias, groups, kept, taken, scaling=1.0, normalise=True):
    chosen, weights = np.full((len(logits), taken), -1, np.int64), filled(len(logits), taken)
    loops.route(logits, bias, groups, kept, np.float32(scaling), normalise, chosen, weights)
    return chosen, weights


@given(ROWS, st.integers(1, 6), st.integers(1, 5), st.data())
def test_route_chooses_as_the_networks_gate_does_ties_included(rows, groups, size, data):
    kept = data.draw(st.integers(1, groups))
    taken = data.draw(st.integers(1, kept * size))
    rng = np.random.default_rng(data.draw(SEEDS))
    # Few different values, far apart: many exact ties and no near one.
    logits = rng.choice(np.array([-9, -1, 0, 1, 9], np.float32), size=(rows, groups * size))
    bias = rng.choice(np.array([-2, -0.5, 0, 0.5], np.float32), size=groups * size)
    normalise, scaling = data.draw(st.booleans()), data.draw(st.sampled_from([1.0, 2.5]))
    chosen, weights = routed(logits, bias, groups, kept, taken, scaling, normalise)
    scores = torch.sigmoid(torch.from_numpy(logits))
    wanted = experts.route(scores, torch.from_numpy(bias), n_group=groups, topk_group=kept, topk=taken)
    np.testing.assert_array_equal(chosen, wanted)
    shares = experts.mixing_weights(scores, wanted, normalise=normalise, scaling=scaling)
    np.testing.assert_allclose(weights, shares, rtol=1e-5)


@given(ROWS, SEEDS)
def test_a_rows_route_does_not_depend_on_the_rows_around_it(rows, seed):
    logits, bias = normal(seed, rows, 12), normal(seed + 1, 12, scale=0.1)
    chosen, weights = routed(logits, bias, 4, 2, 3)
    for row in range(rows):
        one, share = routed(logits[row : row + 1], bias, 4, 2, 3)
        assert (chosen[row] == one[0]).all()
        assert weights[row].tobytes() == share[0].tobytes()


def mixed(x, chosen, weights, gate_up, down):
    out = filled(*x.shape)
    loops.run_experts(x, chosen, weights, gate_up, down, out)
    return out


@given(st.integers(1, 13), st.integers(1, 4), st.integers(1, 9), SEEDS)
def test_run_experts_mixes_what_the_chosen_experts_say(rows, taken, width, seed):
    hidden, count, rng = 11, 5, np.random.default_rng(seed)
    chosen = np.stack([rng.permutation(count)[:taken] for _ in range(rows)])
    weights = rng.random((rows, taken), dtype=np.float32)
    x, gate_up, down = (
        normal(seed, rows, hidden),
        normal(seed + 1, count, 2 * width, hidden),
        normal(seed + 2, count, hidden, width),
    )
    made = mixed(x, chosen, weights, gate_up, down)
    given = [torch.from_numpy(each) for each in (x, chosen, weights, gate_up, down)]
    wanted = experts.run_experts(*(each.double() if each.is_floating_point() else each for each in given))
    np.testing.assert_allclose(made, wanted, atol=2e-5 * max(1.0, float(wanted.abs().max())))
    for row in range(rows):
        part = slice(row, row + 1)
        assert made[row].tobytes() == mixed(x[part], chosen[part], weights[part], gate_up, down)[0].tobytes()


def paged(rng, lengths, page_tokens):
    """A table of pages in no order, longer than needed, and the number of rows in the storage."""
    per = -(-max(lengths) // page_tokens)
    pages = 1 + rng.permutation(per * len(lengths)).reshape(len(lengths), per)
    return pages.astype(np.int64), (1 + per * len(lengths)) * page_tokens


def selected(q, weights, positions, owners, tables, page_tokens, index_k, most):
    out = np.full((len(q), most), -7, np.int32)
    pages = index_k.reshape(-1, page_tokens, index_k.shape[1])
    keys = np.ascontiguousarray(pages.transpose(0, 2, 1))  # the cache keeps a dim of a page's keys side by side
    loops_attention.select(q, weights, positions, owners, tables, page_tokens, keys, out)
    return out


@settings(max_examples=150)
@given(st.sampled_from([1, 2, 3, 4, 5, 16]), st.integers(1, 20), st.integers(1, 7), st.booleans(), SEEDS)
def test_select_takes_the_best_positions_the_lower_of_equal_ones(heads, most, page_tokens, tied, seed):
    rng, dims = np.random.default_rng(seed), 5
    positions = rng.integers(0, 40, size=6)
    owners = rng.integers(0, 3, size=6)
    tables, stored = paged(rng, [40] * 3, page_tokens)
    shape = (stored, dims), (6, heads * dims), (6, heads)
    # Whole numbers have exact scores, and few of them; weights of both signs make zeros of both signs.
    draw = (lambda s: rng.integers(-1, 2, size=s)) if tied else (lambda s: rng.integers(-50, 51, size=s))
    index_k, q, weights = (draw(each).astype(np.float32) for each in shape)
    found = selected(q, weights, positions, owners, tables, page_tokens, index_k, most)
    for row, (position, owner) in enumerate(zip(positions, owners, strict=True)):
        seen = np.arange(position + 1)
        keys = index_k[tables[owner, seen // page_tokens] * page_tokens + seen % page_tokens]
        scores = (weights[row][:, None] * np.maximum(q[row].reshape(heads, dims) @ keys.T, 0)).sum(0) + np.float32(0)
        visible = torch.ones(1, 1, len(seen), dtype=torch.bool)
        wanted = select_topk_reference(torch.from_numpy(scores)[None, None], visible, most)[0, 0].tolist()
        assert found[row].tolist() == wanted + [-1] * (most - len(wanted))
        alone = selected(
            q[row : row + 1],
            weights[row : row + 1],
            positions[row : row + 1],
            owners[row : row + 1],
            tables,
            page_tokens,
            index_k,
            most,
        )
        assert alone[0].tolist() == found[row].tolist()


@given(
    st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, -1e-40, 1e-40, 3e38, -3e38]), min_size=1, max_size=40),
    st.data(),
)
def test_the_threshold_counts_both_zeros_as_one_number(scores, data):
    k = data.draw(st.integers(1, len(scores)))
    values, bits = np.array(scores, np.float32), np.empty(len(scores), np.uint32)
    loops_attention._sortable(values, len(values), bits)
    assert ((bits[:, None] < bits) == (values[:, None] < values)).all()
    threshold, equal = loops_attention._kth_largest(bits, len(bits), k, np.zeros(256, np.int64))
    ordered = np.sort(bits)[::-1]
    assert threshold == ordered[k - 1]
    assert equal == k - (bits > threshold).sum()


@given(st.integers(1, 9), st.integers(1, 13), st.integers(1, 19), st.integers(1, 6), SEEDS)
def test_attend_rows_is_softmax_attention(heads, count, values, rope, seed):
    rng, most = np.random.default_rng(seed), 13
    rows, asked = normal(seed, 30, values + rope), normal(seed + 1, heads, values + rope)
    place = np.zeros(most + 4, np.int64)
    place[:count] = rng.permutation(30)[:count]
    place[count : count + 4] = place[count - 1]
    weights, made, scale = np.zeros((heads, most + 4), np.float32), filled(heads, values), np.float32(0.3)
    loops_attention.attend_rows(asked, place, count, rows, scale, weights, made)
    here = rows[place[:count]].astype(np.float64)
    shares = torch.softmax(torch.from_numpy(scale * (asked.astype(np.float64) @ here.T)), -1).numpy()
    np.testing.assert_allclose(made, shares @ here[:, :values], atol=1e-5)


def attended(q, chosen, owners, tables, page_tokens, rows, kv_b, heads, nope):
    out = filled(len(q), heads * (len(kv_b) // heads - nope))
    loops_attention.attend(q, chosen, owners, tables, page_tokens, rows, kv_b, heads, nope, np.float32(0.2), out)
    return out


@given(st.integers(1, 9), st.integers(1, 7), st.integers(1, 9), st.integers(1, 7), SEEDS)
def test_a_tokens_attention_is_the_expanded_one_and_its_own(heads, nope, values, page_tokens, seed):
    rng, latent, rope, most = np.random.default_rng(seed), 6, 4, 9
    tables, stored = paged(rng, [40] * 2, page_tokens)
    rows, kv_b = normal(seed, stored, latent + rope), normal(seed + 1, heads * (nope + values), latent)
    q, owners = normal(seed + 2, 5, heads * (nope + rope)), rng.integers(0, 2, size=5)
    chosen = np.full((5, most), -1, np.int32)
    for row in range(5):
        count = int(rng.integers(1, most + 1))
        chosen[row, :count] = np.sort(rng.permutation(40)[:count])
    made = attended(q, chosen, owners, tables, page_tokens, rows, kv_b, heads, nope)
    both = kv_b.reshape(heads, nope + values, latent).astype(np.float64)
    for row in range(5):
        at = chosen[row][chosen[row] >= 0]
        here = rows[tables[owners[row], at // page_tokens] * page_tokens + at % page_tokens].astype(np.float64)
        mine = q[row].reshape(heads, nope + rope)
        for head in range(heads):
            keys = np.concatenate((here[:, :latent] @ both[head, :nope].T, here[:, latent:]), axis=1)
            shares = torch.softmax(torch.from_numpy(0.2 * keys @ mine[head]), 0).numpy()
            wanted = shares @ (here[:, :latent] @ both[head, nope:].T)
            np.testing.assert_allclose(made[row].reshape(heads, values)[head], wanted, atol=2e-5)
        alone = attended(
            q[row : row + 1], chosen[row : row + 1], owners[row : row + 1], tables, page_tokens, rows, kv_b, heads, nope
        )
        assert alone[0].tobytes() == made[row].tobytes()


def sampled(logits, temperature, uniform):
    rows = len(logits)
    tokens, logprobs = np.full(rows, -1, np.int64), filled(rows)
    temperatures = np.broadcast_to(np.float32(temperature), rows).copy()
    loops.sample(logits.copy(), temperatures, np.asarray(uniform, np.float64), tokens, logprobs)
    return tokens, logprobs


@given(ROWS, st.integers(1, 130), st.sampled_from([0.3, 0.7, 1.0, 2.0]), SEEDS)
def test_sample_inverts_the_cumulative_probabilities(rows, count, temperature, seed):
    logits, uniform = normal(seed, rows, count, scale=3), np.random.default_rng(seed).random(rows)
    tokens, logprobs = sampled(logits, temperature, uniform)
    wanted = torch.log_softmax(torch.from_numpy(logits).double() / temperature, -1)
    ends = wanted.exp().cumsum(-1).numpy()
    for row, token in enumerate(tokens):
        assert abs(logprobs[row] - wanted[row, token]) < 1e-5
        assert (ends[row, token - 1] if token else 0.0) - 1e-6 <= uniform[row] <= ends[row, token] + 1e-6
        one, logprob = sampled(logits[row : row + 1], temperature, uniform[row : row + 1])
        assert (one[0], logprob.tobytes()) == (token, logprobs[row : row + 1].tobytes())


@given(ROWS, st.integers(1, 50), SEEDS)
def test_sample_at_temperature_zero_takes_the_first_of_the_most_likely(rows, count, seed):
    logits = np.random.default_rng(seed).integers(-3, 3, size=(rows, count)).astype(np.float32)
    tokens, logprobs = sampled(logits, 0, np.full(rows, 0.5))
    assert (tokens == logits.argmax(-1)).all()
    assert (logprobs == 0).all()


@pytest.mark.parametrize("uniform", [0.0, 2.0**-53, 0.5, 1 - 2.0**-53])
@pytest.mark.parametrize("temperature", [0.0, 1e-3, 1.0, 100.0])
def test_sample_never_takes_a_token_that_cannot_be(uniform, temperature):
    logits = np.full((1, 40), -np.inf, np.float32)
    logits[0, [17, 23]] = [1.0, 0.5]
    tokens, logprobs = sampled(logits, temperature, [uniform])
    assert tokens[0] in (17, 23)
    assert np.isfinite(logprobs[0])


@pytest.mark.parametrize("temperature", [1e-3, 1e-30])
def test_sample_at_a_temperature_as_good_as_zero_is_as_at_zero(temperature):
    tokens, logprobs = sampled(np.array([[1.0, 3.0, 2.0]], np.float32), temperature, [0.9])
    assert (tokens[0], logprobs[0]) == (1, 0)


@given(st.integers(1, 20), st.integers(1, 5))
def test_threads_get_every_row_once(rows, threads):
    before, done = torch.get_num_threads(), []
    torch.set_num_threads(threads)
    try:
        in_threads(lambda part: done.extend(range(rows)[part]), rows, 1 << 40)
    finally:
        torch.set_num_threads(before)
    assert sorted(done) == list(range(rows))


STALE = """
import numpy as np
from baleen.ops.loops_layer import add_feed_forward
x, one, square = np.ones((1, 4), np.float32), np.ones(4, np.float32), np.eye(4, dtype=np.float32)
add_feed_forward(x, one, np.float32(1e-6), square, square, square)
print(x[0, 0])
"""


@pytest.mark.slow
def test_a_loop_that_changes_is_seen_by_the_loops_of_other_files_that_call_it(tmp_path):
    """numba looks at the age of the file that a function stands in, not at those of the functions that it calls: code
    that was compiled before an update must not be run after it."""
    ops = tmp_path / "baleen" / "ops"
    ops.mkdir(parents=True)
    (tmp_path / "baleen" / "__init__.py").touch()
    (ops / "__init__.py").touch()
    for file in Path(loops.__file__).parent.glob("loops*.py"):
        shutil.copy2(file, ops / file.name)

    def run():
        # The numbers are compiled to the machine's simplest code, which is soonest done.
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "NUMBA_OPT": "0"}
        environment.pop("NUMBA_CACHE_DIR", None)
        asked = [sys.executable, "-c", STALE]
        return float(subprocess.run(asked, env=environment, cwd=tmp_path, check=True, capture_output=True).stdout)

    before = run()
    source = (ops / "loops.py").read_text()
    changed = source.replace("    product(inner, down, out)\n", "    product(inner, down, out)\n    out *= F(3)\n", 1)
    assert changed != source
    (ops / "loops.py").write_text(changed)
    assert run() - 1 == pytest.approx(3 * (before - 1))
