"""Grammars as text: what they ask for, and what cannot be written as one. How they are run: tests/engine."""

import json
import pickle
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from baleen.chat import Tokenizer, markup
from baleen.chat.grammar import (
    LARGEST_GRAMMAR,
    LARGEST_NUMBER,
    GrammarError,
    GrammarLibraryError,
    calls_grammar,
    marker_ids,
    response_grammar,
)

pytest.importorskip("llguidance")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["get weather of a city, say true or false"] * 9, 400)


def tool(parameters, name="use"):
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def one(schema, **rest):
    return tool({"type": "object", "properties": {"value": schema}, "required": ["value"], **rest})


def required(tools, tokenizer):
    return calls_grammar(tools, tokenizer, thinking=False, choice="required")


def test_every_grammar_ends_with_the_end_of_sentence(tokenizer):
    end = f"<[{tokenizer.eos_id}]>"
    tools = [one({"type": "string"})]
    for thinking in (True, False):
        for choice in ("auto", "required", "use"):
            assert end in calls_grammar(tools, tokenizer, thinking=thinking, choice=choice).text
        spec = response_grammar({"type": "json_object"}, tokenizer, thinking=thinking)
        assert spec is not None
        assert end in spec.text


def test_reasoning_is_asked_for_only_in_thinking_mode(tokenizer):
    thinks, chats = (
        calls_grammar([one({})], tokenizer, thinking=thinking, choice="auto").text for thinking in (True, False)
    )
    assert f"<[{tokenizer.think_end_id}]>" in thinks
    assert f"<[{tokenizer.think_end_id}]>" not in chats


def test_the_same_request_gives_the_same_grammar(tokenizer):
    tools = [one({"enum": ["a", "b", 3]}), tool({"type": "object", "properties": {"x": {}}}, "other")]
    assert required(tools, tokenizer) == required(json.loads(json.dumps(tools)), tokenizer)


def test_a_grammar_travels_between_processes(tokenizer):
    spec = required([one({"type": "string"})], tokenizer)
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_markers_are_the_tokens_that_only_the_format_writes(tokenizer):
    texts = (*markup.SPECIAL_TOKENS, *markup.FIXED_TEXTS)
    assert marker_ids(tokenizer) == {token for text in texts for token in tokenizer.encode(text)}


def test_plain_text_needs_no_grammar(tokenizer):
    assert response_grammar({"type": "text"}, tokenizer, thinking=True) is None


@pytest.mark.parametrize(
    "response_format",
    [
        {},
        {"type": "xml"},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": None},
        {"type": "json_schema", "json_schema": {"name": "a", "schema": 3}},
        {"type": "json_schema", "json_schema": {"schema": {"type": "object", "properties": 3}}},
        {"type": "json_schema", "json_schema": {"schema": {"type": "wrong"}}},
        {"type": "json_schema", "json_schema": {"schema": {"not": {"type": "object"}}}},
    ],
)
def test_a_response_format_that_cannot_be_written_is_an_error_that_says_where(tokenizer, response_format):
    with pytest.raises(GrammarError, match="response_format"):
        response_grammar(response_format, tokenizer, thinking=True)


def test_a_choice_without_its_tool_is_an_error(tokenizer):
    with pytest.raises(GrammarError, match="'missing'"):
        calls_grammar([one({})], tokenizer, thinking=True, choice="missing")
    with pytest.raises(GrammarError, match="'required'"):
        calls_grammar([], tokenizer, thinking=True, choice="required")


@pytest.mark.parametrize(
    "schema",
    [
        False,
        {"$ref": "#/$defs/missing"},
        {"$ref": "https://example.org/schema"},
        {"$ref": "#/properties/value"},
        {"type": "string", "pattern": "("},
        {"type": "string", "pattern": "a(?=b)"},
        {"type": "string", "pattern": "a$b"},
        {"type": "string", "not": {"const": "a"}},
        {"type": "string", "enum": []},
        {"type": "string", "enum": [3]},
        {"const": markup.PARAMETER_CLOSE},
        {"type": "array", "uniqueItems": True},
        {"type": "integer", "minimum": 5, "maximum": 3},
        {"type": ["string", "null"], "anyOf": [{"type": "string"}, {"type": "null"}]},
        {"oneOf": [{"type": "string", "minLength": 3}, {"type": "string", "pattern": "a"}]},
    ],
    ids=str,
)
def test_what_a_parameter_cannot_be_is_an_error_that_names_tool_and_parameter(tokenizer, schema):
    with pytest.raises(GrammarError, match="tool use, parameter value"):
        required([one(schema)], tokenizer)


