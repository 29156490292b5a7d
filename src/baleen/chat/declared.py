"""What the offered tools declare about their arguments, as far as a parser can hold a value to it.

Of JSON Schema only the part that says what kind of value a parameter is: `type`, `enum`, `const` and `anyOf`/`oneOf` of
these. Whatever else a schema says, or a schema that is none, accepts every value: the tool itself judges the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from baleen.chat.messages import ToolSpec


@dataclass(frozen=True)
class Declared:
    """The parameters of one tool."""

    properties: Mapping[str, Any]
    required: tuple[str, ...]
    closed: bool
    """Whether only these parameters exist: `additionalProperties` is false."""

    def knows(self, parameter: str) -> bool:
        """Whether the tool takes this parameter."""
        return not self.closed or parameter in self.properties


def declared(tool: ToolSpec) -> Declared:
    """What `tool` declares. Parts that are not of the shape of a JSON Schema declare nothing."""
    schema = tool.function.get("parameters")
    if not isinstance(schema, Mapping):
        return UNDECLARED
    properties, required = schema.get("properties"), schema.get("required")
    return Declared(
        properties=properties if isinstance(properties, Mapping) else {},
        required=tuple(key for key in required if isinstance(key, str)) if isinstance(required, list) else (),
        closed=schema.get("additionalProperties") is False and not schema.get("patternProperties"),
    )


UNDECLARED = Declared({}, (), closed=False)


DEEPEST_CHOICE = 32
"""Choices nested deeper than this declare nothing; a schema comes from outside and may be made to exhaust the stack."""


def fits(value: Any, schema: Any, depth: int = 0) -> bool:
    """Whether the JSON value `value` is of the kind that `schema` declares. `depth` counts the choices around it."""
    if not isinstance(schema, Mapping) or depth > DEEPEST_CHOICE:
        return schema is not False
    if "const" in schema and not _same(value, schema["const"]):
        return False
    if isinstance(schema.get("enum"), list) and not any(_same(value, one) for one in schema["enum"]):
        return False
    types = _types(schema)
    if types and not any(_is_of_type(value, name) for name in types):
        return False
    return all(any(fits(value, one, depth + 1) for one in choices) for choices in _choices(schema))


def allows_strings(schema: Any, depth: int = 0) -> bool:
    """Whether some string fits `schema`; then a value that comes as a string is one, whatever else it could be."""
    if not isinstance(schema, Mapping) or depth > DEEPEST_CHOICE:
        return schema is not False
    if "const" in schema and not isinstance(schema["const"], str):
        return False
    if isinstance(schema.get("enum"), list) and not any(isinstance(one, str) for one in schema["enum"]):
        return False
    types = _types(schema)
    if types and not any(_is_of_type("", name) for name in types):
        return False
    return all(any(allows_strings(one, depth + 1) for one in choices) for choices in _choices(schema))


def _types(schema: Mapping[str, Any]) -> list[Any]:
    named = schema.get("type")
    return named if isinstance(named, list) else [] if named is None else [named]


def _choices(schema: Mapping[str, Any]) -> list[list[Any]]:
    return [choices for key in ("anyOf", "oneOf") if isinstance(choices := schema.get(key), list) and choices]


def _is_of_type(value: Any, name: Any) -> bool:
    """A type that JSON Schema does not have accepts everything."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    kinds = {
        "string": isinstance(value, str),
        "number": number,
        "integer": number and value == value // 1,
        "boolean": isinstance(value, bool),
        "null": value is None,
        "array": isinstance(value, list),
        "object": isinstance(value, dict),
    }
    return kinds.get(name, True) if isinstance(name, str) else True


def _same(one: Any, other: Any) -> bool:
    """Equality of JSON values; in Python alone true is 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return bool(one == other)
