"""Calls while they stream: arguments letter by letter, never a tag, and no half-written call among the calls."""

import itertools
import json
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baleen.chat import CallDelta, Fault, StreamParser, parse
from baleen.chat.markup import CALLS_CLOSE, CALLS_OPEN, DSML, EOS, FIXED_TEXTS, SPECIAL_TOKENS, THINK_END

CLOSE = f"</{DSML}parameter>"
END = f"\n</{DSML}invoke>\n{CALLS_CLOSE}{EOS}"


def opening(key, kind, name="f"):
    return f'\n\n{CALLS_OPEN}\n<{DSML}invoke name="{name}">\n<{DSML}parameter name="{key}" string="{kind}">'


def shown(deltas):
    return "".join(piece.arguments for delta in deltas for piece in delta.tool_calls)


def test_a_string_is_shown_letter_by_letter_as_json():
    parser = StreamParser(thinking=False)
    assert parser.feed(opening("q", "true")).tool_calls == (CallDelta(0, "f", '{"q": "'),)
    for letter, escaped in (("a", "a"), ('"', '\\"'), ("\n", "\\n"), ("東", "東"), ("\\", "\\\\")):
        assert parser.feed(letter).tool_calls == (CallDelta(0, None, escaped),)
    assert parser.feed(CLOSE).tool_calls == (CallDelta(0, None, '"'),)
    assert parser.feed(END).tool_calls == (CallDelta(0, None, "}"),)
    assert parser.finish().tool_calls[0].function.parsed() == {"q": 'a"\n東\\'}
    assert not parser.unfinished_call


@given(st.text(max_size=30), st.integers(1, 3))
def test_the_closing_tag_of_a_value_is_never_shown(value, step):
    text = opening("q", "true") + value + CLOSE + END
    parser = StreamParser(thinking=False)
    seen = ""
    for place in range(0, len(text), step):
        seen += shown([parser.feed(text[place : place + step])])
        assert json.dumps({"q": value}, ensure_ascii=False).startswith(seen)
    assert seen == parser.finish().tool_calls[0].function.arguments


def test_what_may_be_the_beginning_of_the_closing_tag_is_held():
    parser = StreamParser(thinking=False)
    parser.feed(opening("q", "true"))
    assert parser.feed("a<").tool_calls[0].arguments == "a"
    assert parser.feed(CLOSE[1:-1]).tool_calls == ()
    assert parser.feed("!").tool_calls[0].arguments == f"{CLOSE[:-1]}!"


def test_a_value_that_must_be_json_is_shown_when_it_closes():
    parser = StreamParser(thinking=False)
    parser.feed(opening("n", "false"))
    assert all(parser.feed(letter).tool_calls == () for letter in ' {"k": [1, 2]} ')
    assert parser.feed(CLOSE).tool_calls == (CallDelta(0, None, '"n": {"k": [1, 2]}'),)
    assert parser.feed(f'<{DSML}parameter name="m" string="false">one').tool_calls == ()
    assert parser.feed(CLOSE).tool_calls == (CallDelta(0, None, ', "m": "one"'),)


def test_a_string_is_held_where_the_tool_takes_none():
    tools = [{"function": {"name": "f", "parameters": {"properties": {"n": {"type": "integer"}}}}}]
    parser = StreamParser(False, tools)
    parser.feed(opening("n", "true"))
    assert parser.feed("12").tool_calls == ()
    assert parser.feed(CLOSE).tool_calls == (CallDelta(0, None, '"n": 12'),)
    assert parser.feed(END).content == ""
    assert parser.finish().faults == (Fault.WRONG_TYPE,)


def test_calls_have_the_index_of_their_place():
    one, two = (f'<{DSML}invoke name="{name}">\n</{DSML}invoke>' for name in "ab")
    parser = StreamParser(thinking=False)
    delta = parser.feed(f"\n\n{CALLS_OPEN}\n{one}\n{two}\n{CALLS_CLOSE}{EOS}")
    assert delta.tool_calls == (CallDelta(0, "a", "{}"), CallDelta(1, "b", "{}"))


@pytest.mark.parametrize("kind", ["true", "false"])
@pytest.mark.parametrize("end", ["", EOS, f"\n</{DSML}invoke>\n{CALLS_CLOSE}{EOS}"])
def test_a_call_that_breaks_off_was_shown_but_is_text_in_the_message(kind, end):
    text = opening("q", kind) + "rm -rf" + end
    parser = StreamParser(thinking=False)
    deltas = [*map(parser.feed, text), parser.flush()]
    message = parser.finish()
    assert shown(deltas).startswith("{")
    assert EOS not in shown(deltas)
    assert message.tool_calls == ()
    assert message.content == "".join(delta.content for delta in deltas) == text.removesuffix(EOS)
    assert Fault.TRUNCATED_CALL in message.faults
    assert parser.unfinished_call
    assert (Fault.MISSING_END in message.faults) == (not end)


