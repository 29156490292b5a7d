"""A request on its way through the engine: its tokens, its pages, what was sampled, and what comes out at the end."""

# S = tokens of prompt and completion, N = sampled tokens

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from baleen.chat.text_stream import TextStream
from baleen.engine.grammar import Matcher
from baleen.engine.pages import Key, next_key
from baleen.engine.params import EngineError, SamplingParams
from baleen.engine.trace import Records, Trace

FinishReason = Literal["stop", "length", "abort"]

Alternatives = tuple[tuple[int, float], ...]
"""(token, log-probability) of the most likely ones."""


@dataclass(frozen=True)
class Generation:
    """What came out: the sampled tokens (the end token included), why it ended, and the trace."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    trace: Trace
    reused_tokens: int
    """Prompt tokens that were found in the cache."""

    top_logprobs: tuple[Alternatives, ...] = ()
    """Of each sampled token, when the request asked for them."""


@dataclass(eq=False)
class Sequence:
    """One request. Its first `computed` tokens are in the cache; the others wait for a forward."""

    prompt: NDArray[np.int32]
    params: SamplingParams
    capacity: int
    """Tokens that it can grow to."""

    page_tokens: int
    text: TextStream | None = None
    """Watches for stop texts."""

    matcher: Matcher | None = None
    """Knows what the grammar allows next."""

    allowed: NDArray[np.bool_] | None = None
    """[V] what it allows next."""

    error: EngineError | None = None
    """Why it ended, where nothing that was asked for ended it."""

    logprobs: list[float] = field(default_factory=list)
    kept: list[NDArray[np.int32] | None] = field(default_factory=list)
    top: list[Alternatives] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)
    keys: list[Key] = field(default_factory=list)
    """Of its full pages."""

    records: Records | None = None
    """Of a traced request that had to give up its pages: what it had decided, until it has computed as much again."""

    registered: int = 0
    """Full pages that others can find."""

    computed: int = 0
    unsent: int = 0
    """Sampled tokens that a stream has not taken yet."""

    draft: int = -1
    """The token that is guessed to follow the last one."""

    reused: int = -1
    """-1 until it was admitted the first time: what is found again after a preemption does not count."""

    finish_reason: FinishReason | None = None
    generation: Generation | None = None

    def __post_init__(self) -> None:
        self.length = len(self.prompt)
        room = min(self.capacity, self.length + self.params.max_tokens)
        self._all = np.zeros(room, dtype=np.int32)
        self._all[: self.length] = self.prompt
        self.uniforms = np.random.Generator(np.random.Philox(self.params.seed)).random(room - self.length + 1)
        self.counts: dict[int, int] = {}
        params = self.params
        self.plain = not (params.cuts or params.shifts or params.top_logprobs or params.grammar)
        """Sampled from the whole distribution as it is."""

    @property
    def ids(self) -> NDArray[np.int32]:
        """All tokens so far."""
        return self._all[: self.length]

    @property
    def tokens(self) -> list[int]:
        """The sampled tokens."""
        return self.tokens_from(0)

    def tokens_from(self, first: int) -> list[int]:
        """The sampled tokens from the given one on."""
        return self._all[len(self.prompt) + first : self.length].tolist()

    @property
    def sampled(self) -> int:
        """How many tokens were sampled."""
        return self.length - len(self.prompt)

    @property
    def waiting_tokens(self) -> int:
        """Tokens that are not in the cache yet."""
        return self.length - self.computed

    @property
    def is_new(self) -> bool:
        """Whether its first token waits to be taken."""
        return 0 < self.unsent == self.sampled

    @property
    def was_admitted(self) -> bool:
        """Whether it ran before, and waits because its pages were taken."""
        return self.reused >= 0

    @property
    def can_draft(self) -> bool:
        """Whether there is room for the next token and a draft of the one behind it."""
        return self.finish_reason is None and self.room > 1

    @property
    def room(self) -> int:
        """Tokens that may still be sampled."""
        return len(self._all) - self.length

    @property
    def runs_ahead(self) -> bool:
        """Whether tokens can be sampled one after the other without a look at what they say."""
        return self.plain and self.text is None

    def ends(self, of_model: frozenset[int]) -> list[int]:
        """The tokens that end it, its model's own among them."""
        return [*self.params.stop_ids, *(() if self.params.ignore_end else of_model)]

    def append(self, token: int, logprob: float, kept: NDArray[np.int32] | None, version: int) -> None:
        """One more sampled token, with its log-probability, its kept set and the version of the weights."""
        self._all[self.length] = token
        self.length += 1
        self.unsent += 1
        self.logprobs.append(logprob)
        self.kept.append(kept)
        self.versions.append(version)
        if self.params.shifts:
            self.counts[token] = self.counts.get(token, 0) + 1

    def hold(self, pages: list[int]) -> None:
        """Some more pages, behind those it has."""
        self.pages += pages

    def drop_pages(self) -> list[int]:
        """Gives up all pages, to be computed again later."""
        pages, self.pages = self.pages, []
        self.computed, self.registered, self.draft = 0, 0, -1
        return pages

    def page_keys(self, pages: int) -> list[Key]:
        """The keys of its first `pages` full pages."""
        while len(self.keys) < pages:
            start = len(self.keys) * self.page_tokens
            before = self.keys[-1] if self.keys else b""
            self.keys.append(next_key(before, self._all[start : start + self.page_tokens]))
        return self.keys[:pages]
