"""The sandbox as its users see it: programs, processes, files, and back to the snapshot.

Calls may be made from several tasks at once and from one event loop after another; they run beside each other inside.
A cancelled call is ended in the guest and disturbs no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from baleen.agent.sandbox.bubblewrap import place_inside
from baleen.agent.sandbox.cgroup import ControlGroup, control_group
from baleen.agent.sandbox.connection import LONGEST_HEAD, Answer, Connection
from baleen.agent.sandbox.folders import Entry, pack_folder, unpack_folder
from baleen.agent.sandbox.launch import Launch, Tier
from baleen.agent.sandbox.lent_tools import LentTool, ToolLoan
from baleen.agent.sandbox.limits import Limits, RunResult, SandboxError, SandboxUnavailable, WeakSandboxWarning
from baleen.agent.sandbox.process import Process
from baleen.agent.sandbox.reactor import begun_in_reactor, in_reactor
from baleen.agent.sandbox.tiers import launches

_T = TypeVar("_T")
_GRACE_SECONDS = 10.0
"""How long after a call's own timeout the guest may take to clean up before it counts as dead."""

_FILES_SECONDS = 60.0
_LONGEST_SECONDS = 30 * 24 * 3600.0
_LATE_SECONDS, _LATE_DIVISOR = 1.0, 4
_INDEX_BYTES = 16 << 20
"""Room for the names of a folder that is read, beside its contents."""

_LONGEST_READ = 64 << 20

_PROVEN: set[Tier] = set()
"""Tiers in which a sandbox of this process has started."""


