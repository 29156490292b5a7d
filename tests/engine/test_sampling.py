"""What a request asks of the sampler is what it gets: cuts, penalties, ends, and the distribution itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baleen.chat import Tokenizer
from baleen.chat.grammar import GrammarSpec
from baleen.engine import sampler
from baleen.engine.engine import Engine
from baleen.engine.params import EngineError, EngineOptions, SamplingParams
from baleen.engine.sequence import Sequence
from baleen.model import compiled
from tiny import tiny_model

VOCABULARY = 120
PROMPT = [5, 6, 7, 8, 9, 10, 11]
NO_ENDS = frozenset()
FEW_TOKENS = tuple((token, 8.0) for token in (5, 6, 7))


@pytest.fixture(scope="module")
def model():
    return tiny_model(0)


@pytest.fixture(scope="module")
def tokenizer():
    texts = [
        f"the whale {word} the sea, and the sea {word} the whale. 鲸鱼" for word in ("sings to", "swims in", "knows")
    ]
    return Tokenizer.train(texts, 500)


@pytest.fixture(scope="module")
def speaker(tokenizer):
    """A model that has the tokenizer's words."""
    return tiny_model(1, vocab_size=len(tokenizer))


@pytest.fixture(params=[True, False], ids=["loops", "torch"])
def forms(request, monkeypatch):
    """Both forms of the sampler."""
    if request.param:
        pytest.importorskip("numba")
    for module in (compiled, sampler):
        monkeypatch.setattr(module, "is_installed", lambda: request.param)


def generate(model, tokenizer=None, prompt=PROMPT, options=None, **params):
    engine = Engine(model, tokenizer, EngineOptions(**{"max_tokens": 128} | (options or {})))
    return engine.generate([prompt], SamplingParams(**{"max_tokens": 12, "ignore_end": True} | params))[0]


def drawn(logits, ends=NO_ENDS, said=(), **params):
    """One draw from logits [V], after `said`."""
    sequence = Sequence(np.array([3], np.int32), SamplingParams(**params), 64, 16)
    for token in said:
        sequence.append(token, 0.0, None, 0)
    return sampler.draw(torch.as_tensor(logits, dtype=torch.float32)[None].clone(), [sequence], ends)[0]


def probabilities(logits, temperature=1.0):
    return torch.softmax(torch.as_tensor(logits, dtype=torch.float64) / temperature, -1).numpy()


def normal(seed, count=VOCABULARY, scale=2.0):
    return np.random.default_rng(seed).standard_normal(count) * scale


def kept_of(trace, index):
    return trace.kept_ids[trace.kept_offsets[index] : trace.kept_offsets[index + 1]]


@pytest.mark.usefixtures("forms")
@pytest.mark.parametrize("temperature", [0.6, 1.0])
@pytest.mark.parametrize("cuts", [{}, {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.2}, {"top_k": 6, "top_p": 0.9}])
def test_frequencies_follow_the_distribution(temperature, cuts):
    """Chi-square over 1,500 draws with fixed seeds; the bound is passed by chance once in a million times."""
    count, draws = 12, 1500
    logits = normal(4, count, 1.0)
    wanted = probabilities(logits, temperature)
    order = np.argsort(-wanted)
    keep = np.ones(count, bool)
    keep[order[cuts.get("top_k", count) :]] = False
    if "top_p" in cuts:
        shares = np.where(keep, wanted, 0)[order] / wanted[keep].sum()
        keep[order[np.cumsum(shares) - shares >= cuts["top_p"]]] = False
    keep &= wanted >= cuts.get("min_p", 0) * wanted.max()
    wanted = np.where(keep, wanted, 0) / wanted[keep].sum()
    params = [SamplingParams(temperature=temperature, seed=seed, **cuts) for seed in range(draws)]
    sequences = [Sequence(np.array([3], np.int32), each, 4, 16) for each in params]
    found = sampler.draw(torch.tensor(logits, dtype=torch.float32).repeat(draws, 1), sequences, NO_ENDS)
    counts = np.bincount([each.token for each in found], minlength=count)
    assert not counts[~keep].any()
    statistic = (((counts - draws * wanted) ** 2)[keep] / (draws * wanted)[keep]).sum()
    freedom = keep.sum() - 1
    assert statistic < freedom + 4.75 * np.sqrt(2 * freedom) + 15
    for each in found[:50]:
        assert each.logprob == pytest.approx(np.log(wanted[each.token]), abs=1e-5)
        assert each.kept is None if not cuts else sorted(each.kept) == np.nonzero(keep)[0].tolist()


