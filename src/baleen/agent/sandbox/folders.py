"""Whole folders between the host and a sandbox.

What comes out was named by a program that may mean harm: nothing is written outside the host's folder, a link is kept
only when it cannot lead out of it, and no special file comes along.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from baleen.agent.sandbox.limits import SandboxError

Entry = tuple[str, str, int, int, bytes]
"""Path below the folder, kind (`folder`, `file`, `link`), mode, modified in ns, content or target."""


def pack_folder(folder: Path) -> list[Entry]:
    """All below a folder of the host, a folder before what it holds; pipes, sockets and devices are left out.

    Raises `OSError`, for instance where the folder does not exist.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder")
    entries: list[Entry] = []
    for where, folders, files in os.walk(folder):
        for name in sorted([*folders, *files]):
            path = Path(where, name)
            status = path.lstat()
            kind, content = "file", b""
            if stat.S_ISDIR(status.st_mode):
                kind = "folder"
            elif stat.S_ISLNK(status.st_mode):
                kind, content = "link", os.fsencode(os.readlink(path))
            elif stat.S_ISREG(status.st_mode):
                content = path.read_bytes()
            else:
                continue
            entries.append(
                (str(path.relative_to(folder)), kind, stat.S_IMODE(status.st_mode), status.st_mtime_ns, content)
            )
    return sorted(entries, key=lambda entry: entry[0].split("/"))


def unpack_folder(entries: Iterable[Entry], folder: Path) -> None:
    """Writes entries from a sandbox below `folder`, which is made. Links that might lead out are left out.

    Raises `SandboxError` for a list that no honest guest would send.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = {PurePosixPath(".")}
    for name, kind, mode, modified, content in entries:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or path.parent not in made or path in made or not path.parts:
            raise SandboxError(f"the guest sends a file that is not below its folder: {name!r}")
        target = folder / path
        if target.is_symlink() or (target.exists() and kind == "link"):
            target.unlink()
        if kind == "folder":
            target.mkdir(exist_ok=True)
            made.add(path)
        elif kind == "link":
            if _stays_inside(path, os.fsdecode(content)):
                target.symlink_to(os.fsdecode(content))
        elif kind == "file":
            target.write_bytes(content)
            target.chmod(mode & 0o777)  # never setuid
            os.utime(target, ns=(modified, modified))


def _stays_inside(path: PurePosixPath, target: str) -> bool:
    """Whether a link at `path` leads no higher than the folder: `..` only in front, and no more than `path` is deep.

    Behind a name `..` could start from wherever another link leads.
    """
    parts = PurePosixPath(target).parts
    rises = next((index for index, part in enumerate(parts) if part != ".."), len(parts))
    return not PurePosixPath(target).is_absolute() and ".." not in parts[rises:] and rises < len(path.parts)
