"""One thread and one event loop for all sandboxes of this process.

A sandbox may be used from one event loop after another, or from several at once, while its pipes need one place that
listens to them all the time. A thread per sandbox would do, but not for hundreds. The thread lives as long as the
process, and the guests die with it (`--die-with-parent` means the thread).
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


async def in_reactor(work: Coroutine[Any, Any, _T]) -> _T:
    """Runs `work` in the sandboxes' loop; cancelling the caller cancels it there."""
    return await begun_in_reactor(work)


def begun_in_reactor(work: Coroutine[Any, Any, _T]) -> asyncio.Future[_T]:
    """The same, begun at once, and not carried by a task of the caller's loop, which the end of that would cancel."""
    return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, _loop()))


_lock = threading.Lock()
_running: asyncio.AbstractEventLoop | None = None


def _loop() -> asyncio.AbstractEventLoop:
    global _running
    with _lock:
        if _running is None:
            _running = asyncio.new_event_loop()
            threading.Thread(target=_running.run_forever, name="sandboxes", daemon=True).start()
        return _running


def _forget() -> None:
    """A forked child has no such thread."""
    global _running, _lock
    _lock, _running = threading.Lock(), None


os.register_at_fork(after_in_child=_forget)
