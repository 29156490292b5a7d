"""What is learned from a demonstration is exactly what the model says in it, in the context it was served in."""

from __future__ import annotations

import numpy as np
import pytest

from baleen.chat.messages import FunctionCall, Message, ToolCall, ToolSpec
from baleen.chat.tokenizer import Tokenizer
from baleen.synthesis.catalogue import synthesise
from baleen.synthesis.trajectories import demonstrate, offered_tools
from baleen.training.demonstrations import Pool, demonstration_batches, demonstration_samples, fitting
from baleen.training.sample import SampleError, plain_sample

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
def pools(tokenizer):
    found = {}
    for task in synthesise(0, train=60, test=1, unseen=1).train:
        samples = demonstration_samples(demonstrate(task), offered_tools(task), task.thinking, tokenizer)
        found.setdefault(task.domain, {}).setdefault(task.environment, []).extend(samples)
    return [Pool(1.0, list(groups.values())) for groups in found.values()]


def longest(pools):
    return max(len(sample.tokens) for pool in pools for group in pool.groups for sample in group)


def test_batches_are_the_seed_s_alone_and_rows_keep_to_their_length(pools):
    room = longest(pools)
    drawn = [demonstration_batches(pools, row_tokens=room, tokens=2 * room, seed=seed) for seed in (1, 1, 2)]
    assert all(batch.tokens.shape[1] <= room for batches in drawn for batch in batches)
    contents = [[batch.tokens.tolist() for batch in batches] for batches in drawn]
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]


def test_every_trained_prediction_is_a_sampled_token(pools):
    said = {
        int(t) for pool in pools for group in pool.groups for sample in group for t in sample.tokens[sample.sampled]
    }
    for batch in demonstration_batches(pools, row_tokens=longest(pools), tokens=4000, seed=0):
        assert set(batch.target.tolist()) <= said
        assert batch.weight.eq(1.0).all()


def made_up(kind, rng):
    return plain_sample([0, kind, *rng.integers(20, 10**6, 18).tolist()], [False] * 10 + [True] * 10)


def kinds_drawn(pools, draws, tokens):
    """How often each kind (a sample's second token) was drawn."""
    drawn = np.zeros(10)
    for seed in range(draws):
        for batch in demonstration_batches(pools, row_tokens=60, tokens=tokens, seed=seed):
            # A shared opening stands once in a row: count what is trained, ten predictions a sample.
            for row in range(len(batch.tokens)):
                kinds = batch.tokens[row][batch.position_ids[row] == 1].tolist()
                ends = batch.subtree_end[row][batch.position_ids[row] == 1].tolist()
                starts = batch.position_ids[row].eq(1).nonzero().flatten().tolist()
                for kind, start, end in zip(kinds, starts, ends, strict=True):
                    drawn[kind] += (end - start - 1) // 18
    return drawn


def test_every_sample_of_a_pool_is_as_likely_however_the_groups_are_cut():
    rng = np.random.default_rng(0)
    groups = [[made_up(kind, rng) for _ in range(10 + 5 * kind)] for kind in range(10)]
    per_sample = kinds_drawn([Pool(1.0, groups)], draws=2000, tokens=180) / [len(group) for group in groups]
    assert per_sample.min() > 0.7 * per_sample.mean()
    assert per_sample.max() < 1.3 * per_sample.mean()


def test_pools_get_their_share_of_the_tokens():
    rng = np.random.default_rng(0)
    pools = [Pool(share, [[made_up(kind, rng) for _ in range(2000)]]) for kind, share in ((1, 3.0), (2, 1.0))]
    drawn = kinds_drawn(pools, draws=20, tokens=4000)
    assert 2.7 < drawn[1] / drawn[2] < 3.3


def test_samples_longer_than_a_row_are_left_out_and_a_pool_without_any_other_is_an_error():
    short, long = plain_sample([1] * 20, [True] * 20), plain_sample([1] * 80, [True] * 80)
    (kept,) = fitting([Pool(1.0, [[short, long], [long]])], 60)
    assert kept.groups == [[short]]
    with pytest.raises(SampleError, match=r"60 tokens \(the shortest has 80\): raise tree_length"):
        fitting([Pool(1.0, [[short]]), Pool(1.0, [[long]])], 60)
    with pytest.raises(SampleError, match="no sample"):
        fitting([Pool(1.0, [])], 60)
