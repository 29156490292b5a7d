"""`POST /v1/chat/completions`: a conversation in, the assistant's next turn out, with its reasoning and its calls."""

from __future__ import annotations

import uuid

from fastapi import APIRouter, Request
from starlette.responses import Response

from baleen.server.answers import Answer, Server, respond
from baleen.server.choices import ChatChoice
from baleen.server.errors import ApiError, documented
from baleen.server.prompts import ChatPrompt, chat_prompt
from baleen.server.protocol import ChatRequest
from baleen.server.responses import ChatAnswer, answered_with
from baleen.server.sampling import sampling_params


def router(server: Server) -> APIRouter:
    """The endpoint."""
    routes = APIRouter()

    @routes.post(
        "/v1/chat/completions",
        responses=answered_with(ChatAnswer, streams=True) | documented(404, 429, 501, 503, 504),
        summary="The assistant's next turn",
    )
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        server.check_model(body.model)
        server.gate.admit()
        _check(body, server.settings.max_choices)
        server.check_ids(body.prompt_token_ids or [], "prompt_token_ids")
        server.check_ids(body.stop_token_ids or [], "stop_token_ids")
        prompt = await chat_prompt(body, server.tokenizer, server.settings.thinking)
        return await respond(server, request, _answer(server, body, prompt))

    return routes


def _check(body: ChatRequest, max_choices: int) -> None:
    if (body.n or 1) > max_choices:
        raise ApiError(400, f"n: this server gives at most {max_choices} choices", param="n", code="too_many_choices")
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs to be true", param="top_logprobs", code="invalid_request")


def _answer(server: Server, body: ChatRequest, prompt: ChatPrompt) -> Answer:
    room = server.room(prompt.ids, "messages")
    params = sampling_params(
        body,
        max_tokens=min(body.max_completion_tokens or body.max_tokens or room, room),
        top_logprobs=body.top_logprobs or 0,
        grammar=prompt.grammar,
        banned=prompt.banned,
        vocab_size=server.service.info.vocab_size,
    )
    return Answer(
        body=body,
        id=f"chatcmpl-{uuid.uuid4().hex}",
        kind="chat.completion",
        chunk_kind="chat.completion.chunk",
        requests=[(prompt.ids, each) for each in params],
        choices=[ChatChoice(body, server.tokenizer, prompt.thinking) for _ in params],
        openings=[{"delta": {"role": "assistant", "content": ""}} for _ in params],
        extra={"prompt_token_ids": prompt.ids} if body.return_token_ids else {},
    )
