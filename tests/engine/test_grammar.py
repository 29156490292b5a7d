"""Sampling under a grammar: a model that knows nothing makes valid calls, in the format's own tokens."""

import json
import random
import re
from collections.abc import Mapping

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend

from baleen.chat import Tokenizer, parse, segments
from baleen.chat.grammar import GrammarError, GrammarSpec, calls_grammar, marker_ids, response_grammar
from baleen.chat.markup import SPECIAL_TOKENS

pytest.importorskip("llguidance")

from baleen.engine.grammar import Grammar

TEXTS = [
    f'{{"{key}": "{word} {number}", "ok": true}} Ask {word}, then say </ {key} to <{word}> again!\n\nYes\n'
    for key in ("city", "days", "unit")
    for word in ("Paris", "São Paulo", "東京", "Lagos")
    for number in range(40)
]
QUESTION = {"role": "user", "content": "Go"}
PADDING = 24
RUNS = 40
LONGEST = 4000


def tool(name, parameters=None):
    form = {"name": name} if parameters is None else {"name": name, "parameters": parameters}
    return {"type": "function", "function": form}


def one(schema, **rest):
    return tool("use", {"type": "object", "properties": {"value": schema}, "required": ["value"], **rest})


TREE = {
    "type": "object",
    "properties": {"size": {"type": "integer"}, "next": {"$ref": "#/$defs/tree"}},
    "required": ["size"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "where"},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "unit": {"type": "string", "enum": ["c", "celsius", ""]},
        "hours": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
    },
    "required": ["city"],
    "additionalProperties": False,
}
PLANT = {"note": {"type": "string"}, "tree": {"$ref": "#/$defs/tree"}, "wet": {"type": "boolean"}}
TOOLS = [
    tool("get", {"type": "object", "properties": {}}),
    tool("get_time"),
    tool("get_weather", WEATHER),
    tool("plant", {"$defs": {"tree": TREE}, "type": "object", "properties": PLANT, "required": ["tree"]}),
]
VALUES = {
    "string": {"type": "string"},
    "short": {"type": "string", "minLength": 1, "maxLength": 5},
    "empty": {"type": "string", "maxLength": 0},
    "pattern": {"type": "string", "pattern": r"^[a-z]{2}-\d+/x$"},
    "pattern of nothing or more": {"type": "string", "pattern": "^x{0,2}$"},
    "part of a pattern": {"type": "string", "pattern": "a|[0-9]|é"},
    "constant": {"const": "a b"},
    "one number": {"const": 12},
    "enumeration": {"enum": ["x", "xy", "", 3, 35, None, True, {"k": ["é"]}]},
    "integer": {"type": "integer"},
    "bounded": {"type": "integer", "minimum": -3, "exclusiveMaximum": 12},
    "boolean": {"type": "boolean"},
    "nothing": {"type": "null"},
    "nullable": {"type": ["string", "null"]},
    "optional": {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "integer"}, {"type": "null"}], "title": "T"},
    "or known": {"anyOf": [{"enum": ["auto", 7]}, {"type": "string", "pattern": "^[0-9]+$"}, {"type": "boolean"}]},
    "exclusive": {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
    "objects": {"anyOf": [{"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]}, TREE]},
    "list of strings": {"type": "array", "items": {"type": "string"}, "minItems": 1},
    "reference": {"$ref": "#/$defs/tree", "description": "a tree"},
    "list of references": {"type": "array", "items": {"$ref": "#/$defs/tree"}},
    "map": {"type": "object", "additionalProperties": {"type": "integer"}},
    "wrapped": {"allOf": [{"$ref": "#/$defs/name"}]},
}
DEFINITIONS = {"tree": TREE, "name": {"type": "string", "minLength": 2}}


@pytest.fixture(scope="module")
def trained():
    return Tokenizer.train(TEXTS, 600)


@pytest.fixture(scope="module")
def bare(trained):
    """A vocabulary like DeepSeek's: only the special tokens are added, the tags are spelled around them."""
    form = json.loads(trained._special.to_str())
    form["added_tokens"] = [token for token in form["added_tokens"] if token["content"] in SPECIAL_TOKENS]
    return Tokenizer(Backend.from_str(json.dumps(form)))


@pytest.fixture(params=["fixed texts are tokens", "only special tokens"])
def tokenizer(request, trained, bare):
    return trained if request.param.startswith("fixed") else bare


def sample(grammar, tokenizer, seed):
    """Uniform draws from what is allowed; now and then a tag, or the beginning of one, so that texts come to an end."""
    rng, matcher = random.Random(seed), grammar.matcher()
    tags = sorted(marker_ids(tokenizer))
    endings = [tokenizer.encode(text) for text in ("</｜DSML｜", "\n\n<｜DSML｜", '"', "}", "]", '"}')]
    ids, planned = [], []
    while not matcher.finished:
        assert len(ids) < LONGEST, tokenizer.decode(ids)[-200:]
        mask = matcher.mask()
        assert not mask[tokenizer.vocab_size :].any()
        if not planned and rng.random() < 0.4:
            planned = list(rng.choice([*([token] for token in tags if mask[token]), *endings]))
        planned = planned if planned and mask[planned[0]] else []
        token = planned.pop(0) if planned else int(rng.choice(np.flatnonzero(mask)))
        matcher.advance(token)
        ids.append(token)
    return ids


def runs(spec, tokenizer, count=RUNS):
    grammar = Grammar(spec, tokenizer, tokenizer.vocab_size + PADDING)
    return [sample(grammar, tokenizer, seed) for seed in range(count)]


def check_turn(ids, tokenizer, tools, thinking):
    """The turn reads without faults, and is what the encoder writes, in the tokens in which it writes it."""
    text = tokenizer.decode(ids)
    message = parse(text, thinking=thinking, tools=tools)
    assert not message.faults, text
    pieces = [piece for piece in segments([QUESTION, message.to_message()], thinking=thinking) if piece.sampled]
    assert with_plain_numbers("".join(piece.text for piece in pieces)) == with_plain_numbers(text)
    markers = marker_ids(tokenizer)
    wanted, _ = tokenizer.encode_segments(pieces)
    assert outline(ids, markers, tokenizer) == outline(wanted, markers, tokenizer)
    return message


def accepts(matcher, ids):
    """Whether `ids` may follow; the matcher is then behind them."""
    for token in ids:
        if not matcher.mask()[token]:
            return False
        matcher.advance(token)
    return True


def outline(ids, markers, tokenizer):
    """Markers as they are, and the text between them: the model may spell free text as it likes."""
    parts, run = [], []
    for token in [*ids, None]:
        if token is None or token in markers:
            parts += [with_plain_numbers(tokenizer.decode(run)), token]
            run = []
        else:
            run.append(token)
    return parts


def with_plain_numbers(text):
    """JSON as Python writes it: a number has many spellings, and a model may choose."""
    value = r'(?<=string="false">)(.*?)(?=</(?:｜DSML｜|$))'
    return re.sub(value, lambda match: as_python_writes(match.group()), as_python_writes(text), flags=re.DOTALL)


def as_python_writes(text):
    try:
        return json.dumps(json.loads(text), ensure_ascii=False)
    except ValueError:
        return text


def valid(value, schema, root):
    """Whether JSON `value` fits; knows the keywords that these tests use."""
    if "$ref" in schema:
        return valid(value, root["$defs"][schema["$ref"].rsplit("/", 1)[1]], root)
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else list(kinds)
    if kinds and not any(is_of_kind(value, kind) for kind in kinds):
        return False
    known = [schema["const"]] if "const" in schema else schema.get("enum")
    if known is not None and json.dumps(value) not in map(json.dumps, known):
        return False
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices and not any(valid(value, choice, root) for choice in choices):
        return False
    return all(valid(value, choice, root) for choice in schema.get("allOf", ())) and fits(value, schema, root)


def fits(value, schema, root):
    if isinstance(value, str):
        length = schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", LONGEST)
        return length and re.search(schema.get("pattern", ""), value) is not None
    if isinstance(value, list):
        items = all(valid(item, schema.get("items", {}), root) for item in value)
        return items and schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", LONGEST)
    if isinstance(value, Mapping):
        others = schema.get("additionalProperties", {})
        properties = schema.get("properties", {})
        if not set(schema.get("required", ())) <= value.keys() or (
            others is False and value.keys() - properties.keys()
        ):
            return False
        return all(valid(each, properties.get(key, others), root) for key, each in value.items())
    if isinstance(value, int) and not isinstance(value, bool):
        return schema.get("minimum", value) <= value < schema.get("exclusiveMaximum", value + 1)
    return True


def is_of_kind(value, kind):
    kinds = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict}
    kinds["null"] = type(None)
    return isinstance(value, kinds[kind]) and (kind == "boolean" or not isinstance(value, bool))


def check_arguments(message, tools):
    assert not message.faults
    for call in message.tool_calls:
        offered = next(entry["function"] for entry in tools if entry["function"]["name"] == call.function.name)
        schema = {"additionalProperties": False, **offered.get("parameters", {})}
        assert valid(call.function.parsed(), schema, schema), (call.function.arguments, schema)


@pytest.mark.parametrize("thinking", [True, False])
def test_an_untrained_model_makes_only_valid_calls(tokenizer, thinking):
    for ids in runs(calls_grammar(TOOLS, tokenizer, thinking=thinking, choice="required"), tokenizer):
        message = check_turn(ids, tokenizer, TOOLS, thinking)
        check_arguments(message, TOOLS)
        assert message.tool_calls
        assert message.content is None


@pytest.mark.parametrize("thinking", [True, False])
def test_a_named_function_is_the_only_one_called(tokenizer, thinking):
    spec = calls_grammar(TOOLS, tokenizer, thinking=thinking, choice="get_weather", parallel=False)
    for ids in runs(spec, tokenizer):
        message = check_turn(ids, tokenizer, TOOLS, thinking)
        check_arguments(message, TOOLS)
        assert [call.function.name for call in message.tool_calls] == ["get_weather"]


@pytest.mark.parametrize("thinking", [True, False])
def test_with_auto_there_is_content_or_calls_or_both(tokenizer, thinking):
    seen = set()
    for ids in runs(calls_grammar(TOOLS, tokenizer, thinking=thinking, choice="auto"), tokenizer, 4 * RUNS):
        message = check_turn(ids, tokenizer, TOOLS, thinking)
        check_arguments(message, TOOLS)
        seen.add((message.content is not None, bool(message.tool_calls)))
    assert len(seen) >= 3


@pytest.mark.parametrize("kind", VALUES)
def test_every_kind_of_value_is_sampled_validly(tokenizer, kind):
    tools = [one(VALUES[kind], **{"$defs": DEFINITIONS})]
    for ids in runs(calls_grammar(tools, tokenizer, thinking=False, choice="use", parallel=False), tokenizer):
        message = check_turn(ids, tokenizer, tools, thinking=False)
        check_arguments(message, tools)
        assert len(message.tool_calls) == 1


@pytest.mark.parametrize("schema", [{"type": "number"}, {}, {"type": "object"}, {"type": "array"}])
def test_numbers_are_never_beyond_what_json_readers_know(tokenizer, schema):
    tools = [one(schema)]
    for ids in runs(calls_grammar(tools, tokenizer, thinking=False, choice="use", parallel=False), tokenizer):
        message = parse(tokenizer.decode(ids), thinking=False, tools=tools)
        assert len(message.tool_calls) == 1
        check_arguments(message, tools)


def test_every_enumerated_value_can_be_sampled(tokenizer):
    values = VALUES["enumeration"]["enum"]
    spec = calls_grammar([one({"enum": values})], tokenizer, thinking=False, choice="use", parallel=False)
    turns = [parse(tokenizer.decode(ids), thinking=False) for ids in runs(spec, tokenizer, 8 * RUNS)]
    assert {turn.tool_calls[0].function.arguments for turn in turns} == {
        json.dumps({"value": each}, ensure_ascii=False) for each in values
    }


ARGUMENTS = [
    {"city": "</", "days": 3},
    {"city": "", "unit": ""},
    {"city": "Oslo!", "days": 14, "unit": "celsius", "hours": [1, 23]},
    {"city": 'say "hi" <｜DSML｜function_calls> </｜DSML｜invoke> </think>', "hours": []},
    {"city": "two\n\nlines\n"},
]


@pytest.mark.parametrize("arguments", ARGUMENTS)
@pytest.mark.parametrize("content", [None, "Let me look <b>!", "\n\n<", "a\n\n"])
@pytest.mark.parametrize("reasoning", [None, "so </ what\n\n"])
def test_what_the_encoder_writes_is_allowed_in_its_own_tokens(tokenizer, arguments, content, reasoning):
    call = {"function": {"name": "get_weather", "arguments": json.dumps(arguments)}}
    bare_call = {"function": {"name": "get", "arguments": "{}"}}
    turn = {"role": "assistant", "reasoning_content": reasoning, "content": content, "tool_calls": [call, bare_call]}
    ids, sampled = tokenizer.encode_segments(segments([QUESTION, turn]))
    spec = calls_grammar(TOOLS, tokenizer, thinking=True, choice="auto")
    matcher = Grammar(spec, tokenizer, tokenizer.vocab_size).matcher()
    assert accepts(matcher, [token for token, own in zip(ids, sampled, strict=True) if own])
    assert matcher.finished


@pytest.mark.parametrize("content", ["", "  \n", "Oslo: 12 </ <b>", "\n\n<", "a\n\n<"])
def test_every_answer_without_calls_is_allowed_with_auto(tokenizer, content):
    spec = calls_grammar(TOOLS, tokenizer, thinking=False, choice="auto")
    matcher = Grammar(spec, tokenizer, tokenizer.vocab_size).matcher()
    assert accepts(matcher, [*tokenizer.encode(content, special=False), tokenizer.eos_id])
    assert matcher.finished


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize(
    "schema", [None, {"$defs": {"tree": TREE}, **TREE}, {"$defs": {"tree": TREE}, "type": "array"}]
)
def test_an_untrained_model_answers_in_the_response_format(tokenizer, thinking, schema):
    form = {"type": "json_object"} if schema is None else {"type": "json_schema", "json_schema": {"schema": schema}}
    root = {"$defs": {"tree": TREE}, **(schema or {"type": "object"})}
    for ids in runs(response_grammar(form, tokenizer, thinking=thinking), tokenizer):
        message = parse(tokenizer.decode(ids), thinking=thinking)
        assert not message.faults
        assert valid(json.loads(message.content), root, root)


def test_reasoning_ends_at_its_limit(tokenizer):
    for limit in (0, 1, 5):
        spec = calls_grammar(TOOLS, tokenizer, thinking=True, choice="required", max_reasoning_tokens=limit)
        lengths = []
        for ids in runs(spec, tokenizer):
            lengths.append(ids.index(tokenizer.think_end_id))
            check_arguments(parse(tokenizer.decode(ids), tools=TOOLS), TOOLS)
        assert max(lengths) == limit


def test_tags_are_never_spelled_in_letters(tokenizer):
    """Else the text would say that a call ended, where no tag stands."""
    spec = calls_grammar([one({"type": "string"})], tokenizer, thinking=True, choice="auto")
    start = Grammar(spec, tokenizer, tokenizer.vocab_size)
    for spelled in ("</think>", "<｜end▁of▁sentence｜>", "<｜User｜>"):
        assert not accepts(start.matcher(), tokenizer.encode(f"x{spelled}", special=False))
    assert accepts(start.matcher(), tokenizer.encode("x</｜DSML｜parameter> <function_results>", special=False))


def test_copies_go_their_own_ways(trained):
    grammar = Grammar(calls_grammar(TOOLS, trained, thinking=True, choice="auto"), trained, trained.vocab_size)
    first = grammar.matcher()
    second = first.copy()
    first.advance(trained.think_end_id)
    assert second.mask()[trained.think_end_id]
    assert not first.mask()[trained.think_end_id]
    first.advance(trained.eos_id)
    assert first.finished
    assert not second.finished
    assert not grammar.matcher().finished


def test_a_token_that_is_not_allowed_is_an_error_and_allows_nothing_afterwards(trained):
    spec = calls_grammar(TOOLS, trained, thinking=False, choice="required")
    for token in (trained.eos_id, trained.pad_id, trained.vocab_size):
        matcher = Grammar(spec, trained, trained.vocab_size + PADDING).matcher()
        with pytest.raises(GrammarError):
            matcher.advance(token)
        assert not matcher.finished
        for _ in range(2):
            with pytest.raises(GrammarError):
                matcher.mask()


@pytest.mark.parametrize("token", [-1, 10**6])
def test_a_token_that_the_model_does_not_have_is_an_error(trained, token):
    with pytest.raises(GrammarError, match=str(token)):
        Grammar(GrammarSpec("start: <[1]>\n"), trained, trained.vocab_size).matcher().advance(token)


def test_nothing_follows_the_end_of_the_text(trained):
    matcher = Grammar(calls_grammar([], trained, thinking=False, choice="auto"), trained, trained.vocab_size).matcher()
    matcher.advance(trained.eos_id)
    assert matcher.finished
    with pytest.raises(GrammarError, match="complete"):
        matcher.mask()
    with pytest.raises(GrammarError, match="after the end"):
        matcher.advance(trained.eos_id)


@pytest.mark.parametrize("text", ["", "start: missing\n", "start: /(/\n", "start: <[99999]>\n"])
def test_a_grammar_that_cannot_run_is_an_error(trained, text):
    with pytest.raises(GrammarError):
        Grammar(GrammarSpec(text), trained, trained.vocab_size)


def test_a_model_with_fewer_tokens_than_the_tokenizer_is_an_error(trained):
    with pytest.raises(GrammarError, match="fewer"):
        Grammar(GrammarSpec("start: <[1]>\n"), trained, trained.vocab_size - 1)
