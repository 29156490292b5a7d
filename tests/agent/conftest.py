"""Makes what lies here importable beside the tests, and skips those that need a sandbox where nothing isolates."""

import asyncio
import sys
from pathlib import Path

import pytest

from baleen.agent.sandbox import Sandbox, SandboxUnavailable

sys.path.insert(0, str(Path(__file__).parent))


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
