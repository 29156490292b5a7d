"""The parser: round trips, every way of cutting the text, and the best reading of broken text."""

import itertools
import json
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from baleen.chat import Fault, FunctionCall, Message, StreamParser, ToolCall, encode, parse
from baleen.chat.markup import CALLS_CLOSE, CALLS_OPEN, DSML, EOS, SPECIAL_TOKENS, THINK_END

USER = Message(role="user", content="Q")
INVOKE = f'<{DSML}invoke name="f">\n<{DSML}parameter name="x" string="false">1</{DSML}parameter>\n</{DSML}invoke>'
BLOCK = f"\n\n{CALLS_OPEN}\n{INVOKE}\n{CALLS_CLOSE}"

PLAIN = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(lambda text: "<" not in text)
NAMES = st.from_regex(r"[a-z_][\w.-]{0,9}", fullmatch=True)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PLAIN, inner, max_size=3),
    max_leaves=6,
)
CALLS = st.lists(
    st.builds(
        lambda name, arguments: ToolCall(
            function=FunctionCall(name=name, arguments=json.dumps(arguments, ensure_ascii=False))
        ),
        NAMES,
        st.dictionaries(NAMES, JSON, max_size=3),
    ),
    max_size=3,
)
FRAGMENTS = [
    *SPECIAL_TOKENS,
    CALLS_OPEN,
    CALLS_CLOSE,
    BLOCK,
    INVOKE,
    f'<{DSML}invoke name="f">',
    f"</{DSML}invoke>",
    f'<{DSML}parameter name="x" string="false">',
    f'<{DSML}parameter name="y">',
    f"</{DSML}parameter>",
    "\n",
    "\n\n",
    " ",
    "<",
    "</",
    '{"a": 1}',
    "text",
    "é",
]
ROUGH = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=12).map("".join)


@given(PLAIN, PLAIN, CALLS, st.booleans())
def test_a_turn_comes_back_as_it_was_written(reasoning, content, calls, thinking):
    if calls and not content.strip():
        content = ""
    turn = Message(
        role="assistant",
        content=content or None,
        reasoning_content=(reasoning or None) if thinking else None,
        tool_calls=calls,
    )
    completion = encode([USER, turn], thinking=thinking).removeprefix(encode([USER], thinking=thinking))
    parsed = parse(completion, thinking)
    assert parsed.to_message() == turn
    assert parsed.faults == ()
    assert encode([USER, parsed.to_message()], thinking=thinking).endswith(completion)


def joined(deltas):
    """Name and arguments of every call that was begun, put together as a client does it: by index."""
    calls = {}
    for piece in (piece for delta in deltas for piece in delta.tool_calls):
        assert (piece.name is None) == (piece.index in calls)
        name, arguments = calls.get(piece.index, (piece.name, ""))
        calls[piece.index] = name, arguments + piece.arguments
    assert list(calls) == list(range(len(calls)))
    return list(calls.values())


def is_json(text):
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


@settings(max_examples=400)
@given(ROUGH, st.booleans(), st.lists(st.integers(0, 200), max_size=8))
@example(f"a\n\n{CALLS_OPEN}b{THINK_END}c{EOS}", True, list(range(80)))
def test_every_way_of_cutting_the_text_gives_the_same_message(text, thinking, cuts):
    whole = parse(text, thinking)
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    for chunks in (list(text), [text[a:b] for a, b in itertools.pairwise(edges)]):
        parser = StreamParser(thinking)
        deltas = [parser.feed(chunk) for chunk in chunks] + [parser.flush()]
        assert parser.finish() == whole
        assert "".join(delta.reasoning_content for delta in deltas) == (whole.reasoning_content or "")
        assert "".join(delta.content for delta in deltas) == (whole.content or "")
        shown = joined(deltas)
        assert [call for call in shown if is_json(call[1])] == [
            (call.function.name, call.function.arguments) for call in whole.tool_calls
        ]
        assert parser.unfinished_call == (len(shown) > len(whole.tool_calls))


@settings(max_examples=400)
@given(ROUGH, st.booleans())
def test_no_text_of_the_model_raises_or_is_lost(text, thinking):
    parsed = parse(text, thinking)
    read = (parsed.reasoning_content or "") + (parsed.content or "")
    for call in parsed.tool_calls:
        read += call.function.name + "".join(map(str, call.function.parsed().values()))
    assert read.count("text") >= text.count("text")
    assert read.count("é") >= text.count("é")


def test_a_stream_never_shows_half_a_tag():
    parser = StreamParser()
    text = f"why{THINK_END}now{BLOCK}{EOS}"
    shown = "".join(delta.reasoning_content + delta.content for delta in map(parser.feed, text))
    assert shown == "whynow"
    assert parser.finish().tool_calls[0].function.arguments == '{"x": 1}'


def test_reasoning_that_never_closes_is_all_reasoning():
    assert parse("on and on").reasoning_content == "on and on"
    assert parse("on and on").content is None
    assert parse("on and on").faults == (Fault.MISSING_THINK_END, Fault.MISSING_END)


def test_calls_after_reasoning_that_never_closed_are_calls():
    parsed = parse(f"go{BLOCK}{EOS}")
    assert parsed.reasoning_content == "go"
    assert parsed.tool_calls[0].function.name == "f"
    assert parsed.faults == (Fault.MISSING_THINK_END,)


