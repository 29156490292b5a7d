"""Estimators and intervals against hand, enumeration and published values."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baleen.evaluation.statistics import pass_at_k, pass_at_k_over_tasks, wilson_interval


def test_pass_at_k_by_hand():
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3)
    assert pass_at_k(4, 2, 2) == pytest.approx(5 / 6)
    assert pass_at_k(5, 0, 5) == 0
    assert pass_at_k(5, 3, 3) == 1
    assert pass_at_k(1000, 1, 500) == pytest.approx(0.5)


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_the_k_subsets_that_hold_a_pass(case):
    n, c, k = case
    subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize(("n", "c", "k"), [(3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4)])
def test_pass_at_k_refuses_more_draws_than_attempts(n, c, k):
    with pytest.raises(ValueError, match="make at least k attempts"):
        pass_at_k(n, c, k)


def test_wilson_interval_agrees_with_the_textbook():
    found = wilson_interval(8, 10)
    assert (found.value, found.low, found.high) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    none = wilson_interval(0, 10)
    assert (none.low, none.high) == pytest.approx((0.0, 1.959964**2 / (10 + 1.959964**2)), abs=1e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.99))
def test_wilson_interval_holds_its_share_within_0_and_1_and_mirrors(case, confidence):
    c, n = case
    found, mirrored = wilson_interval(c, n, confidence), wilson_interval(n - c, n, confidence)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.low == pytest.approx(1 - mirrored.high)


def test_nothing_tried_says_nothing():
    nothing = wilson_interval(0, 0)
    assert math.isnan(nothing.value)
    assert (nothing.low, nothing.high) == (0, 1)
    with pytest.raises(ValueError, match="between 0 and 3"):
        wilson_interval(4, 3)


def test_the_bootstrap_repeats_by_seed_and_comes_near_the_normal_interval():
    attempts = [(4, i % 5) for i in range(200)]
    found = pass_at_k_over_tasks(attempts, 1, seed=0)
    assert found == pass_at_k_over_tasks(attempts, 1, seed=0)
    assert found.value == pytest.approx(0.5)
    half_width = 1.96 * math.sqrt(0.125 / 200)
    assert (found.low, found.high) == pytest.approx((0.5 - half_width, 0.5 + half_width), abs=0.006)


def test_tasks_that_agree_leave_no_width_and_no_task_is_refused():
    found = pass_at_k_over_tasks([(4, 4), (4, 4)], 2, seed=0)
    assert (found.value, found.low, found.high) == (1, 1, 1)
    with pytest.raises(ValueError, match="run the benchmark first"):
        pass_at_k_over_tasks([], 1, seed=0)
