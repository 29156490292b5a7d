"""The answers' shapes, for `/openapi.json` and the tests that hold the server to them.

The server writes its answers as plain dicts: a pydantic model per chunk would cost more than the chunk. OpenAI's fields
come first, then those that we add.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

FinishReason = Literal["stop", "length", "tool_calls", "abort"]
"""`abort`: a trainer paused the engine with mode `abort`; what was sampled so far is there."""


class Shape(BaseModel):
    """A closed shape: a key that is not named here is a mistake of ours."""

    model_config = ConfigDict(extra="forbid")


class PromptDetails(Shape):
    """`cached_tokens`: prompt tokens that were not computed again."""

    cached_tokens: int


class CompletionDetails(Shape):
    """`reasoning_tokens`: sampled before the reasoning closed, its end included."""

    reasoning_tokens: int


class Usage(Shape):
    """Tokens in and out."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class Array(Shape):
    """`data` is base64 of the little-endian bytes in C order."""

    dtype: str
    shape: list[int]
    data: str


class SamplingMask(Shape):
    """CSR: token i was drawn from `ids[offsets[i]:offsets[i + 1]]`."""

    ids: Array
    offsets: Array


class TraceFields(Shape):
    """What sampling decided, where the request asked for it. A part that the engine has not is null."""

    token_ids: list[int] = []
    weight_version: int | None = None
    """Of the last token."""

    weight_versions: list[int] | None = None
    """Of every token: where token ids are asked for, or weights changed on the way."""

    routed_experts: Array | str | None = None
    """[tokens - 1, MoE layers, experts per token], prompt first; the last token is never forwarded."""

    sampling_mask: SamplingMask | list[list[int]] | None = None
    """Null where nothing was cut."""

    selected_positions: Array | str | None = None
    """[tokens - 1, layers, index_topk], from the sequence's start; -1 fills short rows."""


class TopLogprob(Shape):
    """A token that was likely. Joined over tokens, `bytes` is exact where `token` alone is not whole UTF-8."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A sampled token, under the distribution that it was drawn from."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Shape):
    """One entry for each sampled token, reasoning and calls included."""

    content: list[TokenLogprob]


class CalledFunction(Shape):
    """`arguments` is JSON text."""

    name: str
    arguments: str


class ToolCallAnswer(Shape):
    """A call that the model makes."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(Shape):
    """The model's turn. `reasoning` is `reasoning_content` under the name that other clients read."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: str | None
    reasoning: str | None
    tool_calls: list[ToolCallAnswer] = []


class ChatChoiceAnswer(TraceFields):
    """`faults` names what was wrong with the model's text, see `chat/calls.py`."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    faults: list[str] = []


class ChatAnswer(Shape):
    """The answer of `/v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoiceAnswer]
    usage: Usage
    prompt_token_ids: list[int] = []


class TextLogprobs(Shape):
    """The older form of log-probabilities."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoiceAnswer(TraceFields):
    """A continuation."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason
    prompt_token_ids: list[int] = []


class TextAnswer(Shape):
    """The answer of `/v1/completions`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoiceAnswer]
    usage: Usage


class ModelCard(Shape):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    weight_version: int


class ModelList(Shape):
    """The one model, as a list."""

    object: Literal["list"]
    data: list[ModelCard]


class Tokens(Shape):
    """The answer of `/tokenize`."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Text(Shape):
    """The answer of `/detokenize`."""

    prompt: str


class Health(Shape):
    """`ok`, `paused` or, with status 503, `draining` or `closed`."""

    status: Literal["ok", "paused", "draining", "closed"]


class Paused(Shape):
    """Whether new requests are refused."""

    paused: bool


class Updated(Shape):
    """Weights were replaced, or the cache emptied."""

    success: Literal[True]
    weight_version: int
    message: str


def answered_with(model: type[BaseModel], *, streams: bool = False) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's entry for a success."""
    entry: dict[str, Any] = {"model": model}
    if streams:
        entry["content"] = {"text/event-stream": {"schema": {"type": "string"}}}
        entry["description"] = "The answer; with `stream`, chunks as server-sent events that end with `[DONE]`."
    return {200: entry}
