"""Before a run begins: can the programs that a model writes be kept away from this machine?

Better refused now than after an hour of training, in the first stage that runs one.
"""

from __future__ import annotations

import asyncio

from baleen.agent.sandbox import Sandbox, SandboxError, SandboxUnavailable
from baleen.pipeline.recipe import Recipe


class IsolationError(RuntimeError):
    """No sandbox here, and the recipe does not accept that; the message says how to get one, or how to go without."""


def check_isolation(recipe: Recipe) -> None:
    """Raises `IsolationError` where nothing isolates, unless `run.weak_sandbox` accepts it."""
    if recipe.run.weak_sandbox:
        return

    async def start() -> None:
        async with Sandbox():
            pass

    try:
        asyncio.run(start())
    except (SandboxUnavailable, SandboxError, OSError) as error:
        raise IsolationError(
            f"this recipe runs programs that its model writes: {error} (for a recipe: run.weak_sandbox=true)"
        ) from error
