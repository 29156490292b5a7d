"""Whose fault it is when a tool's sandbox fails: never the model's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from baleen.agent.environment import InfrastructureError
from baleen.agent.sandbox import SandboxError, SandboxUnavailable


@contextmanager
def sandbox_faults() -> Iterator[None]:
    """Turns a sandbox's own failures into `InfrastructureError`."""
    try:
        yield
    except (SandboxError, SandboxUnavailable) as error:
        raise InfrastructureError(f"the tool's sandbox failed: {error}") from error
