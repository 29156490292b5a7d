"""An environment as an MCP server: the SDK's own client acts in it, over stdio and over real HTTP on loopback."""

import asyncio
import contextlib
import json
import os
import signal
import sys

import httpx
import pytest
from foreign import HERE
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from purse import TASKS, Purse, purse_task

from baleen.agent.environment import InfrastructureError
from baleen.agent.mcp.served import NoSuchTask, ServedEpisode
from baleen.agent.mcp.server import serve_environment, serving
from baleen.agent.mcp.sessions import SessionLimits

PURSE = [str(HERE / "purse.py"), "stdio"]
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
}
ACCEPT = {"accept": "application/json, text/event-stream"}


@pytest.fixture(autouse=True)
def _nothing_closed_yet():
    Purse.closed.clear()


async def called(client, name, /, **arguments):
    result = await client.call_tool(name, arguments)
    return result.is_error, result.content[0].text


async def reward(client, answer=None):
    address = "episode://reward" + (f"?answer={answer}" if answer is not None else "")
    return json.loads((await client.read_resource(address)).contents[0].text)


async def until(condition, seconds=10.0):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


async def play(client, want):
    """A whole episode, as a client sees it."""
    tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert list(tools) == ["add", "count", "crash", "sleep", "lose_wits"]
    assert tools["add"].description == "Puts coins in."
    assert tools["add"].input_schema == {
        "type": "object",
        "properties": {"coins": {"type": "integer"}},
        "required": ["coins"],
    }
    [prompt] = (await client.list_prompts()).prompts
    messages = (await client.get_prompt(prompt.name)).messages
    assert [(message.role, message.content.text, message.content.meta) for message in messages] == [
        ("user", "Be thrifty.", {"baleen/role": "system"}),
        ("user", f"Bring the purse to {want} and say how much it holds.", None),
    ]
    assert await called(client, "add", coins=want) == (False, f"it holds {want}")
    assert await called(client, "add", coins=-1) == (True, "error: nothing is taken out here")
    is_error, text = await called(client, "add", coin=1)
    assert is_error
    assert text.startswith("error: add: coins: Field required")
    is_error, text = await called(client, "subtract")
    assert (is_error, text.split(";")[0]) == (True, "error: unknown tool 'subtract'")
    assert await reward(client, want) == {"outcome": 1.0, "held": float(want), "style": None}


@pytest.mark.parametrize("mode", ["legacy", "auto"])
def test_a_program_serves_an_episode_over_stdio_in_both_protocols(mode, tmp_path):
    log = tmp_path / "log"

    async def body():
        parameters = StdioServerParameters(
            command=sys.executable, args=[*PURSE, "seven"], env={**os.environ, "PURSE_LOG": str(log)}
        )
        async with Client(parameters, mode=mode, cache=None) as client:
            assert client.protocol_version == {"legacy": "2025-11-25", "auto": "2026-07-28"}[mode]
            await play(client, 7)

    asyncio.run(body())
    assert log.read_text() == "closed seven 7\n"


@pytest.mark.parametrize("mode", ["legacy", "auto"])
def test_sessions_over_http_choose_their_tasks_and_end_with_their_clients(mode):
    async def body():
        async with serving(Purse, TASKS) as url:
            async with Client(url, mode=mode, cache=None) as client:
                assert client.protocol_version == "2025-11-25"  # the sessionless protocol is declined
                await play(client, 3)  # no choice: the first
            async with Client(f"{url}?task=seven", mode=mode, cache=None) as client:
                await play(client, 7)
            async with (
                httpx_client({"Baleen-Task": "n-5"}) as http,
                Client(streamable_http_client(url, http_client=http), mode=mode, cache=None) as client,
            ):
                await play(client, 5)
            await until(lambda: Purse.closed == ["three", "seven", "n-5"])

    asyncio.run(body())


def httpx_client(headers):
    import httpx2  # the SDK's own fork of httpx

    return httpx2.AsyncClient(headers=headers)


def test_twenty_sessions_at_once_share_nothing():
    async def one(url, number):
        async with Client(f"{url}?task=n-{number}", cache=None) as client:
            for _ in range(number):
                assert not (await called(client, "add", coins=1))[0]
                await asyncio.sleep(0)
            assert await called(client, "count") == (False, str(number))
            return await reward(client, number)

    async def body():
        async with serving(Purse, TASKS) as url:
            rewards = await asyncio.gather(*(one(url, number) for number in range(20)))
            assert [each["outcome"] for each in rewards] == [1.0] * 20
            assert [each["held"] for each in rewards] == [float(number) for number in range(20)]
            await until(lambda: sorted(Purse.closed) == sorted(f"n-{number}" for number in range(20)))

    asyncio.run(body())


