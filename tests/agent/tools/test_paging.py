"""Long results page by page: nothing lost, and always a way to read on."""

import asyncio
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baleen.agent.tools import Toolbox
from baleen.agent.tools.paging import Pages, split_pages
from baleen.chat.messages import FunctionCall, ToolCall

TEXT = "".join(f"line {i}\n" for i in range(100))


async def long(lines: int = 100) -> str:
    return "".join(f"line {i}\n" for i in range(lines))


def answer(toolbox, name, **arguments):
    call = ToolCall(id="c", function=FunctionCall(name=name, arguments=json.dumps(arguments)))
    return asyncio.run(toolbox.call(call)).content


@given(st.text(alphabet="ab\n é", max_size=300), st.integers(1, 50))
def test_pages_joined_are_the_text_and_none_is_too_long(text, characters):
    pages = split_pages(text, characters)
    assert "".join(pages) == text
    assert all(len(page) <= characters for page in pages)


@given(st.lists(st.text(alphabet="ab é", max_size=20), min_size=1, max_size=30), st.integers(21, 60))
def test_a_page_ends_where_a_line_ends_when_lines_fit_on_pages(lines, characters):
    pages = split_pages("\n".join(lines), characters)
    assert all(page.endswith("\n") for page in pages[:-1])


def test_a_result_that_fits_is_unchanged_and_no_tool_is_added_without_paging():
    assert answer(Toolbox([long]), "long") == TEXT
    assert [spec.name for spec in Toolbox([long]).specs] == ["long"]
    assert answer(Toolbox([long], page_characters=len(TEXT)), "long") == TEXT


def test_following_the_last_line_of_each_page_reads_the_whole_text():
    toolbox = Toolbox([long], page_characters=100)
    assert [spec.name for spec in toolbox.specs] == ["long", "read_result"]
    shown = answer(toolbox, "long")
    read = ""
    for _ in range(100):
        text, last = shown.rsplit("\n", 1)
        read += text + "\n"
        following = re.search(r'read_result\(id="(r\d+)", page=(\d+)\) reads on', last)
        if following is None:
            break
        shown = answer(toolbox, "read_result", id=following[1], page=int(following[2]))
    assert read == TEXT
    assert last.startswith("[page ")


@pytest.mark.parametrize(
    ("arguments", "mistake"),
    [
        ({"id": "r9"}, "error: no result 'r9' is kept; kept: r1"),
        ({"id": "r1", "page": 99}, "error: result 'r1' has pages 1 to 9, not 99"),
        ({"id": "r1", "page": 0}, "error: result 'r1' has pages 1 to 9, not 0"),
    ],
)
def test_a_page_that_is_not_there_is_a_readable_mistake(arguments, mistake):
    toolbox = Toolbox([long], page_characters=100)
    answer(toolbox, "long")
    assert answer(toolbox, "read_result", **arguments) == mistake


def test_old_results_make_room_for_new_ones():
    pages = Pages(10, kept_characters=100)
    for _ in range(3):
        pages.first("x" * 50)
    with pytest.raises(ValueError, match="no result 'r1' is kept; kept: r2, r3"):
        asyncio.run(pages.read_result("r1"))


def test_the_newest_result_is_kept_however_long_it_is():
    pages = Pages(10, kept_characters=5)
    pages.first("x" * 50)
    assert asyncio.run(pages.read_result("r1", 5)).endswith("[page 5 of 5]")
