"""Plain functions as tools: calls are validated, run within their time, and answered as tool messages.

What the model does wrong comes back as one short readable line; it is never an exception.

    async def add(a: int, b: Annotated[int, "the second term"] = 0) -> int: ...
    toolbox = Toolbox([add], seconds=30);  toolbox.specs;  await toolbox.call_all(calls)
"""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from contextvars import copy_context
from typing import Any

from pydantic_core import to_jsonable_python

from baleen.agent.tools.paging import Pages
from baleen.agent.tools.results import Finished, Image, ToolResult
from baleen.agent.tools.signature import Signature, Tool, tool_spec
from baleen.chat.messages import Message, ToolCall, ToolSpec

__all__ = ["Tool", "Toolbox", "tool_spec"]

_IMAGE_BYTES = 64 << 20
"""Images of one toolbox beyond this are not kept."""


class Toolbox:
    """Some functions, sync or async, under their names.

    `seconds`: how long one call may take (None: any time). Async functions are cancelled then. With it sync functions
    run in a thread of their own, one at a time in the order of the calls; one that runs over is left alone, since no
    thread can be stopped. Without it they run where they are called.
    `page_characters`: a longer result is paged, and the tool `read_result` is offered to read on (None: no paging).

    `finished`, `images` and the pages belong to one episode: give each its own toolbox where tools use them.
    """

    def __init__(
        self,
        functions: Mapping[str, Tool] | Iterable[Tool],
        *,
        seconds: float | None = None,
        page_characters: int | None = None,
    ) -> None:
        named = list(functions.items()) if isinstance(functions, Mapping) else [(f.__name__, f) for f in functions]
        self._pages = None if page_characters is None else Pages(page_characters)
        if self._pages is not None:
            named.append(("read_result", self._pages.read_result))
        twice = {name for name, _ in named if sum(name == other for other, _ in named) > 1}
        if twice:
            raise ValueError(f"two tools have the name {min(twice)!r}; give a mapping of name to function")
        self.seconds = seconds
        self._tools = {name: (function, Signature(function, name)) for name, function in named}
        self.specs: list[ToolSpec] = [signature.spec() for _, signature in self._tools.values()]
        self.finished: Finished | None = None
        """What the first tool that ended the episode returned."""
        self.images: dict[str, Image] = {}
        """What tools drew, under the names by which messages speak of it."""
        self._turns = _Turns()

    async def call(self, call: ToolCall) -> Message:
        """Runs one call. A mistake in it, or a `ValueError` of the tool, is answered `error: ...`; every other
        exception is a fault of the tool itself and is raised."""
        return Message(role="tool", tool_call_id=call.id, content=await self._answer(call))

    async def call_all(self, calls: Sequence[ToolCall]) -> list[Message]:
        """Runs the calls of one turn side by side; the answers stand in the calls' order. A fault of one tool cancels
        the others and is raised."""
        tasks = [asyncio.ensure_future(self.call(call)) for call in calls]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, call: ToolCall) -> str:
        name = call.function.name
        if name not in self._tools:
            return f"error: unknown tool {name!r}; tools: {', '.join(self._tools)}"
        function, signature = self._tools[name]
        try:
            arguments = call.function.parsed()
        except (ValueError, RecursionError) as error:
            return f"error: {name}: arguments are not a JSON object: {error}"
        try:
            given = signature.validated(arguments)
        except ValueError as error:
            return f"error: {name}: {error}"
        try:
            if self.seconds is None:  # no event loop is needed then: a sync tool's call ends without a wait
                value = function(**given)
                value = await value if inspect.isawaitable(value) else value
            else:
                value = await self._within(self.seconds, function, given)
        except ValueError as error:
            return f"error: {error}"
        except _Overrun:
            return f"error: {name}: timed out after {self.seconds:g} s"
        return self._text(name, value)

    async def _within(self, seconds: float, function: Tool, given: dict[str, Any]) -> Any:
        """What `function` gives. Raises `_Overrun` when its time is over; a `TimeoutError` is the tool's own."""
        threaded = not inspect.iscoroutinefunction(function)
        limit = asyncio.timeout(None)
        try:
            # Waiting for another call's end is not this call's time.
            async with self._turns.lock() if threaded else nullcontext(), limit:
                limit.reschedule(asyncio.get_running_loop().time() + seconds)
                value = await _in_thread(lambda: function(**given)) if threaded else function(**given)
                return await value if inspect.isawaitable(value) else value
        except TimeoutError as error:
            if limit.expired():
                raise _Overrun from error
            raise

    def _text(self, name: str, value: Any) -> str:
        if isinstance(value, Finished):
            if self.finished is not None:
                return f"error: {name}: the episode has ended already"
            self.finished = value
            return value.text
        if isinstance(value, Image):
            value = ToolResult("", (value,))
        images: tuple[Image, ...] = ()
        if isinstance(value, ToolResult):
            value, images = value.text, value.images
        text = value if isinstance(value, str) else _compact_json(value)
        if self._pages is not None and name != "read_result":
            text = self._pages.first(text)
        lines = [text] * bool(text or not images) + [self._kept(image) for image in images]
        return "\n".join(lines).encode("utf-8", "replace").decode()  # half a surrogate pair is no text

    def _kept(self, image: Image) -> str:
        if sum(len(kept.data) for kept in self.images.values()) + len(image.data) > _IMAGE_BYTES:
            return f"[an image of {len(image.data)} bytes was dropped: {_IMAGE_BYTES >> 20} MiB are kept already]"
        name = f"image-{len(self.images) + 1}"
        self.images[name] = image
        return image.described(name)


class _Overrun(Exception):
    """A call has taken all of its time."""


class _Turns:
    """One sync function after the other."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = asyncio.Lock()

    def lock(self) -> asyncio.Lock:
        """The lock of the running event loop: a toolbox outlives `asyncio.run`, a lock does not."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._lock = loop, asyncio.Lock()
        return self._lock


async def _in_thread(work: Callable[[], Any]) -> Any:
    """What `work` returns or raises, in a daemon thread: an executor's threads are joined at exit, and one that hangs
    would keep the program alive. A cancelled call leaves its thread behind."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[Any] = loop.create_future()
    context = copy_context()

    def tell(value: Any, error: BaseException | None) -> None:
        if ended.done():
            return
        if error is None:
            ended.set_result(value)
        else:
            ended.set_exception(error)

    def serve() -> None:
        value, error = None, None
        try:
            value = context.run(work)
        except BaseException as raised:  # noqa: BLE001 - it belongs to the caller
            # A future cannot carry StopIteration.
            error = RuntimeError("the tool raised StopIteration") if isinstance(raised, StopIteration) else raised
        with suppress(RuntimeError):  # the loop has ended; nobody waits any more
            loop.call_soon_threadsafe(tell, value, error)

    threading.Thread(target=serve, name="tool", daemon=True).start()
    return await ended


def _compact_json(value: Any) -> str:
    return json.dumps(to_jsonable_python(value), ensure_ascii=False, separators=(",", ":"))
