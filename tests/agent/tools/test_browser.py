"""Search, open, find: pages with cursors, numbered lines and links, as V3.2's search agent reads them."""

import asyncio
import json
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baleen.agent.tools import Toolbox
from baleen.agent.tools.browser import DocumentBrowser
from baleen.agent.tools.documents import DocumentStore
from baleen.agent.tools.pages import Link, Page, with_links
from baleen.chat.messages import FunctionCall, ToolCall

LONG = "\n".join(f"Paragraph {i} of a long report." for i in range(200)) + "\nThe needle lies\nin this haystack."
STORE = DocumentStore.from_documents(
    {
        "wiki": [
            (
                "https://w.org/whale",
                "Whales",
                "They eat [krill](https://w.org/krill#food), see [map](https://no.where).",
            ),
            ("https://w.org/krill", "Krill", "Krill are small.\nWhales eat krill."),
            ("zh", "须鲸", "须鲸用鲸须过滤海水中的磷虾。" * 30),
        ],
        "reports": [("long", "Report", LONG), ("7", "Seven", "The seventh document.")],
    }
)


class Session:
    """The tools as a model meets them: through a toolbox, with JSON arguments."""

    def __init__(self):
        self.toolbox = Toolbox(DocumentBrowser(STORE, num_lines=20, width=60).tools)

    def __call__(self, name, **arguments):
        call = ToolCall(id="c", function=FunctionCall(name=name, arguments=json.dumps(arguments)))
        return asyncio.run(self.toolbox.call(call)).content


def test_the_tools_have_the_names_and_arguments_of_the_search_agent():
    specs = {spec.name: list(spec.function["parameters"]["properties"]) for spec in Session().toolbox.specs}
    assert specs == {
        "search": ["query", "topn", "source"],
        "open": ["id", "cursor", "loc", "num_lines"],
        "find": ["pattern", "cursor"],
    }


def test_a_result_page_has_numbered_lines_and_a_link_to_each_document():
    assert Session()("search", query="krill small", topn=1) == (
        "[0] Results for krill small\n**viewing lines [0 - 1] of 1**\n\n"
        "L0: 【0†Krill】 (https://w.org/krill)\nL1: Krill are small. Whales eat krill."
    )


def test_a_link_opens_the_document_and_its_own_links_lead_on():
    session = Session()
    session("search", query="whales map")
    assert session("open", id=0) == (
        "[1] Whales (https://w.org/whale)\n**viewing lines [0 - 0] of 0**\n\n"
        "L0: They eat 【0†krill】, see [map](https://no.where)."
    )
    assert session("open", id=0).startswith("[2] Krill (https://w.org/krill)")
    assert session("open", id=0, cursor=1).startswith("[3] Krill")  # the link of an earlier page


def test_a_document_opens_at_the_passage_that_was_searched_or_at_the_line_that_was_asked():
    session = Session()
    session("search", query="needle haystack")
    assert "L200: The needle lies\nL201: in this haystack." in session("open", id=0)
    assert session("open", id=0, cursor=0, loc=5, num_lines=2) == (
        "[2] Report (long)\n**viewing lines [5 - 6] of 201**\n\n"
        "L5: Paragraph 5 of a long report.\nL6: Paragraph 6 of a long report."
    )


def test_without_an_id_open_scrolls_and_the_cursor_stays():
    session = Session()
    assert "L19:" in session("open", id="long")
    assert session("open", loc=20).startswith(
        "[0] Report (long)\n**viewing lines [20 - 39] of 201**\n\nL20: Paragraph 20"
    )
    session("search", query="krill")
    assert session("open", cursor=0, loc=199, num_lines=1).endswith("L199: Paragraph 199 of a long report.")
    assert session("find", pattern="Paragraph 77").startswith("[0] Report (long)\n**1 matches")  # last seen


def test_reading_window_after_window_reads_the_whole_document():
    session = Session()
    text, loc = session("open", id="long"), 0
    lines = []
    while True:
        head, body = text.split("\n\n", 1)
        _, end, last = map(int, re.search(r"lines \[(\d+) - (\d+)\] of (\d+)", head).groups())
        lines += [line.split(": ", 1)[1] for line in body.split("\n")]
        if end == last:
            break
        loc = end + 1
        text = session("open", loc=loc)
    assert "\n".join(lines) == LONG


def test_a_document_can_be_opened_by_its_id_even_when_that_looks_like_a_number():
    assert Session()("open", id="7").startswith("[0] Seven (7)")
    assert Session()("open", id="https://w.org/krill").startswith("[0] Krill")


def test_null_and_minus_one_mean_not_given():
    session = Session()
    session("search", query="krill", source=None)
    first = session("open", id=0, cursor=-1, loc=-1, num_lines=-1)
    again = session("open", id=0, cursor=0, loc=None, num_lines=None)
    assert first.replace("[1]", "[2]") == again
    assert session("open", id=None, cursor=None) == again
    assert session("open", id="-1", cursor="-1") == again


def test_find_looks_over_the_end_of_a_line_and_at_both_cases():
    session = Session()
    session("open", id="long")
    answer = session("find", pattern="NEEDLE lies in")
    assert answer.startswith("[0] Report (long)\n**1 matches of 'NEEDLE lies in'**\n\nL199: Paragraph 199")
    assert "L200: The needle lies\nL201: in this haystack." in answer
    assert session("find", pattern="no such text").endswith("**0 matches of 'no such text'**")
    many = session("find", pattern="paragraph")
    assert "**200 matches" in many
    assert many.endswith("[180 further lines have it; the last is L199]")


