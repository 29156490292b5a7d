"""Control groups: memory, processes and processor of a whole sandbox, counted by the kernel.

Version 1 has a tree per controller, version 2 one tree in which a parent must pass controllers on. Either needs the
right to make folders there: root has it, and a user to whom a part of the tree was delegated. Where it cannot be
had the guest's own checks remain (`guest/server.py`), which is said once.
Source: Linux `Documentation/admin-guide/cgroup-v1/`, `cgroup-v2.rst`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from baleen.agent.sandbox.limits import Limits

CONTROLLERS = ("memory", "pids", "cpu")
_DEFAULT_SHARES, _DEFAULT_WEIGHT = 1024, 100
_GUEST_BYTES = 64 << 20
"""What the guest itself and the kernel's own bookkeeping may take on top."""

_OWN_PROCESSES = 2
"""The guest, and bubblewrap around it."""

_numbers = itertools.count(1)


class NoControlGroupWarning(UserWarning):
    """Limits of a whole sandbox are checked by its guest a few times per second instead of by the kernel."""


class ControlGroup:
    """The groups of one sandbox: a folder per controller in version 1, one for all in version 2."""

    def __init__(self, folders: dict[str, Path], limits: Limits) -> None:
        self._folders = folders
        self.counts_memory = "memory" in folders
        self.shares_processor = "cpu" in folders
        for controller, folder in folders.items():
            folder.mkdir(exist_ok=True)
            _write(folder, _settings(controller, folder, limits))

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """What this thread starts meanwhile is born in the groups of version 1. Raises `OSError`.

        A thread moves itself at no cost; to move another process the kernel waits some ten milliseconds for all
        processors to agree. Version 2 does not let a thread leave its process: there `add` is the way.
        """
        folders = {folder for folder in self._folders.values() if not _is_unified(folder)}
        try:
            for folder in folders:
                (folder / "tasks").write_text("0")
            yield
        finally:
            for folder in folders:
                (folder.parent / "tasks").write_text("0")

    def add(self, process: int) -> None:
        """Puts a process into the group of version 2; its children to come inherit it. Raises `OSError`."""
        for folder in {folder for folder in self._folders.values() if _is_unified(folder)}:
            (folder / "cgroup.procs").write_text(str(process))

    def weigh(self, weight: int) -> None:
        """Sets the share of the processor, as `Limits.cpu_weight` has it, for what runs from now on."""
        folder = self._folders.get("cpu")
        if folder is not None:
            _write(folder, _processor_share(folder, max(1, weight)))

    def memory_kills(self) -> int:
        """How often the kernel has killed a process of this sandbox because its memory was full."""
        folder = self._folders.get("memory")
        if folder is None:
            return 0
        for name in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(OSError):
                fields = dict(line.split() for line in (folder / name).read_text().splitlines())
                return int(fields.get("oom_kill", 0))
        return 0

    async def remove(self) -> None:
        """Removes the groups, and kills who is left in them: where no namespace ends with its server, some outlive it.

        The kernel may need a moment to forget them.
        """
        for folder in {*self._folders.values()}:
            for _ in range(50):
                _kill_members(folder)
                try:
                    folder.rmdir()
                except FileNotFoundError:
                    break
                except OSError:
                    await asyncio.sleep(0.01)
                    continue
                break


def _kill_members(folder: Path) -> None:
    with contextlib.suppress(OSError):
        for process in map(int, (folder / "cgroup.procs").read_text().split()):
            if process not in (0, os.getpid()):  # 0 is one that this namespace does not see
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)


def control_group(limits: Limits) -> ControlGroup | None:
    """Groups for a new sandbox; None, said once, where they cannot be had."""
    parents = _parents()
    missing = [controller for controller in CONTROLLERS if controller not in parents]
    if missing:
        _say_once(", ".join(missing))
    if not parents:
        return None
    name = f"baleen-{os.getpid()}-{next(_numbers)}"
    return ControlGroup({controller: parent / name for controller, parent in parents.items()}, limits)


