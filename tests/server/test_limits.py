"""What the server refuses, what it gives up when a client leaves, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import socket
import threading

import httpx
import openai
import pytest
from loopback import MODEL
from scripted_service import always

from baleen.chat import Tokenizer

USER = {"role": "user", "content": "hi"}
LONG = always("</think>" + "word " * 200)


def test_the_key_is_asked_for_everywhere_but_on_the_page_and_the_health_check(serving):
    server = serving(api_key="secret")
    client = server.http()
    assert server.openai().chat.completions.create(model=MODEL, messages=[USER]).choices
    with pytest.raises(openai.AuthenticationError):
        server.openai(api_key="secre").models.list()
    for path in ("/v1/models", "/metrics", "/openapi.json", "/nowhere"):
        answer = client.get(path)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert answer.json()["error"]["code"] == "invalid_api_key"
    assert client.post("/pause").status_code == 401
    assert client.get("/health").status_code == 200
    assert client.get("/").status_code in (200, 404)
    for strange in ("Basic secret", "Bearer", "Bearer \xe9", "secret"):
        assert client.get("/v1/models", headers={"authorization": strange.encode("latin-1")}).status_code == 401


def test_a_large_body_is_413_whether_or_not_its_length_is_told(serving):
    server = serving(max_body_bytes=2000)
    body = json.dumps({"messages": [{**USER, "content": "x" * 5000}]}).encode()
    headers = {"content-type": "application/json"}

    def pieces():
        for start in range(0, len(body), 500):
            yield body[start : start + 500]

    for content in (body, pieces()):
        answer = server.http().post("/v1/chat/completions", content=content, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    assert not server.service.streams


def test_a_full_queue_is_429_with_the_time_to_try_again_and_runs_no_part_of_a_request(serving):
    server = serving(answers=LONG, delay=0.05, max_waiting=4)
    with server.openai().chat.completions.create(model=MODEL, messages=[USER], n=3, stream=True):
        answer = server.http().post("/v1/chat/completions", json={"messages": [USER], "n": 2})
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert answer.json()["error"]["type"] == "rate_limit_error"
        assert [stream.cancelled for stream in server.service.streams] == [False, False, False, True]


def test_openais_client_comes_through_a_full_queue_by_itself(serving):
    server = serving(answers=LONG, delay=0.003, max_waiting=1)
    with server.openai().chat.completions.create(model=MODEL, messages=[USER], stream=True, max_tokens=100) as stream:
        reader = threading.Thread(target=lambda: list(stream))
        reader.start()
        patient = server.openai(max_retries=5)
        assert patient.chat.completions.create(model=MODEL, messages=[USER], max_tokens=2).choices
        reader.join()


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_client_that_leaves_frees_its_sequences(serving, path, streamed):
    server = serving(answers=LONG, delay=0.02)
    body = {"stream": streamed, "n": 2, "max_tokens": 200}
    body |= {"messages": [USER]} if "chat" in path else {"prompt": "a"}

    async def leave():
        async with (
            httpx.AsyncClient(base_url=server.url) as client,
            client.stream("POST", path, json=body, timeout=0.2) as answer,
        ):
            await anext(answer.aiter_bytes())

    with contextlib.suppress(httpx.ReadTimeout):  # where nothing comes before the end
        asyncio.run(leave())
    server.wait_until(lambda: all(stream.cancelled for stream in server.service.streams))
    assert len(server.service.streams) == 2
    given = [stream.given for stream in server.service.streams]
    assert max(given) < 100, "the answer was not read to its end"
    server.wait_until(lambda: server.gate.running == 0)


def test_a_client_that_sends_half_a_body_and_leaves_holds_nothing(serving):
    server = serving()
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        connection.sendall(b'Content-Length: 100\r\n\r\n{"prompt":')
    server.wait_until(lambda: server.gate.running == 0)
    assert server.http().get("/health").status_code == 200


def test_a_request_has_a_deadline(serving):
    server = serving(answers=LONG, delay=0.05, request_seconds=0.2)
    answer = server.http().post("/v1/chat/completions", json={"messages": [USER]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
    with pytest.raises(openai.APIError, match="longer than"):
        list(server.openai().chat.completions.create(model=MODEL, messages=[USER], stream=True))
    server.wait_until(lambda: all(stream.cancelled for stream in server.service.streams))


def test_an_engine_that_ends_in_the_middle_is_an_error_in_the_stream_and_503_outside(serving):
    server = serving(answers=LONG, delay=0.01)
    stream = server.openai().chat.completions.create(model=MODEL, messages=[USER], stream=True)
    next(stream)
    server.service.closed = True
    with pytest.raises(openai.APIError, match="closed"):
        list(stream)
    assert server.http().post("/v1/chat/completions", json={"messages": [USER]}).status_code == 503
    assert server.http().get("/metrics").status_code == 503
    health = server.http().get("/health")
    assert (health.status_code, health.json()) == (503, {"status": "closed"})


def test_a_fault_of_ours_is_told_as_one_and_no_more(serving, monkeypatch):
    server = serving()

    def broken(*_):
        raise RuntimeError("the password is 1234")

    monkeypatch.setattr(server.service, "submit", broken)
    answer = server.http().post("/v1/chat/completions", json={"messages": [USER]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "1234" not in answer.text


def test_while_draining_running_answers_end_and_new_ones_are_503(serving):
    server = serving(answers=LONG, delay=0.005)
    stream = server.openai().chat.completions.create(model=MODEL, messages=[USER], stream=True)
    next(stream)
    gate = server.gate
    drained = asyncio.run_coroutine_threadsafe(gate.drained(20), server.loop)
    server.wait_until(lambda: gate.draining)
    answer = server.http().post("/v1/chat/completions", json={"messages": [USER]})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error"]["code"] == "draining"
    assert server.http().get("/health").status_code == 503
    assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "stop"
    assert drained.result(10) is True
    assert asyncio.run_coroutine_threadsafe(gate.drained(1), server.loop).result(5) is True


def test_draining_gives_up_when_the_time_is_over(serving):
    server = serving(answers=LONG, delay=0.2)
    with server.openai().chat.completions.create(model=MODEL, messages=[USER], stream=True) as stream:
        next(stream)
        gate = server.gate
        assert asyncio.run_coroutine_threadsafe(gate.drained(0.1), server.loop).result(5) is False


def test_a_slow_reader_gets_all_the_text(serving):
    server = serving(answers=always("</think>" + "world, " * 1500))
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json={"messages": [USER], "stream": True}) as answer:
        server.wait_until(lambda: server.service.streams and server.service.streams[0].ended, 20)
        lines = [line for line in answer.iter_lines() if line.startswith("data: {")]
    deltas = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"] for line in lines]
    assert "".join(delta.get("content", "") for delta in deltas) == "world, " * 1500


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/v1/nothing", 404), ("GET", "/v1/chat/completions", 405), ("PUT", "/", 405)]
)
def test_errors_of_the_protocol_have_openais_shape_too(serving, method, path, status):
    answer = serving().http().request(method, path)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"messages": NaN}', b"\xff", b"[" * 20_000, b'{"seed": ' + b"9" * 6000 + b"}"],
)
def test_bodies_that_are_no_requests_are_400(serving, content):
    answer = (
        serving().http().post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
    )
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_text_that_is_no_unicode_is_answered_all_the_same(serving):
    client = serving().http()
    headers = {"content-type": "application/json"}
    body = b'{"messages": [{"role": "user", "content": "\\ud800"}], "stream": true}'
    assert client.post("/v1/chat/completions", content=body, headers=headers).status_code == 200
    body = b'{"prompt": "\\udfff x", "echo": true}'
    assert client.post("/v1/completions", content=body, headers=headers).status_code == 200
    body = b'{"model": "\\ud800", "prompt": "a"}'
    assert client.post("/v1/completions", content=body, headers=headers).status_code == 404


def test_other_origins_are_let_in_only_where_they_are_named(serving):
    origin = {"Origin": "http://page.example", "Access-Control-Request-Method": "POST"}
    closed, opened = serving(), serving(cors_origins=("http://page.example",), api_key="k")
    assert "access-control-allow-origin" not in closed.http().options("/v1/models", headers=origin).headers
    answer = opened.http().options("/v1/models", headers=origin)
    assert answer.headers["access-control-allow-origin"] == "http://page.example"


def test_a_key_is_bytes_whatever_letters_it_has(serving):
    client = serving(api_key="clé").http()
    assert client.get("/v1/models", headers={"authorization": "Bearer clé".encode()}).status_code == 200
    assert client.get("/v1/models", headers={"authorization": "Bearer clé".encode("latin-1")}).status_code == 401


def test_long_texts_are_not_read_or_written_in_the_thread_of_all_streams(serving, monkeypatch):
    server = serving()
    client = server.http()
    seen, found = set(), queue.Queue()
    server.loop.call_soon_threadsafe(lambda: found.put(threading.get_ident()))
    streams = found.get(timeout=5)
    for name in ("decode", "encode", "encode_segments"):
        inner = getattr(Tokenizer, name)
        watched = lambda *given, inner=inner: (seen.add(threading.get_ident()), inner(*given))[1]  # noqa: E731
        monkeypatch.setattr(Tokenizer, name, watched)
    long = "the weather " * 3000
    turns = [USER, {"role": "assistant", "reasoning_content": long, "content": "x"}, USER]
    tool = {"type": "function", "function": {"name": "get", "description": long}}
    for path, body in (
        ("/tokenize", {"prompt": long}),
        ("/tokenize", {"prompt": long * 4, "return_token_strs": True}),
        ("/tokenize", {"messages": turns}),
        ("/tokenize", {"messages": [USER], "tools": [tool]}),
        ("/detokenize", {"tokens": [300] * 30_000}),
    ):
        seen.clear()
        client.post(path, json=body).raise_for_status()
        assert seen
        assert streams not in seen, body.keys()
    seen.clear()
    client.post("/tokenize", json={"messages": [USER]}).raise_for_status()
    assert seen == {streams}, "a thread would cost a short text more than it takes"
