"""Who runs when: beginnings are computed once, memory is never exceeded, nobody waits for ever."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baleen.engine.engine import Engine
from baleen.engine.params import EngineError, EngineOptions, SamplingParams
from baleen.engine.recorder import Recorder
from baleen.engine.runner import Span
from baleen.engine.scheduler import CHUNK_SECONDS, FIRST_CHUNK, MOST_AHEAD, Pace
from baleen.model.cache import LatentCache
from tiny import tiny_model

FULL = SamplingParams(max_tokens=30, ignore_end=True)


@pytest.fixture(scope="module")
def model():
    return tiny_model(0)


def page_bytes(model, page_tokens, context):
    return page_tokens * (
        LatentCache.token_bytes(model.config, torch.float32) + Recorder.token_bytes(model.config, context)
    )


def engine_of(model, pages=None, page_tokens=4, **options):
    """An engine with room for so many pages, its scratch page included."""
    options = {"page_tokens": page_tokens, "max_tokens": 64} | options
    if pages is not None:
        options["memory_bytes"] = pages * page_bytes(model, page_tokens, options["max_tokens"])
    return Engine(model, None, EngineOptions(**options))


@cache
def network(dense_layers):
    return tiny_model(0, num_nextn_predict_layers=1, first_k_dense_replace=dense_layers)


def prompt(length, seed=0):
    return np.random.default_rng(seed).integers(2, 120, size=length).tolist()


def drain(engine, steps=2000):
    for _ in range(steps):
        if not engine.busy:
            return
        engine.step()
    raise AssertionError(f"still busy after {steps} steps")


def test_siblings_wait_for_the_beginning_that_one_of_them_computes(model):
    engine = engine_of(model, max_running=8, chunk_tokens=8)
    family = [engine.submit(prompt(33), FULL) for _ in range(4)]
    stranger = engine.submit(prompt(5, seed=1), FULL)
    engine.step()
    assert list(engine.waiting) == [*family[1:], stranger], "the whole chunk went to the first"
    while family[0].computed < 32:
        engine.step()
        assert all(each in engine.waiting for each in family[1:])
    engine.step()
    assert stranger in engine.running
    assert all(each in engine.running for each in family[1:])
    drain(engine)
    assert [each.generation.reused_tokens for each in family] == [0, 32, 32, 32]


def test_siblings_go_on_when_the_one_that_computes_their_beginning_is_cancelled(model):
    engine = engine_of(model, max_running=8, chunk_tokens=8)
    first, second = (engine.submit(prompt(33), FULL) for _ in range(2))
    engine.step()
    engine.step()
    engine.cancel(first)
    engine.step()
    assert second in engine.running
    drain(engine)
    assert second.generation.reused_tokens == 16, "what the first had computed is found"
    assert len(second.generation.tokens) == 30


def test_a_second_turn_finds_the_first_ones_answer(model):
    engine = engine_of(model)
    (one,) = engine.generate([prompt(10)], FULL)
    (two,) = engine.generate([[*one.prompt, *one.tokens, 5]], FULL)
    assert two.reused_tokens == (len(one.prompt) + len(one.tokens) - 1) // 4 * 4


def test_a_forgotten_beginning_is_computed_anew(model):
    engine = engine_of(model)
    engine.generate([prompt(20)], FULL)
    engine.forget_prefixes()
    assert engine.stats()["pages_cached"] == 0
    assert engine.generate([prompt(20)], FULL)[0].reused_tokens == 0


def test_the_last_to_come_gives_way_and_ends_with_the_same_tokens(model):
    prompts = [prompt(20, seed) for seed in range(3)]
    engine = engine_of(model, 20, max_running=3)
    sequences = [engine.submit(each, FULL) for each in prompts]
    order = []
    for _ in range(2000):
        order += engine.step()
        if not engine.busy:
            break
    assert engine.scheduler.preemptions > 0
    assert order[0] is sequences[0], "the first to come is never preempted"
    alone = [engine_of(model, max_running=1).generate([each], FULL)[0] for each in prompts]
    assert [each.generation.tokens for each in sequences] == [each.tokens for each in alone]


@pytest.mark.parametrize("chunk_tokens", [1, 16, 2048])
def test_a_large_request_is_served_although_small_ones_keep_coming(model, chunk_tokens):
    engine = engine_of(model, 17, max_running=8, chunk_tokens=chunk_tokens)
    for seed in range(8):
        engine.submit(prompt(6, 100 + seed), SamplingParams(max_tokens=8 + seed, ignore_end=True))
    engine.step()
    large = engine.submit(prompt(50, 1), SamplingParams(max_tokens=8, ignore_end=True))
    for step in range(400):
        while len(engine.waiting) < 4:
            engine.submit(prompt(6, 1000 + step), SamplingParams(max_tokens=8 + step % 7, ignore_end=True, seed=step))
        engine.step()
        if large.finish_reason is not None:
            break
    assert large.finish_reason == "length", "it waited for 400 steps, while requests that came later were served"


def test_a_preempted_request_is_served_although_small_ones_keep_coming(model):
    engine = engine_of(model, 17, max_running=8)
    elder = engine.submit(prompt(24, 1), FULL)
    second = engine.submit(prompt(24, 2), FULL)
    for step in range(400):
        while len(engine.waiting) < 4:
            engine.submit(prompt(6, 1000 + step), SamplingParams(max_tokens=8 + step % 7, ignore_end=True, seed=step))
        engine.step()
        if elder.finish_reason and second.finish_reason:
            assert engine.scheduler.preemptions > 0
            return
    raise AssertionError("it waited for 400 steps, while requests that came later were served")


def test_decoding_goes_on_in_every_step_while_a_long_prompt_is_computed(model):
    engine = engine_of(model, max_running=2, chunk_tokens=4)
    first = engine.submit(prompt(4), FULL)
    engine.step()
    engine.submit(prompt(40, 1), FULL)
    for sampled in range(2, 10):
        engine.step()
        assert first.sampled == sampled


def test_no_more_run_at_once_than_may(model):
    engine = engine_of(model, max_running=2)
    for seed in range(5):
        engine.submit(prompt(5, seed), FULL)
    while engine.busy:
        engine.step()
        assert len(engine.running) <= 2


def test_a_forward_has_no_more_prompt_tokens_than_a_chunk(model):
    engine = engine_of(model, max_running=8, chunk_tokens=6)
    for seed in range(5):
        engine.submit(prompt(9, seed), SamplingParams(max_tokens=3, ignore_end=True))
    while engine.busy:
        before, decoding = engine.computed_tokens, sum(each.waiting_tokens == 1 for each in engine.running)
        engine.step()
        assert engine.computed_tokens - before <= 6 + decoding


def tensors_of(engine):
    parts = [part for layer in engine.runner.cache.layers for part in (layer.rows, layer.index_k)]
    records = [engine.recorder.experts, engine.recorder.selected] if engine.recorder else []
    return [part for part in parts + records if part is not None]


@settings(max_examples=30)
@given(st.integers(2, 40), st.integers(1, 16), st.integers(0, 300), st.booleans(), st.booleans(), st.booleans())
def test_all_that_is_stored_fits_the_budget(pages, page_tokens, surplus, drafts, traces, dense):
    model = network(3 if dense else 1)
    budget = pages * page_bytes(model, page_tokens, 64) + surplus
    options = EngineOptions(page_tokens=page_tokens, max_tokens=64, memory_bytes=budget, drafts=drafts, traces=traces)
    try:
        engine = Engine(model, None, options)
    except EngineError:
        assert pages < 4, "there is room for some pages"
        return
    assert engine.token_bytes * page_tokens * engine.pool.total <= budget
    assert sum(part.numel() * part.element_size() for part in tensors_of(engine)) <= budget


def test_memory_that_holds_no_page_is_an_error_that_says_how_much_is_missing(model):
    with pytest.raises(EngineError, match="100 bytes hold less than two pages"):
        Engine(model, None, EngineOptions(memory_bytes=100))


@pytest.mark.parametrize("name", ["max_running", "page_tokens", "chunk_tokens", "admit_every", "max_tokens"])
@pytest.mark.parametrize("value", [0, -1])
def test_options_with_which_nothing_could_ever_run_are_refused(model, name, value):
    with pytest.raises(ValueError, match=name):
        Engine(model, None, EngineOptions(**{"max_tokens": 64, name: value}))


@pytest.mark.parametrize("page_tokens", [1, 4])
def test_a_sequence_that_fills_the_whole_memory_ends_with_length(model, page_tokens):
    total = 16 // page_tokens
    engine = engine_of(model, total + 1, page_tokens)
    longest = engine.capacity
    for length in (1, longest - 2, longest - 1):
        (generation,) = engine.generate([prompt(length)], SamplingParams(max_tokens=99, ignore_end=True))
        assert generation.finish_reason == "length"
        assert len(generation.prompt) + len(generation.tokens) == longest
    with pytest.raises(EngineError, match="does not fit"):
        engine.submit(prompt(longest), FULL)


def test_a_refused_prompt_leaves_nothing_behind(model):
    engine = engine_of(model)
    with pytest.raises(EngineError):
        engine.generate([prompt(5), []], FULL)
    assert not engine.busy


class Decoding:
    """A sequence as far as a pace looks at it."""


def spans(decoding=0, prompts=()):
    one = [Span(Decoding(), 0, np.zeros(1, np.int32)) for _ in range(decoding)]
    return one + [Span(Decoding(), 0, np.zeros(tokens, np.int32), prompt=True) for tokens in prompts if tokens]


def read_beside(pace, token_seconds, quiet=0.010):
    """A long prompt beside decoding, where each of its tokens takes so long: how many times as long as alone decoding
    took, and the prompt tokens of the last piece."""
    for _ in range(10):
        pace.observe(quiet, spans(2))
    pace.observe(quiet + FIRST_CHUNK * token_seconds, spans(2, [FIRST_CHUNK]))
    while pace.budget(decoding=2) == 0:  # what the first piece cost was not known
        pace.observe(quiet, spans(2))
    seconds, count, chunks = 0.0, 0, []
    while len(chunks) < 30:
        tokens = pace.budget(decoding=2)
        pace.observe(quiet + tokens * token_seconds, spans(2, [tokens]))
        seconds, count = seconds + quiet + tokens * token_seconds, count + 1
        chunks += [tokens] * (tokens > 0)
    while pace.budget(decoding=2) == 0:
        pace.observe(quiet, spans(2))
        seconds, count = seconds + quiet, count + 1
    return seconds / (count * quiet), chunks[-1]


@given(st.floats(1.2, 4), st.floats(1e-6, 2e-3), st.floats(1e-4, 0.1))
def test_beside_prompts_decoding_takes_the_share_that_was_given_and_no_more(share, token_seconds, quiet):
    took, chunk = read_beside(Pace(share, 2048, 0.004), token_seconds, quiet)
    assert took <= share * 1.05
    assert took >= share * 0.75 or chunk == 2048, "there is room for more of the prompt"


@given(st.floats(1.2, 4), st.floats(1e-6, 1e-3), st.floats(1e-4, 2e-3))
def test_pieces_of_a_prompt_are_worth_a_forward(share, token_seconds, quiet):
    _, chunk = read_beside(Pace(share, 2048, 0.004), token_seconds, quiet)
    wanted = min(2048, CHUNK_SECONDS / token_seconds)
    assert 0.7 * wanted - 1 <= chunk <= 1.4 * wanted + 1


def test_a_slow_prompt_is_read_token_by_token_and_paid_for():
    pace = Pace(1.5, 2048, 0.004)
    took, chunk = read_beside(pace, token_seconds=1.0)
    assert chunk == 1
    assert took <= 1.5 * 1.05


def test_a_machine_that_stood_still_is_no_debt_for_ever():
    pace = Pace(2.0, 2048, 0.004)
    read_beside(pace, token_seconds=1e-4)
    pace.observe(30.0, spans(2, [80]))
    steps = 0
    while pace.budget(decoding=2) == 0:
        pace.observe(0.010, spans(2))
        steps += 1
    assert steps <= 12


def stood_still(pace):
    pace.observe(10.0, spans(2))


def had_company(pace):
    for _ in range(3000):
        pace.observe(0.010, spans(64))
        pace.observe(0.010, spans(64, [20]))
    pace.observe(0.0005, spans(1))


@pytest.mark.parametrize("before", [stood_still, had_company])
def test_whatever_was_before_a_long_prompt_leaves_decoding_its_share(before):
    pace = Pace(1.5, 2048, 0.004)
    for _ in range(10):
        pace.observe(0.0005, spans(1))
    before(pace)
    left, seconds, count = 50_000, 0.0, 0
    while left > 0:
        tokens = min(left, pace.budget(decoding=1))
        took = 0.0005 + tokens * 3e-5
        pace.observe(took, spans(1, [tokens]))
        left, seconds, count = left - tokens, seconds + took, count + 1
    assert seconds / (count * 0.0005) <= 2


def test_pace_without_a_share_or_without_anyone_decoding_is_the_whole_chunk():
    assert Pace(None, 500, 0).budget(decoding=9) == 500
    assert Pace(1.5, 500, 0).budget(decoding=0) == 500
    assert Pace(1.5, 500, 0).budget(decoding=1) == FIRST_CHUNK
    assert Pace(1.5, 7, 0).budget(decoding=1) == 7


def test_decoding_runs_ahead_for_the_seconds_that_are_given():
    pace = Pace(None, 2048, 0.004)
    assert pace.steps == 1, "nothing is known yet"
    for _ in range(20):
        pace.observe(0.002, spans(2), 4)
    assert pace.steps == 8
    for _ in range(20):
        pace.observe(0.1, spans(2), 4)
    assert pace.steps == 1
    for _ in range(100):
        pace.observe(1e-6, spans(2))
    assert pace.steps == MOST_AHEAD
    none = Pace(None, 2048, 0)
    none.observe(1e-6, spans(2))
    assert none.steps == 1
