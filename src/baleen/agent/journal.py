"""Ended episodes, appended to a file as they end, so that a run can be killed at any moment and go on.

A line is an episode (`records.py`) and the key that finds it again: task, sampling seed, and which of the attempts with
these two it is. What failed through no fault of the model's is in the file too, but is run again. A last line that was
cut off by a kill is dropped on opening; nothing else is ever rewritten.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from baleen.agent.episode import NOT_THE_MODELS, Episode
from baleen.agent.policy import Sampling
from baleen.agent.records import episode_from_json, episode_to_json, json_line
from baleen.agent.task import Task
from baleen.agent.traces import TraceFolder

Key = tuple[str, int, int]
"""The task's id, the sampling's seed, and the number of the attempt among those that share both."""


class JournalError(ValueError):
    """The file is no journal, or another run writes it."""


class Journal:
    """The file at `path`, made where it is missing; use it as `with`. Traces go to `traces`, where they are wanted.
    `ended` holds the episodes that need not run again. Raises `JournalError` for a broken line in the file's midst,
    and while another process has it open."""

    def __init__(self, path: Path | str, *, traces: TraceFolder | None = None) -> None:
        self.path, self.traces = Path(path), traces
        self.ended: dict[Key, Episode] = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "a+b")  # noqa: SIM115 - closed by close()
        try:
            self._lock()
            self._read()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, key: Key, episode: Episode) -> None:
        """Adds an episode; once this has returned, a kill does not lose it."""
        name, seed, attempt = key
        record = episode_to_json(episode, traces=self.traces, seed=seed, attempt=attempt)
        self._file.write(json_line(record))
        self._file.flush()
        os.fsync(self._file.fileno())
        if episode.status not in NOT_THE_MODELS:
            self.ended[name, seed, attempt] = episode

    def close(self) -> None:
        """Closes the file; it may be opened again."""
        self._file.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise JournalError(f"{self.path} is being written by another run; wait for it or stop it") from error

    def _read(self) -> None:
        self._file.seek(0)
        whole = 0
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                break  # a kill met the last write
            whole += len(line)
            try:
                record: dict[str, Any] = json.loads(line)
                key = (record["task"]["id"], int(record["seed"]), int(record["attempt"]))
                episode = episode_from_json(record, traces=self.traces)
            except (ValueError, KeyError, TypeError) as error:
                raise JournalError(f"{self.path}, line {number}, is no episode of a journal: {error!r}") from error
            if episode.status not in NOT_THE_MODELS:
                self.ended[key] = episode
        self._file.truncate(whole)
        self._file.seek(whole)


def episode_keys(tasks: Sequence[Task], samplings: Sequence[Sampling]) -> list[Key]:
    """The keys of attempts, task i with sampling i."""
    seen: Counter[tuple[str, int]] = Counter()
    keys = []
    for task, sampling in zip(tasks, samplings, strict=True):
        pair = (task.id, sampling.seed)
        keys.append((*pair, seen[pair]))
        seen[pair] += 1
    return keys
