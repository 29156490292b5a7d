"""A live sandbox for the tests of this folder."""

import asyncio

from baleen.agent.sandbox import Limits, Sandbox

LIMITS = Limits(memory_bytes=256 << 20, processes=16, disk_bytes=8 << 20)


def in_sandbox(work, **options):
    """What the coroutine function gives for a sandbox that it has to itself."""

    async def main():
        async with Sandbox(LIMITS, **options) as sandbox:
            return await work(sandbox)

    return asyncio.run(main())
