"""All forms of attention compute the same thing, values and gradients, and that is the plain formula in float64."""

from __future__ import annotations

import pytest
import torch

from baleen.ops import attention, sparse_attention
from baleen.ops.attention import attend_mha, attend_mqa, attend_reference, head_probabilities
from baleen.ops.selection import selection_mask
from baleen.ops.sparse_attention import attend_selected, attend_selected_reference, selected_probabilities
from baleen.ops.visibility import Visibility

HEADS, NOPE, ROPE, VALUE, LATENT = 3, 6, 4, 5, 7
SCALE = 0.31


class Case:
    """Random queries and rows; `kind` says which keys exist, and every query has its own selection of them."""

    def __init__(self, kind: str, batch: int = 2, length: int = 11, topk: int = 4, dtype=torch.float64) -> None:
        generator = torch.Generator().manual_seed(length)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        queries = 3 if kind == "last queries" else length
        positions = torch.arange(length - queries, length).expand(batch, -1)
        ends = None
        if kind == "tree":
            ends = torch.full((1, length), length)
            ends[:, 2:5], ends[:, 6] = 5, 7
        if kind == "causal":
            positions = positions[:1]
        if kind == "own positions":
            positions = torch.stack([positions[0] - row for row in range(batch)])  # the first query of row 1 sees none
        self.seen = Visibility(positions, length, ends)
        self.q_nope, self.q_rope = normal(batch, queries, HEADS, NOPE), normal(batch, queries, HEADS, ROPE)
        self.rows = normal(batch, length, LATENT + ROPE)
        self.w_k, self.w_v = normal(HEADS, NOPE, LATENT), normal(HEADS, VALUE, LATENT)
        visible = self.seen.mask().expand(batch, -1, -1)
        order = torch.where(visible, torch.rand(batch, queries, length, generator=generator), -1.0)
        best = order.topk(min(topk, length), -1)
        self.selected = best.indices.masked_fill(best.values < 0, -1).int()
        self.mask = {"all": visible, "selected": selection_mask(self.selected, length)}
        self.inputs = {"q_nope": self.q_nope, "q_rope": self.q_rope, "rows": self.rows}

    def expanded(self, q_nope, q_rope, rows):
        latent, rope = rows[..., :LATENT], rows[..., LATENT:]
        k = torch.einsum("blc,hnc->blhn", latent, self.w_k)
        k = torch.cat((k, rope.unsqueeze(2).expand(-1, -1, HEADS, -1)), -1)
        return torch.cat((q_nope, q_rope), -1), k, torch.einsum("blc,hvc->blhv", latent, self.w_v)

    def absorbed(self, q_nope, q_rope):
        return torch.cat((torch.einsum("bthn,hnc->bthc", q_nope, self.w_k), q_rope), -1)

    def run(self, form: str, keys: str, q_nope, q_rope, rows) -> torch.Tensor:
        """Attention [B, T, H, V] of one form over "all" visible keys or the "selected" ones."""
        if form == "mha":
            return attend_mha(
                *self.expanded(q_nope, q_rope, rows), self.seen, SCALE, self.selected if keys == "selected" else None
            )
        if form == "reference":
            return attend_reference(*self.expanded(q_nope, q_rope, rows), self.mask[keys], SCALE)
        q = self.absorbed(q_nope, q_rope)
        if form == "mqa":
            out = attend_mqa(q, rows, LATENT, self.seen, SCALE)
        else:
            attend = attend_selected if form == "fetched" else attend_selected_reference
            start = torch.arange(len(rows)).view(-1, 1, 1) * rows.shape[1]
            places = torch.where(self.selected < 0, -1, self.selected + start).flatten(0, 1)
            out = attend(q.flatten(0, 1), rows.flatten(0, 1), places, LATENT, SCALE).unflatten(0, q.shape[:2])
        return torch.einsum("bthc,hvc->bthv", out, self.w_v)


KINDS = ["causal", "tree", "last queries", "own positions"]
FORMS = [("mha", "all"), ("mqa", "all"), ("mha", "selected"), ("fetched", "selected"), ("fetched plainly", "selected")]


def values_and_gradients(case, form, keys):
    inputs = {name: value.clone().requires_grad_() for name, value in case.inputs.items()}
    out = case.run(form, keys, **inputs)
    out.sin().sum().backward()
    return [out.detach(), *(value.grad for value in inputs.values())]


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles so small that even these shapes need several."""
    monkeypatch.setattr(attention, "MASKED_ROWS", 4)
    monkeypatch.setattr(attention, "LOGIT_BYTES", 4 * 2 * 11 * HEADS * 2)
    monkeypatch.setattr(sparse_attention, "TILE_BYTES", 8 * 4 * (LATENT + ROPE + 2 * HEADS) * 5)


@pytest.mark.parametrize("tiles", ["one tile", "many tiles"])
@pytest.mark.parametrize("shape", [(2, 11, 4), (1, 11, 1), (3, 7, 20)], ids=["odd", "one key", "k above the context"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("form", "keys"), FORMS)
def test_every_form_has_the_values_and_gradients_of_the_formula(form, keys, kind, shape, tiles, request):
    if tiles == "many tiles":
        request.getfixturevalue("small_tiles")
    batch, length, topk = shape
    case = Case(kind, batch, length, topk)
    for got, expected in zip(
        values_and_gradients(case, form, keys), values_and_gradients(case, "reference", keys), strict=True
    ):
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-10)


def test_the_fetched_form_s_backward_is_that_of_finite_differences():
    case = Case("causal", 1, 5, 3)
    inputs = tuple(value.requires_grad_() for value in case.inputs.values())
    assert torch.autograd.gradcheck(lambda *each: case.run("fetched", "selected", *each), inputs)


@pytest.mark.parametrize(("form", "keys"), FORMS)
def test_a_query_without_keys_gives_zeros_and_no_nan(form, keys):
    case = Case("own positions")
    out, *gradients = values_and_gradients(case, form, keys)
    assert out[1, 0].eq(0).all()
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize(("form", "keys"), FORMS)
def test_fp32_is_close_to_float64(form, keys):
    rough, exact = Case("tree", dtype=torch.float32), Case("tree")
    out = rough.run(form, keys, **rough.inputs)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), exact.run("reference", keys, **exact.inputs), atol=5e-6, rtol=5e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_indexer_s_target_is_the_mean_over_heads_in_both_forms(kind):
    case = Case(kind)
    q, k, _ = case.expanded(**case.inputs)
    logits = torch.einsum("bthd,blhd->bhtl", q, k) * SCALE
    mask = case.mask["selected"]
    expected = logits.masked_fill(~mask.unsqueeze(1), -1e30).softmax(-1).mean(1) * mask
    torch.testing.assert_close(head_probabilities(q, k, mask, SCALE), expected)
    for row in range(len(q)):
        absorbed = case.absorbed(case.q_nope, case.q_rope)[row]
        mean = selected_probabilities(absorbed, case.rows[row], case.selected[row], SCALE)
        chosen = case.selected[row].long()
        torch.testing.assert_close(mean, expected[row].gather(-1, chosen.clamp(min=0)).masked_fill(chosen < 0, 0.0))


def test_the_indexer_s_target_carries_no_gradient():
    case = Case("causal")
    q, k, _ = case.expanded(**case.inputs)
    q.requires_grad_()
    assert not head_probabilities(q, k, case.mask["all"], SCALE).requires_grad
    absorbed = case.absorbed(case.q_nope, case.q_rope)[0].requires_grad_()
    assert not selected_probabilities(absorbed, case.rows[0], case.selected[0], SCALE).requires_grad
