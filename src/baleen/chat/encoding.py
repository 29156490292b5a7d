"""Messages to text: the exact V3.2 format, cut into pieces that say who wrote them.

The text alone is not enough. A tokenizer must know which markup is real, or a tool result that spells `<｜User｜>`
would forge a turn; and training must know which tokens the model itself produced. So `segments` is the encoder, and
`encode` is its text joined. The form is that of the reference encoding of DeepSeek-V3.2, with its known faults mended:
results follow their call's id, and a developer message keeps its place.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from baleen.chat import markup
from baleen.chat.conversation import (
    ChatFormatError,
    attach_tools,
    call_arguments,
    order_results,
    read_messages,
    read_tools,
)
from baleen.chat.messages import Message, ToolCall, ToolSpec
from baleen.chat.retention import last_user_index, reasoning_is_kept


@dataclass(frozen=True)
class Segment:
    """One piece of the text. Joined in order, the pieces are the whole text."""

    text: str
    sampled: bool
    """The model generated it: reasoning, `</think>`, content, calls and end-of-sentence of a turn it is trained on."""

    special: bool
    """The format wrote it: special tokens in it are real. False: it came from outside and is only ever plain text."""


def encode(
    messages: Iterable[Message | Mapping[str, Any]],
    tools: Iterable[ToolSpec | Mapping[str, Any]] | None = None,
    thinking: bool = True,
    context: Iterable[Message | Mapping[str, Any]] | None = None,
) -> str:
    """The V3.2 text of `messages`. After a user or tool message it ends with the generation prompt, as the format does.

    `context` are earlier messages whose text exists already: they are taken into account but not written again.
    Raises `ChatFormatError` for what the format cannot express.
    """
    return "".join(segment.text for segment in segments(messages, tools, thinking, context))


def segments(
    messages: Iterable[Message | Mapping[str, Any]],
    tools: Iterable[ToolSpec | Mapping[str, Any]] | None = None,
    thinking: bool = True,
    context: Iterable[Message | Mapping[str, Any]] | None = None,
) -> list[Segment]:
    """The text of `encode` in pieces.

    In thinking mode the turns before the last user message are not `sampled`: their reasoning is dropped here, so this
    is not the context in which they were sampled (`retention.training_views` gives that one).
    """
    earlier, current = read_messages(context or ()), read_messages(messages)
    conversation = order_results(attach_tools(earlier + current, read_tools(tools)))
    start = len(conversation) - len(current) if earlier else 0
    last_user = last_user_index(conversation)
    pieces = [] if earlier else [_markup(markup.BOS)]
    for index in range(start, len(conversation)):
        pieces += _message(conversation, index, last_user, thinking)
    return [piece for piece in pieces if piece.text]


def _message(messages: Sequence[Message], index: int, last_user: int, thinking: bool) -> Iterator[Segment]:
    message = messages[index]
    if message.role == "system":
        yield _outside(message.content or "")
        yield from _instructions(message)
    elif message.role == "assistant":
        kept = reasoning_is_kept(index, last_user, thinking)
        yield from _assistant(message, kept, sampled=kept or not thinking)
    elif message.role == "tool":
        yield from _result(messages, index, opens_thinking=thinking and index > last_user)
    else:
        yield _markup(markup.USER)
        if message.role == "developer":
            yield from _instructions(message)
            if not message.content:
                raise ChatFormatError(f"message {index} is a developer message without content; give it one")
            yield _markup(markup.DEVELOPER_MESSAGE)
        yield _outside(message.content or "")
        yield _markup(markup.ASSISTANT + (markup.THINK if thinking and index == last_user else markup.THINK_END))


def _instructions(message: Message) -> Iterator[Segment]:
    """Tools and response format, which ride on system and developer messages."""
    if message.tools:
        yield _markup("\n\n" + markup.TOOLS_BEFORE)
        yield _outside("\n".join(_json(tool.function) for tool in message.tools))
        yield _markup(markup.TOOLS_AFTER)
    if message.response_format is not None:
        yield _markup("\n\n" + markup.RESPONSE_FORMAT)
        yield _outside(_json(message.response_format))


def _assistant(message: Message, thinks: bool, sampled: bool) -> Iterator[Segment]:
    if thinks:
        yield _outside(message.reasoning_content or "", sampled)
        yield _markup(markup.THINK_END, sampled)
    content = message.content or ""
    if content.strip() or not message.tool_calls:
        yield _outside(content, sampled)
    if message.tool_calls:
        yield _markup(f"\n\n{markup.CALLS_OPEN}\n", sampled)
        for position, call in enumerate(message.tool_calls):
            if position:
                yield _markup("\n", sampled)
            yield from _call(call, sampled)
        yield _markup(f"\n{markup.CALLS_CLOSE}", sampled)
    yield _markup(markup.EOS, sampled)


def _call(call: ToolCall, sampled: bool) -> Iterator[Segment]:
    """Markup around names and values, which are plain: a value can spell a tag but never be one."""
    yield _markup(markup.INVOKE_OPEN, sampled)
    yield _outside(call.function.name, sampled)
    yield _markup('">\n', sampled)
    for position, (key, value) in enumerate(call_arguments(call).items()):
        is_string = isinstance(value, str)
        yield _markup(("\n" if position else "") + markup.PARAMETER_OPEN, sampled)
        yield _outside(key, sampled)
        yield _markup(f'" string="{"true" if is_string else "false"}">', sampled)
        yield _outside(value if is_string else _json(value), sampled)
        yield _markup(markup.PARAMETER_CLOSE, sampled)
    yield _markup(f"\n{markup.INVOKE_CLOSE}", sampled)


def _result(messages: Sequence[Message], index: int, opens_thinking: bool) -> Iterator[Segment]:
    if messages[index - 1].role != "tool":
        yield _markup(f"\n\n{markup.RESULTS_OPEN}")
    yield _markup("\n<result>")
    yield _outside(messages[index].content or "")
    yield _markup("</result>")
    if index + 1 == len(messages) or messages[index + 1].role != "tool":
        yield _markup(f"\n{markup.RESULTS_CLOSE}\n\n")
        yield _markup(markup.THINK if opens_thinking else markup.THINK_END)


def _markup(text: str, sampled: bool = False) -> Segment:
    return Segment(text, sampled, special=True)


def _outside(text: str, sampled: bool = False) -> Segment:
    return Segment(text, sampled, special=False)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
