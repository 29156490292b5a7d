"""Any OpenAI-compatible server as a `Policy`: ours, vLLM, SGLang, or one far away.

With the model's `tokenizer` it speaks tokens (`/completions`): prompts extend the exact tokens that were served
(`exact_prompts.py`), as training wants. Without it, it speaks messages (`/chat/completions`): reasoning travels both
ways as `reasoning_content`, so that a server of the V3.2 format applies the thinking rule. Token ids and traces come
back where the server knows the fields (`extensions`); one that refuses unknown fields gets the plain request. What
fails on the way is tried again with growing pauses, `Retry-After` obeyed; what stays failed is a `PolicyError`, never a
wrong turn.
"""

from __future__ import annotations

import asyncio
import base64
import random
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from baleen.agent.exact_prompts import ExactPrompts, no_room
from baleen.agent.policy import Completion, FinishReason, PolicyError, Sampling
from baleen.agent.records import message_to_json
from baleen.chat.messages import Message, ToolSpec
from baleen.chat.tokenizer import Tokenizer
from baleen.engine.trace import Trace

LONGEST_PAUSE = 30.0
_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length", "tool_calls": "tool_calls"}


class ServerPolicy:
    """Answers with `model` at `url` (such as `http://127.0.0.1:8000/v1`); use it as `async with`, or call `close`.

    `traced` asks for experts, selected positions and the sampling mask (training needs them). `seconds` bounds one
    answer, `tries` the number of requests for it.
    """

    def __init__(
        self,
        url: str,
        model: str = "",
        *,
        tokenizer: Tokenizer | None = None,
        api_key: str | None = None,
        extensions: bool = True,
        traced: bool = False,
        seconds: float = 600.0,
        tries: int = 5,
        at_once: int = 256,
    ) -> None:
        self.url, self.model, self.extensions, self.traced, self.tries = (
            url.rstrip("/"),
            model,
            extensions,
            traced,
            tries,
        )
        self.prompts = None if tokenizer is None else ExactPrompts(tokenizer)
        self._client = httpx.AsyncClient(
            headers={"authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(seconds, connect=10.0, pool=None),
            limits=httpx.Limits(max_connections=at_once, max_keepalive_connections=at_once),
        )

    async def __aenter__(self) -> ServerPolicy:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def complete(self, messages: Sequence[Message], tools: Sequence[ToolSpec], sampling: Sampling) -> Completion:
        """The next turn. A prompt that the server's context cannot hold comes back as an empty, truncated turn."""
        prompt = None if self.prompts is None else self.prompts.prompt(messages, tools, sampling.thinking)
        if prompt is None:
            answer = await self._post(f"{self.url}/chat/completions", self.request(messages, tools, sampling))
        else:
            answer = await self._post(f"{self.url}/completions", {"prompt": prompt, **self._sampled_as(sampling)})
        if answer is None:
            return no_room(prompt or ())
        try:
            if self.prompts is None or prompt is None:
                return self.read(answer)
            choice = answer["choices"][0]
            return self.prompts.turn(
                messages,
                tools,
                sampling.thinking,
                prompt=prompt,
                sampled=choice["token_ids"],
                trace=_trace(choice, (choice.get("logprobs") or {}).get("token_logprobs")),
                was_cut=choice.get("finish_reason") == "length",
            )
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise PolicyError(f"{self.url} answered what is no chat completion: {error!r}") from error

    async def count_tokens(self, messages: Sequence[Message], tools: Sequence[ToolSpec], sampling: Sampling) -> int:
        """The prompt's length: by the tokenizer, or from the server's `/tokenize` (ours, vLLM's)."""
        if self.prompts is not None:
            return len(self.prompts.prompt(messages, tools, sampling.thinking))
        body = self.request(messages, tools, sampling)
        asked = {key: body[key] for key in ("model", "messages", "tools", "chat_template_kwargs") if key in body}
        answer = await self._post(f"{self.url.removesuffix('/v1')}/tokenize", asked | {"add_generation_prompt": True})
        if answer is None or not isinstance(answer.get("count"), int):
            raise PolicyError(f"{self.url} does not count tokens: /tokenize gave no count")
        return int(answer["count"])

    def request(self, messages: Sequence[Message], tools: Sequence[ToolSpec], sampling: Sampling) -> dict[str, Any]:
        """The body of the chat request."""
        body = {"messages": [message_to_json(message) for message in messages], **self._sampled_as(sampling)}
        if tools:
            body["tools"] = [tool.model_dump(mode="json") for tool in tools]
        if self.extensions:
            body |= {"chat_template_kwargs": {"thinking": sampling.thinking}, "logprobs": True}
        return body

    def _sampled_as(self, sampling: Sampling) -> dict[str, Any]:
        """What both requests have."""
        body: dict[str, Any] = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": sampling.seed,
        }
        if self.model:
            body["model"] = self.model
        if self.prompts is not None:
            body |= {"return_token_ids": True, "logprobs": 0}
        elif self.extensions:
            body["return_token_ids"] = True
        if self.traced:
            body |= {"return_routed_experts": True, "return_selected_positions": True, "return_sampling_mask": True}
        return body

    def read(self, answer: Mapping[str, Any]) -> Completion:
        """A chat completion as a turn."""
        choice = answer["choices"][0]
        message = Message.model_validate(choice["message"])
        return Completion(
            message=message,
            prompt_tokens=tuple(answer.get("prompt_token_ids") or ()),
            sampled_tokens=tuple(choice.get("token_ids") or ()),
            trace=_trace(choice, [token["logprob"] for token in (choice.get("logprobs") or {}).get("content") or ()]),
            finish_reason=_REASONS.get(choice.get("finish_reason") or "stop", "stop"),
            faults=tuple(str(fault) for fault in choice.get("faults") or ()),
        )

    async def _post(self, url: str, body: Mapping[str, Any]) -> dict[str, Any] | None:
        """The answer's body, or None when the prompt does not fit the server's context."""
        told, pause = "", 0.0
        for tried in range(self.tries):
            if tried:
                await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE, 0.25 * 2**tried) * (0.5 + random.random() / 2)
            try:
                response = await self._client.post(url, json=body)
            except httpx.HTTPError as error:
                told = f"{type(error).__name__}: {error}"
                continue
            if response.is_success:
                return _json(response)
            if _is_too_long(response):
                return None
            told = f"{response.status_code}: {response.text[:500]}"
            if response.status_code not in _AGAIN:
                break
            pause = max(pause, _asked_pause(response))
        raise PolicyError(f"{url} gave no answer: {told}")


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        answer = response.json()
    except ValueError as error:
        raise PolicyError(f"{response.url} answered what is not JSON: {response.text[:200]!r}") from error
    if not isinstance(answer, dict):
        raise PolicyError(f"{response.url} answered what is no JSON object")
    return answer