def test_the_first_verdict_is_the_only_one_and_ends_the_episode():
    async def body():
        async with serving(Purse, TASKS) as url, Client(url, cache=None) as client:
            await called(client, "add", coins=3)
            assert (await reward(client, 4))["outcome"] == 0.0
            assert (await reward(client, 3))["outcome"] == 0.0
            is_error, text = await called(client, "count")
            assert is_error
            assert text.startswith("error: this episode is over")

    asyncio.run(body())


def test_a_verdict_is_a_template_so_that_no_client_fetches_it_unasked():
    async def body():
        async with serving(Purse, TASKS) as url, Client(url, cache=None) as client:
            [tasks] = (await client.list_resources()).resources
            assert json.loads((await client.read_resource(tasks.uri)).contents[0].text) == [task.id for task in TASKS]
            [template] = (await client.list_resource_templates()).resource_templates
            assert template.uri_template == "episode://reward{?answer}"
            assert (await reward(client))["outcome"] == 0.0  # nothing done, nothing said
            with pytest.raises(MCPError, match="no resource"):
                await client.read_resource("episode://secrets")
            with pytest.raises(MCPError, match="no prompt 'seven'"):
                await client.get_prompt("seven")

    asyncio.run(body())


@pytest.mark.parametrize(("tool", "told"), [("crash", "the environment failed$"), ("lose_wits", "at fault: KeyError")])
def test_an_environment_that_failed_is_a_protocol_error_and_never_scored(tool, told, caplog):
    async def body():
        async with serving(Purse, TASKS) as url, Client(url, cache=None) as client:
            await called(client, "add", coins=3)
            with pytest.raises(MCPError, match=told):
                await called(client, tool)
            assert await reward(client, 3) == {"outcome": None}

    asyncio.run(body())
    assert {"crash": "the purse burnt", "lose_wits": "inside"}[tool] in caplog.text  # the details stay on this side


