"""What programs print as plain text: no control character survives, nothing readable is lost."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baleen.agent.tools.terminal_text import middle_cut, plain_text


@pytest.mark.parametrize(
    ("printed", "read"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b[38;2;1;2;3mtrue colour\x1b[m", "true colour"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]0;without an end\nnext\nlines", "\nnext\nlines"),
        ("\x1bPwithout an end", ""),
        ("\x1b(B\x1b=\x1b[2J\x1b[Htop", "top"),
        ("10%\r50%\rdone\nnext", "done\nnext"),
        ("windows\r\nlines\r\n", "windows\nlines\n"),
        ("bo\x08\x08ab\x08c\n\x08d", "ac\nd"),
        ("tab\tstays \u9be8 \x00\x07", "tab\tstays \u9be8 "),
        ("[31m is text without its escape", "[31m is text without its escape"),
    ],
)
def test_it_reads_as_on_a_screen(printed, read):
    assert plain_text(printed) == read


@given(st.text(alphabet="ab\n\r\t\x08\x1b[]0;m\\\x07鲸"))
def test_no_control_character_is_left_whatever_was_printed(text):
    assert not set(plain_text(text)) & {chr(i) for i in range(32) if chr(i) not in "\n\t"}


@given(st.text(alphabet="ab \n\t鲸[;m"))
def test_plain_text_stays_as_it_is(text):
    assert plain_text(text) == text


@pytest.mark.parametrize(
    "hostile", ["a" * 200_000 + "\x08" * 200_000, "\x1b]" * 200_000, "\x1b[" * 200_000, "\r" * 400_000]
)
def test_hostile_text_takes_no_longer_than_other_text(hostile):
    began = time.monotonic()
    plain_text(hostile)
    assert time.monotonic() - began < 2


@given(st.text(alphabet="ab\n", max_size=100), st.integers(2, 40), st.integers(0, 50))
def test_a_cut_keeps_both_ends_and_counts_the_rest(text, characters, already):
    shown = middle_cut(text, characters, already)
    if len(text) <= characters and not already:
        assert shown == text
        return
    head, note, tail = shown[: characters // 2], shown.split("[... ")[1].split(" ")[0], shown.rsplit(" ...]\n", 1)[1]
    head = head if len(text) >= characters // 2 else text
    assert text.startswith(head)
    assert text.endswith(tail)
    assert int(note) == len(text) - len(head) - len(tail) + already
