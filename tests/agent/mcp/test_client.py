"""Any MCP server as tools: servers written with the SDK, 2.x and 1.x, over stdio and HTTP."""

import asyncio
import json
import sys
import time

import pytest
from calls import tool_call
from foreign import HERE, SDKS, foreign_http_server
from mcp import Client, types
from mcp.server import Server

from baleen.agent.environment import InfrastructureError
from baleen.agent.mcp.client import HttpServer, McpTools, StdioServer, _all_tools
from baleen.agent.mcp.content import callable_names, result_text, tool_spec
from baleen.chat.messages import FunctionCall, ToolCall

FOREIGN = [str(HERE / "foreign_server.py"), "stdio"]


def foreign(python=sys.executable, **limits):
    return McpTools.stdio(python, FOREIGN, **limits)


async def said(tools, name, /, **arguments):
    call = tool_call(name, **arguments)
    message = await tools.call(call)
    assert (message.role, message.tool_call_id, message.name) == ("tool", call.id, name)
    return message.content


async def speak(tools):
    """What every server of the foreign kind must come through as."""
    specs = {spec.name: spec.function for spec in tools.specs}
    assert specs["echo"] == {
        "name": "echo",
        "description": "Says it again.",
        "parameters": {
            "type": "object",
            "properties": {
                "text": {"type": "string", "description": "what to say"},
                "times": {"type": "integer", "default": 1},
            },
            "required": ["text"],
        },
    }
    assert specs["place"]["parameters"]["properties"] == {"title": {"type": "string"}}
    assert await said(tools, "echo", text="wal ", times=2) == "wal wal "
    assert json.loads(await said(tools, "place", title="Grün")) == {"title": "Grün", "floor": 3}
    assert await said(tools, "picture") == "a dot\n[image: image/png, 13 bytes, not shown]"
    assert await said(tools, "odd_name_with_slash") == "odd"
    assert (await said(tools, "refuse")).startswith("error: ")
    assert "not on a Sunday" in await said(tools, "refuse")
    assert (await said(tools, "echo", text=1, loud=True)).startswith("error: ")
    assert await said(tools, "nothing") == f"error: unknown tool 'nothing'; tools: {', '.join(specs)}"
    broken = await tools.call(ToolCall(id="b", function=FunctionCall(name="echo", arguments="{")))
    assert broken.content.startswith("error: echo: arguments are not a JSON object")


@pytest.mark.parametrize("python", SDKS)
def test_a_program_becomes_tools(python):
    async def body():
        async with foreign(python) as tools:
            await speak(tools)

    asyncio.run(body())


@pytest.mark.parametrize("python", SDKS)
def test_a_listening_server_becomes_tools_and_its_death_is_an_infrastructure_error(python):
    async def body():
        async with foreign_http_server(python) as (url, process), McpTools.http(url) as tools:
            await speak(tools)
            process.kill()
            await process.wait()
            for _ in range(2):
                with pytest.raises(InfrastructureError, match=url):
                    await said(tools, "echo", text="anybody?")

    asyncio.run(body())


def test_sessions_of_programs_share_nothing_and_calls_of_one_session_run_together():
    async def body():
        async with foreign() as one, foreign() as other:
            assert [await said(one, "push", item="a"), await said(one, "push", item="b")] == ["a", "a,b"]
            assert await said(other, "push", item="c") == "c"
            began = time.monotonic()
            assert await asyncio.gather(*(said(one, "hang", seconds=1) for _ in range(12))) == ["at last"] * 12
            assert time.monotonic() - began < 10

    asyncio.run(body())


def test_a_call_that_takes_too_long_is_told_and_the_session_goes_on():
    async def body():
        async with foreign(call_seconds=2) as tools:
            assert await said(tools, "hang", seconds=60) == "error: hang: no answer within 2 s"
            assert await said(tools, "echo", text="still here") == "still here"

    asyncio.run(body())


