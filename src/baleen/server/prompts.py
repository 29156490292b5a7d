"""A chat request as the engine needs it: the prompt's ids, and what may be answered.

The response format rides on the opening system message and the tools stand below it, as the V3.2 format has them; both
are enforced with grammars where the request makes them binding. Long texts are tokenised off the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from baleen.chat.conversation import read_messages
from baleen.chat.encoding import segments
from baleen.chat.grammar import GrammarSpec, calls_grammar, response_grammar
from baleen.chat.markup import DSML, FIXED_TEXTS
from baleen.chat.messages import Message
from baleen.chat.tokenizer import Tokenizer
from baleen.server.errors import ApiError
from baleen.server.protocol import ChatRequest, NamedToolChoice, PromptFields, ResponseFormat

T = TypeVar("T")

LONG_TEXT = 20_000
"""Characters, or tokens; about a millisecond of tokenising, which every stream would wait for."""


@dataclass(frozen=True)
class ChatPrompt:
    """The prompt's ids, whether the model thinks after it, the grammar of the answer and the tokens it may not hold."""

    ids: list[int]
    thinking: bool
    grammar: GrammarSpec | None
    banned: tuple[int, ...]


async def chat_prompt(body: ChatRequest, tokenizer: Tokenizer, default_thinking: bool) -> ChatPrompt:
    """Encodes the conversation, unless the client sent its tokens. Raises `ApiError` and the chat layer's errors."""
    thinking = body.thinks(default_thinking)
    if body.prompt_token_ids is not None:
        ids = list(body.prompt_token_ids)
    else:
        if (role := body.messages[-1].get("role")) in ("assistant", "system"):
            raise ApiError(400, f"the last message is from {role}: nothing asks for an answer", param="messages")
        ids = await conversation_ids(body.messages, body, tokenizer, thinking)
    _check_choice(body)
    grammar = await asyncio.to_thread(_grammar, body, tokenizer, thinking) if _is_bound(body) else None
    banned = call_openings(tokenizer) if body.tools and body.tool_choice == "none" else ()
    return ChatPrompt(ids, thinking, grammar, banned)


async def conversation_ids(
    messages: Sequence[dict[str, Any]], around: PromptFields, tokenizer: Tokenizer, thinking: bool
) -> list[int]:
    """The ids of the conversation's text."""

    def encode() -> list[int]:
        read = _with_format(messages, around.response_format)
        return tokenizer.encode_segments(segments(read, around.tools, thinking))[0]

    # Reasoning, calls and tools may be longer than all contents.
    return await off_loop(len(str(messages)) + len(str(around.tools)), encode)


async def off_loop(length: int, work: Callable[[], T]) -> T:
    """Runs `work` on a text of `length` characters or tokens: here, or in a thread when it is long."""
    return work() if length < LONG_TEXT else await asyncio.to_thread(work)


@lru_cache(maxsize=4)
def call_openings(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens without which no call can be written: those of the `｜DSML｜` mark."""
    pieces = (tokenizer.encode(text) for text in (DSML, *FIXED_TEXTS) if DSML in text)
    return tuple({ids[0] for ids in pieces if len(ids) == 1})


def _with_format(given: Sequence[dict[str, Any]], form: ResponseFormat | None) -> list[Message]:
    messages = read_messages(given)
    if form is None or form.type == "text":
        return messages
    schema = {"type": "object"} if form.type == "json_object" else _schema(form)
    if messages[0].role not in ("system", "developer"):
        return [Message(role="system", response_format=schema), *messages]
    return [messages[0].model_copy(update={"response_format": schema}), *messages[1:]]


def _schema(form: ResponseFormat) -> dict[str, Any]:
    schema = (form.json_schema or {}).get("schema")
    if not isinstance(schema, dict):
        message = 'a json_schema is {"name": ..., "schema": {...}}'
        raise ApiError(400, message, param="response_format", code="invalid_schema")
    return schema


def _check_choice(body: ChatRequest) -> None:
    """A call can be asked for only of a tool that is there."""
    if body.tool_choice in (None, "none", "auto"):
        return
    names = [tool["function"]["name"] for tool in body.tools or ()]
    if not names:
        raise ApiError(400, "tool_choice asks for a call, but there are no tools", param="tool_choice")
    if isinstance(body.tool_choice, NamedToolChoice) and body.tool_choice.function.name not in names:
        raise ApiError(400, f"tool_choice names none of the tools {names}", param="tool_choice")


def _binds_calls(body: ChatRequest) -> bool:
    """Free calls are left to the model; those that are required, single or strict are not."""
    if not body.tools or body.tool_choice == "none":
        return False
    strict = any(tool["function"].get("strict") is True for tool in body.tools)
    return body.tool_choice not in (None, "auto") or strict or body.parallel_tool_calls is False


def _binds_answer(body: ChatRequest) -> bool:
    """With tools the model may call or answer, so that the format of the answer is only asked for, in the prompt."""
    has_form = body.response_format is not None and body.response_format.type != "text"
    return has_form and (not body.tools or body.tool_choice == "none")


def _is_bound(body: ChatRequest) -> bool:
    return _binds_calls(body) or _binds_answer(body)


def _grammar(body: ChatRequest, tokenizer: Tokenizer, thinking: bool) -> GrammarSpec | None:
    if not _binds_calls(body):
        assert body.response_format is not None
        form = body.response_format.model_dump(exclude_none=True)
        return response_grammar(form, tokenizer, thinking=thinking)
    chosen = body.tool_choice
    choice = chosen.function.name if isinstance(chosen, NamedToolChoice) else chosen or "auto"
    parallel = body.parallel_tool_calls is not False
    return calls_grammar(body.tools or [], tokenizer, thinking=thinking, choice=choice, parallel=parallel)
