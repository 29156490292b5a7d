"""Who lives in the sandbox, and how all of it dies.

Every program that the server starts is a subreaper: what it leaves behind when it detaches stays its descendant, and
falls to the server only when it ends. So a process that descends from no program that is still wanted belongs to one
that is over, however it hid, and is killed.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from _ctypes import FUNCFLAG_CDECL, Array, CFuncPtr, _SimpleCData, dlopen, dlsym
from _signal import SIGKILL, SIGSTOP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_SET_DUMPABLE, _SET_CHILD_SUBREAPER = 4, 36
_SWEEP_SECONDS = 8.0
_PAGE = resource.getpagesize()


class _Int(_SimpleCData):
    _type_ = "i"


class _Byte(_SimpleCData):
    _type_ = "B"


class _Function(CFuncPtr):
    # The `ctypes` package itself takes longer to import than all of this file.
    _flags_ = FUNCFLAG_CDECL
    _restype_ = _Int


PRCTL = _Function(dlsym(dlopen(None, 0), "prctl"))  # type: ignore[arg-type]


def buffer(content: bytes) -> Array:
    """`content` in memory that stays where it is; a C function gets a pointer to it."""
    made = type("Buffer", (Array,), {"_type_": _Byte, "_length_": len(content)})()
    memoryview(made).cast("B")[:] = content
    return made


def protect_server() -> None:
    """First in line when memory runs out, heir of orphans, closed to /proc readers and debuggers of the same user."""
    if sys.platform != "linux":
        return
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass  # a container that gives no say in this
    if PRCTL(_SET_CHILD_SUBREAPER, 1, 0, 0, 0) or PRCTL(_SET_DUMPABLE, 0, 0, 0, 0):
        raise OSError("prctl failed")


def become_heir() -> None:
    """This process inherits what its descendants leave behind; a program keeps it over `exec`."""
    if sys.platform == "linux":
        PRCTL(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def parents() -> dict[int, int]:
    """The parent of every process that can be seen."""
    found = {}
    for process in _process_ids():
        try:
            with open(f"/proc/{process}/stat", "rb") as file:
                found[process] = int(file.read().rpartition(b")")[2].split()[1])
        except OSError:
            continue  # it has ended meanwhile
    return found


def families(roots: Iterable[int], parent_of: dict[int, int]) -> dict[int, int]:
    """Every descendant of `roots`, themselves included, with the root it descends from."""
    children: dict[int, list[int]] = {}
    for process, parent in parent_of.items():
        children.setdefault(parent, []).append(process)
    family: dict[int, int] = {}
    for root in roots:
        members = [root]
        for member in members:
            family[member] = root
            members += [child for child in children.get(member, ()) if child not in family]
    return family


def sweep(wanted: set[int], isolated: bool) -> dict[int, int]:
    """Kills everything that descends from no process in `wanted` and reaps it; wait statuses by process id."""
    ended: dict[int, int] = {}
    if isolated and not wanted:
        while True:
            _signal(-1, SIGKILL)  # atomic: no fork escapes it
            try:
                process, status = os.waitpid(-1, 0)
            except ChildProcessError:
                return ended
            ended[process] = status
    stopped: set[int] = set()
    deadline = time.monotonic() + _SWEEP_SECONDS
    while unowned := _unowned(wanted, isolated):
        # Stopped processes count towards the limit, so a fork bomb runs dry before it is killed.
        fresh = unowned - stopped
        for process in fresh or unowned:
            _signal(process, SIGSTOP if fresh else SIGKILL)
        stopped |= fresh
        if not fresh:
            ended.update(reap())
            time.sleep(0.0005)
        if time.monotonic() > deadline:
            sys.exit("a process cannot be killed")  # with the server all of the namespace ends
    ended.update(reap())
    return ended


def reap() -> dict[int, int]:
    """Wait statuses of the children that have ended."""
    ended: dict[int, int] = {}
    while True:
        try:
            process, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if not process:
            return ended
        ended[process] = status


def _unowned(wanted: set[int], isolated: bool) -> set[int]:
    parent_of = parents()
    everybody = set(parent_of) if isolated else set(families([os.getpid()], parent_of))
    return everybody - set(families(wanted, parent_of)) - {os.getpid()}


def _signal(process: int, number: int) -> None:
    try:
        os.kill(process, number)
    except (ProcessLookupError, PermissionError):
        return


def resident_bytes(roots: Iterable[int]) -> dict[int, int]:
    """Private memory of each root's family. A family of one is left out: its address space bounds it."""
    total: dict[int, int] = {}
    family = families(roots, parents())
    if len(family) < 2:
        return total
    for process, root in family.items():
        try:
            with open(f"/proc/{process}/statm", "rb") as file:
                fields = file.read().split()
        except OSError:
            continue  # it has ended meanwhile
        total[root] = total.get(root, 0) + (int(fields[1]) - int(fields[2])) * _PAGE
    return total


def processes_of_this_user() -> int:
    """Processes and threads that already count towards RLIMIT_NPROC."""
    count = 0
    for process in _process_ids():
        try:
            if os.stat(f"/proc/{process}").st_uid == os.getuid():
                count += len(os.listdir(f"/proc/{process}/task"))
        except OSError:
            continue  # it has ended meanwhile
    return count


def _process_ids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()] if os.path.isdir("/proc") else []
