"""Nothing that a model writes becomes markup, and every number has a short form."""

from __future__ import annotations

import json
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from baleen.report.markup import Html, compact, duration, element, escape, number, percent

anything = st.text(st.characters(codec=None))


class Reader(HTMLParser):
    """Collects what a browser would see."""

    def __init__(self):
        super().__init__()
        self.tags, self.text, self.attributes = [], "", []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


@given(anything)
def test_text_never_opens_a_tag(text):
    reader = Reader()
    reader.feed(element("p", text))
    reader.close()
    assert reader.tags == ["p"]


@given(anything)
def test_an_attribute_never_leaves_its_quotes(text):
    reader = Reader()
    reader.feed(element("p", title=text))
    reader.close()
    assert reader.tags == ["p"]
    assert [name for name, _ in reader.attributes] == ["title"]


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_printable_text_reads_as_it_was_written(text):
    reader = Reader()
    reader.feed(escape(text))
    reader.close()
    assert reader.text == text


def test_an_address_cannot_be_found_by_searching_the_markup():
    assert "://" not in escape("see https://evil.example")


def test_lone_surrogates_and_overrides_become_harmless():
    shown = escape(json.loads('"a\\ud800b\\u202ec\\u0000d"'))
    assert shown.encode("utf-8")
    assert "\u202e" not in shown
    assert "\x00" not in shown


def test_markup_passes_unescaped_and_only_once():
    assert element("p", element("b", "<")) == "<p><b>&lt;</b></p>"
    assert isinstance(element("p"), Html)


def test_only_finite_numbers_count_as_numbers():
    unfit = [None, True, "3", float("nan"), float("-inf"), 10**400, []]
    assert [number(value) for value in (1, 2.5, *unfit)] == [1.0, 2.5, *[None] * len(unfit)]


def test_numbers_have_short_forms():
    assert [compact(v) for v in (None, 0.0, 1_234_567, 12_345, 340.4, 0.01234, 3e-6)] == [
        "–", "0", "1.23M", "12.3k", "340", "0.0123", "3e-06",
    ]  # fmt: skip
    assert [duration(v) for v in (None, 4.21, 185, 3720)] == ["–", "4.2 s", "3 min 05 s", "1 h 02 min"]
    assert [percent(v) for v in (None, 0.876)] == ["–", "87.6%"]
