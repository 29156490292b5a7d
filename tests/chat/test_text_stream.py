"""Streamed text: the pieces joined are the decoded text, cut at the stop string that is completed first."""

import itertools
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from baleen.chat import Tokenizer
from baleen.chat.markup import SPECIAL_TOKENS
from baleen.chat.text_stream import TextStream

TEXTS = [f"The {kind} of {city}: {n} é 東京 🙂\n\n" for kind in ("price", "train") for city in "ÅBC" for n in range(50)]
NANO = Path("/tmp/nano")
IDS = st.lists(st.integers(0, 420), max_size=40)  # bytes and special tokens are among the first; some ids are unknown
CUTS = st.lists(st.integers(0, 40), max_size=6)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS, 400)


def pieces(tokenizer, ids, cuts, stop=()):
    """The stream cut at `cuts`: what each feed and the flush gave, and the stop string."""
    stream = TextStream(tokenizer, stop)
    edges = [0, *sorted(cuts), len(ids)]
    given = [stream.feed(ids[a:b]) for a, b in itertools.pairwise(edges)]
    return [*given, stream.flush()], stream.stopped


@given(IDS, CUTS)
def test_the_pieces_joined_are_the_decoded_text(tokenizer, ids, cuts):
    assert "".join(pieces(tokenizer, ids, cuts)[0]) == tokenizer.decode(ids)
    assert "".join(pieces(tokenizer, ids, range(len(ids)))[0]) == tokenizer.decode(ids)


@pytest.mark.skipif(not NANO.is_dir(), reason="no trained model here")
@given(st.data())
def test_the_pieces_joined_are_the_decoded_text_of_a_real_vocabulary(data):
    real = Tokenizer.load(NANO)
    ids = data.draw(st.lists(st.integers(0, len(real) + 2), max_size=60))
    assert "".join(pieces(real, ids, range(len(ids)))[0]) == real.decode(ids)


@given(st.lists(st.binary(min_size=1, max_size=4), max_size=8))
def test_bytes_that_are_not_utf8_become_the_replacement_character_as_in_decoding(tokenizer, runs):
    by_byte = {tokenizer.token_bytes(number): number for number in range(8, 264)}
    ids = [by_byte[bytes([byte])] for run in runs for byte in run]
    assert "".join(pieces(tokenizer, ids, range(len(ids)))[0]) == tokenizer.decode(ids)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_no_piece_holds_half_a_character(tokenizer, text):
    ids = tokenizer.encode(text, special=False)
    given_pieces, _ = pieces(tokenizer, ids, range(len(ids)))
    assert "".join(given_pieces) == text
    assert given_pieces[-1] == ""


def test_the_bytes_of_all_tokens_are_their_text(tokenizer):
    for token in SPECIAL_TOKENS:
        assert tokenizer.token_bytes(tokenizer.encode(token)[0]) == token.encode()
    ids = tokenizer.encode("The price of 東京 🙂\n")
    assert b"".join(map(tokenizer.token_bytes, ids)) == "The price of 東京 🙂\n".encode()
    assert tokenizer.token_bytes(10**6) == b""


def first_stop(text, stops):
    """The text before the stop string that is complete first, by the definition: look at one more letter each time."""
    for end in range(1, len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            stop = max(ended, key=len)
            return text[: end - len(stop)], stop
    return text, None


@given(st.text("ab\n🙂", max_size=30), st.lists(st.text("ab\n🙂", min_size=1, max_size=4), max_size=3), CUTS)
@example("aab", ["aaab", "ab"], [0, 1, 2])
@example("xab", ["b", "ab"], [])
def test_a_stop_string_cuts_the_text_where_it_is_completed_first(tokenizer, text, stops, cuts):
    ids = tokenizer.encode(text, special=False)
    expected = first_stop(text, stops)
    for places in (cuts, range(len(ids))):
        given_pieces, stopped = pieces(tokenizer, ids, places, stops)
        assert ("".join(given_pieces), stopped) == expected


def test_the_beginning_of_a_stop_string_is_held_and_given_when_it_is_none(tokenizer):
    stream = TextStream(tokenizer, ["END"])
    ids = tokenizer.encode("a E", special=False)
    assert stream.feed(ids) == "a "
    assert stream.feed(tokenizer.encode("N")) == ""
    assert stream.feed(tokenizer.encode("O")) == "ENO"
    assert stream.feed(tokenizer.encode("EN")) == ""
    assert stream.flush() == "EN"
    assert stream.stopped is None


def test_after_a_stop_nothing_is_given(tokenizer):
    stream = TextStream(tokenizer, ["\n"])
    assert stream.feed(tokenizer.encode("one\ntwo")) == "one"
    assert (stream.feed(tokenizer.encode("three")), stream.flush(), stream.stopped) == ("", "", "\n")


def test_an_empty_stop_string_is_refused(tokenizer):
    with pytest.raises(ValueError, match="empty"):
        TextStream(tokenizer, ["a", ""])


def test_a_token_takes_microseconds_however_long_the_stream_is(tokenizer):
    ids = tokenizer.encode("The price of train 12 " * 10_000, special=False)
    for stop in ((), ("\n\nUser:", "</done>")):
        stream = TextStream(tokenizer, stop)
        start = time.perf_counter()
        for number in ids:
            stream.feed((number,))
        assert (time.perf_counter() - start) / len(ids) < 20e-6
