"""1,000 episodes with tools that fail at random: each has its status, nothing is left over, a kill loses nothing."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from storm_program import children, expected, tasks

from baleen.agent.episode import NOT_THE_MODELS

PROGRAM = Path(__file__).with_name("storm_program.py")
PR_SET_CHILD_SUBREAPER = 36


def started(path):
    folders = os.pathsep.join([str(PROGRAM.parent), str(PROGRAM.parents[1])])
    environment = {**os.environ, "PYTHONPATH": folders}
    return subprocess.Popen([sys.executable, PROGRAM, path], stdout=subprocess.PIPE, text=True, env=environment)


def is_half_a_start(process):
    """bubblewrap's inner half, and nothing in it: it waits for ever when whoever started it was killed meanwhile."""
    try:
        command = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
        if not command[0].endswith(b"bwrap") or children(process):
            return False
        os.kill(process, signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError):
        pass  # it has ended meanwhile
    return True


def lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
def test_every_episode_ends_with_its_status_and_a_killed_run_goes_on(tmp_path):
    path = tmp_path / "storm.jsonl"
    # Whatever outlives the killed run becomes our child, and is seen.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        before = set(children(os.getpid()))
        killed = started(path)
        while lines(path) < 300 and killed.poll() is None:
            time.sleep(0.02)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert 300 <= lines(path) < 1000

        said, _ = started(path).communicate(timeout=500)
        deadline = time.monotonic() + 10
        while set(children(os.getpid())) - before and time.monotonic() < deadline:
            for child in set(children(os.getpid())) - before:
                os.waitpid(child, os.WNOHANG)  # dead ones are no leak, only unread
            time.sleep(0.05)
        left_over = {child for child in set(children(os.getpid())) - before if not is_half_a_start(child)}
        assert not left_over, [Path(f"/proc/{child}/cmdline").read_bytes()[:300] for child in left_over]
    finally:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)

    left = json.loads(said)
    assert left == dict.fromkeys(("worlds", "tasks", "threads", "files", "children"), 0)

    records = [json.loads(line) for line in path.read_text(encoding="utf-8", errors="surrogatepass").splitlines()]
    counted = Counter(record["task"]["id"] for record in records)
    wanted = {task.id: expected(task.metadata["script"]) for task in tasks()}
    ended = {record["task"]["id"]: record["status"] for record in records}
    # Where a script comes to a fault of the world, an earlier kill may be what its last try ended with.
    told = {
        name: wanted[name] if {status, wanted[name]} <= NOT_THE_MODELS else status for name, status in ended.items()
    }
    assert told == wanted
    # What the world did is run again by the second run; what the model did never is.
    again = {name for name, count in counted.items() if count > 1}
    assert all(wanted[name] in ("tool_error", "infrastructure_error") for name in again)
    scored = [record for record in records if record["rewards"]]
    assert all((wanted[r["task"]["id"]] in ("finished", "truncated", "turn_limit")) for r in scored)
    assert len(set(wanted.values())) == 5, "the storm has every weather"
