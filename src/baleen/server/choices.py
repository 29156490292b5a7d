"""One choice of an answer, read as its tokens come: a chat turn, or plain text.

`read` takes what arrived and gives the fields of the next streamed chunk, or None when nothing became certain; `whole`
gives the choice of an answer in one piece. Both come from the same reading, so they cannot differ.
"""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any

from baleen.chat.calls import Fault
from baleen.chat.messages import ToolSpec
from baleen.chat.parser import Delta, ParsedMessage, StreamParser
from baleen.chat.text_stream import TextStream
from baleen.chat.tokenizer import Tokenizer
from baleen.engine.sequence import Generation
from baleen.engine.service import Chunk
from baleen.server.protocol import ChatRequest, CompletionRequest, SamplingFields
from baleen.server.traces import TokenNames, trace_fields


class Choice(ABC):
    """What chat and text have in common: text from tokens, the end, and the fields for trainers."""

    def __init__(self, body: SamplingFields, tokenizer: Tokenizer, *, hidden: Collection[int]) -> None:
        self.body, self.tokenizer = body, tokenizer
        self.count = 0
        self.reasoning_tokens = 0
        self.finish_reason: str | None = None
        self.generation: Generation | None = None
        self._told: dict[str, Any] = {}  # for trainers; may be large, so written once
        self._hidden = hidden
        self._text = TextStream(tokenizer, body.stop_strings)
        self._names = TokenNames(tokenizer, bool(body.return_tokens_as_token_ids))
        self._tokens: list[int] = []

    def read(self, chunk: Chunk) -> dict[str, Any] | None:
        """Takes the next chunk. The choice is over when `finish_reason` is set.

        The engine judges stop strings too, and ends there; here they are only cut off the text.
        """
        self.count += len(chunk.tokens)
        self._tokens += chunk.tokens
        shown = chunk.tokens
        if chunk.finish_reason == "stop" and shown and shown[-1] in self._hidden:
            shown = shown[:-1]
        text = self._text.feed(shown)
        if chunk.finish_reason is not None:
            text += self._text.flush()
            self.finish_reason = chunk.finish_reason
            self.generation = chunk.generation
            self._told = trace_fields(self.body, self.generation)
        fields = self._fields(text, chunk)
        if self.body.return_token_ids:
            fields["token_ids"] = list(chunk.tokens)
        if chunk.finish_reason is not None:
            fields |= self._told
        elif not self._is_news(fields):
            return None
        return fields | {"finish_reason": self.finish_reason}

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that were not computed again."""
        return self.generation.reused_tokens if self.generation else 0

    @abstractmethod
    def whole(self) -> dict[str, Any]:
        """The finished choice, without its index."""

    @abstractmethod
    def _fields(self, text: str, chunk: Chunk) -> dict[str, Any]:
        """A streamed chunk's own fields. At the end `finish_reason` is set."""

    @abstractmethod
    def _is_news(self, fields: dict[str, Any]) -> bool:
        """Whether `fields` say anything."""

    def _ending(self) -> dict[str, Any]:
        """The fields that every whole choice ends with."""
        ids = {"token_ids": self._tokens} if self.body.return_token_ids else {}
        return {"finish_reason": self.finish_reason, **ids, **self._told}


