"""Some of these tests need what really isolates; where there is nothing, they are skipped and say why."""

import sys
from pathlib import Path

import pytest

from baleen.agent.sandbox import SandboxUnavailable

sys.path.insert(0, str(Path(__file__).parent))

from live import in_sandbox  # found beside the tests


@pytest.fixture(scope="session")
def isolation():
    async def nothing(_):
        return None

    try:
        in_sandbox(nothing)
    except SandboxUnavailable as reason:
        pytest.skip(str(reason))
