"""The whole way: OpenAI's client, HTTP, the engine's process and a real model, small and with random weights."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time

import httpx
import numpy as np
import openai
import pytest
from loopback import WEATHER

from baleen.engine.engine import Engine
from baleen.engine.params import EngineOptions, SamplingParams
from baleen.model.checkpoint import save_model
from tiny import tiny_model

CONTEXT = 1024
PROMPT = [0, 300, 301, 302, 303]
USER = {"role": "user", "content": "What is the weather in Paris?"}
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
def models(tokenizer, tmp_path_factory):
    """Two folders with models that differ in their weights, and the networks themselves."""
    root = tmp_path_factory.mktemp("models")
    tokenizer.save(root / "tokenizer")
    made = []
    for seed in (0, 1):
        model = tiny_model(seed, vocab_size=len(tokenizer), max_position_embeddings=CONTEXT)
        save_model(model, root / f"whale-{seed}", tokenizer=root / "tokenizer")
        made.append((root / f"whale-{seed}", model))
    return made


@pytest.fixture(scope="module")
def url(models):
    """The address of a server of the first model, in processes of its own."""
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, models[0][0]], stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert line.startswith("baleen serves on "), line
        yield line.split()[-1]
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        yield client


def engine_says(models, tokenizer, index=0, **given):
    """What the engine itself samples after `PROMPT`."""
    engine = Engine(models[index][1], tokenizer, EngineOptions(max_running=8, max_tokens=CONTEXT))
    return engine.generate([PROMPT], SamplingParams(**given))[0]


def array(field):
    return np.frombuffer(base64.b64decode(field["data"]), np.dtype(field["dtype"])).reshape(field["shape"])


def gauge(url, name):
    """One number of `/metrics`."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"baleen_{name} "))


def test_served_tokens_and_their_trace_are_the_engines(models, tokenizer, url):
    more = {"return_routed_experts": True, "return_sampling_mask": True, "return_selected_positions": True}
    body = {
        "prompt": PROMPT,
        "max_tokens": 20,
        "seed": 5,
        "top_p": 0.8,
        "logprobs": 0,
        "return_token_ids": True,
        **more,
    }
    choice = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()["choices"][0]
    said = engine_says(models, tokenizer, max_tokens=20, seed=5, top_p=0.8, trace=True)
    assert tuple(choice["token_ids"]) == said.tokens
    assert np.allclose(choice["logprobs"]["token_logprobs"], said.trace.logprobs)
    assert np.array_equal(array(choice["routed_experts"]), said.trace.experts)
    assert np.array_equal(array(choice["selected_positions"]), said.trace.selected)
    assert np.array_equal(array(choice["sampling_mask"]["ids"]), said.trace.kept_ids)
    assert np.array_equal(array(choice["sampling_mask"]["offsets"]), said.trace.kept_offsets)


def test_a_stream_brings_the_same_tokens_as_an_answer_in_one_piece(client, url):
    asked = {"model": "whale-0", "messages": [USER], "max_tokens": 40, "seed": 3}
    whole = client.chat.completions.create(**asked, n=3).choices
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(**asked, n=3, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += getattr(choice.delta, "reasoning_content", None) or ""
            texts[choice.index] += choice.delta.content or ""
    assert texts == [(each.message.reasoning_content or "") + (each.message.content or "") for each in whole]
    assert len(set(texts)) == 3


def test_even_random_weights_make_the_call_that_is_required_and_go_on_after_its_result(client):
    asked = {
        "model": "whale-0",
        "tools": [WEATHER],
        "max_tokens": 300,
        "extra_body": {"thinking": {"type": "disabled"}},
    }
    turn = client.chat.completions.create(
        messages=[USER], tool_choice="required", parallel_tool_calls=False, seed=1, **asked
    ).choices[0]
    assert turn.finish_reason == "tool_calls"
    assert turn.faults == []
    call = turn.message.tool_calls[0]
    assert call.function.name == "get_weather"
    assert isinstance(json.loads(call.function.arguments)["city"], str)
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    answer = client.chat.completions.create(messages=[USER, turn.message, result], tool_choice="none", seed=1, **asked)
    assert not answer.choices[0].message.tool_calls
    assert answer.usage.prompt_tokens_details.cached_tokens > 0


def test_even_random_weights_keep_to_a_response_format(client):
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    answer = client.chat.completions.create(
        model="whale-0",
        messages=[USER],
        max_tokens=300,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        extra_body={"thinking": {"type": "disabled"}},
    ).choices[0]
    assert answer.finish_reason == "stop"
    assert set(json.loads(answer.message.content)) == {"ok"}


def test_a_stop_string_ends_the_engines_work_with_its_trace(models, tokenizer, url):
    text = tokenizer.decode(engine_says(models, tokenizer, max_tokens=30, seed=9).tokens)
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    body = {"prompt": PROMPT, "max_tokens": 30, "seed": 9, "stop": stop, "return_routed_experts": True}
    choice = httpx.post(f"{url}/v1/completions", json=body).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (text[: text.index(stop)], "stop")
    assert choice["routed_experts"] is not None


def test_a_client_that_leaves_frees_its_pages(client, url):
    # Nothing ends it early: it would run to the end of the context.
    stream = client.completions.create(model="whale-0", prompt=PROMPT, max_tokens=CONTEXT, stream=True,
                                       extra_body={"ignore_eos": True})  # fmt: skip
    next(iter(stream))
    stream.close()
    end = time.monotonic() + 10
    while gauge(url, "num_requests_running") or gauge(url, "kv_cache_pages_used"):
        assert time.monotonic() < end, "the sequence still runs"
        time.sleep(0.01)


def test_new_weights_answer_after_the_pause_with_their_version(models, tokenizer, url):
    body = {"prompt": PROMPT, "max_tokens": 12, "seed": 5, "return_token_ids": True}
    with httpx.Client(base_url=url, timeout=60) as http:
        first = http.post("/v1/completions", json=body).json()["choices"][0]
        http.post("/pause").raise_for_status()
        version = http.post("/update_weights", json={"path": str(models[1][0])}).json()["weight_version"]
        http.post("/resume").raise_for_status()
        second = http.post("/v1/completions", json=body).json()["choices"][0]
        broken = http.post("/update_weights", json={"path": "/nowhere"})
        assert (broken.status_code, broken.json()["error"]["code"]) == (400, "invalid_weights")
        http.post("/update_weights", json={"path": str(models[0][0])}).raise_for_status()
    assert tuple(second["token_ids"]) == engine_says(models, tokenizer, 1, max_tokens=12, seed=5).tokens
    assert second["token_ids"] != first["token_ids"]
    assert second["weight_versions"] == [version] * len(second["token_ids"])
