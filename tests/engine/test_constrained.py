"""Under a grammar a request gets what it gets alone: not its company, nor preemption, nor drafts change a token.

The network is small, untrained and has a draft layer. What a grammar forces, drafts guess right; what it leaves open
they mostly do not: both ways are taken.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baleen.chat import Tokenizer, encode, parse
from baleen.chat.grammar import calls_grammar, response_grammar

pytest.importorskip("llguidance")

from baleen.engine.engine import Engine
from baleen.engine.params import EngineOptions, SamplingParams
from baleen.engine.recorder import Recorder
from baleen.model.cache import LatentCache
from tiny import tiny_model

CONTEXT = 384
PAGE = 4
MOST_SAMPLED = 160
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 4},
        "days": {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 6, "maxItems": 7},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}]
FORMAT = {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
QUESTION = encode([{"role": "user", "content": "What is the weather in Paris for 12 days?"}], thinking=False)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([QUESTION, '{"city": "Oslo", "days": [3, 14]}'], 500)


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny_model(3, vocab_size=tokenizer.vocab_size, num_nextn_predict_layers=1, max_position_embeddings=CONTEXT)


@pytest.fixture(scope="module")
def grammars(tokenizer):
    """A call of the tool, an answer in the format, and nothing that binds."""
    call = calls_grammar(TOOLS, tokenizer, thinking=False, choice="required", parallel=False)
    return {"call": call, "answer": response_grammar(FORMAT, tokenizer, thinking=False), "free": None}


@pytest.fixture(scope="module")
def alone(model, tokenizer):
    """What a request gets alone, without drafts, in an engine with plenty of room; kept for the drawn examples."""
    engine = Engine(model, tokenizer, EngineOptions(max_running=1, max_tokens=CONTEXT))
    known = {}

    def find(params):
        if params not in known:
            engine.forget_prefixes()
            (known[params],) = engine.generate([tokenizer.encode(QUESTION)], params)
        return known[params]

    return find


def crowded(model, tokenizer, pages, **options):
    """An engine with so many pages and one more for scratch."""
    drafts = options.get("drafts", False)
    per_token = LatentCache.token_bytes(model.config, torch.float32, drafts=drafts)
    per_token += Recorder.token_bytes(model.config, CONTEXT)
    given = {"page_tokens": PAGE, "max_tokens": CONTEXT, "memory_bytes": (pages + 1) * PAGE * per_token}
    return Engine(model, tokenizer, EngineOptions(**given, **options))


def together(engine, tokenizer, params):
    """The generations of requests that come two steps after each other."""
    submitted = []
    for step in range(5000):
        if step >= 2 * len(submitted) and len(submitted) < len(params):
            submitted.append(engine.submit(tokenizer.encode(QUESTION), params[len(submitted)]))
        engine.step()
        if len(submitted) == len(params) and not engine.busy:
            return [sequence.generation for sequence in submitted]
    raise AssertionError("the engine makes no progress")


def assert_valid(generation, kind, tokenizer):
    """What is complete is what the grammar promises. (What the length cut off is no call.)"""
    message = parse(tokenizer.decode(generation.tokens), thinking=False, tools=TOOLS)
    if generation.finish_reason != "stop" or kind == "free":
        return False
    assert not message.faults
    if kind == "call":
        (call,) = message.tool_calls
        assert call.function.name == "get_weather"
        value = json.loads(call.function.arguments)
    else:
        value = json.loads(message.content)
    assert value.keys() == {"city", "days"}
    assert len(value["city"]) <= 4
    assert 6 <= len(value["days"]) <= 7
    assert min(value["days"]) >= 1
    return True


def assert_same(found, wanted):
    assert found.tokens == wanted.tokens
    assert found.finish_reason == wanted.finish_reason
    for name in ("logprobs", "kept_ids", "kept_offsets", "experts", "selected"):
        one, other = getattr(found.trace, name), getattr(wanted.trace, name)
        assert (one is None) == (other is None), name
        assert one is None or (one.dtype, one.tobytes()) == (other.dtype, other.tobytes()), name


def sampled(grammar, seed, temperature=1.0, **more):
    return SamplingParams(
        max_tokens=MOST_SAMPLED, seed=seed, temperature=temperature, grammar=grammar, trace=True, **more
    )


@pytest.mark.parametrize("drafts", [False, True])
def test_constrained_requests_that_lose_their_pages_and_go_on_get_what_they_get_alone(
    model, tokenizer, grammars, alone, drafts
):
    kinds = ["call", "answer", "call", "free", "answer", "call"]
    params = [sampled(grammars[kind], seed) for seed, kind in enumerate(kinds)]
    longest = -(-(len(tokenizer.encode(QUESTION)) + MOST_SAMPLED) // PAGE)
    engine = crowded(model, tokenizer, longest + 2, max_running=6, drafts=drafts)
    found = together(engine, tokenizer, params)
    assert engine.scheduler.preemptions > 2
    for each, one in zip(params, found, strict=True):
        assert_same(one, alone(each))
    complete = [assert_valid(one, kind, tokenizer) for one, kind in zip(found, kinds, strict=True)]
    assert sum(complete) >= 4
    assert engine.pool.used == 0


def test_drafts_guess_what_a_grammar_forces_and_change_no_token(model, tokenizer, grammars, alone):
    for kind in ("call", "answer"):
        engine = Engine(model, tokenizer, EngineOptions(max_running=4, max_tokens=CONTEXT, drafts=True))
        params = [sampled(grammars[kind], seed, temperature) for seed, temperature in ((1, 1.0), (2, 0.0), (3, 0.7))]
        for each, one in zip(params, together(engine, tokenizer, params), strict=True):
            assert_same(one, alone(each))
            assert_valid(one, kind, tokenizer)
        assert engine.accepted_tokens > 10
        assert engine.steps < sum(len(alone(each).tokens) for each in params)


drawn = st.lists(
    st.tuples(
        st.sampled_from(["call", "answer", "free"]),
        st.integers(0, 5),
        st.sampled_from([1.0, 0.0]),
        st.sampled_from([{}, {"top_p": 0.7}, {"min_tokens": 30}, {"stop": ("days",)}]),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=12)
@given(drawn, st.integers(0, 12), st.integers(1, 5), st.sampled_from([3, 64]), st.booleans())
def test_a_constrained_request_gets_the_bits_that_it_gets_alone(
    model, tokenizer, grammars, alone, requests, spare_pages, max_running, chunk_tokens, drafts
):
    params = [sampled(grammars[kind], seed, temperature, **more) for kind, seed, temperature, more in requests]
    params = [replace(each, max_tokens=60 + 20 * (each.seed % 3)) for each in params]
    longest = -(-(len(tokenizer.encode(QUESTION)) + 100) // PAGE)
    engine = crowded(
        model, tokenizer, longest + spare_pages, max_running=max_running, chunk_tokens=chunk_tokens, drafts=drafts
    )
    for each, one in zip(params, together(engine, tokenizer, params), strict=True):
        assert_same(one, alone(each))
    assert engine.pool.used == 0