def available_controllers() -> dict[str, int]:
    """The controllers that can be had here, with the version of their tree."""
    return {name: 2 if _is_unified(folder / "any") else 1 for name, folder in _parents().items()}


@cache
def _say_once(missing: str) -> None:
    text = f"no control group for {missing} (root or a delegated group is needed): limits of a whole sandbox are "
    warnings.warn(text + "checked by its guest instead", NoControlGroupWarning, stacklevel=1)


@cache
def _parents() -> dict[str, Path]:
    parents = parent_folders(Path("/proc/self/mounts"), Path("/proc/self/cgroup"))
    for folder in {*parents.values()}:
        _remove_left_behind(folder)
    return parents


def _remove_left_behind(folder: Path) -> None:
    """Groups of processes that were killed before they could remove them; one in use cannot be removed."""
    for group in folder.glob("baleen-*-*"):
        if not Path("/proc", group.name.split("-")[1]).exists():
            with contextlib.suppress(OSError):
                group.rmdir()


def parent_folders(mounts: Path, own: Path) -> dict[str, Path]:
    """For each controller that can be had, the folder in which groups may be made.

    `mounts` and `own` are in the formats of `/proc/self/mounts` and `/proc/self/cgroup`.
    """
    try:
        mounted = [line.split()[1:4] for line in mounts.read_text().splitlines() if " cgroup" in line]
        groups = [line.split(":", 2)[1:] for line in own.read_text().splitlines()]
    except OSError:
        return {}
    found: dict[str, Path] = {}
    for point, kind, options in mounted:
        for controllers, group in groups:
            if kind == "cgroup2" and not controllers:
                found |= {c: folder for c, folder in _unified(Path(point), group).items() if c not in found}
            elif kind == "cgroup" and controllers and set(controllers.split(",")) <= set(options.split(",")):
                folder = _inside(Path(point), group)
                if os.access(folder, os.W_OK):
                    found |= {c: folder for c in controllers.split(",") if c in CONTROLLERS}
    return found


def _unified(point: Path, group: str) -> dict[str, Path]:
    """Version 2: the nearest group upwards that may pass the controllers on to its children."""
    folder = _inside(point, group)
    while True:
        if os.access(folder, os.W_OK):
            control = folder / "cgroup.subtree_control"
            with contextlib.suppress(OSError):
                # Refused where the group holds processes itself; then one further up is tried.
                available = set((folder / "cgroup.controllers").read_text().split())
                wanted = [c for c in CONTROLLERS if c in available and c not in control.read_text().split()]
                if wanted:
                    control.write_text(" ".join(f"+{controller}" for controller in wanted))
            with contextlib.suppress(OSError):
                passed = [c for c in CONTROLLERS if c in control.read_text().split()]
                if passed:
                    return dict.fromkeys(passed, folder)
        if folder == point:
            return {}
        folder = folder.parent


def _inside(point: Path, group: str) -> Path:
    """A group's folder; in a container the path may be the host's, and the mount point is the group itself."""
    folder = point / group.lstrip("/")
    return folder if folder.is_dir() else point


def _settings(controller: str, folder: Path, limits: Limits) -> dict[str, int | str]:
    memory = limits.memory_bytes + limits.disk_bytes + _GUEST_BYTES
    if controller == "memory":
        return (
            {"memory.max": memory, "memory.swap.max": 0} if _is_unified(folder) else {"memory.limit_in_bytes": memory}
        )
    if controller == "pids":
        return {"pids.max": limits.processes + _OWN_PROCESSES}
    return _processor_share(folder, limits.cpu_weight)


def _processor_share(folder: Path, weight: int) -> dict[str, int | str]:
    if _is_unified(folder):
        return {"cpu.weight": weight}
    return {"cpu.shares": max(2, _DEFAULT_SHARES * weight // _DEFAULT_WEIGHT)}


def _is_unified(folder: Path) -> bool:
    return (folder.parent / "cgroup.subtree_control").exists()


def _write(folder: Path, settings: dict[str, int | str]) -> None:
    for name, value in settings.items():
        (folder / name).write_text(str(value))
