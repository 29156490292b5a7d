"""Any MCP server as tools: one session with it, its tools as specs, its answers as tool messages.

The SDK's transports are built on cancel scopes, which must be left by the task that entered them. So a session lives in
a task of its own, from connecting to leaving; `call` may come from any task, and many sessions may be open at a time.

    async with McpTools.stdio("python", ["server.py"]) as tools:
        tools.specs;  await tools.call(call)

A session speaks the handshake protocol when the server does: there a server keeps something for each session, which is
what an environment needs. Servers that know only the sessionless protocol of 2026 are spoken to in that.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import os
import re
import ssl
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, Self, TypeVar

import anyio
import httpx2
import pydantic_core
from mcp import Client, MCPError, StdioServerParameters, stdio_client, types
from mcp.client.streamable_http import streamable_http_client
from mcp.types import jsonrpc

from baleen.agent.environment import InfrastructureError
from baleen.agent.mcp.content import callable_names, content_text, resource_text, result_text, tool_spec
from baleen.chat.messages import Message, ToolCall, ToolSpec

CALL_SECONDS = 60.0
OPEN_SECONDS = 60.0
"""A server that is a program may have to be started twice, and fetched before."""

LEAVE_SECONDS = 10.0
"""Longer than the SDK takes to end a process that does not want to: 2 s each for asking, terminating and killing."""

LONGEST_RESULT = 50_000
"""Characters of one answer that reach the model."""

SERVER_FAULTS = (jsonrpc.INTERNAL_ERROR, jsonrpc.INVALID_REQUEST, jsonrpc.PARSE_ERROR, 0)
"""Codes of errors that no model causes, a session that the server has forgotten among them (`INVALID_REQUEST`). The
SDK's servers say 0 for an exception that nobody caught."""

LAST_WORDS = 2000
"""Bytes of a program's standard error that are kept, for when it is gone."""

PIPE_BYTES = 65_536
"""A pipe's capacity on Linux: one reading of this size takes all that a program left in it."""

MOST_PAGES = 100
"""Pages of a tool listing. A server whose listing never ends is broken."""

ROLE_KEY = "baleen/role"
"""In a prompt's text, the message's role where MCP has no word for it (system, developer, tool)."""

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class StdioServer:
    """A server that is a program, spoken to over its standard input and output."""

    command: str
    arguments: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Added to HOME, LOGNAME, PATH, SHELL, TERM and USER. Nothing else of this process's environment is passed on."""

    folder: str | None = None
    """The working directory."""


