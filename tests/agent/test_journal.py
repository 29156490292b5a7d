"""The journal: a run that is killed goes on, and nothing that ended is run twice."""

import asyncio
import json

import numpy as np
import pytest
from scripted import Counter, ScriptedPolicy, task

from baleen.agent.journal import Journal, JournalError, episode_keys
from baleen.agent.loop import Rules, run_episodes
from baleen.agent.policy import Completion, Sampling
from baleen.agent.traces import TraceError, TraceFolder
from baleen.chat.messages import Message
from baleen.engine.trace import Trace

SCRIPTS = {"one": ("add", "done"), "two": ("two", "done"), "crash": ("crash",), "bug": ("bug",)}


def run(path, names, policy=None, **arguments):
    policy = policy or ScriptedPolicy(SCRIPTS)
    tasks = [task(name) for name in names]
    with Journal(path) as journal:
        episodes = asyncio.run(
            run_episodes(
                tasks,
                lambda _: Counter(),
                policy,
                [Sampling(seed=7)] * len(tasks),
                Rules(),
                journal=journal,
                **arguments,
            )
        )
    return episodes, policy


def test_what_ended_is_not_run_again_and_comes_back_equal(tmp_path):
    first, _ = run(tmp_path / "e.jsonl", ["one", "two", "one"])
    again, policy = run(tmp_path / "e.jsonl", ["one", "two", "one"])
    assert again == first
    assert policy.seeds == {}
    assert len((tmp_path / "e.jsonl").read_text().splitlines()) == 3


def test_more_attempts_run_only_those_that_are_missing(tmp_path):
    run(tmp_path / "e.jsonl", ["one"])
    episodes, policy = run(tmp_path / "e.jsonl", ["one", "two", "one"])
    assert [episode.task.id for episode in episodes] == ["one", "two", "one"]
    assert {name: len(seeds) for name, seeds in policy.seeds.items()} == {"one": 2, "two": 2}


def test_what_failed_through_no_fault_of_the_models_is_run_again(tmp_path):
    run(tmp_path / "e.jsonl", ["crash", "one", "bug"])
    mended = ScriptedPolicy({**SCRIPTS, "crash": ("add", "done"), "bug": ("add", "done")})
    episodes, policy = run(tmp_path / "e.jsonl", ["crash", "one", "bug"], mended)
    assert [episode.status for episode in episodes] == ["finished"] * 3
    assert sorted(policy.seeds) == ["bug", "crash"]
    again, policy = run(tmp_path / "e.jsonl", ["crash", "one", "bug"])
    assert (again, policy.seeds) == (episodes, {})


def test_a_line_that_a_kill_cut_off_is_dropped_and_run_again(tmp_path):
    path = tmp_path / "e.jsonl"
    first, _ = run(path, ["one", "two"])
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    episodes, policy = run(path, ["one", "two"])
    assert episodes == first
    assert len(policy.seeds) == 1
    assert all(json.loads(line) for line in path.read_text().splitlines())


@pytest.mark.parametrize("line", ["{}", "not json", '{"task": 3, "seed": 0, "attempt": 0}'])
def test_a_file_that_is_no_journal_is_named_and_left_alone(tmp_path, line):
    path = tmp_path / "e.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(JournalError, match="line 1"):
        Journal(path)
    assert path.read_text() == line + "\n"


def test_two_runs_cannot_write_one_file(tmp_path):
    with Journal(tmp_path / "e.jsonl"), pytest.raises(JournalError, match="another run"):
        Journal(tmp_path / "e.jsonl")


def test_attempts_at_one_task_have_keys_of_their_own():
    tasks = [task("a"), task("b"), task("a"), task("a")]
    samplings = [Sampling(seed=1), Sampling(seed=1), Sampling(seed=1), Sampling(seed=2)]
    assert episode_keys(tasks, samplings) == [("a", 1, 0), ("b", 1, 0), ("a", 1, 1), ("a", 2, 0)]


def trace(seed):
    random = np.random.default_rng(seed)
    return Trace(
        logprobs=random.normal(size=3).astype(np.float32),
        kept_ids=np.arange(5, dtype=np.int32),
        kept_offsets=np.array([0, 2, 4, 5], np.int32),
        experts=random.integers(0, 8, (6, 2, 2)).astype(np.int16),
    )


def test_traces_lie_beside_the_episodes_and_come_back_to_the_bit(tmp_path):
    completions = [Completion(Message(role="assistant"), (1, 2), (3,), each) for each in (trace(0), None, trace(1))]
    folder = TraceFolder(tmp_path / "traces")
    references = folder.save(completions)
    assert references[1] is None
    assert folder.save(completions) == references
    assert len(list((tmp_path / "traces").iterdir())) == 1
    for reference, completion in zip(references, completions, strict=True):
        if reference is not None:
            loaded = folder.load(reference)
            for name in ("logprobs", "kept_ids", "kept_offsets", "experts"):
                np.testing.assert_array_equal(getattr(loaded, name), getattr(completion.trace, name))
                assert getattr(loaded, name).dtype == getattr(completion.trace, name).dtype
            assert loaded.selected is None


def test_a_missing_trace_is_named(tmp_path):
    with pytest.raises(TraceError, match="gone"):
        TraceFolder(tmp_path).load("gone.npz#0")


def test_an_episode_is_read_back_from_the_journal_with_its_traces(tmp_path):
    class Traced(ScriptedPolicy):
        async def complete(self, messages, tools, sampling):
            made = await super().complete(messages, tools, sampling)
            return Completion(made.message, made.prompt_tokens, made.sampled_tokens, trace(4), made.finish_reason)

    for _ in range(2):
        with Journal(tmp_path / "e.jsonl", traces=TraceFolder(tmp_path / "traces")) as journal:
            (episode,) = asyncio.run(
                run_episodes([task("one")], lambda _: Counter(), Traced(SCRIPTS), [Sampling()], journal=journal)
            )
        np.testing.assert_array_equal(episode.completions[0].trace.experts, trace(4).experts)
