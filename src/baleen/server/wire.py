"""Bytes on the wire: JSON, server-sent events, and noticing that the client has left.

A step of the engine brings tokens for many streams every millisecond, so an event is a constant prefix around the few
fields that change, and everything that waits goes out in one piece.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"


def json_text(value: Any) -> str:
    """Compact JSON. Raises `ValueError` for NaN and infinities, which JSON has not."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def json_bytes(value: Any) -> bytes:
    """Compact JSON in UTF-8. Half a surrogate pair, which JSON can escape but UTF-8 cannot hold, becomes `?`."""
    return json_text(value).encode("utf-8", "replace")


def event(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + json_bytes(value) + b"\n\n"


class EventForm:
    """Writes the chunks of one choice: all that never changes is written once."""

    def __init__(self, head: Mapping[str, Any], index: int, tail: Mapping[str, Any]) -> None:
        start = json_text({**head, "choices": [{"index": index}]})
        end = "".join(f",{json_text(key)}:{json_text(value)}" for key, value in tail.items())
        self._before = f"data: {start[:-3]},"  # without the }]} that closes choice, list and chunk
        self._after = f"]{end}}}\n\n"

    def write(self, fields: Mapping[str, Any]) -> bytes:
        """The event of a chunk whose choice holds `fields`."""
        return (self._before + json_text(fields)[1:] + self._after).encode("utf-8", "replace")


class JsonResponse(Response):
    """A JSON body."""

    media_type = "application/json"

    def __init__(self, content: Any, status_code: int = 200, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(json_bytes(content), status_code, headers)


class EventStream(Response):
    """A body of server-sent events. At its end, or as soon as the client leaves, `close` is called: a source that was
    never started could not do it itself."""

    media_type = "text/event-stream"

    def __init__(
        self, source: AsyncIterator[bytes], close: Callable[[], None], headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(None, 200, {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self.source, self.close = source, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def pump() -> None:
            async for piece in self.source:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await until_gone(receive, pump())
        finally:
            self.close()


async def while_connected(request: Request, work: Awaitable[T]) -> T | None:
    """The result of `work`; None, and `work` cancelled, when the client leaves first. The body must be read."""
    return await until_gone(request.receive, work)


async def until_gone(receive: Receive, work: Awaitable[T]) -> T | None:
    """`while_connected` on the bare channel."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
