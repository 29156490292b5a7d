"""`baleen bench agent`: what is measured becomes figures, and what is missing says so."""

import json
from dataclasses import asdict

import pytest

from baleen.benchmarks.agent import bench_agent, figures
from baleen.benchmarks.results import BenchmarkError, Results
from baleen.benchmarks.tau2 import Row

SANDBOX = {
    "fresh_sandbox_ms": 14.0,
    "python_call_ms": 3.5,
    "program_call_ms": 2.0,
    "reset_ms": 1.0,
    "hundred_started_and_called_s": 2.0,
    "call_of_50_alone_ms": 40.0,
    "call_of_50_beside_attackers_ms": 44.0,
    "slowdown_beside_attackers": 1.1,
}


def results(tmp_path, **measurements):
    path = tmp_path / "agent.json"
    path.write_text(json.dumps({"benchmark": "agent", "quick": False, "measurements": measurements, "figures": []}))
    return Results(path, "agent", quick=False, timeout=1)


def test_a_target_is_met_or_missed_by_what_was_measured(tmp_path):
    made = {one.name: one.met for one in figures(results(tmp_path, sandbox=SANDBOX)) if one.part == "sandbox"}
    assert made["a fresh sandbox, median"] is True
    assert made["a Python call in a warm session, median"] is False
    assert made["a call in 50 busy sessions beside four that attack"] is True


def test_what_was_not_measured_says_so(tmp_path):
    assert {one.part: one.note for one in figures(results(tmp_path))}["tau2"] == "tau2: not measured"


@pytest.mark.parametrize(("full", "met"), [(50, True), (49, False)])
def test_the_gold_replay_must_be_full_and_the_idle_one_is_shown(tmp_path, full, met):
    names = dict.fromkeys(("calls", "user_turns", "reasoning_kept", "reasoning_dropped", "reasoning_wrong"), 0)
    rows = [Row("airline", agent, 50, full, 0, (), (), seconds=1.0, **names) for agent in ("gold", "silent")]
    made = figures(results(tmp_path, tau2={"rows": [asdict(row) for row in rows]}))
    assert [one.met for one in made if one.part == "tau2"] == [met, None]


def test_the_context_part_runs_in_a_process_of_its_own(tmp_path, capsys):
    made = bench_agent(quick=True, only=["context"], out=tmp_path)
    assert [one.ours for one in made if one.name == "context: summary"] == ["100% solved"]
    assert "context: discard-all" in capsys.readouterr().out
    assert json.loads((tmp_path / "agent-quick.json").read_text())["measurements"]["context"]["rows"]


def test_tau2_bench_is_left_out_where_there_is_no_checkout(tmp_path, monkeypatch):
    monkeypatch.delenv("TAU2_BENCH", raising=False)
    made = bench_agent(quick=True, only=["tau2"], out=tmp_path)
    assert [one.note for one in made if one.part == "tau2"] == [
        "tau2: left out: $TAU2_BENCH names no checkout of tau2-bench"
    ]


def test_an_unknown_part_is_refused(tmp_path):
    with pytest.raises(BenchmarkError, match="did you mean 'sandbox'"):
        bench_agent(only=["sandbx"], out=tmp_path)
