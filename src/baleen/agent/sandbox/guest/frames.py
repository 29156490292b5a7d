"""Messages between host and guest: two lengths, a head, a binary body.

What the host says has a marshalled head (it is trusted and loads without an import); what the guest says has a JSON
head, because the host must not unmarshal what a program might have forged.
"""

from __future__ import annotations

import errno
import os
from marshal import loads as _unmarshalled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

LENGTH_BYTES = 4
PIECE = 1 << 16


def packed(head: dict[str, Any], body: bytes = b"") -> bytes:
    """A frame with a JSON head of strings, numbers, truth values and None."""
    fields = (f"{_quoted(name)}:{_json(value)}" for name, value in head.items())
    encoded = ("{" + ",".join(fields) + "}").encode()
    return length_bytes(encoded) + length_bytes(body) + encoded + body


def length_bytes(data: bytes) -> bytes:
    """How long `data` is, in front of it."""
    return len(data).to_bytes(LENGTH_BYTES, "big")


def length_at(data: bytes | bytearray, start: int = 0) -> int:
    """The length that begins at `start`."""
    return int.from_bytes(data[start : start + LENGTH_BYTES], "big")


def _quoted(text: str) -> str:
    plain = (c if " " <= c <= "~" and c not in '"\\' else f"\\u{min(ord(c), 0xFFFD):04x}" for c in text)
    return f'"{"".join(plain)}"'


def _json(value: str | int | float | bool | None) -> str:
    if isinstance(value, str):
        return _quoted(value)
    if value is None:
        return "null"
    return repr(value).lower()  # True becomes true; numbers stay


class Inbox:
    """Cuts what arrives from the host into frames."""

    def __init__(self) -> None:
        self._data = bytearray()

    def frames(self, data: bytes) -> Iterator[tuple[dict[str, Any], bytes]]:
        """The frames that are complete once `data` is there too."""
        self._data += data
        while len(self._data) >= 2 * LENGTH_BYTES:
            head_length, body_length = length_at(self._data), length_at(self._data, LENGTH_BYTES)
            end = 2 * LENGTH_BYTES + head_length + body_length
            if len(self._data) < end:
                return
            frame = bytes(self._data[2 * LENGTH_BYTES : end])
            del self._data[:end]
            yield _unmarshalled(frame[:head_length]), frame[head_length:]


class Outbox:
    """Bytes on their way into a pipe that may be full: nobody who does not read can stop the server."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.pending = bytearray()
        self.ends = False
        """Whether the pipe is closed once everything is written."""
        os.set_blocking(descriptor, False)

    @property
    def open(self) -> bool:
        return self.descriptor >= 0

    def flush(self) -> None:
        """Writes what fits now; nothing once it is closed."""
        if not self.open:
            return
        try:
            while self.pending:
                del self.pending[: os.write(self.descriptor, self.pending[: 16 * PIECE])]
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                raise
            self.pending.clear()
            self.close()  # its reader is gone
            return
        if self.ends:
            self.close()

    def close(self) -> None:
        if self.open:
            os.close(self.descriptor)
            self.descriptor = -1
