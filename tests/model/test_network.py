"""One network, whatever the shape of the call: whole, in chunks, token by token, dense, sparse, in bf16."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baleen.model.cache import CacheView, FlatView, LatentCache
from baleen.model.prefill import prefill
from tiny import tiny_model

IDS = torch.randint(0, 120, (2, 44), generator=torch.Generator().manual_seed(0))


def through_the_cache(model, cuts, slots=(0, 1), sparse=None):
    """Logits [B, S, V] of IDS fed in pieces that end at `cuts`."""
    cache = LatentCache(model.config, 3, 64, torch.float32)
    parts, start = [], 0
    for end in cuts:
        view = CacheView.plain(cache, slots, start, end)
        parts.append(model(IDS[:, start:end], cache=view, sparse=sparse).logits)
        start = end
    return torch.cat(parts, 1)


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("slots", [(0, 1), (2, 0)])
@pytest.mark.parametrize(
    "cuts",
    [[44], [5, 6, 20, 44], [*range(1, 45)], [30, *range(31, 45)]],
    ids=["prefill", "chunked prefill", "decode", "prefill then decode"],
)
@torch.no_grad()
def test_the_cache_gives_the_whole_forward_s_logits(cuts, slots, sparse):
    model = tiny_model()
    whole = model(IDS, sparse=sparse).logits
    torch.testing.assert_close(through_the_cache(model, cuts, slots, sparse), whole, atol=1e-5, rtol=0)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    cuts=st.lists(st.integers(1, 43), max_size=6),
    order=st.permutations(range(4)),
    rows=st.integers(1, 4),
    shared=st.booleans(),
)
@torch.no_grad()
def test_prefill_chunks_decoding_and_any_batch_select_the_same_tokens_and_say_the_same(cuts, order, rows, shared):
    kinds = ("full", "shared", "full") if shared else None
    model = tiny_model(indexer_types=kinds)
    ids = torch.randint(0, 120, (4, 44), generator=torch.Generator().manual_seed(1))
    whole = [model(ids[row : row + 1]) for row in range(4)]
    chosen = list(order[:rows])
    cache = LatentCache(model.config, 4, 44, torch.float32)
    start = 0
    for end in sorted({*cuts, 42, 43, 44}):
        view = CacheView.plain(cache, chosen, start, end)
        part = model(ids[chosen, start:end], cache=view)
        for place, row in enumerate(chosen):
            expected = whole[row].logits[0, start:end]
            torch.testing.assert_close(part.logits[place], expected, atol=1e-5, rtol=0)
            for layer, selected in enumerate(part.selected):
                every = whole[row].selected[layer][0, start:end]
                if selected is None:  # no more keys than index_topk: all of them, as the whole forward says too
                    assert torch.equal(every.amax(-1), torch.arange(start, end, dtype=torch.int32))
                else:
                    assert torch.equal(selected[place], every)
        start = end


@torch.no_grad()
def test_a_prompt_prefilled_in_chunks_of_any_size_leaves_the_same_cache_and_the_same_last_state():
    model = tiny_model()
    whole, full = prefill(model, IDS, chunk=44)
    for chunk in (1, 7, 43, 100):
        out, cache = prefill(model, IDS, chunk=chunk)
        torch.testing.assert_close(out.hidden[:, -1], whole.hidden[:, -1], atol=1e-5, rtol=0)
        for layer, expected in zip(cache.layers, full.layers, strict=True):
            torch.testing.assert_close(layer.rows, expected.rows, atol=1e-5, rtol=0)
            torch.testing.assert_close(layer.index_k, expected.index_k, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="does not fit a cache of 1 x 44"):
        prefill(model, IDS, LatentCache(model.config, 1, 44, torch.float32))
    with pytest.raises(ValueError, match="empty"):
        prefill(model, IDS[:, :0])


@pytest.mark.parametrize("cuts", [[43], [5, 20, 43], [*range(1, 44)]], ids=["prefill", "chunks", "decoding"])
@torch.no_grad()
def test_the_second_prediction_through_the_cache_drafts_what_it_drafts_over_the_whole_row(cuts):
    model = tiny_model()
    whole, _ = model.predict_second(model(IDS[:, :-1]).hidden, IDS[:, 1:], model.context((2, 43)))
    cache = LatentCache(model.config, 2, 44, torch.float32, drafts=True)
    start, parts = 0, []
    for end in cuts:
        view = CacheView.plain(cache, range(2), start, end)
        out = model(IDS[:, start:end], cache=view)
        context = model.context((2, end - start), cache=view)
        parts.append(model.predict_second(out.hidden, IDS[:, start + 1 : end + 1], context)[0])
        start = end
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=0)
    assert torch.equal(model.lm_head(torch.cat(parts, 1)).argmax(-1), model.lm_head(whole).argmax(-1))


@torch.no_grad()
def test_a_whole_forward_selects_what_decoding_selects():
    model = tiny_model()
    recorded = model(IDS)
    cache = LatentCache(model.config, 2, 64, torch.float32)
    model(IDS[:, :-1], cache=CacheView.plain(cache, range(2), 0, 43))
    last = model(IDS[:, -1:], cache=CacheView.plain(cache, range(2), 43, 44))
    for whole, decoded in zip(recorded.selected, last.selected, strict=True):
        assert torch.equal(whole[:, -1], decoded[:, 0])


@torch.no_grad()
def test_pages_shared_between_sequences_serve_both():
    model = tiny_model()
    cache = LatentCache(model.config, 9, 10, torch.float32)
    tables = torch.tensor([[3, 1, 8, 0, 2], [3, 1, 8, 5, 7]])
    model(IDS[:1], cache=CacheView(cache, tables[:1], torch.arange(44)[None], 44))
    tail = torch.cat((IDS[:1, :30], IDS[1:, 30:]), 1)
    out = model(tail[:, 30:], cache=CacheView(cache, tables[1:], torch.arange(30, 44)[None], 44))
    torch.testing.assert_close(out.logits, model(tail).logits[:, 30:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("sparse", [True, False])
@torch.no_grad()
def test_a_flat_list_of_new_tokens_of_several_sequences_says_what_each_says_alone(sparse):
    model = tiny_model()
    cache = LatentCache(model.config, 12, 8, torch.float32)
    tables = torch.tensor([[4, 2, 9, 0, 6, 11], [1, 3, 5, 7, 8, 10]])
    whole = model(IDS, sparse=sparse)
    start = [0, 0]
    for lengths in ([30, 7], [1, 1], [13, 36 - 14]):
        parts, new = [], []
        for row, count in enumerate(lengths):
            positions = torch.arange(start[row], start[row] + count)[None]
            parts.append((tables[row : row + 1].numpy(), positions.numpy()))
            new.append(IDS[row, start[row] : start[row] + count])
        out = model(torch.cat(new)[None], cache=FlatView(cache, parts), sparse=sparse)
        begin = 0
        for row, count in enumerate(lengths):
            expected = whole.logits[row, start[row] : start[row] + count]
            torch.testing.assert_close(out.logits[0, begin : begin + count], expected, atol=1e-5, rtol=0)
            start[row] += count
            begin += count


@torch.no_grad()
def test_no_token_sees_the_future():
    model = tiny_model()
    changed = IDS.clone()
    changed[:, 30:] = (changed[:, 30:] + 1) % 120
    before, after = model(IDS).logits, model(changed).logits
    # Other tokens after position 30 make other groups of experts, whose products round differently in the last bits.
    torch.testing.assert_close(after[:, :30], before[:, :30], atol=1e-5, rtol=0)
    assert (after[:, 30:] - before[:, 30:]).abs().amax(dim=(0, 2)).min() > 1e-2  # what is seen does change


def gradients(model, loss):
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}


@pytest.mark.parametrize("form", ["dense", "selected"])
def test_the_indexer_learns_from_its_kl_alone_and_nothing_else_does(form):
    model = tiny_model()
    out = model(IDS, sparse=form == "selected", indexer_loss=form)
    assert len(out.indexer_kl) == 3
    assert all(kl.shape == IDS.shape for kl in out.indexer_kl)
    touched = gradients(model, torch.stack(out.indexer_kl).mean())
    indexer = {name for name, _ in model.named_parameters() if ".indexer." in name and not name.startswith("mtp.")}
    assert touched == indexer


@pytest.mark.parametrize("indexer_loss", [None, "selected"])
def test_the_language_loss_gives_the_indexer_nothing(indexer_loss):
    model = tiny_model()
    touched = gradients(model, model(IDS, indexer_loss=indexer_loss).logits.logsumexp(-1).mean())
    assert not any(".indexer." in name for name in touched)
    assert "embed_tokens.weight" in touched
    assert "layers.2.mlp.gate.weight" in touched


@torch.no_grad()
def test_the_strided_kl_is_every_nth_query_of_the_whole():
    model = tiny_model()
    whole = model(IDS, indexer_loss="selected").indexer_kl
    for offset in range(3):
        part = model(IDS, indexer_loss="selected", indexer_stride=3, indexer_offset=offset).indexer_kl
        for some, every in zip(part, whole, strict=True):
            torch.testing.assert_close(some, every[:, offset::3], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_bf16_products_stay_close_and_leave_the_parameters_alone():
    model = tiny_model()
    exact = model(IDS, sparse=False).logits
    rough = model.set_compute_dtype(torch.bfloat16)(IDS, sparse=False).logits
    assert rough.dtype == torch.float32
    assert model.compute_dtype == torch.bfloat16
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    # A few tokens change experts when scores are rounded; the typical logit must not move.
    assert 0 < (rough - exact).abs().median() < 0.02 * exact.std()
    assert torch.equal(model.set_compute_dtype(None)(IDS, sparse=False).logits, exact)


def test_a_cast_follows_its_parameter():
    model = tiny_model().set_compute_dtype(torch.bfloat16)
    with torch.no_grad():
        before = model(IDS).logits
        model.lm_head.weight.mul_(2.0)
        torch.testing.assert_close(model(IDS).logits, 2 * before)


def test_the_same_seed_gives_the_same_weights():
    first, second, other = tiny_model(3), tiny_model(3), tiny_model(4)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)
