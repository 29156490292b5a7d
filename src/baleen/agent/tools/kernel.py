"""`python(code)`: a Jupyter kernel in the sandbox; variables stay from call to call, pictures come back.

The kernel and the driver that speaks with it (`kernel_driver.py`) both live inside; what comes out is text and images.
At the end of its time code is interrupted, and when that does not help the kernel is killed. A kernel that is lost is
replaced at the next call, and the model is told that its variables are gone.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import importlib.util
import json
import os
import re
import secrets
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from baleen.agent.environment import InfrastructureError
from baleen.agent.sandbox import Limits, Process, Sandbox, SandboxError
from baleen.agent.tools.faults import sandbox_faults
from baleen.agent.tools.results import Image, ToolResult
from baleen.agent.tools.terminal_text import middle_cut, plain_text

_NEEDED = ("ipykernel", "jupyter_client", "zmq", "IPython", "tornado", "traitlets")
_START_SECONDS = 90.0
_GRACE_SECONDS = 20.0
"""How long after a cell's time the driver may take to interrupt or kill it before it counts as dead itself."""
_IMAGE_BYTES = 8 << 20
_ERROR_CHARACTERS = 3000
_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")
_DISTURBED = "the kernel's channel was disturbed"
_LOST = "all variables are lost, and the next call gets a new kernel"


def kernel_sandbox(limits: Limits | None = None, *, allow_weak: bool = False) -> Sandbox:
    """A sandbox, not yet started, in which a kernel finds its packages and room to run.

    Raises `InfrastructureError` when `ipykernel` or `jupyter_client` is not installed.
    """
    limits = limits or Limits(memory_bytes=2 << 30, disk_bytes=256 << 20)
    return Sandbox(limits, allow_weak=allow_weak, readable=kernel_folders())


@cache
def kernel_folders() -> tuple[str, ...]:
    """The folders of the host that hold the kernel's packages, and whatever else is installed beside them."""
    folders: dict[str, None] = {}
    for name in _NEEDED:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise InfrastructureError(f"the package {name!r} is missing; pip install 'baleen[agent]'")
        folders[os.path.realpath(Path(spec.origin).parent.parent)] = None
    return tuple(folders)


class _KernelLost(Exception):
    """The driver is gone, or speaks nonsense."""