@dataclass(frozen=True)
class HttpServer:
    """A server that listens, spoken to over streamable HTTP."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


McpServer = StdioServer | HttpServer


class McpTools:
    """One session with one server. `specs` are its tools as they were when the session opened."""

    def __init__(
        self,
        server: McpServer,
        *,
        call_seconds: float = CALL_SECONDS,
        open_seconds: float = OPEN_SECONDS,
        longest_result: int = LONGEST_RESULT,
    ) -> None:
        self.server = server
        self.specs: list[ToolSpec] = []
        self._call_seconds, self._open_seconds, self._longest = call_seconds, open_seconds, longest_result
        self._names: dict[str, str] = {}
        self._client: Client | None = None
        self._session: asyncio.Task[None] | None = None
        self._leave = asyncio.Event()
        self._last_words: _LastWords | None = None

    @classmethod
    def stdio(
        cls, command: str, args: Sequence[str] = (), env: Mapping[str, str] | None = None, **limits: Any
    ) -> McpTools:
        """Tools of the program `command`, started for this session. `limits` are the constructor's."""
        return cls(StdioServer(command, args, env or {}), **limits)

    @classmethod
    def http(cls, url: str, headers: Mapping[str, str] | None = None, **limits: Any) -> McpTools:
        """Tools of the server at `url`, in a session of its own. `limits` are the constructor's."""
        return cls(HttpServer(url, headers or {}), **limits)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Connects and asks for the tools. Raises `InfrastructureError` when that fails or takes too long."""
        if self._session is not None:
            raise RuntimeError("this session is open already; make a new McpTools for another one")
        self._leave.clear()
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._session = asyncio.create_task(self._live(ready), name=f"mcp session with {_name(self.server)}")
        try:
            await asyncio.wait({ready, self._session}, timeout=self._open_seconds, return_when="FIRST_COMPLETED")
            if not ready.done():
                reason = "it did not answer in time" if not self._session.done() else self._reason()
                raise InfrastructureError(f"cannot open a session with {_name(self.server)}: {reason}")
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Leaves the session and ends a server that it started. May be called twice, and from any task."""
        session, was_open = self._session, self._client is not None
        self._session = self._client = None
        if session is not None:
            self._leave.set()
            if was_open:
                await asyncio.wait({session}, timeout=LEAVE_SECONDS)
            session.cancel()
            await asyncio.wait({session}, timeout=LEAVE_SECONDS)
            if session.done() and not session.cancelled():
                session.exception()  # it was told to whom it concerned
        if self._last_words is not None:
            self._last_words.close()
            self._last_words = None

    async def call(self, call: ToolCall) -> Message:
        """Runs one call. What the model got wrong, a tool's own failure and a call that takes too long are answered
        `error: ...`; raises `InfrastructureError` when the server is gone or broken."""
        return Message(role="tool", tool_call_id=call.id, name=call.function.name, content=await self._answer(call))

    async def read(self, uri: str) -> str:
        """The text of the server's resource `uri`. Raises `InfrastructureError` when it gives none."""
        given = await self._expect(f"its resource {uri}", _opened(self._client).read_resource(uri))
        return resource_text(given.contents)

    async def prompt(self, name: str | None = None) -> list[Message]:
        """The messages of the server's prompt `name`, by default its first. Raises `InfrastructureError` when there is
        none."""
        if name is None:
            listed = await self._expect("its prompts", _opened(self._client).list_prompts())
            if not listed.prompts:
                raise InfrastructureError(f"{_name(self.server)} offers no prompt")
            name = listed.prompts[0].name
        given = await self._expect(f"its prompt {name}", _opened(self._client).get_prompt(name))
        return [_message(one) for one in given.messages]

    async def _answer(self, call: ToolCall) -> str:
        name = call.function.name
        if name not in self._names:
            return f"error: unknown tool {name!r}; tools: {', '.join(self._names) or 'none'}"
        try:
            arguments = call.function.parsed()
        except (ValueError, RecursionError) as error:
            return f"error: {name}: arguments are not a JSON object: {error}"
        try:
            # As deep as the request will hold them. What fails here would fail in the SDK, and end the session.
            pydantic_core.to_json({"params": {"arguments": arguments}})
        except (ValueError, RecursionError) as error:
            return f"error: {name}: arguments cannot be sent: {error}"
        try:
            result = await self._ask(_opened(self._client).call_tool(self._names[name], arguments))
        except TimeoutError:
            return f"error: {name}: no answer within {self._call_seconds:g} s"
        except MCPError as error:
            if error.code in SERVER_FAULTS:
                raise InfrastructureError(f"{_name(self.server)} failed in {name}: {error.message}") from error
            return f"error: {name}: {error.message}"
        except InfrastructureError:
            raise
        except (RuntimeError, ValueError) as error:
            # The SDK's checks of a result against the protocol and against the tool's own output schema.
            raise InfrastructureError(f"{_name(self.server)} answered {name} wrongly: {error}") from error
        return result_text(result, self._longest)

    async def _expect(self, what: str, asking: Coroutine[Any, Any, Answer]) -> Answer:
        try:
            return await self._ask(asking)
        except InfrastructureError:
            raise
        except (TimeoutError, MCPError, RuntimeError, ValueError) as error:
            raise InfrastructureError(f"{_name(self.server)} did not give {what}: {error or 'no answer'}") from error

    async def _ask(self, asking: Coroutine[Any, Any, Answer]) -> Answer:
        """What the server answers. Raises `TimeoutError` after the call's time, and `InfrastructureError` as soon as
        the session ends."""
        session, request = self._session, asyncio.ensure_future(asking)
        assert session is not None
        try:
            await asyncio.wait({request, session}, timeout=self._call_seconds, return_when="FIRST_COMPLETED")
            if request.done():
                return request.result()
            if session.done():
                raise InfrastructureError(f"{_name(self.server)} is gone: {self._reason()}")
            raise TimeoutError
        except (anyio.ClosedResourceError, anyio.BrokenResourceError) as error:
            raise InfrastructureError(f"{_name(self.server)} is gone: {self._reason()}") from error
        except MCPError as error:
            if error.code != jsonrpc.CONNECTION_CLOSED:
                raise
            raise InfrastructureError(f"{_name(self.server)} is gone: {self._reason()}") from error
        finally:
            if not request.done():
                request.cancel()
                await asyncio.wait({request}, timeout=1.0)
            if request.done() and not request.cancelled():
                request.exception()  # it was raised above, or is not of interest any more

    async def _live(self, ready: asyncio.Future[None]) -> None:
        """The whole session, in one task."""
        async with AsyncExitStack() as stack:
            client = await self._connected(stack)
            listed = await _all_tools(client)
            self._names = callable_names([tool.name for tool in listed])
            self.specs = [tool_spec(tool, name) for tool, name in zip(listed, self._names, strict=True)]
            self._client = client
            ready.set_result(None)
            await self._leave.wait()

    async def _connected(self, stack: AsyncExitStack) -> Client:
        for mode in ("legacy", "auto"):
            attempt = AsyncExitStack()
            try:
                client = Client(await self._transport(attempt), mode=mode, client_info=_ourselves(), cache=None)
                await attempt.enter_async_context(client)
            except BaseException as error:
                await attempt.aclose()
                cause = _first(error)
                refused = isinstance(cause, MCPError) and cause.code == jsonrpc.UNSUPPORTED_PROTOCOL_VERSION
                if mode == "auto" or not refused:
                    raise
                continue
            stack.push_async_exit(attempt)
            return client
        raise AssertionError("the second attempt returns or raises")

    async def _transport(self, stack: AsyncExitStack) -> Any:
        if isinstance(self.server, HttpServer):
            # The call's own time is kept above; reading may take as long, and a stream may be silent between calls.
            timeout = httpx2.Timeout(self._open_seconds, read=max(300.0, 2 * self._call_seconds))
            http = await stack.enter_async_context(
                httpx2.AsyncClient(headers=dict(self.server.headers), timeout=timeout, verify=_tls())
            )
            return streamable_http_client(self.server.url, http_client=http)
        if self._last_words is None:
            self._last_words = _LastWords()
        parameters = StdioServerParameters(
            command=self.server.command,
            args=list(self.server.arguments),
            env=dict(self.server.environment),
            cwd=self.server.folder,
            encoding_error_handler="replace",
        )
        return stdio_client(parameters, errlog=self._last_words.writing)  # type: ignore[arg-type]

    def _reason(self) -> str:
        """Why the session ended, and the last line that its server wrote to its standard error."""
        session = self._session
        error = session.exception() if session is not None and session.done() and not session.cancelled() else None
        told = (str(_first(error)) or type(_first(error)).__name__) if error is not None else "the connection ended"
        if self._last_words is None:
            return _bare(told)
        line = self._last_words.line()
        return f"{told}; it last said: {line}" if line else told


