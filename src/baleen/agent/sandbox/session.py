"""The host's end of a sandbox: starts the guest, speaks with it, and puts an end to it.

One thread per sandbox does all of its blocking work. So calls are served in the order in which they were made, a
sandbox may be used from one event loop after another, and a cancelled call cannot leave half a frame in the pipe. The
guest dies with that thread (`--die-with-parent`), therefore with this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import select
import shutil
import struct
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from baleen.agent.sandbox.launch import NOBODY, Launch, Tier, isolated_launches, process_launch

_T = TypeVar("_T")
_LENGTHS = struct.Struct(">II")
_BOOT_SECONDS = 20.0
_GRACE_SECONDS = 10.0
"""How long after a call's own timeout the guest may take to clean up before it counts as dead."""


class SandboxError(RuntimeError):
    """The sandbox died or stopped answering. Not the fault of one program: start a new sandbox."""


class SandboxUnavailable(RuntimeError):
    """No tier that isolates can be started here."""


class WeakSandboxWarning(UserWarning):
    """Code runs without isolation, or with less than the best of it, or not in the interpreter that was meant."""


@dataclass(frozen=True)
class Limits:
    """What a sandbox may use."""

    memory_bytes: int = 512 << 20
    """Address space of each process and, in the bubblewrap tier, private memory of all of them together."""

    processes: int = 64
    """Processes and threads at one time."""

    disk_bytes: int = 64 << 20
    """Workspace, /tmp and /dev/shm together; in the process tier only the size of each file."""

    output_bytes: int = 1 << 20
    """Kept of stdout and stderr together per call; the rest is read and dropped."""


@dataclass(frozen=True)
class RunResult:
    """How one program ended. `exit_code` is negative for a signal, 127 when the program was not found."""

    stdout: str
    stderr: str
    exit_code: int
    timed_out: bool = False
    out_of_memory: bool = False
    """Killed because its processes together went over `memory_bytes`; one process alone sees a failed allocation."""

    truncated: bool = False
    """Whether output beyond `output_bytes` was dropped."""

    left_files: bool = False
    """After `run_python`: the program left files, so the next call would not be fresh."""


