"""The engine in its own process: streams bring what the engine says, and whatever happens everyone is told."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from dataclasses import replace

import pytest

from baleen.chat import Tokenizer
from baleen.engine.engine import Engine
from baleen.engine.params import EngineError, EngineOptions, SamplingParams
from baleen.engine.service import QueueFull, Service, ServiceClosed
from baleen.model.checkpoint import save_model
from tiny import tiny_model

CONTEXT = 512
RUNNING, WAITING = 4, 3
PROMPT = [5, 6, 7, 8, 9, 10, 11]
PATIENCE = 60
"""Seconds after which a test that waits for an answer fails."""

LONG = SamplingParams(max_tokens=CONTEXT - 20, ignore_end=True)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["the whale sings to the sea, and the sea sings to the whale"], 400)


@pytest.fixture(scope="module")
def models(tokenizer, tmp_path_factory):
    """Two folders of the same network with other weights, and one of another network."""
    root = tmp_path_factory.mktemp("models")
    tokenizer.save(root / "tokenizer")
    made = []
    for name, seed, changes in (("one", 0, {}), ("two", 1, {}), ("other", 0, {"hidden_size": 32})):
        model = tiny_model(seed, vocab_size=len(tokenizer), max_position_embeddings=CONTEXT, **changes)
        save_model(model, root / name, tokenizer=root / "tokenizer")
        made.append((root / name, model))
    return made


@pytest.fixture(scope="module")
def loop():
    with asyncio.Runner() as runner:
        yield runner


def options(**changes):
    return EngineOptions(**{"max_running": RUNNING, "max_tokens": CONTEXT, "threads": 1, "page_tokens": 16} | changes)


async def start(models, **changes):
    return await asyncio.wait_for(Service.start(models[0][0], options(**changes), max_waiting=WAITING), PATIENCE)


@pytest.fixture(scope="module")
def shared(loop, models):
    """The service of all tests that leave it as they found it."""
    service = loop.run(start(models))
    yield service
    loop.run(service.close())


@pytest.fixture
def service(loop, shared, models):
    """It idles, with the first model's weights."""
    yield shared
    loop.run(back(shared, models))


async def back(service, models):
    for stream in list(service._streams.values()):
        stream.cancel()
    await service.resume()
    await idle(service)
    await service.update_weights(models[0][0])


@pytest.fixture
def doomed(loop, models):
    """A service of its own, for a test that ends it."""
    service = loop.run(start(models))
    yield service
    loop.run(service.close())


async def idle(service):
    """Waits until nothing runs; the engine's counts then."""
    for _ in range(1000):
        stats = await asyncio.wait_for(service.stats(), PATIENCE)
        if not stats["running"] + stats["waiting"]:
            return stats
        await asyncio.sleep(0.01)
    raise AssertionError(f"still busy: {stats}")


async def read(stream, chunks=None):
    """All chunks of a stream, or the first few."""
    found = []
    async for chunk in stream:
        found.append(chunk)
        if len(found) == chunks:
            break
    return found


def within(awaitable):
    return asyncio.wait_for(awaitable, PATIENCE)


def says(models, params, prompt=PROMPT, index=0):
    return Engine(models[index][1], Tokenizer.load(models[index][0]), options()).generate([prompt], params)[0]


def tokens_of(chunks):
    return tuple(token for chunk in chunks for token in chunk.tokens)


def test_streams_bring_what_the_engine_says(loop, service, models):
    asked = [
        SamplingParams(max_tokens=20, seed=seed, top_logprobs=2, trace=True, top_p=0.9 if seed % 2 else 1.0)
        for seed in range(RUNNING + WAITING)
    ]

    async def run():
        streams = [service.submit(PROMPT[: 2 + seed % 5], each) for seed, each in enumerate(asked)]
        return await within(asyncio.gather(*map(read, streams)))

    for seed, chunks in enumerate(loop.run(run())):
        wanted = says(models, asked[seed], PROMPT[: 2 + seed % 5])
        last = chunks[-1]
        assert tokens_of(chunks) == wanted.tokens == last.generation.tokens
        assert [value for chunk in chunks for value in chunk.logprobs] == wanted.trace.logprobs.tolist()
        assert tuple(top for chunk in chunks for top in chunk.top) == wanted.top_logprobs
        assert last.finish_reason == wanted.finish_reason
        assert all(chunk.finish_reason is None and chunk.generation is None for chunk in chunks[:-1])
        for name in ("logprobs", "kept_ids", "experts", "selected", "versions"):
            found, right = getattr(last.generation.trace, name), getattr(wanted.trace, name)
            assert (found is None) == (right is None)
            assert name == "versions" or found is None or found.tobytes() == right.tobytes()


