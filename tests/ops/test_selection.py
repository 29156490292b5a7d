"""Every form of the selection takes the same keys: the higher score first, then the lower position."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baleen.ops import selection
from baleen.ops.selection import index_scores, indexer_topk, select_topk, select_topk_reference, selection_mask
from baleen.ops.visibility import Visibility

SCORES = st.sampled_from([0.0, -0.0, 0.0, 1.0, 1.0, -1.0, 1e-30, -1e-30, 3.5, -2.25, 1e30])
"""Few values, so that exact ties are the rule, as they are after a ReLU."""


@st.composite
def rows(draw):
    queries, length = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    count = queries * length
    scores = draw(st.lists(SCORES, min_size=count, max_size=count))
    visible = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    shape = (1, queries, length)
    return torch.tensor(scores).view(shape), torch.tensor(visible).view(shape), draw(st.integers(1, 15))


@settings(max_examples=400)
@given(rows())
def test_the_fast_form_selects_what_a_stable_sort_selects(case):
    scores, visible, topk = case
    assert torch.equal(select_topk(scores, visible, topk), select_topk_reference(scores, visible, topk))


@pytest.mark.parametrize("length", [33, 64, 100, 257, 1023, 1024, 4099])
@pytest.mark.parametrize("topk", [1, 7, 30])
@pytest.mark.parametrize("distinct", [3, 50, 10**6])
def test_the_tournament_loses_nothing_at_any_length_with_few_or_many_ties(length, topk, distinct):
    generator = torch.Generator().manual_seed(length)
    scores = torch.randint(0, distinct, (2, 5, length), generator=generator).float()
    visible = torch.rand(2, 5, length, generator=generator) < 0.9
    assert torch.equal(select_topk(scores, visible, topk), select_topk_reference(scores, visible, topk))


def test_a_tie_goes_to_the_lower_position_and_minus_zero_is_zero():
    scores = torch.tensor([[[-0.0, 2.0, 0.0, 2.0, -0.0]]])
    visible = torch.ones(1, 1, 5, dtype=torch.bool)
    assert select_topk(scores, visible, 4).tolist() == [[[0, 1, 2, 3]]]
    assert select_topk(scores, visible, 1).tolist() == [[[1]]]


def test_more_asked_than_there_is_gives_all_keys_and_never_more_than_the_row():
    scores = torch.tensor([[[1.0, 3.0, 2.0]]])
    visible = torch.tensor([[[True, True, False]]])
    assert select_topk(scores, visible, 9).tolist() == [[[0, 1, -1]]]


def test_a_query_that_sees_nothing_selects_nothing():
    scores, visible = torch.ones(1, 2, 4), torch.zeros(1, 2, 4, dtype=torch.bool)
    assert (select_topk(scores, visible, 3) == -1).all()
    assert not selection_mask(select_topk(scores, visible, 3), 4).any()


def index_of(batch, length, heads, dims, seed=0):
    """Index projections in which several keys are equal, so that whole columns of scores tie."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, length, heads, dims, generator=generator)
    k = torch.randn(batch, length, dims, generator=generator)
    k[:, length // 2 : length // 2 + 5] = k[:, :5]
    return q, k, torch.randn(batch, length, heads, generator=generator)


def padded(selected, width):
    return torch.nn.functional.pad(selected, (0, width - selected.shape[-1]), value=-1)


@pytest.mark.parametrize("heads", [1, 3, 8])
@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize("score_bytes", [1, 20_000, selection.SCORE_BYTES])
def test_streaming_selects_what_the_whole_matrix_selects_under_any_budget(heads, tree, score_bytes):
    q, k, weights = index_of(2, 90, heads, 16)
    ends = None
    if tree:
        ends = torch.full((2, 90), 90)
        ends[:, 10:40], ends[1, 50:60] = 40, 60
    seen = Visibility(torch.arange(90).unsqueeze(0), 90, ends)
    selected = indexer_topk(q, k, weights, seen, 12, score_bytes=score_bytes)
    assert selected.dtype == torch.int32
    scores = indexer_scores_of_streaming(q, k, weights)
    assert torch.equal(selected, select_topk_reference(scores, seen.mask(), 12))


def indexer_scores_of_streaming(q, k, weights):
    scores = torch.empty(q.shape[0], q.shape[1], k.shape[1])
    selection._score_tile(q, k, weights, scores)
    return scores


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 199), min_size=0, max_size=8), st.integers(1, 60), st.sampled_from([2, 5, 8]))
def test_prefill_chunks_and_decoding_select_the_same_keys_exactly(cuts, topk, heads):
    length = 200
    q, k, weights = index_of(1, length, heads, 64, seed=topk)
    whole = padded(indexer_topk(q, k, weights, Visibility.causal(length), topk), topk)
    ends = [*sorted(set(cuts)), *range(length - 3, length + 1)]
    start = 0
    for end in sorted(set(ends)):
        seen = Visibility(torch.arange(start, end).unsqueeze(0), end)
        part = indexer_topk(q[:, start:end], k[:, :end], weights[:, start:end], seen, topk)
        assert torch.equal(padded(part, topk), whole[:, start:end])
        start = end


def test_a_row_selects_the_same_in_every_batch():
    q, k, weights = index_of(5, 150, 4, 32)
    together = indexer_topk(q, k, weights, Visibility.causal(150), 20)
    for row in range(5):
        part = slice(row, row + 1)
        assert torch.equal(together[part], indexer_topk(q[part], k[part], weights[part], Visibility.causal(150), 20))
    # Decoding: one query of each row, standing at places of their own.
    places = torch.tensor([[149], [80], [120], [31], [99]])
    decoded = indexer_topk(
        torch.stack([q[row, place] for row, place in enumerate(places)]),
        k,
        torch.stack([weights[row, place] for row, place in enumerate(places)]),
        Visibility(places, 150),
        20,
    )
    for row, place in enumerate(places.flatten().tolist()):
        assert torch.equal(decoded[row, 0], together[row, place])


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_index_scores_are_the_formula_of_the_report_in_both_forms(heads, dtype):
    generator = torch.Generator().manual_seed(heads)
    q = torch.randn(2, 5, heads, 6, generator=generator).to(dtype)
    k = torch.randn(2, 7, 6, generator=generator).to(dtype)
    weights = torch.randn(2, 5, heads, generator=generator)
    expected = torch.zeros(2, 5, 7, dtype=torch.float64)
    for head in range(heads):
        products = torch.einsum("btd,bsd->bts", q[:, :, head].double(), k.double())
        expected += weights[:, :, head, None].double() * products.clamp(min=0)
    scores = index_scores(q, k, weights)
    assert scores.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(scores.double(), expected, atol=1e-5, rtol=1e-5)
    tiled = torch.empty(2, 5, 7, dtype=scores.dtype)
    selection._score_tile(q, k, weights, tiled)
    torch.testing.assert_close(tiled.double(), expected, atol=1e-5, rtol=1e-5)


def test_the_gradient_of_the_scores_is_that_of_finite_differences():
    q, k, weights = (x.double().requires_grad_() for x in index_of(1, 12, 2, 3))
    assert torch.autograd.gradcheck(index_scores, (q, k, weights))
