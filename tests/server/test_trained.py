"""`baleen serve` of a trained checkpoint: OpenAI's client in its usual loop, and the chat page in a real browser.

The checkpoint is the one of `taught.py`. With BALEEN_NANO=FOLDER the loop runs on that model, too.
"""

from __future__ import annotations

import asyncio
import json
import os
import time

import openai
import pytest
from loopback import WEATHER
from taught import CALL, CONTEXT, ENDLESS, FIRST, FOREVER, QUESTION, RESULT, SECOND

from baleen.benchmarks.serve_process import PAGES_USED, served
from browser import ask, text_of, until_answered

RUNNING, GENERATED = "baleen_num_requests_running", "baleen_generation_tokens_total"
NANO = os.environ.get("BALEEN_NANO")
CALLED = json.loads(CALL["function"]["arguments"])


@pytest.fixture(scope="module")
def taught_server(taught):
    with served(str(taught), {"max-tokens": CONTEXT}) as server:
        yield server


@pytest.fixture(scope="module")
def nano_server():
    if NANO is None:
        pytest.skip("set BALEEN_NANO to a trained model's folder to try this on it")
    with served(NANO, {}) as server:
        yield server


@pytest.fixture(params=["taught", "nano"])
def client(request):
    server = request.getfixturevalue(f"{request.param}_server")
    with openai.OpenAI(base_url=f"{url_of(server)}v1", api_key="x", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture
def taught_client(taught_server):
    with openai.OpenAI(base_url=f"{url_of(taught_server)}v1", api_key="x", max_retries=0, timeout=120) as client:
        yield client


def url_of(server):
    return f"http://{server.address.host}:{server.address.port}/"


def metrics(server):
    return asyncio.run(server.metrics())


def turn_of(client, streamed, **asked):
    """The assistant's message as a client sends it back, the finish reason, and the prompt tokens that were cached."""
    model = client.models.list().data[0].id
    asked = {"model": model, "tools": [WEATHER], "max_tokens": 400, "temperature": 0, **asked}
    if not streamed:
        answer = client.chat.completions.create(**asked)
        message = answer.choices[0].message.model_dump(exclude_none=True)
        cached = answer.usage.prompt_tokens_details.cached_tokens
        return {name: message[name] for name in KEPT if name in message}, answer.choices[0].finish_reason, cached
    message, reason, cached = {"role": "assistant"}, None, None
    for chunk in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        cached = chunk.usage.prompt_tokens_details.cached_tokens if chunk.usage else cached
        for choice in chunk.choices:
            reason = choice.finish_reason or reason
            for name in ("reasoning_content", "content"):
                if piece := getattr(choice.delta, name, None):
                    message[name] = message.get(name, "") + piece
            for piece in choice.delta.tool_calls or ():
                add_call(message.setdefault("tool_calls", []), piece)
    return message, reason, cached


KEPT = ("role", "content", "reasoning_content", "tool_calls")


def add_call(calls, piece):
    if piece.index == len(calls):
        calls.append({"id": piece.id, "type": "function", "function": {"name": piece.function.name, "arguments": ""}})
    calls[piece.index]["function"]["arguments"] += piece.function.arguments


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_the_usual_loop_of_think_call_result_answer_runs_on_a_trained_model(client, streamed, choice):
    first, reason, _ = turn_of(client, streamed, messages=[QUESTION], tool_choice=choice, parallel_tool_calls=False)
    assert reason == "tool_calls"
    assert first["reasoning_content"]
    (call,) = first["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert isinstance(json.loads(call["function"]["arguments"])["city"], str)
    messages = [QUESTION, first, {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}]
    second, reason, cached = turn_of(client, streamed, messages=messages, tool_choice="none")
    assert reason in ("stop", "length")
    assert "tool_calls" not in second
    assert second.get("reasoning_content") or second.get("content")
    assert cached > 0, "the second turn begins with the first one's tokens"
    # A third turn: the client goes on with all that it has.
    more = [*messages, second, {"role": "user", "content": "Hello, world."}]
    third, reason, _ = turn_of(client, streamed, messages=more)
    assert third["role"] == "assistant"
    assert reason in ("stop", "length", "tool_calls")


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_model_that_learned_a_conversation_has_it_with_the_client(taught_client, streamed, choice):
    """By itself and under a grammar: what is enforced does not change what the model says anyway."""
    first, reason, _ = turn_of(taught_client, streamed, messages=[QUESTION], tool_choice=choice)
    assert (reason, first["reasoning_content"]) == ("tool_calls", FIRST["reasoning_content"])
    (call,) = first["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("get_weather", CALLED)
    messages = [QUESTION, first, RESULT | {"tool_call_id": call["id"]}]
    second, reason, _ = turn_of(taught_client, streamed, messages=messages)
    assert (reason, second) == ("stop", SECOND)


@pytest.fixture
def page(browser, taught_server):
    """The chat page of the real server, at temperature 0."""
    browser.events.clear()
    browser.open(url_of(taught_server))
    browser.dress(1280, 800, "light")
    browser.run("conversations.clear(), localStorage.clear(), begin(), settings.temperature = '0', settings.tools = ''")
    browser.until("models.length === 1")
    yield browser
    strangers = [url for url in browser.requested() if not url.startswith((url_of(taught_server), "data:", "about:"))]
    assert not strangers, "requests to another origin"
    assert not browser.complaints()


def test_the_page_talks_to_the_real_server(page, tmp_path):
    assert text_of(page, "#model") == "whale-taught"
    page.run(f"settings.tools = {json.dumps(json.dumps([WEATHER]))}, 0")
    ask(page, QUESTION["content"])
    until_answered(page)
    assert not page.run("document.querySelector('.thinking').open")
    assert page.run("document.querySelector('.thought').textContent") == FIRST["reasoning_content"]
    assert json.loads(text_of(page, ".call .asking pre")) == CALLED
    page.type(".call textarea", "sunny")
    page.click(".call .solid")
    until_answered(page, 2)
    assert text_of(page, ".assistant:last-child .prose") == SECOND["content"]
    assert "cached" in text_of(page, ".assistant:last-child > .tools span")
    page.screenshot(tmp_path / "loop.png")


def test_the_pages_stop_button_frees_the_engines_pages(page, taught_server, tmp_path):
    before = metrics(taught_server)[GENERATED]
    ask(page, ENDLESS["content"])
    page.until("document.querySelector('.prose')?.innerText.length > 200")
    assert text_of(page, "#send") == "Stop"
    during = metrics(taught_server)
    assert (during[RUNNING], during[PAGES_USED] > 0) == (1, True)
    page.click("#send")
    page.until("document.querySelector('#thread').ariaBusy === 'false'")
    end = time.monotonic() + 10
    while (after := metrics(taught_server))[RUNNING] or after[PAGES_USED]:
        assert time.monotonic() < end, "the sequence still runs"
        time.sleep(0.01)
    assert after[GENERATED] - before < CONTEXT / 2, "it would have ended by itself"
    assert text_of(page, ".trouble").startswith("Stopped.")
    assert not text_of(page, ".prose").replace("weather", "").strip()
    assert page.run("document.querySelector('.thought').textContent") == FOREVER["reasoning_content"]
    page.screenshot(tmp_path / "stopped.png")