class Sandbox:
    """An isolated workspace; use it as `async with`. Raises `SandboxUnavailable` on entry where nothing isolates.

    `readable`: folders of the host that are seen inside, read-only, at the same path. `links`: absolute path at
    the root, such as `/app`, to the folder of the workspace that lies there (only in a tier with a file system of its
    own: bubblewrap). `environment`: variables of every program. `tier`: this one and no other. `allow_weak`: the tier
    `none` is acceptable, with a warning.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        allow_weak: bool = False,
        readable: Sequence[str | Path] = (),
        links: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
        tier: Tier | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.allow_weak = allow_weak
        self.readable = tuple(os.path.realpath(folder) for folder in readable)
        self.links = dict(links or {})
        self.environment = dict(environment or {})
        self._wanted_tier = tier
        self._connection: Connection | None = None
        self._tier: Tier | None = None
        self._folder: str | None = None
        self._processes: dict[int, Process] = {}
        self._loans: dict[int, ToolLoan] = {}
        self._late: set[int] = set()
        self._group: ControlGroup | None = None

    async def __aenter__(self) -> Sandbox:
        try:
            await self.in_reactor(self._boot())
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def tier(self) -> Tier:
        """How it isolates: `bubblewrap`, `landlock`, `docker`, `podman`, `none`; known once the sandbox is entered."""
        if self._tier is None:
            raise SandboxError("the sandbox was not started; use it as `async with Sandbox(...) as sandbox`")
        return self._tier

    @property
    def connection(self) -> Connection:
        """The guest. Raises `SandboxError` when there is none."""
        if self._connection is None:
            raise SandboxError("the sandbox is not running")
        return self._connection

    async def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 10.0,
        input: bytes = b"",
        cwd: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> RunResult:
        """Runs a program; when it ends or `timeout` seconds are over, all it started is killed.

        `cwd` is relative to the workspace, or a path inside.
        """
        _check_timeout(timeout)
        head: dict[str, Any] = {"operation": "run", "argv": _checked(argv), "timeout": timeout}
        head |= {"cwd": cwd or "", "environment": dict(environment or {})}
        return await self.in_reactor(self._call(head, input, None))

    async def run_python(
        self, code: str, *, timeout: float = 10.0, tools: Mapping[str, LentTool] | None = None
    ) -> RunResult:
        """Runs Python source in a fork of the guest, about a millisecond; a last expression shows its value when the
        program printed nothing, and an exception comes as its last line on stderr.

        With `tools` the program has an object `tools`: `tools.name(argument=value)` awaits `tools["name"]` here, in
        the caller's event loop, with arguments and result as JSON; what that raises is a `ToolError` inside, but an
        `InfrastructureError` ends the program and is raised here.
        """
        _check_timeout(timeout)
        head = {"operation": "python", "timeout": timeout, "tools": None if tools is None else sorted(tools)}
        loan = None if tools is None else ToolLoan(tools, asyncio.get_running_loop())
        return await self.in_reactor(self._call(head, code.encode("utf-8", "replace"), loan))

    async def start(
        self, argv: Sequence[str], *, cwd: str | None = None, environment: Mapping[str, str] | None = None
    ) -> Process:
        """Starts a program that stays, beside other calls. That it cannot be executed shows as exit code 127."""
        head = {"operation": "start", "argv": _checked(argv), "cwd": cwd or "", "environment": dict(environment or {})}

        async def begin() -> Process:
            connection = self.connection
            number = connection.next_number()
            process = self._processes[number] = Process(self, number)
            try:
                await connection.ask(head, b"", _GRACE_SECONDS, number)
            except BaseException:
                self._processes.pop(number, None)
                with contextlib.suppress(SandboxError):
                    connection.tell({"call": 0, "operation": "kill", "process": number})
                raise
            return process

        return await self.in_reactor(begin())

    async def write(self, path: str, content: bytes) -> None:
        """Writes a file of the workspace, making its folders. Raises `OSError`, also when the disk limit is reached."""
        await self.ask({"operation": "write", "path": path}, content)

    async def read(self, path: str, *, most: int | None = None) -> bytes:
        """A file of the workspace. Raises `FileNotFoundError` and other `OSError`s: EFBIG for one of more than `most`
        bytes, by default 64 MiB."""
        return (await self.ask({"operation": "read", "path": path, "most": _LONGEST_READ if most is None else most}))[1]

    async def list(self, path: str = ".") -> list[str]:
        """The names in a folder, sorted; those of folders end in a slash. Raises `OSError`."""
        _, names = await self.ask({"operation": "list", "path": path})
        return names.decode("utf-8", "surrogateescape").split("\0") if names else []

    async def write_folder(self, host_folder: str | Path, path: str) -> None:
        """Copies a folder of the host into the workspace. Raises `OSError`."""
        entries = await asyncio.to_thread(pack_folder, Path(host_folder))
        await self.ask({"operation": "unpack", "path": path, "entries": entries})

    async def read_folder(self, path: str, host_folder: str | Path) -> None:
        """Copies a folder of the workspace to the host; links that might lead out of it are left out.

        Raises `OSError`, also when its files are larger than the disk limit.
        """
        head, body = await self.ask({"operation": "pack", "path": path})
        try:
            entries = _entries(head["index"], body)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise SandboxError("the guest sends what is no folder") from None
        await asyncio.to_thread(unpack_folder, entries, Path(host_folder))

    async def snapshot(self) -> None:
        """Remembers workspace, /tmp and /dev/shm as they are now. Raises `OSError`."""
        await self.ask({"operation": "snapshot"})

    async def reset(self) -> None:
        """Ends all programs; the files are again as at the snapshot, or gone where none was taken."""
        await self.ask({"operation": "reset"})

    async def close(self) -> None:
        """Ends everything inside and removes the workspace. May be called twice."""
        await asyncio.shield(begun_in_reactor(self._end()))

    async def in_reactor(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Runs `work` where the sandboxes' pipes live."""
        return await in_reactor(work)

    async def ask(self, head: dict[str, Any], body: bytes = b"") -> Answer:
        """One request to the guest and its answer, see `guest/server.py`."""

        async def asking() -> Answer:
            return await self.connection.ask(head, body, _FILES_SECONDS)

        return await self.in_reactor(asking())

    async def _call(self, head: dict[str, Any], body: bytes, loan: ToolLoan | None) -> RunResult:
        connection, group = self.connection, self._group
        kills = group.memory_kills() if group is not None else 0
        number = connection.next_number()
        if loan is not None:
            self._loans[number] = loan
        late = asyncio.get_running_loop().call_later(_LATE_SECONDS, self._yields, number)
        try:
            answer, output = await connection.ask(head, body, head["timeout"] + _GRACE_SECONDS, number)
        except BaseException:
            with contextlib.suppress(SandboxError):  # it died, which is why we are here
                connection.tell({"call": 0, "operation": "kill", "process": number})
            raise
        finally:
            late.cancel()
            self._yields_no_more(number)
            if loan is not None:
                del self._loans[number]
                loan.end()
        if loan is not None and loan.failure is not None:
            raise loan.failure
        try:
            answer.pop("call")
            split = answer.pop("stdout_bytes")
            if group is not None and answer["exit_code"] != 0:  # else it was another's that the kernel has killed
                answer["out_of_memory"] |= group.memory_kills() > kills
            stdout, stderr = (text.decode("utf-8", "replace") for text in (output[:split], output[split:]))
            return RunResult(stdout, stderr, **answer)
        except (KeyError, TypeError):
            raise SandboxError("the guest sends what is no result") from None

    def _yields(self, number: int) -> None:
        """A call that takes its time leaves more of the processor to those that do not."""
        self._late.add(number)
        if self._group is not None:
            self._group.weigh(self.limits.cpu_weight // _LATE_DIVISOR)

    def _yields_no_more(self, number: int) -> None:
        if number in self._late:
            self._late.remove(number)
            if not self._late and self._group is not None:
                self._group.weigh(self.limits.cpu_weight)

    def _on_event(self, head: dict[str, Any], body: bytes) -> None:
        number = head["call"]
        if head["event"] == "ended":
            process = self._processes.pop(number, None)
            if process is not None:
                process.ends(head["exit_code"])
        elif head["event"] == "tool" and number in self._loans:
            loan = self._loans[number]
            loan.serve(body, lambda answer: self._answer_tool(number, loan, answer))

    def _answer_tool(self, number: int, loan: ToolLoan, answer: bytes) -> None:
        with contextlib.suppress(SandboxError):  # the program is gone, and its question with it
            if loan.failure is not None:
                self.connection.tell({"call": 0, "operation": "kill", "process": number})
            else:
                self.connection.tell({"call": number, "operation": "tool_answer"}, answer)

    async def _boot(self) -> None:
        reasons: list[str] = []
        failed: set[Tier] = set()
        for launch in launches(self._wanted_tier, self.limits, self.readable, self.links, self.allow_weak, reasons):
            if self._wanted_tier is None and _PROVEN & failed - {launch.tier}:
                if launch.temporary is not None:
                    shutil.rmtree(launch.temporary, ignore_errors=True)
                break  # a tier that works here failed this once: no weaker one may stand in for it
            try:
                await self._start_guest(launch)
            except (OSError, SandboxError) as error:
                await self._end()
                failed.add(launch.tier)
                reasons.append(f"{launch.tier}: {error}")
                continue
            self._tier = launch.tier
            _PROVEN.add(launch.tier)
            _say(launch, reasons)
            return
        if self._wanted_tier is None and _PROVEN & failed:
            raise SandboxError(f"the sandbox did not start ({'; '.join(reasons)}); others did, so try again")
        raise SandboxUnavailable(
            f"no isolation here ({'; '.join(reasons)}); install bubblewrap and allow user namespaces, or pass "
            "allow_weak=True"
        )

    async def _start_guest(self, launch: Launch) -> None:
        self._folder = launch.temporary
        self._connection = Connection(launch, self._on_event, self._processes_end)
        self._group = control_group(self.limits) if launch.can_be_grouped else None
        config = {
            **asdict(self.limits),
            "file_bytes": self.limits.file_bytes or self.limits.disk_bytes,
            "box": launch.box,
            "isolated": launch.isolated,
            "walls": launch.walls,
            "filters": list(launch.program_filters),
            "environment": self.environment,
            "index_bytes": _INDEX_BYTES,
            "linked": list(self.links.values()),
            "bound": [place_inside(folder) for folder in self.readable] if launch.isolated else [],
            "counted": self._group is not None and self._group.counts_memory,
            "shared": self._group is not None and self._group.shares_processor,
        }
        largest = self.limits.disk_bytes + self.limits.output_bytes + _INDEX_BYTES + LONGEST_HEAD
        guest = await self._connection.start(config, largest, self._group)
        if self._group is not None:
            # Nothing but the guest itself has run until now: all that follows is its child and inherits the group.
            self._group.add(guest)

    async def _end(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.end()
        self._processes_end()
        group, self._group = self._group, None
        if group is not None:
            await group.remove()
        folder, self._folder = self._folder, None
        if folder is not None:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    def _processes_end(self) -> None:
        """The guest is gone, and they with it."""
        for process in self._processes.values():
            process.ends(None)
        self._processes.clear()


def _entries(index_bytes: int, body: bytes) -> list[Entry]:
    """What the guest has packed. Raises `ValueError` and its like where it says nonsense."""
    contents = memoryview(body)[index_bytes:]
    entries: list[Entry] = []
    for name, kind, mode, modified, length in json.loads(body[:index_bytes]):
        if not isinstance(name, str) or not isinstance(mode, int) or not isinstance(modified, int) or "\0" in name:
            raise ValueError("no entry of a folder")
        entries.append((name, kind, mode, modified, bytes(contents[:length])))
        contents = contents[length:]
    return entries


def _say(launch: Launch, reasons: list[str]) -> None:
    """Warns when this is not the best of isolation."""
    if launch.tier == "none":
        text = f"NO ISOLATION: code runs as an ordinary process that sees files and network ({'; '.join(reasons)})"
    elif launch.weaknesses or reasons:
        text = f"isolated by {launch.tier}, but: {'; '.join([*launch.weaknesses, *reasons])}"
    else:
        return
    warnings.warn(text, WeakSandboxWarning, stacklevel=1)


def _check_timeout(timeout: float) -> None:
    if not 0 < timeout <= _LONGEST_SECONDS:
        raise ValueError(f"a timeout is more than 0 and at most {_LONGEST_SECONDS:.0f} seconds, not {timeout}")


def _checked(argv: Sequence[str]) -> list[str]:
    if not argv or isinstance(argv, str):
        raise ValueError("argv is a program and its arguments, such as ['ls', '-l']")
    return [str(argument) for argument in argv]
