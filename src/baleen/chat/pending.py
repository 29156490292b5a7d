"""Text that has come but is not read yet, and the tags at which reading it changes.

A reader asks for the text before the next of some tags. What could be the beginning of one stays here until more text
decides, so every way of cutting the text into chunks reads the same, and what stays is never longer than a tag: the
work is linear, whatever the text is.
"""

from __future__ import annotations

import re


class Tags:
    """Spellings that a reader waits for. Each begins with the only `<` that it has."""

    def __init__(self, *spellings: str) -> None:
        self._spellings = spellings
        self._longest = max(map(len, spellings))
        self._pattern = re.compile("|".join(map(re.escape, spellings)))

    def search(self, text: str, start: int) -> re.Match[str] | None:
        """The first complete tag from `start` on."""
        return self._pattern.search(text, start)

    def undecided(self, text: str, start: int) -> int:
        """Where the ending of `text` begins that may yet become a tag; its length when there is none."""
        begin = text.rfind("<", max(start, len(text) - self._longest + 1))
        if begin >= 0 and any(tag.startswith(text[begin:]) for tag in self._spellings):
            return begin
        return len(text)


class Pending:
    """A queue of characters: chunks go in at the end, readers take from the front."""

    def __init__(self) -> None:
        self._text = ""
        self._start = 0

    def add(self, text: str) -> None:
        """Puts `text` at the end."""
        self._text = self._text[self._start :] + text
        self._start = 0

    def put_back(self, text: str) -> None:
        """Puts `text` to the front: it will be read again, by another reader."""
        self._text = text + self._text[self._start :]
        self._start = 0

    def take(self, tags: Tags, final: bool) -> tuple[str, str | None]:
        """The text before the next tag, and the tag; both are taken.

        Where no tag is complete: the text that is surely none, and None. `final` says that nothing follows.
        """
        tag = tags.search(self._text, self._start)
        if tag is not None:
            before = self._text[self._start : tag.start()]
            self._start = tag.end()
            return before, tag.group()
        end = len(self._text) if final else tags.undecided(self._text, self._start)
        before = self._text[self._start : end]
        self._start = end
        return before, None

    def take_rest(self) -> str:
        """All the text."""
        rest = self._text[self._start :]
        self._start = len(self._text)
        return rest

    def take_match(self, pattern: re.Pattern[str], longest: int, final: bool) -> tuple[re.Match[str] | None, bool]:
        """`pattern` at the front, which is taken, and whether more text could still make one where there is none.

        `longest` is a length within which it matches or never will; it stays on one line.
        """
        match = pattern.match(self._text, self._start)
        if match is not None:
            self._start = match.end()
            return match, False
        seen = self._text[self._start : self._start + longest]
        return None, not final and len(seen) < longest and "\n" not in seen
