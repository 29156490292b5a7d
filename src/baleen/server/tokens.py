"""`POST /tokenize` and `/detokenize`: exactly the ids that a prompt would be, and back, in vLLM's shapes."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from baleen.server.answers import Server
from baleen.server.completions import text_ids
from baleen.server.errors import ApiError, documented
from baleen.server.prompts import conversation_ids, off_loop
from baleen.server.protocol import DetokenizeRequest, TokenizeRequest
from baleen.server.responses import Text, Tokens, answered_with
from baleen.server.wire import JsonResponse


def router(server: Server) -> APIRouter:
    """Both endpoints."""
    routes = APIRouter()

    @routes.post("/tokenize", responses=answered_with(Tokens) | documented(404), summary="Text or messages to ids")
    async def tokenize(body: TokenizeRequest) -> Response:
        server.check_model(body.model)
        ids = await _ids(server, body)
        names = {"token_strs": await _each(server, ids)} if body.return_token_strs else {}
        return JsonResponse(
            {"count": len(ids), "max_model_len": server.service.info.max_tokens, "tokens": ids, **names}
        )

    @routes.post("/detokenize", responses=answered_with(Text) | documented(404), summary="Ids to text")
    async def detokenize(body: DetokenizeRequest) -> Response:
        server.check_model(body.model)
        server.check_ids(body.tokens, "tokens")
        return JsonResponse({"prompt": await off_loop(len(body.tokens), lambda: server.tokenizer.decode(body.tokens))})

    return routes


async def _each(server: Server, ids: list[int]) -> list[str]:
    """The text of every token alone."""
    return await off_loop(len(ids), lambda: [server.tokenizer.decode([token]) for token in ids])


async def _ids(server: Server, body: TokenizeRequest) -> list[int]:
    if body.prompt is not None and body.messages is None:
        return await text_ids(server, body.prompt, body.add_special_tokens)
    if body.messages is not None and body.prompt is None:
        thinking = body.thinks(server.settings.thinking)
        return await conversation_ids(body.messages, body, server.tokenizer, thinking)
    raise ApiError(400, "give a prompt or messages, one of the two", param="prompt", code="invalid_request")
