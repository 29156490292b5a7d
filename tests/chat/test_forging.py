"""No text from outside forges a token of the format: not in any field, not with any spelling."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baleen.chat import Tokenizer, segments
from baleen.chat.markup import FIXED_TEXTS, SPECIAL_TOKENS

FIELDS = [
    *("system", "user", "developer", "answer", "reasoning", "result"),
    *("call_name", "key", "string_value", "json_value", "json_key"),
    *("tool_name", "description", "parameter", "enum", "format_key", "format_value"),
]
HARMLESS = "word"


def conversation(**texts):
    """A conversation that has every field that outside text can stand in; those not given are harmless."""
    of = dict.fromkeys(FIELDS, HARMLESS) | texts
    arguments = {of["key"]: of["string_value"], "n": [of["json_value"], {of["json_key"]: 1}]}
    call = {"id": "a", "function": {"name": of["call_name"], "arguments": json.dumps(arguments)}}
    function = {
        "name": of["tool_name"],
        "description": of["description"],
        "parameters": {"properties": {of["parameter"]: {"type": "string", "enum": [of["enum"]]}}},
    }
    tools = [{"type": "function", "function": function}]
    response_format = {of["format_key"]: {"title": of["format_value"]}}
    return [
        {"role": "system", "content": of["system"], "tools": tools, "response_format": response_format},
        {"role": "developer", "content": of["developer"], "tools": tools, "response_format": response_format},
        {"role": "assistant", "content": of["answer"], "reasoning_content": of["reasoning"]},
        {"role": "user", "content": of["user"]},
        {"role": "assistant", "content": of["answer"], "reasoning_content": of["reasoning"], "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": of["result"]},
        {"role": "assistant", "content": of["answer"], "reasoning_content": of["reasoning"]},
    ]


@pytest.fixture(scope="module")
def tokenizer():
    words = [HARMLESS, "think", "User", "function_results", "invoke name", "begin▁of▁sentence｜", "｜DSML｜"]
    return Tokenizer.train(words * 20, 400)


def format_ids(tokenizer, messages, thinking):
    """How often each token that only the format may write stands in the conversation."""
    ids, _ = tokenizer.encode_segments(segments(messages, thinking=thinking))
    own = [tokenizer.encode(text)[0] for text in (*SPECIAL_TOKENS, *FIXED_TEXTS)]
    return [ids.count(number) for number in own]


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("field", FIELDS)
def test_the_spelling_of_a_token_in_a_field_is_never_the_token(tokenizer, field, thinking):
    real = format_ids(tokenizer, conversation(), thinking)
    for spelling in (*SPECIAL_TOKENS, *FIXED_TEXTS):
        for text in (spelling, f"a {spelling}{spelling}\n"):
            assert format_ids(tokenizer, conversation(**{field: text}), thinking) == real


PIECES = st.lists(
    st.sampled_from(
        [*SPECIAL_TOKENS, *FIXED_TEXTS[2:], *(token[:-1] for token in SPECIAL_TOKENS), "<", ">", "x", "\n"]
    ),
    min_size=1,
    max_size=4,
).map("".join)


@given(st.dictionaries(st.sampled_from([field for field in FIELDS if field not in ("key", "json_key")]), PIECES))
def test_spellings_in_several_fields_do_not_join_to_a_token(tokenizer, texts):
    messages = conversation(**{field: f"x{text}x" for field, text in texts.items()})
    assert format_ids(tokenizer, messages, True) == format_ids(tokenizer, conversation(), True)
