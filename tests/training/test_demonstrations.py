"""What is learned from a demonstration is exactly what the model says in it, in the context it was served in."""

from __future__ import annotations

import random

import numpy as np
import pytest

from baleen.chat.messages import FunctionCall, Message, ToolCall, ToolSpec
from baleen.chat.tokenizer import Tokenizer
from baleen.synthesis.catalogue import synthesise
from baleen.synthesis.trajectories import demonstrate, offered_tools
from baleen.training.demonstrations import demonstration_batches, demonstration_samples
from baleen.training.sample import plain_sample

TOOLS = [ToolSpec(function={"name": "depth_of", "description": "Depth", "parameters": {"type": "object"}})]
USER = Message(role="user", content="How deep does Ada dive?")
CALL = Message(
    role="assistant",
    content="",
    reasoning_content="Ada is asked.",
    tool_calls=[ToolCall(id="a", function=FunctionCall(name="depth_of", arguments='{"name": "Ada"}'))],
)
RESULT = Message(role="tool", tool_call_id="a", content="712")
ANSWER = Message(role="assistant", reasoning_content="712 it is.", content="She dives 712 m.")
AGAIN = Message(role="user", content="Thank you. And you?")
LAST = Message(role="assistant", reasoning_content="A thank-you.", content="Not at all.")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(
        ["How deep does the whale dive? She dives far down. Ask the tool again, name by name."] * 9, 400
    )


def spans(sample, tokenizer):
    """The texts of the runs of sampled tokens, in order."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], sample.sampled.astype(int), [0]))))
    return [tokenizer.decode(sample.tokens[a:b].tolist()) for a, b in edges.reshape(-1, 2)]


def test_the_sampled_tokens_decode_to_what_the_model_says(tokenizer):
    (sample,) = demonstration_samples([USER, CALL, RESULT, ANSWER], TOOLS, True, tokenizer)
    call, answer = spans(sample, tokenizer)
    assert call == (
        'Ada is asked.</think>\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="depth_of">\n'
        '<｜DSML｜parameter name="name" string="true">Ada</｜DSML｜parameter>\n'
        "</｜DSML｜invoke>\n</｜DSML｜function_calls><｜end▁of▁sentence｜>"
    )
    assert answer == "712 it is.</think>She dives 712 m.<｜end▁of▁sentence｜>"


def test_without_thinking_the_answer_alone_is_learned(tokenizer):
    plain = [m.model_copy(update={"reasoning_content": None}) for m in (USER, ANSWER)]
    (sample,) = demonstration_samples(plain, [], False, tokenizer)
    assert spans(sample, tokenizer) == ["She dives 712 m.<｜end▁of▁sentence｜>"]


def test_each_turn_is_learned_once_and_earlier_reasoning_is_gone_as_it_was_when_served(tokenizer):
    first, second = demonstration_samples([USER, CALL, RESULT, ANSWER, AGAIN, LAST], TOOLS, True, tokenizer)
    assert len(spans(first, tokenizer)) == 2
    assert spans(second, tokenizer) == ["A thank-you.</think>Not at all.<｜end▁of▁sentence｜>"]
    assert "712 it is." not in tokenizer.decode(second.tokens.tolist())


@pytest.fixture(scope="module")
def many(tokenizer):
    samples = []
    for task in synthesise(0, train=40, test=1, unseen=1).train:
        samples += demonstration_samples(
            demonstrate(task, random.Random(0)), offered_tools(task), task.thinking, tokenizer
        )
    return samples


def test_batches_are_the_seed_s_alone_and_rows_keep_to_their_length(many):
    longest = max(len(sample.tokens) for sample in many)
    drawn = [demonstration_batches(many, row_tokens=longest, tokens=longest, seed=seed) for seed in (1, 1, 2)]
    assert all(batch.tokens.shape[1] <= longest for batches in drawn for batch in batches)
    contents = [[batch.tokens.tolist() for batch in batches] for batches in drawn]
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]


def test_every_trained_prediction_is_a_sampled_token(many):
    longest = max(len(sample.tokens) for sample in many)
    said = {int(token) for sample in many for token in sample.tokens[sample.sampled]}
    for batch in demonstration_batches(many, row_tokens=longest, tokens=longest, seed=0):
        assert set(batch.target.tolist()) <= said
        assert batch.weight.eq(1.0).all()


def test_every_kind_of_sample_is_drawn_alike_wherever_its_tokens_sort():
    rng = np.random.default_rng(0)
    samples = [
        plain_sample([0, kind, *rng.integers(20, 99, 18).tolist()], [False] * 10 + [True] * 10)
        for kind in range(10)
        for _ in range(30)
    ]
    drawn = np.zeros(10)
    for seed in range(100):
        for batch in demonstration_batches(samples, row_tokens=60, tokens=180, seed=seed):
            kinds = batch.tokens[batch.position_ids == 1]
            drawn += np.bincount(kinds[kinds < 10].numpy(), minlength=10)
    assert drawn.min() > 0.6 * drawn.mean()