def test_a_cancelled_stream_gives_its_pages_back(loop, service):
    async def run():
        streams = [service.submit(PROMPT[:n], LONG) for n in (3, 5, 7)]
        await within(read(streams[0], 2))
        for stream in streams:
            stream.cancel()
            stream.cancel()
        stats = await idle(service)
        return stats, [await within(read(stream)) for stream in streams]

    stats, rest = loop.run(run())
    assert stats["pages_used"] == 0
    assert all(chunk.finish_reason is None for chunks in rest for chunk in chunks)


def test_a_request_that_is_cancelled_before_the_engine_heard_of_it_leaves_nothing(loop, service):
    async def run():
        for _ in range(20):
            service.submit(PROMPT, LONG).cancel()
        return await idle(service)

    assert loop.run(run())["pages_used"] == 0
    assert not service._streams


def test_whoever_waits_for_a_stream_that_is_cancelled_waits_no_longer(loop, service):
    async def run():
        await service.pause("keep")
        stream = service.submit(PROMPT, LONG)
        reading = asyncio.create_task(read(stream))
        await asyncio.sleep(0.05)
        stream.cancel()
        done, _ = await asyncio.wait([reading], timeout=2)
        reading.cancel()
        return bool(done)

    assert loop.run(run()), "the reader of a cancelled stream hangs"


def test_requests_that_can_never_run_are_errors_and_others_go_on(loop, service, models, tokenizer):
    async def run():
        good = service.submit(PROMPT, SamplingParams(max_tokens=5))
        for prompt, what in (([], "empty"), ([1] * CONTEXT, "does not fit")):
            with pytest.raises(EngineError, match=what):
                service.submit(prompt, LONG)
        for prompt, params in (([len(tokenizer)], LONG), (PROMPT, SamplingParams(stop_ids=(99999,)))):
            with pytest.raises(EngineError, match="outside the vocabulary"):
                await within(read(service.submit(prompt, params)))
        return await within(read(good))

    assert tokens_of(loop.run(run())) == says(models, SamplingParams(max_tokens=5)).tokens
    assert not service._streams


def test_no_more_wait_than_may(loop, service):
    async def run():
        streams = [service.submit(PROMPT, LONG) for _ in range(RUNNING + WAITING)]
        with pytest.raises(QueueFull):
            service.submit(PROMPT, LONG)
        streams[0].cancel()
        streams.append(service.submit(PROMPT, LONG))
        with pytest.raises(QueueFull):
            service.submit(PROMPT, LONG)

    loop.run(run())


def test_a_pause_that_waits_lets_running_requests_end_and_admits_none(loop, service, models):
    params = SamplingParams(max_tokens=60, ignore_end=True)

    async def run():
        running = [service.submit(PROMPT, params) for _ in range(RUNNING)]
        firsts = await within(asyncio.gather(*(read(stream, 1) for stream in running)))
        late = service.submit(PROMPT, params)
        await within(service.pause("wait"))
        ended = [first + await within(read(stream)) for first, stream in zip(firsts, running, strict=True)]
        stats = await service.stats()
        assert (stats["paused"], stats["running"], late.started) == (1, 0, False)
        await within(service.resume())
        return ended, await within(read(late))

    ended, late = loop.run(run())
    for chunks in (*ended, late):
        assert tokens_of(chunks) == says(models, params).tokens
        assert chunks[-1].finish_reason == "length"


