"""Our server on loopback over a scripted engine, in a thread, and OpenAI's own client before it."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import openai
import uvicorn
from fastapi import FastAPI
from scripted_service import ScriptedService

from baleen.server.app import build_app
from baleen.server.limits import Gate

MODEL = "tiny/whale"

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@dataclass
class Running:
    """A server that answers on `url`, in a thread of its own."""

    url: str
    app: FastAPI
    loop: asyncio.AbstractEventLoop
    clients: list = field(default_factory=list)

    @property
    def service(self) -> ScriptedService:
        return self.app.state.server.service

    @property
    def gate(self) -> Gate:
        return self.app.state.server.gate

    def begin(self, service):
        """A new test, with a service of its own."""
        self.app.state.server.service, self.app.state.server.tokenizer = service, service.tokenizer
        self.gate.draining = self.gate.paused = False

    def end(self):
        """Nothing of the test goes on."""
        while self.clients:
            self.clients.pop().close()
        self.wait_until(lambda: self.gate.running == 0)

    def openai(self, **changes):
        """OpenAI's client, which must not hide an error by trying again."""
        key = self.app.state.server.settings.api_key or "none"
        given = {"base_url": f"{self.url}/v1", "api_key": key, "max_retries": 0} | changes
        # Reading the system's certificates takes longer than a request, and here are none.
        self.clients.append(openai.OpenAI(**given, http_client=openai.DefaultHttpxClient(verify=False)))
        return self.clients[-1]

    def http(self):
        """A bare client."""
        self.clients.append(httpx.Client(base_url=self.url, timeout=30, verify=False))
        return self.clients[-1]

    def wait_until(self, condition, seconds=5.0):
        """Waits for what the server will do in its own time."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it did not happen in time"
            time.sleep(0.005)


@contextmanager
def running(settings):
    """Serves until the block ends."""
    ready = queue.Queue()

    async def serve():
        app = build_app(None, None, settings, MODEL)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1))
        task = asyncio.ensure_future(server.serve())
        while not server.started:
            await asyncio.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        ready.put((server, Running(f"http://127.0.0.1:{port}", app, asyncio.get_running_loop())))
        await task

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    server, found = ready.get(timeout=10)
    yield found
    server.should_exit = True
    thread.join(10)