def _is_too_long(response: httpx.Response) -> bool:
    return response.status_code == 400 and (
        "context_length_exceeded" in response.text or "maximum context length" in response.text
    )


def _asked_pause(response: httpx.Response) -> float:
    try:
        return min(LONGEST_PAUSE, float(response.headers.get("retry-after", "0")))
    except ValueError:
        return 0.0  # a date: our own pauses will do


def _trace(choice: Mapping[str, Any], logprobs: Sequence[float] | None) -> Trace | None:
    if not logprobs or len(logprobs) != len(choice.get("token_ids") or ()):
        return None
    mask = choice.get("sampling_mask") or {}
    versions = choice.get("weight_versions")
    return Trace(
        logprobs=np.asarray(logprobs, np.float32),
        kept_ids=_array(mask.get("ids")),
        kept_offsets=_array(mask.get("offsets")),
        experts=_array(choice.get("routed_experts")),
        selected=_array(choice.get("selected_positions")),
        versions=None if versions is None else np.asarray(versions, np.int32),
    )


def _array(field: Mapping[str, Any] | None) -> NDArray[Any] | None:
    if field is None:
        return None
    values = np.frombuffer(base64.b64decode(field["data"]), np.dtype(field["dtype"]).newbyteorder("<"))
    return values.astype(field["dtype"]).reshape(field["shape"])
