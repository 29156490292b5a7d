"""The application: every endpoint, the layers before them, and the truth about both in `/openapi.json`."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from baleen.chat.tokenizer import Tokenizer
from baleen.engine.service import Service, ServiceClosed
from baleen.server import chat_completions, completions, tokens, trainer
from baleen.server.answers import Server
from baleen.server.errors import HANDLERS, ApiError, documented
from baleen.server.limits import Limits
from baleen.server.responses import Health, ModelCard, ModelList, answered_with
from baleen.server.settings import ServerSettings
from baleen.server.wire import JsonResponse

PAGE = "page.html"


def build_app(service: Service, tokenizer: Tokenizer, settings: ServerSettings, model_name: str) -> FastAPI:
    """The application over a running `service`. Its `state.server` is what the endpoints share."""
    server = Server(service, tokenizer, settings, model_name)
    app = FastAPI(
        title="Baleen",
        description="OpenAI's API over a DeepSeek-V3.2 model, with traces for trainers.",
        version="1",
        docs_url=None,  # its page would load scripts from another host
        redoc_url=None,
        exception_handlers=HANDLERS,
    )
    app.state.server = server
    for part in (chat_completions, completions, tokens, trainer):
        app.include_router(part.router(server))
    app.include_router(_about(server))
    app.add_middleware(Limits, settings=settings, gate=server.gate, metrics=server.metrics)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(settings.cors_origins), allow_methods=["*"], allow_headers=["*"]
        )
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _about(server: Server) -> APIRouter:
    """What the server tells about itself."""
    routes = APIRouter()

    async def card() -> dict[str, Any]:
        stats = await server.service.stats()
        about = {"id": server.model_name, "object": "model", "created": server.created, "owned_by": "baleen"}
        return {**about, "max_model_len": server.service.info.max_tokens, "weight_version": int(stats["version"])}

    @routes.get("/v1/models", responses=answered_with(ModelList) | documented(503), summary="The one model")
    async def models() -> Response:
        return JsonResponse({"object": "list", "data": [await card()]})

    # A name may hold slashes, as those of hubs do.
    @routes.get("/v1/models/{name:path}", responses=answered_with(ModelCard) | documented(404, 503), summary="A model")
    async def model(name: str) -> Response:
        if name != server.model_name:
            raise ApiError(404, f"the model {name!r} does not exist", param="model", code="model_not_found")
        return JsonResponse(await card())

    alive = answered_with(Health) | {503: {"model": Health, "description": "Shutting down, or the engine is gone."}}

    @routes.get("/health", responses=alive, summary="Whether requests are welcome")
    async def health() -> Response:
        if server.gate.draining:
            return JsonResponse({"status": "draining"}, 503)
        try:
            await server.service.stats()  # a server whose engine died must not be sent any requests
        except ServiceClosed:
            return JsonResponse({"status": "closed"}, 503)
        return JsonResponse({"status": "paused" if server.gate.paused else "ok"})

    text: dict[int | str, dict[str, Any]] = {
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus's text form."}
    }

    @routes.get("/metrics", responses=text | documented(503), response_class=PlainTextResponse, summary="Metrics")
    async def metrics() -> Response:
        content = server.metrics.text(await server.service.stats())
        return Response(content, media_type=server.metrics.content_type)

    @routes.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> Response:
        file = files("baleen.server") / PAGE
        if not file.is_file():
            return PlainTextResponse("this build has no chat page; the API is described at /openapi.json", 404)
        return HTMLResponse(file.read_text(encoding="utf-8"))

    return routes


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's description without what is not true of us: invalid requests get 400 in OpenAI's shape, not 422."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        for path in schema["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(name, None)
        if app.state.server.settings.api_key is not None:
            schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            schema["security"] = [{"key": []}]
        app.openapi_schema = schema
    return app.openapi_schema