@pytest.mark.usefixtures("forms")
@given(st.integers(0, 99), st.integers(1, 130), st.integers(0, 2**64 - 1))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_top_k_keeps_the_k_most_likely_and_the_lower_of_equal_ones(logits_seed, top_k, seed):
    logits = np.round(normal(logits_seed))
    wanted = np.lexsort((np.arange(VOCABULARY), -logits))[:top_k]
    found = drawn(logits, top_k=top_k, seed=seed)
    assert found.kept.tolist() == sorted(wanted)
    assert found.token in wanted


@pytest.mark.usefixtures("forms")
def test_top_p_keeps_the_fewest_tokens_that_reach_it():
    for seed in range(30):
        logits = normal(seed)
        ordered = np.sort(probabilities(logits))[::-1]
        found = drawn(logits, top_p=0.7, seed=seed)
        mass = np.cumsum(ordered)
        assert len(found.kept) == np.argmax(mass >= 0.7) + 1
        assert found.token in found.kept


@pytest.mark.usefixtures("forms")
def test_the_most_likely_token_is_always_kept():
    for cut in ({"top_p": 1e-9}, {"min_p": 1.0}, {"top_k": 1}):
        logits = normal(1)
        found = drawn(logits, **cut)
        assert (found.token, found.kept.tolist()) == (logits.argmax(), [logits.argmax()])
        assert found.logprob == 0


@pytest.mark.usefixtures("forms")
def test_temperature_zero_takes_the_lowest_of_the_most_likely():
    logits = np.zeros(VOCABULARY)
    logits[[50, 40, 60]] = 2.0
    found = drawn(logits, temperature=0, seed=9)
    assert (found.token, found.logprob, found.kept.tolist()) == (40, 0, [40])


@pytest.mark.usefixtures("forms")
@pytest.mark.parametrize("temperature", [1e-12, 1e-30, 1e-39, 1e-44, 1e-300, 1e4])
def test_no_temperature_is_too_low_or_too_high(temperature):
    for cuts in ({}, {"top_k": 3}):
        found = drawn(normal(2), temperature=temperature, **cuts)
        assert np.isfinite(found.logprob)
        assert temperature > 1 or found.token == normal(2).argmax()


@pytest.mark.usefixtures("forms")
def test_a_presence_penalty_counts_once_and_a_frequency_penalty_every_time():
    logits = np.zeros(VOCABULARY)
    base = drawn(logits, top_logprobs=2).logprob
    present = drawn(logits, said=[7, 7, 7], presence_penalty=2.0, logit_bias=((7, 12.0),)).logprob
    often = drawn(logits, said=[7, 7, 7], frequency_penalty=2.0, logit_bias=((7, 12.0),)).logprob
    assert base == pytest.approx(-np.log(VOCABULARY), abs=1e-5)
    assert present == pytest.approx(np.log(probabilities([10.0, *[0.0] * 119])[0]), abs=1e-5)
    assert often == pytest.approx(np.log(probabilities([6.0, *[0.0] * 119])[0]), abs=1e-5)


