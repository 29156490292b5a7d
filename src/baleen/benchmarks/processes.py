"""Runs one measurement in a fresh process and gives its answer, or says in one line why there is none."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

WORKER = (sys.executable, "-P", "-m", "baleen.benchmarks.worker")  # -P: files of the current folder shadow nothing


class MeasurementError(RuntimeError):
    """A measurement's process died, took too long or said something else than JSON."""


def run_task(task: Mapping[str, Any], timeout: float, program: Sequence[str] = WORKER) -> dict[str, Any]:
    """The worker's answer to `task`. Raises `MeasurementError` with one readable line."""
    command = [*program, json.dumps(dict(task))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise MeasurementError(f"took more than {timeout:.0f} s and was stopped") from None
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        hint = "; the kernel does that when memory runs out" if name == "SIGKILL" else ""
        raise MeasurementError(f"the process was ended by {name}{hint}")
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise MeasurementError(f"the process failed: {said[-1] if said else f'exit status {done.returncode}'}")
    try:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise MeasurementError(f"the process did not answer in JSON: {done.stdout[-200:]!r}") from None
    return answer
