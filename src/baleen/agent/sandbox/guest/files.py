"""The workspace: files in and out, and back to how it was.

A program may leave anything here: named pipes, links to elsewhere, folders a million levels deep, files of a terabyte
that hold nothing. So nothing is opened that could block, no link is followed out of the workspace, no walk recurses.
"""

from __future__ import annotations

import errno
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    Entry = tuple[str, str, int, int, bytes]

FOLDERS = ("work", "tmp", "shm")
_DESCRIPTORS = "/proc/self/fd"
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # opening a named pipe would otherwise stop the server for good
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK


class Workspace:
    """The folders of a sandbox that can be written: workspace, temporary files, shared memory."""

    def __init__(self, box: str, disk_bytes: int, bound: list[str], linked: list[str]) -> None:
        self.box = box
        self._bound = _Bound(bound)
        self._linked = linked
        self.disk_bytes = disk_bytes
        self.folder = os.path.join(box, "work")
        self._snapshot: list[Entry] = []
        self._make_folders()

    def _make_folders(self) -> None:
        for name in FOLDERS:
            os.makedirs(os.path.join(self.box, name), exist_ok=True)
        for name in self._linked:
            os.makedirs(os.path.join(self.folder, name), exist_ok=True)

    def inside(self, path: str) -> str:
        """`path` with links resolved; refused when that is not in one of the folders."""
        if "\0" in path:
            raise OSError(errno.EINVAL, "a path has no zero bytes")
        target = os.path.realpath(os.path.join(self.folder, path))
        if path != self.box and not self._holds(target):
            raise PermissionError(errno.EACCES, "outside the workspace")
        return target

    def write(self, path: str, content: bytes, mode: int = 0o644) -> None:
        target = self.inside(path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(self._opened(target, _WRITE, mode), "wb") as file:
            file.truncate()
            file.write(content)

    def read(self, path: str, most: int | None = None) -> bytes:
        """A regular file. Raises `OSError` (EFBIG) when it is larger than `most`, or than the disk (a sparse file)."""
        if most is None or most > self.disk_bytes:
            return self._content(path, self.disk_bytes, "larger than the workspace")
        return self._content(path, most, f"larger than the {most} bytes that may be read")

    def _content(self, path: str, most: int, complaint: str) -> bytes:
        with open(self._opened(self.inside(path), _READ), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise OSError(errno.EFBIG, complaint)
            return file.read(size)  # no more, should it grow meanwhile

    def _opened(self, target: str, flags: int, mode: int = 0o644) -> int:
        """A descriptor of a regular file that lies in one of the folders even now: a running program may have put a
        link in the place of a folder since `target` was resolved."""
        descriptor = os.open(target, flags, mode)
        try:
            kind = os.fstat(descriptor).st_mode
            if stat.S_ISDIR(kind):
                raise IsADirectoryError(errno.EISDIR, "is a directory")
            if not stat.S_ISREG(kind):
                raise OSError(errno.EINVAL, "not a regular file")
            if os.path.isdir(_DESCRIPTORS) and not self._holds(os.readlink(f"{_DESCRIPTORS}/{descriptor}")):
                raise PermissionError(errno.EACCES, "outside the workspace")
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _holds(self, path: str) -> bool:
        roots = [os.path.join(self.box, name) for name in FOLDERS]
        return path in roots or any(path.startswith(root + os.sep) for root in roots)

    def names(self, path: str) -> list[str]:
        """Names in a folder, sorted; folders end in a slash."""
        with os.scandir(self.inside(path)) as entries:
            return sorted(entry.name + "/" * entry.is_dir(follow_symlinks=False) for entry in entries)

    def touched(self) -> bool:
        """Whether any of the folders holds anything, folders lent by the host aside, or cannot be seen any more."""
        roots = [os.path.join(self.box, name) for name in FOLDERS]
        try:
            return any(os.path.join(root, name) not in self._bound.parts for root in roots for name in os.listdir(root))
        except OSError:
            return True  # a program has removed or closed one

    def pack(self, path: str) -> list[Entry]:
        """All below a folder as (path, kind, mode, modified in ns, content), a folder before what it holds.

        Kinds are `folder`, `file` and `link`; pipes and sockets are left out. Raises `OSError` (EFBIG) when the files
        together are larger than the disk.
        """
        root = self.inside(path)
        room, entries = self.disk_bytes, []
        for name, status in _below(root, self._bound):
            full, mode, modified = os.path.join(root, name), stat.S_IMODE(status.st_mode), status.st_mtime_ns
            if stat.S_ISDIR(status.st_mode):
                entries.append((name, "folder", mode, modified, b""))
            elif stat.S_ISLNK(status.st_mode):
                entries.append((name, "link", mode, modified, os.fsencode(os.readlink(full))))
            elif stat.S_ISREG(status.st_mode):
                content = self._owned(full, room)
                room -= len(content)
                entries.append((name, "file", mode, modified, content))
        return entries

    def _owned(self, full: str, room: int) -> bytes:
        try:
            return self._content(full, room, "larger than the workspace")
        except PermissionError:
            os.chmod(full, 0o600)  # a file of ours that its program closed to itself
            return self._content(full, room, "larger than the workspace")

    def unpack(self, path: str, entries: list[Entry]) -> None:
        """Writes what `pack` gave."""
        root = self.inside(path)
        os.makedirs(root, exist_ok=True)
        for name, kind, mode, modified, content in entries:
            full = os.path.join(root, name)
            if kind == "folder":
                os.makedirs(full, exist_ok=True)
            elif kind == "link":
                if os.path.lexists(full):
                    os.unlink(full)
                os.symlink(content, os.fsencode(full))
            else:
                self.write(full, content)
                os.chmod(full, mode)
                os.utime(full, ns=(modified, modified))
        for name, kind, mode, modified, _ in reversed(entries):
            if kind == "folder":
                os.chmod(os.path.join(root, name), mode)
                os.utime(os.path.join(root, name), ns=(modified, modified))

    def snapshot(self) -> None:
        """Remembers the folders, in the memory of this process, which no program can change.

        A fork that runs Python begins with a copy of it: that calls `forget`, but traces of it may remain readable.
        """
        self._snapshot = self.pack(self.box)

    def forget(self) -> None:
        """Drops the snapshot, in a fork that has no use for it."""
        self._snapshot = []

    def reset(self) -> None:
        """The folders as they were at the snapshot, empty without one. Nothing else may run meanwhile."""
        empty(self.box, self._bound)
        self._make_folders()
        os.chdir(self.folder)
        self.unpack(self.box, self._snapshot)


class _Bound:
    """Folders of the host that are mounted within ours: neither packed nor removed. `parts`: they and those above."""

    def __init__(self, folders: list[str]) -> None:
        self.folders = frozenset(folders)
        self.parts = {
            "/".join(folder.split("/")[:depth]) for folder in folders for depth in range(2, folder.count("/") + 2)
        }


def empty(folder: str, bound: _Bound) -> None:
    """Removes all that is in a folder. Inner folders are moved to the top first: no depth is too deep for that."""
    number = 0
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        os.chmod(current, 0o700)
        with os.scandir(current) as scan:
            entries = [(entry.path, entry.is_dir(follow_symlinks=False)) for entry in scan]
        for path, is_folder in entries:
            if path in bound.folders:
                continue
            if not is_folder:
                os.unlink(path)
                continue
            if current != folder and path not in bound.parts:
                number += 1
                while os.path.lexists(moved := os.path.join(folder, f"{_MOVED}{number}")):
                    number += 1  # a program has taken the name
                os.chmod(path, 0o700)  # a folder that may not be written cannot be moved
                os.rename(path, moved)
                path = moved
            waiting.append(path)
        if current != folder and current not in bound.parts:
            os.rmdir(current)


_MOVED = ".baleen-removed-"


def _below(root: str, bound: _Bound) -> Iterator[tuple[str, os.stat_result]]:
    waiting = [""]
    while waiting:
        current = waiting.pop()
        folder = os.path.join(root, current)
        status = os.lstat(folder)
        if status.st_mode & 0o700 != 0o700:
            os.chmod(folder, stat.S_IMODE(status.st_mode) | 0o700)
        with os.scandir(folder) as scan:
            names = sorted(entry.name for entry in scan)
        for name in names:
            path = os.path.join(current, name)
            status = os.lstat(os.path.join(root, path))
            if os.path.join(root, path) in bound.folders:
                continue
            yield path, status
            if stat.S_ISDIR(status.st_mode):
                waiting.append(path)
