"""Every refusal in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`, with the right status.

An `ApiError` is raised wherever the reason is known; what the layers below raise is translated here, in one place.
"""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from baleen.chat.conversation import ChatFormatError
from baleen.chat.grammar import GrammarError, GrammarLibraryError
from baleen.engine.params import EngineError
from baleen.engine.service import QueueFull, ServiceClosed
from baleen.server.wire import JsonResponse

RETRY_SECONDS = 1
"""What `Retry-After` says: a slot frees, and a pause for new weights ends, within about this time."""

CLIENT_GONE = 499
"""nginx's number for a client that closed the connection; nobody reads it but the log."""

LAYER_ERRORS: tuple[type[Exception], ...] = (
    *(QueueFull, ServiceClosed, EngineError),
    *(ChatFormatError, GrammarError, GrammarLibraryError),
)
"""What `translated` knows."""

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    501: "server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


class ErrorDetail(BaseModel):
    """What went wrong; `param` is the request's field, `code` a word for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


class ApiError(HTTPException):
    """A request that ends with `status`, and why. (Starlette's exception, so that it passes through its layers.)"""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        headers = {"Retry-After": str(RETRY_SECONDS)} if status in (429, 503) else None
        if status == 401:
            headers = {"WWW-Authenticate": "Bearer"}
        super().__init__(status, message, headers)
        self.code, self.param = code, param

    def body(self) -> dict[str, Any]:
        """OpenAI's shape."""
        return error_body(self.status_code, self.detail, self.param, self.code)


class ClientGone(Exception):
    """The client closed the connection before it had its answer."""


class RequestTimeout(ApiError):
    """The request took longer than `request_seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(504, f"the request took longer than {seconds:g} seconds and was ended", code="timeout")


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error as OpenAI writes it."""
    kind = _TYPES.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def translated(error: Exception) -> ApiError | None:
    """The answer to an error of the layers below; None for what is a fault of ours."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFull):
        return ApiError(429, f"too many requests wait already: {error}", code="queue_full")
    if isinstance(error, ServiceClosed):
        return ApiError(503, f"the engine does not take requests: {error}", code="engine_closed")
    if isinstance(error, ChatFormatError):
        return ApiError(400, str(error), param="messages", code="invalid_messages")
    if isinstance(error, GrammarError):
        return ApiError(400, str(error), code="invalid_grammar")
    if isinstance(error, GrammarLibraryError):
        return ApiError(501, str(error), code="grammar_unavailable")
    if isinstance(error, EngineError):
        return ApiError(400, str(error), code="invalid_request")
    return None


async def on_http_error(request: Request, error: Exception) -> Response:
    """Ours, and Starlette's own: unknown paths, wrong methods, bodies that are no JSON."""
    assert isinstance(error, HTTPException)
    body = error.body() if isinstance(error, ApiError) else error_body(error.status_code, str(error.detail))
    return JsonResponse(body, error.status_code, error.headers)


async def on_invalid_request(request: Request, error: Exception) -> Response:
    """A body that does not fit the request's model: 400, as OpenAI answers, and the first field that is wrong."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query"))
    more = f" ({len(error.errors()) - 1} more)" if len(error.errors()) > 1 else ""
    message = f"{where}: {first['msg']}{more}" if where else "the body must be a JSON object, sent as application/json"
    return JsonResponse(error_body(400, message, where or None, str(first["type"])), 400)


async def on_layer_error(request: Request, error: Exception) -> Response:
    """An error that `translated` knows."""
    known = translated(error)
    assert known is not None
    return await on_http_error(request, known)


async def on_client_gone(request: Request, error: Exception) -> Response:
    """Nobody reads this."""
    return Response(status_code=CLIENT_GONE)


async def on_fault(request: Request, error: Exception) -> Response:
    """A fault of ours; its traceback is in the log."""
    return JsonResponse(error_body(500, "the server made a mistake; its log says which", code="internal_error"), 500)


HANDLERS: dict[int | type[Exception], Any] = {
    HTTPException: on_http_error,
    RequestValidationError: on_invalid_request,
    **dict.fromkeys(LAYER_ERRORS, on_layer_error),
    ClientGone: on_client_gone,
    Exception: on_fault,
}
"""For `FastAPI(exception_handlers=...)`."""


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's `responses` of an endpoint: these statuses, and those that every endpoint may give."""
    words = {
        400: "The request is wrong; the message says what.",
        401: "The API key is missing or wrong.",
        404: "There is no such model, path or page.",
        405: "The path does not take this method.",
        409: "Not now: the engine is in another state.",
        413: "The body is too large.",
        429: "Too many requests wait; try again after `Retry-After` seconds.",
        500: "The server made a mistake.",
        501: "The server has not the library that enforces grammars.",
        503: "The server is paused or shutting down; try again after `Retry-After` seconds.",
        504: "The request took too long.",
    }
    given = sorted({400, 401, 413, 500, *statuses})
    return {status: {"model": ErrorBody, "description": words[status]} for status in given}
