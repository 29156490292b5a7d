"""The tier `bubblewrap`: every namespace unshared, an unprivileged user, no network, a minimal file system.

Read-only /usr and the running interpreter, one bounded tmpfs for workspace, /tmp and /dev/shm together, an empty
environment, no capability, no nested user namespace, a seccomp filter. Privileges are dropped before bubblewrap starts:
RLIMIT_NPROC does not bind root, and root's bubblewrap keeps capabilities in its namespace.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from baleen.agent.sandbox.launch import (
    INSIDE_PREFIX,
    NOBODY,
    Launch,
    base_environment,
    inside_library_path,
    interpreters,
    shown_to_nobody,
    unprivileged_user,
)
from baleen.agent.sandbox.seccomp import program_filter, seccomp_filter

_BOX = "/box"
_SETTINGS = (
    ("--ro-bind-data", f"nobody:x:{NOBODY}:{NOBODY}:nobody:{_BOX}/work:/bin/sh\n".encode(), "/etc/passwd"),
    ("--ro-bind-data", f"nogroup:x:{NOBODY}:\n".encode(), "/etc/group"),
    ("--ro-bind-data", b"127.0.0.1 localhost sandbox\n::1 localhost\n", "/etc/hosts"),
)
"""Files that programs expect; nothing of the host's is in them."""

_LINKS = {"/dev/shm": f"{_BOX}/shm", "/tmp": f"{_BOX}/tmp", "/workspace": f"{_BOX}/work"}
_DEVICES = ("null", "zero", "full", "random", "urandom")


def bubblewrap_launches(disk_bytes: int, readable: Sequence[str], links: Mapping[str, str]) -> Iterator[Launch]:
    """The ways to start inside bubblewrap, best first: with the running interpreter, then with the system's."""
    bubblewrap = shutil.which("bwrap")
    if bubblewrap is None or sys.platform != "linux":
        return
    program = seccomp_filter()
    for interpreter in interpreters():
        arguments = [*_drop_privileges(), bubblewrap, *_namespaces(bubblewrap)]
        inside = base_environment(_BOX, [str(Path(interpreter.path).parent)])
        inside |= inside_library_path(interpreter)
        for name, value in inside.items():
            arguments += ["--setenv", name, value]
        arguments += _file_system(disk_bytes)
        if interpreter.source is not None:
            arguments += ["--ro-bind", interpreter.source, INSIDE_PREFIX]
        for folder in readable:
            arguments += ["--ro-bind", shown_to_nobody(folder) or folder, place_inside(folder)]
        settings_at = len(arguments)
        for path, target in links.items():
            arguments += ["--symlink", f"{_BOX}/work/{target}", path]
        arguments += ["--remount-ro", "/", "--chdir", _BOX]
        yield Launch(
            "bubblewrap",
            (*arguments, "--", interpreter.path),
            {},
            _BOX,
            isolated=True,
            same_interpreter=interpreter.same,
            has_monitor=True,
            piped=(*_SETTINGS, *([("--seccomp", program, "")] if program is not None else [])),
            piped_at=settings_at,
            program_filters=tuple(filter(None, [program_filter()])),
            weaknesses=() if program is not None else ("no system call filter is known for this machine",),
        )


def place_inside(folder: str) -> str:
    """Where a readable folder is mounted: /tmp and its like are links into the box, and a mount follows no link."""
    for link, target in _LINKS.items():
        if folder.startswith(link + "/"):
            return target + folder.removeprefix(link)
    return folder


@cache
def _drop_privileges() -> list[str]:
    if unprivileged_user() is None:
        return []
    identity = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"]
    return [shutil.which("setpriv") or "setpriv", *identity]


def _namespaces(bubblewrap: str) -> list[str]:
    identity = ["--uid", str(NOBODY), "--gid", str(NOBODY), "--hostname", "sandbox", "--cap-drop", "ALL"]
    life = ["--die-with-parent", "--new-session", "--as-pid-1", "--clearenv"]
    return ["--unshare-all", "--unshare-user", *_nested_namespaces_off(bubblewrap), *identity, *life]


@cache
def _nested_namespaces_off(bubblewrap: str) -> list[str]:
    text = subprocess.run([bubblewrap, "--help"], capture_output=True, text=True, check=False)
    return ["--disable-userns"] if "--disable-userns" in text.stdout + text.stderr else []


@cache
def _system() -> tuple[str, ...]:
    arguments = ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        path = Path("/", name)
        if path.is_symlink():
            arguments += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            arguments += ["--ro-bind", str(path), str(path)]
    for path in map(Path, ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime")):
        arguments += ["--ro-bind-try", str(path), str(path)]
    return tuple(arguments)


def _file_system(disk_bytes: int) -> list[str]:
    arguments = list(_system())
    # Not `--dev`: its tmpfs has no bound, and /dev/shm would be a way around the disk limit.
    for device in _DEVICES:
        arguments += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    for link, target in {"/dev/fd": "/proc/self/fd", **_LINKS}.items():
        arguments += ["--symlink", target, link]
    return [*arguments, "--proc", "/proc", "--size", str(disk_bytes), "--tmpfs", _BOX]
