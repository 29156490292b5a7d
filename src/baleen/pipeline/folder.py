"""The run folder: everything a run needs and everything it leaves, in one place.

    recipe.json     the frozen recipe, all values     clock.json    seconds so far per stage, peak memory
    recipe.toml     the recipe as it was given        run.lock      held while a run is under way
    stages/NN-name/ a stage's own files; done.json when it has finished
    summary.json    the whole run's numbers, written at the end

The folder belongs to one recipe. Opened with another one it refuses, says which keys differ, and touches nothing.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from baleen.pipeline.loading import flatten
from baleen.pipeline.recipe import Recipe
from baleen.training.records import write_json_atomic, write_text_atomic

OURS = ("stages", "summary.json", "clock.json", "recipe.toml")
"""Names that a run would overwrite: where they stand without a recipe.json, the folder is somebody else's."""

FULL_BELOW_BYTES = 1 << 20
"""With less free space than this, a failed write is taken for a full disk whatever the library called it."""


class RunFolderError(RuntimeError):
    """The run folder cannot be used as asked; the message says why and how to go on."""


class RunFolder:
    """A folder that holds one recipe's run. Made by `open_run_folder`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def stage_folder(self, index: int, name: str) -> Path:
        """`stages/NN-name`, made if need be; `index` counts from 1."""
        folder = self.path / "stages" / f"{index:02d}-{name}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def read(self, name: str) -> dict[str, Any] | None:
        """A JSON object of the folder, or None when it is not there. Raises `RunFolderError` when it is damaged."""
        file = self.path / name
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise RunFolderError(f"cannot read {file}: {error}") from error
        if not isinstance(value, dict):
            raise RunFolderError(f"{file} does not hold a JSON object")
        return value

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        """Writes a JSON object whole or not at all."""
        write_json_atomic(self.path / name, value)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder against a second run. Raises `RunFolderError` when another process has it.

        The operating system drops the lock with the process that held it, so a killed run leaves none behind.
        """
        file = self.path / "run.lock"
        with _explained(self.path):
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = file.read_text(encoding="utf-8").strip() or "unknown"
                raise RunFolderError(
                    f"another run is at work in {self.path} (process {holder}); "
                    "wait for it, end it, or give another --out"
                ) from error
            os.ftruncate(descriptor, 0)
            with _explained(self.path):
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(descriptor)


def open_run_folder(path: Path, recipe: Recipe, given: str = "") -> RunFolder:
    """The run folder at `path` for `recipe`: a new one, or the one of an earlier run of the very same recipe.

    `given` is the recipe as the user wrote it, kept beside the frozen one. Raises `RunFolderError`, with nothing
    touched, when the folder belongs to another recipe or to something else.
    """
    folder = RunFolder(path)
    if path.exists() and not path.is_dir():
        raise RunFolderError(f"{path} is a file; give a folder with --out")
    frozen = json.loads(recipe.model_dump_json())
    with _explained(path):
        found = folder.read("recipe.json")
        if found is None:
            _refuse_foreign(path)
            path.mkdir(parents=True, exist_ok=True)
            folder.write("recipe.json", frozen)
        elif found != frozen:
            raise RunFolderError(_difference(path, found, frozen))
        if given and not (path / "recipe.toml").exists():
            write_text_atomic(path / "recipe.toml", given)
        _check_writable(path)
    return folder


def explain(error: BaseException, path: Path) -> RunFolderError | None:
    """The error as something a person can act on, or None when it is not the folder's or the disk's."""
    code = error.errno if isinstance(error, OSError) else None
    text = str(error)
    go_on = "nothing that was saved is lost: the same command goes on from there"
    # safetensors and torch report a full disk as their own error types, with or without the system's words.
    if code in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in text or _failed_save(error, path):
        return RunFolderError(f"the disk that holds {path} is full. Free some space; {go_on}")
    if code in (errno.EACCES, errno.EPERM, errno.EROFS) and _inside(error, path):
        return RunFolderError(f"cannot write in {path}: {text}. Give a folder you may write to with --out")
    return None


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise explain(error, path) or RunFolderError(f"cannot use {path} as a run folder: {error}") from error


def _failed_save(error: BaseException, path: Path) -> bool:
    if not isinstance(error, RuntimeError) or "write" not in str(error):
        return False
    return path.exists() and shutil.disk_usage(path).free < FULL_BELOW_BYTES


def _inside(error: BaseException, path: Path) -> bool:
    name = getattr(error, "filename", None)
    if not isinstance(name, str):
        return False
    where, run = Path(name).absolute(), path.absolute()
    # A parent counts: the folder itself may be what cannot be made.
    return where.is_relative_to(run) or run.is_relative_to(where)


def _check_writable(path: Path) -> None:
    """A stage would find out only at its first checkpoint."""
    write_text_atomic(path / ".writable", "")
    (path / ".writable").unlink()


def _refuse_foreign(path: Path) -> None:
    foreign = [name for name in OURS if (path / name).exists()]
    if foreign:
        raise RunFolderError(
            f"{path} holds {', '.join(foreign)} but no recipe.json, so it is not a run folder of ours; "
            "give another --out (nothing was touched)"
        )


def _difference(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    before, now = dict(flatten(found)), dict(flatten(wanted))
    absent = "(not set)"
    lines = [
        f"  {key}: {before.get(key, absent)!r} there, {now.get(key, absent)!r} asked"
        for key in sorted(before.keys() | now.keys())
        if before.get(key, absent) != now.get(key, absent)
    ]
    return (
        f"{path} is the run folder of another recipe; nothing was touched. These keys differ:\n"
        + "\n".join(lines)
        + "\nTo go on with that run give the same recipe and overrides; to start a new one give another --out."
    )
