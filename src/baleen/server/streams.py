"""The engine's streams of one request, read together.

While an answer is written to a slow client, tokens go on arriving; whatever waits is taken at once, so that a client
gets few large events rather than many late ones. Whoever opened the streams closes them: that frees their pages. A
request has one deadline, kept here for every kind of answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

from baleen.engine.params import SamplingParams
from baleen.engine.service import Chunk, Service, ServiceClosed, Stream
from baleen.server.errors import RequestTimeout


class Arrivals:
    """Submits one sequence for each of `requests` and collects what they bring. All are accepted, or none runs."""

    def __init__(
        self, service: Service, requests: Sequence[tuple[Sequence[int], SamplingParams]], seconds: float
    ) -> None:
        self._seconds, self._expired = seconds, False
        self._streams: list[Stream] = []
        self._waiting: dict[int, list[Chunk]] = {}
        self._news = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._deadline = asyncio.get_running_loop().call_later(seconds, self._expire)
        try:
            for prompt, params in requests:
                self._streams.append(service.submit(prompt, params))
        except BaseException:
            self.close()
            raise
        self._tasks = [asyncio.ensure_future(self._read(index)) for index in range(len(self._streams))]

    async def take(self) -> Iterator[tuple[int, Chunk]]:
        """What waits, at least one chunk: each stream's index and its chunks as one. Raises what a stream raised."""
        while not self._waiting:
            if self._expired:
                raise RequestTimeout(self._seconds)
            for task in self._tasks:
                if task.done() and not task.cancelled() and (error := task.exception()):
                    raise error
            if all(task.done() for task in self._tasks):
                raise ServiceClosed("the engine ended a sequence without a reason")
            self._news.clear()
            await self._news.wait()
        waiting, self._waiting = self._waiting, {}
        return ((index, joined(chunks)) for index, chunks in waiting.items())

    def cancel(self, index: int) -> None:
        """Ends one stream."""
        self._streams[index].cancel()
        self._tasks[index].cancel()

    def close(self) -> None:
        """Ends all; safe at any time."""
        self._deadline.cancel()
        for stream in self._streams:
            stream.cancel()
        for task in self._tasks:
            task.cancel()

    def _expire(self) -> None:
        self._expired = True
        self._news.set()

    async def _read(self, index: int) -> None:
        try:
            async for chunk in self._streams[index]:
                self._waiting.setdefault(index, []).append(chunk)
                self._news.set()
        finally:
            self._news.set()


def joined(chunks: Sequence[Chunk]) -> Chunk:
    """Several chunks of a stream as one."""
    if len(chunks) == 1:
        return chunks[0]
    last = chunks[-1]
    return Chunk(
        tokens=tuple(token for chunk in chunks for token in chunk.tokens),
        logprobs=tuple(value for chunk in chunks for value in chunk.logprobs),
        top=tuple(row for chunk in chunks for row in chunk.top),
        finish_reason=last.finish_reason,
        generation=last.generation,
    )
