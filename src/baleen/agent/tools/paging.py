"""Long results, one page at a time.

A result that is longer than a page is kept whole under a short id; the model gets the first page, and a last line that
says how to read the next. Pages end at the end of a line where they can, and joined they are the text.

    pages = Pages(characters=4000);  pages.first(text);  pages.read_result("r1", 2)
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated


class Pages:
    """The long results of one episode. Not more than `kept_characters` of them are kept, the newest first."""

    def __init__(self, characters: int, kept_characters: int = 16 << 20) -> None:
        if characters < 1:
            raise ValueError(f"a page needs at least one character, got {characters}")
        self.characters = characters
        self._kept_characters = kept_characters
        self._results: OrderedDict[str, list[str]] = OrderedDict()
        self._count = 0

    def first(self, text: str) -> str:
        """`text` itself when it fits on a page; else its first page, and how to read on."""
        pages = split_pages(text, self.characters)
        if len(pages) == 1:
            return text
        self._count += 1
        name = f"r{self._count}"
        self._results[name] = pages
        while len(self._results) > 1 and sum(map(_length, self._results.values())) > self._kept_characters:
            self._results.popitem(last=False)
        return self._page(name, 1)

    async def read_result(
        self, id: Annotated[str, "as the first page names it"], page: Annotated[int, "from 1"] = 2
    ) -> str:
        """Reads a further page of a long result."""
        if id not in self._results:
            known = ", ".join(self._results) or "none"
            raise ValueError(f"no result {id!r} is kept; kept: {known}")
        count = len(self._results[id])
        if not 1 <= page <= count:
            raise ValueError(f"result {id!r} has pages 1 to {count}, not {page}")
        return self._page(id, page)

    def _page(self, name: str, page: int) -> str:
        text, count = self._results[name][page - 1], len(self._results[name])
        further = f'; read_result(id="{name}", page={page + 1}) reads on' if page < count else ""
        newline = "" if text.endswith("\n") else "\n"
        return f"{text}{newline}[page {page} of {count}{further}]"


def split_pages(text: str, characters: int) -> list[str]:
    """`text` in pieces of at most `characters`, cut after a newline where there is one; joined they are `text`."""
    pages, start = [], 0
    while len(text) - start > characters:
        end = text.rfind("\n", start, start + characters) + 1
        if end <= start:
            end = start + characters  # one line longer than a page
        pages.append(text[start:end])
        start = end
    return [*pages, text[start:]]


def _length(pages: list[str]) -> int:
    return sum(map(len, pages))