def test_a_long_result_is_cut_and_says_by_how_much():
    async def body():
        async with foreign(longest_result=100) as tools:
            assert await said(tools, "long", characters=250) == "x" * 100 + "\n[cut here: 150 more characters]"

    asyncio.run(body())


def test_a_program_that_dies_is_an_infrastructure_error_with_its_last_words():
    async def body():
        async with foreign() as tools:
            with pytest.raises(InfrastructureError, match="dying of shame"):
                await said(tools, "die")
            with pytest.raises(InfrastructureError, match="is gone"):
                await said(tools, "echo", text="anybody?")

    asyncio.run(body())


@pytest.mark.parametrize(
    ("tools", "reason"),
    [
        (McpTools.stdio("/no/such/program"), "No such file"),
        (McpTools.stdio("/bin/sh", ["-c", "echo out of ink >&2; exit 3"]), "out of ink"),
        (McpTools.stdio("/bin/sleep", ["60"], open_seconds=0.3), "did not answer in time"),
        (McpTools.stdio("/bin/cat", open_seconds=5), "Method not found"),
        (McpTools.http("http://127.0.0.1:9/mcp"), "attempts failed"),
    ],
    ids=["missing", "failing", "silent", "echoing", "refused"],
)
def test_a_server_that_gives_no_session_is_an_infrastructure_error(tools, reason):
    async def body():
        with pytest.raises(InfrastructureError, match=reason):
            await tools.open()
        await tools.close()

    asyncio.run(body())


def test_a_session_may_be_opened_used_and_closed_by_three_tasks():
    async def body():
        tools = foreign()
        await asyncio.create_task(tools.open())
        assert await asyncio.create_task(said(tools, "echo", text="x")) == "x"
        await asyncio.create_task(tools.close())
        await tools.close()
        with pytest.raises(InfrastructureError, match="not open"):
            await said(tools, "echo", text="x")

    asyncio.run(body())


def test_a_cancelled_caller_leaves_the_session_whole():
    async def body():
        async with foreign() as tools:
            waiting = asyncio.create_task(said(tools, "hang", seconds=60))
            await asyncio.sleep(0.3)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert await said(tools, "echo", text="x") == "x"

    asyncio.run(body())


@pytest.mark.parametrize(
    "value", ['"\\ud800"', "[" * 400 + "]" * 400, "[" * 253 + "]" * 253, "[" * 100_000 + "]" * 100_000]
)
def test_arguments_that_cannot_be_sent_are_the_models_error_and_the_session_goes_on(value):
    async def body():
        async with foreign() as tools:
            function = FunctionCall(name="echo", arguments=f'{{"text": {value}}}')
            assert (await tools.call(ToolCall(id="b", function=function))).content.startswith("error: echo: arguments ")
            assert await said(tools, "echo", text="x") == "x"

    asyncio.run(body())


def test_a_program_that_never_stops_complaining_is_served_and_its_last_words_are_kept():
    loud = "import os, sys; [os.write(2, b'x' * 99999 + b'\\n') for _ in range(50)]; os.write(2, b'the end\\n')"

    async def body():
        tools = McpTools.stdio(sys.executable, ["-c", loud])
        with pytest.raises(InfrastructureError, match=r"it last said: the end$"):
            await tools.open()

    asyncio.run(body())


def test_the_secrets_of_a_server_are_in_no_error_and_no_repr():
    url = "http://user:sesame@127.0.0.1:9/mcp?api_key=sesame#sesame"

    async def body():
        with pytest.raises(InfrastructureError, match=r"http://127\.0\.0\.1:9/mcp") as raised:
            await McpTools.http(url).open()
        assert "sesame" not in str(raised.value)

    asyncio.run(body())
    assert "sesame" not in repr(HttpServer("http://a/mcp", {"authorization": "sesame"}))
    assert "sesame" not in repr(StdioServer("a", environment={"KEY": "sesame"}))


