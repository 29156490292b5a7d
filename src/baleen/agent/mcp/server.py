"""Any environment here as an MCP server, over standard input and output or streamable HTTP.

A session is an episode: it has an environment and a task of its own. Over stdio the process is the session, and its
task is the argument `task`; over HTTP each client opens sessions, and names the task in the URL (`/mcp?task=ID`) or in
the header `Baleen-Task`. Without a choice it is the first. The task's opening is the session's one prompt, the verdict
is read from `episode://reward?answer=...` (`handlers.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Literal

import uvicorn
from mcp.server.stdio import stdio_server

from baleen.agent.mcp.handlers import episode_server
from baleen.agent.mcp.served import MakeEnvironment, ServedEpisode, chosen
from baleen.agent.mcp.sessions import PATH, EpisodeSessions, SessionLimits
from baleen.agent.task import Task

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def serve_environment(
    make_environment: MakeEnvironment,
    tasks: Sequence[Task],
    *,
    transport: Literal["stdio", "http"] = "stdio",
    task: str | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    hosts: Sequence[str] = (),
    limits: SessionLimits | None = None,
    started: Callable[[str], None] | None = None,
) -> bool:
    """Serves `tasks` until the client leaves (stdio) or a SIGTERM or SIGINT comes; every environment is closed then.

    Returns whether standard input is still being read: a signal came over stdio, and nothing can wake the SDK's thread
    that reads. Python would wait for it, so the caller cleans up and leaves by `os._exit`.

    `port` 0 takes a free one; `started` hears the URL. `hosts` are Host headers to answer besides the loopback's and
    `host`. `task` alone is served where it is given. Raises `NoSuchTask` when it is not among `tasks`, and
    `OSError` for a port that is taken.
    """
    by_id = {each.id: each for each in tasks}
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, asked.set)
    try:
        if transport == "stdio":
            episode = ServedEpisode(chosen(by_id, task), make_environment, (limits or SessionLimits()).step_seconds)
            return await _serve_stdio(episode, list(by_id), asked)
        served = [chosen(by_id, task)] if task is not None else tasks
        async with serving(make_environment, served, host=host, port=port, hosts=hosts, limits=limits) as url:
            if started is not None:
                started(url)
            await asked.wait()
        return False
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)


@contextlib.asynccontextmanager
async def serving(
    make_environment: MakeEnvironment,
    tasks: Sequence[Task],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    hosts: Sequence[str] = (),
    limits: SessionLimits | None = None,
) -> AsyncIterator[str]:
    """The HTTP server beside whatever else this event loop does: gives its URL, and ends with all sessions."""
    by_id = {task.id: task for task in tasks}
    chosen(by_id, None)
    limits = limits or SessionLimits()

    def make_episode(task_id: str | None) -> ServedEpisode:
        return ServedEpisode(chosen(by_id, task_id), make_environment, limits.step_seconds)

    named = f"[{host}]" if ":" in host else host
    sessions = EpisodeSessions(make_episode, list(by_id), limits, (*LOOPBACK, named, *hosts))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family, backlog=1024) as listening:
        config = uvicorn.Config(
            sessions,
            lifespan="off",
            ws="none",
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            timeout_graceful_shutdown=2,
        )
        server = _EmbeddedServer(config)
        running = asyncio.ensure_future(server.serve(sockets=[listening]))
        try:
            while not server.started and not running.done():
                await asyncio.sleep(0.01)
            if running.done():
                await running  # it could not start, and says why
            yield f"http://{named}:{listening.getsockname()[1]}{PATH}"
        finally:
            try:
                await sessions.close()
            finally:
                server.should_exit = True
                await running


class _EmbeddedServer(uvicorn.Server):
    """uvicorn without its signal handlers: the sessions have to end before it does."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ours are in `serve_environment`."""
        yield


async def _serve_stdio(episode: ServedEpisode, task_ids: Sequence[str], asked: asyncio.Event) -> bool:
    server = episode_server(episode, task_ids)

    async def talk() -> None:
        async with stdio_server() as (reading, writing):
            await server.run(reading, writing, server.create_initialization_options())

    talking, stopping = asyncio.ensure_future(talk()), asyncio.ensure_future(asked.wait())
    try:
        await asyncio.wait({talking, stopping}, return_when="FIRST_COMPLETED")
    finally:
        stopping.cancel()
        interrupted = not talking.done()
        talking.cancel()
        await episode.close()
    if not interrupted:
        await talking
    return interrupted
