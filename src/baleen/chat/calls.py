"""Reads a block of calls while it streams, as well written or as broken as the model left it.

A call's name is shown as soon as it is complete, and its arguments as they come, as JSON text: strings letter by
letter, other values when their tag closes, because only then it is known whether they are JSON. A call counts when it
is closed. What is not part of a closed call is kept as text with a fault, so nothing is lost and no half-written call
is ever run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from typing import Any

from baleen.chat import markup
from baleen.chat.declared import UNDECLARED, Declared, allows_strings, fits
from baleen.chat.messages import FunctionCall, ToolCall
from baleen.chat.pending import Pending, Tags


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

    WRONG_TYPE = "wrong_type"
    """A value, as marked, is not of the type that the tool declares; it was read as that type where it can be."""

    DUPLICATE_PARAMETER = "duplicate_parameter"
    """The first one counts; the later ones are in the content, as text."""

    UNKNOWN_PARAMETER = "unknown_parameter"
    """The tool takes no such parameter, and none but those that it declares; it stays among the arguments."""

    MISSING_PARAMETER = "missing_parameter"
    UNKNOWN_TOOL = "unknown_tool"
    TEXT_AFTER_CALLS = "text_after_calls"
    TEXT_AFTER_END = "text_after_end"
    STRAY_MARKUP = "stray_markup"
    """A turn or thinking tag stands where none may stand; it was kept as text."""


@dataclass(frozen=True)
class CallDelta:
    """The next piece of one call. The pieces of a closed call join to its arguments; those of an unclosed are no JSON.

    `index` counts the calls that were begun; where one was left unclosed, later ones keep their own index.
    """

    index: int
    name: str | None
    """Only in the first piece."""

    arguments: str


@dataclass(frozen=True)
class Block:
    """A block that is read to its end."""

    calls: tuple[ToolCall, ...]
    leftover: str
    """What belongs to no call; when there are no calls, the whole block."""

    ending: str
    """The tag that ended it; empty at the end of the text."""


class CallsReader:
    """Reads the body of one block of calls after another. `tools` declare what may be called."""

    def __init__(self, pending: Pending, tools: Mapping[str, Declared]) -> None:
        self.shown: list[CallDelta] = []
        """What became certain and was not fetched yet."""

        self.faults: set[Fault] = set()
        self.unfinished = False
        """Whether a call was shown that was never closed."""

        self._pending = pending
        self._tools = tools
        self._begun = 0
        self._call: _Call
        self._value: _Value
        self.open("")

    def open(self, opening: str) -> None:
        """Begins a block; `opening` is its tag as written, with the newlines before it."""
        self._place = _Place.BETWEEN
        self._raw = [opening]  # the block as written, as long as it has no call; then what follows its last call
        self._gap: list[str] = []  # what was written where only tags may stand
        self._leftover: list[str] = []
        self._calls: list[ToolCall] = []
        self._ending: str | None = None

    def read(self, final: bool) -> Block | None:
        """The block, when it has ended; None asks for more text. `final` says that none follows."""
        steps = {
            _Place.BETWEEN: self._read_between,
            _Place.NAME: self._read_name,
            _Place.INSIDE: self._read_inside,
            _Place.PARAMETER: self._read_parameter,
            _Place.VALUE: self._read_value,
        }
        while self._ending is None:
            if not steps[self._place](final):
                return None
        if self._ending != markup.CALLS_CLOSE:
            self.faults.add(Fault.TRUNCATED_CALL)
        elif not self._calls:
            self.faults.add(Fault.MALFORMED_CALL)
            self._raw.append(self._ending)
        leftover = self._leftover if self._calls else self._raw
        return Block(tuple(self._calls), "".join(leftover), self._ending)

    def _read_between(self, final: bool) -> bool:
        before, tag = self._pending.take(_BETWEEN, final)
        self._write_gap(before)
        if tag is None and not final:
            return False
        if tag == markup.INVOKE_OPEN:
            self._place = _Place.NAME
            return True
        self._close_gap(self._leftover, self.faults)
        self._ending = tag or ""
        return True

    def _read_name(self, final: bool) -> bool:
        match, waits = self._pending.take_match(_NAME, _LONGEST_HEAD, final)
        if match is None:
            if not waits:
                self._write_gap(markup.INVOKE_OPEN)
                self._place = _Place.BETWEEN
            return not waits
        self._close_gap(self._leftover, self.faults)
        name = match.group(1)
        self._call = _Call(self._begun, name, self._tools.get(name, UNDECLARED), len(self._raw))
        self._begun += 1
        self._raw.append(markup.INVOKE_OPEN + match.group())
        self._show("{", name)
        self._place = _Place.INSIDE
        return True

    def _read_inside(self, final: bool) -> bool:
        before, tag = self._pending.take(_INSIDE, final)
        self._write_gap(before)
        if tag is None and not final:
            return False
        if tag == markup.PARAMETER_OPEN:
            self._place = _Place.PARAMETER
        elif tag == markup.INVOKE_CLOSE:
            self._close_call()
        else:
            self._leave_call()
            if tag == markup.INVOKE_OPEN:
                self._place = _Place.NAME
            else:
                self._ending = tag or ""
        return True

    def _read_parameter(self, final: bool) -> bool:
        match, waits = self._pending.take_match(_PARAMETER, _LONGEST_HEAD, final)
        if match is None:
            if not waits:
                self._write_gap(markup.PARAMETER_OPEN)
                self._place = _Place.INSIDE
            return not waits
        call = self._call
        self._close_gap(call.leftover, call.faults)
        key, kind = match.groups()
        schema = call.declared.properties.get(key)
        again = key in call.keys
        streams = kind == "true" and not again and allows_strings(schema)
        self._value = _Value(markup.PARAMETER_OPEN + match.group(), key, kind, schema, again, streams)
        if streams:
            self._show(f'{call.comma()}{as_json(key)}: "')
        self._place = _Place.VALUE
        return True

    def _read_value(self, final: bool) -> bool:
        value = self._value
        text, tag = self._pending.take(_VALUE, final)
        value.text.append(text)
        if tag == markup.EOS:
            value.hold()
            value.text.append(tag)
            return True
        if tag == markup.PARAMETER_CLOSE:
            self._close_value(value)
            return True
        if final:
            before, self._ending, after = "".join(value.text).partition(markup.EOS)
            self._raw += [value.opening, before]
            self._pending.put_back(after)
            self._leave_call()
        elif value.streams:
            self._show(_inner(value.next_to_show(closed=False)))
        return final

    def _close_value(self, value: _Value) -> None:
        call = self._call
        text = "".join(value.text)
        written = value.opening + text + markup.PARAMETER_CLOSE
        self._raw.append(written)
        self._place = _Place.INSIDE
        if value.again:
            call.leftover.append(written)
            call.faults.add(Fault.DUPLICATE_PARAMETER)
            return
        if value.kind is None or markup.PARAMETER_OPEN in text:
            call.faults.add(Fault.MALFORMED_CALL)
        if not call.declared.knows(value.key):
            call.faults.add(Fault.UNKNOWN_PARAMETER)
        if value.streams:
            self._show(_inner(value.next_to_show(closed=True)) + '"')
            if not fits(text, value.schema):
                call.faults.add(Fault.WRONG_TYPE)
        else:
            read, faults = read_value(text, value.kind, value.schema)
            self._show(f"{call.comma()}{as_json(value.key)}: {read}")
            call.faults |= faults
        call.keys.add(value.key)

    def _close_call(self) -> None:
        call = self._call
        self._close_gap(call.leftover, call.faults)
        self._show("}")
        if not call.keys.issuperset(call.declared.required):
            call.faults.add(Fault.MISSING_PARAMETER)
        self._calls.append(ToolCall(function=FunctionCall(name=call.name, arguments="".join(call.arguments))))
        self._leftover += call.leftover
        self.faults |= call.faults
        self._raw.clear()
        self._place = _Place.BETWEEN

    def _leave_call(self) -> None:
        """The call was not closed: it is text, whatever of it was read."""
        self._gap.clear()
        self._leftover += self._raw[self._call.start :]
        self.faults.add(Fault.TRUNCATED_CALL)
        self.unfinished = True

    def _show(self, arguments: str, name: str | None = None) -> None:
        if arguments:
            self._call.arguments.append(arguments)
            self.shown.append(CallDelta(self._call.index, name, arguments))

    def _write_gap(self, text: str) -> None:
        self._gap.append(text)
        self._raw.append(text)

    def _close_gap(self, leftover: list[str], faults: set[Fault]) -> None:
        """White space may stand between tags; anything else is kept as text."""
        gap = "".join(self._gap)
        self._gap.clear()
        if gap.strip():
            leftover.append(gap)
            faults.add(Fault.MALFORMED_CALL)


def read_value(text: str, kind: str | None, schema: Any) -> tuple[str, set[Fault]]:
    """The JSON text that a value means, and what was wrong with it.

    `kind` is the value's `string` attribute: "true" says that it is a string as it stands, "false" that it is JSON.
    Where only the other reading fits the declared `schema`, it is the other.
    """
    as_written = [(as_json(text), text)]
    as_value = [(text.strip(), value) for value in _values(text)]
    readings = as_written + as_value if kind == "true" else as_value + as_written
    fitting = [reading for reading in readings if fits(reading[1], schema)]
    chosen = (fitting or readings)[0]
    faults = set()
    if kind == "false" and not as_value:
        faults.add(Fault.INVALID_JSON)
    if not fitting or (kind is not None and chosen is not readings[0]):
        faults.add(Fault.WRONG_TYPE)
    return chosen[0], faults


def as_json(value: str) -> str:
    """The string `value` as JSON."""
    return json.dumps(value, ensure_ascii=False)


def _values(text: str) -> list[Any]:
    """The value of `text`, if it is JSON by the standard; Python's reader alone would let NaN and 1e999 through."""
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        return []
    return [value]


