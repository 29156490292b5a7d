"""The draw: repeatable by step, in proportion, without needless repeats."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baleen.agent.task import Task
from baleen.rl.mixture import draw_tasks


def task(domain, number):
    return Task(
        id=f"{domain}-{number}",
        family="general",
        domain=domain,
        difficulty=1,
        messages=(),
        environment="none",
        verifier="none",
    )


TASKS = [task(domain, i) for domain in ("tools", "arithmetic", "alignment") for i in range(6)]
WEIGHTS = {"tools": 2.0, "arithmetic": 1.0, "alignment": 1.0}


def ids(**changes):
    return [
        t.id for t in draw_tasks(**({"tasks": TASKS, "weights": WEIGHTS, "count": 8, "step": 3, "seed": 1} | changes))
    ]


def test_a_step_draws_the_same_whenever_it_is_asked_and_steps_differ():
    assert ids() == ids()
    assert ids(weights=dict(reversed(WEIGHTS.items()))) == ids()
    assert ids(step=4) != ids()
    assert ids(seed=2) != ids()


@given(st.integers(0, 500), st.integers(0, 40), st.lists(st.floats(0.1, 5), min_size=3, max_size=3))
def test_each_domain_is_within_one_task_of_its_share(step, count, weights):
    named = dict(zip(WEIGHTS, weights, strict=True))
    drawn = draw_tasks(TASKS, named, count=count, step=step, seed=0)
    assert len(drawn) == count
    for name, weight in named.items():
        assert abs(sum(t.domain == name for t in drawn) - count * weight / sum(weights)) < 1 + 1e-9


def test_shares_are_right_on_average_even_below_one_task_a_step():
    drawn = [draw_tasks(TASKS, WEIGHTS, count=1, step=step, seed=0)[0].domain for step in range(2000)]
    assert drawn.count("tools") / 2000 == pytest.approx(0.5, abs=0.04)


def test_a_task_comes_again_only_when_its_domain_has_too_few():
    tools = [i for i in ids(count=12) if i.startswith("tools")]
    assert len(tools) == len(set(tools)) == 6
    tools = [i for i in ids(count=24) if i.startswith("tools")]
    assert len(tools) == 12
    assert len(set(tools)) == 6


def test_a_domain_of_weight_zero_or_without_weight_is_left_out():
    assert all(i.startswith("tools") for i in ids(weights={"tools": 1.0, "alignment": 0.0}))


def test_a_weight_without_tasks_and_no_weight_at_all_are_refused():
    with pytest.raises(ValueError, match="no task in domain proofs"):
        ids(weights={"tools": 1.0, "proofs": 1.0})
    with pytest.raises(ValueError, match="one of them > 0"):
        ids(weights={"tools": 0.0})
