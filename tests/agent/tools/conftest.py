"""Sandboxes for the tools that need one; they are skipped where nothing isolates."""

import asyncio

import pytest

from baleen.agent.sandbox import Sandbox, SandboxUnavailable


@pytest.fixture(scope="session")
def isolation():
    """Skips where no sandbox can be started."""

    async def probe():
        async with Sandbox():
            pass

    try:
        asyncio.run(probe())
    except SandboxUnavailable as reason:
        pytest.skip(str(reason))
