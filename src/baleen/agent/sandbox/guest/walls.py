"""What a program gives up where no namespace holds it: files by Landlock, system calls by a seccomp filter.

The server gives up the files of the host once, at its start, but keeps /proc, in order to find what it must kill; each
program then gives up /proc, signals and abstract sockets beyond its own kin, and the system calls of the filter.
None of it can be taken back. Source: `landlock(7)`, `seccomp(2)`, `include/uapi/linux/landlock.h`.
"""

from __future__ import annotations

import os
import stat
import sys
from _ctypes import addressof

from baleen.agent.sandbox.guest.processes import PRCTL, buffer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PATH_BENEATH = 1
_INSTRUCTION_BYTES = 8
_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER_MODE = 38, 22, 2

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_FOLDER, _TRUNCATE, _DEVICE_CONTROL = 1, 2, 4, 8, 1 << 14, 1 << 15
_READ = _EXECUTE | _READ_FILE | _READ_FOLDER
_OF_A_FILE = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _DEVICE_CONTROL
_HANDLED_FILES = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 5: 0xFFFF}
"""By the version of the kernel's interface that brought the last of them."""
_TCP, _TCP_SINCE = 0x3, 4
_SCOPES, _SCOPES_SINCE = 0x3, 6


def landlock_version() -> int:
    """The version of the kernel's Landlock interface, 0 without one."""
    return max(0, _system_call(_CREATE_RULESET, None, 0, 1))


def give_up_files(readable: Iterable[str], writable: Iterable[str], *, alone: bool) -> None:
    """This process and its children see no other files from now on. `alone`: nor signal or reach their elders.

    Raises `OSError` where the kernel does not allow it.
    """
    import ctypes

    version = landlock_version()
    if not version:
        raise OSError("this kernel has no Landlock")
    handled = _HANDLED_FILES[max(known for known in _HANDLED_FILES if known <= version)]
    words = [handled]
    if version >= _TCP_SINCE:
        words.append(0)
    if version >= _SCOPES_SINCE:
        words.append(_SCOPES if alone else 0)
    attributes = (ctypes.c_uint64 * len(words))(*words)
    ruleset = _system_call(_CREATE_RULESET, ctypes.byref(attributes), ctypes.sizeof(attributes), 0)
    if ruleset < 0:
        raise OSError("no Landlock rule set")
    for paths, access in ((readable, _READ), (writable, handled)):
        for path in paths:
            _allow(ruleset, path, access & handled)
    if PRCTL(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or _system_call(_RESTRICT_SELF, ruleset, 0):
        raise OSError("Landlock refuses")
    os.close(ruleset)


def _allow(ruleset: int, path: str, access: int) -> None:
    import ctypes

    class PathBeneath(ctypes.Structure):
        _pack_ = 1
        _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))

    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # what is not there needs no permission
    if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
        access &= _OF_A_FILE
    rule = PathBeneath(access, descriptor)
    failed = _system_call(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0)
    os.close(descriptor)
    if failed:
        raise OSError(f"Landlock refuses a rule for {path}")


class SystemCallFilter:
    """A compiled seccomp filter, made ready once so that a program loses no time over it."""

    def __init__(self, program: bytes) -> None:
        self._instructions = buffer(program)
        # struct sock_fprog: the number of instructions, padding, a pointer to them.
        count = (len(program) // _INSTRUCTION_BYTES).to_bytes(8, sys.byteorder)
        self._program = buffer(count + addressof(self._instructions).to_bytes(8, sys.byteorder))

    def install(self) -> None:
        """For this process and all it starts, for good. Raises `OSError` where the kernel does not allow it."""
        if PRCTL(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or PRCTL(_SET_SECCOMP, _FILTER_MODE, self._program, 0, 0):
            raise OSError("no seccomp filter")


def _system_call(number: int, *arguments: object) -> int:
    import ctypes

    return int(ctypes.CDLL(None).syscall(number, *arguments))
