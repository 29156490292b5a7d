"""From accepted prompts to an answer, streamed or whole: the part that chat and text completions share."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from starlette.responses import Response

from baleen.chat.tokenizer import Tokenizer
from baleen.engine.params import SamplingParams
from baleen.engine.service import Service
from baleen.server.choices import Choice
from baleen.server.errors import ApiError, ClientGone, error_body, translated
from baleen.server.limits import Gate
from baleen.server.metrics import Metrics
from baleen.server.protocol import SamplingFields
from baleen.server.settings import ServerSettings
from baleen.server.streams import Arrivals
from baleen.server.wire import DONE, EventForm, EventStream, JsonResponse, event, while_connected

log = logging.getLogger(__name__)


@dataclass
class Server:
    """What every endpoint works with."""

    service: Service
    tokenizer: Tokenizer
    settings: ServerSettings
    model_name: str
    gate: Gate = field(default_factory=Gate)
    metrics: Metrics = field(default_factory=Metrics)
    created: int = field(default_factory=lambda: int(time.time()))

    def check_model(self, name: str | None) -> None:
        """Raises 404 for another model than ours; no name means ours."""
        if name and name != self.model_name:
            raise ApiError(404, f"the model {name!r} does not exist", param="model", code="model_not_found")

    def check_ids(self, ids: Sequence[int], param: str) -> None:
        """Raises 400 for ids outside the vocabulary."""
        if ids and max(ids) >= self.service.info.vocab_size:
            raise ApiError(400, f"{max(ids)} is no token id of this model", param=param, code="invalid_token")

    def room(self, prompt: Sequence[int], param: str) -> int:
        """How many tokens may follow `prompt`. Raises 400 when there is no place for one."""
        context = self.service.info.max_tokens
        if len(prompt) >= context:
            message = f"the prompt has {len(prompt)} tokens; the context of {context} has no room for an answer"
            raise ApiError(400, message, param=param, code="context_length_exceeded")
        return context - len(prompt)


@dataclass
class Answer:
    """What is to be answered. The lists run over choices: first all of the first prompt, then of the next."""

    body: SamplingFields
    id: str
    kind: str
    """`object` of a whole answer; that of a chunk is `chunk_kind`."""

    chunk_kind: str
    requests: list[tuple[Sequence[int], SamplingParams]]
    choices: list[Choice]
    openings: list[dict[str, Any]]
    """The fields of each choice's first chunk, sent before there is any token; empty for none."""

    extra: Mapping[str, Any] = field(default_factory=dict)
    """More fields of the whole answer, and of the first chunk."""

    def usage(self) -> dict[str, Any]:
        """OpenAI's counts. A prompt counts once, however many choices it has."""
        step = self.body.n or 1
        prompt = sum(len(ids) for ids, _ in self.requests[::step])
        completion = sum(choice.count for choice in self.choices)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(choice.cached_tokens for choice in self.choices[::step])},
            "completion_tokens_details": {"reasoning_tokens": sum(choice.reasoning_tokens for choice in self.choices)},
        }


async def respond(server: Server, request: Request, answer: Answer) -> Response:
    """Samples the answer. Raises before anything is sent when the engine refuses it."""
    arrivals = Arrivals(server.service, answer.requests, server.settings.request_seconds)
    headers = {"X-Request-Id": answer.id}
    if answer.body.stream:
        return EventStream(_events(server, answer, arrivals), arrivals.close, headers)
    try:
        content = await while_connected(request, _whole(server, answer, arrivals))
    finally:
        arrivals.close()
    if content is None:
        raise ClientGone
    return JsonResponse(content, headers=headers)


def _head(server: Server, answer_id: str, kind: str) -> dict[str, Any]:
    return {"id": answer_id, "object": kind, "created": int(time.time()), "model": server.model_name}


async def _whole(server: Server, answer: Answer, arrivals: Arrivals) -> dict[str, Any]:
    async for _ in _read(server, answer, arrivals):
        pass
    choices = [{"index": index, **choice.whole()} for index, choice in enumerate(answer.choices)]
    return {**_head(server, answer.id, answer.kind), "choices": choices, "usage": answer.usage(), **answer.extra}


async def _events(server: Server, answer: Answer, arrivals: Arrivals) -> AsyncIterator[bytes]:
    head = _head(server, answer.id, answer.chunk_kind)
    tail = {"usage": None} if answer.body.includes_usage else {}
    forms = [EventForm(head, index, tail) for index in range(len(answer.choices))]
    extra = answer.extra
    for index, fields in enumerate(answer.openings):
        yield event({**head, "choices": [{"index": index, **fields, "finish_reason": None}], **extra, **tail})
        extra = {}  # said once
    try:
        async for news in _read(server, answer, arrivals):
            yield b"".join(forms[index].write(fields) for index, fields in news)
        if answer.body.includes_usage:
            yield event({**head, "choices": [], "usage": answer.usage()})
    except Exception as error:
        # The status is out already: the error itself becomes the stream's last event.
        known = translated(error)
        if known is None:
            log.exception("a stream ended in the middle")
        yield event(known.body() if known else error_body(500, "the server made a mistake; its log says which"))
    yield DONE


async def _read(server: Server, answer: Answer, arrivals: Arrivals) -> AsyncIterator[list[tuple[int, dict[str, Any]]]]:
    """The chunks' fields as they come, until every choice has ended; keeps the metrics."""
    began = time.perf_counter()
    first_token: float | None = None
    running = set(range(len(answer.choices)))
    while running:
        news = []
        for index, chunk in await arrivals.take():
            if index not in running:
                continue
            choice = answer.choices[index]
            if (fields := choice.read(chunk)) is not None:
                news.append((index, fields))
            if choice.finish_reason is not None:
                running.discard(index)
                arrivals.cancel(index)
                server.metrics.finished.labels(choice.finish_reason).inc()
        if first_token is None:
            first_token = time.perf_counter() - began
        if news:
            yield news
    server.metrics.request_ended(
        seconds=time.perf_counter() - began,
        first_token=first_token,
        prompt=answer.usage()["prompt_tokens"],
        choices=[choice.count for choice in answer.choices],
    )