def test_an_empty_cursor_ends_the_listing():
    async def list_tools(_, __):
        return types.ListToolsResult(tools=[types.Tool(name="a", input_schema={"type": "object"})], next_cursor="")

    async def body():
        async with Client(Server("empty", on_list_tools=list_tools), cache=None) as client:
            assert [tool.name for tool in await _all_tools(client)] == ["a"]

    asyncio.run(body())


def test_a_program_sees_only_the_environment_that_is_given(monkeypatch):
    monkeypatch.setenv("A_SECRET", "42")
    script = "import os, sys; sys.stderr.write(repr((os.environ.get('A_SECRET'), os.environ.get('GIVEN'))))"

    async def body():
        with pytest.raises(InfrastructureError, match=r"\(None, 'yes'\)"):
            await McpTools.stdio(sys.executable, ["-c", script], {"GIVEN": "yes"}).open()

    asyncio.run(body())


def test_a_spec_is_compact_and_keeps_what_means_something():
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "T",
        "type": "object",
        "properties": {"title": {"title": "Title", "type": "string", "description": "", "enum": ["title"]}},
        "$defs": {"title": {"type": "object", "additionalProperties": False, "title": "x"}},
        "additionalProperties": False,
    }
    spec = tool_spec(types.Tool(name="a.b", title="A thing", input_schema=schema), "a_b")
    assert spec.function == {
        "name": "a_b",
        "description": "A thing",
        "parameters": {
            "type": "object",
            "properties": {"title": {"type": "string", "enum": ["title"]}},
            "$defs": {"title": {"type": "object", "additionalProperties": False}},
        },
    }


def test_names_become_callable_and_stay_apart():
    given = callable_names(["a.b", "a/b", "a_b", "x" * 80, "x" * 90])
    assert list(given) == ["a_b", "a_b_2", "a_b_3", "x" * 64, "x" * 62 + "_2"]
    assert list(given.values()) == ["a.b", "a/b", "a_b", "x" * 80, "x" * 90]


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ({"content": [], "structuredContent": {"a": 1}}, '{"a":1}'),
        ({"content": [{"type": "text", "text": '{"a": 1}'}], "structuredContent": {"a": 1}}, '{"a": 1}'),
        ({"content": [{"type": "text", "text": "one a"}], "structuredContent": {"a": 1}}, 'one a\n{"a":1}'),
        ({"content": [{"type": "text", "text": "5"}], "structuredContent": {"result": 5}}, "5"),
        ({"content": [{"type": "text", "text": "15"}], "structuredContent": {"result": 5}}, '15\n{"result":5}'),
        ({"content": [{"type": "text", "text": "so: yes"}], "structuredContent": {"result": "yes"}}, "so: yes"),
        ({"content": [{"type": "text", "text": "done"}], "structuredContent": {"result": [7]}}, 'done\n{"result":[7]}'),
        (
            {
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": '{\n "b": 1}'}],
                "structuredContent": {"result": ["a", {"b": 1}]},
            },
            'a\n{\n "b": 1}',
        ),
        (
            {"content": [{"type": "audio", "data": "QUJD", "mimeType": "audio/wav"}]},
            "[audio: audio/wav, 3 bytes, not shown]",
        ),
        ({"content": [{"type": "resource_link", "name": "n", "uri": "file:///n"}]}, "[resource n: file:///n]"),
        ({"content": [{"type": "resource", "resource": {"uri": "a:b", "text": "hi"}}]}, "hi"),
        (
            {"content": [{"type": "resource", "resource": {"uri": "a:b", "blob": "QUI="}}]},
            "[resource a:b: unknown type, 2 bytes, not shown]",
        ),
        ({"content": [], "isError": True}, "error: the tool failed without a word"),
        ({"content": [{"type": "text", "text": "error: no"}], "isError": True}, "error: no"),
        ({"content": [{"type": "text", "text": "no"}], "isError": True}, "error: no"),
    ],
)
def test_every_kind_of_result_has_a_text(result, text):
    assert result_text(types.CallToolResult.model_validate(result), 1000) == text
