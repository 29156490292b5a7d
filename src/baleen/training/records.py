"""What a run writes down so that a kill at any moment loses nothing.

Two kinds of record. A file that must be whole or absent (`write_json_atomic`, `write_text_atomic`): written beside its
place, flushed to the disk, then renamed over it. A log that grows by a line per step (`MetricsLog`): a run that goes on
from a checkpoint first cuts the rows written after it, so that the log reads as if nothing had happened.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def write_json_atomic(path: Path, value: Any) -> None:
    """Writes `value` as JSON: a reader finds the old file or the new one, never a part. Raises `OSError`."""
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text_atomic(path: Path, text: str) -> None:
    """Writes `text` whole or not at all. Raises `OSError`, and then leaves the old file and no rest of the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Makes a rename inside `folder` survive a power cut: the name itself lives in the folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class MetricsLog:
    """JSON lines, one row per step; each row has an integer `step`.

    A stage writes a checkpoint at step n and rows go on; after a kill it calls `truncate_after(n)` and appends again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mended = False

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds one row. Raises `ValueError` for a row without a step, `OSError` when the disk refuses."""
        if not isinstance(row.get("step"), int):
            raise ValueError(f"a metrics row needs an integer 'step', got the keys {sorted(row)}")
        line = json.dumps(dict(row), ensure_ascii=False)
        self._cut_torn_line()
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def truncate_after(self, step: int) -> None:
        """Drops the rows whose step is greater than `step`, and a last line that a kill left half written."""
        if not self.path.exists():
            return
        kept = [json.dumps(row, ensure_ascii=False) + "\n" for row in self if row["step"] <= step]
        write_text_atomic(self.path, "".join(kept))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The rows in order, without a torn last line."""
        if not self.path.exists():
            return
        for line in self.path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                yield json.loads(line)

    def _cut_torn_line(self) -> None:
        # Once per log object: only another process, killed while it wrote, can have left a torn line.
        if self._mended:
            return
        self._mended = True
        if self.path.exists():
            content = self.path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                with self.path.open("r+b") as file:
                    file.truncate(whole)
