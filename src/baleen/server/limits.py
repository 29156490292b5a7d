"""What stands before every endpoint: the key, the size of a body, and the gate that pauses and drains.

One plain ASGI layer, because a stream passes it with every event.
"""

from __future__ import annotations

import asyncio
import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from baleen.server.errors import ApiError
from baleen.server.metrics import Metrics
from baleen.server.settings import ServerSettings
from baleen.server.wire import JsonResponse

OPEN_PATHS = ("/", "/health")
"""What needs no key: a page that holds nothing secret, and the question whether the server lives."""


class Gate:
    """Whether new requests may begin, and how many run."""

    def __init__(self) -> None:
        self.draining = False
        self.paused = False
        self.running = 0
        self._empty = asyncio.Event()

    def admit(self) -> None:
        """Raises 503 while nothing may begin."""
        if self.draining:
            raise ApiError(503, "the server is shutting down and takes no new requests", code="draining")
        if self.paused:
            raise ApiError(503, "the engine is paused for its trainer; try again soon", code="paused")

    async def drained(self, seconds: float) -> bool:
        """Lets nothing new begin, and waits until the last request is answered; False when they took too long."""
        self.draining = True
        self._empty.clear()
        if not self.running:
            return True
        try:
            await asyncio.wait_for(self._empty.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def enter(self) -> None:
        """A request begins."""
        self.running += 1

    def leave(self) -> None:
        """A request is answered."""
        self.running -= 1
        if not self.running:
            self._empty.set()


class Limits:
    """The layer itself."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, gate: Gate, metrics: Metrics) -> None:
        self.app, self.settings, self.gate, self.metrics = app, settings, gate, metrics
        self._key = settings.api_key.encode() if settings.api_key is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self.gate.enter()
        try:
            if (refusal := self._refusal(scope)) is not None:
                response = JsonResponse(refusal.body(), refusal.status_code, refusal.headers)
                await response(scope, receive, noting)
            else:
                await self.app(scope, _bounded(receive, self.settings.max_body_bytes), noting)
        finally:
            self.gate.leave()
            # The route, not the path as it came: a caller could otherwise make a series per request.
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, str(status)).inc()

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        if self._key is not None and scope["path"] not in OPEN_PATHS:
            # Headers are read as Latin-1, so that this gives back the bytes that came.
            scheme, _, key = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(key.strip().encode("latin-1"), self._key):
                return ApiError(401, "give the API key as `Authorization: Bearer KEY`", code="invalid_api_key")
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.settings.max_body_bytes:
            return _too_large(self.settings.max_body_bytes)
        return None


def _bounded(receive: Receive, limit: int) -> Receive:
    """`receive` that raises 413 when the body, told or not how long, grows beyond `limit`."""
    taken = 0

    async def bounded() -> Message:
        nonlocal taken
        message = await receive()
        if message["type"] == "http.request":
            taken += len(message.get("body", b""))
            if taken > limit:
                raise _too_large(limit)
        return message

    return bounded


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body is larger than {limit} bytes", code="body_too_large")
