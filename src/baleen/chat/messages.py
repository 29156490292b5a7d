"""Messages in OpenAI's shape, with DeepSeek's `reasoning_content`.

Everything that talks (environments, policies, the server, training data) speaks these three types; only `chat/` turns
them into text and tokens. Clients in the field send null, empty or whitespace content beside tool calls and extra keys:
all of that is accepted, nothing of it changes the meaning.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Role = Literal["system", "developer", "user", "assistant", "tool"]


class FunctionCall(BaseModel):
    """A function's name and its arguments as a JSON object in text, as OpenAI sends them."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    arguments: str = "{}"

    def parsed(self) -> dict[str, Any]:
        """The arguments as a dict. Raises `ValueError` when they are not a JSON object."""
        value = json.loads(self.arguments)
        if not isinstance(value, dict):
            raise ValueError(f"arguments of {self.name} must be a JSON object, got {type(value).__name__}")
        return value


class ToolCall(BaseModel):
    """One call of an assistant turn; `id` ties it to the tool message that answers it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class ToolSpec(BaseModel):
    """A tool as offered to the model: `function` holds name, description and a JSON Schema of the parameters."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    type: Literal["function"] = "function"
    function: dict[str, Any]

    @field_validator("function")
    @classmethod
    def _has_a_name(cls, function: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(function.get("name"), str) or not function["name"]:
            raise ValueError("a tool's function needs a name")
        return function

    @property
    def name(self) -> str:
        """The function's name."""
        return str(self.function["name"])


class Message(BaseModel):
    """One message of a conversation. `tools` and `response_format` may ride on system and developer messages."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    role: Role
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] = Field(default_factory=list)
    tool_call_id: str | None = None
    name: str | None = None
    tools: list[ToolSpec] = Field(default_factory=list)
    response_format: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_reasoning(cls, fields: Any) -> Any:
        """Clients and servers of other models say `reasoning` for the same text; `reasoning_content` wins."""
        if not isinstance(fields, Mapping) or fields.get("reasoning_content") is not None:
            return fields
        reasoning = fields.get("reasoning")
        return {**fields, "reasoning_content": reasoning} if isinstance(reasoning, str) else fields
