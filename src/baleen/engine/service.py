"""The engine in a process of its own, seen from asyncio: requests go out, streams of tokens come back.

Steps and HTTP would otherwise fight for one interpreter lock. The two processes speak in small tuples over a pipe; the
engine's side is `worker.py`. One message brings what every stream got in a few milliseconds.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import signal
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from baleen.engine.params import EngineError, EngineOptions, SamplingParams
from baleen.engine.sequence import Alternatives, FinishReason, Generation

PauseMode = Literal["wait", "abort", "keep"]


class ServiceClosed(RuntimeError):
    """The engine is gone, and with it all that ran."""


class QueueFull(RuntimeError):
    """As many requests wait as may wait."""


@dataclass(frozen=True)
class ModelInfo:
    """What the engine says of itself when it has loaded."""

    max_tokens: int
    vocab_size: int
    stop_ids: frozenset[int]
    memory_bytes: int
    """What the cache may take."""

    form: str
    """How layers run: `compiled loops` or `torch`."""

    version: int = 0
    """The weights' version."""


@dataclass(frozen=True)
class Chunk:
    """What one message brings one stream. The last one has a finish reason and the whole generation."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    top: tuple[Alternatives, ...] = ()
    finish_reason: FinishReason | None = None
    generation: Generation | None = None


class Stream:
    """The tokens of one request as they come: an asynchronous iterator of `Chunk`, which ends after the last one."""

    def __init__(self, service: Service, number: int) -> None:
        self._service, self._number = service, number
        self._chunks: deque[Chunk | BaseException] = deque()
        self._news: asyncio.Future[None] | None = None
        self._over = False
        self.started = False

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Chunk:
        while not self._chunks:
            if self._over:
                raise StopAsyncIteration
            self._news = asyncio.get_running_loop().create_future()
            await self._news
        chunk = self._chunks.popleft()
        if isinstance(chunk, BaseException):
            raise chunk
        return chunk

    def cancel(self) -> None:
        """Ends the request, if it runs still; its pages are free."""
        if not self._over:
            self._over = True
            self._service._forget(self._number)
            self._wake()

    def _push(self, chunk: Chunk | BaseException) -> None:
        self.started = True
        self._chunks.append(chunk)
        self._over = self._over or isinstance(chunk, BaseException) or chunk.finish_reason is not None
        self._wake()

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)


class Service:
    """The parent's side. Make one with `await Service.start(...)`."""

    info: ModelInfo

    def __init__(self, process: Any, connection: Connection, most: int) -> None:
        self._process, self._connection, self._most = process, connection, most
        self._numbers = itertools.count()
        self._streams: dict[int, Stream] = {}
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(connection.fileno(), self._read)

    @classmethod
    async def start(cls, path: Path, options: EngineOptions, *, max_waiting: int) -> Service:
        """Loads the model in `path` into a new process. Raises what loading raises."""
        from baleen.engine.worker import work

        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=work, args=(there, Path(path), options), name="baleen-engine", daemon=True)
        process.start()
        there.close()
        service = cls(process, here, options.max_running + max_waiting)
        ready: asyncio.Future[Any] = service._loop.create_future()
        service._calls[-1] = ready
        try:
            service.info = await ready
        except BaseException:
            await service.close()
            raise
        return service

    def submit(self, prompt: Sequence[int], params: SamplingParams) -> Stream:
        """Begins a request. Raises `EngineError` when it can never run, `QueueFull`, `ServiceClosed`."""
        if self._closed:
            raise ServiceClosed("the engine has stopped")
        if not prompt:
            raise EngineError("the prompt is empty: give at least one token")
        if len(prompt) >= self.info.max_tokens:
            raise EngineError(
                f"a prompt of {len(prompt)} tokens does not fit the context of {self.info.max_tokens}, "
                "which holds at least one answering token too"
            )
        if len(self._streams) >= self._most:
            raise QueueFull(f"{len(self._streams)} requests run and wait, and no more may")
        number = next(self._numbers)
        stream = self._streams[number] = Stream(self, number)
        self._send("submit", number, list(prompt), params)
        return stream

    async def stats(self) -> dict[str, float]:
        """The engine's counts."""
        return dict(await self._ask("stats"))

    async def pause(self, mode: PauseMode = "wait") -> None:
        """Stops the engine: `wait` lets running requests end first, `abort` ends all of them now, `keep` leaves them
        where they are."""
        await self._ask("pause", mode)

    async def resume(self) -> None:
        """Goes on."""
        await self._ask("resume")

    async def update_weights(self, path: Path) -> int:
        """Reads the weights in `path`; the new version. Only while paused or idle (`EngineError`). Raises what loading
        raises."""
        version = int(await self._ask("update_weights", Path(path)))
        self.info = replace(self.info, version=version)
        return version

    async def clear_cache(self) -> None:
        """Forgets every beginning that is cached."""
        await self._ask("clear_cache")

    async def close(self, drain_seconds: float = 0.0) -> None:
        """Ends the engine; running requests have `drain_seconds` to end by themselves."""
        until = self._loop.time() + drain_seconds
        while self._streams and not self._closed and self._loop.time() < until:
            await asyncio.sleep(0.02)
        self._lost(ServiceClosed("the engine was closed"))
        self._process.terminate()
        await self._loop.run_in_executor(None, self._process.join, 5)
        if self._process.is_alive():
            self._process.kill()
            await self._loop.run_in_executor(None, self._process.join)

    async def _ask(self, what: str, *values: Any) -> Any:
        if self._closed:
            raise ServiceClosed("the engine has stopped")
        number = next(self._numbers)
        answer = self._calls[number] = self._loop.create_future()
        self._send(what, number, *values)
        return await answer

    def _send(self, what: str, *values: Any) -> None:
        try:
            self._connection.send((what, *values))
        except OSError as error:
            self._lost(ServiceClosed(self._last_words()))
            raise ServiceClosed(self._last_words()) from error

    def _forget(self, number: int) -> None:
        if self._streams.pop(number, None) is not None and not self._closed:
            with suppress(ServiceClosed):
                self._send("cancel", number)

    def _read(self) -> None:
        """Takes what the engine's process has said."""
        try:
            while self._connection.poll():
                kind, value = self._connection.recv()
                if kind == "step":
                    for number, chunk in value:
                        self._bring(number, chunk)
                elif kind == "answer":
                    call = self._calls.pop(value[0], None)
                    if call is not None and not call.done():
                        (call.set_exception if isinstance(value[1], BaseException) else call.set_result)(value[1])
        except (EOFError, OSError):
            self._lost(ServiceClosed(self._last_words()))

    def _bring(self, number: int, chunk: Chunk | BaseException) -> None:
        stream = self._streams.get(number)
        if stream is not None:
            stream._push(chunk)
            if stream._over:
                del self._streams[number]

    def _lost(self, error: ServiceClosed) -> None:
        """Everything that waits is told."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._connection.fileno())
        self._connection.close()
        for stream in self._streams.values():
            stream._push(error)
        self._streams.clear()
        for call in self._calls.values():
            if not call.done():
                call.set_exception(error)
        self._calls.clear()

    def _last_words(self) -> str:
        self._process.join(timeout=1)
        code = self._process.exitcode
        if code is not None and code < 0:
            return f"the engine's process was ended by {signal.Signals(-code).name}; is there enough memory?"
        return f"the engine's process ended with status {code}"