class Kernel:
    """A kernel in a started sandbox of `kernel_sandbox`, which belongs to the caller; one cell at a time.

    It starts at the first call, about a second. `longest`: the most seconds that a call may ask for. Of a longer
    output the first and the last part, `output_characters` together, are shown.
    """

    def __init__(self, sandbox: Sandbox, *, longest: float = 600.0, output_characters: int = 16_000) -> None:
        self._sandbox, self._longest, self._output_characters = sandbox, longest, output_characters
        self._process: Process | None = None
        self._pending = bytearray()
        self._has_started = False
        self._one_at_a_time = asyncio.Lock()

    async def python(
        self,
        code: Annotated[str, "a cell; the value of its last expression is shown"],
        timeout: Annotated[float, "seconds"] = 120.0,
    ) -> ToolResult:
        """Runs Python code in a Jupyter kernel that keeps its variables between calls."""
        if not timeout > 0:  # NaN neither
            raise ValueError(f"timeout must be more than 0 seconds, got {timeout:g}")
        seconds = min(timeout, self._longest)
        code = code.encode("utf-8", "replace").decode()  # half a surrogate pair is no text
        async with self._one_at_a_time:
            with sandbox_faults():
                try:
                    await self._start()
                    reply = await self._ask({"code": code, "timeout": seconds}, seconds + _GRACE_SECONDS)
                    result = self._result(reply, seconds)
                except _KernelLost as error:
                    await self._drop()
                    return ToolResult(f"error: {error}; {_LOST}")
                except BaseException:
                    await self._drop()  # cancelled: whatever it does now must not meet the next call
                    raise
                if reply.get("end") in ("stuck", "died"):
                    await self._drop()
                return result

    async def reset(self) -> None:
        """Forgets all variables: the next call gets a new kernel. Files stay."""
        async with self._one_at_a_time:
            with sandbox_faults():
                await self._drop()

    async def close(self) -> None:
        """Ends the kernel; the sandbox stays. May be called twice."""
        await self.reset()

    async def _start(self) -> None:
        if self._process is not None:
            return
        if self._sandbox.tier == "landlock":
            raise InfrastructureError("a Jupyter kernel needs sockets, which the tier landlock denies; use bubblewrap")
        source = Path(__file__).with_name("kernel_driver.py").read_text(encoding="utf-8")
        config = {"output_characters": self._output_characters, "image_bytes": _IMAGE_BYTES}
        environment = {
            "PYTHONPATH": os.pathsep.join(kernel_folders()),
            # Threads cost address space, which is limited, and the processor is shared.
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "MALLOC_ARENA_MAX": "2",
        }
        argv = ["python3", "-P", "-c", source, json.dumps(config)]
        self._process = await self._sandbox.start(argv, environment=environment)
        self._pending.clear()
        try:
            answer = await self._receive(time.monotonic() + _START_SECONDS)
            if not answer.get("ready"):
                raise _KernelLost(f"no kernel could be started: {answer.get('reason')}")
        except _KernelLost as error:
            if self._has_started:
                raise  # what was run before has broken its place: the disk is full, say
            await self._drop()
            raise InfrastructureError(f"the Python kernel does not start: {error}") from error
        self._has_started = True

    async def _ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        assert self._process is not None
        # Code in the kernel can reach the driver's pipes: without the token a line of its own would pass for the next
        # cell's answer.
        token = secrets.token_hex(8)
        try:
            await self._process.send(json.dumps({**request, "token": token}).encode() + b"\n")
        except (BrokenPipeError, BlockingIOError) as error:
            raise _KernelLost("the kernel died") from error
        answer = await self._receive(time.monotonic() + seconds)
        if answer.get("token") != token:
            raise _KernelLost(_DISTURBED)
        return answer

    async def _receive(self, deadline: float) -> dict[str, Any]:
        """One line of the driver."""
        assert self._process is not None
        most = 2 * _IMAGE_BYTES + 6 * 4 * self._output_characters + (1 << 20)  # \u1234 is six bytes a character
        while (end := self._pending.find(b"\n")) < 0:
            try:
                piece = await self._process.receive(max(0.0, deadline - time.monotonic()))
            except TimeoutError as error:
                raise _KernelLost("the kernel does not answer") from error
            self._pending += piece
            if not piece or len(self._pending) > most:
                words = self._pending[-400:].decode("utf-8", "replace").strip()
                raise _KernelLost(f"the kernel died{': ' + words if words else ''}")
        line, self._pending = bytes(self._pending[:end]), self._pending[end + 1 :]
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _KernelLost(_DISTURBED) from error
        if not isinstance(answer, dict):
            raise _KernelLost(_DISTURBED)
        return answer

    def _result(self, reply: dict[str, Any], seconds: float) -> ToolResult:
        try:
            text = plain_text(str(reply["text"])).strip("\n")
            error = _BLANK_LINES.sub("\n", plain_text(str(reply["error"]))).strip("\n")
            images = tuple(Image(base64.b64decode(data, validate=True), str(kind)) for kind, data in reply["images"])
            end, left_out, exit_code = str(reply["end"]), int(reply["left_out"]), str(reply.get("exit_code"))
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError, binascii.Error) as fault:
            raise _KernelLost(_DISTURBED) from fault
        parts = [middle_cut(text, self._output_characters, left_out), middle_cut(error, _ERROR_CHARACTERS)]
        if end == "interrupted":
            parts.append(f"error: timed out after {seconds:g} s; the code was interrupted, variables are kept")
        elif end == "stuck":
            parts.append(f"error: timed out after {seconds:g} s and could not be interrupted; {_LOST}")
        elif end == "died":
            parts.append(f"error: the kernel died with exit code {exit_code}; {_LOST}")
        shown = "\n".join(part for part in parts if part)
        return ToolResult(shown or ("" if images else "(no output)"), images)

    async def _drop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(SandboxError):  # the sandbox is gone, and the kernel with it
                await process.kill()