class Sandbox:
    """An isolated workspace; use it as `async with`. Raises `SandboxUnavailable` on entry where nothing isolates."""

    def __init__(self, limits: Limits | None = None, *, allow_weak: bool = False) -> None:
        self.limits = limits or Limits()
        self.allow_weak = allow_weak
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sandbox")
        self._guest: subprocess.Popen[bytes] | None = None
        self._tier: Tier | None = None
        self._folder: str | None = None

    async def __aenter__(self) -> Sandbox:
        try:
            await self._in_thread(self._boot)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def tier(self) -> Tier:
        """`bubblewrap` or `process`; known once the sandbox is entered."""
        if self._tier is None:
            raise SandboxError("the sandbox was not started; use it as `async with Sandbox(...) as sandbox`")
        return self._tier

    async def run(self, argv: Sequence[str], *, timeout: float = 10.0) -> RunResult:
        """Runs a program in the workspace; when it ends or `timeout` seconds are over, all it started is killed."""
        return await self._program({"operation": "run", "argv": list(argv), "timeout": timeout}, b"")

    async def run_python(self, code: str, *, timeout: float = 10.0) -> RunResult:
        """Runs Python source in a fork of the guest, about a millisecond; a last expression shows its value when the
        program printed nothing, and an exception comes as its last line on stderr."""
        return await self._program({"operation": "python", "timeout": timeout}, code.encode("utf-8", "replace"))

    async def write(self, path: str, content: bytes) -> None:
        """Writes a file of the workspace, making its folders. Raises `OSError`, also when the disk limit is reached."""
        await self._in_thread(lambda: self._exchange({"operation": "write", "path": path}, content, 0.0))

    async def read(self, path: str) -> bytes:
        """A file of the workspace. Raises `FileNotFoundError` and other `OSError`s."""
        _, content = await self._in_thread(lambda: self._exchange({"operation": "read", "path": path}, b"", 0.0))
        return content

    async def close(self) -> None:
        """Ends everything inside and removes the workspace. May be called twice."""
        with contextlib.suppress(RuntimeError):  # the thread is gone already
            await self._in_thread(self._end)
        self._thread.shutdown(wait=False)

    async def _program(self, request: dict[str, Any], body: bytes) -> RunResult:
        timeout = request["timeout"]
        answer, output = await self._in_thread(lambda: self._exchange(request, body, timeout))
        split = answer.pop("stdout_bytes")
        return RunResult(output[:split].decode("utf-8", "replace"), output[split:].decode("utf-8", "replace"), **answer)

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _boot(self) -> None:
        reasons = []
        for launch in isolated_launches(self.limits.disk_bytes):
            try:
                self._start(launch)
            except (OSError, SandboxError) as error:
                self._end()
                reasons.append(str(error))
                continue
            if reasons:
                text = f"isolated, but with {launch.arguments[-1]} as python3 ({'; '.join(reasons)})"
                warnings.warn(text, WeakSandboxWarning, stacklevel=1)
            return
        reason = "; ".join(reasons) or "bwrap is not installed"
        if not self.allow_weak:
            raise SandboxUnavailable(
                f"no isolation here ({reason}); install bubblewrap and allow user namespaces, or pass allow_weak=True"
            )
        warnings.warn(
            f"NO ISOLATION: code runs as an ordinary process that sees files and network ({reason})",
            WeakSandboxWarning,
            stacklevel=1,
        )
        self._folder = tempfile.mkdtemp(prefix="baleen-sandbox-")
        weak = process_launch(self._folder)
        if weak is None:
            raise SandboxUnavailable("no Python interpreter that an unprivileged user can reach, e.g. /usr/bin/python3")
        if weak.user is not None:
            os.chown(self._folder, weak.user, weak.user)
        self._start(weak)

    def _start(self, launch: Launch) -> None:
        config = {**asdict(self.limits), "box": launch.box, "isolated": launch.tier == "bubblewrap"}
        source = Path(__file__).with_name("guest.py").read_text(encoding="utf-8")
        arguments, passed = list(launch.arguments), []
        if launch.seccomp is not None:
            readable, writable = os.pipe()
            os.write(writable, launch.seccomp)  # a few hundred bytes: fits the pipe
            os.close(writable)
            passed.append(readable)
            arguments[-2:-2] = ["--seccomp", str(readable)]
        elif launch.tier == "bubblewrap":
            warnings.warn("no system call filter is known for this machine", WeakSandboxWarning, stacklevel=1)
        arguments += ["-s", "-S", "-c", source, json.dumps(config)]
        user = {} if launch.user is None else {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        try:
            self._guest = subprocess.Popen(
                arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=launch.environment,
                cwd="/",
                pass_fds=passed,
                start_new_session=True,
                **user,  # type: ignore[call-overload]
            )
        finally:
            for descriptor in passed:
                os.close(descriptor)
        self._tier = launch.tier
        self._receive(time.monotonic() + _BOOT_SECONDS)

    def _exchange(self, head: dict[str, Any], body: bytes, timeout: float) -> tuple[dict[str, Any], bytes]:
        guest = self._guest
        if guest is None or guest.stdin is None:
            raise SandboxError("the sandbox is not running")
        encoded = json.dumps(head).encode()
        try:
            data = memoryview(_LENGTHS.pack(len(encoded), len(body)) + encoded + body)
            while data:
                data = data[guest.stdin.write(data) or 0 :]
            answer, payload = self._receive(time.monotonic() + timeout + _GRACE_SECONDS)
        except (OSError, SandboxError) as error:
            self._end()
            raise SandboxError(f"the sandbox is gone: {error}") from error
        if "errno" in answer:
            raise OSError(answer["errno"], answer["message"], head.get("path"))
        return answer, payload

    def _receive(self, deadline: float) -> tuple[dict[str, Any], bytes]:
        head_length, body_length = _LENGTHS.unpack(self._read(_LENGTHS.size, deadline))
        if body_length > max(self.limits.disk_bytes, self.limits.output_bytes):
            raise SandboxError("the guest sends more than the limits allow")
        return json.loads(self._read(head_length, deadline)), self._read(body_length, deadline)

    def _read(self, length: int, deadline: float) -> bytes:
        guest = self._guest
        if guest is None or guest.stdout is None:
            raise SandboxError("the sandbox is not running")
        data = bytearray()
        while len(data) < length:
            ready, _, _ = select.select([guest.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise SandboxError("the guest does not answer")
            piece = os.read(guest.stdout.fileno(), min(length - len(data), 1 << 20))
            if not piece:
                raise SandboxError(self._last_words())
            data += piece
        return bytes(data)

    def _last_words(self) -> str:
        """What the dead guest wrote to its stderr, at most a line or two."""
        guest = self._guest
        if guest is None or guest.stderr is None:
            return "no reason given"
        ready, _, _ = select.select([guest.stderr], [], [], 1.0)
        text = os.read(guest.stderr.fileno(), 4096).decode("utf-8", "replace").strip() if ready else ""
        return text[-400:] or os.strerror(errno.EPIPE)

    def _end(self) -> None:
        guest, self._guest = self._guest, None
        if guest is not None:
            guest.kill()
            for pipe in (guest.stdin, guest.stdout, guest.stderr):
                if pipe is not None:
                    pipe.close()
            guest.wait()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