def test_a_cancelled_call_is_in_the_record():
    class Remembering(Purse):
        async def verify(self, episode):
            self.seen = episode.messages
            return await super().verify(episode)

    async def body():
        purse = Remembering(TASKS[0])
        episode = ServedEpisode(TASKS[0], lambda task: purse)
        waiting = asyncio.create_task(episode.call("sleep", '{"seconds": 3600}'))
        await asyncio.sleep(0.1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await episode.call("add", '{"coins": 3}')
        assert (await episode.verdict("3"))["outcome"] == 1.0
        told = [message.content for message in purse.seen if message.role == "tool"]
        assert told == ["error: cancelled", "it holds 3"]
        calls = [call.id for message in purse.seen for call in message.tool_calls or ()]
        assert calls == ["call-0", "call-1"]
        await episode.close()

    asyncio.run(body())


def test_a_call_that_ends_the_episode_is_the_last_one():
    class Full(Purse):
        @property
        def ended(self):
            return self.held >= 3

    async def body():
        async with serving(Full, TASKS) as url, Client(url, cache=None) as client:
            assert await called(client, "add", coins=3) == (False, "it holds 3")
            assert await called(client, "add", coins=1) == (True, "error: this episode is over")
            assert (await reward(client, 3))["held"] == 3.0

    asyncio.run(body())


def test_why_an_environment_did_not_start_is_told_even_where_it_does_not_close(monkeypatch):
    class Stuck(Purse):
        async def reset(self, task):
            raise InfrastructureError("no purse today")

        async def close(self):
            await asyncio.sleep(3600)

    monkeypatch.setattr("baleen.agent.mcp.served.CLOSE_SECONDS", 0.1)
    with pytest.raises(InfrastructureError, match="no purse today"):
        asyncio.run(ServedEpisode(TASKS[0], Stuck).opening())


def test_a_server_that_is_cancelled_while_its_sessions_end_still_ends():
    class Slow(Purse):
        async def close(self):
            self.closed.append("asked")
            await asyncio.sleep(3)

    async def serve():
        async with serving(Slow, TASKS) as url, httpx.AsyncClient() as http:
            await http.post(url, json=call("count"), headers=await opened(http, url))

    async def body():
        server = asyncio.create_task(serve())
        await until(lambda: Purse.closed)
        server.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(server, 10)
        assert not [task for task in asyncio.all_tasks() if "Server.serve" in str(task.get_coro())]

    asyncio.run(body())


def test_a_session_whose_transport_fails_is_answered(monkeypatch):
    def broken(_):
        raise OSError("no streams left")

    monkeypatch.setattr("baleen.agent.mcp.sessions.StreamableHTTPServerTransport.connect", broken)

    async def body():
        async with serving(Purse, TASKS) as url, httpx.AsyncClient() as http:
            assert (await http.post(url, json=INITIALIZE, headers=ACCEPT, timeout=5)).status_code == 500

    asyncio.run(body())


def test_an_environment_that_does_not_start_is_told_and_closed():
    broken = purse_task("broken", 1)
    broken = broken.model_copy(update={"metadata": {"want": 1, "broken": True}})

    async def body():
        async with serving(Purse, [broken]) as url, Client(url, cache=None) as client:
            with pytest.raises(MCPError, match=r"the environment failed$"):
                await client.list_tools()
        assert Purse.closed == ["broken"]

    asyncio.run(body())


def test_a_client_that_vanished_has_its_environment_closed_after_the_idle_time():
    async def body():
        async with serving(Purse, TASKS, limits=SessionLimits(idle_seconds=1.5)) as url, httpx.AsyncClient() as http:
            session = await opened(http, url)
            answer = await http.post(url, json=call("add", coins=1), headers=session)
            assert answer.status_code == 200
            assert Purse.closed == []
            await until(lambda: Purse.closed == ["three"])
            assert (await http.post(url, json=call("count"), headers=session)).status_code == 404

    asyncio.run(body())


def test_a_client_that_vanished_in_a_call_that_hangs_has_its_environment_closed_too():
    async def body():
        limits = SessionLimits(idle_seconds=1.5, step_seconds=1.0)
        async with serving(Purse, TASKS, limits=limits) as url, httpx.AsyncClient() as http:
            session = await opened(http, url)
            with pytest.raises(httpx.ReadTimeout):
                await http.post(url, json=call("sleep", seconds=3600), headers=session, timeout=0.3)
            await until(lambda: Purse.closed == ["three"])

    asyncio.run(body())


def test_an_environment_that_hangs_is_given_up_and_never_scored():
    async def body():
        limits = SessionLimits(step_seconds=0.3)
        async with serving(Purse, TASKS, limits=limits) as url, Client(url, cache=None) as client:
            await called(client, "add", coins=3)
            with pytest.raises(MCPError, match=r"the environment failed$"):
                await called(client, "sleep", seconds=3600)
            assert await reward(client, 3) == {"outcome": None}

    asyncio.run(body())


def test_a_client_that_listens_is_not_idle():
    async def body():
        limits = SessionLimits(idle_seconds=1.5)
        async with serving(Purse, TASKS, limits=limits) as url, Client(url, cache=None) as client:
            await called(client, "add", coins=1)
            await asyncio.sleep(3.0)
            assert await called(client, "count") == (False, "1")

    asyncio.run(body())


def test_leaving_in_the_middle_of_a_call_ends_it():
    async def body():
        async with serving(Purse, TASKS) as url, httpx.AsyncClient() as http:
            session = await opened(http, url)
            waiting = asyncio.create_task(http.post(url, json=call("sleep", seconds=3600), headers=session, timeout=20))
            await asyncio.sleep(0.3)
            assert (await http.delete(url, headers=session)).status_code == 200
            await until(lambda: Purse.closed == ["three"])
            with contextlib.suppress(httpx.HTTPError):
                assert "awake" not in (await waiting).text

    asyncio.run(body())


def test_leaving_while_the_environment_starts_closes_what_was_started():
    class Slow(Purse):
        async def reset(self, task):
            await asyncio.sleep(3600)

    async def body():
        async with serving(Slow, TASKS) as url, httpx.AsyncClient() as http:
            session = await opened(http, url)
            waiting = asyncio.create_task(http.post(url, json=call("count"), headers=session, timeout=20))
            await asyncio.sleep(1.0)
            await http.delete(url, headers=session)
            await until(lambda: Purse.closed == ["three"])
            await waiting

    asyncio.run(body())


async def opened(http, url):
    """The headers of a new session, opened by hand."""
    answer = await http.post(url, json=INITIALIZE, headers=ACCEPT)
    assert answer.status_code == 200
    session = {**ACCEPT, "mcp-session-id": answer.headers["mcp-session-id"], "mcp-protocol-version": "2025-11-25"}
    await http.post(url, json={"jsonrpc": "2.0", "method": "notifications/initialized"}, headers=session)
    return session


def call(name, /, **arguments):
    return {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": name, "arguments": arguments}}


def test_more_sessions_than_allowed_are_refused_and_room_comes_back():
    async def body():
        async with serving(Purse, TASKS, limits=SessionLimits(sessions=2)) as url, httpx.AsyncClient() as http:
            first = await opened(http, url)
            await opened(http, url)
            refused = await http.post(url, json=INITIALIZE, headers=ACCEPT)
            assert refused.status_code == 503
            assert "all 2 sessions are taken" in refused.json()["error"]["message"]
            await http.delete(url, headers=first)
            async with asyncio.timeout(10):
                while (await http.post(url, json=INITIALIZE, headers=ACCEPT)).status_code == 503:
                    await asyncio.sleep(0.05)

    asyncio.run(body())


@pytest.mark.parametrize(
    ("change", "status", "told"),
    [
        ({"headers": {"host": "evil.example"}}, 421, "Invalid Host"),
        ({"headers": {"origin": "http://evil.example"}}, 403, "Invalid Origin"),
        ({"headers": {"mcp-session-id": "made-up"}}, 404, "no such session"),
        ({"headers": {"mcp-protocol-version": "2026-07-28"}}, 400, "open one with initialize"),
        ({"headers": {"content-type": "text/plain"}}, 400, "Content-Type"),
        ({"path": "?task=nix"}, 404, "no task 'nix'"),
        ({"path": "/elsewhere"}, 404, "served at /mcp"),
        ({"json": call("add", coins=1)}, 400, "Missing session ID"),
        ({"json": {**INITIALIZE, "padding": "x" * 5_000_000}}, 413, "too large"),
        ({"method": "GET"}, 400, "opened by POST"),
    ],
    ids=["host", "origin", "session", "sessionless", "type", "task", "path", "no-session", "size", "get"],
)
def test_what_is_no_request_to_open_a_session_is_refused_and_leaves_nothing(change, status, told):
    async def body():
        made = []

        def make(task):
            made.append(task)
            return Purse(task)

        async with serving(make, TASKS) as url, httpx.AsyncClient() as http:
            headers = {**ACCEPT, **change.get("headers", {})}
            answer = await http.request(
                change.get("method", "POST"),
                url + change.get("path", ""),
                json=change.get("json", INITIALIZE) if change.get("method") != "GET" else None,
                headers=headers,
            )
            assert (answer.status_code, told in answer.text) == (status, True), answer.text
        assert made == []

    asyncio.run(body())


def test_the_servers_end_closes_every_environment():
    async def body():
        async with contextlib.AsyncExitStack() as clients:
            async with serving(Purse, TASKS) as url:
                for number in range(3):
                    client = await clients.enter_async_context(Client(f"{url}?task=n-{number}", cache=None))
                    await called(client, "count")
            assert sorted(Purse.closed) == ["n-0", "n-1", "n-2"]

    with contextlib.suppress(ExceptionGroup, httpx.HTTPError):  # the clients find nobody to say goodbye to
        asyncio.run(body())
    assert len(Purse.closed) == 3


@pytest.mark.parametrize("way", ["eof", "sigterm", "sigterm in a call", "kill"])
def test_a_program_over_stdio_closes_its_environment_however_its_client_goes(way, tmp_path):
    log = tmp_path / "log"

    async def body():
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *PURSE,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={**os.environ, "PURSE_LOG": str(log)},
        )
        initialized = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        for message in (INITIALIZE, initialized, call("add", coins=2)):
            process.stdin.write(json.dumps(message).encode() + b"\n")
        answers = [json.loads(await asyncio.wait_for(process.stdout.readline(), 60)) for _ in range(2)]
        assert answers[1]["result"]["content"][0]["text"] == "it holds 2"
        if way == "eof":
            process.stdin.close()
        elif way.startswith("sigterm"):
            if way == "sigterm in a call":
                process.stdin.write(json.dumps(call("sleep", seconds=3600)).encode() + b"\n")
                await asyncio.sleep(1.0)
            process.send_signal(signal.SIGTERM)
        else:
            process.stdin.transport.abort()
            process.stdout._transport.close()
        await asyncio.wait_for(process.wait(), 20)

    asyncio.run(body())
    assert log.read_text() == "closed three 2\n"


def test_the_caller_cleans_up_after_a_signal_over_stdio():
    program = """
import asyncio, contextlib, os, sys
from purse import TASKS, Purse, serve_environment

@contextlib.asynccontextmanager
async def around():
    yield
    print("cleaned up", file=sys.stderr, flush=True)

async def main():
    async with around():
        still_reading = await serve_environment(Purse, TASKS)
    os._exit(0 if still_reading else 1)

asyncio.run(main())
"""

    async def body():
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, stdin=pipe, stdout=pipe, stderr=pipe, cwd=HERE
        )
        process.stdin.write(json.dumps(INITIALIZE).encode() + b"\n")
        await asyncio.wait_for(process.stdout.readline(), 60)
        process.send_signal(signal.SIGTERM)
        said = await asyncio.wait_for(process.stderr.read(), 20)
        assert (await process.wait(), said) == (0, b"cleaned up\n")

    asyncio.run(body())


def test_unknown_tasks_and_no_tasks_are_refused_before_anything_starts():
    with pytest.raises(NoSuchTask, match="no task 'nix' is served here"):
        asyncio.run(serve_environment(Purse, TASKS, task="nix"))
    with pytest.raises(NoSuchTask, match="there is no task to serve"):
        asyncio.run(serve_environment(Purse, [], transport="http"))
