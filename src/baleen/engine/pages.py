"""Which page of the cache holds what: pages are taken, shared by content, given back, and evicted when space is needed.

A full page is known by a digest of all tokens up to its end, so a new sequence finds the longest beginning that any
other left behind. Pages that nobody uses stay findable until their space is wanted; the one unused longest goes first.
Page 0 is scratch: padding is written there and never read.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Key = bytes
"""Names all tokens of a sequence up to the end of one of its pages."""


class PagePool:
    """The pages of one cache."""

    def __init__(self, pages: int) -> None:
        if pages < 2:
            raise ValueError(f"{pages} pages: a cache needs at least two, one of which is scratch")
        self.total = pages - 1
        self._free = list(range(pages - 1, 0, -1))
        self._users = [0] * pages
        self._key_of: dict[int, Key] = {}
        self._page_of: dict[Key, int] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Pages that can be taken."""
        return len(self._free) + len(self._unused)

    @property
    def used(self) -> int:
        """Pages that some sequence holds."""
        return self.total - self.available

    @property
    def cached(self) -> int:
        """Pages that nobody holds and that can still be found by their content."""
        return len(self._unused)

    def take(self) -> int:
        """A page to write to. Evicts the one unused longest when none is free; ask `available` before."""
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._unused.popitem(last=False)
            self._forget(page)
        self._users[page] = 1
        return page

    def find(self, keys: Sequence[Key]) -> list[int]:
        """The pages of the longest known beginning."""
        found = []
        for key in keys:
            page = self._page_of.get(key)
            if page is None:
                break
            found.append(page)
        return found

    def unused_among(self, pages: Sequence[int]) -> int:
        """How many of these nobody holds, so that sharing them leaves fewer to take."""
        return sum(1 for page in pages if self._users[page] == 0)

    def share(self, pages: Sequence[int]) -> None:
        """One more sequence holds these."""
        for page in pages:
            self._users[page] += 1
            self._unused.pop(page, None)

    def release(self, pages: Sequence[int]) -> None:
        """A sequence gives its pages back. Its last ones are evicted before its first ones."""
        for page in reversed(pages):
            self._users[page] -= 1
            if self._users[page] == 0:
                if page in self._key_of:
                    self._unused[page] = None
                else:
                    self._free.append(page)

    def register(self, page: int, key: Key) -> None:
        """Says what a full page holds. Where another page holds the same already, that one stays the known one."""
        if key not in self._page_of:
            self._page_of[key] = page
            self._key_of[page] = key

    def forget_all(self) -> None:
        """The weights changed, so nothing that is stored may be found any more."""
        self._page_of.clear()
        self._key_of.clear()
        self._free += self._unused
        self._unused.clear()

    def _forget(self, page: int) -> None:
        del self._page_of[self._key_of.pop(page)]


def next_key(before: Key, tokens: NDArray[np.int32]) -> Key:
    """The key of the page `tokens` behind the beginning `before` (empty at the start)."""
    return hashlib.blake2b(before + tokens.tobytes(), digest_size=16).digest()
