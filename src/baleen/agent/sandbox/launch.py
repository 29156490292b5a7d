"""The walls: how the guest server is started in each tier.

bubblewrap: every namespace unshared, an unprivileged user, no network, a read-only file system of /usr and the running
interpreter, one bounded tmpfs for workspace, /tmp and /dev/shm together, an empty environment, a seccomp filter.
process: an unprivileged user, a session and an environment of its own, resource limits; files and network are open.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from baleen.agent.sandbox.seccomp import seccomp_filter

Tier = Literal["bubblewrap", "process"]

NOBODY = 65534
_BOX = "/box"
_INSIDE_PREFIX = "/opt/python"
_DEVICES = ("null", "zero", "full", "random", "urandom")


@dataclass(frozen=True)
class Launch:
    """One way to start the guest. `arguments` goes before the guest's own; `box` is its folder as it sees it."""

    tier: Tier
    arguments: tuple[str, ...]
    environment: dict[str, str]
    box: str
    user: int | None = None
    seccomp: bytes | None = None


def isolated_launches(disk_bytes: int) -> Iterator[Launch]:
    """The ways to start inside bubblewrap, best first: with the running interpreter, then with the system's."""
    bubblewrap = shutil.which("bwrap")
    if bubblewrap is None or sys.platform != "linux":
        return
    for interpreter in _interpreters():
        before, prefix, python = interpreter
        arguments = [*before, *_drop_privileges(), bubblewrap, *_namespaces(bubblewrap)]
        environment = _environment(_BOX, [str(Path(python).parent)])
        if prefix is not None and sysconfig.get_config_var("Py_ENABLE_SHARED"):
            environment["LD_LIBRARY_PATH"] = f"{_INSIDE_PREFIX}/lib"
        for name, value in environment.items():
            arguments += ["--setenv", name, value]
        arguments += _file_system(disk_bytes)
        if prefix is not None:
            arguments += ["--ro-bind", prefix, _INSIDE_PREFIX]
        arguments += ["--remount-ro", "/", "--chdir", _BOX]
        # The session adds `--seccomp FD` in front of the last part.
        yield Launch("bubblewrap", (*arguments, "--", python), {}, _BOX, seccomp=seccomp_filter())


def process_launch(box: str) -> Launch | None:
    """The way to start without isolation in the existing folder `box`; None when no interpreter can be reached."""
    user = NOBODY if os.getuid() == 0 else None
    own = _own_python()
    candidates = [str(own), "/usr/bin/python3", "/usr/local/bin/python3"]
    python = next((path for path in candidates if _reachable(Path(path), user)), None)
    if python is None:
        return None
    return Launch("process", (python,), _environment(box, [str(Path(python).parent)]), box, user=user)


def _interpreters() -> Iterator[tuple[list[str], str | None, str]]:
    """(command in front, prefix to bind at /opt/python, interpreter as seen inside)."""
    own, prefix = _own_python(), Path(sys.base_prefix)
    user = NOBODY if os.getuid() == 0 else None
    inside = f"{_INSIDE_PREFIX}/{own.relative_to(prefix)}" if own.is_relative_to(prefix) else ""
    if prefix.is_relative_to("/usr"):
        yield [], None, str(own)
        return
    if inside and _reachable(own, user):
        yield [], str(prefix), inside
    elif inside and shutil.which("unshare") and os.path.isdir("/mnt"):
        # Root's home is closed to the unprivileged user; a mount namespace of its own shows it only this folder.
        script = 'mount --bind "$0" /mnt && exec "$@"'
        yield ["unshare", "--mount", "--propagation=private", "sh", "-c", script, str(prefix)], "/mnt", inside
    if os.path.exists("/usr/bin/python3"):
        yield [], None, "/usr/bin/python3"


def _own_python() -> Path:
    """The running interpreter itself: not a virtual environment's link, not a version manager's shim."""
    return Path(os.path.realpath(Path(sys.base_prefix) / "bin" / "python3"))


def _reachable(path: Path, user: int | None) -> bool:
    """Whether `user` (None: the current one) may execute `path`, by the permissions for others."""
    if not path.exists():
        return False
    if user is None:
        return os.access(path, os.X_OK)
    return all(part.stat().st_mode & stat.S_IXOTH for part in (path, *path.parents))


def _drop_privileges() -> list[str]:
    # RLIMIT_NPROC is ignored for root, and root's bubblewrap keeps capabilities: drop before, not inside.
    if os.getuid() != 0:
        return []
    return [
        shutil.which("setpriv") or "setpriv",
        f"--reuid={NOBODY}",
        f"--regid={NOBODY}",
        "--clear-groups",
        "--no-new-privs",
    ]


def _namespaces(bubblewrap: str) -> list[str]:
    identity = ["--uid", str(NOBODY), "--gid", str(NOBODY), "--hostname", "sandbox", "--cap-drop", "ALL"]
    life = ["--die-with-parent", "--new-session", "--as-pid-1", "--clearenv"]
    return ["--unshare-all", "--unshare-user", *_nested_namespaces_off(bubblewrap), *identity, *life]


def _nested_namespaces_off(bubblewrap: str) -> list[str]:
    import subprocess

    text = subprocess.run([bubblewrap, "--help"], capture_output=True, text=True, check=False)
    return ["--disable-userns"] if "--disable-userns" in text.stdout + text.stderr else []


def _file_system(disk_bytes: int) -> list[str]:
    arguments = ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        path = Path("/", name)
        if path.is_symlink():
            arguments += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            arguments += ["--ro-bind", str(path), str(path)]
    for path in map(Path, ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime")):
        arguments += ["--ro-bind-try", str(path), str(path)]
    # Not `--dev`: its tmpfs has no bound, and /dev/shm would be a way around the disk limit.
    for device in _DEVICES:
        arguments += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    links = {"/proc/self/fd": "/dev/fd", f"{_BOX}/shm": "/dev/shm", f"{_BOX}/tmp": "/tmp", f"{_BOX}/work": "/workspace"}
    for target, link in links.items():
        arguments += ["--symlink", target, link]
    return [*arguments, "--proc", "/proc", "--size", str(disk_bytes), "--tmpfs", _BOX]


def _environment(box: str, path: list[str]) -> dict[str, str]:
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
