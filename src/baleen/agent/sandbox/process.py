"""A program that stays in the sandbox beside its calls: a kernel, a shell, a server."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from baleen.agent.sandbox.limits import SandboxError

if TYPE_CHECKING:
    from baleen.agent.sandbox.connection import Answer
    from baleen.agent.sandbox.session import Sandbox

_GRACE_SECONDS = 10.0


class Process:
    """A program that was started with `Sandbox.start`; it lives until it ends, is killed, or the sandbox closes."""

    def __init__(self, sandbox: Sandbox, number: int) -> None:
        self._sandbox = sandbox
        self.number = number
        self.exit_code: int | None = None
        """Negative for a signal; None while it runs."""
        self._over = asyncio.Event()
        self._received: asyncio.Task[Answer] | None = None

    async def send(self, data: bytes, *, last: bool = False) -> None:
        """Input for the program; with `last` its standard input ends behind it.

        Raises `BrokenPipeError` when it takes none any more, `BlockingIOError` when it leaves 16 MiB of it unread.
        """
        await self._sandbox.ask({"operation": "send", "process": self.number, "last": last}, data)

    async def receive(self, timeout: float) -> bytes:
        """The next piece of stdout and stderr together, at most 64 KiB; empty at the end of output.

        Raises `TimeoutError` after `timeout` seconds without any; nothing is lost by that or by a cancellation.
        """
        return await self._sandbox.in_reactor(self._receive(timeout))

    async def wait(self, timeout: float) -> int:
        """The exit code, once it has ended. Raises `TimeoutError` after `timeout` seconds."""

        async def over() -> int:
            await asyncio.wait_for(self._over.wait(), timeout)
            if self.exit_code is None:
                raise SandboxError("the sandbox is gone, and the process with it")
            return self.exit_code

        return await self._sandbox.in_reactor(over())

    async def kill(self) -> None:
        """Ends it and all it started. May be called twice."""
        await self._sandbox.ask({"operation": "kill", "process": self.number})

    def ends(self, exit_code: int | None) -> None:
        """The sandbox tells that the program is over; None when the sandbox itself is."""
        self.exit_code = exit_code
        self._over.set()

    async def _receive(self, timeout: float) -> bytes:
        deadline = time.monotonic() + timeout
        while True:
            left = max(0.0, deadline - time.monotonic())
            patience: float | None = left
            if self._received is None:
                patience = None  # the guest keeps the time
                head = {"operation": "receive", "process": self.number, "timeout": left}
                asking = self._sandbox.connection.ask(head, b"", left + _GRACE_SECONDS)
                self._received = asyncio.create_task(asking)
            # A cancelled receiver leaves the task behind, so that the next one gets what it brings.
            received = self._received
            await asyncio.wait({received}, timeout=patience)
            if not received.done():
                raise TimeoutError(f"no output within {timeout:g} s")
            if self._received is not received:
                continue  # a second receiver has it
            self._received = None
            answer, data = received.result()
            if not answer.get("waited"):
                return data
            if time.monotonic() >= deadline:
                raise TimeoutError(f"no output within {timeout:g} s")
