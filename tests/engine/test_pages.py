"""The pool of pages against a plain account of who holds what and what was let go when."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from baleen.engine.pages import PagePool, next_key

PAGES = 7


class Pool(RuleBasedStateMachine):
    """Owners hold lists of pages, as sequences do; `known` and `idle` say what the pool must know and evict."""

    def __init__(self):
        super().__init__()
        self.pool = PagePool(PAGES + 1)
        self.owners: list[list[int]] = []
        self.known: dict[bytes, int] = {}
        self.idle: list[int] = []
        """Pages that nobody holds but that can be found, the one unused longest first."""

        self.names = 0

    def users(self, page):
        return sum(pages.count(page) for pages in self.owners)

    def free(self):
        return PAGES - len({page for pages in self.owners for page in pages}) - len(self.idle)

    def forget(self, page):
        self.known = {key: kept for key, kept in self.known.items() if kept != page}

    @rule(count=st.integers(1, 3), data=st.data())
    def take(self, count, data):
        """An owner, new or old, takes pages as long as there are any."""
        count = min(count, self.pool.available)
        if not count:
            return
        number = data.draw(st.integers(0, len(self.owners)))
        if number == len(self.owners):
            self.owners.append([])
        for _ in range(count):
            oldest = None if self.free() else self.idle.pop(0)
            page = self.pool.take()
            assert 0 < page <= PAGES, "page 0 is scratch"
            assert self.users(page) == 0
            if oldest is not None:
                assert page == oldest, "the page unused longest goes first"
                self.forget(page)
            else:
                assert page not in self.idle, "nothing is evicted while a page is free"
            self.owners[number].append(page)

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def register(self, data):
        """Some page of an owner is full; its content is new or was seen before."""
        page = data.draw(st.sampled_from([page for pages in self.owners for page in pages] or [None]))
        if page is None or page in self.known.values():
            return
        if self.known and data.draw(st.booleans()):
            key = data.draw(st.sampled_from(sorted(self.known)))
        else:
            self.names += 1
            key = str(self.names).zfill(4).encode()
        self.pool.register(page, key)
        self.known.setdefault(key, page)

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def find_and_share(self, data):
        """Someone new finds a beginning: as much of it as is known without a gap."""
        keys = data.draw(
            st.lists(st.sampled_from([*sorted(self.known), b"unknown"]), min_size=1, max_size=4, unique=True)
        )
        wanted = []
        for key in keys:
            if key not in self.known:
                break
            wanted.append(self.known[key])
        found = self.pool.find(keys)
        assert found == wanted
        self.pool.share(found)
        self.idle = [page for page in self.idle if page not in found]
        self.owners.append(found)

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def release(self, data):
        """An owner goes. Of its pages the last are evicted before the first."""
        pages = self.owners.pop(data.draw(st.integers(0, len(self.owners) - 1)))
        self.pool.release(pages)
        for page in reversed(pages):
            if not self.users(page) and page in self.known.values():
                self.idle.append(page)

    @rule()
    def forget_all(self):
        self.pool.forget_all()
        self.known, self.idle = {}, []

    @invariant()
    def counts_agree(self):
        held = {page for pages in self.owners for page in pages}
        assert self.pool.used == len(held)
        assert self.pool.available + self.pool.used == self.pool.total == PAGES
        assert self.pool.cached == len(self.idle)

    @invariant()
    def what_is_known_is_known(self):
        for key, page in self.known.items():
            assert self.pool.find([key])
            assert self.pool.find([key]) == [page]


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40)


def test_a_pool_has_room_beside_its_scratch_page():
    with pytest.raises(ValueError, match="at least two"):
        PagePool(1)


def test_a_key_names_all_tokens_before_it():
    first, other = np.arange(4, dtype=np.int32), np.arange(1, 5, dtype=np.int32)
    assert next_key(next_key(b"", first), other) == next_key(next_key(b"", first), other.copy())
    assert next_key(next_key(b"", first), other) != next_key(next_key(b"", other), other)
    assert next_key(b"", first) != next_key(next_key(b"", first), first)
