"""Episodes become samples by exact prefix, and nothing that does not fit is let through."""

from dataclasses import replace

import numpy as np
import pytest

from baleen.agent.episode import Episode
from baleen.agent.policy import Completion
from baleen.agent.task import Task
from baleen.chat.messages import Message
from baleen.engine.trace import Trace
from baleen.rl.samples import SampleError, join_completions, samples_from_episode

TASK = Task(id="t1", family="general", domain="tools", difficulty=1, messages=(), environment="none", verifier="none")


def completion(prompt, sampled, *, kept=True, start=0.0):
    """A turn whose recordings tell where they come from: sampled token i has log-probability -(start + i)."""
    forwarded, n = len(prompt) + len(sampled) - 1, len(sampled)
    # Token i keeps {token, 900 + i}.
    ids = np.array([x for i, token in enumerate(sampled) for x in (token, 900 + i)], dtype=np.int32)
    trace = Trace(
        logprobs=-(start + np.arange(n, dtype=np.float32)),
        kept_ids=ids if kept else None,
        kept_offsets=np.arange(0, 2 * n + 1, 2, dtype=np.int32) if kept else None,
        experts=np.arange(forwarded, dtype=np.int16)[:, None, None] + np.zeros((1, 2, 2), dtype=np.int16),
        selected=np.arange(forwarded, dtype=np.int16)[:, None, None] + np.zeros((1, 3, 1), dtype=np.int16),
    )
    message = Message(role="assistant", content="")
    return Completion(message, tuple(prompt), tuple(sampled), trace)


def episode(*completions):
    return Episode(TASK, (), (), completions, "finished", {"outcome": 1.0})


FIRST = completion([1, 2, 3], [4, 5], start=1)
SECOND = completion([1, 2, 3, 4, 5, 6, 7], [8], start=5)
REWRITTEN = completion([1, 2, 3, 9], [10, 11], start=7)


def test_turns_that_extend_the_exact_tokens_are_one_sample():
    (sample,) = samples_from_episode(episode(FIRST, SECOND), group=3, advantage=0.5, index=9)
    assert sample.tokens.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert sample.sampled.tolist() == [False, False, False, True, True, False, False, True]
    assert sample.logprobs.tolist() == [0, 0, 0, -1, -2, 0, 0, -5]
    assert sample.kept_ids.tolist() == [4, 900, 5, 901, 8, 900]
    assert sample.kept_offsets.tolist() == [0, 2, 4, 6]
    assert (sample.group, sample.advantage, sample.episode) == (3, 0.5, 9)


def test_recorded_routing_and_selection_come_from_the_last_turn_which_saw_the_whole_sequence():
    (sample,) = samples_from_episode(episode(FIRST, SECOND), group=0, advantage=0, index=0)
    assert sample.experts is SECOND.trace.experts
    assert sample.selected is SECOND.trace.selected
    assert len(sample.selected) == len(sample.tokens) - 1


def test_a_rewritten_context_begins_a_new_sample():
    runs = join_completions(episode(FIRST, SECOND, REWRITTEN))
    assert runs == [(FIRST, SECOND), (REWRITTEN,)]
    samples = samples_from_episode(episode(FIRST, SECOND, REWRITTEN), group=0, advantage=1, index=0)
    assert [s.tokens.tolist() for s in samples][1] == [1, 2, 3, 9, 10, 11]


def test_a_prompt_that_repeats_only_the_prompt_before_it_is_a_new_sample():
    again = completion([1, 2, 3], [6])
    assert join_completions(episode(FIRST, again)) == [(FIRST,), (again,)]


def test_every_sampled_token_stands_in_exactly_one_sample():
    turns = (FIRST, SECOND, REWRITTEN)
    samples = samples_from_episode(episode(*turns), group=0, advantage=1, index=0)
    trained = [int(t) for s in samples for t in s.tokens[s.sampled]]
    assert trained == [t for c in turns for t in c.sampled_tokens]


def test_turns_that_sampled_nothing_give_no_sample():
    nothing = Completion(FIRST.message, (1, 2), (), Trace(logprobs=np.zeros(0, dtype=np.float32)))
    assert samples_from_episode(episode(nothing), group=0, advantage=0, index=0) == []
    no_room = Completion(FIRST.message, (*SECOND.prompt_tokens, 8, 9), (), None, "length", ("no room",))
    (sample,) = samples_from_episode(episode(FIRST, SECOND, no_room), group=0, advantage=0, index=0)
    assert sample.tokens.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert samples_from_episode(episode(), group=0, advantage=0, index=0) == []


def test_recordings_are_optional():
    bare = replace(FIRST, trace=Trace(logprobs=FIRST.trace.logprobs))
    (sample,) = samples_from_episode(episode(bare), group=0, advantage=0, index=0)
    assert (sample.kept_ids, sample.kept_offsets, sample.experts, sample.selected) == (None, None, None, None)


def with_trace(**changes):
    return replace(FIRST, trace=replace(FIRST.trace, **changes))


@pytest.mark.parametrize(
    ("turns", "says"),
    [
        ([replace(FIRST, prompt_tokens=())], "did not return token ids"),
        ([replace(FIRST, trace=None)], "has no trace"),
        ([with_trace(logprobs=np.zeros(3, dtype=np.float32))], "log-probabilities of shape"),
        ([with_trace(kept_offsets=None)], "ids without offsets"),
        ([with_trace(kept_offsets=np.array([0, 4], dtype=np.int32))], "kept sets do not cover"),
        ([with_trace(kept_offsets=np.array([0, 0, 4], dtype=np.int32))], "kept sets do not cover"),
        ([with_trace(experts=FIRST.trace.experts[:-1])], "trace.experts has shape"),
        ([with_trace(selected=FIRST.trace.selected[1:])], "trace.selected has shape"),
        ([with_trace(selected=FIRST.trace.selected + 1)], "after its own token"),
        ([completion([1, 2, 3], [4, 5], kept=False), SECOND], "some do not"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(turns, says):
    with pytest.raises(SampleError, match=says):
        samples_from_episode(episode(*turns), group=0, advantage=0, index=0)
