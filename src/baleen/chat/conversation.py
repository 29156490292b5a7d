"""Reads a conversation as clients send it, and puts it into the one form that the encoder writes.

Dicts in OpenAI's shape become `Message`s, tools ride on the opening message, and the results of one block of calls
stand in the order of the calls: matched by `tool_call_id`, by position only where ids are missing. Whatever cannot be
written truthfully is a `ChatFormatError` that names the message.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from baleen.chat.messages import Message, ToolCall, ToolSpec


class ChatFormatError(ValueError):
    """A conversation that the text format cannot express; the message says which part and what to do."""


def read_messages(messages: Iterable[Message | Mapping[str, Any]]) -> list[Message]:
    """The messages as `Message`s. Null fields are left out, text parts are joined, dict arguments become JSON."""
    read = []
    for index, message in enumerate(messages):
        if isinstance(message, Message):
            read.append(message)
            continue
        try:
            read.append(Message.model_validate(_plain(message, index)))
        except ValidationError as error:
            raise ChatFormatError(f"message {index} is not in OpenAI's shape: {error}") from error
    return read


def read_tools(tools: Iterable[ToolSpec | Mapping[str, Any]] | None) -> list[ToolSpec]:
    """The tools as `ToolSpec`s; None is no tools."""
    try:
        return [tool if isinstance(tool, ToolSpec) else ToolSpec.model_validate(dict(tool)) for tool in tools or ()]
    except ValidationError as error:
        raise ChatFormatError(f'a tool is {{"type": "function", "function": {{...}}}}: {error}') from error


def attach_tools(messages: Sequence[Message], tools: Sequence[ToolSpec]) -> list[Message]:
    """Lays `tools` on the opening system or developer message; where there is none, an empty system message opens."""
    if not tools:
        return list(messages)
    if not messages or messages[0].role not in ("system", "developer"):
        return [Message(role="system", tools=list(tools)), *messages]
    opening = messages[0]
    if opening.tools and list(opening.tools) != list(tools):
        raise ChatFormatError("the opening message carries other tools than those given; give them in one place only")
    return [opening.model_copy(update={"tools": list(tools)}), *messages[1:]]


def order_results(messages: Sequence[Message]) -> list[Message]:
    """The same messages with each block of tool results in the order of its calls. A block is answered whole."""
    ordered: list[Message] = []
    index = 0
    while index < len(messages):
        if messages[index].role != "tool":
            ordered.append(messages[index])
            index += 1
            continue
        end = index
        while end < len(messages) and messages[end].role == "tool":
            end += 1
        calls = messages[index - 1].tool_calls if index else []
        if not calls or messages[index - 1].role != "assistant":
            raise ChatFormatError(f"message {index} is a tool result, but no assistant message with calls precedes it")
        ordered += _match(calls, messages[index:end], index)
        index = end
    return ordered


def call_arguments(call: ToolCall) -> dict[str, Any]:
    """The call's arguments; empty text is no arguments, as some clients send it."""
    if not call.function.arguments.strip():
        return {}
    try:
        return call.function.parsed()
    except ValueError as error:
        raise ChatFormatError(f"the arguments of {call.function.name} are not a JSON object: {error}") from error


def _match(calls: Sequence[ToolCall], results: Sequence[Message], first: int) -> list[Message]:
    """`results` in the order of `calls`; `first` is the index of the first result, for the error's words."""
    by_call: dict[int, Message] = {}
    unnamed: list[Message] = []
    calls_have_ids = any(call.id for call in calls)
    for offset, result in enumerate(results):
        if not result.tool_call_id or not calls_have_ids:
            unnamed.append(result)
            continue
        same_id = [place for place, call in enumerate(calls) if call.id == result.tool_call_id]
        if not same_id:
            raise ChatFormatError(
                f"message {first + offset} answers the unknown tool_call_id {result.tool_call_id!r}; "
                f"the calls before it are {[call.id for call in calls]}"
            )
        free = [place for place in same_id if place not in by_call]
        if not free:
            raise ChatFormatError(f"message {first + offset} answers {result.tool_call_id!r} a second time")
        by_call[free[0]] = result
    open_places = [place for place in range(len(calls)) if place not in by_call]
    if len(open_places) != len(unnamed):
        raise ChatFormatError(
            f"the {len(calls)} calls before message {first} have {len(results)} results; "
            f"send one per call, each with its tool_call_id (unanswered: {[calls[place].id for place in open_places]})"
        )
    by_call.update(zip(open_places, unnamed, strict=True))
    return [by_call[place] for place in range(len(calls))]


def _plain(message: Mapping[str, Any], index: int) -> dict[str, Any]:
    fields = {key: value for key, value in message.items() if value is not None}
    if isinstance(fields.get("content"), list):
        fields["content"] = "".join(_part_text(part, index) for part in fields["content"])
    if isinstance(fields.get("tool_calls"), list):
        fields["tool_calls"] = [_json_arguments(call) for call in fields["tool_calls"]]
    return fields


def _part_text(part: Any, index: int) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise ChatFormatError(f"message {index} has a content part that is not text; this format carries text only")


def _json_arguments(call: Any) -> Any:
    """Some clients keep the arguments as a dict; OpenAI's shape is JSON text."""
    if not isinstance(call, Mapping) or not isinstance(call.get("function"), Mapping):
        return call
    function = {key: value for key, value in call["function"].items() if value is not None}
    if isinstance(function.get("arguments"), Mapping):
        function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": function}
