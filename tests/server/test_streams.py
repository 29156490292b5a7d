"""The engine's streams, read together: what waits is taken at once, and nothing is left running."""

from __future__ import annotations

import asyncio

import pytest
from scripted_service import ScriptedService, always

from baleen.engine.params import SamplingParams
from baleen.engine.service import QueueFull, ServiceClosed
from baleen.server.errors import RequestTimeout
from baleen.server.streams import Arrivals
from baleen.server.wire import EventForm, event


def arrivals(service, count=1, seconds=10.0):
    return Arrivals(service, [([1, 2, 3], SamplingParams(max_tokens=64))] * count, seconds)


async def until_the_end(news):
    while True:
        await news.take()


def run(work):
    return asyncio.run(asyncio.wait_for(work, 20))


def test_chunks_that_wait_are_taken_as_one(tokenizer):
    async def work():
        service = ScriptedService(tokenizer, always("one two three"))
        news = arrivals(service, 2)
        while not all(stream.ended for stream in service.streams):
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        taken = dict(await news.take())
        for index, stream in enumerate(service.streams):
            chunk = taken[index]
            assert chunk.tokens == stream.tokens
            assert len(chunk.logprobs) == len(stream.tokens)
            assert (chunk.finish_reason, chunk.generation.tokens) == ("stop", stream.tokens)

    run(work())


def test_a_request_that_is_refused_in_the_middle_leaves_nothing_running(tokenizer):
    async def work():
        service = ScriptedService(tokenizer, max_waiting=2)
        with pytest.raises(QueueFull):
            arrivals(service, 3)
        assert [stream.cancelled for stream in service.streams] == [True, True]

    run(work())


def test_a_stream_that_ends_without_a_reason_is_an_error_and_no_hang(tokenizer):
    async def work():
        service = ScriptedService(tokenizer, always("a b c d"), delay=0.01)
        news = arrivals(service)
        await news.take()
        service.streams[0].cancelled = True
        with pytest.raises(ServiceClosed):
            await until_the_end(news)

    run(work())


def test_the_deadline_wakes_a_reader_that_waits_for_nothing(tokenizer):
    async def work():
        service = ScriptedService(tokenizer, delay=30.0)
        news = arrivals(service, seconds=0.05)
        with pytest.raises(RequestTimeout):
            await news.take()
        news.close()
        news.close()
        assert service.streams[0].cancelled

    run(work())


def test_an_event_written_in_parts_is_the_event_written_whole():
    head = {"id": "x", "model": 'a "name"\n', "created": 1}
    fields = {"delta": {"content": "好 \u2028 \ud800"}, "finish_reason": None}
    whole = {**head, "choices": [{"index": 3, **fields}], "usage": None}
    assert EventForm(head, 3, {"usage": None}).write(fields) == event(whole)
