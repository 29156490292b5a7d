"""Grammars of what may follow a generation prompt, so that even an untrained model makes valid calls and valid JSON.

    completion = [reasoning "</think>"] (content | content? calls) end-of-sentence

The grammar is text in llguidance's variant of Lark; `engine/grammar.py` runs it while sampling. All that the format or
a tool's schema fixes (tags, names, keys, enumerated values) stands in it as token ids, cut as `segments` cuts them, so
what is sampled is tokenised like what is trained on. Only values, content and reasoning are matched by their text.

A grammar accepts a part of what a schema accepts: parameters come in the schema's order, undeclared ones are never
written, and numbers stay within `LARGEST_NUMBER`, without an exponent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from baleen.chat import markup
from baleen.chat.conversation import read_tools
from baleen.chat.messages import ToolSpec
from baleen.chat.parameter_values import (
    ANNOTATIONS,
    GrammarError,
    GrammarLibraryError,
    llguidance,
    resolved,
    types_of,
    values_of,
)
from baleen.chat.tokenizer import Tokenizer

__all__ = [
    "LARGEST_GRAMMAR",
    "LARGEST_NUMBER",
    "GrammarError",
    "GrammarLibraryError",
    "GrammarSpec",
    "calls_grammar",
    "llguidance",
    "marker_ids",
    "response_grammar",
]

LARGEST_NUMBER = 10**18
"""In size, where the schema sets no bound. An unbounded number could be spelled 1e999, which is no JSON number to most
readers; within bounds llguidance writes no exponents."""

LARGEST_GRAMMAR = 2_000_000
"""Characters; some seconds of compiling. Every JSON value brings all definitions of its tool, so a large request could
ask for far more than it holds itself."""


@dataclass(frozen=True)
class GrammarSpec:
    """A grammar as text. It crosses process boundaries; `engine.grammar.Grammar` compiles it."""

    text: str


def calls_grammar(
    tools: Iterable[ToolSpec | Mapping[str, Any]],
    tokenizer: Tokenizer,
    *,
    thinking: bool,
    choice: str,
    parallel: bool = True,
    max_reasoning_tokens: int | None = None,
) -> GrammarSpec:
    """The grammar of a turn that calls `tools` with valid arguments.

    `choice` is "auto" (content, calls, or content and then calls), "required" (calls alone) or the name of the function
    to call. `parallel=False` allows one call. After `max_reasoning_tokens` only `</think>` follows, even in mid letter.
    Raises `GrammarError` for what cannot be expressed, and `GrammarLibraryError` without llguidance.
    """
    offered = [tool for tool in read_tools(tools) if choice in ("auto", "required", tool.name)]
    if not offered and choice != "auto":
        raise GrammarError(f"tool_choice is {choice!r}, but there is no such tool")
    writer = _Writer(tokenizer)
    for place, tool in enumerate(offered):
        with _readable(f"tool {tool.name}"):
            writer.add("invoke", _tool(writer, place, tool, parallel))
    opening = f"\n\n{markup.CALLS_OPEN}\n{markup.INVOKE_OPEN}"
    answer = f"{writer.tokens(opening)} invoke"
    if choice == "auto":
        answer = f"{writer.text(_CONTENT_TAGS)}? {writer.tokens(markup.EOS)}"
    if choice == "auto" and offered:
        head, rest = writer.split(opening)
        spoken = writer.text(_CONTENT_TAGS, _VISIBLE, ending=head)
        answer += f" | ({spoken} | {json.dumps(head)}) {rest} invoke" if head else f" | {spoken}? {rest} invoke"
    return writer.finish(answer, thinking, max_reasoning_tokens)


def response_grammar(
    response_format: Mapping[str, Any], tokenizer: Tokenizer, *, thinking: bool, max_reasoning_tokens: int | None = None
) -> GrammarSpec | None:
    """The grammar of an answer in OpenAI's `response_format`; None where it asks for plain text.

    Raises `GrammarError` for what cannot be expressed, and `GrammarLibraryError` without llguidance.
    """
    if response_format.get("type") == "text":
        return None
    given = (response_format.get("json_schema") or {}).get("schema")
    schema = {"json_object": {"type": "object"}, "json_schema": given}.get(response_format.get("type", ""))
    if not isinstance(schema, Mapping):
        raise GrammarError(f"response_format must be text, json_object or json_schema with a schema: {response_format}")
    writer = _Writer(tokenizer)
    with _readable("response_format"):
        answer = f"{writer.json(schema, 'response_format')} {writer.tokens(markup.EOS)}"
    return writer.finish(answer, thinking, max_reasoning_tokens)


def marker_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """The ids of added tokens: the format alone writes them, no text is ever matched by them."""
    return frozenset(tokenizer._special.get_added_tokens_decoder())


class _Writer:
    """Collects rules and terminals."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.markers = marker_ids(tokenizer)
        self.rules: dict[str, str] = {}
        self.text_end = self.split(markup.PARAMETER_CLOSE + _NEXT_PARAMETER)[0]
        self._named: dict[str, str] = {}  # terminals and JSON by what they are; what is the same is written once
        self._written = 0
        # Tools in their hundreds have the same few kinds of parameters.
        self._problem = cache(lambda grammar: llguidance().LLMatcher.validate_grammar(grammar))

    def tokens(self, text: str, special: bool = True) -> str:
        return " ".join(f"<[{token}]>" for token in self.tokenizer.encode(text, special))

    def one_of(self, texts: Iterable[str]) -> str:
        """One of some texts from outside, each in its own tokens."""
        return f"({' | '.join(self.tokens(text, special=False) for text in dict.fromkeys(texts))})"

    def split(self, text: str) -> tuple[str, str]:
        """The text before the first marker of the markup `text`, and the tokens from there on.

        Where free text comes before, a token of ordinary text cannot tell whether it still belongs to it; so the head
        is matched as the end of the free text, and only the marker decides.
        """
        ids, tokens = self.tokenizer.encode(text), self.tokens(text).split()
        first = next(place for place, token in enumerate(ids) if token in self.markers)
        return self.tokenizer.decode(ids[:first]), " ".join(tokens[first:])

    def text(self, without: Sequence[str], *also: str, ending: str = "") -> str:
        """Free text, not empty, in which none of the tags `without` is spelled; `ending` must follow it."""
        tags = "|".join(re.escape(tag).replace("/", r"\/") for tag in without)
        body = " & ".join(("/(?s:.+)/", f"~/(?s:.*)({tags})(?s:.*)/", *also))
        body = f"({body}) {json.dumps(ending)}" if ending else body
        return self._named.setdefault(body, f"T{len(self._named)}")

    def json(self, schema: Mapping[str, Any], where: str) -> str:
        """JSON of `schema`, spaced as `json.dumps` does it."""
        form = _bounded(schema)
        definitions = {**form.get("$defs", {}), _ANYTHING_NAME: _ANYTHING_DEFINITION}
        text = json.dumps({**form, "$defs": definitions, "x-guidance": _JSON_STYLE})
        self._count(len(text))
        if (body := f"%json {text}") not in self._named:
            self.check(llguidance().LLMatcher.grammar_from_json_schema(text), where)
        return self._named.setdefault(body, f"json{len(self._named)}")

    def check(self, grammar: str, where: str) -> None:
        """Raises `GrammarError` for a grammar that llguidance cannot read."""
        if message := self._problem(grammar):
            raise GrammarError(f"{where}: {message}")

    def add(self, rule: str, way: str) -> None:
        """Adds one way to follow `rule`."""
        self.rules[rule] = f"{self.rules[rule]} | {way}" if rule in self.rules else way

    def finish(self, answer: str, thinking: bool, max_reasoning_tokens: int | None) -> GrammarSpec:
        """The grammar of a turn that ends with `answer`."""
        self.rules |= {"answer": answer, "start": f"{self.tokens(markup.THINK_END)} answer" if thinking else "answer"}
        if thinking and max_reasoning_tokens != 0:
            limit = "" if max_reasoning_tokens is None else f"[max_tokens={max_reasoning_tokens}]"
            self.add("start", f"reasoning {self.rules['start']}")
            self.rules[f"reasoning{limit}"] = self.text(_CONTENT_TAGS)
        named = {name: body for body, name in self._named.items()}
        text = "".join(f"{name}: {body}\n" for name, body in {**self.rules, **named}.items())
        self._count(len(text) - self._written)
        return GrammarSpec(text)

    def _count(self, more: int) -> None:
        self._written += more
        if self._written > LARGEST_GRAMMAR:
            raise GrammarError(f"the schemas make a grammar of more than {LARGEST_GRAMMAR} characters")


