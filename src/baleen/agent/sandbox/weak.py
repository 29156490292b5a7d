"""The tiers without namespaces: `landlock`, which isolates with gaps that are named, and `none`, which does not.

landlock: files by Landlock (nothing of the host but the system's programs, the workspace writable), system calls by the
seccomp filter with every kind of socket denied (so no network, but no loopback either), an unprivileged user and an
environment of its own, resource limits. Not held: the host's process list is hidden only because /proc is; the disk is
bounded per file, not in sum; processes count together with the user's others, and modes, owners, times and attributes
of that user's own files can be changed anywhere.
none: an unprivileged user, a session and an environment of its own, resource limits; files and network are open.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from baleen.agent.sandbox.guest.walls import landlock_version
from baleen.agent.sandbox.launch import Launch, base_environment, own_python, reachable, unprivileged_user
from baleen.agent.sandbox.seccomp import program_filter, seccomp_filter

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_SETTINGS = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime")
_READABLE_DEVICES, _WRITABLE_DEVICES = ("/dev/zero", "/dev/random", "/dev/urandom"), ("/dev/null", "/dev/full")
_SCOPED_SINCE = 6
"""The version of Landlock's interface that keeps signals and abstract sockets in."""

LANDLOCK_GAPS = (
    "no namespaces: no loopback, no /proc, and the disk is bounded per file only",
    "chmod, chown, utime and setxattr reach files outside that belong to the programs' user",
    "install bubblewrap and allow user namespaces for the full isolation",
)


def landlock_launch(box: str, readable: Sequence[str]) -> Launch | None:
    """The way to start with Landlock and seccomp in the existing folder `box`; None where the kernel lacks them."""
    program = seccomp_filter(network=False) if sys.platform == "linux" else None
    python = _interpreter()
    if program is None or python is None or landlock_version() < _SCOPED_SINCE:
        return None
    prefix = [str(Path(sys.base_prefix))] if python == str(own_python()) else []
    walls: dict[str, object] = {
        "readable": [*_SYSTEM, *_SETTINGS, *_READABLE_DEVICES, *prefix, *readable],
        "writable": [box, *_WRITABLE_DEVICES],
    }
    filters = tuple(filter(None, [program, program_filter()]))
    return _launch("landlock", python, box, walls, filters, LANDLOCK_GAPS)


def open_launch(box: str) -> Launch | None:
    """The way to start without isolation in the existing folder `box`; None when no interpreter can be reached."""
    python = _interpreter()
    return None if python is None else _launch("none", python, box, None, (), ())


def _launch(
    tier: str,
    python: str,
    box: str,
    walls: dict[str, object] | None,
    filters: tuple[bytes, ...],
    weaknesses: tuple[str, ...],
) -> Launch:
    return Launch(
        "landlock" if tier == "landlock" else "none",
        (python,),
        base_environment(box, [str(Path(python).parent)]),
        box,
        isolated=False,
        temporary=box,
        same_interpreter=python == str(own_python()),
        user=unprivileged_user(),
        walls=walls,
        program_filters=filters,
        weaknesses=weaknesses,
    )


def _interpreter() -> str | None:
    candidates = [str(own_python()), "/usr/bin/python3", "/usr/local/bin/python3"]
    return next(
        (path for path in candidates if os.path.exists(path) and reachable(Path(path), unprivileged_user())), None
    )
