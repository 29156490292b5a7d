"""One program in the sandbox: a call, which has a deadline and answers once, or a process, which stays.

A job owns the pipes to its program. It never waits: the server's loop asks what it wants to hear of (`interests`) and
tells it.
"""

from __future__ import annotations

import os
import select
import time

from baleen.agent.sandbox.guest.frames import LENGTH_BYTES, PIECE, Outbox, length_at, length_bytes
from baleen.agent.sandbox.guest.interpreter import LONGEST_MESSAGE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


_LAST_PIECES = 16
"""A pipe of the largest size that a program may ask for, a mebibyte, holds so many."""


class Job:
    """A running program. `number` is the host's name for it, `main` its process id."""

    def __init__(self, number: int, main: int, pipes: Pipes, timeout: float | None, cap: int) -> None:
        self.number, self.main = number, main
        self.began = time.monotonic()
        self.deadline = None if timeout is None else self.began + timeout
        self.status: int | None = None
        self.reason = ""
        """Why it was killed: `timeout`, `memory`, `files`, `stopped`; empty when it ended by itself."""
        self.streams = pipes.streams
        self.texts = [bytearray() for _ in pipes.streams]
        self.room, self.truncated = cap, False
        self.input = pipes.input
        self.channel = pipes.channel
        self.receiver: Receiver | None = None
        self.yielded = False
        """Whether it runs at a low priority by now."""
        for descriptor in self.streams:
            os.set_blocking(descriptor, False)

    @property
    def stays(self) -> bool:
        return self.deadline is None

    def interests(self) -> Iterator[tuple[int, int, Callable[[], None]]]:
        """(descriptor, poll events, what to do then)"""
        if not self.stays or self.receiver is not None:
            for index, descriptor in enumerate(self.streams):
                if descriptor >= 0:
                    yield descriptor, select.POLLIN, lambda index=index: self._collect(index)  # type: ignore[misc]
        if self.input is not None and self.input.open and self.input.pending:
            yield self.input.descriptor, select.POLLOUT, self.input.flush
        if self.channel is not None:
            yield from self.channel.interests()

    def _collect(self, index: int) -> bool:
        """Takes one piece of a stream; False when there is none for now."""
        if self.streams[index] < 0:
            return False
        try:
            piece = os.read(self.streams[index], PIECE)
        except BlockingIOError:
            return False
        if not piece:
            os.close(self.streams[index])
            self.streams[index] = -1
        elif self.stays:
            self.texts[0] += piece  # nothing is read before somebody asks, so this is one piece
        else:
            self.truncated |= len(piece) > self.room
            self.texts[index] += piece[: self.room]
            self.room -= min(len(piece), self.room)
        return bool(piece)

    def drain(self) -> None:
        """Takes what is still in the pipes; for a call whose writers are all dead."""
        for index in range(len(self.streams)):
            for _ in range(_LAST_PIECES):
                if not self._collect(index):
                    break

    @property
    def output_ended(self) -> bool:
        return all(descriptor < 0 for descriptor in self.streams)

    def close(self) -> None:
        for index, descriptor in enumerate(self.streams):
            if descriptor >= 0:
                os.close(descriptor)
                self.streams[index] = -1
        if self.input is not None:
            self.input.close()
        if self.channel is not None:
            self.channel.close()


class Receiver:
    """Somebody on the host waits for a process's output, until `deadline`."""

    def __init__(self, call: int, seconds: float) -> None:
        self.call = call
        self.deadline = time.monotonic() + seconds


class Pipes:
    """The server's ends of a program's pipes, and the program's ends until they are closed here."""

    def __init__(self, *, joined: bool, with_input: bool, channel: Callable[[bytes], None] | None) -> None:
        pairs = [os.pipe() for _ in range(1 if joined else 2)]
        self.streams = [readable for readable, _ in pairs]
        self.outer = [pairs[0][1], pairs[-1][1]]
        self.inner_input: int | None = None
        self.input: Outbox | None = None
        if with_input:
            self.inner_input, writable = os.pipe()
            self.input = Outbox(writable)
        self.inner_channel: int | None = None
        self.channel: Channel | None = None
        if channel is not None:
            import _socket

            ours, theirs = _socket.socketpair()
            self.inner_channel = theirs.detach()
            self.channel = Channel(ours.detach(), channel)

    def close_inner(self) -> None:
        for descriptor in {*self.outer, self.inner_input, self.inner_channel} - {None}:
            os.close(descriptor)  # type: ignore[arg-type]

    def close(self) -> None:
        """All of them, when no program came of it."""
        self.close_inner()
        for descriptor in self.streams:
            os.close(descriptor)
        if self.input is not None:
            self.input.close()
        if self.channel is not None:
            self.channel.close()


class Channel:
    """The server's end of a program's tool channel: one message at a time, each bounded, passed on unread."""

    def __init__(self, descriptor: int, forward: Callable[[bytes], None]) -> None:
        self._outbox = Outbox(descriptor)
        self._forward = forward
        self._incoming = bytearray()
        self._awaits_answer = False

    def interests(self) -> Iterator[tuple[int, int, Callable[[], None]]]:
        if self._outbox.open and self._outbox.pending:
            yield self._outbox.descriptor, select.POLLOUT, self._flush
        elif self._outbox.open and not self._awaits_answer:
            yield self._outbox.descriptor, select.POLLIN, self._collect

    def _collect(self) -> None:
        try:
            piece = os.read(self._outbox.descriptor, PIECE)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        if not piece:
            self._outbox.close()
            return
        self._incoming += piece
        self._next()

    def _flush(self) -> None:
        self._outbox.flush()
        self._next()

    def _next(self) -> None:
        """Takes up the next message, once the answer to the one before it is on its way."""
        if self._awaits_answer or not self._outbox.open or self._outbox.pending or len(self._incoming) < LENGTH_BYTES:
            return
        length = length_at(self._incoming)
        if length > LONGEST_MESSAGE:
            self._incoming.clear()
            self._outbox.ends = True
            self.answer(b'{"error": "a message to a tool is at most a mebibyte long"}')
        elif len(self._incoming) >= LENGTH_BYTES + length:
            message = bytes(self._incoming[LENGTH_BYTES : LENGTH_BYTES + length])
            del self._incoming[: LENGTH_BYTES + length]
            self._awaits_answer = True
            self._forward(message)

    def answer(self, message: bytes) -> None:
        """Sends the host's answer on."""
        if self._outbox.open:
            self._awaits_answer = False
            self._outbox.pending += length_bytes(message) + message
            self._flush()

    def close(self) -> None:
        self._outbox.close()
