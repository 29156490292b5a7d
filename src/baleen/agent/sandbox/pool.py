"""Sandboxes that are used again: each is taken as it was at its snapshot.

async with SandboxPool(limits, size=8) as pool:
    async with pool.take() as sandbox:
        await sandbox.run(...)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from baleen.agent.sandbox.launch import Tier
from baleen.agent.sandbox.limits import Limits, SandboxError
from baleen.agent.sandbox.session import Sandbox


class SandboxPool:
    """At most `size` sandboxes, started when first needed. `prepare` fills a new one before its snapshot.

    Use it within one event loop, as `async with`, or call `close`.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        size: int = 4,
        *,
        prepare: Callable[[Sandbox], Awaitable[None]] | None = None,
        allow_weak: bool = False,
        readable: Sequence[str | Path] = (),
        environment: Mapping[str, str] | None = None,
        tier: Tier | None = None,
    ) -> None:
        self._new = lambda: Sandbox(
            limits, allow_weak=allow_weak, readable=readable, environment=environment or {}, tier=tier
        )
        self._prepare = prepare
        self._idle: list[Sandbox] = []
        self._places = asyncio.Semaphore(size)
        self._closed = False

    async def __aenter__(self) -> SandboxPool:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @asynccontextmanager
    async def take(self) -> AsyncIterator[Sandbox]:
        """A sandbox at its snapshot; waits while all are taken. Raises `SandboxUnavailable` where none can start."""
        async with self._places:
            if self._closed:
                raise SandboxError("the pool is closed")
            sandbox = self._idle.pop() if self._idle else await self._started()
            try:
                yield sandbox
                clean = await self._was_reset(sandbox)
            except BaseException:
                await sandbox.close()  # left in an unknown state, it is not worth the doubt
                raise
            if clean and not self._closed:
                self._idle.append(sandbox)
            else:
                await sandbox.close()

    async def close(self) -> None:
        """Ends the sandboxes; those that are taken end when they are given back."""
        self._closed = True
        idle, self._idle = self._idle, []
        for sandbox in idle:
            await sandbox.close()

    async def _started(self) -> Sandbox:
        sandbox = await self._new().__aenter__()
        try:
            if self._prepare is not None:
                await self._prepare(sandbox)
                await sandbox.snapshot()
        except BaseException:
            await sandbox.close()
            raise
        return sandbox

    async def _was_reset(self, sandbox: Sandbox) -> bool:
        if self._closed:
            return False
        try:
            await sandbox.reset()
        except (SandboxError, OSError):
            return False
        return True
