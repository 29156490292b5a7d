"""The JSON file of a benchmark: where and when it ran, every raw timing, and the figures made from them.

Every measurement is saved as soon as it ends. A later run with `--only` opens the same file and replaces what it
measures again; each measurement keeps its own date and commit, so a merged file says what is old.
"""

from __future__ import annotations

import difflib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from baleen.benchmarks.processes import MeasurementError, run_task
from baleen.training.records import write_json_atomic


class BenchmarkError(ValueError):
    """A mistake in how the benchmark was called."""


def chosen_parts(only: Sequence[str], parts: Collection[str]) -> list[str]:
    """The parts to measure, in their order: those of `only`, or all. Raises `BenchmarkError` for an unknown one."""
    for name in only:
        if name not in parts:
            near = difflib.get_close_matches(name, parts, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise BenchmarkError(f"no part {name!r}{hint} (there are {', '.join(parts)})")
    return [name for name in parts if name in only or not only]


class Results:
    """One benchmark's file, and the runner that fills it."""

    def __init__(self, path: Path, benchmark: str, *, quick: bool, timeout: float) -> None:
        """Opens or starts the file. Raises `BenchmarkError` when it holds something else."""
        self.path, self.timeout = path, timeout
        self.content: dict[str, Any] = {"benchmark": benchmark, "quick": quick, "measurements": {}, "figures": []}
        if path.is_file():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise BenchmarkError(f"{path} is not JSON ({error}): give another --json") from None
            if not isinstance(found, dict) or (found.get("benchmark"), found.get("quick")) != (benchmark, quick):
                kind = f"`bench {benchmark}{' --quick' if quick else ''}`"
                raise BenchmarkError(f"{path} was not written by {kind}: give another --json")
            self.content = found
        self.content |= {"machine": _machine(), "date": _now(), "commit": _commit()}
        self._fresh: set[str] = set()

    def get(self, key: str) -> dict[str, Any] | None:
        """A measurement's answer; None if there is none or it failed."""
        entry = self.content["measurements"].get(key)
        return None if entry is None or "error" in entry else entry

    def problem(self, key: str) -> str:
        """Why there is no answer."""
        return str(self.content["measurements"].get(key, {}).get("error", "not measured"))

    def measure(self, key: str, task: Mapping[str, Any]) -> dict[str, Any] | None:
        """Runs a task in its own process unless this run has done so already; saves what came of it."""
        if key not in self._fresh:
            self._fresh.add(key)
            _say(f"  {key} ...", end="")
            began = time.perf_counter()
            try:
                entry = run_task(task, self.timeout)
                outcome = _best(entry)
            except MeasurementError as error:
                entry, outcome = {"error": str(error)}, str(error)
            _say(f" {outcome} (took {time.perf_counter() - began:.1f} s)")
            self._record(key, {"task": dict(task), **entry})
        return self.get(key)

    def skip(self, key: str, why: str) -> None:
        """Notes that a measurement was left out, and why."""
        self._fresh.add(key)
        _say(f"  {key}: left out, {why}")
        self._record(key, {"error": f"left out: {why}"})

    def save(self, **parts: Any) -> None:
        """Writes the file, with `parts` put in."""
        self.content |= parts
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(self.path, self.content)

    def _record(self, key: str, entry: dict[str, Any]) -> None:
        self.content["measurements"][key] = entry | {"date": _now(), "commit": self.content["commit"]}
        self.save()


def _say(text: str, end: str = "\n") -> None:
    print(text, end=end, file=sys.stderr, flush=True)


def _best(entry: Mapping[str, Any]) -> str:
    parts = []
    if isinstance(entry.get("seconds"), list):
        parts.append(f"{min(entry['seconds']):.3g} s")
    if entry.get("tokens_per_second"):
        parts.append(f"{entry['tokens_per_second']:,.0f} tokens/s")
    if "memory_bytes" in entry:
        parts.append(f"{entry['memory_bytes'] / 1e9:.2f} GB")
    return ", ".join(parts) or "done"


def _machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": names[0] if names else platform.processor(), "cores": cores, "python": platform.python_version()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _commit() -> str | None:
    """The commit of the sources, with `+` when they differ from it; None outside a repository."""
    here = Path(__file__).parent
    try:
        done = [
            subprocess.run(["git", *command], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
            for command in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return done[0] + ("+" if done[1] else "")
