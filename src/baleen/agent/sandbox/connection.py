"""The host's end of one guest: its process, the socket to it, and who waits for which answer.

Everything here runs in the sandboxes' own loop (`reactor.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import marshal
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from baleen.agent.sandbox.cgroup import ControlGroup
from baleen.agent.sandbox.guest import MODULES
from baleen.agent.sandbox.launch import Launch
from baleen.agent.sandbox.limits import SandboxError

Answer = tuple[dict[str, Any], bytes]

_LENGTHS = struct.Struct(">II")
LONGEST_HEAD = 1 << 16
"""Of a message of the guest: a few numbers, or the text of an error."""

_BOOT_SECONDS = 20.0
_LEAVE_SECONDS = 5.0
_GUEST_FOLDER = Path(__file__).with_name("guest")
_BOOTSTRAP = """\
import marshal, os, sys
def take(n):
    data = b""
    while len(data) < n:
        piece = os.read(0, n - len(data))
        if not piece:
            sys.exit("the host is gone")
        data += piece
    return data
sys.path.remove("")  # programs may write modules into the folder that is meant
config, parts = marshal.loads(take(int.from_bytes(take(4), "big")))
for name, code in marshal.loads(parts):
    module = sys.modules[name] = type(sys)(name)
    package, _, short = name.rpartition(".")
    setattr(sys.modules.setdefault(package, type(sys)(package)), short, module)
    exec(code, module.__dict__)
