"""Texts as a browser without a screen shows them: numbered lines, a window that moves over them, numbered links.

    [3] Title (id)
    **viewing lines [20 - 59] of 131**

    L20: text ... with a 【0†link】

Lines are numbered from 0 and longer ones are wrapped; nothing but the space at a break is lost. A link is followed by
its number, which leads to a document's id.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field

_MARKDOWN_LINK = re.compile(
    r"(?<!!)\[([^\[\]\n]{1,300})\]\(\s*<?((?:[^\s()<>]|\([^\s()<>]*\))+)>?(?:\s[^()\n]{0,200})?\)"
)
_MOST_MATCHES = 20


@dataclass(frozen=True)
class Link:
    """Where a link leads: a document, and the passage for which it was found."""

    id: str
    source: str
    words: tuple[str, ...] = ()


@dataclass
class Page:
    """One text under a title. `address` names it where it is a document."""

    title: str
    text: str
    address: str = ""
    source: str = ""
    links: list[Link] = field(default_factory=list)
    width: int = 80

    def __post_init__(self) -> None:
        self.starts, self.lines = _wrapped(self.text, self.width)

    def shown(self, cursor: int, loc: int, num_lines: int) -> str:
        """The window of `num_lines` lines from `loc` on. Raises `ValueError` where there is no such line."""
        last = len(self.lines) - 1
        if not 0 <= loc <= last:
            raise ValueError(f"page {cursor} has lines 0 to {last}, not {loc}")
        end = min(loc + num_lines, len(self.lines))
        body = "\n".join(f"L{number}: {self.lines[number]}".rstrip() for number in range(loc, end))
        return f"{self.heading(cursor)}\n**viewing lines [{loc} - {end - 1}] of {last}**\n\n{body}"

    def heading(self, cursor: int) -> str:
        """The line that says which page this is."""
        return f"[{cursor}] {self.title}" + (f" ({self.address})" if self.address else "")

    def found(self, pattern: str, cursor: int) -> str:
        """The lines where `pattern` stands, with the lines beside them. Upper and lower case are the same, and so are
        a space and the end of a line."""
        parts = [re.escape(part) for part in pattern.split()]
        if not parts:
            raise ValueError("pattern is empty; give the words to find")
        places = [self.line_of(match.start()) for match in re.finditer(r"\s+".join(parts), self.text, re.IGNORECASE)]
        heading = f"{self.heading(cursor)}\n**{len(places)} matches of {pattern!r}**"
        if not places:
            return heading
        numbers = list(dict.fromkeys(places))
        blocks = []
        for number in numbers[:_MOST_MATCHES]:
            around = range(max(0, number - 1), min(len(self.lines), number + 2))
            blocks.append("\n".join(f"L{line}: {self.lines[line]}".rstrip() for line in around))
        if len(numbers) > _MOST_MATCHES:
            blocks.append(f"[{len(numbers) - _MOST_MATCHES} further lines have it; the last is L{numbers[-1]}]")
        return f"{heading}\n\n" + "\n\n".join(blocks)

    def line_of(self, position: int) -> int:
        """The line in which the text's character `position` stands."""
        return bisect_right(self.starts, position) - 1

    def best_line(self, words: tuple[str, ...]) -> int:
        """The first of the lines that have most of `words`, together with the line after them; 0 for no words."""
        lowered = [line.lower() for line in self.lines]
        pairs = [first + " " + second for first, second in zip(lowered, [*lowered[1:], ""], strict=True)]
        scores = [sum(word in pair for word in words) for pair in pairs]
        return max(range(len(scores)), key=lambda number: (scores[number], -number))


def with_links(text: str, known: Callable[[str], Link | None]) -> tuple[str, list[Link]]:
    """`text` with its Markdown links numbered, where `known` says that they lead to a document."""
    numbers: dict[Link, int] = {}

    def numbered(match: re.Match[str]) -> str:
        link = known(match[2])
        if link is None:
            return match[0]
        return f"【{numbers.setdefault(link, len(numbers))}†{match[1]}】"

    return _MARKDOWN_LINK.sub(numbered, text), list(numbers)


def _wrapped(text: str, width: int) -> tuple[list[int], list[str]]:
    """The lines of `text` and where each begins in it."""
    starts: list[int] = []
    lines: list[str] = []
    begin = 0
    for line in text.split("\n"):
        offset = 0
        while len(line) - offset > width:
            space = line.rfind(" ", offset + 1, offset + width + 1)
            end = space if space > offset else offset + width
            starts.append(begin + offset)
            lines.append(line[offset:end])
            offset = end + (space > offset)  # the space at which it was broken is not shown
        starts.append(begin + offset)
        lines.append(line[offset:])
        begin += len(line) + 1
    return starts, lines
