"""Who runs next: decoding first, then as much of the prompts as a step has room for.

All pages of a prompt are taken when it is admitted, so only decoding can run out of them; the sequence that came last
then gives its pages back and waits again, with all it has sampled. What it had computed is found by content, or
computed anew to the same bits.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from baleen.engine.pages import Key, PagePool
from baleen.engine.params import EngineOptions
from baleen.engine.recorder import Recorder
from baleen.engine.runner import Span
from baleen.engine.sequence import Sequence

FIRST_CHUNK = 64
"""Tokens of a prompt beside decoding, before it is known what they cost."""

CHUNK_SECONDS = 0.008
"""What a piece of a prompt beside decoding takes at least, about: many small ones cost more."""

QUIET_EVERY = 8
"""After so many pieces of prompts a step reads none: what a quiet one costs changes."""

MOST_AHEAD = 64
"""Tokens of a sequence that are decoded at most before anything else is looked at."""


@dataclass(frozen=True)
class Beginning:
    """What is known of a waiting sequence: the keys of its full pages, and the pages that hold the first of them."""

    keys: list[Key]
    found: list[int]
    needed: int
    """Pages that it must take beside those."""


class Scheduler:
    """The waiting and the running sequences, and the pages they hold."""

    def __init__(self, pool: PagePool, options: EngineOptions, recorder: Recorder | None) -> None:
        self.pool, self.options, self.recorder = pool, options, recorder
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = 0
        self.admits = True
        self._coming: set[Key] = set()
        self._pace = Pace(options.prefill_share, options.chunk_tokens, options.decode_seconds)
        self._steps = 0  # since requests could be admitted

    def plan(self) -> list[Span]:
        """The spans of the next forward; empty when nothing waits or runs."""
        may_admit = not self.running or self._steps >= self.options.admit_every
        spans = []
        for sequence in list(self.running):
            if sequence.waiting_tokens == 1 and sequence.pages:
                drafted = sequence.draft >= 0
                if self._make_room(sequence, sequence.length + drafted):
                    new = sequence.ids[-1:]
                    tokens = np.append(new, np.int32(sequence.draft)) if drafted else new
                    sequence.draft = -1
                    spans.append(Span(sequence, sequence.computed, tokens, drafted))
        budget = self._pace.budget(decoding=len(spans))
        for sequence in self.running:
            if sequence.waiting_tokens > 1 and budget > 0:
                spans.append(self._chunk(sequence, budget))
                budget -= len(spans[-1].tokens)
        if may_admit:
            self._steps = 0
            for sequence in self._admissible():
                if budget <= 0 or len(self.running) >= self.options.max_running:
                    break
                beginning = self._beginning(sequence)
                if not self._has_room(beginning):
                    break  # in their order: small ones that came later must not keep a large one out for ever
                if self._is_coming(beginning):
                    continue
                self._admit(sequence, beginning)
                spans.append(self._chunk(sequence, budget))
                budget -= len(spans[-1].tokens)
        return spans

    def computed(self, sequence: Sequence, tokens: int) -> None:
        """Says that so many of its tokens are in the cache; its full pages can be found from now on."""
        sequence.computed = tokens
        if sequence.records is not None and sequence.records.tokens <= tokens:
            sequence.records = None
        full = tokens // sequence.page_tokens
        if full > sequence.registered:
            keys = sequence.page_keys(full)
            for place in range(sequence.registered, full):
                self.pool.register(sequence.pages[place], keys[place])
                self._coming.discard(keys[place])
            sequence.registered = full

    def ahead(self, spans: list[Span]) -> list[int]:
        """How many tokens each decoding sequence may sample before anything else is looked at. The pages for them are
        taken, an equal part of those there are for each."""
        steps, pages = self._pace.steps, self.pool.available // len(spans)
        return [self._reserve(span.sequence, min(steps, span.sequence.room), pages) for span in spans]

    def observe(self, seconds: float, spans: list[Span], steps: int = 1) -> None:
        """Says how long it took: one step of all spans, or some of decoding alone."""
        self._steps += steps
        self._pace.observe(seconds, spans, steps)

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it is; its pages are free."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._release(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def preempt(self, sequence: Sequence) -> None:
        """Puts a running sequence back to the head of those that wait. Who is traced keeps its records: it may be
        cancelled before it runs again."""
        if self.recorder is not None and sequence.params.trace:
            sequence.records = self.recorder.of(sequence)
        self.running.remove(sequence)
        self._release(sequence)
        self.waiting.appendleft(sequence)
        self.preemptions += 1

    def _make_room(self, sequence: Sequence, tokens: int) -> bool:
        """Sees to it that the sequence has pages for `tokens` tokens; False when it had to give up its own."""
        missing = -(-tokens // sequence.page_tokens) - len(sequence.pages)
        if missing <= 0:
            return True
        while missing > self.pool.available:
            victim = self.running[-1]
            self.preempt(victim)
            if victim is sequence:
                return False
        sequence.hold([self.pool.take() for _ in range(missing)])
        return True

    def _reserve(self, sequence: Sequence, tokens: int, pages: int) -> int:
        """Takes up to `pages` for so many more tokens; returns for how many it has some then. The last token needs
        none, as it is not computed yet."""
        missing = -(-(sequence.length + tokens - 1) // sequence.page_tokens) - len(sequence.pages)
        sequence.hold([self.pool.take() for _ in range(min(missing, pages))])
        return min(tokens, len(sequence.pages) * sequence.page_tokens - sequence.length + 1)

    def _admissible(self) -> list[Sequence]:
        """Those waiting that have a place, in order, as long as there are any."""
        free = self.options.max_running - len(self.running)
        if free <= 0:
            return []
        return [sequence for sequence in self.waiting if self.admits or sequence.was_admitted]

    def _beginning(self, sequence: Sequence) -> Beginning:
        """What is known of it now. Its last token is always computed, so a page that ends with it is not looked for."""
        keys = sequence.page_keys((sequence.length - 1) // sequence.page_tokens)
        found = self.pool.find(keys)
        return Beginning(keys, found, -(-sequence.length // sequence.page_tokens) - len(found))

    def _has_room(self, beginning: Beginning) -> bool:
        """Whether there are pages for it now, what is cached of it not counted twice. Whoever runs may need one more
        each; who would run alone always has room."""
        taken = beginning.needed + self.pool.unused_among(beginning.found)
        return not self.running or taken + len(self.running) <= self.pool.available

    def _is_coming(self, beginning: Beginning) -> bool:
        """Whether another one computes its next page now."""
        place = len(beginning.found)
        return place < len(beginning.keys) and beginning.keys[place] in self._coming

    def _admit(self, sequence: Sequence, beginning: Beginning) -> None:
        """Takes a waiting sequence in: with the pages of its beginning that are known, and new ones for the rest."""
        keys, found = beginning.keys, beginning.found
        self.pool.share(found)
        sequence.hold(found + [self.pool.take() for _ in range(beginning.needed)])
        sequence.computed = len(found) * sequence.page_tokens
        sequence.registered = len(found)
        if sequence.reused < 0:
            sequence.reused = sequence.computed
        self._coming.update(keys[len(found) :])
        self.waiting.remove(sequence)
        self.running.append(sequence)

    def _chunk(self, sequence: Sequence, budget: int) -> Span:
        start = sequence.computed
        tokens = sequence.ids[start : start + min(budget, sequence.waiting_tokens)]
        return Span(sequence, start, tokens, prompt=True)

    def _release(self, sequence: Sequence) -> None:
        self._coming.difference_update(sequence.keys[sequence.registered :])
        self.pool.release(sequence.drop_pages())


class Pace:
    """How much of a prompt is read beside decoding, so that decoding takes at most `share` times as long as alone; and
    how many steps of decoding make up `seconds`.

    A piece of a prompt is a debt, and decoding without one pays it: as long as there is any, no prompt is read. What is
    computed does not depend on it, only when.
    """

    def __init__(self, share: float | None, most: int, seconds: float) -> None:
        self.share, self.most, self.seconds = share, most, seconds
        self.quiet = 0.0
        """Seconds of a step that reads no prompt."""

        self.debt = 0.0
        self._token_seconds = 0.0  # of a prompt
        self._pieces = 0  # of prompts, since a step was quiet

    @property
    def steps(self) -> int:
        """Steps of decoding in a row; with a debt no more than pay it."""
        if not self.quiet:
            return 1
        seconds = self.seconds
        if self.share is not None and self.debt > 0:
            seconds = min(seconds, self.debt / (self.share - 1) + self.quiet)
        return max(1, min(MOST_AHEAD, int(seconds / self.quiet)))

    def budget(self, decoding: int) -> int:
        """Prompt tokens of the next step."""
        if self.share is None or not decoding:
            return self.most
        if self.debt > 0 or self._pieces >= QUIET_EVERY:
            return 0
        if not self._token_seconds:
            return min(FIRST_CHUNK, self.most)
        seconds = max(CHUNK_SECONDS, (self.share - 1) * self.quiet)
        return max(1, int(min(self.most, seconds / self._token_seconds)))

    def observe(self, seconds: float, spans: list[Span], steps: int = 1) -> None:
        """Learns from so many steps of these spans."""
        tokens = sum(len(span.tokens) for span in spans if span.prompt)
        decoding = not all(span.prompt for span in spans)
        if not tokens:
            # One that stood still, or that many shared, must not make long ones look quiet.
            self.quiet = seconds / steps if seconds / steps < self.quiet / 2 else _average(self.quiet, seconds / steps)
        self._pieces = self._pieces + 1 if tokens else 0
        if self.share is None or not decoding:
            return
        surplus = max(seconds - self.quiet, 0.0) if tokens else 0.0
        if surplus > 0:
            if self._token_seconds:  # what takes very much longer than expected is not the prompt's doing
                surplus = min(surplus, 10 * (tokens * self._token_seconds + CHUNK_SECONDS))
            self._token_seconds = _average(self._token_seconds, surplus / tokens)
        # What is paid too much counts for the next piece, but no more than a step's worth.
        least = -(self.share - 1) * self.quiet
        self.debt = max(self.debt + surplus - (self.share - 1) * (seconds - surplus), least)


def _average(known: float, new: float) -> float:
    """Follows within a few steps."""
    return 0.7 * known + 0.3 * new if known else new
