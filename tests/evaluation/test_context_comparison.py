"""The comparison of context strategies: small, real, and repeatable."""

import pytest

from baleen.evaluation.context_comparison import COMPARED, compare, trails


@pytest.fixture(scope="module")
def rows():
    return {row.strategy: row for row in compare(4, seed=1)}


def test_every_strategy_has_its_row(rows):
    assert tuple(rows) == COMPARED


def test_what_remembers_solves_what_the_window_alone_does_not(rows):
    assert rows["summary"].solved == 1.0
    assert rows["none"].solved < rows["discard-75"].solved


def test_only_what_manages_the_context_manages_it(rows):
    assert rows["none"].managed == rows["parallel-fewest-step"].managed == 0
    assert min(rows[name].managed for name in ("summary", "discard-75", "discard-all")) > 0


def test_parallel_attempts_are_paid_for(rows):
    assert rows["parallel-fewest-step"].prompt_tokens > 2 * rows["none"].prompt_tokens


def test_shares_are_shares(rows):
    assert all(0 <= row.cached < 1 and 0 <= row.solved <= 1 for row in rows.values())


def test_the_same_seed_gives_the_same_trails():
    (first, store), (again, _) = trails(3, seed=5), trails(3, seed=5)
    assert first == again
    assert len(store) == 3 * 3 * 4