def test_a_pause_that_aborts_ends_all_with_what_they_have(loop, service, models):
    async def run():
        streams = [service.submit(PROMPT, LONG) for _ in range(RUNNING + 2)]
        first = await within(read(streams[0], 3))
        await within(service.pause("abort"))
        rest = await within(asyncio.gather(*map(read, streams)))
        stats = await service.stats()
        return [first + rest[0], *rest[1:]], stats

    ended, stats = loop.run(run())
    assert stats["pages_used"] == 0
    wanted = says(models, LONG).tokens
    for chunks in ended:
        assert chunks[-1].finish_reason == "abort"
        found = tokens_of(chunks)
        assert found == wanted[: len(found)] == chunks[-1].generation.tokens
    assert len(tokens_of(ended[0])) >= 3


def test_a_pause_that_keeps_goes_on_where_it_was(loop, service, models):
    params = SamplingParams(max_tokens=80, ignore_end=True, seed=3)

    async def run():
        stream = service.submit(PROMPT, params)
        chunks = await within(read(stream, 3))
        await within(service.pause("keep"))
        before = await service.stats()
        await asyncio.sleep(0.1)
        assert (await service.stats())["generated_tokens"] == before["generated_tokens"]
        await within(service.resume())
        return chunks + await within(read(stream))

    assert tokens_of(loop.run(run())) == says(models, params).tokens


def test_every_pause_is_answered(loop, service):
    async def run():
        stream = service.submit(PROMPT, LONG)
        await within(read(stream, 1))
        first, second = (asyncio.create_task(service.pause("wait")) for _ in range(2))
        await asyncio.sleep(0.02)
        stream.cancel()
        done, waiting = await asyncio.wait([first, second], timeout=3)
        for each in waiting:
            each.cancel()
        return len(done)

    assert loop.run(run()) == 2


def test_a_resume_tells_the_pause_that_it_overtook(loop, service):
    async def run():
        stream = service.submit(PROMPT, LONG)
        await within(read(stream, 1))
        pausing = asyncio.create_task(service.pause("wait"))
        await asyncio.sleep(0.01)
        await within(service.resume())
        with pytest.raises(EngineError, match="resumed"):
            await within(pausing)
        stream.cancel()

    loop.run(run())


def test_weights_are_not_updated_under_running_requests(loop, service, models):
    async def run():
        stream = service.submit(PROMPT, LONG)
        await within(read(stream, 1))
        with pytest.raises(EngineError, match="pause first"):
            await within(service.update_weights(models[1][0]))
        stream.cancel()

    loop.run(run())


def test_what_runs_goes_on_with_the_new_weights_and_says_so(loop, service, models):
    params = replace(LONG, seed=4)

    async def run():
        stream = service.submit(PROMPT, params)
        chunks = await within(read(stream, 2))
        await within(service.pause("keep"))
        version = await within(service.update_weights(models[1][0]))
        await within(service.resume())
        return chunks + await within(read(stream)), version

    chunks, version = loop.run(run())
    generation = chunks[-1].generation
    versions = generation.trace.versions.tolist()
    changed = versions.index(version)
    assert versions == [version - 1] * changed + [version] * (params.max_tokens - changed)
    assert 2 <= changed < params.max_tokens
    assert service.info.version == version
    assert generation.tokens[:changed] == says(models, params).tokens[:changed]
    later = Engine(models[1][1], None, options())
    sequence = later.submit(PROMPT, params)
    for token in generation.tokens[:changed]:
        sequence.append(token, 0.0, None, 0)
    while later.busy:
        later.step()
    assert tuple(sequence.tokens) == generation.tokens


def test_idle_weights_are_updated_and_no_old_beginning_is_found(loop, service, models):
    params = SamplingParams(max_tokens=10)

    async def run():
        prompt = list(range(5, 60))
        await within(read(service.submit(prompt, params)))
        await within(service.update_weights(models[1][0]))
        return (await within(read(service.submit(prompt, params))))[-1].generation

    generation = loop.run(run())
    assert generation.reused_tokens == 0
    assert generation.tokens == says(models, params, list(range(5, 60)), index=1).tokens


