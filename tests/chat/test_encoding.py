"""The text format, held to one exact conversation of the reference and to the mended faults."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baleen.chat import ChatFormatError, Message, encode, segments
from baleen.chat.markup import BOS, EOS, SPECIAL_TOKENS, TOOLS_AFTER, TOOLS_BEFORE

DATA = Path(__file__).parent / "data"


def call(name, identity=None, **arguments):
    text = json.dumps(arguments, ensure_ascii=False)
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": text}}


def result(content, identity=None):
    return {"role": "tool", "tool_call_id": identity, "content": content}


def calling(*calls, **fields):
    return {"role": "assistant", "tool_calls": list(calls), **fields}


USER = {"role": "user", "content": "Q"}
PAIR = calling(call("f", "a", x=1), call("g", "b", y="z"), reasoning_content="R")


def test_a_conversation_is_the_reference_text_to_the_byte():
    given_conversation = json.loads((DATA / "conversation.json").read_text(encoding="utf-8"))
    expected = (DATA / "conversation.txt").read_text(encoding="utf-8")
    assert encode(given_conversation["messages"], given_conversation["tools"]) == expected.removesuffix("\n")


def test_a_user_message_ends_with_the_generation_prompt_of_its_mode():
    assert encode([USER]) == f"{BOS}<｜User｜>Q<｜Assistant｜><think>"
    assert encode([USER], thinking=False) == f"{BOS}<｜User｜>Q<｜Assistant｜></think>"


def test_call_values_are_raw_strings_or_json_with_their_own_letters():
    text = encode([USER, calling(call("f", s="é\n", n=1.5, d={"k": ["ü", None, True]}), reasoning_content="R")])
    assert text.endswith(
        '<think>R</think>\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="f">\n'
        '<｜DSML｜parameter name="s" string="true">é\n</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="n" string="false">1.5</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="d" string="false">{"k": ["ü", null, true]}</｜DSML｜parameter>\n'
        f"</｜DSML｜invoke>\n</｜DSML｜function_calls>{EOS}"
    )


def test_reasoning_stays_over_tool_results_and_goes_with_the_next_user_message():
    turn = [USER, PAIR, result("1", "a"), result("2", "b")]
    assert "R</think>" in encode(turn)
    assert encode(turn).endswith("</function_results>\n\n<think>")
    later = encode([*turn, {"role": "assistant", "content": "A", "reasoning_content": "S"}, USER])
    assert "R</think>" not in later
    assert "S</think>" not in later
    assert "</function_results>\n\n</think>A" in later
    assert later.endswith("<think>")


def test_results_follow_the_order_of_their_calls():
    straight = [USER, PAIR, result("one", "a"), result("two", "b")]
    swapped = [USER, PAIR, result("two", "b"), result("one", "a")]
    one_without_id = [USER, PAIR, result("two", "b"), result("one")]
    assert encode(straight) == encode(swapped) == encode(one_without_id)


def test_results_are_matched_by_position_where_no_ids_exist():
    calls = calling(call("f"), call("f"))
    assert "<result>1</result>\n<result>2</result>" in encode([USER, calls, result("1"), result("2", "made-up")])


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([USER, PAIR, result("1", "a"), result("2", "c")], "unknown tool_call_id 'c'"),
        ([USER, PAIR, result("1", "a"), result("2", "a")], "a second time"),
        ([USER, PAIR, result("1", "a")], "unanswered: \\['b'\\]"),
        ([USER, PAIR, result("1"), result("2"), result("3")], "3 results"),
        ([USER, result("1", "a")], "no assistant message with calls"),
        ([result("1", "a")], "no assistant message with calls"),
        ([{"role": "developer", "content": ""}], "developer message without content"),
        ([{"role": "narrator", "content": "x"}], "OpenAI's shape"),
        ([USER, calling({"function": {"name": "f", "arguments": "[1]"}})], "not a JSON object"),
        ([USER, calling({"function": {"name": "f", "arguments": "{"}})], "not a JSON object"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "not text"),
    ],
)
def test_what_the_format_cannot_express_is_a_typed_error(messages, words):
    with pytest.raises(ChatFormatError, match=words):
        encode(messages)


def test_an_earlier_developer_message_keeps_its_place():
    developer = {"role": "developer", "content": "D"}
    answer = {"role": "assistant", "content": "A", "reasoning_content": "R"}
    assert encode([developer, answer, USER]) == (
        f"{BOS}<｜User｜>\n\n# The user's message is: D<｜Assistant｜></think>A{EOS}<｜User｜>Q<｜Assistant｜><think>"
    )


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("content", [None, "", "\n", " \n"])
def test_blank_content_beside_calls_is_none(content, thinking):
    bare = [USER, calling(call("f", "a", x=1), reasoning_content="R"), result("1", "a")]
    blank = [USER, {**bare[1], "content": content}, bare[2]]
    assert encode(blank, thinking=thinking) == encode(bare, thinking=thinking)
    assert encode(blank[:2], thinking=thinking) == encode(bare[:2], thinking=thinking)


def test_reasoning_is_another_name_of_reasoning_content_which_wins():
    meant = encode([USER, {"role": "assistant", "content": "A", "reasoning_content": "R"}])
    for fields in (
        {"reasoning": "R"},
        {"reasoning": "R", "reasoning_content": None},
        {"reasoning": "other", "reasoning_content": "R"},
        {"reasoning": {"effort": "high"}, "reasoning_content": "R", "thinking": "other"},
    ):
        assert encode([USER, {"role": "assistant", "content": "A", **fields}]) == meant
    assert Message(role="assistant", reasoning="R").reasoning_content == "R"


def test_dicts_as_clients_send_them_mean_the_same_as_messages():
    sent = {
        "role": "assistant",
        "content": [{"type": "text", "text": "A"}],
        "tool_calls": None,
        "refusal": None,
        "reasoning_content": "R",
    }
    assert encode([USER, sent]) == encode([USER, Message(role="assistant", content="A", reasoning_content="R")])
    no_arguments = calling({"function": {"name": "f", "arguments": ""}})
    assert encode([USER, no_arguments]) == encode([USER, calling({"function": {"name": "f", "arguments": {}}})])


def test_tools_open_the_conversation_even_without_a_system_message():
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    text = encode([USER], tools)
    assert text.startswith(f"{BOS}\n\n## Tools\n")
    assert text == encode([{"role": "system", "content": "", "tools": tools}, USER])
    assert text == encode([{"role": "system", "tools": tools}, USER], tools)
    with pytest.raises(ChatFormatError, match="one place"):
        encode([{"role": "system", "tools": tools}, USER], [{"type": "function", "function": {"name": "g"}}])


@pytest.mark.parametrize("function", [{}, {"name": None}, {"name": ""}, {"name": 1}])
def test_a_tool_without_a_name_is_a_typed_error(function):
    with pytest.raises(ChatFormatError, match="needs a name"):
        encode([USER], [{"type": "function", "function": function}])
    with pytest.raises(ChatFormatError, match="needs a name"):
        encode([{"role": "system", "tools": [{"function": function}]}, USER])


def test_a_response_format_follows_the_system_message():
    text = encode([{"role": "system", "content": "S", "response_format": {"type": "object"}}, USER])
    assert text.startswith(
        f'{BOS}S\n\n## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n{{"'
    )


TOOL = {"type": "function", "function": {"name": "查询", "parameters": {"type": "object", "properties": {}}}}
TOOL_LINE = '{"name": "查询", "parameters": {"type": "object", "properties": {}}}'
FORMAT = {"type": "json_schema", "json_schema": {"title": "天气"}}
FORMAT_TEXT = (
    "\n\n## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n"
    '{"type": "json_schema", "json_schema": {"title": "天气"}}'
)


def test_tools_and_response_format_stand_in_this_order_on_system_and_developer_messages():
    tools_text = "\n\n" + TOOLS_BEFORE + TOOL_LINE + TOOLS_AFTER
    system = {"role": "system", "content": "你是助手。", "tools": [TOOL], "response_format": FORMAT}
    developer = {"role": "developer", "content": "搜索", "tools": [TOOL], "response_format": FORMAT}
    assert encode([system, USER]) == (f"{BOS}你是助手。{tools_text}{FORMAT_TEXT}<｜User｜>Q<｜Assistant｜><think>")
    for thinking, tag in ((True, "<think>"), (False, "</think>")):
        assert encode([developer], thinking=thinking) == (
            f"{BOS}<｜User｜>{tools_text}{FORMAT_TEXT}\n\n# The user's message is: 搜索<｜Assistant｜>{tag}"
        )


def test_several_rounds_of_parallel_calls_to_the_byte_in_both_modes():
    messages = [
        {"role": "user", "content": "天气？"},
        calling(call("查询", "a", 城市="北京"), call("查询", "b", n=[1, "二"]), content="好", reasoning_content="先"),
        result("雪", "b"),
        result("晴", "a"),
        calling(call("查询", "c"), reasoning_content="再"),
        result("", "c"),
        {"role": "assistant", "content": "完", "reasoning_content": "够了"},
    ]

    def expected(first, second, third, after):
        return (
            f"{BOS}<｜User｜>天气？<｜Assistant｜>{first}好\n\n<｜DSML｜function_calls>\n"
            '<｜DSML｜invoke name="查询">\n<｜DSML｜parameter name="城市" string="true">北京</｜DSML｜parameter>\n'
            '</｜DSML｜invoke>\n<｜DSML｜invoke name="查询">\n<｜DSML｜parameter name="n" string="false">[1, "二"]'
            f"</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>{EOS}\n\n<function_results>\n"
            f"<result>晴</result>\n<result>雪</result>\n</function_results>\n\n{second}\n\n<｜DSML｜function_calls>\n"
            f'<｜DSML｜invoke name="查询">\n\n</｜DSML｜invoke>\n</｜DSML｜function_calls>{EOS}\n\n<function_results>\n'
            f"<result></result>\n</function_results>\n\n{third}完{EOS}{after}"
        )

    kept = ("<think>先</think>", "<think>再</think>", "<think>够了</think>")
    gone = ("</think>",) * 3
    assert encode(messages) == expected(*kept, "")
    assert encode(messages, thinking=False) == expected(*gone, "")
    assert encode([*messages, USER]) == expected(*gone, "<｜User｜>Q<｜Assistant｜><think>")


@pytest.mark.parametrize("thinking", [True, False])
def test_a_conversation_in_parts_is_the_whole_text_wherever_reasoning_is_not_dropped_between(thinking):
    turn = [USER, PAIR, result("1", "a"), result("2", "b"), {"role": "assistant", "content": "A"}]
    for cut in (1, 2, 4):
        whole = encode(turn, [TOOL], thinking)
        assert encode(turn[:cut], [TOOL], thinking) + encode(turn[cut:], [TOOL], thinking, turn[:cut]) == whole


def test_context_is_taken_into_account_but_not_written_again():
    turn = [USER, PAIR, result("1", "a"), result("2", "b")]
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert encode(turn[:2], tools) + encode(turn[2:], tools, context=turn[:2]) == encode(turn, tools)


def sampled_text(pieces):
    return "".join(piece.text for piece in pieces if piece.sampled)


def test_sampled_pieces_are_exactly_what_the_model_wrote():
    messages = [USER, PAIR, result("1", "a"), result("2", "b"), {"role": "assistant", "content": "A"}]
    first, second = encode(messages[:1]), encode(messages[:4])
    completions = encode(messages[:2]).removeprefix(first) + encode(messages).removeprefix(second)
    assert sampled_text(segments(messages)) == completions
    chat = [encode(messages[:count], thinking=False) for count in (1, 2, 4, 5)]
    assert sampled_text(segments(messages, thinking=False)) == (
        chat[1].removeprefix(chat[0]) + chat[3].removeprefix(chat[2])
    )


def test_turns_whose_reasoning_is_dropped_are_not_sampled_here():
    messages = [USER, {"role": "assistant", "content": "A", "reasoning_content": "R"}, USER, {**PAIR}]
    assert sampled_text(segments(messages)) == encode(messages).removeprefix(encode(messages[:3]))


OUTSIDE = st.lists(st.sampled_from([*SPECIAL_TOKENS, "<｜DSML｜invoke>", "x", "\n", "é"])).map("".join)


@given(OUTSIDE, OUTSIDE, OUTSIDE, OUTSIDE)
def test_text_from_outside_is_never_in_a_special_piece(question, value, answer, reasoning):
    def shape(*texts):
        messages = [
            {"role": "user", "content": texts[0]},
            calling(call("f", "a", x=texts[1]), reasoning_content=texts[3]),
            result(texts[2], "a"),
        ]
        return segments(messages)

    markup = [piece.text for piece in shape(question, value, answer, reasoning) if piece.special]
    assert markup == [piece.text for piece in shape("", "", "", "") if piece.special]
