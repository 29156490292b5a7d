"""Runs the server in this process: loads the model into the engine's, listens, and ends without dropping anybody.

SIGTERM, or Ctrl-C, drains: new requests get 503, running ones may end within `drain_seconds`. A second signal ends at
once.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Awaitable, Iterator
from pathlib import Path

import uvicorn

from baleen.chat.tokenizer import Tokenizer
from baleen.engine.params import EngineOptions
from baleen.engine.service import Service
from baleen.server.app import build_app
from baleen.server.limits import Gate
from baleen.server.settings import ServerSettings

SIGNALS = (signal.SIGTERM, signal.SIGINT)

LAST_WORDS_SECONDS = 2
"""After draining, the time in which cut streams are told so."""


def serve(path: Path, settings: ServerSettings, options: EngineOptions) -> None:
    """Serves the model in the folder `path` until a signal comes. Raises what loading raises, before it listens."""
    asyncio.run(_serve(path, settings, options))


async def _serve(path: Path, settings: ServerSettings, options: EngineOptions) -> None:
    tokenizer = Tokenizer.load(path)
    listening = _listen(settings)
    with contextlib.closing(listening):
        service = await Service.start(path, options, max_waiting=settings.max_waiting)
        try:
            app = build_app(service, tokenizer, settings, settings.model_name or path.resolve().name)
            config = uvicorn.Config(
                app,
                lifespan="off",
                log_level="warning",
                access_log=False,
                timeout_graceful_shutdown=LAST_WORDS_SECONDS,
            )
            await run_until_drained(QuietServer(config), listening, app.state.server.gate, service, settings)
        finally:
            await service.close()


class QuietServer(uvicorn.Server):
    """uvicorn without its signal handlers: it would stop listening at once, and answer nobody that we are leaving."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ours are in `run_until_drained`."""
        yield


async def run_until_drained(
    server: uvicorn.Server, listening: socket.socket, gate: Gate, service: Service, settings: ServerSettings
) -> None:
    """Serves on `listening` until a signal has come and the running requests are answered, or their time is over."""
    asked, insisted = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, lambda: (insisted if asked.is_set() else asked).set())
    serving = asyncio.ensure_future(server.serve(sockets=[listening]))
    try:
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        if serving.done():
            await serving  # it could not start, and says why
            return
        host, port = listening.getsockname()[:2]
        print(f"baleen serves on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
        if await _first(asked.wait(), serving):
            await _first(gate.drained(settings.drain_seconds), insisted.wait())
        await service.close()
        server.should_exit = True
        await serving
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)


async def _first(*waits: Awaitable[object]) -> bool:
    """Waits for any one; whether it was the first named. The others go on."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    return tasks[0] in done


def _listen(settings: ServerSettings) -> socket.socket:
    """Takes the port before the model is loaded, so that a taken one is told at once."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    return socket.create_server((settings.host, settings.port), family=family, backlog=1024)
