"""A Dockerfile's recipe without Docker: what to copy, what to run, where to work, with which variables.

A sandbox has the host's system and no network, so the image of `FROM` is not what lies below: a recipe works here when
the programs that it needs are on this machine. What cannot be meant here (several stages, copies from other images,
downloads) is refused by name rather than passed over.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import PurePosixPath

_LATER = ("CMD", "ENTRYPOINT", "EXPOSE", "HEALTHCHECK", "LABEL", "MAINTAINER", "STOPSIGNAL", "USER", "VOLUME")
"""Instructions about running an image as a service, which a task's box is not."""

_VARIABLE = re.compile(r"\$(?:\{(\w+)(?::-([^}]*))?\}|(\w+))")


class RecipeError(ValueError):
    """A Dockerfile that cannot be followed here."""


@dataclass(frozen=True)
class Copy:
    """Files of the build's folder, put to `target`: a folder when it ends in a slash."""

    sources: tuple[str, ...]
    target: str


@dataclass(frozen=True)
class Run:
    """A shell command, run in `folder` while the box is built."""

    command: str
    folder: str
    variables: dict[str, str]


@dataclass(frozen=True)
class Recipe:
    """What a Dockerfile asks for, in its order."""

    steps: tuple[Copy | Run, ...] = ()
    workdir: str = "/"
    variables: dict[str, str] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    """Folders that must exist: every WORKDIR."""

    @property
    def paths(self) -> tuple[str, ...]:
        """All absolute paths that it speaks of."""
        return (*self.folders, *(step.target for step in self.steps if isinstance(step, Copy)))


def read_recipe(text: str) -> Recipe:
    """The recipe of a Dockerfile. Raises `RecipeError` naming the line that cannot be followed."""
    reading = _Reading()
    for instruction, rest in _instructions(text):
        reading.take(instruction, rest)
    if not reading.stages:
        raise RecipeError("the Dockerfile has no FROM")
    return Recipe(tuple(reading.steps), reading.workdir, reading.variables, tuple(dict.fromkeys(reading.folders)))


class _Reading:
    """A Dockerfile read so far."""

    def __init__(self) -> None:
        self.stages = 0
        self.steps: list[Copy | Run] = []
        self.workdir = "/"
        self.variables: dict[str, str] = {}
        self.arguments: dict[str, str] = {}
        self.folders: list[str] = []

    def take(self, instruction: str, rest: str) -> None:
        if instruction == "FROM":
            self.stages += 1
            if self.stages > 1:
                raise RecipeError("the Dockerfile builds in several stages; only one can be followed here")
        elif instruction == "WORKDIR":
            self.workdir = self._absolute(self._filled(rest))
            self.folders.append(self.workdir)
        elif instruction == "ENV":
            self.variables |= self._assignments(rest)
        elif instruction == "ARG":
            name, _, value = rest.partition("=")
            self.arguments[name] = self._filled(_unquoted(value))
        elif instruction in ("COPY", "ADD"):
            self.steps.append(self._copy(instruction, rest))
        elif instruction == "RUN":
            self.steps.append(self._run(rest))
        elif instruction == "SHELL":
            raise RecipeError(f"SHELL {rest} cannot be followed here; commands run in bash")
        elif instruction not in _LATER:
            raise RecipeError(f"unknown instruction {instruction}")

    def _copy(self, instruction: str, rest: str) -> Copy:
        words = self._words(rest)
        flags = [word for word in words if word.startswith("--")]
        if any(flag.startswith("--from") for flag in flags):
            raise RecipeError(f"{instruction} {rest}: files of another image cannot be had here")
        *sources, target = [self._filled(word) for word in words if not word.startswith("--")] or [""]
        if any("://" in source for source in sources):
            raise RecipeError(f"{instruction} {rest}: there is no network here")
        if not sources:
            raise RecipeError(f"{instruction} {rest}: a source and a target are needed")
        ends = "/" if target.endswith(("/", "/.")) or target == "." or len(sources) > 1 else ""
        return Copy(tuple(sources), self._absolute(target).rstrip("/") + ends or "/")

    def _run(self, rest: str) -> Run:
        while rest.startswith("--"):  # mounts of caches and secrets: nothing that the result depends on
            rest = rest.partition(" ")[2].lstrip()
        listed = _listed(rest)
        command = rest if listed is None else shlex.join(listed)
        return Run(command, self.workdir, {**self.arguments, **self.variables})

    def _words(self, rest: str) -> list[str]:
        listed = _listed(rest)
        return _split(rest) if listed is None else listed

    def _assignments(self, rest: str) -> dict[str, str]:
        if not rest:
            raise RecipeError("ENV needs a name and a value")
        if "=" not in rest.split(maxsplit=1)[0]:  # the old form: one name, and all the rest its value
            name, _, value = rest.partition(" ")
            return {name: self._filled(value.strip())}
        pairs = (word.partition("=") for word in _split(rest))
        return {name: self._filled(value) for name, _, value in pairs}

    def _filled(self, text: str) -> str:
        known = {**self.arguments, **self.variables}
        return _VARIABLE.sub(lambda match: known.get(match[1] or match[3]) or match[2] or "", text)

    def _absolute(self, path: str) -> str:
        parts: list[str] = []
        for part in PurePosixPath(self.workdir, path).parts[1:]:
            parts = parts[:-1] if part == ".." else [*parts, part]
        return "/" + "/".join(parts)


def _instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, its text) for each, continued lines joined, comments left out."""
    found, pending = [], ""
    for line in text.splitlines():
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        if "<<" in stripped and stripped.split(maxsplit=1)[0].upper() in ("RUN", "COPY", "ADD"):
            raise RecipeError(f"{stripped}: text inside the Dockerfile cannot be followed here; put it in a file")
        if stripped.endswith("\\"):
            pending += stripped[:-1].rstrip() + " "
            continue
        instruction, _, rest = (pending + stripped).partition(" ")
        found.append((instruction.upper(), rest.strip()))
        pending = ""
    if pending:
        raise RecipeError("the Dockerfile ends in the middle of a line")
    return found


def _listed(rest: str) -> list[str] | None:
    """The words of an instruction's JSON form; None for the shell form, which may begin with a bracket too."""
    try:
        words = json.loads(rest)
    except (ValueError, RecursionError):
        return None
    return words if isinstance(words, list) and all(isinstance(word, str) for word in words) else None


def _split(rest: str) -> list[str]:
    try:
        return shlex.split(rest)
    except ValueError as error:
        raise RecipeError(f"{rest}: {error}") from error


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'" else value