class ChatChoice(Choice):
    """An assistant's turn."""

    body: ChatRequest

    def __init__(self, body: ChatRequest, tokenizer: Tokenizer, thinking: bool) -> None:
        super().__init__(body, tokenizer, hidden=set(body.stop_token_ids or ()))
        tools = [ToolSpec.model_validate(tool) for tool in body.tools or ()]
        self._parser = StreamParser(thinking, tools)
        self._reasons = thinking
        self._logprobs: list[dict[str, Any]] = []
        self._call_ids = f"call_{uuid.uuid4().hex[:20]}"
        self._message: ParsedMessage | None = None
        self._faults: list[str] = []

    def _fields(self, text: str, chunk: Chunk) -> dict[str, Any]:
        self._count_reasoning(chunk)
        parts = [self._parser.feed(text)] if text else []
        fields: dict[str, Any] = {"delta": {}}
        if self.body.logprobs:
            entries = self._names.chat(chunk)
            self._logprobs += entries
            fields["logprobs"] = {"content": entries}
        if chunk.finish_reason is not None:
            parts.append(self._parser.flush())
            self._message = self._parser.finish()
            # Where the client's own stop came first, the end of the sentence is not missing.
            expected = {Fault.MISSING_END} if self.finish_reason == "stop" else set()
            self._faults = [str(fault) for fault in self._message.faults if fault not in expected]
            if self._faults:
                fields["faults"] = self._faults
            if self.finish_reason == "stop" and self._message.tool_calls:
                self.finish_reason = "tool_calls"
        fields["delta"] = self._delta(parts)
        return fields

    def _is_news(self, fields: dict[str, Any]) -> bool:
        return bool(fields["delta"]) or len(fields) > 1

    def whole(self) -> dict[str, Any]:
        message = self._message
        assert message is not None
        calls = [
            {"id": self._call_id(index), "type": "function", "function": call.function.model_dump()}
            for index, call in enumerate(message.tool_calls)
        ]
        return {
            "message": {
                "role": "assistant",
                "content": message.content,
                "reasoning_content": message.reasoning_content,
                "reasoning": message.reasoning_content,
                **({"tool_calls": calls} if calls else {}),
            },
            "logprobs": {"content": self._logprobs} if self.body.logprobs else None,
            "faults": self._faults,
            **self._ending(),
        }

    def _delta(self, parts: list[Delta]) -> dict[str, Any]:
        delta: dict[str, Any] = {}
        if reasoning := "".join(part.reasoning_content for part in parts):
            delta |= {"reasoning_content": reasoning, "reasoning": reasoning}
        if content := "".join(part.content for part in parts):
            delta["content"] = content
        if calls := [call for part in parts for call in part.tool_calls]:
            delta["tool_calls"] = [self._call(call.index, call.name, call.arguments) for call in calls]
        return delta

    def _call(self, index: int, name: str | None, arguments: str) -> dict[str, Any]:
        """A call's first piece names it, the later ones bring more of its arguments."""
        if name is None:
            return {"index": index, "function": {"arguments": arguments}}
        function = {"name": name, "arguments": arguments}
        return {"index": index, "id": self._call_id(index), "type": "function", "function": function}

    def _call_id(self, index: int) -> str:
        return f"{self._call_ids}{index:04d}"

    def _count_reasoning(self, chunk: Chunk) -> None:
        if not self._reasons:
            return
        end = self.tokenizer.think_end_id
        self._reasons = end not in chunk.tokens
        self.reasoning_tokens += len(chunk.tokens) if self._reasons else chunk.tokens.index(end) + 1


class TextChoice(Choice):
    """A continuation of a prompt; `echo` is the prompt's text, or nothing. The end token is not part of the text."""

    body: CompletionRequest

    def __init__(
        self, body: CompletionRequest, tokenizer: Tokenizer, ends: Collection[int], echo: str, extra: dict[str, Any]
    ) -> None:
        super().__init__(body, tokenizer, hidden={*ends, *(body.stop_token_ids or ())})
        self._echo, self._extra = echo, extra
        self._pieces: list[str] = []
        self._offset = len(echo)
        self._logprobs: dict[str, list[Any]] = {}

    def _fields(self, text: str, chunk: Chunk) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        if self.body.logprobs is not None:
            fields["logprobs"] = logprobs = self._names.text(chunk, self._offset)
            self._offset += sum(map(self._names.length, chunk.tokens))
            for name, values in logprobs.items():
                self._logprobs.setdefault(name, []).extend(values)
        text, self._echo = self._echo + text, ""
        self._pieces.append(text)
        return {"text": text, **fields}

    def _is_news(self, fields: dict[str, Any]) -> bool:
        return bool(fields["text"]) or len(fields) > 1

    def whole(self) -> dict[str, Any]:
        logprobs = self._logprobs if self.body.logprobs is not None else None
        return {"text": "".join(self._pieces), "logprobs": logprobs, **self._extra, **self._ending()}
