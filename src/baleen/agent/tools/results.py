"""What a tool may return beside plain values: text with images, or the end of the episode.

Messages hold text. So an image becomes one readable line in the message that says what it is and that it is not shown,
and its bytes stay with the toolbox, under the name that the line gives.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Image:
    """An image as a tool made it."""

    data: bytes
    media_type: str = "image/png"

    def described(self, name: str) -> str:
        """The line that stands for it in a message."""
        size = ""
        if self.data.startswith(_PNG) and len(self.data) >= 24:
            width, height = struct.unpack(">II", self.data[16:24])
            size = f", {width} x {height} pixels"
        return f"[{name}: {self.media_type}{size}, {len(self.data)} bytes; kept, but not shown here]"


@dataclass(frozen=True)
class ToolResult:
    """Text, and images that belong to it."""

    text: str
    images: tuple[Image, ...] = ()


@dataclass(frozen=True)
class Finished:
    """Returned by a tool that ends the episode: the toolbox keeps the first of them as `toolbox.finished`, and the
    environment looks there after each turn."""

    answer: Any
    text: str = "The answer was recorded."
    """What the model reads as the tool's result."""
