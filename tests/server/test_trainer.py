"""What a trainer needs: traces as they were recorded, new weights, and what the server counts."""

from __future__ import annotations

import base64
import io
import json
import threading

import numpy as np
import pytest
from loopback import MODEL
from prometheus_client.parser import text_string_to_metric_families
from scripted_service import always

USER = {"role": "user", "content": "hi"}
ASKED = {
    "return_token_ids": True,
    "return_routed_experts": True,
    "return_sampling_mask": True,
    "return_selected_positions": True,
}


def array(field):
    """An array as the server writes it."""
    return np.frombuffer(base64.b64decode(field["data"]), np.dtype(field["dtype"])).reshape(field["shape"])


def npy(text):
    """An array as vLLM's clients read it."""
    return np.load(io.BytesIO(base64.b64decode(text)))


def samples(client):
    """The numbers of `/metrics`, by name and labels."""
    page = client.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(page.text)
    return {(each.name, *each.labels.values()): each.value for family in families for each in family.samples}


def streamed_choice(client, path, body):
    """The fields of a streamed choice, token ids joined."""
    fields, ids = {}, []
    with client.stream("POST", path, json=body | {"stream": True}) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    ids += choice.get("token_ids", [])
                    fields |= choice
    return fields | {"token_ids": ids}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_a_trace_comes_back_as_it_was_recorded(serving, path, streamed):
    server = serving()
    client = server.http()
    body = {**ASKED, "max_tokens": 50, **({"messages": [USER]} if "chat" in path else {"prompt": [0, 300]})}
    choice = streamed_choice(client, path, body) if streamed else client.post(path, json=body).json()["choices"][0]
    stream = server.service.streams[0]
    trace = stream.generation(len(stream.tokens), "stop").trace
    assert stream.params.trace
    assert tuple(choice["token_ids"]) == stream.tokens
    assert np.array_equal(array(choice["routed_experts"]), trace.experts)
    assert np.array_equal(array(choice["selected_positions"]), trace.selected)
    assert np.array_equal(array(choice["sampling_mask"]["ids"]), trace.kept_ids)
    assert np.array_equal(array(choice["sampling_mask"]["offsets"]), trace.kept_offsets)
    assert choice["weight_version"] == 0
    assert choice["weight_versions"] == [0] * len(stream.tokens)


def test_a_vllm_client_reads_its_own_encoding(serving):
    server = serving()
    body = {**ASKED, "messages": [USER], "trace_encoding": "npy"}
    choice = server.http().post("/v1/chat/completions", json=body).json()["choices"][0]
    stream = server.service.streams[0]
    trace = stream.generation(len(stream.tokens), "stop").trace
    assert np.array_equal(npy(choice["routed_experts"]), trace.experts)
    assert np.array_equal(npy(choice["selected_positions"]), trace.selected)
    assert choice["sampling_mask"] == [[token, token] for token in stream.tokens]


def test_nothing_is_recorded_that_nobody_asked_for(serving):
    server = serving()
    choice = server.http().post("/v1/chat/completions", json={"messages": [USER]}).json()["choices"][0]
    assert not server.service.streams[0].params.trace
    assert set(choice) == {"index", "message", "logprobs", "finish_reason", "faults", "weight_version"}


def test_new_weights_are_taken_between_pause_and_resume(serving, tmp_path):
    server = serving()
    client = server.http()
    assert client.post("/pause", json={"mode": "wait"}).json() == {"paused": True}
    answer = client.post("/v1/chat/completions", json={"messages": [USER]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "paused")
    assert answer.headers["retry-after"] == "1"
    assert client.get("/health").json() == {"status": "paused"}
    assert client.post("/update_weights", json={"path": str(tmp_path)}).json()["weight_version"] == 1
    assert client.post("/update_weights_from_disk", json={"model_path": str(tmp_path)}).json()["success"] is True
    assert client.post("/clear_cache").json()["success"] is True
    assert client.post("/resume").json() == {"paused": False}
    choice = client.post("/v1/chat/completions", json={"messages": [USER]}).json()["choices"][0]
    assert choice["weight_version"] == client.get("/v1/models").json()["data"][0]["weight_version"] == 2
    assert server.service.cleared == 1


@pytest.mark.parametrize(("mode", "reason"), [("wait", "stop"), ("abort", "abort"), ("keep", "stop")])
def test_running_requests_do_as_the_mode_says(serving, mode, reason):
    server = serving(answers=always("</think>" + "word " * 30), delay=0.01)
    client = server.http()
    got = []
    ask = {"messages": [USER]}
    thread = threading.Thread(target=lambda: got.append(server.http().post("/v1/chat/completions", json=ask).json()))
    thread.start()
    server.wait_until(lambda: server.service.streams and server.service.streams[0].given > 2)
    client.post("/pause", params={"mode": mode}).raise_for_status()
    stream = server.service.streams[0]
    assert stream.ended == (mode != "keep")
    assert (stream.given < len(stream.tokens)) == (mode != "wait")
    client.post("/resume").raise_for_status()
    thread.join(10)
    assert got[0]["choices"][0]["finish_reason"] == reason


def test_a_pause_that_a_resume_overtook_is_409_and_requests_are_taken(serving):
    server = serving(answers=always("</think>" + "word " * 200), delay=0.05)
    client, got = server.http(), []
    with server.openai().chat.completions.create(model=MODEL, messages=[USER], stream=True):
        thread = threading.Thread(target=lambda: got.append(server.http().post("/pause")))
        thread.start()
        server.wait_until(lambda: server.gate.paused)
        client.post("/resume").raise_for_status()
        thread.join(10)
        assert (got[0].status_code, got[0].json()["error"]["code"]) == (409, "overtaken")
        assert client.get("/health").json() == {"status": "ok"}


def test_weights_that_cannot_be_taken_say_why(serving, tmp_path):
    server = serving(answers=always("</think>" + "word " * 200), delay=0.05)
    client = server.http()
    answer = client.post("/update_weights", json={"path": str(tmp_path / "nothing")})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_weights")
    with server.openai().chat.completions.create(model=MODEL, messages=[USER], stream=True):
        answer = client.post("/update_weights", json={"path": str(tmp_path)})
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "engine_busy")


def test_all_prompts_of_a_request_count_in_its_metrics(serving):
    client = serving().http()
    before = samples(client)
    client.post("/v1/completions", json={"prompt": [[1, 2], [3, 4, 5]], "n": 2}).raise_for_status()
    after = samples(client)
    name = ("baleen_request_prompt_tokens_sum",)
    assert after[name] - before.get(name, 0) == 5


def test_metrics_tell_what_happened(serving):
    client = serving().http()
    before = samples(client)
    for _ in range(3):
        client.post("/v1/chat/completions", json={"messages": [USER], "n": 2}).raise_for_status()
    client.get("/v1/models/unknown")
    client.get("/somewhere")
    after = samples(client)
    grown = {
        ("baleen_request_success_total", "stop"): 6,
        ("baleen_e2e_request_latency_seconds_count",): 3,
        ("baleen_request_generation_tokens_count",): 6,
        ("baleen_http_requests_total", "/v1/chat/completions", "200"): 3,
        ("baleen_http_requests_total", "/v1/models/{name:path}", "404"): 1,
        ("baleen_http_requests_total", "other", "404"): 1,
    }
    assert {name: after[name] - before.get(name, 0) for name in grown} == grown
    assert after["baleen_num_requests_running",] == 2
    assert after["baleen_kv_cache_usage_perc",] == 1.0
