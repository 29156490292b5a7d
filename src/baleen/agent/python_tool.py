"""The code interpreter as a tool: `python(code)`.

Warm and fresh at once: a sandbox stays up, its server forks for every call, and a call that left files behind costs its
sandbox, so that nothing passes from one call to the next. Hash seed and random state are fixed: the same code gives the
same text.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated

from baleen.agent.environment import InfrastructureError
from baleen.agent.sandbox import Limits, RunResult, Sandbox, SandboxError, SandboxUnavailable

_EXCEPTION = 1
"""The exit code of a program that raised: what stands on stderr says it all."""


class PythonTool:
    """`await tool.python(code)` from any number of episodes at once; use it as `async with`, or call `close`.

    `workers` sandboxes share the calls; they are started on first use. Raises `InfrastructureError` when none can be
    started: what the program itself did wrong comes back as text.
    """

    def __init__(
        self, limits: Limits | None = None, *, timeout: float = 5.0, workers: int = 1, allow_weak: bool = False
    ) -> None:
        limits = limits or Limits(output_bytes=16 << 10)
        self.timeout = timeout
        self._workers: Sequence[_Worker] = [_Worker(limits, allow_weak) for _ in range(workers)]

    async def __aenter__(self) -> PythonTool:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def python(self, code: Annotated[str, "A whole program; nothing is kept between calls."]) -> str:
        """Runs Python code and returns what it prints, or the value of its last expression."""
        worker = min(self._workers, key=lambda worker: worker.pending)
        worker.pending += 1
        try:
            return describe(await worker.run(code, self.timeout), self.timeout)
        finally:
            worker.pending -= 1

    async def close(self) -> None:
        """Ends the sandboxes, after the calls that run or wait. A later call starts new ones."""
        for worker in self._workers:
            await worker.close()


def describe(result: RunResult, timeout: float) -> str:
    """A run as the model reads it: what was printed, then what went wrong."""
    parts = [result.stdout.rstrip("\n")] if result.stdout.strip() else []
    if result.truncated:
        parts.append("[output was cut here]")
    if result.stderr.strip():
        parts.append(result.stderr.strip())
    if result.timed_out:
        parts.append(f"error: timed out after {timeout:g} s")
    elif result.out_of_memory:
        parts.append("error: out of memory")
    elif result.too_many_files:
        parts.append("error: too many files")
    elif result.exit_code and not (result.exit_code == _EXCEPTION and result.stderr.strip()):
        parts.append(f"error: exit code {result.exit_code}")
    return "\n".join(parts) or "(no output)"


class _Worker:
    """One sandbox that is replaced when it is dead or no longer fresh. It serves its calls one after another."""

    def __init__(self, limits: Limits, allow_weak: bool) -> None:
        self.pending = 0
        self._limits, self._allow_weak = limits, allow_weak
        self._sandbox: Sandbox | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = asyncio.Lock()

    async def run(self, code: str, timeout: float) -> RunResult:
        async with self._turn():
            for attempt in (1, 2):
                sandbox = await self._started()
                try:
                    result = await sandbox.run_python(code, timeout=timeout)
                except SandboxError as error:
                    await self.retire()
                    if attempt == 2:
                        raise InfrastructureError(f"the Python sandbox died twice: {error}") from error
                    continue
                except BaseException:
                    # Cancelled while the program runs: whatever it leaves must not meet the next call.
                    await self.retire()
                    raise
                if result.left_files:
                    await self.retire()
                return result
            raise AssertionError("unreachable")

    def _turn(self) -> asyncio.Lock:
        """The lock of the running event loop: a tool outlives `asyncio.run`, a lock does not."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._lock = loop, asyncio.Lock()
        return self._lock

    async def _started(self) -> Sandbox:
        if self._sandbox is None:
            try:
                self._sandbox = await Sandbox(self._limits, allow_weak=self._allow_weak).__aenter__()
            except (SandboxUnavailable, SandboxError, OSError) as error:
                raise InfrastructureError(f"no sandbox for Python: {error}") from error
        return self._sandbox

    async def close(self) -> None:
        """Ends the sandbox when no call uses it: a call that lost it would run its program twice."""
        async with self._turn():
            await self.retire()

    async def retire(self) -> None:
        """Ends the sandbox; the next call starts another."""
        sandbox, self._sandbox = self._sandbox, None
        if sandbox is not None:
            await sandbox.close()
