"""How a guest is started: the command of one tier, and the interpreter that runs it.

The interpreter inside should be the one that runs Baleen: then the guest's code travels compiled, and programs find the
same Python. Where root's home hides it from the unprivileged user, the thread that starts sandboxes gets a mount
namespace of its own in which that folder, and no other, lies at /mnt.
"""

from __future__ import annotations

import ctypes
import os
import stat
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

Tier = Literal["bubblewrap", "landlock", "docker", "podman", "none"]

NOBODY = 65534
INSIDE_PREFIX = "/opt/python"


@dataclass(frozen=True)
class Launch:
    """One way to start the guest. `arguments` ends with the interpreter; `box` is the guest's folder as it sees it."""

    tier: Tier
    arguments: tuple[str, ...]
    environment: dict[str, str]
    box: str
    isolated: bool
    """Whether the guest is process 1 of a namespace: then all that runs in it is its own."""
    same_interpreter: bool = False
    has_monitor: bool = False
    """Whether the started process is not the guest but its parent."""
    can_be_grouped: bool = True
    """Whether the host may put the guest into a control group of its own."""
    temporary: str | None = None
    """A folder of the host that is removed afterwards."""
    user: int | None = None
    piped: tuple[tuple[str, bytes, str], ...] = ()
    """Options whose value is read from a descriptor: name, content, and a last word or nothing."""
    piped_at: int = 0
    """Where in `arguments` they belong."""
    walls: dict[str, Any] | None = None
    """Which files the guest itself must give up, see `guest/walls.py`."""
    program_filters: tuple[bytes, ...] = ()
    """Seccomp programs that the guest installs in every program it starts."""
    weaknesses: tuple[str, ...] = ()
    """What does not hold, each as half a sentence."""


@dataclass(frozen=True)
class Interpreter:
    """A Python for the inside. `source` is what must be bound at /opt/python for it, if anything."""

    path: str
    source: str | None
    same: bool


def unprivileged_user() -> int | None:
    """The user that programs run as: nobody when this process is root, else None, the user it is."""
    return NOBODY if os.getuid() == 0 else None


@cache
def interpreters() -> tuple[Interpreter, ...]:
    """Interpreters for a file system of its own, best first."""
    return tuple(_interpreters())


def _interpreters() -> Iterator[Interpreter]:
    own, prefix = own_python(), Path(sys.base_prefix)
    inside = f"{INSIDE_PREFIX}/{own.relative_to(prefix)}" if own.is_relative_to(prefix) else ""
    if prefix.is_relative_to("/usr"):
        yield Interpreter(str(own), None, True)
        return
    shown = shown_to_nobody(str(prefix)) if inside else None
    if shown is not None:
        yield Interpreter(inside, shown, True)
    if os.path.exists("/usr/bin/python3"):
        yield Interpreter("/usr/bin/python3", None, False)


def own_python() -> Path:
    """The running interpreter itself: not a virtual environment's link, not a version manager's shim."""
    return Path(os.path.realpath(Path(sys.base_prefix) / "bin" / "python3"))


def reachable(path: Path, user: int | None) -> bool:
    """Whether `user` (None: the current one) may execute `path`, by the permissions for others."""
    if not path.exists():
        return False
    if user is None:
        return os.access(path, os.X_OK)
    return all(part.stat().st_mode & stat.S_IXOTH for part in (path, *path.parents))


_SHOWN_BELOW = "/mnt"
_CLONE_NEWNS, _MS_BIND, _MS_REC, _MS_SLAVE = 0x20000, 4096, 16384, 1 << 19
_shown: dict[tuple[str, int, int], str] = {}


def shown_to_nobody(folder: str) -> str | None:
    """Where the unprivileged user finds `folder`: itself, or a place below /mnt in the mount namespace of this thread.

    None where that is not allowed. Files that only root may read stay unreadable.
    """
    if reachable(Path(folder), unprivileged_user()):
        return folder
    status = os.stat(folder)
    key = (folder, status.st_dev, status.st_ino)
    if key not in _shown:
        if os.getuid() != 0 or not _has_own_mounts():
            return None
        place = f"{_SHOWN_BELOW}/{len(_shown)}"
        os.mkdir(place)
        if ctypes.CDLL(None).mount(os.fsencode(folder), os.fsencode(place), None, _MS_BIND | _MS_REC, None):
            return None
        _shown[key] = place
    return _shown[key]


def _forget_mounts() -> None:
    """A forked child has neither that thread nor its mounts."""
    _shown.clear()
    _has_own_mounts.cache_clear()
    interpreters.cache_clear()


os.register_at_fork(after_in_child=_forget_mounts)


@cache
def _has_own_mounts() -> bool:
    """Gives this thread, and what it starts, mounts of its own with an empty folder at /mnt."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not os.path.isdir(_SHOWN_BELOW) or libc.unshare(_CLONE_NEWNS):
        return False
    if libc.mount(b"none", b"/", None, _MS_REC | _MS_SLAVE, None):
        return False
    return not libc.mount(b"tmpfs", os.fsencode(_SHOWN_BELOW), b"tmpfs", 0, b"mode=755,size=1m")


def base_environment(box: str, path: Sequence[str]) -> dict[str, str]:
    """The environment of every program: nothing of the host's."""
    folders = dict.fromkeys([*path, "/usr/local/bin", "/usr/bin", "/bin"])
    return {
        "PATH": ":".join(folders),
        "HOME": f"{box}/work",
        "TMPDIR": f"{box}/tmp",
        "USER": "nobody",
        "LANG": "C.UTF-8",
        # The same program prints the same text: without it the order of sets differs from run to run.
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def inside_library_path(interpreter: Interpreter) -> dict[str, str]:
    """What an interpreter bound at /opt/python needs in order to find its own shared library."""
    if interpreter.source is not None and sysconfig.get_config_var("Py_ENABLE_SHARED"):
        return {"LD_LIBRARY_PATH": f"{INSIDE_PREFIX}/lib"}
    return {}
