"""Both policies: our engine in the process and a server on loopback, a small real model behind each."""

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import numpy as np
import pytest
from scripted import Counter, task

from baleen.agent.context import ContextManagement
from baleen.agent.engine_policy import EnginePolicy
from baleen.agent.limits import EpisodeLimits
from baleen.agent.loop import Rules, run_episode
from baleen.agent.policy import CountingPolicy, PolicyError, Sampling
from baleen.agent.server_policy import ServerPolicy
from baleen.agent.tool_environment import ToolEnvironment
from baleen.agent.tools import Toolbox
from baleen.chat import Tokenizer, encode
from baleen.chat.messages import FunctionCall, Message, ToolCall
from baleen.engine.engine import Engine
from baleen.engine.params import EngineOptions
from baleen.model.checkpoint import save_model
from tiny import tiny_model

CONTEXT = 2048
USER = Message(role="user", content="What is it?")
PROGRAM = f"""
import sys
from pathlib import Path
from baleen.engine.params import EngineOptions
from baleen.server.serve import serve
from baleen.server.settings import ServerSettings
if __name__ == "__main__":
    serve(Path(sys.argv[1]), ServerSettings(port=0), EngineOptions(max_running=8, max_tokens={CONTEXT}))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policies")
    tokenizer = Tokenizer.train([encode([USER.model_dump()], None)], 600)
    tokenizer.save(folder / "tokenizer")
    network = tiny_model(0, vocab_size=len(tokenizer), max_position_embeddings=CONTEXT)
    save_model(network, folder / "whale", tokenizer=folder / "tokenizer")
    return network, tokenizer, folder / "whale"


@pytest.fixture(scope="module")
def url(model):
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, model[2]], stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().split()[-1] + "/v1"
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()


def engine_policy(model, **options):
    network, tokenizer, _ = model
    engine = Engine(network, tokenizer, EngineOptions(max_running=8, max_tokens=CONTEXT, **options))
    return EnginePolicy(engine, tokenizer, traced=bool(options.get("traces")))


def look() -> str:
    """Looks."""
    return "nothing to see here, look again"


def looking(policy):
    """`policy`, whose turns all call `look`: so a random network holds a long episode."""
    complete = policy.complete

    async def calling(messages, tools, sampling):
        completion = await complete(messages, tools, sampling)
        call = ToolCall(id=f"c{len(completion.prompt_tokens)}", function=FunctionCall(name="look"))
        completion.message.tool_calls.append(call)  # the same object: the policy knows its turns by it
        return replace(completion, finish_reason="tool_calls")

    policy.complete = calling
    return policy


CONVERSATION = [
    USER,
    Message(
        role="assistant",
        reasoning_content="let me see",
        tool_calls=[ToolCall(id="a", function=FunctionCall(name="look"))],
    ),
    Message(role="tool", tool_call_id="a", content="nothing"),
]
TOOLS = Toolbox([look]).specs


@pytest.mark.parametrize("thinking", [True, False])
def test_a_server_gives_the_turn_that_the_engine_gives(model, url, thinking):
    sampling = Sampling(max_tokens=12, seed=3, thinking=thinking, top_p=0.9)

    async def both():
        async with ServerPolicy(url, traced=True) as server:
            far = await server.complete(CONVERSATION, TOOLS, sampling)
            count = await server.count_tokens(CONVERSATION, TOOLS, sampling)
        near_policy = engine_policy(model, traces=True)
        near = await near_policy.complete(CONVERSATION, TOOLS, sampling)
        return far, count, near, await near_policy.count_tokens(CONVERSATION, TOOLS, sampling)

    far, count, near, near_count = asyncio.run(both())
    assert (far.prompt_tokens, far.sampled_tokens) == (near.prompt_tokens, near.sampled_tokens)
    assert (far.message.content or "", far.message.reasoning_content or "") == (
        near.message.content or "",
        near.message.reasoning_content or "",
    )
    assert far.finish_reason == near.finish_reason
    assert count == near_count == len(far.prompt_tokens)
    for name in ("logprobs", "experts", "selected", "kept_ids", "kept_offsets"):
        np.testing.assert_array_equal(getattr(far.trace, name), getattr(near.trace, name), err_msg=name)


def test_a_server_that_is_asked_in_tokens_gives_the_engines_turns_and_extends_them_exactly(model, url):
    tokenizer = model[1]
    sampling = Sampling(max_tokens=12, seed=3, top_p=0.9)
    rules = Rules(EpisodeLimits(turns=3))
    environment = lambda _: ToolEnvironment(Toolbox([look]), lambda episode: {"outcome": 1.0})  # noqa: E731

    async def far():
        async with ServerPolicy(url, tokenizer=tokenizer, traced=True) as server:
            return await run_episode(task("t"), environment, looking(server), sampling, rules)

    async def near():
        return await run_episode(task("t"), environment, looking(engine_policy(model, traces=True)), sampling, rules)

    there, here = asyncio.run(far()), asyncio.run(near())
    assert there.messages == here.messages
    for one, other in zip(there.completions, here.completions, strict=True):
        assert (one.prompt_tokens, one.sampled_tokens) == (other.prompt_tokens, other.sampled_tokens)
        for name in ("logprobs", "experts", "selected", "kept_ids", "kept_offsets"):
            np.testing.assert_array_equal(getattr(one.trace, name), getattr(other.trace, name), err_msg=name)
    for before, after in zip(there.completions, there.completions[1:], strict=False):
        served = before.prompt_tokens + before.sampled_tokens
        assert after.prompt_tokens[: len(served)] == served


def test_a_prompt_beyond_the_context_is_a_truncated_turn_and_no_error(model, url):
    long = [Message(role="user", content="it " * CONTEXT)]

    async def both():
        async with ServerPolicy(url) as server:
            return await server.complete(long, [], Sampling()), await engine_policy(model).complete(
                long, [], Sampling()
            )

    for completion in asyncio.run(both()):
        assert (completion.finish_reason, completion.sampled_tokens) == ("length", ())


def test_both_policies_can_count(model):
    assert isinstance(engine_policy(model), CountingPolicy)
    assert isinstance(ServerPolicy("http://127.0.0.1:1"), CountingPolicy)


class Answers(BaseHTTPRequestHandler):
    """Gives the answers of its class in order."""

    answers: ClassVar[list] = []

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        status, body, headers = self.answers.pop(0) if self.answers else (500, b"", {})
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Quiet."""