@contextmanager
def _readable(where: str) -> Iterator[None]:
    """A schema comes from outside and may be anything: what trips over its shape is an error of the schema."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, RecursionError) as error:
        raise GrammarError(f"{where}: this is no JSON Schema: {error!r}") from error


def _tool(writer: _Writer, place: int, tool: ToolSpec, parallel: bool) -> str:
    """Writes the rules of one tool; returns the body that follows `invoke name="`.

    Before parameter `i` the rule `..._i` says what may come: it or a later parameter, or the end. There is one for each
    thing that can come before, as the tokens differ: the name, a value of known tokens, an empty string, free text.
    """
    where = f"tool {tool.name}"
    schema = tool.function.get("parameters") or {}
    parameters = _declared(schema, where)
    closed = markup.PARAMETER_CLOSE
    for kind, head in {"name": '">', "known": closed, "empty": _TRUE + closed, "free": closed}.items():
        # The beginning of the tag that ends free text is matched with the text.
        tokens = (lambda text: writer.split(text)[1]) if kind == "free" else writer.tokens
        rule = f"tool{place}_{kind}"
        for index, (_, _, required) in enumerate(parameters):
            writer.add(f"{rule}{index}", f"{tokens(head + _NEXT_PARAMETER)} tool{place}_value{index}")
            if not required:
                writer.add(f"{rule}{index}", f"{rule}{index + 1}")
        end = head + ("\n\n" if kind == "name" else "\n") + markup.INVOKE_CLOSE
        writer.add(f"{rule}{len(parameters)}", tokens(f"{end}\n{markup.CALLS_CLOSE}{markup.EOS}"))
        if parallel:
            writer.add(f"{rule}{len(parameters)}", tokens(f"{end}\n{markup.INVOKE_OPEN}") + " invoke")
    for index, (key, subschema, _) in enumerate(parameters):
        with _readable(f"{where}, parameter {key}"):
            body = _value(writer, subschema, schema, f"{where}, parameter {key}", f"tool{place}", index + 1)
        writer.rules[f"tool{place}_value{index}"] = f"{writer.tokens(key, special=False)} ({body})"
    return f"{writer.tokens(tool.name, special=False)} tool{place}_name0"


def _value(writer: _Writer, subschema: Any, schema: Mapping[str, Any], where: str, tool: str, following: int) -> str:
    """What follows a parameter's key."""
    values = values_of(subschema, schema, where)
    filled = [text for text in values.strings if text]
    if any(tag in text for tag in _VALUE_TAGS for text in filled):
        raise GrammarError(f"{where}: a value spells a tag of the format")
    ways = []
    if "" in values.strings:
        # The tag that ends an empty string begins like free text, unless that beginning merges with what is before it.
        competes = values.texts and writer.tokens(_TRUE + markup.PARAMETER_CLOSE).startswith(writer.tokens(_TRUE) + " ")
        as_text = f"{writer.tokens(_TRUE)} {_json(writer.text_end)} {tool}_free{following}"
        ways.append(as_text if competes and writer.text_end else f"{tool}_empty{following}")
    if values.texts:
        # Known strings are text here, too: as tokens they would compete with the free text.
        body = " | ".join([*(f"({text})" for text in values.texts), *map(_json, filled)])
        writer.check(f"start: T\nT: {body}\n", where)
        text = writer.text(_VALUE_TAGS, f"({body})", ending=writer.text_end)
        ways.append(f"{writer.tokens(_TRUE)} {text} {tool}_free{following}")
    elif filled:
        ways.append(f"{writer.tokens(_TRUE)} {writer.one_of(filled)} {tool}_known{following}")
    if values.schemas:
        schemas = [*values.schemas, {"enum": list(values.others)}] if values.others else list(values.schemas)
        definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        whole = {**definitions, **(schemas[0] if len(schemas) == 1 else {"anyOf": schemas})}
        ways.append(f"{writer.tokens(_FALSE)} {writer.json(whole, where)} {tool}_known{following}")
    elif values.others:
        ways.append(f"{writer.tokens(_FALSE)} {writer.one_of(map(_json, values.others))} {tool}_known{following}")
    if not ways:
        raise GrammarError(f"{where}: no value fits its schema")
    return " | ".join(ways)


