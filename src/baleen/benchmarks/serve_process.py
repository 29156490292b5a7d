"""The server under measurement: the program `baleen serve` in processes of its own, and what they take of memory."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from baleen.benchmarks.serve_client import Address, get
from baleen.benchmarks.worker import end_with_parent

PAGES_USED, CACHED_TOKENS = "baleen_kv_cache_pages_used", "baleen_prefix_cache_hits_total"
"""Names in `/metrics`: pages held by requests, prompt tokens that were found in the cache."""

END_SECONDS = 30.0


class Served:
    """A running server."""

    def __init__(self, process: subprocess.Popen[str], address: Address) -> None:
        self.process, self.address = process, address

    async def metrics(self) -> dict[str, float]:
        """The unlabelled numbers of `/metrics`."""
        lines = (await get(self.address, "/metrics")).decode().splitlines()
        pairs = (line.split() for line in lines if not line.startswith("#") and "{" not in line)
        return {name: float(value) for name, value in pairs}

    def resident(self) -> dict[str, int]:
        """Resident bytes of the server's process and of the engine's, which is the largest of its children."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return {"server": _resident(pid), "engine": max(_resident(int(child)) for child in children)}


@contextlib.contextmanager
def served(path: str, options: Mapping[str, object]) -> Iterator[Served]:
    """`baleen serve` of the model in `path` with these options (True: a switch), until the block ends.

    Raises `RuntimeError` with the program's last words when it does not start.
    """
    command = [sys.executable, "-P", "-m", "baleen", "serve", path, "--port", "0", *_arguments(options)]
    environment = {name: value for name, value in os.environ.items() if name != "BALEEN_API_KEY"}
    # What it says goes to a file: a pipe that nobody reads would stop it one day.
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=said, text=True, env=environment, preexec_fn=end_with_parent
        ) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if " on http://" not in line:
                process.wait(END_SECONDS)
                said.seek(0)
                raise RuntimeError(f"the server did not start: {(said.read().splitlines() or [line])[-1]}")
            host, _, port = line.split()[-1].removeprefix("http://").rpartition(":")
            yield Served(process, Address(host, int(port)))
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
            process.kill()


def _arguments(options: Mapping[str, object]) -> Sequence[str]:
    switches = [f"--{name}" for name, value in options.items() if value is True]
    values = [(f"--{name}", str(value)) for name, value in options.items() if not isinstance(value, bool)]
    return [*switches, *(part for pair in values for part in pair)]


def _resident(pid: int) -> int:
    """Bytes; 0 for a process that has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