class _LastWords:
    """A program's standard error, read as it comes so that it never waits; only the end is kept."""

    def __init__(self) -> None:
        self._reading, writing = os.pipe()
        os.set_blocking(self._reading, False)
        self.writing = os.fdopen(writing, "wb", buffering=0)
        self._kept = b""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._reading, self._read)

    def line(self) -> str:
        """The last line, empty when nothing was said."""
        self._read()
        lines = self._kept.decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""

    def close(self) -> None:
        """Whoever writes still finds a closed pipe."""
        self._loop.remove_reader(self._reading)
        os.close(self._reading)
        self.writing.close()

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._kept = (self._kept + os.read(self._reading, PIPE_BYTES))[-LAST_WORDS:]


async def _all_tools(client: Client) -> list[types.Tool]:
    """All pages of the listing; none for a server that has no tools."""
    if client.server_capabilities.tools is None:
        return []
    tools: list[types.Tool] = []
    cursor: str | None = None
    for _ in range(MOST_PAGES):
        page = await client.list_tools(cursor=cursor)
        tools += page.tools
        cursor = page.next_cursor
        if not cursor:  # some servers say the end with an empty one
            return tools
    raise InfrastructureError(f"its listing of tools has more than {MOST_PAGES} pages")


def _message(given: types.PromptMessage) -> Message:
    meta = getattr(given.content, "meta", None) or {}
    role: Literal["system", "user", "assistant"] = meta.get(ROLE_KEY, given.role)
    return Message(role=role, content=content_text(given.content))


@cache
def _tls() -> ssl.SSLContext:
    """One for all sessions: reading the certificates takes longer than everything else in opening one."""
    return httpx2.create_ssl_context()


def _opened(client: Client | None) -> Client:
    if client is None:
        raise InfrastructureError("the MCP session is not open; open it, or use `async with`")
    return client


def _first(error: BaseException) -> BaseException:
    """What lies behind groups of exceptions: the SDK runs its parts in task groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _name(server: McpServer) -> str:
    return f"the MCP server {_bare(server.url) if isinstance(server, HttpServer) else server.command}"


def _bare(text: str) -> str:
    """`text` with every URL in it cut to scheme, host and path: the rest may hold secrets, and errors are recorded."""
    return re.sub(r"(https?://)(?:[^/?#\s]*@)?([^?#\s'\"]*)(?:[?#][^\s'\"]*)?", r"\1\2", text, flags=re.IGNORECASE)


def _ourselves() -> types.Implementation:
    return types.Implementation(name="baleen", version=importlib.metadata.version("baleen"))
