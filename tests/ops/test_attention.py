"""All forms of attention compute the same thing, and that is the plain formula in float64."""

from __future__ import annotations

import pytest
import torch

from baleen.ops.attention import attend_mha, attend_mqa_masked, attend_mqa_selected, head_probabilities
from baleen.ops.selection import selection_mask

BATCH, QUERIES, HEADS, NOPE, ROPE, VALUE, LATENT = 2, 9, 3, 6, 4, 5, 7
SCALE = 0.31


class Case:
    """Random queries and latents, their expanded keys and values, and a mask in which each query has its own set."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        self.q_nope, self.q_rope = normal(BATCH, QUERIES, HEADS, NOPE), normal(BATCH, QUERIES, HEADS, ROPE)
        self.latent, self.k_rope = normal(BATCH, QUERIES, LATENT), normal(BATCH, QUERIES, ROPE)
        self.w_k, self.w_v = normal(HEADS, NOPE, LATENT), normal(HEADS, VALUE, LATENT)
        self.q = torch.cat((self.q_nope, self.q_rope), -1)
        ropes = self.k_rope.unsqueeze(2).expand(-1, -1, HEADS, -1)
        self.k = torch.cat((torch.einsum("blc,hnc->blhn", self.latent, self.w_k), ropes), -1)
        self.v = torch.einsum("blc,hvc->blhv", self.latent, self.w_v)
        self.q_latent = torch.einsum("bthn,hnc->bthc", self.q_nope, self.w_k)
        self.causal = torch.ones(QUERIES, QUERIES, dtype=torch.bool).tril().expand(BATCH, -1, -1)
        # Each query selects three positions (the first ones fewer: they see no more).
        order = torch.where(self.causal, torch.rand(BATCH, QUERIES, QUERIES, generator=generator), -1.0)
        best = order.topk(3, -1)
        self.selected = best.indices.masked_fill(best.values < 0, -1)
        self.mask = selection_mask(self.selected, QUERIES)

    def reference(self, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Output [B, T, H, V] and probabilities [B, H, T, L], a query at a time, in float64."""
        out = torch.zeros(BATCH, QUERIES, HEADS, VALUE, dtype=torch.float64)
        probabilities = torch.zeros(BATCH, HEADS, QUERIES, QUERIES, dtype=torch.float64)
        for b in range(BATCH):
            for t in range(QUERIES):
                seen = mask[b, t].nonzero().flatten()
                for h in range(HEADS):
                    logits = self.k[b, seen, h].double() @ self.q[b, t, h].double() * SCALE
                    weights = logits.exp() / logits.exp().sum()
                    probabilities[b, h, t, seen] = weights
                    out[b, t, h] = weights @ self.v[b, seen, h].double()
        return out, probabilities

    def expand(self, latent: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bthc,hvc->bthv", latent, self.w_v)


@pytest.fixture(scope="module")
def case():
    return Case()


def close(value, expected):
    torch.testing.assert_close(value.double(), expected, atol=2e-6, rtol=2e-6)


def test_the_expanded_form_is_the_formula_with_values_narrower_than_keys(case):
    close(attend_mha(case.q, case.k, case.v, case.mask, SCALE), case.reference(case.mask)[0])


def test_no_mask_means_causal(case):
    close(attend_mha(case.q, case.k, case.v, None, SCALE), case.reference(case.causal)[0])


def test_the_absorbed_form_under_a_mask_is_the_formula(case):
    out = attend_mqa_masked(case.q_latent, case.q_rope, case.latent, case.k_rope, case.mask, SCALE)
    close(case.expand(out), case.reference(case.mask)[0])


def test_the_absorbed_form_over_a_selection_is_the_formula(case):
    out = attend_mqa_selected(case.q_latent, case.q_rope, case.latent, case.k_rope, case.selected, SCALE)
    close(case.expand(out), case.reference(case.mask)[0])


def test_all_forms_have_the_same_gradients():
    gradients = []
    for form in ("mha", "masked", "selected"):
        case = Case(1)
        latent = case.latent.double().requires_grad_()
        k_rope = case.k_rope.double()
        q_nope, q_rope, w_k, w_v = case.q_nope.double(), case.q_rope.double(), case.w_k.double(), case.w_v.double()
        q_latent = torch.einsum("bthn,hnc->bthc", q_nope, w_k)
        if form == "mha":
            ropes = k_rope.unsqueeze(2).expand(-1, -1, HEADS, -1)
            k = torch.cat((torch.einsum("blc,hnc->blhn", latent, w_k), ropes), -1)
            v = torch.einsum("blc,hvc->blhv", latent, w_v)
            out = attend_mha(torch.cat((q_nope, q_rope), -1), k, v, case.mask, SCALE)
        elif form == "masked":
            mixed = attend_mqa_masked(q_latent, q_rope, latent, k_rope, case.mask, SCALE)
            out = torch.einsum("bthc,hvc->bthv", mixed, w_v)
        else:
            mixed = attend_mqa_selected(q_latent, q_rope, latent, k_rope, case.selected, SCALE)
            out = torch.einsum("bthc,hvc->bthv", mixed, w_v)
        out.sin().sum().backward()
        gradients.append(latent.grad)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients[2], gradients[0], atol=1e-5, rtol=1e-5)


def test_the_indexer_s_target_is_the_mean_over_heads_and_sums_to_one(case):
    probabilities = head_probabilities(case.q, case.k, case.mask, SCALE)
    close(probabilities, case.reference(case.mask)[1].mean(1))
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(BATCH, QUERIES))
    assert probabilities.masked_fill(case.mask, 0.0).eq(0).all()


def test_the_indexer_s_target_carries_no_gradient(case):
    assert not head_probabilities(case.q.clone().requires_grad_(), case.k, case.mask, SCALE).requires_grad
