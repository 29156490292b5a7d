"""What a trainer asks of the server that samples for it: stand still, take new weights, go on.

`/pause`, `/resume` and their modes are vLLM's; `/update_weights_from_disk` is SGLang's name. While the engine is paused
new requests get 503 with `Retry-After`, which OpenAI's clients obey by themselves; running ones do as the mode says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from starlette.responses import Response

from baleen.engine.params import EngineError
from baleen.server.answers import Server
from baleen.server.errors import ApiError, documented
from baleen.server.protocol import DiskWeightsRequest, PauseRequest, WeightsRequest
from baleen.server.responses import Paused, Updated, answered_with
from baleen.server.wire import JsonResponse


def router(server: Server) -> APIRouter:
    """The endpoints for trainers."""
    routes = APIRouter(tags=["trainer"])
    paused = answered_with(Paused) | documented(409, 503)
    updated = answered_with(Updated) | documented(409, 503)

    @routes.post("/pause", responses=paused, summary="Refuse new requests; running ones do as the mode says")
    async def pause(
        body: PauseRequest | None = None,
        mode: Annotated[Literal["wait", "abort", "keep"] | None, Query()] = None,
    ) -> Response:
        before, server.gate.paused = server.gate.paused, True
        try:
            await server.service.pause(mode or (body.mode if body else "wait"))
        except BaseException as error:
            server.gate.paused = before
            if isinstance(error, EngineError):
                raise ApiError(409, str(error), code="overtaken") from error
            raise
        return JsonResponse({"paused": True})

    @routes.post("/resume", responses=paused, summary="Take requests again")
    async def resume() -> Response:
        await server.service.resume()
        server.gate.paused = False
        return JsonResponse({"paused": False})

    @routes.post("/update_weights", responses=updated, summary="Load the weights of a model's folder")
    async def update_weights(body: WeightsRequest) -> Response:
        return await _update(server, body.path)

    @routes.post("/update_weights_from_disk", responses=updated, summary="SGLang's name for /update_weights")
    async def update_weights_from_disk(body: DiskWeightsRequest) -> Response:
        return await _update(server, body.model_path)

    @routes.post("/clear_cache", responses=updated, summary="Forget all cached prefixes")
    async def clear_cache() -> Response:
        await server.service.clear_cache()
        stats = await server.service.stats()
        return JsonResponse({"success": True, "weight_version": int(stats["version"]), "message": "the cache is empty"})

    return routes


async def _update(server: Server, path: str) -> Response:
    try:
        version = await server.service.update_weights(Path(path))
    except EngineError as error:
        raise ApiError(409, str(error), code="engine_busy") from error
    except (OSError, ValueError) as error:
        raise ApiError(400, str(error), param="path", code="invalid_weights") from error
    return JsonResponse({"success": True, "weight_version": version, "message": f"loaded {path}"})
