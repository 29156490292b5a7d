"""`baleen bench serve`: its light client reads any stream, its soak finds wrong answers, a quick run gives figures."""

import asyncio
import contextlib
import itertools
import json
import time
from importlib import import_module
from inspect import signature

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baleen.benchmarks.model_page import verdict
from baleen.benchmarks.results import BenchmarkError, Results
from baleen.benchmarks.serve import bench_serve
from baleen.benchmarks.serve_client import DONE, Address, BrokenAnswer, Refused, choice_of, complete, events
from baleen.benchmarks.serve_figures import figures
from baleen.benchmarks.serve_parts import PARTS, QUICK_SIZES, Bench, Sizes
from baleen.benchmarks.serve_process import PAGES_USED, served
from baleen.benchmarks.serve_prompts import random_prompts, tasks
from baleen.benchmarks.serve_soak import Soak, _client, _pages_left
from baleen.benchmarks.worker import MEASURES
from baleen.chat import Tokenizer, encode
from baleen.model.checkpoint import save_model
from tiny import tiny_model

CONTEXT = 4096
EVENTS = [b'{"choices":[{"index":0,"token_ids":[7]}]}', '{"choices":[],"usage":"鲸"}'.encode(), DONE]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a tiny model whose tokenizer knows the words of the tasks."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = Tokenizer.train([encode(list(task.messages)) for task in tasks(20)], 600)
    tokenizer.save(root / "tokenizer")
    network = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=CONTEXT)
    save_model(network, root / "whale", tokenizer=root / "tokenizer")
    return root / "whale"


@pytest.fixture(scope="module")
def server(model):
    with served(str(model), {"max-tokens": CONTEXT}) as server:
        yield server


def request(model, **more):
    prompt = random_prompts(str(model), 1, 20, seed=1)[0]
    return {"prompt": prompt, "max_tokens": 24, "seed": 3, "ignore_eos": True, "return_token_ids": True, **more}


async def read(address, fields):
    async with contextlib.aclosing(events(address, fields)) as stream:
        return [event async for _, some in stream for event in some]


def read_raw(pieces):
    """What the client makes of an answer that arrives in these pieces."""

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()

    async def run():
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as scripted:
            return await read(Address(*scripted.sockets[0].getsockname()[:2]), {})

    return asyncio.run(run())


def chunked(*chunks, end=b"0\r\n\r\n"):
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + end


@given(st.data())
def test_events_are_the_same_however_their_bytes_are_cut(data):
    text = b"".join(b"data: " + event + b"\n\n" for event in EVENTS)
    split = data.draw(st.integers(1, len(text) - 1))
    raw = chunked(text[:split], text[split:])
    cuts = sorted(data.draw(st.sets(st.integers(1, len(raw) - 1), max_size=6)))
    bounds = [0, *cuts, len(raw)]
    assert read_raw([raw[a:b] for a, b in itertools.pairwise(bounds)]) == EVENTS


def test_prompts_of_different_seeds_differ(model):
    # A prompt that comes twice would be found in the cache.
    made = [random_prompts(str(model), 2, 30, seed) for seed in range(-3, 4)]
    assert len({tuple(prompt) for prompts in made for prompt in prompts}) == 14
    assert made == [random_prompts(str(model), 2, 30, seed) for seed in range(-3, 4)]


def test_a_stream_that_breaks_off_is_no_answer():
    with pytest.raises(BrokenAnswer):
        read_raw([chunked(b"data: {}\n\n", end=b"")])
    with pytest.raises(BrokenAnswer, match="out of pages"):
        choice_of(b'{"error":{"message":"out of pages"}}')


def test_streamed_tokens_are_those_of_the_whole_answer(model, server):
    whole = asyncio.run(complete(server.address, request(model)))["choices"][0]["token_ids"]
    streamed = asyncio.run(read(server.address, request(model)))
    assert [token for event in streamed for token in choice_of(event).get("token_ids", ())] == whole
    assert (len(whole), streamed[-1]) == (24, DONE)


def test_a_refusal_carries_its_status(model, server):
    with pytest.raises(Refused, match="HTTP 400") as caught:
        asyncio.run(read(server.address, request(model, max_tokens=0)))
    assert caught.value.status == 400


def test_a_reader_that_is_closed_leaves_the_server(model, server):
    async def leave():
        async with contextlib.aclosing(events(server.address, request(model, max_tokens=CONTEXT - 21))) as stream:
            async for _ in stream:
                assert (await server.metrics())[PAGES_USED] > 0
                break
        return await _pages_left(server)

    pages, seconds = asyncio.run(leave())
    assert pages == 0
    assert seconds < 10


