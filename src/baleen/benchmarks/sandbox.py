"""How fast the sandbox is, and whether it stays so beside neighbours that mean harm.

Fresh sandboxes, calls in a warm one, a reset, a hundred at once; then fifty sessions that work without a pause, timed
in turns alone and beside a fork bomb, a write of 100 GB, an allocation of 10 GB and an endless print. The median
call is compared.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
import warnings
from collections.abc import Awaitable, Callable

from baleen.agent.sandbox import Limits, Sandbox, SandboxPool

_WORK = "sum(i * i for i in range(2000))"

ATTACKS = {
    "fork bomb": "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass",
    "100 GB write": """
piece = bytes(1 << 20)
for number in range(100_000):
  try:
    with open(str(number % 200), "wb", buffering=0) as file: file.write(piece)
  except OSError: pass
""",
    "10 GB allocation": """
while True:
  kept = []
  try:
    for _ in range(10_000): kept.append(bytearray(b"x") * (1 << 20))
  except MemoryError: pass
""",
    "endless print": "while True: print('x' * 1000)",
}
"""Name to Python source. Each goes on after it has met its limit, and is begun again when it is killed."""


def measure() -> dict[str, float]:
    """Times in milliseconds (`*_ms`) or seconds (`*_s`), and `slowdown_beside_attackers` as a ratio of medians."""
    figures = asyncio.run(_speeds())
    alone, beside = asyncio.run(neighbours())
    figures |= {"call_of_50_alone_ms": 1000 * alone, "call_of_50_beside_attackers_ms": 1000 * beside}
    return figures | {"slowdown_beside_attackers": beside / alone}


async def _speeds(fresh: int = 30, calls: int = 300, at_once: int = 100) -> dict[str, float]:
    booted, ended = [], []
    for _ in range(fresh):
        began = time.perf_counter()
        sandbox = await Sandbox().__aenter__()
        booted.append(time.perf_counter() - began)
        ended.append(await _seconds(sandbox.close))
    async with Sandbox() as sandbox:
        await sandbox.run_python(_WORK)
        python = [await _seconds(lambda: sandbox.run_python("1 + 1")) for _ in range(calls)]
        program = [await _seconds(lambda: sandbox.run(["true"])) for _ in range(calls // 3)]
        await sandbox.write("folder/file", b"x")
        await sandbox.snapshot()
        reset = [await _seconds(sandbox.reset) for _ in range(calls // 3)]
    return {
        "fresh_sandbox_ms": 1000 * statistics.median(booted),
        "end_of_sandbox_ms": 1000 * statistics.median(ended),
        "python_call_ms": 1000 * statistics.median(python),
        "program_call_ms": 1000 * statistics.median(program),
        "reset_ms": 1000 * statistics.median(reset),
        "hundred_started_and_called_s": await _seconds(lambda: _at_once(at_once)),
    }


async def _at_once(count: int) -> None:
    """`count` sandboxes that are all alive at the same time; each answers."""
    async with SandboxPool(size=count) as pool, contextlib.AsyncExitStack() as stack:
        taken = await asyncio.gather(*(stack.enter_async_context(pool.take()) for _ in range(count)))
        answers = await asyncio.gather(*(sandbox.run_python(_WORK, timeout=60) for sandbox in taken))
        if {answer.exit_code for answer in answers} != {0}:
            raise RuntimeError(f"of {count} sandboxes at once some failed: {answers}")


async def _seconds(work: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began


async def neighbours(sessions: int = 50, seconds: float = 4.0, rounds: int = 3) -> tuple[float, float]:
    """The median call in seconds of `sessions` busy sandboxes: alone, and beside one sandbox for each attack.

    The two are measured in turns, `rounds` times `seconds` each, because other work may share the machine.
    """
    alone: list[float] = []
    beside: list[float] = []
    async with contextlib.AsyncExitStack() as stack:
        healthy = [await stack.enter_async_context(Sandbox()) for _ in range(sessions)]
        hostile = [await stack.enter_async_context(Sandbox(Limits(memory_bytes=256 << 20))) for _ in ATTACKS]
        await _busy(healthy, 1.0)
        for _ in range(rounds):
            alone += await _busy(healthy, seconds)
            attacks = [asyncio.create_task(_attack(*pair)) for pair in zip(hostile, ATTACKS.values(), strict=True)]
            await asyncio.sleep(1.5)  # they are at full strength, and known as neighbours that take their time
            beside += await _busy(healthy, seconds)
            for attack in attacks:
                attack.cancel()
            await asyncio.gather(*attacks, return_exceptions=True)
    return statistics.median(alone), statistics.median(beside)


async def _attack(sandbox: Sandbox, source: str) -> None:
    """Again and again, whatever stops it."""
    while True:
        await sandbox.run_python(source, timeout=600)


async def _busy(sandboxes: list[Sandbox], seconds: float) -> list[float]:
    """Calls in every sandbox without a pause; how long each call took."""
    end = time.perf_counter() + seconds

    async def work(sandbox: Sandbox) -> list[float]:
        taken = []
        while time.perf_counter() < end:
            taken.append(await _seconds(lambda: sandbox.run_python(_WORK, timeout=60)))
        return taken

    return [each for taken in await asyncio.gather(*map(work, sandboxes)) for each in taken]


def main() -> None:
    """Prints the figures as a table."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        for name, value in measure().items():
            print(f"{name:32} {value:10.2f}")


if __name__ == "__main__":
    main()