def test_calls_within_closed_reasoning_are_reasoning():
    parsed = parse(f"go{BLOCK}{THINK_END}A{EOS}")
    assert parsed.reasoning_content == f"go{BLOCK}"
    assert (parsed.content, parsed.tool_calls, parsed.faults) == ("A", (), ())


def read(body, **options):
    return parse(f"\n\n{CALLS_OPEN}\n{body}\n{CALLS_CLOSE}{EOS}", thinking=False, **options)


def test_a_value_that_is_not_json_stays_as_a_string():
    for value in ("one", "NaN", "1e999", "[" * 100_000):
        parsed = read(INVOKE.replace(">1<", f">{value}<"))
        assert parsed.tool_calls[0].function.parsed() == {"x": value}
        assert parsed.faults == (Fault.INVALID_JSON,)


def test_a_string_value_keeps_every_character():
    value = f' "1"\n</x> {CALLS_CLOSE}{EOS}<｜User｜> '
    parsed = read(INVOKE.replace('"false">1<', f'"true">{value}<'))
    assert parsed.tool_calls[0].function.parsed() == {"x": value}
    assert parsed.faults == ()


def test_a_parameter_without_its_kind_is_read_as_json_if_it_is_json():
    for value, meant in (("2", 2), ("two", "two")):
        parsed = read(INVOKE.replace(' string="false">1<', f">{value}<"))
        assert parsed.tool_calls[0].function.parsed() == {"x": meant}
        assert parsed.faults == (Fault.MALFORMED_CALL,)


def test_a_second_value_of_a_parameter_is_kept_as_text():
    again = f'<{DSML}parameter name="x" string="true">2</{DSML}parameter>'
    parsed = read(INVOKE.replace(f"\n</{DSML}invoke>", f"\n{again}\n</{DSML}invoke>"))
    assert parsed.tool_calls[0].function.parsed() == {"x": 1}
    assert parsed.content == again
    assert parsed.faults == (Fault.DUPLICATE_PARAMETER,)


@pytest.mark.parametrize("kept", range(len(INVOKE)))
def test_a_truncated_call_is_text_and_the_calls_before_it_stay(kept):
    torn = INVOKE[:kept]
    alone = parse(f"A\n\n{CALLS_OPEN}\n{torn}", thinking=False)
    assert alone.tool_calls == ()
    assert alone.content == f"A\n\n{CALLS_OPEN}\n{torn}"
    after = parse(f"A\n\n{CALLS_OPEN}\n{INVOKE}\n{torn}", thinking=False)
    assert len(after.tool_calls) == 1
    assert after.content.replace("\n", "") == f"A{torn}".replace("\n", "")
    assert Fault.TRUNCATED_CALL in alone.faults
    assert Fault.TRUNCATED_CALL in after.faults


def test_text_after_calls_and_after_the_end_is_content():
    parsed = parse(f"A{BLOCK}B{EOS}C", thinking=False)
    assert parsed.content == "ABC"
    assert parsed.faults == (Fault.TEXT_AFTER_CALLS, Fault.TEXT_AFTER_END)


def test_a_second_block_of_calls_is_read_with_a_fault():
    parsed = parse(f"{BLOCK}{BLOCK}{EOS}", thinking=False)
    assert len(parsed.tool_calls) == 2
    assert parsed.faults == (Fault.TEXT_AFTER_CALLS,)


def test_white_space_around_calls_is_no_content():
    parsed = parse(f" {BLOCK}\n{EOS}\n", thinking=False)
    assert parsed.content is None
    assert parsed.faults == ()


def test_an_unknown_tool_is_a_fault_only_when_the_tools_are_known():
    known = [{"type": "function", "function": {"name": "f"}}]
    assert read(INVOKE, tools=known).faults == ()
    assert read(INVOKE, tools=[]).faults == (Fault.UNKNOWN_TOOL,)
    assert read(INVOKE).faults == ()


def test_turn_tags_in_an_answer_are_text_with_a_fault():
    parsed = parse(f"A<｜User｜>B{EOS}", thinking=False)
    assert parsed.content == "A<｜User｜>B"
    assert parsed.faults == (Fault.STRAY_MARKUP,)


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        " \n" * 50_000,
        "<" * 100_000,
        f"<{DSML}" * 10_000,
        CALLS_OPEN * 5_000,
        f'<{DSML}invoke name="f">' * 5_000,
        f'{INVOKE[:-20]}<{DSML}parameter name="y" string="true">' + f"a{EOS}" * 10_000,
        f'{INVOKE[:-20]}<{DSML}parameter name="y" string="false">' + "[" * 100_000,
        f'{CALLS_CLOSE}{CALLS_OPEN}<{DSML}invoke name="f"><{DSML}parameter name="x" string="true">' * 1_000,
        f'<{DSML}invoke name="f"><{DSML}parameter name="x">' * 2000,
        f'<{DSML}parameter name="x' * 4000,
        (INVOKE + f"</{DSML}parameter>") * 1000 + f'<{DSML}invoke name="f"><{DSML}parameter name="x' * 1000,
    ],
)
def test_hostile_text_takes_no_more_than_seconds(text, thinking):
    start = time.monotonic()
    parse(CALLS_OPEN + text * 3, thinking)
    parser = StreamParser(thinking)
    for chunk in (CALLS_OPEN, *text):
        parser.feed(chunk)
    parser.finish()
    assert time.monotonic() - start < 10