@pytest.mark.parametrize("honest", [True, False])
def test_the_soak_finds_answers_that_differ_from_their_solo_run(model, server, honest):
    solo = asyncio.run(complete(server.address, request(model)))["choices"][0]["token_ids"]
    state = Soak([request(model)], [solo if honest else [solo[0] + 1, *solo[1:]]])
    asyncio.run(_client(server.address, state, 0, time.perf_counter() + 0.5))
    assert state.counts["answers"] > 0
    assert state.counts["vanished"] > 0
    # Who leaves at the first event has seen no token that could be wrong.
    assert (state.wrong == []) if honest else (len(state.wrong) >= state.counts["answers"])


def test_a_server_that_cannot_start_says_why(tmp_path):
    with pytest.raises(RuntimeError, match=r"did not start: baleen: .*nowhere"), served(str(tmp_path / "nowhere"), {}):
        pass


def test_a_quick_part_is_measured_and_kept_beside_the_others(model, tmp_path, capsys):
    made = bench_serve(model, quick=True, only=["prefix"], out=tmp_path)
    shown = capsys.readouterr().out
    content = json.loads((tmp_path / "serve-quick.json").read_text())
    assert content["model"]["config"]["hidden_size"] == 48
    assert content["machine"]["cores"] >= 1
    prefix = content["measurements"]["prefix"]
    assert len(prefix["first"]) == QUICK_SIZES.prefix_rounds
    # In every round, the warming one too, the second prompt finds the first one's tokens, and the first one finds none.
    assert prefix["cached_tokens"] == (QUICK_SIZES.prefix_rounds + 1) * QUICK_SIZES.prefix
    for one, row in zip(made, content["figures"], strict=True):
        assert one.name in shown
        assert row["verdict"] == verdict(one)
        assert (row["verdict"] == "not measured") == (one.part != "prefix")
    with pytest.raises(BenchmarkError, match=r"no part 'sok'; did you mean 'soak'\?"):
        bench_serve(model, quick=True, only=["sok"], out=tmp_path)
    (tmp_path / "serve-quick.json").write_text(json.dumps(content | {"model": {"path": "another"}}))
    with pytest.raises(BenchmarkError, match="another model's figures"):
        bench_serve(model, quick=True, only=["prefix"], out=tmp_path)


@pytest.mark.slow
def test_a_quick_run_gives_every_figure_and_no_wrong_answer(model, tmp_path):
    parts = [name for name in PARTS if name not in ("throughput", "prefix")]  # as `single`; measured above
    made = [one for one in bench_serve(model, quick=True, only=parts, out=tmp_path) if one.part in parts]
    assert {one.part for one in made} == set(parts)
    assert [one for one in made if verdict(one) == "not measured"] == []
    soak = {one.name.split(": ")[1]: one for one in made if one.part == "soak"}
    assert soak["wrong answers"].met
    assert soak["pages that stayed behind"].met
    content = json.loads((tmp_path / "serve-quick.json").read_text())
    assert content["measurements"]["traces"]["same_tokens"]
    assert all(batch["same_tokens"] for batch in content["measurements"]["drafts"]["batches"].values())


def test_the_target_counts_for_whole_answers_without_drafts(tmp_path):
    results = Results(tmp_path / "serve.json", "serve", quick=True, timeout=1)
    form = {"attention": "eager", "experts": "grouped_mm", "threads": 2}
    results.content["measurements"] = {
        "throughput/peer": {"tokens_per_second": 100.0, "best": form},
        "throughput/http/plain": {"tokens_per_second": 900.0, "streamed": 1100.0},
        "throughput/http/with drafts": {"tokens_per_second": 1200.0, "streamed": 1300.0},
        "throughput/engine/plain": {"error": "the process was ended by SIGKILL"},
    }
    speed, single, *_ = figures(Bench("whale", QUICK_SIZES, results))
    assert (speed.ratio, speed.met, speed.ours) == (9.0, False, "900 tokens/s")
    assert "streamed 1,100" in speed.note
    assert "in one piece with drafts 1,200" in speed.note
    assert single.met is None
    assert single.note == "single/http/plain: not measured"


class Asked:
    """Notes what is asked for, in place of measuring it."""

    def __init__(self):
        self.tasks = {}

    def measure(self, key, task):
        self.tasks[key] = dict(task)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("sizes", [Sizes(), QUICK_SIZES])
def test_a_part_gives_its_measurements_the_arguments_that_they_take(part, sizes):
    asked = Asked()
    PARTS[part](Bench("whale", sizes, asked))
    assert asked.tasks
    for key, task in asked.tasks.items():
        assert key.split("/")[0] == part
        module, function = MEASURES[task.pop("measure")]
        signature(getattr(import_module(f"baleen.benchmarks.{module}"), function)).bind(**task)