@pytest.mark.usefixtures("forms")
def test_presence_and_frequency_look_at_the_completion_and_repetition_at_the_prompt_too():
    logits = np.full(VOCABULARY, -30.0)
    logits[[3, 9]] = [4.0, 3.0]
    asked = {"temperature": 0.0}
    assert drawn(logits, presence_penalty=50.0, **asked).token == 3, "3 is in the prompt, but was not sampled"
    assert drawn(logits, repetition_penalty=2.0, **asked).token == 9
    assert drawn(logits, said=[9], repetition_penalty=2.0, **asked).token == 3
    negative = np.full(VOCABULARY, -30.0)
    negative[[3, 9]] = [-1.0, -1.5]
    assert drawn(negative, repetition_penalty=2.0, **asked).token == 9, "negative logits are made lower"


@pytest.mark.usefixtures("forms")
def test_a_bias_of_minus_infinity_bans_and_a_large_one_forces(model):
    first = generate(model, temperature=0).tokens
    assert first[0] not in generate(model, temperature=0, logit_bias=((first[0], -np.inf),)).tokens
    assert set(generate(model, logit_bias=((33, 100.0),)).tokens) == {33}


@pytest.mark.usefixtures("forms")
@pytest.mark.parametrize(
    "params",
    [
        {"logit_bias": tuple((token, -np.inf) for token in range(VOCABULARY))},
        {"stop_ids": tuple(range(VOCABULARY)), "min_tokens": 2},
        {"logit_bias": ((5, 1e39),)},
        {"logit_bias": ((5, 3e38),)},
        {"presence_penalty": -1e39},
        {"frequency_penalty": 1e300},
        {"repetition_penalty": 1e-45},
        {"repetition_penalty": 1e-300},
        {"repetition_penalty": 1e300},
        {"temperature": 1e-39},
    ],
    ids=str,
)
@pytest.mark.parametrize("cuts", [{}, {"top_p": 0.5}, {"temperature": 0}], ids=str)
def test_no_request_that_is_accepted_ends_the_engine(model, params, cuts):
    """A step serves everybody: whatever one request asks, it is refused at once or ends like any other."""
    engine = Engine(model, None, EngineOptions(max_tokens=64))
    other = engine.submit(PROMPT, SamplingParams(max_tokens=4, ignore_end=True))
    try:
        strange = engine.submit(PROMPT, SamplingParams(**{"max_tokens": 4, "ignore_end": True} | cuts | params))
    except ValueError:
        return
    for _ in range(10):
        engine.step()
    assert other.finish_reason == "length"
    assert strange.finish_reason is not None
    assert not np.isnan(strange.generation.trace.logprobs).any()


def test_a_grammar_that_only_allows_the_end_too_early_does_not_end_the_engine(speaker, tokenizer):
    pytest.importorskip("llguidance")
    spec = GrammarSpec("start: /ab/")
    engine = Engine(speaker, tokenizer, EngineOptions(max_tokens=64))
    other = engine.submit(PROMPT, SamplingParams(max_tokens=6, ignore_end=True))
    try:
        strange = engine.submit(PROMPT, SamplingParams(max_tokens=8, min_tokens=8, grammar=spec))
    except ValueError:
        strange = None
    for _ in range(12):
        engine.step()
    assert other.finish_reason == "length"
    assert strange is None or strange.finish_reason is not None


def test_min_tokens_keeps_every_end_away_and_no_longer(model):
    ends = tuple(range(0, VOCABULARY, 2))
    for seed in range(6):
        one = generate(model, stop_ids=ends, min_tokens=5, max_tokens=40, seed=seed)
        assert len(one.tokens) >= 5
        assert not set(ends) & set(one.tokens[:4])
        assert one.finish_reason == "stop"
        assert one.tokens[-1] in ends


def test_min_tokens_does_not_ban_an_end_that_ends_nothing(model):
    end = next(iter(model.config.stop_token_ids))
    forced = {"logit_bias": ((end, 100.0),), "ignore_end": True, "max_tokens": 4}
    assert generate(model, **forced).tokens == (end,) * 4
    assert generate(model, min_tokens=4, **forced).tokens == (end,) * 4


