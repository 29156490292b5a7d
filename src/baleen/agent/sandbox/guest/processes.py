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

_SET_PARENT_DEATH_SIGNAL, _SET_DUMPABLE, _SET_CHILD_SUBREAPER = 1, 4, 36
_SERVER_SCORE, _PROGRAM_SCORE = b"500", b"1000"
"""For /proc/self/oom_score_adj: everything here before the rest of the host, and programs before their server."""

_score = -1
"""The server's own oom_score_adj, opened while it may be."""

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
    """Early in line when memory runs out, heir of orphans, closed to /proc readers and debuggers of the same user."""
    global _score
    if sys.platform != "linux":
        return
    try:
        _score = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        _score = -1  # a container that gives no say in this
    _set_score(_SERVER_SCORE)
    if PRCTL(_SET_CHILD_SUBREAPER, 1, 0, 0, 0) or PRCTL(_SET_DUMPABLE, 0, 0, 0, 0):
        raise OSError("prctl failed")


def fork() -> int:
    """As `os.fork`, with the child first in line when memory runs out.

    It inherits that: closed to /proc like the server, a child cannot open its own score.
    """
    child = -1
    _set_score(_PROGRAM_SCORE)
    try:
        child = os.fork()
        return child
    finally:
        if child:
            _set_score(_SERVER_SCORE)


def _set_score(score: bytes) -> None:
    if _score < 0:
        return
    try:
        os.write(_score, score)
    except OSError:
        return  # one that was born with a higher score may not lower it


def become_heir() -> None:
    """This process inherits what its descendants leave behind, which a program keeps over `exec`, and dies with the
    server."""
    if sys.platform == "linux":
        PRCTL(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        PRCTL(_SET_PARENT_DEATH_SIGNAL, int(SIGKILL), 0, 0, 0)


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
