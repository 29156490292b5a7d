"""The engine says what the model says, whatever shares the batch, and its trace replays."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from baleen.engine.engine import Engine, EngineError
from baleen.engine.params import EngineOptions, SamplingParams
from baleen.model.network import Replay
from tiny import tiny_model


def prompts(count, seed=0, low=5, high=60):
    rng = np.random.default_rng(seed)
    shared = rng.integers(2, 120, size=30).tolist()
    return [
        shared[: int(rng.integers(0, 30))] + rng.integers(2, 120, size=int(rng.integers(low, high))).tolist()
        for _ in range(count)
    ]


def engine_of(model, **options):
    return Engine(model, None, EngineOptions(**{"max_tokens": 128} | options))


def trainer_logprobs(model, generation, *, temperature=1.0, replay=None):
    ids = torch.tensor([*generation.prompt, *generation.tokens])
    logits = model(ids[None], replay=replay).logits[0] / temperature
    logp = torch.log_softmax(logits, -1)
    start = len(generation.prompt)
    return logp[start - 1 : -1].gather(1, ids[start:, None]).flatten().detach().numpy()


def replay_of(trace):
    last = lambda part: torch.from_numpy(np.concatenate([part, np.full_like(part[:1], -1)]).astype(np.int64))[None]  # noqa: E731
    selected = last(trace.selected)
    selected[:, -1, :, 0] = selected.shape[1] - 1
    return Replay(last(trace.experts), selected)


def test_logprobs_are_those_of_the_whole_forward():
    model = tiny_model()
    for generation in engine_of(model, max_running=4).generate(prompts(9), SamplingParams(max_tokens=20)):
        np.testing.assert_allclose(generation.trace.logprobs, trainer_logprobs(model, generation), atol=2e-5)


def test_the_trace_replays_through_the_model():
    model = tiny_model()
    params = SamplingParams(max_tokens=20, trace=True, temperature=0.7)
    for generation in engine_of(model, max_running=3).generate(prompts(6), params):
        assert generation.trace.experts.shape[0] == len(generation.prompt) + len(generation.tokens) - 1
        replayed = trainer_logprobs(model, generation, temperature=0.7, replay=replay_of(generation.trace))
        np.testing.assert_allclose(generation.trace.logprobs, replayed, atol=2e-5)


def test_a_forced_selection_overrules_the_indexer():
    model = tiny_model()
    params = SamplingParams(max_tokens=8, trace=True)
    (generation,) = engine_of(model, max_running=1).generate(prompts(1, low=40), params)
    with torch.no_grad():
        for layer in model.layers:
            layer.self_attn.indexer.wq_b.weight.normal_(generator=torch.Generator().manual_seed(9))
            layer.mlp.gate.e_score_correction_bias.add_(torch.linspace(-1, 1, 8)) if hasattr(
                layer.mlp, "gate"
            ) else None
    replayed = trainer_logprobs(model, generation, replay=replay_of(generation.trace))
    free = trainer_logprobs(model, generation)
    np.testing.assert_allclose(generation.trace.logprobs, replayed, atol=2e-5)
    assert np.abs(free - replayed).max() > 1e-3


def test_tokens_do_not_depend_on_the_company():
    model = tiny_model()
    many = prompts(7)
    params = [SamplingParams(max_tokens=15, seed=100 + i) for i in range(7)]
    together = engine_of(model, max_running=7).generate(many, params)
    narrow = engine_of(model, max_running=2).generate(many, params)
    alone = [engine_of(model, max_running=1).generate([p], [q])[0] for p, q in zip(many, params, strict=True)]
    assert [g.tokens for g in together] == [g.tokens for g in alone] == [g.tokens for g in narrow]


def test_admitting_seldom_changes_no_token():
    model, many = tiny_model(), prompts(9)
    params = [SamplingParams(max_tokens=4 + 3 * i, seed=i) for i in range(9)]
    soon = engine_of(model, max_running=3)
    seldom = engine_of(model, max_running=3, admit_every=5)
    assert [g.tokens for g in seldom.generate(many, params)] == [g.tokens for g in soon.generate(many, params)]
    for engine in (soon, seldom):
        engine.submit(many[0], params[8])
        engine.step()
        engine.submit(many[1], params[0])
        engine.step()
    assert (len(soon.waiting), len(seldom.waiting)) == (0, 1)


def test_a_shared_prefix_is_computed_once():
    engine = engine_of(tiny_model(), max_running=8)
    prompt = prompts(1, low=50)[0]
    generations = engine.generate([prompt] * 8, SamplingParams(max_tokens=1))
    pages = (len(prompt) - 1) // engine.options.page_tokens * engine.options.page_tokens
    assert engine.computed_tokens == len(prompt) + 7 * (len(prompt) - pages)
    assert [g.reused_tokens for g in generations] == [0, *[pages] * 7]


def test_kept_sets_hold_the_sampled_token_and_the_mass():
    model = tiny_model()
    (generation,) = engine_of(model, max_running=1).generate(prompts(1), SamplingParams(max_tokens=12, top_p=0.6))
    trace = generation.trace
    for i, token in enumerate(generation.tokens):
        kept = trace.kept_ids[trace.kept_offsets[i] : trace.kept_offsets[i + 1]]
        assert token in kept
    assert (trace.logprobs > trainer_logprobs(model, generation)).all()


def test_greedy_is_the_argmax():
    model = tiny_model()
    (generation,) = engine_of(model, max_running=1).generate(prompts(1), SamplingParams(max_tokens=6, temperature=0))
    ids = torch.tensor([*generation.prompt, *generation.tokens])[None]
    best = model(ids).logits[0, len(generation.prompt) - 1 : -1].argmax(-1)
    assert best.tolist() == list(generation.tokens)


def test_an_impossible_prompt_is_refused():
    engine = engine_of(tiny_model(), max_running=1, max_tokens=64)
    with pytest.raises(EngineError, match="does not fit"):
        engine.submit([1] * 64, SamplingParams())
    with pytest.raises(EngineError, match="empty"):
        engine.submit([], SamplingParams())