module.Server(config).serve()
"""


class Connection:
    """A running guest. `on_event` hears what the guest says unasked: the head and body of such a message; `on_death`
    hears that it is gone, perhaps more than once."""

    def __init__(
        self, launch: Launch, on_event: Callable[[dict[str, Any], bytes], None], on_death: Callable[[], None]
    ) -> None:
        self.launch = launch
        self._on_event, self._on_death = on_event, on_death
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._number = 0
        self._death: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._listener: asyncio.Task[None] | None = None
        self._guest: int | None = None
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter | None = None

    async def start(self, config: dict[str, Any], largest_answer: int, group: ControlGroup | None = None) -> int:
        """Starts the guest, in `group`, and waits until it is ready; the host's number of its process.

        Raises `SandboxError`, and `OSError` when the group cannot be entered.
        """
        self._largest_answer = largest_answer
        ours, theirs = socket.socketpair()
        try:
            with contextlib.nullcontext() if group is None else group.entered():
                self._process = _spawn(self.launch, theirs)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        try:
            self._reader, self._writer = await asyncio.open_connection(sock=ours)
        except BaseException:  # cancelled
            ours.close()
            raise
        first = marshal.dumps((config, _guest_code(self.launch.same_interpreter)), 2)
        self._writer.write(len(first).to_bytes(4, "big") + first)
        try:
            await asyncio.wait_for(self._receive(), _BOOT_SECONDS)
        except TimeoutError:
            await self.end()
            raise SandboxError("the guest does not start") from None
        except (OSError, asyncio.IncompleteReadError):
            words = await self._last_words()
            await self.end()
            raise SandboxError(words) from None
        self._listener = asyncio.create_task(self._listen())
        self._guest = self._guest_process()
        return self._guest

    def next_number(self) -> int:
        """A number for a call."""
        self._number += 1
        return self._number

    async def ask(self, head: dict[str, Any], body: bytes, seconds: float, number: int | None = None) -> Answer:
        """Sends a request and waits for its answer, which the guest must give within `seconds`.

        Raises the `OSError` that the guest met, or `SandboxError` when the guest is gone; then it is ended.
        """
        number = self.next_number() if number is None else number
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self.tell({"call": number, **head}, body)
            answer, payload = await asyncio.wait_for(future, seconds)
        except TimeoutError:
            self._dies("the guest does not answer")
            await self.end()
            raise SandboxError("the sandbox is gone: the guest does not answer") from None
        finally:
            self._waiting.pop(number, None)
        if "errno" in answer:
            if not isinstance(answer["errno"], int) or not isinstance(answer.get("message"), str):
                raise SandboxError("the guest sends what is no message")
            raise OSError(answer["errno"], answer["message"], head.get("path"))
        return answer, payload

    def tell(self, head: dict[str, Any], body: bytes = b"") -> None:
        """Sends a message that is not answered. Raises `SandboxError` when the guest is gone."""
        if self._death is not None or self._process is None or self._writer is None:
            raise SandboxError(f"the sandbox is gone: {self._death or 'it is not running'}")
        encoded = marshal.dumps(head, 2)
        self._writer.write(_LENGTHS.pack(len(encoded), len(body)) + encoded + body)

    async def _listen(self) -> None:
        reason = "it ended"
        try:
            while True:
                head, body = await self._receive()
                future = self._waiting.get(head.get("call", 0))
                if "event" in head:
                    self._on_event(head, body)
                elif future is not None and not future.done():
                    future.set_result((head, body))
        except SandboxError as error:
            reason = str(error)
        except (OSError, asyncio.IncompleteReadError):
            reason = await self._last_words()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            reason = "the guest sends what is no message"
        self._dies(reason)

    def _dies(self, reason: str) -> None:
        if self._death is None:
            self._death = reason
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(SandboxError(f"the sandbox is gone: {self._death}"))
        self._on_death()

    async def _receive(self) -> Answer:
        head_length, body_length = _LENGTHS.unpack(await self._reader.readexactly(_LENGTHS.size))
        if head_length > LONGEST_HEAD or body_length + head_length > self._largest_answer:
            raise SandboxError("the guest sends more than the limits allow")
        head = json.loads(await self._reader.readexactly(head_length))
        return head, await self._reader.readexactly(body_length)

    async def _last_words(self) -> str:
        """What the dead guest wrote to its stderr, at most a line or two."""
        process = self._process
        if process is None or process.stderr is None or process.stderr.closed:
            return "no reason given"
        os.set_blocking(process.stderr.fileno(), False)
        for _ in range(50):
            with contextlib.suppress(BlockingIOError):
                text = os.read(process.stderr.fileno(), 4096).decode("utf-8", "replace")
                text = " ".join(text.split())
                return text[-400:] or os.strerror(errno.EPIPE)
            await asyncio.sleep(0.02)
        return os.strerror(errno.EPIPE)

    def _guest_process(self) -> int:
        """The guest itself as the host sees it: process 1 of the namespace, or the process that was started."""
        assert self._process is not None
        started = self._process.pid
        with contextlib.suppress(OSError, ValueError, IndexError):
            if self.launch.has_monitor:
                return int(Path(f"/proc/{started}/task/{started}/children").read_text().split()[0])
        return started

    async def end(self) -> None:
        """Ends the guest and everything in it; returns when nothing is left. May be called twice."""
        process, self._process = self._process, None
        if process is None:
            return
        if self._listener is not None:
            self._listener.cancel()
        self._dies("it was closed")
        if self._writer is not None:  # else it was cancelled as it started
            self._writer.close()
        else:
            process.kill()
        if self.launch.has_monitor:
            # Process 1, not bubblewrap around it: that one ends when the whole namespace is gone.
            if self._guest is not None:
                if process.poll() is None:  # else the number may be another's by now
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(self._guest, signal.SIGKILL)
            else:
                process.kill()
                # It ended as it started. Of bubblewrap's two halves the inner one waits for ever when the outer is
                # gone; until it has a session of its own it is in our group.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        deadline = time.monotonic() + _LEAVE_SECONDS
        while process.poll() is None:
            # In other tiers the guest itself kills what it started, as it reads the end of its socket.
            if time.monotonic() > deadline:
                process.kill()
            await asyncio.sleep(0.001)
        if process.stderr is not None:
            process.stderr.close()


def _spawn(launch: Launch, channel: socket.socket) -> subprocess.Popen[bytes]:
    arguments, passed = list(launch.arguments), []
    for option, content, last in launch.piped:
        readable, writable = os.pipe()
        os.write(writable, content)  # a few hundred bytes: fits the pipe
        os.close(writable)
        passed.append(readable)
        arguments[launch.piped_at : launch.piped_at] = [option, str(readable), *filter(None, [last])]
    user: dict[str, Any] = (
        {} if launch.user is None else {"user": launch.user, "group": launch.user, "extra_groups": []}
    )
    try:
        return subprocess.Popen(
            [*arguments, "-s", "-S", "-c", _BOOTSTRAP],
            stdin=channel.fileno(),
            stdout=channel.fileno(),
            stderr=subprocess.PIPE,
            bufsize=0,
            env=launch.environment,
            cwd="/",
            pass_fds=passed,
            start_new_session=True,
            **user,
        )
    except OSError as error:
        raise SandboxError(f"{arguments[0]} cannot be started: {error.strerror}") from error
    finally:
        for descriptor in passed:
            os.close(descriptor)


@cache
def _guest_code(compiled: bool) -> bytes:
    """The guest's modules by name, marshalled: compiled where the interpreter inside is this one, as text elsewhere."""
    parts: list[tuple[str, Any]] = []
    for module in MODULES:
        path = _GUEST_FOLDER / f"{module}.py"
        text = path.read_text(encoding="utf-8")
        parts.append((f"baleen.agent.sandbox.guest.{module}", compile(text, path.name, "exec") if compiled else text))
    return marshal.dumps(parts, 2)