def test_only_calls_that_were_shown_can_be_unfinished():
    parser = StreamParser(thinking=False)
    parser.feed(f'\n\n{CALLS_OPEN}\n<{DSML}invoke name="a">\n</{DSML}invoke>\n<{DSML}invoke name="b')
    assert [call.function.name for call in parser.finish().tool_calls] == ["a"]
    assert not parser.unfinished_call


def test_a_call_after_one_that_was_left_keeps_its_own_index():
    left = f'<{DSML}invoke name="a">\n<{DSML}parameter name="q" string="true">x{CLOSE}\n'
    parser = StreamParser(thinking=False)
    delta = parser.feed(f'\n\n{CALLS_OPEN}\n{left}<{DSML}invoke name="b">\n</{DSML}invoke>\n{CALLS_CLOSE}{EOS}')
    assert delta.tool_calls == (CallDelta(0, "a", '{"q": "x"'), CallDelta(1, "b", "{}"))
    assert [call.function.name for call in parser.finish().tool_calls] == ["b"]
    assert delta.content == left
    assert parser.unfinished_call


def test_calls_after_reasoning_that_never_closed_stream_from_the_end_of_sentence_on():
    parser = StreamParser()
    assert parser.feed("go" + opening("q", "true") + "a" + CLOSE + END.removesuffix(EOS)).tool_calls == ()
    assert parser.feed(EOS).tool_calls == (CallDelta(0, "f", '{"q": "a"}'),)


MARKUP = "".join((*SPECIAL_TOKENS, *FIXED_TEXTS, *(opening("", kind, "") for kind in ("true", "false"))))
LETTERS = [letter for letter in "0123456789QXZé東🙂" if letter not in MARKUP]
TOOLS = [
    {"function": {"name": "f", "parameters": {"properties": {"Q": {"type": "integer"}, "X": {"enum": ["Z", 7]}}}}},
    {"function": {"name": "Z", "parameters": {"required": ["X"], "additionalProperties": False}}},
]


def a_text(rng):
    """Random bytes, or a turn with calls that was cut, doubled and stirred."""
    if rng.random() < 0.2:
        return rng.randbytes(rng.randrange(200)).decode("utf-8", "replace")
    words = ["".join(rng.choices(LETTERS, k=rng.randrange(1, 5))) for _ in range(4)]
    calls = [
        f'<{DSML}invoke name="{rng.choice(["f", "Z"])}">\n'
        + "\n".join(
            f'<{DSML}parameter name="{rng.choice("QXZ")}" string="{rng.choice(["true", "false"])}">'
            f"{rng.choice([*words, '7', '[1, 2]'])}{CLOSE}"
            for _ in range(rng.randrange(3))
        )
        + f"\n</{DSML}invoke>"
        for _ in range(rng.randrange(1, 4))
    ]
    text = f"{words[0]}{THINK_END}{words[1]}\n\n{CALLS_OPEN}\n" + "\n".join(calls) + f"\n{CALLS_CLOSE}{EOS}"
    for _ in range(rng.choice([0, 1, 1, 2, 4, 8])):
        start = rng.randrange(len(text) + 1)
        end = min(len(text), start + rng.choice([1, 5, 40]))
        piece = rng.choice(
            ["", "", text[start:end] * 2, rng.choice([*SPECIAL_TOKENS, CLOSE, '">', "<", "\n", words[2]])]
        )
        text = text[:start] + piece + text[end:]
    return text


def test_ten_thousand_broken_texts_are_read_whole_and_in_pieces_without_loss():
    rng = random.Random(0)
    start = time.monotonic()
    for _ in range(10_000):
        text, thinking, tools = a_text(rng), rng.random() < 0.5, rng.choice([None, TOOLS])
        whole = parse(text, thinking, tools)
        parser = StreamParser(thinking, tools)
        edges = sorted({0, len(text), *(rng.randrange(len(text) + 1) for _ in range(rng.randrange(9)))})
        deltas = [parser.feed(text[a:b]) for a, b in itertools.pairwise(edges)] + [parser.flush()]
        assert parser.finish() == whole, text
        arguments = [call.function.arguments for call in whole.tool_calls]
        assert all(isinstance(json.loads(each), dict) for each in arguments)
        read = "".join(
            [
                whole.reasoning_content or "",
                *(delta.content for delta in deltas),
                *(call.function.name for call in whole.tool_calls),
                *arguments,
            ]
        )
        assert all(read.count(letter) >= text.count(letter) for letter in LETTERS), text
    assert time.monotonic() - start < 60
