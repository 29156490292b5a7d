"""Messages here, messages there: a conversation in OpenAI's shape as the trajectory that tau2-bench judges.

Its evaluator runs the calls of a trajectory again on a fresh database, so calls and results must pair up as they were.
Reasoning has no place there and stays behind. A call whose arguments were never a JSON object ran nowhere: it is left
out with its answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from baleen.chat.conversation import ChatFormatError, call_arguments
from baleen.chat.messages import Message, ToolCall, ToolSpec

Requestor = Literal["user", "assistant"]


@dataclass(frozen=True)
class UserAction:
    """What the user did on their own device between two messages: `call` is in the user's name."""

    before: int
    """It was done before the message of this index."""

    call: Message
    results: tuple[Message, ...]


def tool_specs(tools: Sequence[Any]) -> list[ToolSpec]:
    """tau2-bench's tools as they are offered to a model."""
    return [ToolSpec.model_validate(tool.openai_schema) for tool in tools]


def arguments_of(call: ToolCall) -> dict[str, Any] | None:
    """The arguments of a call, none at all for empty text; None where they are no JSON object."""
    try:
        return call_arguments(call)
    except ChatFormatError:
        return None


def trajectory(messages: Sequence[Message], actions: Sequence[UserAction] = ()) -> list[dict[str, Any]]:
    """The conversation in tau2-bench's shape, `actions` at their places; system messages are not part of it."""
    done: list[dict[str, Any]] = []
    waiting: list[ToolCall] = []
    for index, message in enumerate(messages):
        for action in actions:
            if action.before == index:
                done += _turn(action.call, "user") + _answers(action.call.tool_calls, action.results, "user")
        if message.role == "tool":
            done += _answers(waiting[:1], [message], "assistant")
            waiting = waiting[1:]
        elif message.role in ("user", "assistant"):
            done += _turn(message, "user" if message.role == "user" else "assistant")
            waiting = list(message.tool_calls)
    return done


def says_nothing(message: Message) -> bool:
    """Whether an assistant message has neither words nor calls, which tau2-bench's protocol forbids."""
    return message.role == "assistant" and not message.tool_calls and not (message.content or "").strip()


def _turn(message: Message, role: Requestor) -> list[dict[str, Any]]:
    calls = [
        {"id": call.id or "", "name": call.function.name, "arguments": arguments, "requestor": role}
        for call in message.tool_calls
        if (arguments := arguments_of(call)) is not None
    ]
    if not calls and not (message.content or "").strip():
        return []
    return [{"role": role, "content": message.content, "tool_calls": calls or None}]


def _answers(calls: Sequence[ToolCall], results: Sequence[Message], role: Requestor) -> list[dict[str, Any]]:
    return [
        {"role": "tool", "id": call.id or "", "content": result.content or "", "requestor": role}
        for call, result in zip(calls, results, strict=False)
        if arguments_of(call) is not None
    ]