def _inner(text: str) -> str:
    """A piece of a string as it stands between the quotes of the JSON text."""
    return as_json(text)[1:-1]


class _Place(Enum):
    BETWEEN = auto()
    NAME = auto()
    INSIDE = auto()
    PARAMETER = auto()
    VALUE = auto()


@dataclass
class _Value:
    """One parameter's value while it comes."""

    opening: str
    key: str
    kind: str | None
    schema: Any
    again: bool
    streams: bool
    text: list[str] = field(default_factory=list)
    shown: int = 0
    held: int | None = None

    def hold(self) -> None:
        """Shows nothing from here on until the value closes: a call that breaks off at an end of sentence is none."""
        self.held = len(self.text) if self.held is None else self.held

    def next_to_show(self, closed: bool) -> str:
        """What was not shown yet and may be."""
        end = len(self.text) if closed or self.held is None else self.held
        text = "".join(self.text[self.shown : end])
        self.shown = end
        return text


@dataclass
class _Call:
    """One call while it comes. `start` is where the block's raw text begins to be this call's."""

    index: int
    name: str
    declared: Declared
    start: int
    arguments: list[str] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    leftover: list[str] = field(default_factory=list)
    faults: set[Fault] = field(default_factory=set)

    def comma(self) -> str:
        return ", " if self.keys else ""


_LONGEST_NAME = 256  # bounded, or a text of nothing but openings would take cubic time
_NAME = re.compile(rf'([^\n]{{0,{_LONGEST_NAME}}}?)">')
_PARAMETER = re.compile(rf'([^\n]{{0,{_LONGEST_NAME}}}?)"(?: string="(true|false)")?>')
_LONGEST_HEAD = _LONGEST_NAME + len('" string="false">')

_BETWEEN = Tags(markup.INVOKE_OPEN, markup.CALLS_CLOSE, markup.EOS)
_INSIDE = Tags(markup.PARAMETER_OPEN, markup.INVOKE_CLOSE, markup.INVOKE_OPEN, markup.CALLS_CLOSE, markup.EOS)
_VALUE = Tags(markup.PARAMETER_CLOSE, markup.EOS)
