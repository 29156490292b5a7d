"""Runs a grammar beside a sequence: which tokens may come next, and what came.

llguidance keeps an Earley parser over the bytes of the vocabulary. Added tokens have no bytes in it, only a number, so
no text is ever matched by a tag's token nor a tag by text. A state never falls back to allowing everything: whatever
goes wrong is a `GrammarError`, and a mask is never empty.
"""

# V = the model's vocabulary

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from baleen.chat.grammar import GrammarError, GrammarSpec, llguidance, marker_ids
from baleen.chat.tokenizer import Tokenizer

LEXER_FUEL = 10_000_000
"""What compiling may cost, in llguidance's steps, 50,000 a millisecond: ten times its default, for requests with many
tools."""


class Grammar:
    """A grammar compiled for one vocabulary. It stays in its process; what travels is the `GrammarSpec`.

    `vocab_size` is the model's V, which may be larger than the tokenizer's: ids without a token are never allowed.
    Raises `GrammarError` with llguidance's words for a grammar that it cannot run, and `GrammarLibraryError` where the
    library is missing.
    """

    def __init__(self, spec: GrammarSpec, tokenizer: Tokenizer, vocab_size: int) -> None:
        if vocab_size < tokenizer.vocab_size:
            raise GrammarError(f"the model has {vocab_size} tokens, fewer than the tokenizer's {tokenizer.vocab_size}")
        self.spec = spec
        self.vocab_size = vocab_size
        limits = llguidance().LLParserLimits(initial_lexer_fuel=LEXER_FUEL)
        self._start = llguidance().LLMatcher(_vocabulary(tokenizer), spec.text, log_level=0, limits=limits)
        if self._start.is_error():
            # Where the library itself gave up, the addresses in it that follow say nothing to anybody.
            raise GrammarError(self._start.get_error().partition("<backtrace>")[0].strip())

    def matcher(self) -> Matcher:
        """A matcher that stands before the first token."""
        return Matcher(self._start.deep_copy(), self.vocab_size)


class Matcher:
    """How far one sequence is in a grammar."""

    def __init__(self, state: Any, vocab_size: int) -> None:
        self._state = state
        self._vocab_size = vocab_size

    @property
    def finished(self) -> bool:
        """The text is complete, its end-of-sentence token included."""
        return bool(self._state.is_stopped() and self._state.is_accepting()) and not self._state.is_error()

    def mask(self) -> NDArray[np.bool_]:
        """Bool [V]: the tokens that may come next. Raises `GrammarError` when finished, or when the parser gave up."""
        if self.finished:
            raise GrammarError("the text is complete; no token may follow")
        bits = np.frombuffer(self._state.compute_bitmask(), np.uint8)
        self._raise_errors()
        mask = np.zeros(self._vocab_size, np.bool_)
        allowed = np.unpackbits(bits, count=min(8 * len(bits), self._vocab_size), bitorder="little")
        mask[: len(allowed)] = allowed
        if not allowed.any():
            raise GrammarError("the grammar leaves no token")
        return mask

    def advance(self, token: int) -> None:
        """Takes the next token. Raises `GrammarError` for one that is not allowed; the matcher is then of no use."""
        if self.finished:
            raise GrammarError(f"token {token} comes after the end of the text")
        if not 0 <= token < self._vocab_size:
            raise GrammarError(f"token {token} is not among the model's {self._vocab_size}")
        self._state.consume_token(token)
        self._raise_errors()

    def copy(self) -> Matcher:
        """An independent matcher in the same state."""
        return Matcher(self._state.deep_copy(), self._vocab_size)

    def _raise_errors(self) -> None:
        if self._state.is_error() or (self._state.is_stopped() and not self.finished):
            raise GrammarError(self._state.get_error() or f"the parser stopped: {self._state.stop_reason()}")


class _ByteTable:
    """A vocabulary as llguidance asks for it: the bytes of each token, and how text is cut where one way is forced."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        markers = marker_ids(tokenizer)
        self.tokens = [
            f"<{token}>".encode() if token in markers else tokenizer.token_bytes(token) or b"<unused>"
            for token in range(tokenizer.vocab_size)
        ]
        # A byte that no UTF-8 text has, 0xff, is llguidance's own sign for a special token.
        lone = {token for token, text in enumerate(self.tokens) if text == b"<unused>" or text.startswith(b"\xff")}
        self.special_token_ids = sorted(markers | lone)
        self.bos_token_id = tokenizer.bos_id
        self.eos_token_id = tokenizer.eos_id
        self._plain = tokenizer._plain  # not the tokenizer itself, which would then never be given up

    def __call__(self, text: bytes | str) -> list[int]:
        text = text if isinstance(text, str) else text.decode()
        return list(self._plain.encode(text, add_special_tokens=False).ids)


def _vocabulary(tokenizer: Tokenizer) -> Any:
    """llguidance's view of the tokenizer; it takes a moment to build and is kept as long as the tokenizer lives."""
    if tokenizer not in _VOCABULARIES:
        library = llguidance()
        _VOCABULARIES[tokenizer] = library.LLTokenizer(library.TokenizerWrapper(_ByteTable(tokenizer)))
    return _VOCABULARIES[tokenizer]


_VOCABULARIES: WeakKeyDictionary[Tokenizer, Any] = WeakKeyDictionary()
