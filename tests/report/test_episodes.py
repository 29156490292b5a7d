"""Ten episodes, half of them wrong where that many exist, and as varied as they come."""

from __future__ import annotations

from baleen.report.episodes import choose, verdict_of
from baleen.report.page import write_report


def row(right, checkpoint="mixed_rl", environment="library", difficulty=1, **extra):
    task = {"environment": environment, "difficulty": difficulty, "thinking": True, "split": "test"}
    outcome = None if right is None else float(right)
    return {"checkpoint": checkpoint, "task": task, "status": "finished", "rewards": {"outcome": outcome}, **extra}


def verdicts(rows):
    return [verdict_of(episode) for episode in rows]


def test_five_right_and_five_wrong_where_they_exist():
    assert verdicts(choose([row(index % 2 == 0) for index in range(60)])) == ["right"] * 5 + ["wrong"] * 5


def test_a_side_that_is_short_is_filled_from_the_other():
    assert verdicts(choose([row(index > 1) for index in range(60)])) == ["right"] * 8 + ["wrong"] * 2
    assert verdicts(choose([row(index < 1) for index in range(60)])) == ["right"] + ["wrong"] * 9


def test_unscored_episodes_come_last_and_only_when_there_is_room():
    rows = [row(None)] * 3 + [row(True, status="infrastructure_error")] + [row(True)] * 2
    assert verdicts(choose(rows)) == ["right"] * 2 + ["not scored"] * 4


def test_the_last_checkpoint_is_preferred():
    rows = [row(index % 2, "cold_start") for index in range(40)] + [row(index % 2) for index in range(40)]
    assert {episode["checkpoint"] for episode in choose(rows)} == {"mixed_rl"}


def test_environments_and_difficulties_vary():
    rows = [
        row(True, environment=name, difficulty=level) for name in "abcde" for level in range(1, 5) for _ in range(9)
    ]
    chosen = choose(rows)
    assert {episode["task"]["environment"] for episode in chosen} == set("abcde")
    assert {episode["task"]["difficulty"] for episode in chosen} == {1, 2, 3, 4}


def test_the_page_shows_ten_with_thinking_calls_results_and_verdicts(run_folder):
    page = write_report(run_folder).read_text()
    assert page.count('class="episode"') == 10
    assert page.count('class="badge right"') == 5
    assert page.count('class="badge wrong"') == 5
    assert page.count('class="episode" open') == 2
    assert '<details class="thinking" open>' in page
    assert page.count('class="asking"') == page.count('class="result"') > 10
    assert "No result." not in page
