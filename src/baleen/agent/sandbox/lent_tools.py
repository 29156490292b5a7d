"""Tools of the host that one program inside may call, and nothing else of the host.

A message is JSON from a program that nobody has read: it is bounded by the guest, and checked here before anything is
done with it. What it says wrong is answered as text.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from baleen.agent.environment import InfrastructureError

LentTool = Callable[..., Awaitable[Any]]

_LONGEST_ANSWER = 8 << 20
_MOST_PENDING = 16
"""A program has one call under way at a time; more comes only from a guest that is not itself any more."""


class ToolLoan:
    """The tools of one call. They are awaited in `loop`, the caller's."""

    def __init__(self, tools: Mapping[str, LentTool], loop: asyncio.AbstractEventLoop) -> None:
        self._tools = dict(tools)
        self._loop = loop
        self._pending: set[asyncio.Task[None]] = set()
        self.failure: InfrastructureError | None = None
        """What a tool has raised that is not the program's fault."""

    def serve(self, message: bytes, answer: Callable[[bytes], None]) -> None:
        """Begins to answer a program's message; `answer` gets the JSON text for it."""
        if len(self._pending) >= _MOST_PENDING:
            answer(_error("too many calls at one time"))
            return

        async def serving() -> None:
            answer(await self._answer(message))

        task = asyncio.create_task(serving())
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    def end(self) -> None:
        """The program is over: tools that still run for it are cancelled."""
        for task in list(self._pending):
            task.cancel()

    async def _answer(self, message: bytes) -> bytes:
        try:
            name, arguments = _parsed(message)
            if name not in self._tools:
                return _error(f"there is no tool {name!r}; there is {', '.join(sorted(self._tools)) or 'none'}")
            work = _awaited(self._tools[name], arguments)
            value = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))
            encoded = json.dumps({"value": value}).encode()
        except InfrastructureError as error:
            self.failure = error
            return b""
        except Exception as error:  # noqa: BLE001 - whatever a tool raises is what it says to the program
            return _error(str(error) or type(error).__name__)
        if len(encoded) > _LONGEST_ANSWER:
            return _error(f"the answer of {name} is {len(encoded)} bytes long; at most {_LONGEST_ANSWER} can be sent")
        return encoded


async def _awaited(tool: LentTool, arguments: dict[str, Any]) -> Any:
    return await tool(**arguments)


def _parsed(message: bytes) -> tuple[str, dict[str, Any]]:
    try:
        call = json.loads(message)
    except (ValueError, RecursionError):
        raise ValueError("a message to a tool is JSON") from None
    if not isinstance(call, dict) or set(call) != {"name", "arguments"}:
        raise ValueError("a message to a tool has a name and arguments")
    name, arguments = call["name"], call["arguments"]
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ValueError("the name of a tool is text, its arguments are an object")
    return name, arguments


def _error(text: str) -> bytes:
    return json.dumps({"error": text}).encode()