@contextlib.contextmanager
def server_of(*answers):
    Answers.answers = list(answers)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


GOOD = json.dumps({"choices": [{"message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}]}).encode()


def ask(url, **arguments):
    async def main():
        async with ServerPolicy(url, **arguments) as policy:
            return await policy.complete([USER], [], Sampling())

    return asyncio.run(main())


def test_a_busy_server_is_asked_again():
    with server_of((429, b"", {"retry-after": "0"}), (503, b"", {}), (200, GOOD, {})) as url:
        assert ask(url).message.content == "yes"
    assert Answers.answers == []


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ([(401, b"no key", {}), (200, GOOD, {})], "401: no key"),
        ([(500, b"a", {}), (500, b"b", {})], "500: b"),
        ([(200, b"<html>", {})], "not JSON"),
        ([(200, b'{"choices": []}', {})], "no chat completion"),
    ],
)
def test_what_stays_wrong_is_a_policy_error_that_says_what(answers, told):
    with server_of(*answers) as url, pytest.raises(PolicyError, match=told):
        ask(url, tries=2)


def test_a_server_that_is_not_there_is_a_policy_error():
    with pytest.raises(PolicyError, match="ConnectError"):
        ask("http://127.0.0.1:9/v1", tries=1)


def test_an_episode_out_of_time_frees_the_engine(model):
    policy = engine_policy(model, decode_seconds=0)
    rules = Rules(EpisodeLimits(seconds=0.1, turns=1000))
    sampling = Sampling(max_tokens=CONTEXT - 100)
    policy.params = _endless(policy.params)

    async def main():
        done = await run_episode(task("t"), lambda _: Counter(), policy, sampling, rules)
        stats = policy.engine.stats()
        return done, stats

    done, stats = asyncio.run(main())
    assert done.status == "time_limit"
    assert (stats["running"], stats["waiting"]) == (0, 0)


def _endless(params):
    return lambda sampling, room: replace(params(sampling, room), ignore_end=True)


def test_dropped_messages_are_out_of_the_engines_prompt_too(model):
    policy = looking(engine_policy(model))
    rules = Rules(EpisodeLimits(turns=12), ContextManagement("discard-75", window=600, trigger=0.8))
    environment = lambda _: ToolEnvironment(Toolbox([look]), lambda episode: {"outcome": 1.0})  # noqa: E731
    done = asyncio.run(run_episode(task("t"), environment, policy, Sampling(max_tokens=20), rules))
    assert len(done.context_events) >= 1
    lengths = [len(completion.prompt_tokens) for completion in done.completions]
    assert max(lengths) <= 480
    broken = [
        b
        for a, b in zip(done.completions, done.completions[1:], strict=False)
        if b.prompt_tokens[: len(a.prompt_tokens)] != a.prompt_tokens
    ]
    assert len(broken) == len(done.context_events)
    for event in done.context_events:
        turn = sum(message.role == "assistant" for message in done.messages[: event.at_message])
        assert len(done.completions[turn].prompt_tokens) == event.tokens_after
