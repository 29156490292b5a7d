"""What a run left behind, read with patience: a stage may be missing, half written or torn by a kill.

Nothing here raises for a bad file: it goes into `problems`, which the page shows, and the rest is read on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baleen.report.markup import number, titled

STAGE_FOLDER = re.compile(r"^(\d+)-(.+)$")
Row = dict[str, Any]


@dataclass
class StageRecord:
    """One stage: its place in the run, its summary, and one metrics row per step."""

    name: str
    title: str
    folder: Path | None
    summary: Row
    rows: list[Row]

    @property
    def reinforced(self) -> bool:
        """Whether the stage learned from rewards rather than from text."""
        return any("reward" in row for row in self.rows)

    def column(self, name: str, over: str = "step") -> list[tuple[float, float]]:
        """(step, value), or (tokens, value), of the rows where both are finite numbers."""
        pairs = ((number(row.get(over)), number(row.get(name))) for row in self.rows)
        return [(at, value) for at, value in pairs if at is not None and value is not None]


@dataclass
class RunFolder:
    """A run folder's contents. `summary` is empty while the run is under way."""

    path: Path
    summary: Row = field(default_factory=dict)
    stages: list[StageRecord] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> RunFolder:
        """Reads what is there. Raises `FileNotFoundError` only when the folder itself is missing."""
        if not path.is_dir():
            raise FileNotFoundError(
                f"no run folder at {path}; give the folder that `baleen run` wrote, such as runs/nano"
            )
        run = cls(path)
        run.summary = as_row(run.load_json(path / "summary.json"))
        run.stages = run._read_stages()
        return run

    def stage(self, name: str) -> StageRecord | None:
        """The stage of that name, if it was run."""
        return next((stage for stage in self.stages if stage.name == name), None)

    def artefact(self, stage_name: str, file_name: str) -> Any:
        """A stage's JSON artefact, or None."""
        stage = self.stage(stage_name)
        return self.load_json(stage.folder / file_name) if stage and stage.folder else None

    def load_json(self, path: Path) -> Any:
        """The file's JSON value; None when it is absent or unreadable, the latter noted in `problems`."""
        try:
            return json.loads(path.read_text(encoding="utf-8", errors="replace"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            self._note(path, error)
            return None

    def load_rows(self, path: Path) -> Iterator[Row]:
        """The objects of a JSON-lines file; what cannot be read is noted in `problems`."""
        return (row for _, row in self.numbered_rows(path))

    def numbered_rows(self, path: Path) -> Iterator[tuple[int, Row]]:
        """`load_rows` with each object's line, from 1."""
        return read_rows(path, lambda error: self._note(path, error))

    def _read_stages(self) -> list[StageRecord]:
        listed = {
            _plain(str(entry["name"])): entry
            for entry in as_list(self.summary.get("stages"))
            if isinstance(entry, dict) and entry.get("name")
        }
        folders: dict[str, Path] = {}
        root = self.path / "stages"
        for folder in sorted(root.iterdir()) if root.is_dir() else []:
            match = STAGE_FOLDER.match(folder.name)
            if match and folder.is_dir():
                folders[_plain(match.group(2))] = folder
        names = [*folders, *(name for name in listed if name not in folders)]
        if listed and not set(folders) - set(listed):
            names = list(listed)
        return [self._read_stage(name, folders.get(name), listed.get(name, {})) for name in names]

    def _read_stage(self, name: str, folder: Path | None, entry: Row) -> StageRecord:
        summary: Row = {}
        rows: dict[Any, Row] = {}
        if folder:
            for file_name in ("done.json", "summary.json"):
                summary |= as_row(self.load_json(folder / file_name))
            # A step may be logged twice, before a kill and after the resume: the later row counts.
            for index, row in enumerate(self.load_rows(folder / "metrics.jsonl")):
                step = number(row.get("step"))
                rows[("row", index) if step is None else step] = row
        summary |= entry
        title = str(summary.get("title") or titled(name))
        return StageRecord(name, title, folder, summary, list(rows.values()))

    def _note(self, path: Path, error: Exception) -> None:
        line = f"{path.relative_to(self.path)}: {error}"
        if line not in self.problems:
            self.problems.append(line)


def read_rows(path: Path, unread: Callable[[Exception], object]) -> Iterator[tuple[int, Row]]:
    """(line, object) of a JSON-lines file, none of a missing one; `unread` is told of what cannot be read. A torn last
    line is what a kill leaves, so it is no problem."""
    try:
        with path.open(encoding="utf-8", errors="replace", newline="\n") as lines:
            torn: tuple[int, Exception] | None = None
            for index, line in enumerate(lines, start=1):
                if torn:
                    unread(ValueError(f"line {torn[0]}: {torn[1]}"))
                    torn = None
                try:
                    value = json.loads(line) if line.strip() else None
                except (ValueError, RecursionError) as error:
                    torn = (index, error)
                    continue
                if isinstance(value, dict):
                    yield index, value
    except FileNotFoundError:
        return
    except OSError as error:
        unread(error)


def as_row(value: Any) -> Row:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """The value if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def _plain(name: str) -> str:
    match = STAGE_FOLDER.match(name)
    return (match.group(2) if match else name).replace("-", "_")
