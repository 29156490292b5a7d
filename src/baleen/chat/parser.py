"""Text to message: reads a completion, whole or while it streams.

A completion is what follows the generation prompt, so in thinking mode it begins inside the reasoning. One state
machine reads it (reasoning, answer, calls, done; within a block of calls `calls.py` goes on). It decides only on
complete tags and holds back every beginning of one, so any way of cutting the text into chunks gives the same message.
The model's text never raises and is never lost: what cannot be read is content, with a `Fault`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from itertools import groupby
from typing import Any

from baleen.chat import markup
from baleen.chat.calls import CallDelta, CallsReader, Fault
from baleen.chat.conversation import read_tools
from baleen.chat.declared import declared
from baleen.chat.messages import Message, ToolCall, ToolSpec
from baleen.chat.pending import Pending, Tags


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
    """What became certain with one chunk. `tool_calls` are pieces of calls; see `CallDelta`."""

    reasoning_content: str = ""
    content: str = ""
    tool_calls: tuple[CallDelta, ...] = ()


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
        self._tools = None if tools is None else {tool.name: declared(tool) for tool in read_tools(tools)}
        self._state = _State.REASONING if thinking else _State.ANSWER
        self._pending = Pending()
        self._block = CallsReader(self._pending, self._tools or {})
        self._newlines = ""  # at the end of what was read; they belong to the opening if a block of calls follows
        self._held: list[str] = []  # what follows the opening of calls within reasoning, or the end of the turn
        self._blank: list[str] = []  # white space that counts only if text follows it, or if there are no calls
        self._spoke = False  # whether content other than white space stands since the last block of calls
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self._calls: list[ToolCall] = []
        self._faults: set[Fault] = set()

    @property
    def unfinished_call(self) -> bool:
        """Whether the deltas showed the beginning of a call that never closed, so that the message does not have it."""
        return self._block.unfinished

    def feed(self, chunk: str) -> Delta:
        """Takes the next piece of text."""
        self._pending.add(chunk)
        return self._advance(final=False)

    def flush(self) -> Delta:
        """Says that no text follows; gives what was held back."""
        return self._advance(final=True)

    def finish(self) -> ParsedMessage:
        """The message. No text may be fed afterwards."""
        self.flush()
        reasoning, content = "".join(self._reasoning), "".join(self._content)
        faults = self._faults | self._block.faults
        if self._state is not _State.DONE:
            faults.add(Fault.MISSING_END)
        if self._tools is not None and any(call.function.name not in self._tools for call in self._calls):
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
        reasoning, content = len(self._reasoning), len(self._content)
        steps = {
            _State.REASONING: self._read_reasoning,
            _State.HELD: self._read_held,
            _State.ANSWER: self._read_answer,
            _State.CALLS: self._read_calls,
            _State.DONE: self._read_rest,
        }
        while steps[self._state](final):
            pass
        if final and not self._calls:
            self._content += self._blank
            self._blank.clear()
        shown, self._block.shown = self._block.shown, []
        return Delta(
            reasoning_content="".join(self._reasoning[reasoning:]),
            content="".join(self._content[content:]),
            tool_calls=_merged(shown),
        )

    def _read_reasoning(self, final: bool) -> bool:
        text, tag = self._take_text(_REASONING, final)
        self._reasoning.append(text)
        if tag == markup.CALLS_OPEN:
            self._held.append(self._take_newlines() + tag)
            self._state = _State.HELD
            return True
        if tag is None and not final:
            return False
        self._reasoning.append(self._take_newlines())
        if tag != markup.THINK_END:
            self._faults.add(Fault.MISSING_THINK_END)
            self._pending.put_back(tag or "")
        self._state = _State.ANSWER
        return True

    def _read_held(self, final: bool) -> bool:
        """Calls within reasoning: they are calls if the reasoning never closes, and reasoning if it does."""
        text, tag = self._pending.take(_HELD, final)
        self._held.append(text)
        if tag is None and not final:
            return False
        if tag == markup.THINK_END:
            self._reasoning += self._held
        else:
            self._faults.add(Fault.MISSING_THINK_END)
            self._pending.put_back("".join(self._held) + (tag or ""))
        self._held.clear()
        self._state = _State.ANSWER
        return True

    def _read_answer(self, final: bool) -> bool:
        text, tag = self._take_text(_ANSWER, final)
        self._say(text)
        if tag == markup.CALLS_OPEN:
            if self._calls:
                self._faults.add(Fault.TEXT_AFTER_CALLS)
            self._block.open(self._take_newlines() + tag)
            self._state = _State.CALLS
            return True
        if tag is None and not final:
            return False
        self._say(self._take_newlines())
        if tag is None:
            return False
        self._state = _State.DONE
        return True

    def _read_calls(self, final: bool) -> bool:
        block = self._block.read(final)
        if block is None:
            return False
        self._state = _State.DONE if block.ending == markup.EOS else _State.ANSWER
        if not block.calls:
            self._say(block.leftover)
            return True
        self._calls += block.calls
        self._content.append(block.leftover)
        self._blank.clear()
        self._spoke = False
        return True

    def _read_rest(self, final: bool) -> bool:
        self._held.append(self._pending.take_rest())
        rest = "".join(self._held) if final else ""
        if rest.strip():
            self._faults.add(Fault.TEXT_AFTER_END)
            self._say(rest)
            self._held.clear()
        return False

    def _say(self, text: str) -> None:
        """Adds content. White space beside calls is no content, so it waits until text follows."""
        if self._spoke:
            self._content.append(text)
        elif not text.strip():
            self._blank.append(text)
        else:
            self._content += [*self._blank, text]
            self._blank.clear()
            self._spoke = True
            if self._calls:
                self._faults.add(Fault.TEXT_AFTER_CALLS)

    def _take_text(self, tags: Tags, final: bool) -> tuple[str, str | None]:
        """The text before the next tag without its last two newlines, which wait, and the tag."""
        text, tag = self._pending.take(tags, final)
        text = self._newlines + text
        end = max(len(text.rstrip("\n")), len(text) - 2)
        self._newlines = text[end:]
        return text[:end], tag

    def _take_newlines(self) -> str:
        newlines, self._newlines = self._newlines, ""
        return newlines


def _merged(pieces: list[CallDelta]) -> tuple[CallDelta, ...]:
    """Neighbouring pieces of the same call as one."""
    merged = []
    for index, group in groupby(pieces, key=lambda piece: piece.index):
        ours = list(group)
        merged.append(CallDelta(index, ours[0].name, "".join(piece.arguments for piece in ours)))
    return tuple(merged)


class _State(Enum):
    REASONING = auto()
    HELD = auto()
    ANSWER = auto()
    CALLS = auto()
    DONE = auto()


_TURN_TAGS = (markup.BOS, markup.USER, markup.ASSISTANT, markup.THINK, markup.THINK_END)
_REASONING = Tags(markup.THINK_END, markup.EOS, markup.CALLS_OPEN)
_HELD = Tags(markup.THINK_END, markup.EOS)
_ANSWER = Tags(markup.CALLS_OPEN, markup.EOS)
