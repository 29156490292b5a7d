"""The requests, as clients send them: OpenAI's fields, those of vLLM and SGLang that trainers and harnesses use, and
null wherever a client's library writes it. Unknown keys are let through; a known key of a wrong type is an error.

Trainers ask for what sampling decided:

- `return_token_ids`: `prompt_token_ids`, and `token_ids` of every choice (vLLM).
- `return_routed_experts`: `routed_experts`, the experts of every forwarded token (vLLM, SGLang).
- `return_sampling_mask`: `sampling_mask`, the tokens that top-p, top-k and min-p kept at every sampled token.
- `return_selected_positions`: `selected_positions`, where every forwarded token looked, from the sequence's start.

They come with the last chunk of a choice. `trace_encoding` says how: `object` gives an array as
`{"dtype", "shape", "data"}` with base64 of its little-endian bytes, and the mask as CSR, `{"ids", "offsets"}`;
`npy` gives what vLLM's clients read: base64 of a `.npy` file, and the mask as one list of ids per token.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MAX_TOP_LOGPROBS = 20
MAX_BIAS = 100.0
MAX_BIASES = 1024
MAX_STOPS = 64
"""These cost time at every token of everybody."""

TokenIds = list[Annotated[int, Field(ge=0, lt=2**31)]]


class Request(BaseModel):
    """The base of all requests."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    model: str | None = None
    """The served model's name; without one the server's only model answers."""


def _check_stop(stop: str | list[str] | None) -> str | list[str] | None:
    if stop == "" or (isinstance(stop, list) and "" in stop):
        raise ValueError("a stop string must not be empty")
    if isinstance(stop, list) and len(stop) > MAX_STOPS:
        raise ValueError(f"there may be {MAX_STOPS} stop strings")
    return stop


class StreamOptions(BaseModel):
    """OpenAI's `stream_options`."""

    model_config = ConfigDict(extra="ignore", strict=True)

    include_usage: bool | None = None


class SamplingFields(Request):
    """How tokens are drawn, when they end, and what is told about them."""

    max_tokens: int | None = Field(None, ge=1)
    min_tokens: int | None = Field(None, ge=0)
    n: int | None = Field(None, ge=1)
    seed: int | None = None
    """Choice i is sampled with `seed + i`. Without a seed, a random one."""

    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    """0 and -1 cut nothing."""

    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0)
    logit_bias: Annotated[
        dict[str, Annotated[float, Field(ge=-MAX_BIAS, le=MAX_BIAS)]] | None, Field(max_length=MAX_BIASES)
    ] = None
    """From token ids, written as text, to what is added to their logits; -100 bans a token."""

    stop: Annotated[str | list[str] | None, AfterValidator(_check_stop)] = None
    stop_token_ids: TokenIds | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    """Log-probabilities name tokens `token_id:17`, as vLLM does: exact where a token is no text of its own."""

    return_routed_experts: bool | None = None
    return_sampling_mask: bool | None = None
    return_selected_positions: bool | None = None
    trace_encoding: Literal["object", "npy"] = "object"

    @property
    def traced(self) -> bool:
        """Whether the engine must record."""
        return bool(self.return_routed_experts or self.return_sampling_mask or self.return_selected_positions)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` in one form."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class NamedFunction(BaseModel):
    """The function of a named tool choice."""

    name: str


class NamedToolChoice(BaseModel):
    """The one tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class ThinkingSwitch(BaseModel):
    """DeepSeek's switch."""

    type: Literal["enabled", "disabled"]


class ResponseFormat(BaseModel):
    """What the answer must look like; `json_schema` holds `schema`, as OpenAI nests it."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None


def _is_tool(tool: dict[str, Any]) -> dict[str, Any]:
    function = tool.get("function")
    if tool.get("type", "function") != "function" or not isinstance(function, dict):
        raise ValueError('a tool is {"type": "function", "function": {"name", "description", "parameters"}}')
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise ValueError("a tool's function needs a name")
    if not isinstance(function.get("parameters") or {}, dict):
        raise ValueError(f"the parameters of {function['name']} must be a JSON Schema object")
    return tool


class PromptFields(Request):
    """What stands around the messages in a prompt."""

    tools: list[Annotated[dict[str, Any], AfterValidator(_is_tool)]] | None = None
    """As the client wrote them: their JSON goes into the prompt with its keys in the same order."""

    response_format: ResponseFormat | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    """`thinking`, or `enable_thinking`, switches thinking; it outranks the two below."""

    thinking: ThinkingSwitch | None = None
    reasoning_effort: str | None = None
    """`none` and `minimal` switch thinking off, every other effort on."""

    def thinks(self, default: bool) -> bool:
        """Whether the model thinks before it answers."""
        for name in ("thinking", "enable_thinking"):
            if isinstance(value := (self.chat_template_kwargs or {}).get(name), bool):
                return value
        if self.thinking is not None:
            return self.thinking.type == "enabled"
        return default if self.reasoning_effort is None else self.reasoning_effort not in ("none", "minimal")


Messages = Annotated[list[dict[str, Any]], Field(min_length=1)]
"""OpenAI's messages; an assistant's `reasoning_content`, or `reasoning`, is accepted back."""


class ChatRequest(PromptFields, SamplingFields):
    """`POST /v1/chat/completions`."""

    messages: Messages
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = None
    max_completion_tokens: int | None = Field(None, ge=1)
    """Outranks `max_tokens`. Without either, the context's room."""

    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    prompt_token_ids: Annotated[TokenIds, Field(min_length=1)] | None = None
    """The exact prompt. Messages are then not encoded: text is never tokenised again."""


class CompletionRequest(SamplingFields):
    """`POST /v1/completions`: the model goes on where the prompt ends."""

    prompt: str | list[str] | Annotated[TokenIds, Field(min_length=1)] | list[Annotated[TokenIds, Field(min_length=1)]]
    """A text, token ids, or a list of either."""

    add_special_tokens: bool | None = None
    """Whether a text opens with begin-of-sentence; it does, unless this is false or the text spells it."""

    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)


class TokenizeRequest(PromptFields):
    """`POST /tokenize`: a `prompt`, or `messages` as a chat request holds them."""

    prompt: str | None = None
    add_special_tokens: bool | None = None
    messages: Messages | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Request):
    """`POST /detokenize`."""

    tokens: TokenIds


class PauseRequest(BaseModel):
    """`POST /pause`."""

    model_config = ConfigDict(extra="ignore")

    mode: Literal["wait", "abort", "keep"] = "wait"
    """What running requests do: end first, end now, or stand still until `/resume`."""


class WeightsRequest(BaseModel):
    """`POST /update_weights`: a model's folder on the server's disk."""

    model_config = ConfigDict(extra="ignore", strict=True)

    path: str = Field(min_length=1)


class DiskWeightsRequest(BaseModel):
    """`POST /update_weights_from_disk`, SGLang's name for the same."""

    model_config = ConfigDict(extra="ignore", strict=True, protected_namespaces=())

    model_path: str = Field(min_length=1)