def test_a_folder_that_does_not_fit_changes_nothing(loop, service, models, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(models[1][0], broken)
    for file in broken.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-2000])
    params = SamplingParams(max_tokens=10, seed=8)

    async def run():
        version = service.info.version
        for folder in (tmp_path / "nowhere", models[2][0], broken):
            with pytest.raises(Exception, match=folder.name):
                await within(service.update_weights(folder))
        chunks = await within(read(service.submit(PROMPT, params)))
        return chunks, version, (await service.stats())["version"]

    chunks, before, after = loop.run(run())
    assert tokens_of(chunks) == says(models, params).tokens
    assert before == after == service.info.version


def test_a_cleared_cache_finds_nothing(loop, service):
    async def run():
        prompt, params = list(range(5, 60)), SamplingParams(max_tokens=2)
        found = []
        for clear in (False, False, True):
            if clear:
                await within(service.clear_cache())
            found.append((await within(read(service.submit(prompt, params))))[-1].generation.reused_tokens)
        return found

    found = loop.run(run())
    assert found[1:] == [48, 0]


def test_a_pause_waits_for_requests_that_were_preempted_too(loop, models):
    params = SamplingParams(max_tokens=120, ignore_end=True)

    async def run():
        tiny = Engine(models[0][1], None, options())
        memory = 14 * 16 * tiny.token_bytes
        service = await start(models, memory_bytes=memory)
        try:
            streams = [service.submit(PROMPT[:n], params) for n in (5, 6, 7)]
            await within(asyncio.gather(*(read(stream, 1) for stream in streams)))
            await within(service.pause("wait"))
            stats = await service.stats()
            return stats
        finally:
            await service.close()

    stats = loop.run(run())
    assert stats["preemptions"] > 0
    assert stats["waiting"] == 0, "a request that ran when the pause began was left in the middle"


def test_a_killed_engine_is_told_to_everyone(loop, doomed):
    async def run():
        streams = [doomed.submit(PROMPT, LONG) for _ in range(3)]
        await within(read(streams[0], 1))
        reading = [asyncio.create_task(read(stream)) for stream in streams]
        pausing = asyncio.create_task(doomed.pause("wait"))
        await asyncio.sleep(0.01)
        os.kill(doomed._process.pid, signal.SIGKILL)
        told = await within(asyncio.gather(*reading, pausing, return_exceptions=True))
        assert [type(each) for each in told] == [ServiceClosed] * 4
        assert "SIGKILL" in str(told[0])
        with pytest.raises(ServiceClosed):
            doomed.submit(PROMPT, LONG)
        with pytest.raises(ServiceClosed):
            await doomed.stats()
        for stream in streams:
            stream.cancel()

    loop.run(run())


def test_a_stream_can_be_cancelled_when_the_engine_has_just_died(loop, doomed):
    async def run():
        streams = [doomed.submit(PROMPT, LONG) for _ in range(3)]
        await within(read(streams[0], 1))
        os.kill(doomed._process.pid, signal.SIGKILL)
        doomed._process.join()  # the loop has had no time to notice
        for stream in streams:
            stream.cancel()
        with pytest.raises(ServiceClosed):
            await within(doomed.stats())

    loop.run(run())


def test_closing_lets_what_runs_end_and_tells_the_rest(loop, doomed, models):
    short = SamplingParams(max_tokens=30, ignore_end=True)

    async def run():
        streams = [doomed.submit(PROMPT, short) for _ in range(RUNNING + 1)]
        reading = [asyncio.create_task(read(stream)) for stream in streams]
        await within(doomed.close(drain_seconds=PATIENCE))
        ended = await within(asyncio.gather(*reading))
        await doomed.close()
        with pytest.raises(ServiceClosed):
            doomed.submit(PROMPT, short)
        return ended

    for chunks in loop.run(run()):
        assert tokens_of(chunks) == says(models, short).tokens
    assert doomed._process.exitcode is not None


def test_a_model_that_cannot_be_loaded_is_the_error_that_loading_gives(loop, tmp_path):
    async def run():
        with pytest.raises(Exception, match="nowhere"):
            await within(Service.start(tmp_path / "nowhere", options(), max_waiting=1))

    loop.run(run())
