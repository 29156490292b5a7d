"""The compiled form of a layer against the form that `network.py` defines, over the networks that it is taken for."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from baleen.engine.engine import Engine
from baleen.engine.params import EngineOptions, SamplingParams
from baleen.model import compiled
from baleen.model.cache import FlatView, LatentCache
from baleen.ops import threads
from tiny import tiny_model

pytest.importorskip("numba")

YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 0.7,
    "mscale_all_dim": 1.0,
}
SHAPES = {
    "as tiny": {},
    "all layers dense": {"first_k_dense_replace": 3},
    "experts from the first layer on": {"first_k_dense_replace": 0},
    "experts and dense layers by turns": {"mlp_layer_types": ("sparse", "dense", "sparse")},
    "one group": {"n_group": 1, "topk_group": 1},
    "groups of one expert": {"n_group": 8, "topk_group": 3},
    "all groups": {"n_group": 4, "topk_group": 4, "num_experts_per_tok": 5},
    "weights that are not normalised": {"norm_topk_prob": False, "routed_scaling_factor": 1.0},
    "no shared experts": {"n_shared_experts": 0},
    "two shared experts": {"n_shared_experts": 2},
    "shared selections": {"indexer_types": ("full", "shared", "full")},
    "one selection for all": {"indexer_types": ("full", "shared", "shared")},
    "the indexer interleaved": {"indexer_rope_interleave": True},
    "attention half-split": {"rope_interleave": False},
    "both the other way round": {"rope_interleave": False, "indexer_rope_interleave": True},
    "one head": {"num_attention_heads": 1},
    "three heads": {"num_attention_heads": 3},
    "six heads": {"num_attention_heads": 6},
    "odd sizes": {"qk_nope_head_dim": 7, "v_head_dim": 5, "kv_lora_rank": 13, "q_lora_rank": 11, "hidden_size": 47},
    "heads of 12 and 20": {"qk_nope_head_dim": 12, "v_head_dim": 20, "index_head_dim": 12},
    "three pairs of rope": {"qk_rope_head_dim": 6, "index_head_dim": 6},
    "one pair of rope": {"qk_rope_head_dim": 2, "index_head_dim": 3},
    "experts of odd width": {"moe_intermediate_size": 11, "intermediate_size": 29},
    **{f"{heads} index heads": {"index_n_heads": heads} for heads in (1, 2, 3, 5, 6)},
    "one position selected": {"index_topk": 1},
    "more selected than there are": {"index_topk": 64},
    "YaRN": {"rope_scaling": YARN},
    "tied embeddings": {"tie_word_embeddings": True},
    "larger epsilon": {"rms_norm_eps": 1e-3},
    "no second prediction": {"num_nextn_predict_layers": 0},
}


def flat(model, lengths, page_tokens=4, loops=True):
    """A list of sequences that have pages in no order, and the cache it writes to."""
    most = max(lengths)
    per = -(-most // page_tokens)
    cache = LatentCache(model.config, 1 + per * len(lengths), page_tokens, torch.float32, drafts=True)
    pages = 1 + np.random.default_rng(7).permutation(per * len(lengths))
    rectangles = [
        (pages[None, row * per : (row + 1) * per].astype(np.int64), np.arange(length)[None])
        for row, length in enumerate(lengths)
    ]
    return FlatView(cache, rectangles, compiled=loops), cache


def both_forms(model, lengths, seed=0):
    """(Output, cache, ids, view) of the same list as loops and as torch's operations."""
    ids = torch.from_numpy(np.random.default_rng(seed).integers(2, 120, size=(1, sum(lengths))))
    made = []
    for loops in (True, False):
        with torch.no_grad():
            view, cache = flat(model, lengths, loops=loops)
            assert model.context((1, sum(lengths)), cache=view).compiled == loops
            made.append((model(ids, cache=view), cache, ids, view))
    return made