def _declared(schema: Mapping[str, Any], where: str) -> list[tuple[str, Any, bool]]:
    """The parameters that may be written, in order: key, schema, and whether it is required."""
    top = resolved(schema, schema, where)
    if top.get("type", "object") != "object" or _COMPOSED & top.keys():
        raise GrammarError(f"{where}: parameters must be one plain object, without {', '.join(sorted(_COMPOSED))}")
    properties, required = {**(top.get("properties") or {})}, list(top.get("required") or ())
    properties.update({key: top.get("additionalProperties", True) for key in required if key not in properties})
    if any('"' in name or "\n" in name for name in (where, *properties)):
        raise GrammarError(f"{where}: a name has a quote or a newline, which the format cannot write")
    needed = set(required)
    return [(key, subschema, key in needed) for key, subschema in properties.items()]


def _bounded(schema: Any) -> Any:
    """The schema with bounds for its numbers, down to values that it leaves open, and without unknown formats."""
    if not isinstance(schema, Mapping):
        return _ANYTHING if schema is True else schema
    form: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("properties", "patternProperties", "$defs", "definitions"):
            form[key] = {name: _bounded(subschema) for name, subschema in value.items()}
        elif key in ("anyOf", "oneOf", "allOf", "prefixItems"):
            form[key] = [_bounded(subschema) for subschema in value]
        elif key in ("items", "additionalProperties"):
            form[key] = _bounded(value)
        elif key not in ANNOTATIONS and not (key == "format" and value not in _FORMATS):
            form[key] = value
    if not form.keys() & {"$ref", "enum", "const", "anyOf", "oneOf", "allOf"}:
        form["type"] = types_of(schema)
        for key, value in _ANYTHING_DEFINITION.items():
            form.setdefault(key, value)
    return form


