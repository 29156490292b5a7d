"""The indexer's loss is a KL divergence, and its gradient is the textbook one."""

from __future__ import annotations

import math

import pytest
import torch

from baleen.ops.indexer_loss import indexer_kl


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
