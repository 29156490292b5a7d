"""`view`, `create` and `edit` for the files of a sandbox's workspace; the host's files are out of reach.

An edit names a line and the exact text that stands there. So it never changes another place than the one that was read,
and when the file has changed meanwhile, or the model remembers it wrongly, the answer shows what stands there instead.
"""

from __future__ import annotations

import asyncio
from typing import Annotated

from baleen.agent.sandbox import Sandbox
from baleen.agent.tools.faults import sandbox_faults
from baleen.agent.tools.signature import Tool

_SHOWN_LINES = 400
_SHOWN_COLUMNS = 1000
_SHOWN_PLACES = 10
_AROUND = 3


class FileTools:
    """The three tools over a started sandbox, which belongs to the caller. Lines are numbered from 1."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._one_at_a_time = asyncio.Lock()

    @property
    def tools(self) -> dict[str, Tool]:
        """The three functions under their names."""
        return {"view": self.view, "create": self.create, "edit": self.edit}

    async def view(
        self,
        path: str,
        start: Annotated[int, "first line, from 1"] = 1,
        end: Annotated[int, "last line; 0 for as many as fit"] = 0,
    ) -> str:
        """Shows a file's lines with their numbers, or a folder's names."""
        try:
            lines = split_lines(await self._text(path))[0]
        except ValueError as error:
            if isinstance(error.__cause__, IsADirectoryError):
                return await self._folder(path)
            raise
        if not lines:
            return f"({path} is empty)"
        if not 1 <= start <= len(lines):
            raise ValueError(f"{path} has lines 1 to {len(lines)}, not {start}")
        last = min(end if end > 0 else len(lines), len(lines), start + _SHOWN_LINES - 1)
        if last < start:
            raise ValueError(f"end {end} comes before start {start}")
        rest = "" if last == len(lines) else f"\n[lines {start} to {last} of {len(lines)}]"
        return _numbered(lines, start, last) + rest

    async def create(
        self, path: str, text: str, overwrite: Annotated[bool, "replace a file that exists"] = False
    ) -> str:
        """Writes a new file."""
        async with self._one_at_a_time:
            if not overwrite:
                try:
                    await self._bytes(path)
                except FileNotFoundError:
                    pass
                except OSError as error:
                    raise ValueError(f"{path}: {_reason(error)}") from error
                else:
                    raise ValueError(f"{path} exists; edit it, or pass overwrite=true")
            await self._write(path, text)
        return f"Wrote {path}: {len(split_lines(text)[0])} lines."

    async def edit(
        self,
        path: str,
        line: Annotated[int, "number of the first line to replace, from 1"],
        old: Annotated[str, "the lines that stand there now, exactly; empty to insert before the line"],
        new: Annotated[str, "the lines to put there; empty to delete"],
    ) -> str:
        """Replaces whole lines of a file."""
        async with self._one_at_a_time:  # edits of one turn run side by side, and each is of what the last one left
            after = edited(await self._text(path), line, old, new, path)
            await self._write(path, after)
        lines = split_lines(after)[0]
        first, last = max(1, line - _AROUND), min(len(lines), line + len(split_lines(new)[0]) - 1 + _AROUND)
        shown = _numbered(lines, first, min(last, first + _SHOWN_LINES - 1))
        return f"Edited {path}:\n{shown}" if shown else f"Edited {path}: it is empty now."

    async def _folder(self, path: str) -> str:
        try:
            with sandbox_faults():
                names = sorted(await self._sandbox.list(path))
        except OSError as error:
            raise ValueError(f"{path}: {_reason(error)}") from error
        rest = [f"[{len(names) - _SHOWN_LINES} more]"] if len(names) > _SHOWN_LINES else []
        return "\n".join([*names[:_SHOWN_LINES], *rest]) or f"({path} is empty)"

    async def _bytes(self, path: str) -> bytes:
        if "\0" in path:
            raise ValueError("path holds a zero byte")
        with sandbox_faults():
            return await self._sandbox.read(path)

    async def _text(self, path: str) -> str:
        try:
            return (await self._bytes(path)).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text") from error
        except OSError as error:
            raise ValueError(f"{path}: {_reason(error)}") from error

    async def _write(self, path: str, text: str) -> None:
        if "\0" in path:
            raise ValueError("path holds a zero byte")
        try:
            with sandbox_faults():
                await self._sandbox.write(path, text.encode("utf-8", "replace"))
        except OSError as error:
            raise ValueError(f"{path}: {_reason(error)}") from error


def edited(text: str, line: int, old: str, new: str, name: str = "the file") -> str:
    """`text` with the lines `old` at line number `line` replaced by `new`; every other line keeps its bytes.

    New lines end as the file's first one does, and a file that ended without a newline still does. Raises `ValueError`,
    with the lines as they are, when `old` does not stand there.
    """
    lines, ends = split_lines(text)
    wanted, put = split_lines(old)[0], split_lines(new)[0]
    count = len(lines)
    if not 1 <= line <= count + (not wanted):
        last = f"lines 1 to {count}" if count else "no lines"
        raise ValueError(f"{name} has {last}, not {line}" + ("" if wanted else f"; insert at {count + 1} to append"))
    stop = line - 1 + len(wanted)
    if lines[line - 1 : stop] != wanted:
        raise ValueError(_mismatch(lines, line, wanted, name))
    newline = "\r\n" if ends and ends[0] == "\r\n" else "\n"
    lines_after = [*lines[: line - 1], *put, *lines[stop:]]
    ends_after = [end or newline for end in (*ends[: line - 1], *([newline] * len(put)), *ends[stop:])]
    if ends_after and ends and not ends[-1] and lines_after[-1]:
        ends_after[-1] = ""  # the file ended without a newline, and still does; an empty line would be none then
    return "".join(part + end for part, end in zip(lines_after, ends_after, strict=True))


def split_lines(text: str) -> tuple[list[str], list[str]]:
    """(the lines, how each ends: a newline, with a carriage return or not; only the last may end in nothing)."""
    parts = text.split("\n")
    last = parts.pop()
    lines = [part[:-1] if part.endswith("\r") else part for part in parts]
    ends = ["\r\n" if part.endswith("\r") else "\n" for part in parts]
    return (lines, ends) if not last else ([*lines, last], [*ends, ""])


def _mismatch(lines: list[str], line: int, wanted: list[str], name: str) -> str:
    last = min(len(lines), line + len(wanted) - 1 + _AROUND)
    first = max(1, line - _AROUND)
    last = min(last, first + _SHOWN_LINES - 1)
    text = (
        f"old does not stand at line {line} of {name}; nothing was changed. There is:\n{_numbered(lines, first, last)}"
    )
    if places := _places(lines, wanted):
        text += f"\nold stands at line {', '.join(map(str, places))}"
    return text


def _places(lines: list[str], wanted: list[str]) -> list[int]:
    """The first line numbers at which `wanted` stands. A search of the text takes linear time; comparing the lists at
    every line would not."""
    text, part = ("\n" + "\n".join(block) + "\n" for block in (lines, wanted))
    places: list[int] = []
    line, counted, found = 1, 0, text.find(part)
    while found >= 0 and len(places) < _SHOWN_PLACES:
        line, counted = line + text.count("\n", counted, found), found
        places.append(line)
        found = text.find(part, found + 1)
    return places


def _numbered(lines: list[str], first: int, last: int) -> str:
    width = len(str(last))
    shown = []
    for number in range(first, last + 1):
        text = lines[number - 1]
        if len(text) > _SHOWN_COLUMNS:
            text = f"{text[:_SHOWN_COLUMNS]} [{len(text) - _SHOWN_COLUMNS} more characters]"
        shown.append(f"{number:>{width}}| {text}" if text else f"{number:>{width}}|")
    return "\n".join(shown)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