@pytest.mark.parametrize(
    "parameters",
    [
        [1],
        "object",
        {"type": "array"},
        {"type": "object", "properties": ["value"]},
        {"type": "object", "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        {"type": "object", "properties": {"a": {}}, "minProperties": 1},
        {"type": "object", "properties": {'quote"': {}}},
        {"type": "object", "additionalProperties": False, "required": ["value"]},
        {"$ref": "#/$defs/missing"},
    ],
    ids=str,
)
def test_parameters_that_cannot_be_written_are_an_error_that_names_the_tool(tokenizer, parameters):
    with pytest.raises(GrammarError, match="tool use"):
        required([tool(parameters)], tokenizer)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "format": "password"},
        {"type": "array", "items": {"type": "string", "format": "binary"}},
        {"type": "integer", "format": "int64", "default": 3, "examples": [4], "title": "T"},
        {"type": "object", "properties": {"format": {"type": "string"}, "default": {"type": "number"}}},
    ],
)
def test_annotations_and_unknown_formats_are_no_obstacle(tokenizer, schema):
    assert required([one(schema)], tokenizer)


def test_numbers_without_bounds_get_some_and_others_keep_theirs(tokenizer):
    free = required([one({"type": "integer"})], tokenizer).text
    bounded = required([one({"type": "integer", "minimum": 1, "maximum": 2})], tokenizer).text
    known = f'"minimum": {-LARGEST_NUMBER}'
    assert free.count(known) == bounded.count(known) + 1  # the other one is that of values without a schema


def test_without_the_library_the_error_says_how_to_get_it(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(GrammarLibraryError, match="baleen\\[serve\\]"):
        required([one({"type": "integer"})], tokenizer)


def test_importing_loads_neither_the_library_nor_torch():
    code = "import sys, baleen.chat.grammar; print({'llguidance', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def doubling(times, leaf):
    """Definitions, each of which may be the next one or the next one."""
    steps = {f"d{place}": {"anyOf": [{"$ref": f"#/$defs/d{place + 1}"}] * 2} for place in range(times)}
    return {"$defs": {**steps, f"d{times}": leaf}}


HOSTILE = {
    "a pattern that Python matches for ever": one({"type": "string", "pattern": "(((a?){200}){200}){200}"}),
    "classes that never close": one({"type": "string", "pattern": "[" * 15_000}),
    "classes that close in an escape": one({"type": "string", "pattern": "[" * 15_000 + "\\"}),
    "a long enumeration": one({"enum": [f"v{number}" for number in range(10_000)]}),
    "strings that double": one({"$ref": "#/$defs/d0"}, **doubling(30, {"type": "string"})),
    "numbers that double": one({"$ref": "#/$defs/d0"}, **doubling(30, {"type": "integer"})),
    "values that double and are none": one({"$ref": "#/$defs/d0"}, **doubling(30, {"type": "string", "enum": [3]})),
    "definitions for many parameters": tool(
        {
            "$defs": {f"d{place}": {"type": "integer", "maximum": place} for place in range(1500)},
            "type": "object",
            "properties": {f"p{place}": {"type": "array", "minItems": place} for place in range(1500)},
        }
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_schema_is_written_or_refused_in_the_time_that_its_size_takes(tokenizer, kind):
    began = time.process_time()
    with suppress(GrammarError):
        assert len(required([HOSTILE[kind]], tokenizer).text) <= LARGEST_GRAMMAR
    assert time.process_time() - began < 3


def test_choices_within_choices_are_taken_apart_up_to_a_limit(tokenizer):
    assert required([one({"$ref": "#/$defs/d0"}, **doubling(6, {"type": "string"}))], tokenizer)
    with pytest.raises(GrammarError, match="tool use, parameter value: more than 1000 alternatives"):
        required([one({"$ref": "#/$defs/d0"}, **doubling(20, {"type": "string"}))], tokenizer)


@pytest.mark.parametrize(
    ("pattern", "empty"),
    [("a*", True), ("^a+$", False), ("^(a|)$", True), ("^$", True), ("[0-9]", False), ("^[^\\n]{0,3}$", True)],
)
def test_an_empty_string_may_be_written_where_the_pattern_matches_it(tokenizer, pattern, empty):
    schema = one({"type": "string", "pattern": pattern})
    assert ("tool0_empty1" in required([schema], tokenizer).text.split("tool0_value0:")[1].split("\n")[0]) == empty
    longer = one({"type": "string", "pattern": pattern, "minLength": 1})
    assert "tool0_empty1" not in required([longer], tokenizer).text.split("tool0_value0:")[1].split("\n")[0]
