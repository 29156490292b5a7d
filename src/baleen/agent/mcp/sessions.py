"""The HTTP side of a served environment: each session of the protocol has an episode of its own, from the client's
handshake until it leaves, or has been silent for too long.

The SDK's own session manager knows one server for all sessions and tells nobody when one ends, so the sessions are kept
here, on the SDK's transport. The sessionless protocol of 2026 is declined in the way that makes clients fall back to
the handshake: an episode is a state, and without sessions two clients would share it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import anyio
from mcp.server.streamable_http import MCP_SESSION_ID_HEADER, StreamableHTTPServerTransport
from mcp.server.transport_security import (
    RequestBodyLimitMiddleware,
    TransportSecurityMiddleware,
    TransportSecuritySettings,
)
from mcp.types import ErrorData, JSONRPCError, jsonrpc
from mcp.types.version import HANDSHAKE_PROTOCOL_VERSIONS
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from baleen.agent.mcp.handlers import episode_server
from baleen.agent.mcp.served import STEP_SECONDS, NoSuchTask, ServedEpisode

PATH = "/mcp"
TASK_HEADER = "baleen-task"
LARGEST_REQUEST = 4 * 2**20
"""Bytes of one request's body."""

LEAVE_SECONDS = 70.0
"""In which sessions end when the server does: longer than a `ServedEpisode` takes to close."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SessionLimits:
    """What clients may hold."""

    sessions: int = 256
    """At a time; one more is refused with 503."""

    idle_seconds: float = 600.0
    """A session without a request and without an open stream ends after this time: its client has vanished."""

    step_seconds: float = STEP_SECONDS
    """An environment that takes longer for one call hangs: the call fails, and the episode is not scored."""


@dataclass(frozen=True)
class _Session:
    transport: StreamableHTTPServerTransport
    running: asyncio.Task[None]


class EpisodeSessions:
    """An ASGI application at `/mcp`. `make_episode(id)` makes the episode of a chosen task, None for no choice, and
    raises `NoSuchTask` for an unknown one. `hosts` are the Host headers that are answered."""

    def __init__(
        self,
        make_episode: Callable[[str | None], ServedEpisode],
        task_ids: Sequence[str],
        limits: SessionLimits,
        hosts: Sequence[str],
    ) -> None:
        self._make_episode, self._task_ids, self._limits = make_episode, task_ids, limits
        self._sessions: dict[str, _Session] = {}
        self._closing = False
        settings = TransportSecuritySettings(
            allowed_hosts=[form for host in hosts for form in (host, f"{host}:*")],
            allowed_origins=[form for host in hosts for form in (f"http://{host}", f"http://{host}:*")],
        )
        self._security = TransportSecurityMiddleware(settings)
        self._bounded = RequestBodyLimitMiddleware(self._answer, LARGEST_REQUEST)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._bounded(scope, receive, send)

    async def close(self) -> None:
        """Ends all sessions and refuses new ones. May be called twice."""
        self._closing = True
        running = [session.running for session in self._sessions.values()]
        for session in list(self._sessions.values()):
            await session.transport.terminate()
        if running:
            _, slow = await asyncio.wait(running, timeout=LEAVE_SECONDS)
            for task in slow:
                task.cancel()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        refusal = await self._refusal(request)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        name = request.headers.get(MCP_SESSION_ID_HEADER)
        if name is not None:
            session = self._sessions.get(name)
            if session is None:
                await _error(404, jsonrpc.INVALID_REQUEST, "no such session; it has ended")(scope, receive, send)
            else:
                await session.transport.handle_request(scope, receive, send)
            return
        await self._begin(request, scope, receive, send)

    async def _refusal(self, request: Request) -> Response | None:
        if request.url.path.rstrip("/") != PATH:
            return _error(404, jsonrpc.INVALID_REQUEST, f"the environment is served at {PATH}")
        refusal = await self._security.validate_request(request, is_post=request.method == "POST")
        if refusal is not None:
            return refusal
        version = request.headers.get("mcp-protocol-version")
        if version is not None and version not in HANDSHAKE_PROTOCOL_VERSIONS:
            text = "an environment keeps a state for each session, so its clients must open one with initialize"
            data = {"supported": list(HANDSHAKE_PROTOCOL_VERSIONS), "requested": version}
            return _error(400, jsonrpc.UNSUPPORTED_PROTOCOL_VERSION, text, data)
        return None

    async def _begin(self, request: Request, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request without a session, which can only be the one that opens it."""
        refusal: Response | None = None
        if request.method != "POST":
            refusal = _error(400, jsonrpc.INVALID_REQUEST, "a session is opened by POST")
        elif self._closing or len(self._sessions) >= self._limits.sessions:
            refusal = _error(503, jsonrpc.INTERNAL_ERROR, f"all {self._limits.sessions} sessions are taken; try later")
        else:
            task_id = request.query_params.get("task") or request.headers.get(TASK_HEADER)
            try:
                episode = self._make_episode(task_id)
            except NoSuchTask as error:
                refusal = _error(404, jsonrpc.INVALID_PARAMS, str(error))
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        name = secrets.token_hex(16)
        transport = await self._open(name, episode)
        status = 500

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await transport.handle_request(scope, receive, note_status)
        finally:
            if status >= 400:
                await transport.terminate()

    async def _open(self, name: str, episode: ServedEpisode) -> StreamableHTTPServerTransport:
        # Plain JSON answers: nothing is said before a call's end, and event streams cost twice the time and a new
        # connection for every call.
        transport = StreamableHTTPServerTransport(
            mcp_session_id=name, is_json_response_enabled=True, idle_timeout=self._limits.idle_seconds
        )
        ready = asyncio.Event()
        running = asyncio.create_task(self._live(name, transport, episode, ready), name=f"mcp session {name}")
        self._sessions[name] = _Session(transport, running)
        waiting = asyncio.ensure_future(ready.wait())
        try:
            await asyncio.wait({waiting, running}, return_when="FIRST_COMPLETED")
        finally:
            waiting.cancel()
        if not ready.is_set():
            raise RuntimeError(f"the MCP session {name} did not start")  # why is in the log
        return transport

    async def _live(
        self, name: str, transport: StreamableHTTPServerTransport, episode: ServedEpisode, ready: asyncio.Event
    ) -> None:
        """The whole session. However it ends, its environment is closed."""
        try:
            async with transport.connect() as (reading, writing):
                ready.set()
                server = episode_server(episode, self._task_ids)
                with transport.idle_scope or anyio.CancelScope():
                    await server.run(reading, writing, server.create_initialization_options())
                await transport.terminate()
        except Exception:  # a broken session is logged; the other sessions must not hear of it
            logger.exception("the MCP session %s failed", name)
        finally:
            self._sessions.pop(name, None)
            try:
                await episode.close()
            except Exception:  # whatever an environment raises, the session has ended
                logger.exception("the environment of the MCP session %s did not close", name)


def _error(status: int, code: int, text: str, data: object = None) -> Response:
    body = JSONRPCError(jsonrpc="2.0", id=None, error=ErrorData(code=code, message=text, data=data))
    return Response(body.model_dump_json(exclude_unset=True), status, media_type="application/json")