def test_the_models_end_ends_and_can_be_ignored(model):
    end = next(iter(model.config.stop_token_ids))
    ended = generate(model, logit_bias=((end, 100.0),), ignore_end=False)
    assert (ended.tokens, ended.finish_reason) == ((end,), "stop")
    ignored = generate(model, logit_bias=((end, 100.0),), max_tokens=3)
    assert (ignored.tokens, ignored.finish_reason) == ((end,) * 3, "length")
    named = generate(model, logit_bias=((end, 100.0),), stop_ids=(end,), max_tokens=3)
    assert (named.tokens, named.finish_reason) == ((end,), "stop"), "an end that the request itself names counts"


def test_an_end_in_the_last_place_is_a_stop(model):
    last = generate(model, max_tokens=5).tokens[-1]
    position = generate(model, max_tokens=5).tokens.index(last) + 1
    assert generate(model, max_tokens=position, stop_ids=(last,)).finish_reason == "stop"
    assert generate(model, max_tokens=position).finish_reason == "length"


@pytest.mark.parametrize("drafts", [False, True])
def test_a_stop_text_ends_across_tokens(speaker, tokenizer, drafts):
    options = {"drafts": drafts}
    for seed in range(5):
        free = generate(speaker, tokenizer, seed=seed, max_tokens=30, options=options)
        text = tokenizer.decode(free.tokens)
        stop = next((text[i : i + 4] for i in range(8, len(text) - 4) if "�" not in text[: i + 4]), None)
        if stop is None:
            continue
        ended = generate(speaker, tokenizer, seed=seed, max_tokens=30, stop=(stop, "never said"), options=options)
        assert ended.finish_reason == "stop"
        assert ended.tokens == free.tokens[: len(ended.tokens)]
        assert stop in tokenizer.decode(ended.tokens)
        assert stop not in tokenizer.decode(ended.tokens[:-1])


def test_a_stop_text_survives_preemption(speaker, tokenizer):
    free = generate(speaker, tokenizer, seed=1, max_tokens=40)
    stop = tokenizer.decode(free.tokens[30:33])
    alone = generate(speaker, tokenizer, seed=1, max_tokens=40, stop=(stop,))
    engine = Engine(speaker, tokenizer, EngineOptions(max_tokens=128, page_tokens=4, memory_bytes=20 * 4 * 1200))
    elder = engine.submit([*PROMPT, 1], SamplingParams(max_tokens=60, ignore_end=True))
    watched = engine.submit(PROMPT, SamplingParams(max_tokens=40, ignore_end=True, seed=1, stop=(stop,)))
    for step in range(200):
        engine.step()
        if step == 15 and watched in engine.running:
            engine.scheduler.preempt(watched)
    assert elder.finish_reason == "length"
    assert (watched.generation.tokens, watched.finish_reason) == (alone.tokens, alone.finish_reason)


def test_stop_texts_and_grammars_need_a_tokenizer(model):
    with pytest.raises(EngineError, match="tokenizer"):
        generate(model, stop=("x",))


@pytest.mark.usefixtures("forms")
def test_top_logprobs_are_the_most_likely_tokens_of_what_is_sampled_from():
    logits = normal(3)
    for params in ({}, {"temperature": 0.5}, {"top_k": 3}):
        found = drawn(logits, top_logprobs=5, **params)
        wanted = np.log(probabilities(logits, params.get("temperature", 1.0)))
        if "top_k" in params:
            wanted[np.argsort(-wanted)[3:]] = -np.inf
            wanted -= np.log(np.exp(wanted).sum())
        order = np.argsort(-wanted)[: min(5, params.get("top_k", 5))]
        assert [token for token, _ in found.top] == order.tolist()
        np.testing.assert_allclose([value for _, value in found.top], wanted[order], atol=1e-5)


def test_top_logprobs_at_temperature_zero_are_the_same_in_both_forms(monkeypatch):
    pytest.importorskip("numba")
    made = []
    for loops in (True, False):
        monkeypatch.setattr(sampler, "is_installed", lambda loops=loops: loops)
        made.append(drawn(normal(3), temperature=0, top_logprobs=4).top)
    assert [token for token, _ in made[0]] == [token for token, _ in made[1]]


