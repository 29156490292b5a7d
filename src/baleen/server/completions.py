"""`POST /v1/completions`: a text or its tokens in, the continuation out. Tokens are the prompt, to the last id."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from baleen.chat.markup import BOS
from baleen.engine.params import SamplingParams
from baleen.server.answers import Answer, Server, respond
from baleen.server.choices import Choice, TextChoice
from baleen.server.errors import ApiError, documented
from baleen.server.prompts import off_loop
from baleen.server.protocol import CompletionRequest
from baleen.server.responses import TextAnswer, answered_with
from baleen.server.sampling import sampling_params

DEFAULT_TOKENS = 16
"""OpenAI's default of `max_tokens` for this endpoint."""


def router(server: Server) -> APIRouter:
    """The endpoint."""
    routes = APIRouter()

    @routes.post(
        "/v1/completions",
        responses=answered_with(TextAnswer, streams=True) | documented(404, 429, 503, 504),
        summary="A continuation",
    )
    async def completions(body: CompletionRequest, request: Request) -> Response:
        server.check_model(body.model)
        server.gate.admit()
        given = _prompts(body)
        _check(body, len(given), server)
        server.check_ids(body.stop_token_ids or [], "stop_token_ids")
        prompts = [await text_ids(server, each, body.add_special_tokens) for each in given]
        return await respond(server, request, _answer(server, body, given, prompts))

    return routes


async def text_ids(server: Server, given: str | list[int], opens: bool | None) -> list[int]:
    """The ids of a prompt. A text opens with begin-of-sentence, as the model was trained, unless it spells it."""
    if not isinstance(given, str):
        server.check_ids(given, "prompt")
        return given
    text = given if opens is False or given.startswith(BOS) else BOS + given
    return await off_loop(len(text), lambda: server.tokenizer.encode(text))


def _prompts(body: CompletionRequest) -> list[str | list[int]]:
    """The prompts, as a list whatever the form. One text, or one list of ids, is one prompt."""
    prompt: Any = body.prompt
    return [prompt] if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)) else list(prompt)


def _check(body: CompletionRequest, prompts: int, server: Server) -> None:
    settings = server.settings
    if not prompts:
        raise ApiError(400, "prompt: the list is empty", param="prompt", code="invalid_request")
    if (body.n or 1) > settings.max_choices:
        message = f"n: this server gives at most {settings.max_choices} choices"
        raise ApiError(400, message, param="n", code="too_many_choices")
    if prompts * (body.n or 1) > settings.max_waiting:
        message = f"{prompts} prompts with n {body.n or 1} are more sequences than may wait ({settings.max_waiting})"
        raise ApiError(400, message, param="prompt", code="too_many_prompts")
    if body.echo and body.logprobs is not None:
        message = "echo with logprobs would need the prompt's log-probabilities, which the engine does not compute"
        raise ApiError(400, message, param="echo", code="unsupported")


def _answer(server: Server, body: CompletionRequest, given: list[str | list[int]], prompts: list[list[int]]) -> Answer:
    requests: list[tuple[Sequence[int], SamplingParams]] = []
    choices: list[Choice] = []
    openings: list[dict[str, Any]] = []
    ends = server.service.info.stop_ids
    for source, ids in zip(given, prompts, strict=True):
        room = server.room(ids, "prompt")
        echo = "" if not body.echo else source if isinstance(source, str) else server.tokenizer.decode(ids)
        params = sampling_params(
            body,
            max_tokens=min(body.max_tokens or DEFAULT_TOKENS, room),
            top_logprobs=body.logprobs or 0,
            vocab_size=server.service.info.vocab_size,
        )
        extra = {"prompt_token_ids": ids} if body.return_token_ids else {}
        requests += [(ids, each) for each in params]
        choices += [TextChoice(body, server.tokenizer, ends, echo, extra) for _ in params]
        openings += [{"text": "", **extra} for _ in params if extra]
    return Answer(
        body=body,
        id=f"cmpl-{uuid.uuid4().hex}",
        kind="text_completion",
        chunk_kind="text_completion",
        requests=requests,
        choices=choices,
        openings=openings,
    )
