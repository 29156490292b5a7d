"""What sampling decided, kept beside the episodes: arrays in compressed files, named by what they hold.

A record points to its trace as `FILE#i`, the i-th completion of the episode. Traces are large (selected positions grow
with length times layers) and of use to training alone, so they stay out of the JSON lines.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from baleen.agent.policy import Completion
from baleen.engine.trace import Trace


class TraceError(LookupError):
    """A trace that a record points to cannot be read."""


class TraceFolder:
    """The folder at `path`, made when the first trace is saved."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def save(self, completions: Sequence[Completion]) -> list[str | None]:
        """Keeps the traces of one episode; a reference for each completion, None where it has no trace. The same
        traces have the same name, so saving them twice changes nothing."""
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        for index, completion in enumerate(completions):
            if completion.trace is not None:
                arrays |= {f"{index}.{name}": array for name, array in _parts(completion.trace)}
        if not arrays:
            return [None] * len(completions)
        file = self.path / f"{_digest(completions, arrays)}.npz"
        if not file.exists():
            self.path.mkdir(parents=True, exist_ok=True)
            temporary = file.with_suffix(f".{os.getpid()}.tmp")
            with open(temporary, "wb") as stream:
                np.savez_compressed(stream, allow_pickle=False, **arrays)
            os.replace(temporary, file)
        return [
            f"{file.name}#{i}" if completion.trace is not None else None for i, completion in enumerate(completions)
        ]

    def load(self, reference: str) -> Trace:
        """The trace behind a reference. Raises `TraceError` when the file is missing or another."""
        name, _, index = reference.partition("#")
        try:
            with np.load(self.path / Path(name).name, allow_pickle=False) as arrays:
                prefix = f"{index}."
                return Trace(**{key.removeprefix(prefix): arrays[key] for key in arrays if key.startswith(prefix)})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise TraceError(f"no trace {reference} in {self.path}: {error}") from error


def _parts(trace: Trace) -> list[tuple[str, np.ndarray[Any, Any]]]:
    values = [(field.name, getattr(trace, field.name)) for field in fields(trace)]
    return [(name, np.asarray(value)) for name, value in values if value is not None]


def _digest(completions: Sequence[Completion], arrays: dict[str, np.ndarray[Any, Any]]) -> str:
    digest = hashlib.blake2b(digest_size=12)
    for completion in completions:
        digest.update(repr((completion.prompt_tokens, completion.sampled_tokens)).encode())
    for name, array in arrays.items():
        digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
