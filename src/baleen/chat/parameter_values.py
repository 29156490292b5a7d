"""What a tool's parameter may be, taken out of its JSON Schema as the call syntax needs it.

Strings are written raw and every other value as JSON, so a schema is taken apart into both: `values_of` follows its
references and choices, and gives the texts as terminals of llguidance's Lark. What cannot be expressed is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from functools import cache
from itertools import chain, count
from typing import Any

from baleen.chat.declared import fits

MOST_ALTERNATIVES = 1000
"""Schemas that one parameter may choose among, choices within choices counted out: references can double them at every
step, and a schema comes from outside."""


ANNOTATIONS = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment"}
_ALL_TYPES = ["string", "number", "boolean", "array", "object", "null"]


class GrammarError(ValueError):
    """A grammar that cannot be written or run; the message names the tool and the parameter where there is one."""


class GrammarLibraryError(ImportError):
    """llguidance is missing; the message says how to install it."""


@dataclass(frozen=True)
class Values:
    """What a parameter may be: text of the `texts` (terminals), one of `strings`, JSON of `schemas`, or `others`."""

    texts: tuple[str, ...] = ()
    strings: tuple[str, ...] = ()
    schemas: tuple[Any, ...] = ()
    others: tuple[Any, ...] = ()


def values_of(schema: Any, root: Mapping[str, Any], where: str) -> Values:
    """Takes a parameter's schema apart; references lead into `root`. Raises `GrammarError`, which begins with
    `where`."""
    return _values(schema, root, where, count(1))


def resolved(schema: Mapping[str, Any], root: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The schema without `$ref` at its top, nor an `allOf` of one; what stands beside them is kept."""
    flat, seen = {**schema}, set()
    while "$ref" in flat or len(flat.get("allOf", ())) == 1:
        if "$ref" not in flat:
            flat = {**flat.pop("allOf")[0], **flat}
            continue
        reference = flat.pop("$ref")
        target: Any = root if reference.startswith("#") and reference not in seen else None
        for step in reference.split("/")[1:]:
            target = target.get(step) if isinstance(target, Mapping) else None
        if not isinstance(target, Mapping):
            raise GrammarError(f"{where}: $ref {reference!r} leads nowhere; only paths within the schema are followed")
        seen.add(reference)
        flat = {**target, **flat}
    return flat


def types_of(schema: Mapping[str, Any]) -> list[str]:
    """The JSON types that a schema allows; where it names none, its other keywords tell."""
    named = schema.get("type")
    if named is None:
        hints = {"properties": "object", "items": "array", "minLength": "string", "pattern": "string"}
        named = [kind for key, kind in hints.items() if key in schema] or _ALL_TYPES
    return [named] if isinstance(named, str) else list(dict.fromkeys(named))


def llguidance() -> Any:
    """The library, imported when it is first needed."""
    try:
        import llguidance as library
    except ImportError as error:
        raise GrammarLibraryError("grammars need llguidance: pip install 'baleen[serve]'") from error
    return library


def _values(schema: Any, root: Mapping[str, Any], where: str, taken: Iterator[int]) -> Values:
    """`taken` counts the schemas that were taken apart for the same parameter."""
    if next(taken) > MOST_ALTERNATIVES:
        raise GrammarError(f"{where}: more than {MOST_ALTERNATIVES} alternatives")
    schema = resolved({} if schema is True else schema, root, where)
    if "const" in schema or "enum" in schema:
        beside = {key: value for key, value in schema.items() if key != "enum"}
        fixed = [value for value in schema.get("enum", [schema.get("const")]) if fits(value, beside)]
        strings = tuple(value for value in fixed if isinstance(value, str))
        return Values(strings=strings, others=tuple(value for value in fixed if not isinstance(value, str)))
    kinds = types_of(schema)
    others = [kind for kind in kinds if kind != "string"]
    if "string" not in kinds:
        return Values(schemas=(schema,))
    for word in ("anyOf", "oneOf"):
        if word in schema:
            return _branches(schema, word, root, where, taken)
    if "not" in schema or "if" in schema or "allOf" in schema:
        raise GrammarError(f"{where}: allOf, not and if are understood only where the value cannot be a string")
    texts, strings = _texts(schema, where)
    return Values(texts, strings, schemas=({**schema, "type": others},) if others else ())


def _branches(
    schema: Mapping[str, Any], word: str, root: Mapping[str, Any], where: str, taken: Iterator[int]
) -> Values:
    outer = {key: value for key, value in schema.items() if key != word and key not in ANNOTATIONS}
    merged = []
    for branch in schema[word]:
        inner = resolved(branch, root, where)
        if any(outer[key] != inner[key] for key in outer.keys() & inner.keys() - {"title", "description"}):
            raise GrammarError(f"{where}: {word} and what stands beside it disagree")
        merged.append({**outer, **inner})
    parts = [_values(branch, root, where, taken) for branch in merged]
    with_strings = sum(bool(part.texts or part.strings) for part in parts)
    if not with_strings:
        return Values(schemas=(schema,))
    if word == "oneOf" and with_strings > 1:
        raise GrammarError(f"{where}: oneOf with several kinds of strings; use anyOf")
    texts, strings, schemas, others = (tuple(chain(*kind)) for kind in zip(*map(astuple, parts), strict=True))
    return Values(texts, strings, ({"oneOf": list(schemas)},) if word == "oneOf" and schemas else schemas, others)


def _texts(schema: Mapping[str, Any], where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A schema of strings as terminals for the texts that are not empty, and the empty string where it fits."""
    least, most, pattern = schema.get("minLength", 0), schema.get("maxLength"), schema.get("pattern")
    texts = [] if most == 0 else [f"/(?s:.){{{max(1, least)},{'' if most is None else most}}}/"]
    fits_empty = least == 0
    if pattern is not None:
        terminal = _pattern(pattern, where)
        texts = [f"{text} & {terminal}" for text in texts]
        fits_empty = fits_empty and _matches_nothing(terminal)
    return tuple(texts), ("",) if fits_empty else ()


def _matches_nothing(terminal: str) -> bool:
    """Whether a terminal matches the empty text. llguidance is asked: Python's matcher can take for ever even there."""
    matcher = llguidance().LLMatcher(_byte_tokens(), f"start: T\nT: {terminal}\n", log_level=0)
    return bool(not matcher.is_error() and matcher.is_accepting())


@cache
def _byte_tokens() -> Any:
    return llguidance().LLTokenizer("byte")


def _pattern(pattern: str, where: str) -> str:
    """A JSON Schema pattern, which may match anywhere, as a terminal, which matches from end to end."""
    first, last = pattern.startswith("^"), re.search(r"(?<!\\)(?:\\\\)*\$\Z", pattern) is not None
    inner = pattern[first : len(pattern) - last]
    # A class that is never closed runs to the end: to look for the end of each would take quadratic time.
    bare = re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*+(?:\]|\Z)?", "", inner, flags=re.DOTALL)
    if "^" in bare or "$" in bare:
        raise GrammarError(f"{where}: in the pattern {pattern!r}, ^ and $ may stand only around the whole")
    inner = llguidance().regex_to_lark(inner, "dw").replace("\n", r"\n")
    anything = "(?s:.*)"
    return f"/{'' if first else anything}(?:{inner}){'' if last else anything}/"
