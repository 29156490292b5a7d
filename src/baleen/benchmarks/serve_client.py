"""The load generator's HTTP: requests over raw asyncio streams, so light that the server is what is measured.

It speaks no more of HTTP/1.1 than the server does: one request per connection, an answer of a told length or in chunks,
server-sent events in those. An event costs it a few microseconds, where a client library takes a few hundred.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

READ_BYTES = 1 << 16
EVENT_END = b"\n\n"
EVENT_START = b"data: "
DONE = b"[DONE]"


class Refused(RuntimeError):
    """An answer with another status than 200."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"HTTP {status}: {body[:200].decode(errors='replace')}")
        self.status = status


class BrokenAnswer(RuntimeError):
    """The connection ended before the answer did."""


@dataclass(frozen=True)
class Address:
    """Where a server listens."""

    host: str
    port: int


COMPLETIONS = "POST /v1/completions"


async def get(address: Address, path: str) -> bytes:
    """The body of a GET. Raises `Refused`, `BrokenAnswer`."""
    return b"".join([piece async for piece in _body(address, f"GET {path}", b"")])


async def complete(address: Address, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The whole answer of `/v1/completions`. Raises as `get`."""
    body = json.dumps(fields).encode()
    answer: dict[str, Any] = json.loads(b"".join([piece async for piece in _body(address, COMPLETIONS, body)]))
    return answer


async def events(address: Address, fields: Mapping[str, Any]) -> AsyncGenerator[tuple[float, list[bytes]]]:
    """What a streamed answer of `/v1/completions` brings: the time (`perf_counter`) and the events that came then, the
    last of them `[DONE]`. Closing the iterator closes the connection. Raises as `get`."""
    body = json.dumps({**fields, "stream": True}).encode()
    rest = b""
    async with contextlib.aclosing(_body(address, COMPLETIONS, body)) as pieces:
        async for piece in pieces:
            *whole, rest = (rest + piece).split(EVENT_END)
            if whole:
                yield time.perf_counter(), [event.removeprefix(EVENT_START) for event in whole]


def choice_of(event: bytes) -> dict[str, Any]:
    """The choice in an event; an empty one in `[DONE]` and the usage. Raises `BrokenAnswer` for an error."""
    if event == DONE:
        return {}
    told = json.loads(event)
    if "choices" not in told:
        raise BrokenAnswer(f"the stream broke off: {event[:200].decode(errors='replace')}")
    choice: dict[str, Any] = (told["choices"] or [{}])[0]
    return choice


async def _body(address: Address, request: str, body: bytes) -> AsyncGenerator[bytes]:
    """The body of the answer, as it comes."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        head = f"{request} HTTP/1.1\r\nHost: {address.host}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        status, headers = _read_head(await reader.readuntil(b"\r\n\r\n"))
        if headers.get("transfer-encoding") == "chunked":
            pieces = _chunked(reader)
        else:
            pieces = _one_piece(await reader.readexactly(int(headers["content-length"])))
        if status != 200:
            raise Refused(status, b"".join([piece async for piece in pieces]))
        async for piece in pieces:
            yield piece
    except asyncio.IncompleteReadError as error:
        raise BrokenAnswer(f"the server closed the connection after {len(error.partial)} bytes more") from error
    finally:
        writer.transport.abort()


def _read_head(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("latin-1").rstrip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(first.split()[1]), headers


async def _one_piece(body: bytes) -> AsyncGenerator[bytes]:
    yield body


async def _chunked(reader: asyncio.StreamReader) -> AsyncGenerator[bytes]:
    """The data of a chunked body: one piece for all chunks that one read brought whole."""
    buffer = b""
    while True:
        data: list[bytes] = []
        position = 0
        while (line_end := buffer.find(b"\r\n", position)) >= 0:
            size = int(buffer[position:line_end], 16)
            if len(buffer) < line_end + size + 4:
                break
            if size == 0:
                if data:
                    yield b"".join(data)
                return
            data.append(buffer[line_end + 2 : line_end + 2 + size])
            position = line_end + size + 4
        buffer = buffer[position:]
        if data:
            yield b"".join(data)
        more = await reader.read(READ_BYTES)
        if not more:
            raise asyncio.IncompleteReadError(buffer, None)
        buffer += more
