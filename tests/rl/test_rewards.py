"""Shaping: by hand, and never felt by a failed episode."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from baleen.rl.rewards import RewardConfig, shape

CONFIG = RewardConfig(length_penalty=0.4, length_budget=100, language_weight=0.2)


def parts(outcome, tokens=0, reasoning="the sum is here", content="It is done", language="en", config=CONFIG):
    return shape(outcome, sampled_tokens=tokens, reasoning=reasoning, content=content, language=language, config=config)


@pytest.mark.parametrize(
    ("tokens", "length"), [(0, 0.0), (100, 0.0), (150, -0.2), (175, -0.3), (200, -0.4), (10_000, -0.4)]
)
def test_length_costs_nothing_up_to_the_budget_then_grows_linearly_to_twice_the_budget(tokens, length):
    assert parts(1.0, tokens)["length"] == pytest.approx(length)


@given(st.integers(0, 100_000), st.sampled_from(["en", "fr", "zh", None]))
def test_a_failed_episode_gets_exactly_zero_in_every_part(tokens, language):
    assert parts(0.0, tokens, language=language) == {"outcome": 0.0, "length": 0.0, "language": 0.0, "total": 0.0}


def test_not_scored_is_not_zero():
    assert set(parts(None, 500).values()) == {None}


def test_language_pays_its_weight_in_full_for_a_consistent_answer_and_nothing_for_a_foreign_one():
    assert parts(1.0)["language"] == pytest.approx(0.2)
    assert parts(1.0, language="zh")["language"] == 0
    assert parts(1.0, language=None)["language"] == 0


def test_reasoning_counts_like_the_answer():
    mixed = parts(1.0, reasoning="der und die", content="the and this")
    assert mixed["language"] == pytest.approx(0.1)
    assert parts(1.0, reasoning=None, content=None)["language"] == pytest.approx(0.2)


@given(st.floats(0, 1), st.integers(0, 1000))
def test_total_is_the_sum_of_the_parts_and_never_below_zero(outcome, tokens):
    shaped = parts(outcome, tokens)
    assert shaped["total"] == pytest.approx(shaped["outcome"] + shaped["length"] + shaped["language"])
    assert shaped["total"] >= 0
    assert shaped["length"] <= 0 <= shaped["language"]


def test_a_penalty_that_could_make_being_right_worthless_is_refused():
    with pytest.raises(ValidationError):
        RewardConfig(length_penalty=1.0)
    with pytest.raises(ValidationError):
        RewardConfig(lenght_penalty=0.1)
