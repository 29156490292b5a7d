"""The engine's loop seen from within its process: what is told, and what a step does not wait for."""

from __future__ import annotations

from multiprocessing import Pipe

import pytest

from baleen.chat import Tokenizer
from baleen.chat.grammar import GrammarSpec
from baleen.engine.params import EngineError, EngineOptions, SamplingParams
from baleen.engine.worker import Worker
from baleen.model.checkpoint import save_model
from tiny import tiny_model

PROMPT = [5, 6, 7, 8]
LONG = SamplingParams(max_tokens=60, ignore_end=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer.train(["the whale sings to the sea"], 400)
    tokenizer.save(root / "tokenizer")
    save_model(tiny_model(0, vocab_size=len(tokenizer)), root / "whale", tokenizer=root / "tokenizer")
    return root / "whale"


@pytest.fixture
def worker(folder):
    """A worker whose messages are in `told`, as (number, chunk)."""
    here, there = Pipe()
    options = EngineOptions(max_running=4, max_tokens=128, page_tokens=8, threads=1, decode_seconds=0)
    worker = Worker(there, folder, options)
    worker.told = lambda: [news for _ in iter(here.poll, False) for news in here.recv()[1]]
    yield worker
    here.close()
    there.close()


def test_what_was_sampled_is_told_to_a_request_that_then_loses_its_pages(worker):
    worker._do_submit(0, PROMPT, LONG)
    worker._do_submit(1, PROMPT, LONG)
    worker._step()
    worker.told()
    worker.silent_until = float("inf")
    for _ in range(3):
        worker._step()
    assert worker.told() == []
    victim = worker.sequences[1]
    worker.engine.scheduler.preempt(victim)
    worker._tell([])
    told = dict(worker.told())
    assert [len(told[number].tokens) for number in (0, 1)] == [3, 3]
    assert told[1].tokens == tuple(victim.tokens[1:])
    while worker.engine.busy:
        worker._step()
    rest = [chunk for number, chunk in worker.told() if number == 1]
    tokens = (*victim.tokens[:1], *told[1].tokens, *(token for chunk in rest for token in chunk.tokens))
    assert tokens == rest[-1].generation.tokens, "nothing is told twice, and nothing is lost"


@pytest.fixture
def constrained():
    pytest.importorskip("llguidance")
    return SamplingParams(max_tokens=20, grammar=GrammarSpec("start: /[a-z]{1,5}/ <[1]>\n"))


def test_a_grammar_is_compiled_before_the_loop_takes_the_request_and_once_for_all_that_ask_for_it(worker, constrained):
    for number in range(3):
        message = worker._prepared(("submit", number, PROMPT, constrained))
        compiled = worker.engine._compiled.cache_info().misses
        assert message == ("submit", number, PROMPT, constrained)
        worker._do_submit(*message[1:])
        assert worker.engine._compiled.cache_info().misses == compiled == 1
    while worker.engine.busy:
        worker._step()
    ended = [chunk for _, chunk in worker.told() if chunk.finish_reason is not None]
    assert [chunk.finish_reason for chunk in ended] == ["stop"] * 3


def test_a_grammar_that_cannot_run_is_refused_and_others_go_on(worker, constrained):
    worker._do_submit(0, PROMPT, LONG)
    broken = SamplingParams(max_tokens=20, grammar=GrammarSpec("start: missing\n"))
    what, *rest = worker._prepared(("submit", 1, PROMPT, broken))
    assert what == "refuse"
    getattr(worker, f"_do_{what}")(*rest)
    ((number, error),) = worker.told()
    assert (number, type(error)) == (1, EngineError)
    worker._step()
    assert worker.told()[0][0] == 0


def test_kept_grammars_are_few(worker, constrained):
    for number in range(40):
        worker.engine.compile(GrammarSpec(f"start: /[a-z]{{1,{number + 1}}}/ <[1]>\n"))
    assert worker.engine._compiled.cache_info().currsize == 16
