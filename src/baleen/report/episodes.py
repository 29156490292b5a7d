"""The episodes that a run left, in the viewer: the evaluation's, then the last steps of the reinforcement stages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from baleen.report.episode_pack import Found, pack
from baleen.report.markup import Html, element, join, missing
from baleen.report.run_folder import RunFolder
from baleen.report.viewer import is_episode, viewer

MOST_BYTES = 1_500_000
"""Of the report that episodes may take."""


def episodes(run: RunFolder) -> Html:
    """The viewer over all that fit, with a line on what they are."""
    packed = pack(_found(run), MOST_BYTES)
    if not packed.total:
        return missing("No stage has left episodes (episodes.jsonl) yet.")
    return join([element("p", _note(packed.shown, packed.total), class_="note"), viewer(packed)])


def _note(shown: int, total: int) -> str:
    if shown == total:
        return f"All {total:,} episodes that the stages kept."
    return f"{shown:,} of {total:,} episodes, evenly taken: `baleen report FILE.jsonl` shows a file's whole."


def _found(run: RunFolder) -> Iterator[Found]:
    for file in _files(run):
        name = str(file.relative_to(run.path / "stages"))
        yield from (Found(name, line, row) for line, row in run.numbered_rows(file) if is_episode(row))


def _files(run: RunFolder) -> Iterator[Path]:
    """Each stage's files, the evaluation's first. It has one for each checkpoint and a copy of the last of them."""
    folders = [stage.folder for stage in sorted(run.stages, key=lambda stage: stage.name != "evaluation")]
    for folder in folders:
        if folder:
            yield from sorted(folder.glob("episodes-*.jsonl")) or folder.glob("episodes.jsonl")