def test_top_logprobs_ask_for_no_more_than_there_are():
    assert len(drawn(normal(1, 8), top_logprobs=20).top) == 8


def test_n_completions_have_the_seeds_that_follow(model):
    engine = Engine(model, None, EngineOptions(max_tokens=64))
    params = SamplingParams(max_tokens=6, seed=40, n=3)
    two = engine.generate([PROMPT, PROMPT[:3]], params)
    assert len(two) == 6
    for index, one in enumerate(two):
        prompt = PROMPT if index < 3 else PROMPT[:3]
        assert one.tokens == generate(model, prompt=prompt, max_tokens=6, seed=40 + index, ignore_end=False).tokens


def test_the_largest_seed_may_be_asked_for_several_times(model):
    engine = Engine(model, None, EngineOptions(max_tokens=64))
    assert len(engine.generate([PROMPT], SamplingParams(max_tokens=2, seed=2**64 - 1, n=2))) == 2


def test_a_seed_decides_and_a_longer_limit_only_adds(model):
    short, long = (generate(model, max_tokens=tokens, seed=7) for tokens in (5, 20))
    assert long.tokens[:5] == short.tokens
    assert generate(model, max_tokens=20, seed=7).tokens == long.tokens
    assert generate(model, max_tokens=20, seed=8).tokens != long.tokens


@pytest.mark.usefixtures("forms")
@pytest.mark.parametrize("temperature", [0, 0.7, 1.0])
@pytest.mark.parametrize("cuts", [{}, {"top_k": 2}], ids=str)
@pytest.mark.parametrize("max_tokens", [1, 2, 3, 30])
def test_drafts_change_no_token(model, temperature, cuts, max_tokens):
    asked = {"temperature": temperature, "logit_bias": FEW_TOKENS, "max_tokens": max_tokens, "trace": True} | cuts
    options = EngineOptions(max_tokens=len(PROMPT) + 30, page_tokens=4, drafts=True)
    engine = Engine(model, None, options)
    params = SamplingParams(**{"ignore_end": True, "seed": 3} | asked)
    (found,) = engine.generate([PROMPT], params)
    plain = generate(model, seed=3, **asked)
    assert found.tokens == plain.tokens
    np.testing.assert_allclose(found.trace.logprobs, plain.trace.logprobs, atol=1e-5)
    assert found.trace.experts.shape == plain.trace.experts.shape
    assert max_tokens < 30 or engine.accepted_tokens > 0
    assert len(found.tokens) == max_tokens


def test_no_draft_is_made_where_only_one_token_is_left(model):
    for max_tokens in (1, 2, 3, 4):
        engine = Engine(model, None, EngineOptions(max_tokens=64, drafts=True))
        engine.generate([PROMPT], SamplingParams(max_tokens=max_tokens, ignore_end=True))
        assert engine.accepted_tokens == 0, "the test means a request whose drafts are all wrong"
        assert engine.drafted_tokens == max(0, max_tokens - 2)


def test_drafts_keep_to_penalties_min_tokens_and_stop_ids(model):
    for asked in ({"min_tokens": 6, "stop_ids": (5, 6)}, {"frequency_penalty": 1.0}, {"repetition_penalty": 1.2}):
        asked = {"logit_bias": FEW_TOKENS, "max_tokens": 20} | asked
        for seed in range(4):
            drafted = generate(model, seed=seed, options={"drafts": True, "page_tokens": 3}, **asked)
            plain = generate(model, seed=seed, **asked)
            assert (drafted.tokens, drafted.finish_reason) == (plain.tokens, plain.finish_reason)


@pytest.mark.parametrize(
    "wrong",
    [{"stop_ids": (VOCABULARY,)}, {"logit_bias": ((VOCABULARY, 1.0),)}, {"stop_ids": (-1,)}],
    ids=str,
)
def test_tokens_outside_the_vocabulary_are_refused(model, wrong):
    with pytest.raises(EngineError, match="outside the vocabulary"):
        generate(model, **wrong)
