"""Reads the body of one block of calls, as well written or as broken as the model left it.

Each complete invoke becomes a call; everything else comes back as `leftover` text with a fault, so nothing is lost and
no half-written call is ever run. Values marked `string="false"` must be JSON and go into the arguments as written;
where they are not JSON they are kept as strings.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from enum import StrEnum

from baleen.chat import markup
from baleen.chat.messages import FunctionCall, ToolCall


class Fault(StrEnum):
    """What was wrong with a completion. The reading is then the best one, and may not be what was meant."""

    MISSING_THINK_END = "missing_think_end"
    """Reasoning never closed; text before the calls, or all of it, was taken as reasoning."""

    MISSING_END = "missing_end_of_sentence"
    TRUNCATED_CALL = "truncated_call"
    """A call or its block is not closed; what is incomplete is in the content, as text."""

    MALFORMED_CALL = "malformed_call"
    INVALID_JSON = "invalid_json"
    """A `string="false"` value is not JSON; it was kept as a string."""

    DUPLICATE_PARAMETER = "duplicate_parameter"
    """The first one counts; the later ones are in the content, as text."""

    UNKNOWN_TOOL = "unknown_tool"
    TEXT_AFTER_CALLS = "text_after_calls"
    TEXT_AFTER_END = "text_after_end"
    STRAY_MARKUP = "stray_markup"
    """A turn or thinking tag stands where none may stand; it was kept as text."""


@dataclass
class CallsReading:
    """What a block's body held."""

    calls: list[ToolCall] = field(default_factory=list)
    leftover: str = ""
    faults: set[Fault] = field(default_factory=set)


def read_calls(body: str) -> CallsReading:
    """Reads the text between the tags of one block of calls. Never raises."""
    reading = CallsReading()
    position = 0
    while True:
        opening = _INVOKE.search(body, position)
        gap = body[position : opening.start() if opening else len(body)]
        if gap.strip():
            reading.leftover += gap
            reading.faults.add(Fault.MALFORMED_CALL)
        if opening is None:
            return reading
        position = _read_invoke(body, opening, reading)


_NAME = r"([^\n]{0,256}?)"  # bounded, or a text of nothing but openings would take cubic time
_INVOKE = re.compile(re.escape(markup.INVOKE_OPEN) + _NAME + '">')
_PARAMETER = re.compile(re.escape(markup.PARAMETER_OPEN) + _NAME + r'"(?: string="(true|false)")?>')
_NEXT_TAG = re.compile("|".join(map(re.escape, (markup.PARAMETER_OPEN, markup.INVOKE_CLOSE, markup.INVOKE_OPEN))))
_BLANK = re.compile(r"\s*")


def _read_invoke(body: str, opening: re.Match[str], reading: CallsReading) -> int:
    """Reads one call into `reading`; returns the position after it."""
    arguments: dict[str, str] = {}
    inner = CallsReading()
    position = opening.end()
    while True:
        blank = _BLANK.match(body, position)
        position = blank.end() if blank else position
        if body.startswith(markup.INVOKE_CLOSE, position):
            break
        parameter = _PARAMETER.match(body, position)
        close = body.find(markup.PARAMETER_CLOSE, parameter.end()) if parameter else -1
        if parameter and close >= 0:
            _read_parameter(parameter, body[parameter.end() : close], arguments, inner)
            position = close + len(markup.PARAMETER_CLOSE)
            continue
        tag = _NEXT_TAG.search(body, position + 1)
        if tag is None or tag.group() == markup.INVOKE_OPEN:
            end = tag.start() if tag else len(body)
            reading.leftover += body[opening.start() : end]
            reading.faults.add(Fault.TRUNCATED_CALL)
            return end
        inner.leftover += body[position : tag.start()]
        inner.faults.add(Fault.MALFORMED_CALL)
        position = tag.start()
    text = ", ".join(f"{_json(key)}: {value}" for key, value in arguments.items())
    reading.calls.append(ToolCall(function=FunctionCall(name=opening.group(1), arguments=f"{{{text}}}")))
    reading.leftover += inner.leftover
    reading.faults |= inner.faults
    return position + len(markup.INVOKE_CLOSE)


def _read_parameter(opening: re.Match[str], value: str, arguments: dict[str, str], reading: CallsReading) -> None:
    key, is_string = opening.groups()
    if key in arguments:
        reading.leftover += opening.group() + value + markup.PARAMETER_CLOSE
        reading.faults.add(Fault.DUPLICATE_PARAMETER)
        return
    if is_string is None or markup.PARAMETER_OPEN in value:
        reading.faults.add(Fault.MALFORMED_CALL)
    if is_string != "true" and _is_json(value):
        arguments[key] = value.strip()
        return
    if is_string == "false":
        reading.faults.add(Fault.INVALID_JSON)
    arguments[key] = _json(value)


def _is_json(text: str) -> bool:
    """Whether `text` is JSON by the standard; Python's reader alone would let NaN and 1e999 through."""
    try:
        json.dumps(json.loads(text), allow_nan=False)
    except (ValueError, RecursionError):
        return False
    return True


def _json(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)
