"""Tokens to text while they are sampled: only what is certain is given, the rest waits.

Two things are uncertain at the end of a stream: a character whose last bytes have not come yet, and an ending that may
be the beginning of a stop string. Both are held, so the pieces joined are exactly the decoded text, up to the first
stop string that was completed, and no client ever sees half a character or half a stop string.
"""

from __future__ import annotations

import re
from codecs import utf_8_decode
from collections.abc import Sequence

from baleen.chat.tokenizer import Tokenizer


class TextStream:
    """The text of one stream of ids. Special tokens appear with their spelling, as `Tokenizer.decode` gives them.

    `stop` are the strings that end the stream; an empty one is a `ValueError`. The time per token does not depend on
    how much was read before.
    """

    stopped: str | None
    """The stop string that was completed first; the longer one where two were completed at once."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        if not all(stop):
            raise ValueError("a stop string must not be empty")
        self.stopped = None
        self._bytes = tokenizer.token_bytes
        self._stop = tuple(stop)
        self._beginning = re.compile(f"[{re.escape(''.join({text[0] for text in stop}))}]") if stop else None
        self._longest = max(map(len, stop), default=0)
        self._unfinished = b""  # the first bytes of a character
        self._held = ""  # the first characters of a stop string, perhaps

    def feed(self, ids: Sequence[int]) -> str:
        """Takes the next ids; gives the text that became certain, the text before a completed stop string included.

        After a stop nothing more is given.
        """
        return self._read(b"".join(map(self._bytes, ids)), final=False)

    def flush(self) -> str:
        """Says that no id follows; gives what was held."""
        return self._read(b"", final=True)

    def _read(self, new: bytes, final: bool) -> str:
        if self.stopped is not None:
            return ""
        given = self._unfinished + new
        text, read = utf_8_decode(given, "replace", final)
        self._unfinished = given[read:]
        if self._beginning is None:
            return text
        text = self._held + text
        self._held = ""
        first = self._beginning.search(text)
        return text if first is None else self._before_stop(text, first.start(), final)

    def _before_stop(self, text: str, first: int, final: bool) -> str:
        """What of `text` is given; no stop string begins before `first`."""
        found = [(at + len(stop), at, stop) for stop in self._stop if (at := text.find(stop, first)) >= 0]
        if found:
            _, start, self.stopped = min(found)
            return text[:start]
        assert self._beginning is not None
        if not final:
            for begin in self._beginning.finditer(text, max(first, len(text) - self._longest + 1)):
                if any(stop.startswith(text[begin.start() :]) for stop in self._stop):
                    self._held = text[begin.start() :]
                    return text[: begin.start()]
        return text