_json = partial(json.dumps, ensure_ascii=False)
_CONTENT_TAGS = (*(tag for tag in markup.SPECIAL_TOKENS if tag != markup.DSML), markup.CALLS_OPEN)
_VALUE_TAGS = (markup.PARAMETER_OPEN, markup.PARAMETER_CLOSE)
_TRUE, _FALSE = '" string="true">', '" string="false">'
_NEXT_PARAMETER = f"\n{markup.PARAMETER_OPEN}"
_VISIBLE = r"/(?s:.*)[^\s\x1c-\x1f](?s:.*)/"
"""Text that Python's `strip` leaves something of, as `encode` drops other content beside calls."""

_JSON_STYLE = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
_COMPOSED = {"anyOf", "oneOf", "allOf", "not", "if", "dependentRequired", "dependentSchemas", "minProperties"}
_FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}
_ANYTHING_NAME = "baleen-anything"
_ANYTHING = {"$ref": f"#/$defs/{_ANYTHING_NAME}"}
"""JSON without a schema; a definition, as it may hold itself."""

_BOUNDS = {"minimum": -LARGEST_NUMBER, "maximum": LARGEST_NUMBER}
_ANYTHING_DEFINITION: dict[str, Any] = {**_BOUNDS, "items": _ANYTHING, "additionalProperties": _ANYTHING}