def test_a_long_chinese_line_is_wrapped_and_found():
    session = Session()
    session("search", query="鲸须")
    shown = session("open", id=0)
    assert all(len(line) <= 66 for line in shown.split("\n"))
    assert "**30 matches" in session("find", pattern="磷虾")


@pytest.mark.parametrize(
    ("name", "arguments", "mistake"),
    [
        ("open", {"id": 0}, "error: no page is open yet; search first, or open a document by its id"),
        ("find", {"pattern": "x"}, "error: no page is open yet"),
        ("open", {"id": "nowhere"}, "error: no document has the id 'nowhere'"),
        ("search", {"query": "?!"}, "error: query has no words"),
        ("search", {"query": "x", "source": "web"}, "error: no source 'web'; sources: wiki, reports"),
        ("search", {"query": "x", "topn": "many"}, "error: search: topn: Input should be a valid integer"),
    ],
)
def test_a_mistake_on_an_empty_history_is_readable(name, arguments, mistake):
    assert Session()(name, **arguments).startswith(mistake)


@pytest.mark.parametrize(
    ("name", "arguments", "mistake"),
    [
        ("open", {"id": 1}, "error: page 0 has link 0, not 1"),
        ("open", {"id": 0, "cursor": 4}, "error: cursor 4 does not exist; pages 0 to 0 do"),
        ("open", {"loc": 99}, "error: page 0 has lines 0 to 1, not 99"),
        ("find", {"pattern": " "}, "error: pattern is empty"),
    ],
)
def test_a_mistake_about_a_page_says_what_there_is(name, arguments, mistake):
    session = Session()
    session("search", query="krill small", topn=1)
    assert session(name, **arguments).startswith(mistake)


def test_a_failed_call_leaves_no_page_behind():
    session = Session()
    session("open", id="long")
    session("open", id="long", loc=10_000)
    assert session("search", query="krill").startswith("[1]")


def test_a_search_without_results_says_so():
    assert Session()("search", query="xylophone") == "No results for 'xylophone'."


def test_the_toolboxs_time_limit_ends_the_wait_for_a_slow_search():
    class SlowStore(DocumentStore):
        def search(self, *args):
            time.sleep(1.0)
            return super().search(*args)

    browser = DocumentBrowser(SlowStore.from_documents([("krill", "Krill", "Krill are small.")]))
    toolbox = Toolbox(browser.tools, seconds=0.2)

    async def answers(*calls):
        calls = [ToolCall(id="c", function=FunctionCall(name=n, arguments=json.dumps(a))) for n, a in calls]
        return [(await toolbox.call(call)).content for call in calls]

    began = time.monotonic()
    slow, after = asyncio.run(answers(("search", {"query": "krill"}), ("open", {"id": "krill"})))
    assert time.monotonic() - began < 0.9
    assert slow == "error: search: timed out after 0.2 s"
    assert after.startswith("[0] Krill (krill)")


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab 鲸\n", max_size=200), st.integers(1, 12))
def test_wrapping_loses_nothing_but_the_space_at_a_break(text, width):
    page = Page("t", text, width=width)
    assert all(len(line) <= width for line in page.lines)
    rebuilt = ""
    for start, line in zip(page.starts, page.lines, strict=True):
        assert text[start : start + len(line)] == line
        gap = text[len(rebuilt) : start]
        assert gap in ("", " ", "\n")
        rebuilt += gap + line
    assert rebuilt == text


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab鲸 \n", min_size=5, max_size=100), st.integers(1, 12), st.data())
def test_find_finds_every_piece_of_a_page(text, width, data):
    page = Page("t", text, width=width)
    begin = data.draw(st.integers(0, len(text) - 1))
    piece = text[begin : begin + data.draw(st.integers(1, 20))].strip()
    if piece:
        line = page.line_of(text.index(piece, begin))
        assert "**0 matches" not in page.found(piece, 0)
        assert page.starts[line] <= text.index(piece, begin)


def test_links_to_documents_are_numbered_and_others_stay_as_they_are():
    known = {"a": Link("a", "s"), "b_(c)": Link("b_(c)", "s")}
    text = "[one](a) ![image](a) [two](b_(c)) [again](a 'title') [no](x) [] ()"
    assert with_links(text, known.get) == (
        "【0†one】 ![image](a) 【1†two】 【0†again】 [no](x) [] ()",
        [known["a"], known["b_(c)"]],
    )


def test_many_links_take_no_longer_than_their_text():
    began = time.monotonic()
    text, links = with_links("".join(f"[x]({i})" for i in range(50_000)), lambda address: Link(address, "s"))
    assert time.monotonic() - began < 3
    assert [link.id for link in links] == [str(i) for i in range(50_000)]
    assert text.endswith("【49999†x】")


@pytest.mark.parametrize("hostile", ["[a](" + "x" * 500_000, "[a](x " * 80_000, "[" * 500_000, "[a](((" * 80_000])
def test_a_hostile_document_takes_no_longer_than_another(hostile):
    began = time.monotonic()
    with_links(hostile, lambda address: None)
    Page("t", hostile).found("a (x", 0)
    assert time.monotonic() - began < 3
