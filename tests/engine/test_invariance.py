"""The engine's promise: what a request gets depends on nothing but the request, to the last bit.

Requests that share beginnings run together in an engine with drawn options: how many at once, pages and chunks of any
size, memory that is too small, drafts, threads, a warm or a cold cache, requests that come late, others that are
cancelled on the way, caches that are forgotten in between. Each must get the bits that it gets alone in a fresh engine.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baleen.engine import sampler
from baleen.engine.engine import Engine
from baleen.engine.params import EngineOptions, SamplingParams
from baleen.engine.recorder import Recorder
from baleen.model import compiled
from baleen.model.cache import LatentCache
from baleen.ops import threads
from tiny import TINY, tiny_model

LONGEST_PROMPT, MOST_SAMPLED = 36, 12
CONTEXT = LONGEST_PROMPT + MOST_SAMPLED
BEGINNINGS = np.random.default_rng(0).integers(2, TINY["vocab_size"], size=(2, 24)).tolist()
FEW_TOKENS = tuple((token, 8.0) for token in (5, 6, 7))
"""A bias that leaves few tokens likely, so that drafts are often right."""


@cache
def model():
    return tiny_model(3, num_nextn_predict_layers=1)


@dataclass(frozen=True)
class Request:
    prompt: tuple[int, ...]
    params: SamplingParams
    comes: int
    """The step before which it is submitted."""

    leaves: int | None = None
    """The step before which it is cancelled; its own outcome is then of no interest."""


@dataclass(frozen=True)
class Run:
    """A set of requests and the engine that they share."""

    requests: list[Request]
    options: dict
    spare_pages: int
    warm: bool
    forgets: dict[int, str] = field(default_factory=dict)
    """Steps before which the cache is forgotten, and how."""

    threads: int = 1


prompts = st.builds(
    lambda beginning, length, seed, own: tuple(
        BEGINNINGS[beginning][:length] + np.random.default_rng(seed).integers(2, 120, size=own).tolist()
    ),
    st.sampled_from([0, 0, 1]),
    st.integers(0, 24),
    st.integers(0, 3),
    st.integers(1, LONGEST_PROMPT - 24),
)
sampling = st.builds(
    SamplingParams,
    seed=st.integers(0, 2**64 - 1),
    temperature=st.sampled_from([1.0, 0.7, 0.0]),
    top_p=st.sampled_from([1.0, 1.0, 0.6]),
    top_k=st.sampled_from([0, 0, 3]),
    min_p=st.sampled_from([0.0, 0.0, 0.1]),
    presence_penalty=st.sampled_from([0.0, 0.0, 0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.3]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3]),
    logit_bias=st.sampled_from([(), FEW_TOKENS, FEW_TOKENS]),
    max_tokens=st.integers(1, MOST_SAMPLED),
    stop_ids=st.sampled_from([(), (), (6,)]),
    ignore_end=st.booleans(),
    top_logprobs=st.sampled_from([0, 0, 3]),
    trace=st.booleans(),
)
requests = st.builds(
    Request, prompts, sampling, st.sampled_from([0, 0, 0, 1, 4, 9]), st.sampled_from([None, None, None, 2, 5, 11])
)
options = st.fixed_dictionaries(
    {
        "max_running": st.integers(1, 6),
        "page_tokens": st.integers(2, 16),
        "chunk_tokens": st.one_of(st.integers(1, 12), st.just(64)),
        "admit_every": st.sampled_from([1, 1, 3]),
        "drafts": st.booleans(),
        "prefill_share": st.sampled_from([None, None, 1.5]),
        "decode_seconds": st.sampled_from([0, 1e-3, 1.0]),
    }
)
runs = st.builds(
    Run,
    requests=st.lists(requests, min_size=1, max_size=6),
    options=options,
    spare_pages=st.one_of(st.integers(0, 4), st.just(60)),
    warm=st.booleans(),
    forgets=st.dictionaries(st.integers(1, 12), st.sampled_from(["prefixes", "weights"]), max_size=1),
    threads=st.sampled_from([1, 1, 2]),
)


@contextmanager
def form(loops, worth=threads.WORTH_THREADS, count=None):
    """Layers run as compiled loops or as torch's operations; loops are split among `count` threads from `worth` on."""
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        for module in (compiled, sampler):
            patch.setattr(module, "is_installed", lambda: loops)
        patch.setattr(threads, "WORTH_THREADS", worth)
        torch.set_num_threads(count or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def engine_of(given):
    """An engine with so many pages, and no more."""
    tokens = given.options["page_tokens"]
    per_token = LatentCache.token_bytes(model().config, torch.float32, drafts=given.options["drafts"])
    per_token += Recorder.token_bytes(model().config, CONTEXT)
    pages = -(-CONTEXT // tokens) + 1 + given.spare_pages
    room = {"max_tokens": CONTEXT, "memory_bytes": pages * tokens * per_token}
    return Engine(model(), None, EngineOptions(**given.options, **room))


def alone(request):
    options = EngineOptions(max_running=1, max_tokens=CONTEXT, prefill_share=None)
    return Engine(model(), None, options).generate([request.prompt], [request.params])[0]


def together(given):
    """The generation of every request, and the engine."""
    engine = engine_of(given)
    if given.warm:
        engine.generate([each.prompt for each in given.requests[::2]], SamplingParams(max_tokens=3, seed=9))
    submitted = {}
    step = 0
    while len(submitted) < len(given.requests) or engine.busy:
        for number, request in enumerate(given.requests):
            if request.comes == step:
                submitted[number] = engine.submit(request.prompt, request.params)
            if request.leaves == step and number in submitted:
                engine.cancel(submitted[number])
        match given.forgets.get(step):
            case "prefixes":
                engine.forget_prefixes()
            case "weights":
                engine.weights_changed()
        engine.step()
        step += 1
        assert step < 2000, "the engine makes no progress"
    return [submitted[number].generation for number in range(len(given.requests))], engine


def bits(part):
    return None if part is None else (part.dtype, part.shape, part.tobytes())


def assert_same(found, wanted):
    """Every bit of the outcome."""
    assert found.tokens == wanted.tokens
    assert found.finish_reason == wanted.finish_reason
    assert found.top_logprobs == wanted.top_logprobs
    for name in ("logprobs", "kept_ids", "kept_offsets", "experts", "selected"):
        assert bits(getattr(found.trace, name)) == bits(getattr(wanted.trace, name)), name


def cancelled(request, generation):
    return request.leaves is not None and generation.finish_reason == "abort"


def assert_beginning(found, wanted, request):
    """A request that was cancelled has what it sampled until then, with its trace, wherever it stood: running, or
    waiting for pages that were taken from it."""
    sampled = len(found.tokens)
    assert found.tokens == wanted.tokens[:sampled]
    assert bits(found.trace.logprobs) == bits(wanted.trace.logprobs[:sampled])
    if sampled and request.params.trace:
        rows = len(request.prompt) + sampled - 1
        for name in ("experts", "selected"):
            assert bits(getattr(found.trace, name)) == bits(getattr(wanted.trace, name)[:rows]), name


def assert_nothing_is_held(engine):
    assert engine.pool.used == 0
    assert engine.pool.available == engine.pool.total
    assert not engine.scheduler._coming


@settings(max_examples=40)
@given(runs)
def test_a_request_gets_the_bits_that_it_gets_alone(given):
    with form(loops=True):
        wanted = [alone(request) for request in given.requests]
    with form(loops=True, worth=0, count=given.threads):
        found, engine = together(given)
    for request, one, other in zip(given.requests, found, wanted, strict=True):
        if cancelled(request, one):
            assert_beginning(one, other, request)
        else:
            assert_same(one, other)
    assert_nothing_is_held(engine)


@settings(max_examples=10)
@given(runs)
def test_without_loops_a_request_gets_the_tokens_that_it_gets_alone(given):
    """The matrix library rounds the products of experts by how many tokens they have, so not to the last bit."""
    with form(loops=False):
        wanted = [alone(request) for request in given.requests]
        found, engine = together(given)
    for request, one, other in zip(given.requests, found, wanted, strict=True):
        assert one.tokens == other.tokens[: len(one.tokens)]
        if cancelled(request, one):
            continue
        assert (one.tokens, one.finish_reason) == (other.tokens, other.finish_reason)
        np.testing.assert_allclose(one.trace.logprobs, other.trace.logprobs, atol=1e-5)
        for name in ("kept_ids", "kept_offsets", "experts", "selected"):
            np.testing.assert_array_equal(getattr(one.trace, name), getattr(other.trace, name))
    assert_nothing_is_held(engine)


def test_the_runs_above_preempt_share_pages_and_accept_drafts():
    """The drawn runs reach what they are meant to reach: here is one that does all of it."""
    params = SamplingParams(max_tokens=MOST_SAMPLED, logit_bias=FEW_TOKENS, ignore_end=True, trace=True)
    crowd = [Request(tuple(BEGINNINGS[0][: 20 + number % 2]), params, 0) for number in range(6)]
    given = Run(crowd, {"max_running": 6, "page_tokens": 4, "chunk_tokens": 8, "drafts": True}, 2, warm=False)
    found, engine = together(given)
    assert engine.scheduler.preemptions > 0
    assert engine.accepted_tokens > 0
    assert engine.cached_tokens > 0
    for request, one in zip(crowd, found, strict=True):
        assert_same(one, alone(request))


@pytest.mark.parametrize("when", ["waiting", "computed anew"])
def test_a_request_that_is_cancelled_after_its_pages_were_taken_has_its_trace(when):
    params = SamplingParams(max_tokens=MOST_SAMPLED, ignore_end=True, trace=True)
    crowd = [Request(tuple(BEGINNINGS[number % 2][:20]), replace(params, seed=number), 0) for number in range(6)]
    options = {"max_running": 6, "page_tokens": 4, "chunk_tokens": 3, "drafts": False, "decode_seconds": 0}
    engine = engine_of(Run(crowd, options, 2, warm=False))
    submitted = [engine.submit(each.prompt, each.params) for each in crowd]
    preempted = []
    while not preempted:
        engine.step()
        preempted = [each for each in engine.waiting if each.sampled > 1]
    victim = preempted[0]
    if when == "computed anew":
        # Its pages are forgotten, too: all that it has is computed once more, in several steps.
        engine.weights_changed()
        while not 0 < victim.computed < victim.length - 1:
            engine.step()
    engine.cancel(victim)
    request = crowd[submitted.index(victim)]
    assert victim.generation.finish_reason == "abort"
    assert_beginning(victim.generation, alone(request), request)
    while engine.busy:
        engine.step()
    for one, each in zip(submitted, crowd, strict=True):
        if one is not victim:
            assert_same(one.generation, alone(each))
    assert all(each.records is None for each in submitted if each is not victim), "kept for nothing"
    assert_nothing_is_held(engine)
