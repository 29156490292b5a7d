"""Every form of the selection takes the same keys: the higher score first, then the lower position."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baleen.ops.selection import index_scores, select_topk, select_topk_mask, select_topk_reference, selection_mask

SCORES = st.sampled_from([0.0, -0.0, 0.0, 1.0, 1.0, -1.0, 1e-30, -1e-30, 3.5, -2.25, 1e30])
"""Few values, so that exact ties are the rule, as they are after a ReLU."""


@st.composite
def rows(draw):
    queries, length = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    count = queries * length
    scores = draw(st.lists(SCORES, min_size=count, max_size=count))
    visible = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    shape = (1, queries, length)
    return torch.tensor(scores).view(shape), torch.tensor(visible).view(shape), draw(st.integers(1, 15))


@settings(max_examples=200)
@given(rows())
def test_the_fast_form_selects_what_a_stable_sort_selects_in_the_same_order(case):
    scores, visible, topk = case
    assert torch.equal(select_topk(scores, visible, topk), select_topk_reference(scores, visible, topk))


@settings(max_examples=200)
@given(rows())
def test_the_mask_form_shows_exactly_the_selected_keys(case):
    scores, visible, topk = case
    expected = selection_mask(select_topk_reference(scores, visible, topk), scores.shape[-1])
    assert torch.equal(select_topk_mask(scores, visible, topk), expected)


def test_all_forms_agree_on_real_scores_of_a_causal_row():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 40, 40, generator=generator).relu()
    visible = torch.ones(40, 40, dtype=torch.bool).tril().expand(2, -1, -1)
    selected = select_topk(scores, visible, 7)
    assert torch.equal(selected, select_topk_reference(scores, visible, 7))
    assert torch.equal(selection_mask(selected, 40), select_topk_mask(scores, visible, 7))


def test_a_tie_goes_to_the_lower_position_and_minus_zero_is_zero():
    scores = torch.tensor([[[-0.0, 2.0, 0.0, 2.0, -0.0]]])
    visible = torch.ones(1, 1, 5, dtype=torch.bool)
    assert select_topk(scores, visible, 4).tolist() == [[[1, 3, 0, 2]]]


def test_a_context_longer_than_the_row_selects_the_same_keys():
    # Prefill and decoding see rows of different length; what is selected must not depend on it.
    generator = torch.Generator().manual_seed(1)
    scores = torch.randint(0, 3, (1, 5, 30), generator=generator).float()
    visible = torch.zeros(1, 5, 30, dtype=torch.bool)
    visible[..., :20] = True
    assert torch.equal(
        select_topk(scores, visible, 6), select_topk(scores[..., :20].contiguous(), visible[..., :20], 6)
    )


def test_more_asked_than_there_is_gives_all_keys_and_never_more_than_the_row():
    scores = torch.tensor([[[1.0, 3.0, 2.0]]])
    visible = torch.tensor([[[True, True, False]]])
    assert select_topk(scores, visible, 9).tolist() == [[[1, 0, -1]]]


def test_a_query_that_sees_nothing_selects_nothing():
    scores, visible = torch.ones(1, 2, 4), torch.zeros(1, 2, 4, dtype=torch.bool)
    assert (select_topk(scores, visible, 3) == -1).all()
    assert not select_topk_mask(scores, visible, 3).any()
    assert not selection_mask(select_topk(scores, visible, 3), 4).any()


@pytest.mark.parametrize("heads", [1, 3])
def test_index_scores_are_the_formula_of_the_report(heads):
    generator = torch.Generator().manual_seed(heads)
    q = torch.randn(2, 5, heads, 6, generator=generator)
    k = torch.randn(2, 7, 6, generator=generator)
    weights = torch.randn(2, 5, heads, generator=generator)
    expected = torch.zeros(2, 5, 7, dtype=torch.float64)
    for head in range(heads):
        products = torch.einsum("btd,bsd->bts", q[:, :, head].double(), k.double())
        expected += weights[:, :, head, None].double() * products.clamp(min=0)
    scores = index_scores(q, k, weights)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), expected, atol=1e-5, rtol=1e-5)
