"""Text to message: reads a completion, whole or while it streams.

A completion is what follows the generation prompt, so in thinking mode it begins inside the reasoning. One state
machine reads it (reasoning, answer, calls, done); it decides only on complete tags and holds back every beginning of
one, so any way of cutting the text into chunks gives the same message. The model's text never raises and is never lost:
what cannot be read is content, with a `Fault`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from baleen.chat import markup
from baleen.chat.calls import Fault, read_calls
from baleen.chat.conversation import read_tools
from baleen.chat.messages import Message, ToolCall, ToolSpec


@dataclass(frozen=True)
class ParsedMessage:
    """An assistant turn as read. Absent parts are None or empty; calls carry no id, whoever runs them gives one."""

    reasoning_content: str | None
    content: str | None
    tool_calls: tuple[ToolCall, ...]
    faults: tuple[Fault, ...] = ()

    def to_message(self) -> Message:
        """The same as an assistant `Message`."""
        return Message(
            role="assistant",
            content=self.content,
            reasoning_content=self.reasoning_content,
            tool_calls=list(self.tool_calls),
        )


@dataclass(frozen=True)
class Delta:
    """What became certain with one chunk."""

    reasoning_content: str = ""
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


def parse(
    text: str, thinking: bool = True, tools: Iterable[ToolSpec | Mapping[str, Any]] | None = None
) -> ParsedMessage:
    """Reads a completion, its end-of-sentence included. `tools`, when given, are those that may be called."""
    parser = StreamParser(thinking, tools)
    parser.feed(text)
    return parser.finish()


class StreamParser:
    """Reads a completion chunk by chunk. `feed` gives what became certain, `flush` the rest, `finish` the message."""

    def __init__(self, thinking: bool = True, tools: Iterable[ToolSpec | Mapping[str, Any]] | None = None) -> None:
        self._known = None if tools is None else {tool.name for tool in read_tools(tools)}
        self._state = _State.REASONING if thinking else _State.ANSWER
        self._pending = ""  # text that is not understood yet
        self._searched = 0  # no tag that the state waits for begins in pending before this
        self._opening = ""  # the raw opening of the current block of calls
        self._blank = ""  # white space that counts only if text follows it, or if there are no calls
        self._spoke = False  # whether content other than white space stands since the last block of calls
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self._calls: list[ToolCall] = []
        self._faults: set[Fault] = set()

    def feed(self, chunk: str) -> Delta:
        """Takes the next piece of text."""
        self._pending += chunk
        return self._advance(final=False)

    def flush(self) -> Delta:
        """Says that no text follows; gives what was held back."""
        return self._advance(final=True)

    def finish(self) -> ParsedMessage:
        """The message. No text may be fed afterwards."""
        self.flush()
        reasoning, content = "".join(self._reasoning), "".join(self._content)
        faults = set(self._faults)
        if self._state is not _State.DONE:
            faults.add(Fault.MISSING_END)
        if self._known is not None and any(call.function.name not in self._known for call in self._calls):
            faults.add(Fault.UNKNOWN_TOOL)
        if any(tag in reasoning or tag in content for tag in _TURN_TAGS):
            faults.add(Fault.STRAY_MARKUP)
        return ParsedMessage(
            reasoning_content=reasoning or None,
            content=content or None,
            tool_calls=tuple(self._calls),
            faults=tuple(fault for fault in Fault if fault in faults),
        )

    def _advance(self, final: bool) -> Delta:
        before = len(self._reasoning), len(self._content), len(self._calls)
        steps = {
            _State.REASONING: self._read_reasoning,
            _State.ANSWER: self._read_answer,
            _State.CALLS: self._read_calls,
            _State.DONE: self._read_rest,
        }
        while steps[self._state](final):
            pass
        if final and not self._calls:
            self._content.append(self._blank)
            self._blank = ""
        return Delta(
            reasoning_content="".join(self._reasoning[before[0] :]),
            content="".join(self._content[before[1] :]),
            tool_calls=tuple(self._calls[before[2] :]),
        )

    def _read_reasoning(self, final: bool) -> bool:
        position, tag = self._find(markup.THINK_END, markup.EOS)
        calls = self._pending.find(markup.CALLS_OPEN)
        if tag == markup.THINK_END:
            self._reasoning.append(self._take(position))
            self._enter(_State.ANSWER, skip=tag)
            return True
        if tag is None and not final:
            # Calls within reasoning are held: they are calls if the reasoning never closes, and reasoning if it does.
            self._reasoning.append(self._take(_certain(self._pending) if calls < 0 else self._before_calls(calls)))
            return False
        end = len(self._pending) if tag is None else position
        self._faults.add(Fault.MISSING_THINK_END)
        self._reasoning.append(self._take(self._before_calls(calls) if 0 <= calls < end else end))
        self._enter(_State.ANSWER)
        return True

    def _read_answer(self, final: bool) -> bool:
        position, tag = self._find(markup.CALLS_OPEN, markup.EOS)
        if tag is None:
            self._say(self._take(len(self._pending) if final else _certain(self._pending)))
            return False
        if tag == markup.EOS:
            self._say(self._take(position))
            self._enter(_State.DONE, skip=tag)
            return True
        if self._calls:
            self._faults.add(Fault.TEXT_AFTER_CALLS)
        self._say(self._take(self._before_calls(position)))
        self._opening = self._take(self._pending.find(tag) + len(tag))
        self._enter(_State.CALLS)
        return True

    def _read_calls(self, final: bool) -> bool:
        """Finds the end of the block. Inside a parameter only the parameter's own end is a tag."""
        while True:
            position, tag = self._find(markup.PARAMETER_OPEN, markup.CALLS_CLOSE, markup.EOS)
            if tag == markup.PARAMETER_OPEN:
                close = self._pending.find(markup.PARAMETER_CLOSE, position)
                if close < 0 and not final:
                    self._searched = position
                    return False
                self._searched = close if close >= 0 else position + len(tag)
                continue
            if tag is None and not final:
                return False
            body = self._take(len(self._pending) if tag is None else position)
            closing = tag if tag == markup.CALLS_CLOSE else ""
            self._close_block(body, closing)
            self._enter(_State.ANSWER, skip=closing)
            return True

    def _close_block(self, body: str, closing: str) -> None:
        reading = read_calls(body)
        self._faults |= reading.faults
        if not closing:
            self._faults.add(Fault.TRUNCATED_CALL)
        if not reading.calls:
            if closing:
                self._faults.add(Fault.MALFORMED_CALL)
            self._say(self._opening + body + closing)
            return
        self._calls += reading.calls
        self._content.append(reading.leftover)
        self._blank = ""
        self._spoke = False

    def _read_rest(self, final: bool) -> bool:
        if final and self._pending.strip():
            self._faults.add(Fault.TEXT_AFTER_END)
            self._say(self._take(len(self._pending)))
        return False

    def _say(self, text: str) -> None:
        """Adds content. White space beside calls is no content, so it waits until text follows."""
        if not self._spoke:
            text, self._blank = self._blank + text, ""
            if not text.strip():
                self._blank = text
                return
            self._spoke = True
            if self._calls:
                self._faults.add(Fault.TEXT_AFTER_CALLS)
        self._content.append(text)

    def _find(self, *tags: str) -> tuple[int, str | None]:
        """The first complete tag in the pending text, or None; what was searched in vain is not searched again."""
        found = [(position, tag) for tag in tags if (position := self._pending.find(tag, self._searched)) >= 0]
        if found:
            return min(found)
        self._searched = max(self._searched, len(self._pending) - _LONGEST_TAG)
        return -1, None

    def _take(self, length: int) -> str:
        text, self._pending = self._pending[:length], self._pending[length:]
        self._searched = max(0, self._searched - length)
        return text

    def _enter(self, state: _State, skip: str = "") -> None:
        self._pending = self._pending[len(skip) :]
        self._searched = 0
        self._state = state

    def _before_calls(self, position: int) -> int:
        """Where the text before a block ends: the block's opening includes the two newlines before its tag."""
        return position - 2 if self._pending[:position].endswith("\n\n") else position


class _State(Enum):
    REASONING = auto()
    ANSWER = auto()
    CALLS = auto()
    DONE = auto()


_TURN_TAGS = (markup.BOS, markup.USER, markup.ASSISTANT, markup.THINK, markup.THINK_END)
_HELD_TAGS = (markup.THINK_END, markup.EOS, markup.CALLS_OPEN)
_LONGEST_TAG = max(map(len, (*_HELD_TAGS, markup.PARAMETER_OPEN, markup.CALLS_CLOSE)))


def _certain(text: str) -> int:
    """The length of the text that is surely not the beginning of a tag, nor the newlines before a block of calls."""
    end = len(text)
    start = text.rfind("<", max(0, end - _LONGEST_TAG))
    if start >= 0 and any(tag.startswith(text[start:]) for tag in _HELD_TAGS):
        end = start
    for _ in range(2):
        if text[:end].endswith("\n"):
            end -= 1
    return end
