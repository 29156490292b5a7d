"""Line-anchored edits as a function of text: only what was named changes."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baleen.agent.tools.files import edited, split_lines

lines_of_text = st.lists(st.text(alphabet="ab é", max_size=4), max_size=8)


def joined(lines, newline="\n", last_newline=True):
    return newline.join(lines) + newline * bool(lines and last_newline)


@given(lines_of_text, st.sampled_from(["\n", "\r\n"]), st.booleans(), st.data())
def test_an_edit_replaces_exactly_the_named_lines(lines, newline, last_newline, data):
    if lines and not lines[-1]:
        last_newline = True  # without a newline an empty last line would not be a line
    text = joined(lines, newline, last_newline)
    first = data.draw(st.integers(0, len(lines)))
    stop = data.draw(st.integers(first, len(lines)))
    new = data.draw(lines_of_text)
    after = edited(text, first + 1, joined(lines[first:stop]), joined(new))
    expected = [*lines[:first], *new, *lines[stop:]]
    assert split_lines(after)[0] == expected
    kind = newline if newline in text else "\n"
    ends_in_newline = last_newline or not lines or not expected or not expected[-1]
    assert after == joined(expected, kind, ends_in_newline)


@given(st.text(alphabet="ab\r\n", max_size=20))
def test_lines_and_their_ends_are_the_text(text):
    lines, ends = split_lines(text)
    assert "".join(line + end for line, end in zip(lines, ends, strict=True)) == text
    assert all(end in ("\n", "\r\n") for end in ends[:-1])


@given(st.text(alphabet="ab\r\n", max_size=20), st.integers(-2, 9), st.text(alphabet="ab\n", min_size=1, max_size=6))
def test_an_edit_is_made_where_old_stands_and_nowhere_else(text, line, old):
    lines, wanted = split_lines(text)[0], split_lines(old)[0]
    stands = line >= 1 and lines[line - 1 : line - 1 + len(wanted)] == wanted
    if stands:
        assert edited(text, line, old, old).replace("\r", "") == text.replace("\r", "")
    else:
        with pytest.raises(ValueError, match=r"does not stand at line|has no lines|has lines 1 to"):
            edited(text, line, old, "new")


def test_a_mismatch_shows_what_stands_there_and_where_old_stands():
    text = "".join(f"line {i}\n" for i in range(1, 13))
    with pytest.raises(ValueError, match="does not stand") as caught:
        edited(text, 7, "line 10", "x", "a.py")
    assert str(caught.value) == (
        "old does not stand at line 7 of a.py; nothing was changed. There is:\n"
        " 4| line 4\n 5| line 5\n 6| line 6\n 7| line 7\n 8| line 8\n 9| line 9\n10| line 10\n"
        "old stands at line 10"
    )


def test_mixed_line_ends_of_other_lines_are_kept():
    assert edited("a\r\nb\nc\r\n", 2, "b", "B") == "a\r\nB\r\nc\r\n"
    assert edited("a\nb\r\nc", 3, "c", "C\nD") == "a\nb\r\nC\nD"
    assert edited("a\nb", 2, "b", "") == "a"
    assert edited("a\n", 2, "", "b") == "a\nb\n"


@given(st.text(alphabet="ab\r\n", max_size=20), st.text(alphabet="ab\n", min_size=1, max_size=4))
def test_a_mismatch_names_every_place_where_old_stands(text, old):
    lines, wanted = split_lines("elsewhere\n" + text)[0], split_lines(old)[0]
    places = [i + 1 for i in range(len(lines) - len(wanted) + 1) if lines[i : i + len(wanted)] == wanted]
    with pytest.raises(ValueError, match="does not stand") as caught:
        edited("elsewhere\n" + text, 1, old, "new")
    named = str(caught.value).rsplit("\nold stands at line ", 1)[1:]
    assert named == ([", ".join(map(str, places[:10]))] if places else [])


def test_a_long_mismatch_in_a_file_of_like_lines_is_found_at_once():
    began = time.monotonic()
    with pytest.raises(ValueError, match="does not stand"):
        edited("a\n" * 100_000, 1, "a\n" * 20_000 + "b", "new")
    assert time.monotonic() - began < 2
