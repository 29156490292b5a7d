"""What every attack shares: a live sandbox, a way to try something in it, and the proof that it survived."""

import asyncio
import sys
import textwrap
from pathlib import Path

import pytest

from baleen.agent.sandbox import Sandbox, SandboxUnavailable

sys.path.insert(0, str(Path(__file__).parent))

from attack_program import LIMITS, PRELUDE  # found beside the tests


@pytest.fixture(scope="session", autouse=True)
def _isolation():
    async def probe():
        async with Sandbox(LIMITS, tier="bubblewrap"):
            pass

    try:
        asyncio.run(probe())
    except SandboxUnavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def inside():
    """Runs a coroutine function with a live sandbox, and checks afterwards that the sandbox still works."""

    def run(attack, limits=LIMITS, **options):
        async def main():
            async with Sandbox(limits, tier="bubblewrap", **options) as sandbox:
                result = await attack(sandbox)
                alive = await sandbox.run(["echo", "alive"])
                assert (alive.stdout, alive.exit_code) == ("alive\n", 0)
                assert (await sandbox.run_python("6 * 7")).stdout == "42\n"
                return result

        return asyncio.run(main())

    return run


@pytest.fixture
def attempt(inside):
    """Runs Python in a sandbox; what it prints as BREACH is a hole, and it must have come to its end."""

    def run(code, timeout=10.0, limits=LIMITS, **options):
        program = PRELUDE + textwrap.dedent(code) + "\nprint('tried')\n"
        result = inside(lambda sandbox: sandbox.run_python(program, timeout=timeout), limits, **options)
        assert "BREACH" not in result.stdout, result
        assert result.stdout.endswith("tried\n"), result
        return result

    return run
