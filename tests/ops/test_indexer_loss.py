"""The indexer's loss is a KL divergence, and its gradient is the textbook one."""

from __future__ import annotations

import math

import pytest
import torch

from baleen.ops import indexer_loss, sparse_attention
from baleen.ops.attention import head_probabilities
from baleen.ops.indexer_loss import dense_indexer_kl, indexer_kl, selected_index_scores
from baleen.ops.selection import index_scores
from baleen.ops.visibility import Visibility


def case(seed=0):
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(2, 6, 8, generator=generator).softmax(-1)
    scores = torch.randn(2, 6, 8, generator=generator)
    mask = torch.rand(2, 6, 8, generator=generator) < 0.6
    mask[..., 0] = True
    return target, scores, mask


def test_it_is_torch_s_divergence_over_the_keys_that_the_mask_shows():
    target, scores, mask = case()
    kl = indexer_kl(target, scores, mask)
    for b in range(2):
        for t in range(6):
            seen = mask[b, t]
            p = target[b, t, seen].double()
            log_q = scores[b, t, seen].double().log_softmax(-1)
            expected = torch.nn.functional.kl_div(log_q, p / p.sum(), reduction="sum")
            assert float(kl[b, t]) == pytest.approx(float(expected), abs=1e-6)


def test_a_case_worked_by_hand():
    # p = (3/4, 1/4) after renormalising over the mask, q = (1/2, 1/2): KL = 3/4 ln(3/2) + 1/4 ln(1/2)
    target, scores = torch.tensor([[[0.6, 0.2, 0.2]]]), torch.tensor([[[1.0, 1.0, 5.0]]])
    mask = torch.tensor([[[True, True, False]]])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(indexer_kl(target, scores, mask)) == pytest.approx(expected, abs=1e-6)


def test_the_gradient_is_softmax_minus_target_on_the_mask_and_zero_off_it():
    target, scores, mask = case(1)
    scores.requires_grad_()
    indexer_kl(target, scores, mask).sum().backward()
    on_mask = target * mask
    expected = scores.detach().masked_fill(~mask, -torch.inf).softmax(-1) - on_mask / on_mask.sum(-1, keepdim=True)
    torch.testing.assert_close(scores.grad, expected * mask, atol=1e-6, rtol=1e-5)


def test_it_is_zero_exactly_where_the_indexer_has_learned_the_target():
    target, scores, mask = case(2)
    learned = (target * mask).clamp(min=1e-30).log() + 3.0
    assert indexer_kl(target, learned, mask).abs().max() < 1e-6
    assert (indexer_kl(target, scores, mask) > 0)[mask.sum(-1) > 1].all()


def test_a_query_that_sees_nothing_costs_nothing_and_gives_no_gradient():
    target, scores, mask = case(3)
    mask[0, 2] = False
    scores.requires_grad_()
    kl = indexer_kl(target, scores, mask)
    kl.sum().backward()
    assert kl[0, 2] == 0
    assert scores.grad[0, 2].eq(0).all()
    assert scores.grad.isfinite().all()


def indexer_and_attention(batch=2, length=9):
    generator = torch.Generator().manual_seed(length)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    index = (normal(batch, length, 3, 4), normal(batch, length, 4), normal(batch, length, 3))
    return normal(batch, length, 2, 5), normal(batch, length, 2, 5), index


@pytest.mark.parametrize("tile_bytes", [1, 4 * 2 * 2 * 9 * 4, 1 << 20])
@pytest.mark.parametrize("tree", [False, True])
def test_the_dense_loss_in_tiles_has_the_values_and_gradients_of_the_whole_matrix(tile_bytes, tree, monkeypatch):
    monkeypatch.setattr(indexer_loss, "TILE_BYTES", tile_bytes)
    q, k, index = indexer_and_attention()
    ends = torch.tensor([[9, 9, 5, 5, 5, 9, 9, 8, 9]]) if tree else None
    seen = Visibility(torch.arange(9).unsqueeze(0), 9, ends)
    weight = torch.arange(18, dtype=torch.float64).view(2, 9)
    results = []
    for form in ("tiles", "whole"):
        parts = [each.clone().requires_grad_() for each in index]
        if form == "tiles":
            kl = dense_indexer_kl(q, k, tuple(parts), seen, 0.4)
        else:
            mask = seen.mask().expand(2, -1, -1)
            kl = indexer_kl(head_probabilities(q, k, mask, 0.4), index_scores(*parts), mask)
        (kl * weight).sum().backward()
        results.append([kl.detach(), *(part.grad for part in parts)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("tile_bytes", [1, 1 << 20])
def test_scores_of_selected_keys_are_those_of_the_whole_matrix_with_its_gradients(tile_bytes, monkeypatch):
    monkeypatch.setattr(sparse_attention, "TILE_BYTES", tile_bytes)
    _, _, (q, k, weights) = indexer_and_attention(1)
    selected = torch.tensor([[0, -1, -1], [0, 1, -1], *[[t, t - 1, 0] for t in range(2, 9)]], dtype=torch.int32)
    results = []
    for form in ("selected", "whole"):
        parts = [each[0].clone().requires_grad_() for each in (q, k, weights)]
        if form == "selected":
            scores = selected_index_scores(*parts, selected)
        else:
            whole = index_scores(*(part.unsqueeze(0) for part in parts))[0]
            scores = whole.gather(1, selected.clamp(min=0).long())
        kept = scores.masked_fill(selected < 0, 0.0)
        kept.sin().sum().backward()
        results.append([kept.detach(), *(part.grad for part in parts)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def test_the_backward_of_selected_scores_is_that_of_finite_differences():
    _, _, (q, k, weights) = indexer_and_attention(1, 5)
    selected = torch.tensor([[0, 0], [0, 1], [2, 0], [3, 1], [4, 2]])
    inputs = tuple(each[0].requires_grad_() for each in (q, k, weights))
    assert torch.autograd.gradcheck(lambda *parts: selected_index_scores(*parts, selected), inputs)