def assert_same(loops, plain):
    torch.testing.assert_close(loops.logits, plain.logits, atol=1e-5, rtol=1e-5)
    assert len(loops.experts) == len(plain.experts)
    for one, other in zip(loops.experts, plain.experts, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(loops.selected, plain.selected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_loops_compute_what_the_network_defines(changes):
    model = tiny_model(1, **changes)
    (loops, *_, kept), (plain, wanted, *_) = both_forms(model, [31, 1, 14, 26])
    assert_same(loops, plain)
    for layer, other in enumerate(wanted.layers[: model.config.num_hidden_layers]):
        rows, index_k = kept.cache.in_loops(layer)  # which has a dim of all keys of a page side by side
        np.testing.assert_allclose(rows, other.rows.flatten(0, 1), atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(index_k.transpose(0, 2, 1), other.index_k, atol=1e-5, rtol=1e-5)


@settings(max_examples=25)
@given(
    st.fixed_dictionaries(
        {
            "num_attention_heads": st.integers(1, 9),
            "qk_nope_head_dim": st.integers(1, 20),
            "qk_rope_head_dim": st.sampled_from([2, 4, 6, 8]),
            "v_head_dim": st.integers(1, 20),
            "kv_lora_rank": st.integers(1, 33),
            "q_lora_rank": st.integers(1, 33),
            "hidden_size": st.integers(8, 65),
            "index_n_heads": st.integers(3, 9),
            "index_head_dim": st.integers(8, 20),
            "index_topk": st.integers(1, 20),
            "num_experts_per_tok": st.integers(1, 4),
            "rope_interleave": st.booleans(),
            "indexer_rope_interleave": st.booleans(),
        }
    ),
    st.lists(st.integers(1, 30), min_size=1, max_size=4),
    st.integers(0, 99),
)
def test_loops_compute_what_a_network_of_any_size_defines(changes, lengths, seed):
    (loops, *_), (plain, *_) = both_forms(tiny_model(seed, **changes), lengths, seed)
    # A near tie may fall the other way by a rounding, and then all that follows is another computation.
    near = any(
        not torch.equal(one, other)
        for one, other in (
            *zip(loops.experts, plain.experts, strict=True),
            *zip(loops.selected, plain.selected, strict=True),
        )
    )
    if not near:
        torch.testing.assert_close(loops.logits, plain.logits, atol=2e-5, rtol=2e-5)
    else:
        differing = [
            (one != other).any(-1).float().mean().item()
            for one, other in (
                *zip(loops.experts[:1], plain.experts[:1], strict=True),
                *zip(loops.selected[:1], plain.selected[:1], strict=True),
            )
        ]
        assert max(differing) < 0.1


def test_a_list_that_continues_is_as_one_in_one_piece():
    model, lengths = tiny_model(2), [30, 17]
    ids = [torch.from_numpy(np.random.default_rng(row).integers(2, 120, size=n)) for row, n in enumerate(lengths)]
    with torch.no_grad():
        view, _ = flat(model, lengths)
        whole = model(torch.cat(ids)[None], cache=view)
        first, cache = flat(model, lengths)
        parts = [[], []]
        for start, end in ((0, 9), (9, 10), (10, 17)):
            table = [rectangle[0] for rectangle in first.rectangles]
            part = FlatView(cache, [(each, np.arange(start, end)[None]) for each in table], compiled=True)
            hidden = model(torch.cat([each[start:end] for each in ids])[None], cache=part).hidden[0]
            for row, piece in enumerate(hidden.split(end - start)):
                parts[row].append(piece)
    assert torch.equal(torch.cat(parts[0]), whole.hidden[0, :17])
    assert torch.equal(torch.cat(parts[1]), whole.hidden[0, 30:])


def test_the_draft_layer_is_the_networks_too():
    model = tiny_model(4, num_nextn_predict_layers=1, indexer_types=("full", "shared", "shared"))
    drafted = []
    for out, _, ids, view in both_forms(model, [29, 8]):
        with torch.no_grad():
            drafted.append(model.predict_second(out.hidden, ids.roll(-1, 1), model.context((1, 37), cache=view))[0])
    torch.testing.assert_close(*drafted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_weights_that_are_updated_in_place_are_seen():
    model = tiny_model(5)
    (before, *_), _ = both_forms(model, [20])
    for value in model.state_dict().values():
        value.mul_(1.1).add_(0.01)
    (loops, *_), (plain, *_) = both_forms(model, [20])
    assert_same(loops, plain)
    assert (before.logits - loops.logits).abs().max() > 0.01


def test_weights_that_are_replaced_are_seen():
    model, other = tiny_model(6), tiny_model(7)
    both_forms(model, [20])
    model.load_state_dict(other.state_dict(), assign=True)
    (loops, *_), (plain, *_) = both_forms(model, [20])
    assert_same(loops, plain)
    assert torch.equal(loops.logits, both_forms(other, [20])[0][0].logits)


@pytest.mark.parametrize(
    "name",
    [
        "input_layernorm.weight",
        "self_attn.q_b_proj.weight",
        "self_attn.kv_b_proj.weight",
        "self_attn.o_proj.weight",
        "self_attn.indexer.wk.weight",
        "mlp.gate.weight",
        "mlp.gate.e_score_correction_bias",
        "mlp.experts.down_proj",
        "mlp.shared_experts.up_proj.weight",
    ],
)
def test_one_parameter_that_is_replaced_is_seen(name):
    model = tiny_model(8)
    both_forms(model, [20])
    place, _, last = name.rpartition(".")
    module = model.layers[1].get_submodule(place)
    new = torch.randn(getattr(module, last).shape, generator=torch.Generator().manual_seed(1)) * 0.2
    setattr(module, last, nn.Parameter(new) if last in module._parameters else new)
    (loops, *_), (plain, *_) = both_forms(model, [20])
    assert_same(loops, plain)


def test_loops_are_not_taken_for_what_they_do_not_compute():
    assert compiled.takes_loops(tiny_model())
    assert not compiled.takes_loops(tiny_model().set_compute_dtype(torch.bfloat16))
    assert not compiled.takes_loops(tiny_model().to(torch.bfloat16))
    for changes in (
        {"q_lora_rank": None},
        {"attention_bias": True},
        {"scoring_func": "softmax"},
        {"hidden_size": compiled.WIDEST + 1},
        {"model_type": "deepseek_v3"},
    ):
        assert not compiled.takes_loops(tiny_model(**changes)), changes


def test_a_model_that_ran_in_loops_can_be_copied():
    model = tiny_model(9)
    (before, *_), _ = both_forms(model, [20])
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.1)
    (loops, *_), (plain, *_) = both_forms(twin, [20])
    assert_same(loops, plain)
    assert torch.equal(before.logits, both_forms(model, [20])[0][0].logits)


def test_a_forward_with_gradients_is_never_compiled():
    model = tiny_model()
    view, _ = flat(model, [5])
    assert not model.context((1, 5), cache=view).compiled
    with torch.no_grad():
        assert model.context((1, 5), cache=view).compiled
        assert not model.context((1, 5), cache=view, sparse=False).compiled


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_many_steps_in_one_loop_give_the_bits_of_single_forwards(changes, monkeypatch):
    model = tiny_model(1, **changes)
    draws = np.random.default_rng(3)
    prompts = [draws.integers(2, 120, size=length).tolist() for length in (3, 31, 18, 1, 26)]
    of_each = [(30, 1.0, ()), (25, 0.0, ()), (30, 0.7, tuple(range(2, 40))), (30, 1.3, (5,)), (1, 1.0, ())]
    asked = [
        SamplingParams(max_tokens=most, temperature=heat, seed=seed, stop_ids=stops, ignore_end=True, trace=True)
        for seed, (most, heat, stops) in enumerate(of_each)
    ]
    # Where alternatives are asked for, every token has a forward of its own.
    each_alone = [replace(one, top_logprobs=1) for one in asked]
    singly = Engine(model, None, EngineOptions(max_tokens=64, page_tokens=4)).generate(prompts, each_alone)
    monkeypatch.setattr(threads, "WORTH_THREADS", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    engine = Engine(model, None, EngineOptions(max_tokens=64, page_tokens=8, decode_seconds=1.0))
    ahead = engine.generate(prompts, asked)
    assert {one.finish_reason for one in ahead} == {"stop", "length"}
    for one, other in zip(ahead, singly, strict=True):
        assert (one.tokens, one.finish_reason) == (other.tokens, other.finish_reason)
        for name in ("logprobs", "kept_ids", "kept_offsets", "experts", "selected"):
            np.testing.assert_array_equal(getattr(one.trace, name), getattr(other.trace, name))
