"""Where the SDK's programs run: this environment's 2.x, and a 1.x where one was installed (`make peers`)."""

import asyncio
import contextlib
import os
import socket
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PEERS = Path(os.environ.get("BALEEN_PEERS", Path(__file__).parents[3] / ".venv-peers"))
OLD = PEERS / "mcp1" / "bin" / "python"

SDKS = [
    pytest.param(sys.executable, id="sdk-2"),
    pytest.param(
        str(OLD),
        id="sdk-1",
        marks=pytest.mark.skipif(not OLD.exists(), reason=f"no mcp 1.x in {OLD.parents[1]}: make peers"),
    ),
]


async def wait_for_port(port, process):
    for _ in range(600):
        assert process.returncode is None, "the server ended before it listened"
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        await asyncio.sleep(0.05)
    raise AssertionError("the server does not listen")


@contextlib.asynccontextmanager
async def foreign_http_server(python):
    """The URL of the foreign server, listening in a process of its own; and the process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        python, str(HERE / "foreign_server.py"), "http", str(port), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        await wait_for_port(port, process)
        yield f"http://127.0.0.1:{port}/mcp", process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
